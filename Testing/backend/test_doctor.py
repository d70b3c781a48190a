"""The doctor says what is true of the machine it runs on."""

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genseg import doctor, prepare, versions

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "0"}


def run_doctor(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genseg", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=ENVIRONMENT, timeout=120)


def test_json_is_all_that_stdout_carries_and_names_this_machine(tmp_path):
    folder = tmp_path / "Läufe 1"
    folder.mkdir()
    done = run_doctor("--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    seen = doctor.Diagnosis.model_validate(json.loads(done.stdout))
    assert seen.usable and seen.versions["torch"] == torch.__version__
    assert seen.devices[-1].id == "cpu"
    assert (seen.recommended_device == "cpu") == (
        not torch.cuda.is_available() and not torch.backends.mps.is_available()
    )
    assert 0 < seen.free_memory <= seen.total_memory
    assert any(str(folder) in finding.value for finding in seen.findings)


def test_people_read_what_training_will_run_on():
    done = run_doctor()
    assert done.returncode == 0
    assert "Training will run on" in done.stdout and "Ready: GenSeg can train here" in done.stdout


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with Linux's own figures")
def test_main_memory_is_what_the_kernel_says_unless_a_container_allows_less():
    total, _ = doctor.memory()
    kernel = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert total == pytest.approx(kernel, rel=0.01) or total < kernel


def test_a_missing_library_makes_the_machine_unusable_and_is_named(monkeypatch):
    monkeypatch.setattr(versions, "LIBRARIES", {"numpy": "numpy", "no-such-library": "no_such_library"})
    seen = doctor.diagnose()
    assert not seen.usable
    assert any("no-such-library" in finding.meaning for finding in seen.findings if finding.level == "problem")


def test_a_library_without_a_record_of_its_installation_is_there_all_the_same(monkeypatch):
    told = importlib.metadata.version

    def version(name: str) -> str:
        if name == "SimpleITK":
            raise importlib.metadata.PackageNotFoundError(name)
        return told(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert versions.library_versions()["SimpleITK"] == ""
    (libraries,) = [finding for finding in doctor.diagnose().findings if finding.name == "Libraries"]
    assert libraries.level == "good" and "SimpleITK, " in libraries.value


def test_apples_gpu_is_listed_but_nothing_says_that_training_takes_it_by_itself(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "bf16_speedup", lambda device: None)
    seen = doctor.diagnose()
    assert [device.id for device in seen.devices] == ["cpu", "mps"] and seen.recommended_device == "cpu"
    assert not any("this GPU" in finding.meaning for finding in seen.findings)


def test_a_torch_that_does_not_load_is_reported_and_not_raised(tmp_path):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.99: cannot open shared object file')")
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "genseg", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, timeout=120)
    assert done.returncode == 1
    seen = json.loads(done.stdout)
    assert not seen["usable"] and seen["recommended_device"] is None
    assert any("libcudart.so.99" in finding["value"] for finding in seen["findings"])


def test_a_full_disk_is_a_problem_and_a_small_one_a_note(tmp_path):
    levels = [
        doctor._disk_findings(tmp_path, size)[0].level for size in (doctor.GIB // 2, 2 * doctor.GIB, 99 * doctor.GIB)
    ]
    assert levels == ["problem", "note", "good"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    missing = tmp_path / "gone"  # stands for every refusal of the system; root may write anywhere else
    assert doctor._disk_findings(missing, 99 * doctor.GIB)[1].level == "note"


def test_the_speed_of_bf16_is_what_convolutions_show_here():
    """Between a three-hundredth (emulated) and several times that of float32: as the processor has it."""

    def seconds(dtype: torch.dtype) -> float:
        network, scan = torch.nn.Conv3d(32, 32, 3, padding=1).to(dtype), torch.rand(1, 32, 32, 32, 32).to(dtype)
        spent = []
        with torch.no_grad():
            while len(spent) < 3 and sum(spent) < 1:
                begin = time.perf_counter()
                network(scan)
                spent.append(time.perf_counter() - begin)
        return min(spent)

    shown = seconds(torch.float32) / seconds(torch.bfloat16)
    assert shown / 5 < doctor.bf16_speedup("cpu") < shown * 5


def test_a_run_records_the_versions_of_the_libraries_that_are_there(monkeypatch):
    told = prepare.versions()
    assert {"torch", "monai", "diffusers", "einops", "genseg", "python"} <= told.keys()
    monkeypatch.setattr(prepare, "version_of", lambda name: None if name == "einops" else "")
    assert prepare.versions()["diffusers"] == "not told" and "einops" not in prepare.versions()
