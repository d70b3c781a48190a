"""The main job from the command line: a few labelled scans in, a segmenter with a fair overlap out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from tiny_run import ENVIRONMENT, leftovers

from genseg import events
from genseg.runfolder import RunFolder, read_json

pytestmark = pytest.mark.slow
SCANS = 6
# What 60 steps on 3 scans reach at the least; random weights, a shifted or a mirrored grid stay far below.
FAIR_DICE = 0.45


def genseg(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=600)


@pytest.fixture(scope="module")
def study(data, tmp_path_factory) -> Path:
    """The first scans of the real study, every second voxel of them along each axis: an eighth of the work."""
    source, folder = data / "hippocampus", tmp_path_factory.mktemp("study")
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    for split, count in (("training", 3), ("test", SCANS)):
        content[split] = content[split][:count]
        for file in (folder / name for case in content[split] for name in case.values()):
            file.parent.mkdir(parents=True, exist_ok=True)
            whole = sitk.ReadImage(str(source / file.relative_to(folder)))
            sitk.WriteImage(whole[::2, ::2, ::2], str(file))
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained(study, tmp_path_factory) -> tuple[RunFolder, subprocess.CompletedProcess[str]]:
    run = RunFolder(tmp_path_factory.mktemp("end to end") / "Lauf Ä")
    return run, genseg("train", study, "--out", run.path, "--iterations", "60", "--device", "cpu", "--events")


def test_training_from_the_command_line_ends_well_and_tells_a_program_everything(trained):
    run, done = trained
    assert done.returncode == 0, done.stderr
    heard = [events.parse_event(line) for line in done.stdout.splitlines()]
    assert heard[-1].event == "finished" and heard[-1].status == 0
    assert {"started", "plan", "progress", "metric", "synthetic", "prediction"} <= {event.event for event in heard}
    assert run.done.exists() and leftovers(run.path.parent) == []


def test_the_test_scans_are_segmented_fairly(trained, study):
    run, _ = trained
    done = genseg("evaluate", run.path, study, "--json", "--device", "cpu")
    scores = json.loads(done.stdout)
    assert done.returncode == 0 and len(scores["cases"]) == SCANS
    assert scores["mean"]["dice"] > FAIR_DICE, scores["mean"]
    assert all(label["dice"] > FAIR_DICE / 2 for label in scores["labels"].values())
    assert scores["mean"] == pytest.approx(read_json(run.metrics)["test"]["mean"])


def test_new_scans_are_predicted_with_the_very_mask_that_the_run_wrote(trained, study, tmp_path):
    run, _ = trained
    entries = {entry["case"]: entry for entry in read_json(run.predictions_index)["cases"]}
    images = [entry["images"][0] for entry in entries.values()][:2]
    done = genseg("predict", run.path, *images, "--out", tmp_path / "masks", "--format", "nii.gz", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for image in images:
        case = Path(image).name.removesuffix(".nii.gz")
        mine = sitk.ReadImage(str(tmp_path / "masks" / f"{case}.nii.gz"))
        theirs = sitk.ReadImage(str(run.predictions / entries[case]["path"]))
        assert (sitk.GetArrayFromImage(mine) == sitk.GetArrayFromImage(theirs)).all()
        assert mine.GetSize() == sitk.ReadImage(image).GetSize()


def test_the_model_of_a_trained_run_is_exported_and_its_report_written_anew(trained, tmp_path):
    run, _ = trained
    assert genseg("export", run.path, "--out", tmp_path / "bundle").returncode == 0
    assert (tmp_path / "bundle" / "models" / "model.safetensors").stat().st_size > 100_000
    before = run.report.stat().st_mtime_ns
    assert genseg("report", run.path).returncode == 0 and run.report.stat().st_mtime_ns > before
