"""What works for a session: one process at a time, what it leaves behind, and what it brings."""

import json
import os
import shutil
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from GenSegSlicerLib.Batches import Batches
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.PredictionImport import runKey
from GenSegSlicerLib.Runs import readRun
from GenSegSlicerLib.Session import Session
from GenSegSlicerLib.StudyFiles import writeVolume
from GenSegSlicerLib.Work import Work
from made_scans import blob, noise
from written_run import WrittenRun

# Stand-ins for the training program: `command` is the code, `out` the folder it is given.
REFUSES = "import sys; sys.exit(2)"  # before there is a run folder, as with bad input
WAITS = "import sys; sys.stdin.read(); sys.exit(3)"
SEGMENTS = """
import json, pathlib, shutil, sys
model, image, out = map(pathlib.Path, sys.argv[1:4])
assert not out.exists() or not any(out.iterdir()), "genseg predict wants a new or empty folder"
out.mkdir(parents=True, exist_ok=True)
shutil.copy(model / "mask.seg.nrrd", out / "ct.seg.nrrd")
case = {"case": "ct", "path": "ct.seg.nrrd", "images": [str(image)], "volumes_ml": {"head": 1.0}, "uncertainty": 0.1}
(out / "index.json").write_text(json.dumps({"cases": [case]}))
print(json.dumps({"event": "progress", "phase": "predict", "step": 1, "total": 1}), flush=True)
"""


class Program:
    """As Backend: commands that run `code` with the folder."""

    def __init__(self, code: str, interpreter: str = sys.executable):
        self.code, self.interpreter = code, interpreter

    def trainCommand(self, settings) -> list[str]:
        return [self.interpreter, "-c", self.code, str(settings.out)]

    def predictCommand(self, model, paths, out, device) -> list[str]:
        return [self.interpreter, "-c", self.code, str(model), *map(str, paths), str(out)]


@pytest.fixture
def work(mrml, tmp_path):
    """A session with one labeled scan and one to segment; `work.program` is what is started."""
    work = Work(Session(mrml.scene, mrml.loadVolume), lambda: work.program, lambda backend: None)
    work.program = Program(WAITS)
    chosen = {"outputFolder": str(tmp_path / "results"), "useUnlabeled": True, "method": "auto", "device": "cpu"}
    networks = {"generator": "spade", "segmenter": "auto"}
    work.parameters = types.SimpleNamespace(**chosen, **networks, seed=0, startingModel="", currentRun="")
    mrml.segmentation({"head": blob()}, mrml.volume(noise(), "a"))
    mrml.volume(noise(), "b")
    yield work
    work.close()


@pytest.fixture
def run(tmp_path) -> WrittenRun:
    run = WrittenRun(tmp_path / "results" / "run")
    run.write("settings.json", {"method": "genseg", "dataset": "x", "out": "y"})
    writeVolume(blob().astype("uint8"), np.eye(4), run.folder / "mask.seg.nrrd")
    return run


def untilEnd(work) -> None:
    for _tick in range(2000):
        work.controller.tick()
        if not work.controller.active:
            return
        time.sleep(0.01)
    raise AssertionError("it does not end")


def studies(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "results" / "studies").glob("*"))


def segmented(work, run, tmp_path) -> Path:
    """Segment one more scan to the end. → the folder of its masks"""
    image = tmp_path / "x" / "ct.nrrd"
    image.parent.mkdir(exist_ok=True)
    writeVolume(noise(), np.eye(4), image)
    work.program = Program(SEGMENTS)
    work.segment(run.folder, [image])
    folder, model = work.shown
    assert model == run.folder
    untilEnd(work)
    assert work.controller.state == "done", work.controller.explanation
    work.dropUnbegun()
    return folder


# --- nothing stays behind ----------------------------------------------------------------------------


def test_a_program_that_cannot_be_started_leaves_no_copies_of_scans(work, tmp_path):
    work.program = Program(WAITS, str(tmp_path / "no such program"))
    work.train(5)
    assert work.controller.state == "failed" and studies(tmp_path) == [] and work.parameters.currentRun == ""


def test_a_command_that_cannot_be_built_leaves_no_copies_of_scans(work, tmp_path):
    def refuse(_settings):
        raise StudyFaults([])

    work.program.trainCommand = refuse
    with pytest.raises(StudyFaults):
        work.train(5)
    assert studies(tmp_path) == [] and not work.controller.active


def test_a_run_that_was_refused_leaves_no_copies_of_scans(work, tmp_path):
    work.program = Program(REFUSES)
    work.train(5)
    assert len(studies(tmp_path)) == 1
    untilEnd(work)
    work.dropUnbegun()
    assert studies(tmp_path) == []


def test_closing_before_a_run_has_begun_ends_it_and_removes_the_copies(work, tmp_path):
    work.train(5)
    assert len(studies(tmp_path)) == 1 and work.controller.active
    work.close()
    assert studies(tmp_path) == [] and not work.controller.active


def test_a_run_that_has_begun_keeps_its_scans(work, tmp_path):
    work.program = Program("import pathlib, sys; r = pathlib.Path(sys.argv[1]); r.mkdir(); (r / 'x').touch()")
    work.train(5)
    untilEnd(work)
    work.close()
    assert len(studies(tmp_path)) == 1


def test_the_next_start_removes_what_the_refused_one_before_left(work, tmp_path):
    work.program = Program(REFUSES)
    work.train(5)
    untilEnd(work)
    work.program = Program(WAITS)
    work.train(5)
    assert len(studies(tmp_path)) == 1


def test_a_second_start_while_scans_are_written_or_a_run_is_active_is_refused(work, tmp_path):
    refused = []

    def press(*_progress):
        with pytest.raises(RuntimeError, match="running"):
            work.train(5)
        refused.append(True)

    work.train(5, press)
    controller = work.controller
    assert refused and controller.active and len(studies(tmp_path)) == 1
    for again in (lambda: work.train(5), lambda: work.resume(tmp_path), lambda: work.segment(tmp_path, [])):
        with pytest.raises(RuntimeError, match="running"):
            again()
    assert work.controller is controller and len(studies(tmp_path)) == 1


def test_a_scene_that_closes_while_its_scans_are_written_starts_nothing(work, tmp_path):
    with pytest.raises(RuntimeError, match="closed"):
        work.train(5, lambda *_progress: work.close())
    assert studies(tmp_path) == [] and not work.controller.active
    work.train(5)
    assert work.controller.active, "and can be used again"


def test_copies_of_scans_that_a_crash_has_left_are_told_and_not_touched(work, tmp_path):
    for name in ("2020-01-01_00-00-00", ".part-2020-01-02_00-00-00-123", "with its run"):
        folder = tmp_path / "results" / "studies" / name
        folder.mkdir(parents=True)
        os.utime(folder, (1, 1))
    (tmp_path / "results" / "with its run").mkdir()
    work.train(5)
    (note,) = [note for note in work.notes if "without a training" in note]
    assert "2020-01-01" in note and ".part-2020-01-02" in note and "with its run" not in note
    assert len(studies(tmp_path)) == 4


# --- more scans ----------------------------------------------------------------------------------------


def test_more_scans_are_brought_when_all_are_done_and_their_results_can_be_seen(work, run, tmp_path):
    folder = segmented(work, run, tmp_path)
    assert work.controller.progress.fraction == 1.0 and work.shown == (folder, run.folder)
    assert list(work.bringMasks(last=False)) == []
    assert list(work.bringMasks(last=True)) == [None]
    volume, segmentation = work.session.predictionOf(folder, "ct")
    assert volume.GetName() == "ct" and segmentation is not None
    assert work.session.results(folder)[2][0][0] == "ct", "the model is remembered"


def test_batches_of_a_run_are_listed_later_also_where_all_was_moved(work, run, tmp_path, mrml):
    folder = segmented(work, run, tmp_path)
    assert work.batches() == {run.folder: [folder]}
    moved = (tmp_path / "results").rename(tmp_path / "moved")
    work.parameters.outputFolder = str(moved)
    fresh = Session(mrml.scene, mrml.loadVolume)
    ((found,),) = work.batches().values()
    assert list(fresh.importPredictions(found, loadScans=True)) == [None]


def test_a_batch_that_was_refused_leaves_nothing(work, run, tmp_path):
    work.program = Program(REFUSES)
    work.segment(run.folder, [tmp_path / "x.nrrd"])
    untilEnd(work)
    work.dropUnbegun()
    work.program = Program(WAITS, "/no such program")
    work.segment(run.folder, [tmp_path / "x.nrrd"])
    assert list((tmp_path / "results" / "segmented").iterdir()) == []


def test_a_run_is_removed_with_its_batches_but_never_with_foreign_files(work, run, tmp_path):
    folder = segmented(work, run, tmp_path)
    (run.folder / "mask.seg.nrrd").unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StudyFaults, match=r"notes\.txt"):
        work.removeRun(readRun(run.folder))
    assert run.folder.exists() and (folder / "index.json").exists()
    (folder / "notes.txt").unlink()
    work.removeRun(readRun(run.folder))
    assert not run.folder.exists() and list((tmp_path / "results" / "segmented").iterdir()) == []


def test_a_batch_is_removed_alone_but_never_with_foreign_files(work, run, tmp_path):
    folder = segmented(work, run, tmp_path)
    assert Batches.describe(folder) == "Masks of 1 more scans, made with the model of run."
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StudyFaults, match=r"notes\.txt"):
        work.removeBatch(folder)
    assert (folder / "index.json").exists()
    (folder / "notes.txt").unlink()
    work.removeBatch(folder)
    assert run.folder.exists() and list((tmp_path / "results" / "segmented").iterdir()) == []
    assert work.batches() == {}


def test_what_was_shown_last_is_a_run_or_a_batch(work, run, tmp_path):
    assert work.shown == (None, None) and list(work.bringMasks(last=True)) == []
    folder = segmented(work, run, tmp_path)
    work.show(run.folder)
    assert work.shown == (run.folder, None)
    work.show(folder, run.folder)
    assert work.shown == (folder, run.folder) and list(work.bringMasks(last=True)) == [None]
    shutil.rmtree(folder)
    assert work.shown == (None, None)


def test_of_a_run_masks_come_while_it_runs_without_loading_scans_and_faults_are_told_at_the_end_again(work, run):
    work.session.scans.caseId(work.session.scans.volumes()[1])
    run.predict("gone", {}, 0.1)
    work.show(run.folder)
    told = [[fault.case for fault in work.bringMasks(last)] for last in (False, False, True)]
    assert told == [["gone"], [], ["gone"]]


def test_the_note_of_a_batch_names_its_run(work, run, tmp_path):
    folder = segmented(work, run, tmp_path)
    note = json.loads(folder.with_name(folder.name + ".model.json").read_text())
    assert note == {"model": runKey(run.folder)} and sorted(p.name for p in folder.iterdir()) == [
        "ct.seg.nrrd",
        "index.json",
    ]
