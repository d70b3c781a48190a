"""Which runs there are, how they stand, and that removing one never takes anything else along."""

import json
import os
import time
from pathlib import Path

import pytest
from GenSegSlicerLib import Runs
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Runs import Run, RunKind, RunList, describe, isRunFolder, sizeText

LABELS = [{"value": 0, "name": "background"}, {"value": 7, "name": "Leber"}, {"value": 9, "name": "脾"}]
STARTED = {"time": 1767225600.0, "event": "started", "version": "0", "run": "r", "method": "genseg", "device": "cpu"}


def finished(status: int) -> dict:
    return {"time": 1767225900.0, "event": "finished", "status": status, "seconds": 300.0, "model": None}


def makeRun(folder: Path, events=(STARTED,), weights=("last", "best"), done=False, age=3600.0, dice=None) -> Path:
    """A run folder as docs/run-folder.md describes it; its events are `age` seconds old."""
    for name in ("checkpoints", "predictions", "synthetic", "model"):
        (folder / name).mkdir(parents=True)
    settings = {"dataset": "/d", "out": str(folder), "method": "genseg"}
    case = {"id": "scan-1", "images": ["a"], "label": None}
    study = {"labels": {"labels": LABELS}, "training": [case] * 3, "unlabeled": [case], "test": [case] * 2}
    for name, content in (("settings", settings), ("study", study), ("plan", {})):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in weights:
        (folder / "checkpoints" / f"{name}.safetensors").write_bytes(b"x" * 1000)
    (folder / "predictions" / "scan-1.seg.nrrd").write_bytes(b"")
    (folder / "predictions" / "index.json").write_text("{}")
    (folder / "synthetic" / "0000_image.nrrd").write_bytes(b"")
    (folder / "synthetic" / "0000_mask.nrrd").write_bytes(b"")
    (folder / "model" / "anything.txt").write_text("")
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    os.utime(folder / "events.jsonl", (time.time() - age,) * 2)
    if dice is not None:
        (folder / "metrics.json").write_text(json.dumps({"test": {"mean": {"dice": dice}}}))
    if done:
        (folder / "done").write_text("")
    return folder


def one(folder: Path, **known) -> Run:
    (run,) = RunList(folder).runs(**known)
    return run


def test_a_finished_run_tells_everything_about_itself(tmp_path):
    makeRun(tmp_path / "Lauf ü 1", [STARTED, finished(0)], done=True, dice=0.8436)
    run = one(tmp_path)
    assert (run.name, run.kind, run.method, run.dice) == ("Lauf ü 1", RunKind.FINISHED, "genseg", 0.8436)
    assert (run.labels, run.labelled, run.unlabelled, run.tested) == (["Leber", "脾"], 3, 1, 2)
    assert (run.date, run.seconds) == (1767225600.0, 300.0) and run.size > 2000
    assert run.usable and not run.resumable
    said = describe(run)
    for words in ("Finished.", "genseg", "Leber, 脾", "0.84", "5 minutes", "kB", "Labeled scans: 3"):
        assert words in said


@pytest.mark.parametrize(
    ("made", "kind", "resumable"),
    [
        ({"events": [STARTED, finished(3)]}, RunKind.STOPPED, True),
        ({"events": [STARTED, finished(1)]}, RunKind.INTERRUPTED, True),
        ({"events": [STARTED]}, RunKind.INTERRUPTED, True),
        ({"events": [STARTED, finished(3), STARTED]}, RunKind.INTERRUPTED, True),
        ({"events": [STARTED], "age": 5.0}, RunKind.RUNNING, False),
        ({"events": [STARTED, finished(3)], "age": 5.0}, RunKind.STOPPED, True),
        ({"events": [STARTED, finished(3), STARTED], "age": 5.0}, RunKind.RUNNING, False),
        ({"events": [STARTED], "weights": ()}, RunKind.BROKEN, False),
        ({"events": [STARTED], "weights": ("best",)}, RunKind.INTERRUPTED, False),
        ({"done": True, "weights": ()}, RunKind.BROKEN, False),
        ({"events": []}, RunKind.INTERRUPTED, True),
    ],
)
def test_the_state_of_a_run_is_told_from_its_files(tmp_path, made, kind, resumable):
    makeRun(tmp_path / "run", **made)
    run = one(tmp_path)
    assert (run.kind, run.resumable) == (kind, resumable)
    assert describe(run)


def test_what_the_caller_knows_about_a_run_counts_more_than_its_age(tmp_path):
    folder = makeRun(tmp_path / "run", age=5.0)
    assert one(tmp_path).kind is RunKind.RUNNING
    assert one(tmp_path, idle=[folder]).kind is RunKind.INTERRUPTED
    os.utime(folder / "events.jsonl", (0, 0))
    assert one(tmp_path, active=folder).kind is RunKind.RUNNING


def test_an_end_far_back_in_a_long_file_and_a_last_line_without_end_do_no_harm(tmp_path):
    metric = {"event": "metric", "name": "x", "value": 1.0, "step": 1}
    folder = makeRun(tmp_path / "run", [STARTED, *[metric] * 5000, finished(3)])
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "started"')
    assert one(tmp_path).kind is RunKind.STOPPED


def test_the_newest_run_comes_first_and_what_is_no_run_is_left_out(tmp_path):
    for number in range(3):
        makeRun(tmp_path / f"run {number}", [STARTED | {"time": 1000.0 + number}])
    (tmp_path / "Fotos").mkdir()
    (tmp_path / "file.txt").write_text("")
    makeRun(tmp_path / ".part-1-run")
    other = makeRun(tmp_path / "other program")
    (other / "settings.json").write_text('{"theme": "dark"}')
    assert [run.name for run in RunList(tmp_path).runs()] == ["run 2", "run 1", "run 0"]
    assert RunList(tmp_path / "none").runs() == []


@pytest.mark.parametrize("method", ["genseg+versemi", "versemi", "genseg", "separate", "supervised"])
def test_a_run_of_every_method_is_listed_and_says_where_nothing_was_learned_from_scans_to_segment(tmp_path, method):
    settings = {"dataset": "/d", "out": "/o", "method": method}
    said = {}
    for learns in (True, False, None):  # None: a run from before there was a choice
        folder = makeRun(tmp_path / str(learns) / "run")
        chosen = {} if learns is None else {"learn_unlabelled": learns}
        (folder / "settings.json").write_text(json.dumps(settings | chosen), encoding="utf-8")
        said[learns] = describe(one(folder.parent))
    assert all(f"method {method}." in text for text in said.values())
    assert [learns for learns, text in said.items() if "Nothing was learned from the scans" in text] == [False]


@pytest.mark.parametrize("name", ["study.json", "metrics.json", "events.jsonl", "card.json"])
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[1]", b"\xff\xfe", b'{"labels": null, "test": {"mean": []}}'),
        *(b'{"labels": ["x"], "training": 5, "trained_on": ["busi"]}', b'{"labels": {"labels": ["x"]}}'),
        *(b'{"trained_on": 5}', b'{"trained_on": [null], "method": []}'),
    ],
)
def test_a_damaged_file_never_breaks_the_list(tmp_path, name, content):
    folder = makeRun(tmp_path / "run", [STARTED, finished(3)], dice=0.5)
    (folder / name).write_bytes(content)
    assert describe(one(tmp_path))


def test_settings_that_cannot_be_read_are_no_run(tmp_path):
    folder = makeRun(tmp_path / "run")
    (folder / "settings.json").write_text("{")
    assert not isRunFolder(folder) and not isRunFolder(tmp_path / "none")


def test_each_study_of_several_is_listed_by_both_names_and_none_is_removed_alone(tmp_path):
    whole = makeRun(tmp_path / "both", [STARTED, finished(0)], done=True)
    (whole / "study.json").unlink()
    for name in ("heart", "liver"):
        makeRun(whole / "studies" / name, [STARTED, finished(0)], weights=("best",), done=True, dice=0.8)
    runs = RunList(tmp_path).runs()
    assert [run.name for run in runs] == ["both: heart", "both: liver"]
    assert all(run.usable and not run.resumable and run.kind is RunKind.FINISHED and run.labelled == 3 for run in runs)
    for folder in (tmp_path, runs[0].path.parent):
        with pytest.raises(StudyFaults, match="trained together"):
            RunList(folder).remove(runs[0])
    assert len(RunList(tmp_path).runs()) == 2


def test_a_starting_model_is_listed_says_what_it_is_for_and_can_be_removed(tmp_path):
    folder = makeRun(tmp_path / "start", [STARTED, finished(0)], weights=("best",), done=True)
    settings = {"dataset": "/d", "out": str(folder), "method": "imaml"}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "study.json").unlink()
    for path in [*(folder / "predictions").iterdir(), *(folder / "synthetic").iterdir()]:
        path.unlink()
    (folder / "card.json").write_text(json.dumps({"trained_on": [{"name": "liver"}, {"name": "heart"}]}))
    (folder / "README.md").write_text("# A starting model")
    run = one(tmp_path)
    assert run.kind is RunKind.FINISHED and not run.usable and not run.resumable
    assert "A starting model, learned from liver, heart" in describe(run) and "Labeled scans" not in describe(run)
    RunList(tmp_path).remove(run)
    assert not folder.exists()


def test_a_starting_model_that_was_passed_on_without_its_settings_is_listed_and_can_be_removed(tmp_path):
    folder = tmp_path / "passed on"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.safetensors").write_bytes(b"weights")
    (folder / "plan.json").write_text("{}")
    (folder / "card.json").write_text(json.dumps({"method": "imaml", "trained_on": [{"name": "liver"}]}))
    (folder / "README.md").write_text("# A starting model")
    run = one(tmp_path)
    assert run.kind is RunKind.FINISHED and run.method == "imaml" and run.learnedFrom == ["liver"] and not run.usable
    RunList(tmp_path).remove(run)
    assert not folder.exists()


def test_removing_takes_the_run_and_nothing_else(tmp_path):
    makeRun(tmp_path / "keep")
    makeRun(tmp_path / "drop", [STARTED, finished(3)])
    (tmp_path / "drop" / "excluded.json").write_text("{}")
    (tmp_path / "drop" / "predictions" / ".part-7-x.nrrd").write_text("")
    (tmp_path / (Runs._REMOVING + "old")).mkdir()
    runs = RunList(tmp_path)
    runs.remove(next(run for run in runs.runs() if run.name == "drop"))
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


def test_a_run_that_left_its_generator_to_other_programs_can_be_removed(tmp_path):
    folder = makeRun(tmp_path / "run", [STARTED, finished(0)], weights=("best",), done=True)
    (folder / "generator").mkdir()
    (folder / "generator" / "config.json").write_text("{}")
    RunList(tmp_path).remove(one(tmp_path))
    assert not folder.exists()


@pytest.mark.parametrize(
    "mine",
    ["Notizen.txt", "predictions/scan-1 korrigiert.seg.nrrd", "synthetic/favourite.png", "predictions/scan-12.png"],
)
def test_a_run_with_files_of_the_users_own_is_not_removed(tmp_path, mine):
    folder = makeRun(tmp_path / "run")
    (folder / mine).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StudyFaults, match=Path(mine).name.split(".")[0]) as refused:
        RunList(tmp_path).remove(one(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before and refused.value.faults[0].remedy


def test_a_running_run_is_not_removed(tmp_path):
    folder = makeRun(tmp_path / "run", age=5.0)
    runs = RunList(tmp_path)
    for active in (None, folder):
        with pytest.raises(StudyFaults, match="still running"):
            runs.remove(one(tmp_path), active)
        os.utime(folder / "events.jsonl", (0, 0))
    runs.remove(one(tmp_path))
    assert not folder.exists()


def test_only_a_run_directly_in_the_folder_is_removed(tmp_path):
    elsewhere = makeRun(tmp_path / "elsewhere" / "run")
    inside = tmp_path / "runs"
    inside.mkdir()
    (inside / "photos").mkdir()
    (inside / "linked").symlink_to(elsewhere, target_is_directory=True)
    deeper = makeRun(inside / "group" / "run")
    for path in (elsewhere, inside / "photos", inside / "linked", deeper, inside, tmp_path / "none"):
        with pytest.raises(StudyFaults, match="this is none"):
            RunList(inside).remove(Run(path, RunKind.STOPPED))
    assert elsewhere.is_dir() and (inside / "photos").is_dir() and deeper.is_dir()


def test_a_folder_that_the_system_holds_fast_is_a_fault_and_stays_whole(tmp_path, monkeypatch):
    folder = makeRun(tmp_path / "run")

    def refuse(*_):
        raise PermissionError(13, "used by another process")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StudyFaults, match="used by another process"):
        RunList(tmp_path).remove(one(tmp_path))
    assert (folder / "checkpoints" / "last.safetensors").exists()


@pytest.mark.parametrize(("size", "text"), [(0, "1 kB"), (2_400_000, "2.4 MB"), (41e6, "41 MB"), (3.21e9, "3.2 GB")])
def test_sizes_are_said_in_words(size, text):
    assert sizeText(int(size)) == text
