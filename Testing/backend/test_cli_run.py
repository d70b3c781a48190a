"""The commands that work on a run, as real processes on a small network and real scans."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import SimpleITK as sitk
from made_run import make_run
from real_data import DATA, needs_data

from genseg import events
from genseg.errors import DamagedFile
from genseg.runfolder import RunFolder
from genseg.settings import Settings

pytestmark = needs_data
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def genseg(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "genseg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[RunFolder, list[Path]]:
    """A run in a folder with a difficult name, and the images of three test scans."""
    run, study = make_run(tmp_path_factory.mktemp("cli") / "Lauf Ä 1", "hippocampus")
    return run, [case.images[0] for case in study.test[:3]]


def test_predict_writes_a_mask_for_each_image_on_its_grid(made, tmp_path):
    run, images = made
    out = tmp_path / "Masken ü"
    done = genseg("predict", run.path, *images, "--out", out, "--format", "nii.gz", "--format", "seg.nrrd", "--no-tta")
    assert done.returncode == 0, done.stderr
    assert "3 of 3 images segmented" in done.stdout and "uncertainty" in done.stderr
    for image in images:
        name = image.name.removesuffix(".nii.gz")
        mask, scan = sitk.ReadImage(str(out / f"{name}.nii.gz")), sitk.ReadImage(str(image))
        assert mask.GetSize() == scan.GetSize() and mask.GetOrigin() == scan.GetOrigin()
        assert (out / f"{name}.seg.nrrd").is_file()


def test_predict_tells_a_program_each_prediction_and_the_end(made, tmp_path):
    run, images = made
    done = genseg("predict", run.path, images[0], "--out", tmp_path / "masks", "--events", "--no-tta")
    heard = [events.parse_event(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    (prediction,) = [event for event in heard if event.event == "prediction"]
    assert Path(prediction.path).is_file() and prediction.step is None
    assert heard[-1].event == "finished" and heard[-1].status == 0


def test_predict_lists_every_missing_image_and_writes_nothing(made, tmp_path):
    run, images = made
    missing = [tmp_path / "weg 1.nii.gz", tmp_path / "weg 2.nii.gz"]
    done = genseg("predict", run.path, images[0], *missing, "--out", tmp_path / "masks", "--no-tta")
    assert done.returncode == 2
    assert all(path.name in done.stderr for path in missing) and "2 faults in the input." in done.stderr
    assert not (tmp_path / "masks").exists()


def test_predict_does_what_it_can_when_one_image_is_corrupt(made, tmp_path):
    run, images = made
    corrupt = tmp_path / "kaputt.nii.gz"
    corrupt.write_bytes(images[1].read_bytes()[:500])
    done = genseg("predict", run.path, corrupt, images[0], "--out", tmp_path / "masks", "--no-tta")
    assert done.returncode == 2
    assert "kaputt" in done.stderr and "1 of 2 images segmented" in done.stdout
    assert len(list((tmp_path / "masks").glob("*.seg.nrrd"))) == 1


@pytest.fixture(scope="module")
def small_study(made, tmp_path_factory) -> Path:
    """Two labelled test scans, read in place."""
    folder = DATA / "hippocampus"
    original = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))

    def absolute(cases: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{key: str(folder / case[key]) for key in ("image", "label")} for case in cases]

    content = {
        "labels": original["labels"],
        "training": absolute(original["training"][:1]),
        "test": absolute(original["test"][:2]),
    }
    path = tmp_path_factory.mktemp("studie") / "dataset.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_evaluate_prints_json_and_nothing_else_on_stdout(made, small_study):
    run, _ = made
    done = genseg("evaluate", run.path, small_study, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["mean"]) == {"dice", "iou", "hd95_mm", "nsd"}
    assert len(result["cases"]) == 2 and len(result["labels"]) == 2


def test_evaluate_prints_a_table_for_people(made, small_study):
    run, _ = made
    done = genseg("evaluate", run.path, small_study)
    assert done.returncode == 0, done.stderr
    assert "Dice" in done.stdout and "HD95" in done.stdout


def test_evaluate_without_reference_labels_is_a_fault(made, small_study, tmp_path):
    study = json.loads(small_study.read_text(encoding="utf-8"))
    (tmp_path / "dataset.json").write_text(json.dumps({**study, "test": []}), encoding="utf-8")
    done = genseg("evaluate", made[0].path, tmp_path)
    assert done.returncode == 2 and "no reference labels" in done.stderr


def test_report_and_export_print_where_the_result_is(made, tmp_path):
    run, _ = made
    report = genseg("report", run.path)
    assert report.returncode == 0, report.stderr
    assert Path(report.stdout.strip()) == run.report and run.report.is_file()
    exported = genseg("export", run.path, "--out", tmp_path / "Bündel")
    assert exported.returncode == 0, exported.stderr
    assert Path(exported.stdout.strip()) == tmp_path / "Bündel" and any((tmp_path / "Bündel").iterdir())


def test_a_run_without_a_usable_model_says_so(tmp_path):
    run, study = make_run(tmp_path / "run", "hippocampus")
    run.best.unlink()
    for command in (["predict", run.path, study.test[0].images[0]], ["export", run.path]):
        done = genseg(*command, "--out", tmp_path / "out")
        assert done.returncode == 1 and "Something went wrong" not in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["checkpoints/best.safetensors", "settings.json", "plan.json", "study.json"])
def test_a_damaged_file_of_a_run_is_named_with_a_remedy_and_nothing_unexpected_happens(name, made, tmp_path):
    run, images = made
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    damaged = copy / name
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    work = ("export", copy, "--out", tmp_path / "bundle") if name == "settings.json" else None
    done = genseg(*(work or ("predict", copy, images[0], "--out", tmp_path / "masks")))
    assert done.returncode == 1
    assert f"The file {damaged} is damaged" in done.stderr and "backup" in done.stderr
    assert "should not" not in done.stderr


def test_settings_that_no_run_wrote_are_named_too(made, tmp_path):
    shutil.copytree(made[0].path, tmp_path / "copy")
    (tmp_path / "copy" / "settings.json").write_text('{"colour": "blue"}', encoding="utf-8")
    with pytest.raises(DamagedFile, match=r"settings\.json is damaged: dataset: Field required\."):
        Settings.load(tmp_path / "copy" / "settings.json")
