"""Going on after a stop: on a processor the result is that of the uninterrupted run, bit for bit."""

import os
from pathlib import Path

import pytest
from tiny_run import (
    before_pretraining,
    before_step,
    counters,
    differences,
    leftovers,
    listen,
    run_train,
    tensors,
    tiny_study,
)

from genseg import finish, schedule
from genseg.errors import EXIT_OK, EXIT_STOPPED, InputFaults, RunFailed
from genseg.events import parse_event
from genseg.imageio import read_scan
from genseg.inference import Predictor
from genseg.methods.shapes import ShapePool
from genseg.predict import predict_cases
from genseg.runfolder import RunFolder, read_json
from genseg.train import resume

pytestmark = pytest.mark.slow
STEPS = 30


@pytest.fixture(scope="module")
def tiny(data, tmp_path_factory) -> Path:
    return tiny_study(data / "hippocampus", tmp_path_factory.mktemp("tiny"), 2, 1, 1)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> RunFolder:
    """The uninterrupted run."""
    return run_train(tiny, tmp_path_factory.mktemp("whole") / "run", STEPS).run


def stages() -> dict[str, int]:
    """A step inside each stage of the segmenter's training, from the schedule itself."""
    search, frozen = schedule.SYNTHETIC_FROM * STEPS, schedule.LEVEL3_UNTIL * STEPS
    return {"before synthetic pairs": int(search / 2), "search": int((search + frozen) / 2), "frozen": int(frozen + 2)}


def stop_at(step: int, monkeypatch, out: RunFolder, pretraining: bool = False) -> None:
    def act(number: int) -> None:
        if number == step:
            out.stop.touch()

    (before_pretraining if pretraining else before_step)(monkeypatch, act)


@pytest.mark.parametrize("stage", ["pretraining", "before synthetic pairs", "search", "frozen"])
def test_a_stopped_run_goes_on_to_the_same_weights_bit_for_bit(stage, tiny, whole, tmp_path, monkeypatch):
    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(2 if stage == "pretraining" else stages()[stage], patch, out, stage == "pretraining")
        stopped = run_train(tiny, out.path, STEPS)
    assert stopped.status == EXIT_STOPPED and stopped.heard[-1].status == EXIT_STOPPED
    at = counters(out)
    assert (at["pretrain_step"] if stage == "pretraining" else at["step"] - stages()[stage] + 2) == 3
    assert not out.done.exists() and leftovers(out.path) == []
    assert out.best.exists() == out.report.exists() == (at["step"] > 0)
    again = listen(out, lambda log: resume(out.path, log))
    assert again.status == EXIT_OK and out.done.exists() and not out.stop.exists()
    assert differences(whole.last, out.last) == []
    assert differences(whole.best, out.best) == []
    assert {name.split("/")[0] for name in tensors(out.last)} == {
        "agreement", "found", "shapes", "segmenter", "average", "generator", "discriminator", "meta", "optimiser"
    }  # fmt: skip
    assert [e.resumed for e in map(parse_event, out.events.read_text().splitlines()) if e.event == "started"] == [
        False, True
    ]  # fmt: skip


def test_a_run_stopped_while_it_learns_shapes_goes_on_to_the_same_weights(tiny, whole, tmp_path, monkeypatch):
    out, original = RunFolder(tmp_path / "run"), ShapePool.find
    with monkeypatch.context() as patch:
        patch.setattr(ShapePool, "find", lambda self: (original(self), out.stop.touch()))
        assert run_train(tiny, out.path, STEPS).status == EXIT_STOPPED
    found = [name for name in tensors(out.last) if name.startswith("shapes/")]
    assert counters(out)["pretrain_step"] == 0 and found == ["shapes/0"]
    assert listen(out, lambda log: resume(out.path, log)).status == EXIT_OK
    assert len([name for name in tensors(out.last) if name.startswith("shapes/")]) == 2
    assert differences(whole.last, out.last) == [] and differences(whole.best, out.best) == []


def test_a_stopped_run_segments_new_scans(tiny, tmp_path, monkeypatch):
    out = RunFolder(tmp_path / "run")
    stop_at(2, monkeypatch, out)
    assert run_train(tiny, out.path, STEPS).status == EXIT_STOPPED
    assert out.model.is_dir() and not out.predictions.exists() and not out.metrics.exists()
    predictor = Predictor.load(out.path, "cpu")
    study = read_json(out.study)
    scan = read_scan([Path(study["test"][0]["images"][0])])
    assert predictor.segment(scan, tta=False).labels.shape == scan.array.shape[1:]


def test_a_stop_during_the_last_predictions_is_obeyed_and_the_rest_is_made_later(tiny, whole, tmp_path, monkeypatch):
    out = RunFolder(tmp_path / "run")

    def stop_with_the_first(predictor, cases, folder, log, split, **options):
        if options["tta"]:  # only the last predictions are mirrored
            out.stop.touch()
        return predict_cases(predictor, cases, folder, log, split, **options)

    with monkeypatch.context() as patch:
        patch.setattr(finish, "predict_cases", stop_with_the_first)
        stopped = run_train(tiny, out.path, STEPS)
    assert stopped.status == EXIT_STOPPED and not out.done.exists() and not out.metrics.exists()
    assert listen(out, lambda log: resume(out.path, log)).status == EXIT_OK
    assert out.metrics.exists() and differences(whole.last, out.last) == []
    assert read_json(out.metrics)["test"]["mean"] == read_json(whole.metrics)["test"]["mean"]


def test_a_finished_run_stays_as_it_is(whole):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
    again = listen(whole, lambda log: resume(whole.path, log))
    assert again.status == EXIT_OK and [event.code for event in again.heard] == ["already_done"]
    assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before


@pytest.fixture
def stopped(tiny, tmp_path, monkeypatch) -> RunFolder:
    out = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(1, patch, out)
        run_train(tiny, out.path, STEPS, method="supervised")
    return out


def test_temporary_files_of_a_killed_process_are_removed_when_the_run_goes_on(stopped):
    for path in (stopped.checkpoints, stopped.predictions, stopped.path, stopped.model / "configs"):
        path.mkdir(exist_ok=True)
        (path / f".part-{os.getpid()}-x.nrrd").write_bytes(b"half")
    assert listen(stopped, lambda log: resume(stopped.path, log)).status == EXIT_OK
    assert leftovers(stopped.path) == []


def test_a_scan_that_is_gone_is_named_when_the_run_goes_on(stopped, tiny):
    case = read_json(stopped.study)["training"][1]
    image = Path(case["images"][0])
    image.rename(image.with_name("weg.nii.gz"))
    try:
        with pytest.raises(InputFaults) as refused:
            listen(stopped, lambda log: resume(stopped.path, log))
    finally:
        image.with_name("weg.nii.gz").rename(image)
    (fault,) = refused.value.faults
    assert fault.case == case["id"] and fault.remedy


def test_a_damaged_checkpoint_is_said_in_words(stopped):
    stopped.last.write_bytes(stopped.last.read_bytes()[:-1000])
    with pytest.raises(RunFailed) as refused:
        listen(stopped, lambda log: resume(stopped.path, log))
    assert refused.value.code == "damaged_checkpoint" and str(stopped.last) in refused.value.message
