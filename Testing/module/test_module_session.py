"""What a study does in one scene: which scan a mask belongs to, what comes again and what does not."""

import json
import os

import numpy as np
import pytest
from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.PredictionImport import runKey
from GenSegSlicerLib.Scans import ACCEPTED, CASE, RUN, Role
from GenSegSlicerLib.Session import Session
from GenSegSlicerLib.StudyFiles import writeVolume
from made_scans import blob, noise
from mrml import CLOSED_SURFACE, oblique
from written_run import WrittenRun, writeImage

GRID = oblique((1, 1, 2), (5, 6, 7), (10, 20, 30))


@pytest.fixture
def session(mrml) -> Session:
    def load(path):
        try:
            return (mrml.loadPhoto if path.suffix == ".png" else mrml.loadVolume)(path)
        except (AssertionError, RuntimeError):
            return None

    return Session(mrml.scene, load)


@pytest.fixture
def run(tmp_path) -> WrittenRun:
    return WrittenRun(tmp_path / "results" / "run")


def put(run: WrittenRun, case: str, mask=None, grid=GRID, stamp: int | None = None, photo=False, **entry) -> None:
    """A prediction of a run: file and index. stamp: when it was written, in s."""
    name = f"{case}.png" if photo else f"{case}.seg.nrrd"
    file = run.folder / "predictions" / name
    if photo:
        writeImage(file, np.ones((13, 17), np.uint8) if mask is None else mask)
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        writeVolume((blob() if mask is None else mask).astype(np.uint8), grid, file)
    if stamp is not None:
        os.utime(file, (stamp, stamp))
    run.cases = [one for one in run.cases if one["case"] != case]
    run.predict(case, {"head": 1.0, "tail": 0.0}, 0.1, name)
    run.cases[-1].update(entry)
    run.write("predictions/index.json", {"cases": run.cases})


def batch(folder, case: str, image, mask=None, photo=False, grid=GRID):
    """A folder as `genseg predict` writes it."""
    name = f"{case}.png" if photo else f"{case}.seg.nrrd"
    folder.mkdir(parents=True, exist_ok=True)
    if photo:
        writeImage(folder / name, np.ones((13, 17), np.uint8) if mask is None else mask)
    else:
        writeVolume((blob() if mask is None else mask).astype(np.uint8), grid, folder / name)
    about = {"split": "given", "volumes_ml": {"head": 2.5, "tail": None}, "uncertainty": 0.2, "step": None}
    entry = {"case": case, "path": name, "images": [str(image)], **about}
    before = json.loads((folder / "index.json").read_text())["cases"] if (folder / "index.json").exists() else []
    (folder / "index.json").write_text(json.dumps({"cases": [*before, entry]}))
    return folder


def bring(session, *arguments, **settings) -> list[Fault | None]:
    return list(session.importPredictions(*arguments, **settings))


def segmentations(mrml) -> list:
    kind = "vtkMRMLSegmentationNode"
    return [mrml.scene.GetNthNodeByClass(i, kind) for i in range(mrml.scene.GetNumberOfNodesByClass(kind))]


def photoFile(path):
    return writeImage(path, noise((13, 17, 3), np.uint8))


def volumeFile(path, grid=GRID):
    path.parent.mkdir(parents=True, exist_ok=True)
    writeVolume(noise(), grid, path)
    return path


def trained(session, mrml, run, grid=GRID) -> tuple:
    """A labeled scan and one to segment, written out for `run`. → both volumes"""
    labelled, waiting = mrml.volume(noise(), "a", grid), mrml.volume(noise(), "b", grid)
    mrml.segmentation({"head": blob(), "tail": blob((0, 0, 0), (2, 3, 9))}, labelled)
    file = session.export.write(run.folder.parent / "studies" / run.folder.name)
    run.write("settings.json", {"method": "genseg", "dataset": str(file), "out": str(run.folder)})
    return labelled, waiting


# --- which scan: batches ---------------------------------------------------------------------------


def test_a_batch_over_another_patients_file_of_the_same_name_never_lands_on_the_scan_here(session, mrml, run, tmp_path):
    mine = mrml.loadPhoto(photoFile(tmp_path / "mine" / "photo.png"))
    assert session.scans.caseId(mine) == "photo"
    out = batch(tmp_path / "out", "photo", photoFile(tmp_path / "other" / "photo.png"), photo=True)
    (fault,) = bring(session, out, run.folder)
    assert "not in the scene" in fault.rule and "Load" in fault.remedy and not segmentations(mrml)
    assert bring(session, out, run.folder, loadScans=True) == [None]
    assert session.scans.predictionsOf(mine) == []
    volume, segmentation = session.predictionOf(out, "photo")
    assert volume is not mine and session.scans.predictionsOf(volume) == [segmentation]
    assert session.scans.caseId(volume) == "photo-2" and session.scans.caseId(mine) == "photo"


def test_a_batch_over_the_very_file_of_a_scan_lands_on_it_whatever_its_id(session, mrml, run, tmp_path):
    file = volumeFile(tmp_path / "x" / "ct.nrrd")
    volume = mrml.loadVolume(file, "renamed")
    out = batch(tmp_path / "out", "ct", os.path.relpath(file))
    assert bring(session, out, run.folder, loadScans=True) == [None]
    assert session.predictionOf(out, "ct")[0] is volume and len(session.scans.volumes()) == 1


def test_which_volume_a_batch_belongs_to_is_saved_with_the_scene(session, mrml, run, tmp_path):
    file = volumeFile(tmp_path / "x" / "ct.nrrd")
    out = batch(tmp_path / "out", "ct", file)
    assert bring(session, out, run.folder, loadScans=True) == [None]
    mrml.open(mrml.save(tmp_path / "scene"))  # from now on the volume has another file
    fresh = Session(mrml.scene, session.loadVolume)
    volume, segmentation = fresh.predictionOf(out, "ct")
    assert volume is mrml.node("ct") and segmentation is not None
    assert bring(fresh, out, run.folder, loadScans=True) == [], "it is there, unchanged"
    assert len(fresh.scans.volumes()) == 1
    array = mrml.array(volume)
    volume.SetAndObserveImageData(mrml.volume(array + 1, "other voxels").GetImageData())
    assert fresh.predictionOf(out, "ct") == (None, None), "the voxels are others now"


def test_several_batches_over_one_scan_are_all_remembered(session, mrml, run, tmp_path):
    file = volumeFile(tmp_path / "x" / "ct.nrrd")
    for name in ("out 1", "out 2"):
        assert bring(session, batch(tmp_path / name, "ct", file), run.folder, loadScans=True) == [None]
    volumes = {session.predictionOf(tmp_path / name, "ct")[0].GetID() for name in ("out 1", "out 2")}
    assert len(volumes) == 1 and len(segmentations(mrml)) == 2


@pytest.mark.parametrize("content", [None, "no image"])
def test_a_scan_of_a_batch_that_cannot_be_loaded_is_named_and_the_others_come(session, run, tmp_path, content):
    bad = tmp_path / "x" / "bad.nrrd"
    out = batch(batch(tmp_path / "out", "bad", bad), "ct", volumeFile(tmp_path / "x" / "ct.nrrd"))
    if content is not None:
        bad.write_text(content)
    fault, none = bring(session, out, run.folder, loadScans=True)
    assert fault.case == "bad" and "bad.nrrd" in fault.rule and none is None


# --- which scan: runs --------------------------------------------------------------------------------


def test_a_prediction_of_a_run_comes_onto_the_scan_the_run_was_given(session, mrml, run):
    _labelled, waiting = trained(session, mrml, run)
    put(run, "b")
    assert bring(session, run.folder) == [None]
    assert session.predictionOf(run.folder, "b")[0] is waiting


def test_another_patients_scan_of_the_same_id_and_grid_is_refused(session, mrml, run):
    _labelled, waiting = trained(session, mrml, run)
    put(run, "b")
    mrml.scene.RemoveNode(waiting)
    other = mrml.volume(noise(), "b", GRID)
    assert session.scans.caseId(other) == "b"
    for load in (False, True):
        (fault,) = bring(session, run.folder, loadScans=load)
        assert fault.case == "b" and "other voxels" in fault.rule and "empty scene" in fault.remedy
    assert session.predictionOf(run.folder, "b") == (None, None)
    assert session.nodesOfCase("b", run.folder) is None and session.scans.predictionsOf(other) == []


def test_without_tokens_an_older_run_is_checked_by_the_grid(session, mrml, run):
    volume = mrml.volume(noise(), "b", GRID)
    session.scans.caseId(volume)
    put(run, "b")
    assert bring(session, run.folder) == [None]
    put(run, "b", grid=np.eye(4), stamp=1)
    (fault,) = bring(session, run.folder)
    assert "does not lie on this scan" in fault.rule


@pytest.mark.parametrize("flip", [(1, 1, 1), (1, 1, -1), (-1, 1, 1)], ids=str)
def test_a_run_is_loaded_into_an_empty_scene_with_its_scans_also_where_slicer_turns_their_axes(
    session, mrml, run, flip
):
    grid = oblique((1, 1, 2), (5, 6, 7), (10, 20, 30), flip)
    trained(session, mrml, run, grid)
    content = json.loads((run.folder.parent / "studies" / "run" / "dataset.json").read_text())
    image = run.folder.parent / "studies" / "run" / content["unlabeled"][0]["image"]
    put(run, "b", grid=grid, images=[str(image)])
    mrml.scene.Clear(0)
    assert [fault.case for fault in bring(session, run.folder)] == ["b"]
    assert bring(session, run.folder, loadScans=True, again=True) == [None]
    volume, segmentation = session.predictionOf(run.folder, "b")
    assert volume.GetAttribute(CASE) == "b" and segmentation is not None


def test_a_scan_that_was_saved_and_opened_with_its_scene_is_still_the_same(session, mrml, run, tmp_path):
    trained(session, mrml, run)
    put(run, "b")
    mrml.open(mrml.save(tmp_path / "scene"))
    assert bring(Session(mrml.scene, session.loadVolume), run.folder) == [None]


@pytest.mark.parametrize("channels", [(), (3,), (4,), (2,)], ids=["gray", "color", "color, opacity", "gray, opacity"])
def test_photographs_that_were_written_out_are_known_again(session, mrml, run, channels):
    for name in ("a", "b"):
        mrml.photo(noise((13, 17, *channels), np.uint8), name)
    mrml.segmentation({"head": blob((0, 2, 3), (1, 9, 12), (1, 13, 17))}, mrml.node("a"))
    study = session.export.write(run.folder.parent / "studies" / "run").parent
    put(run, "b", photo=True, images=[str(study / "images" / "b.png")])
    mrml.scene.Clear(0)
    assert bring(session, run.folder, loadScans=True) == [None]
    other = photoFile(study / "images" / "b.png")
    mrml.scene.Clear(0)
    (fault,) = bring(session, run.folder, loadScans=True)
    assert other.name in fault.rule and session.scans.volumes() == []


def test_every_scan_of_a_study_has_a_token_of_its_own(session, mrml, run):
    trained(session, mrml, run)
    entries = session.volumes.study(run.folder)
    assert set(entries) == {"a", "b"} and len({entry["token"] for entry in entries.values()}) == 2


# --- once, and not again -------------------------------------------------------------------------------


@pytest.fixture
def brought(session, mrml, run):
    """A prediction in the scene → (volume, segmentation)."""
    trained(session, mrml, run)
    put(run, "b", stamp=1000)
    assert bring(session, run.folder) == [None]
    return session.predictionOf(run.folder, "b")


def test_what_is_there_unchanged_gives_no_step_and_what_is_new_replaces_it(session, mrml, run, brought):
    assert bring(session, run.folder) == [] and bring(session, run.folder, again=True) == []
    put(run, "b", mask=2 * blob(), stamp=2000)
    assert bring(session, run.folder) == [None]
    volume, segmentation = session.predictionOf(run.folder, "b")
    assert segmentation is brought[1] and mrml.mask(segmentation, "tail", volume).any()


def test_an_accepted_prediction_never_gets_its_runs_next_one_beside_it(session, mrml, run, brought, tmp_path):
    volume, segmentation = brought
    session.accept(segmentation, volume)
    assert json.loads(segmentation.GetAttribute(ACCEPTED)) == [runKey(run.folder), "b"]
    assert segmentation.GetAttribute(RUN) is None and session.scans.scan(volume).role == Role.LABELLED
    put(run, "b", mask=2 * blob(), stamp=2000)
    assert bring(session, run.folder) == [] and bring(session, run.folder, again=True) == []
    mrml.open(mrml.save(tmp_path / "scene"))
    assert bring(Session(mrml.scene, session.loadVolume), run.folder, again=True) == []
    assert session.results(run.folder)[2][0][0] == "b"


def test_one_run_accepted_does_not_keep_another_runs_prediction_away(session, mrml, run, brought, tmp_path):
    session.accept(brought[1], brought[0])
    other = WrittenRun(tmp_path / "results" / "other")
    put(other, "b")
    assert bring(session, other.folder) == [None]


def test_a_deleted_prediction_stays_deleted_until_it_is_asked_for(session, mrml, run, brought):
    mrml.scene.RemoveNode(brought[1])
    assert bring(session, run.folder) == []
    put(run, "b", mask=2 * blob(), stamp=2000)
    assert bring(session, run.folder) == []
    assert bring(session, run.folder, again=True) == [None]
    assert session.predictionOf(run.folder, "b")[1] is not None


def test_a_corrected_prediction_stays_and_gets_one_newer_beside_it_not_more(session, mrml, run, brought):
    brought[1].GetSegmentation().GetNthSegment(0).SetName("mine")
    put(run, "b", mask=2 * blob(), stamp=2000)
    for _time in range(3):
        bring(session, run.folder)
    assert len(session.scans.predictionsOf(brought[0])) == 2


# --- step by step ----------------------------------------------------------------------------------------


def test_every_step_brings_one_case_at_most_and_faults_of_one_leave_the_others(session, mrml, run):
    for name in ("b", "c", "d"):
        session.scans.caseId(mrml.volume(noise(), name, GRID))
        put(run, name)
    put(run, "gone")
    (run.folder / "predictions" / "c.seg.nrrd").write_bytes(b"no image")
    broken = [{"case": "d"}, 7, {"case": "b", "path": None}]
    run.write("predictions/index.json", {"cases": [*run.cases[:2], *broken, *run.cases[2:]]})
    counts, faults = [], []
    for step in session.importPredictions(run.folder):
        counts.append(len(segmentations(mrml)))
        faults.append(None if step is None else step.case)
    assert faults == [None, "c", "d", "study", "b", None, "gone"] and counts == [1, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("error", [OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError])
def test_whatever_goes_wrong_with_one_mask_is_told_and_leaves_the_scene_as_it_was(
    session, mrml, run, monkeypatch, error
):
    session.scans.caseId(mrml.volume(noise(), "b", GRID))
    put(run, "b")
    before = mrml.scene.GetNumberOfNodes()

    def fail(*_arguments):
        raise error("no luck")

    monkeypatch.setattr("GenSegSlicerLib.PredictionImport._fill", fail)
    (fault,) = bring(session, run.folder)
    assert fault.case == "b" and fault.remedy and mrml.scene.GetNumberOfNodes() == before


def test_told_faults_are_left_out_where_asked_until_the_file_changes(session, mrml, run):
    put(run, "gone", stamp=1000)
    assert len(bring(session, run.folder, repeat=False)) == 1
    assert bring(session, run.folder, repeat=False) == []
    assert len(bring(session, run.folder)) == 1
    put(run, "gone", stamp=2000)
    assert len(bring(session, run.folder, repeat=False)) == 1


def test_a_volume_that_was_deleted_is_told_even_where_its_mask_had_come(session, mrml, run, brought):
    mrml.scene.RemoveNode(brought[0])
    (fault,) = bring(session, run.folder)
    assert fault.case == "b" and "not in the scene" in fault.rule and "'Load'" in fault.remedy


def test_predictions_come_unseen_and_get_their_surface_when_they_are_shown(session, mrml, run, brought):
    inside = brought[1].GetSegmentation()
    assert not brought[1].GetDisplayNode().GetVisibility() and not inside.ContainsRepresentation(CLOSED_SURFACE)
    assert session.showSurface(brought[1]) and inside.ContainsRepresentation(CLOSED_SURFACE)
    assert bring(session, run.folder) == [] and inside.ContainsRepresentation(CLOSED_SURFACE)


# --- batches of a run ------------------------------------------------------------------------------------------


def test_the_table_of_a_batch_has_its_scans_with_their_structures(session, mrml, run, tmp_path):
    out = batch(tmp_path / "out", "ct", volumeFile(tmp_path / "x" / "ct.nrrd"))
    run.metrics({"ct": {"head": 0.5, "tail": 0.5}})
    bring(session, out, run.folder, loadScans=True)
    session.predictionOf(out, "ct")[0].SetName("Müller")
    titles, cases, rows = session.results(out, run.folder)
    assert cases == ["ct"] and dict(zip(titles, rows[0], strict=True)) == {
        "Scan": "Müller", "Confidence": "fairly sure", "Confidence (0 to 1)": "0.80", "head (ml)": "2.50"
    }  # fmt: skip


def test_of_photographs_of_a_batch_the_share_of_the_image_is_told(session, run, tmp_path):
    out = batch(tmp_path / "out", "p", photoFile(tmp_path / "x" / "p.png"), photo=True)
    content = json.loads((out / "index.json").read_text())
    content["cases"][0]["volumes_ml"] = {"head": None, "tail": None}
    (out / "index.json").write_text(json.dumps(content))
    titles, _cases, rows = session.results(out, run.folder)
    assert dict(zip(titles, rows[0], strict=True))["head (% of the image)"] == "100.0"


def test_a_runs_table_names_scans_as_its_study_did_not_as_others_of_the_same_id(session, mrml, run):
    _labelled, waiting = trained(session, mrml, run)
    waiting.SetName("somebody else")
    put(run, "b")
    assert session.results(run.folder)[2][0][0] == "b"
    bring(session, run.folder)
    assert session.results(run.folder)[2][0][0] == "somebody else", "its voxels say that it is the one"


def test_results_of_nothing_are_empty(session, tmp_path):
    assert session.results(None) == ([], [], []) and session.predictionOf(None, "x") == (None, None)
    assert bring(session, tmp_path) == []
