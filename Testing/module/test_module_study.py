"""The study folder: its list, its label table, its faults, and what the real backend reads in it."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Scans import Role, ScanList
from GenSegSlicerLib.StudyExport import StudyExport
from made_scans import GRIDS, RANDOM, SHAPE, Written, blob, noise, written
from mrml import oblique


@pytest.fixture
def export(mrml) -> StudyExport:
    return StudyExport(mrml.scene, ScanList(mrml.scene))


def rules(faults) -> str:
    return "\n".join(str(fault) for fault in faults)


# --- the list -----------------------------------------------------------------------------------


def test_roles_decide_the_lists_and_ignored_scans_stay_away(mrml, export, tmp_path):
    scanList, roles = ScanList(mrml.scene), [Role.LABELLED, Role.SEGMENT, Role.TEST, Role.TEST, Role.IGNORE]
    for number, role in enumerate(roles):
        volume = mrml.volume(noise(), f"scan {number}")
        scanList.setRole(volume, role)
        if number in (0, 1, 2, 4):
            mrml.segmentation({"a": blob()}, volume)
    content = written(export, tmp_path).content
    assert [[case["id"] for case in content[split]] for split in ("training", "unlabeled", "test")] == [
        ["scan-0"],
        ["scan-1"],
        ["scan-2", "scan-3"],
    ]
    assert ["label" in case for case in content["unlabeled"] + content["test"]] == [False, True, False]
    assert len(list((tmp_path / "study" / "images").iterdir())) == 4
    assert content["name"] == "study"


def test_one_table_numbers_the_structures_of_all_scans(mrml, export, tmp_path):
    first, second = mrml.volume(noise(), "one"), mrml.volume(noise(), "two")
    parts = {"liver": blob((0, 0, 0), (2, 3, 9)), "spleen": blob(), "Niere 肾": blob((5, 1, 1), (7, 4, 5))}
    mrml.segmentation({name: parts[name] for name in ("liver", "spleen")}, first)
    mrml.segmentation({name: parts[name] for name in ("Niere 肾", "spleen", "liver")}, second, layers=False)
    study = written(export, tmp_path)
    assert {k: v["name"] for k, v in study.content["labels"].items() if k != "0"} == {
        "1": "liver",
        "2": "spleen",
        "3": "Niere 肾",
    }
    assert np.array_equal(study.values(), parts["liver"] + 2 * parts["spleen"])
    assert np.array_equal(study.values(case=1), parts["liver"] + 2 * parts["spleen"] + 3 * parts["Niere 肾"])


def test_scans_of_one_patient_are_a_group_and_no_name_gets_out(mrml, export, tmp_path):
    ana, ben = mrml.patient("Ana Müller", "CT"), mrml.patient("Ana Müller", "MR")  # same name, two patients
    deeper = mrml.subjectHierarchy.CreateFolderItem(ana, "folder")
    for number, parent in enumerate((ana, ben, deeper, 0)):
        volume = mrml.volume(noise(), f"scan {number}", parent=parent)
        if number == 0:
            mrml.segmentation({"a": blob()}, volume)
    study = written(export, tmp_path)
    groups = [case.get("group") for case in study.content["training"] + study.content["unlabeled"]]
    assert groups == ["patient-1", "patient-2", "patient-1", None]
    assert "Müller" not in json.dumps(study.content, ensure_ascii=False)


def test_what_cannot_be_learned_or_measured_is_told_as_a_warning(mrml, export):
    scanList = ScanList(mrml.scene)
    mrml.segmentation({"a": blob(), "never": blob() & ~blob()}, mrml.volume(noise(), "one"))
    blank = mrml.volume(noise(), "blank")
    mrml.segmentation({"a": blob() & ~blob()}, blank)
    scanList.setRole(blank, Role.TEST)
    assert export.check() == []
    assert len(export.warnings) == 2
    assert "'never'" in export.warnings[0] and "'blank'" in export.warnings[1]


def test_progress_names_each_scan_and_ends(mrml, export, tmp_path):
    mrml.segmentation({"a": blob()}, mrml.volume(noise(), "one"))
    mrml.volume(noise(), "two")
    told = []
    export.write(tmp_path / "study", progress=lambda *what: told.append(what))
    assert told == [(0, 2, "one"), (1, 2, "two"), (2, 2, "")]


# --- nothing half-written -----------------------------------------------------------------------


def test_a_study_written_before_is_replaced_and_other_folders_are_not_touched(mrml, export, tmp_path):
    volume = mrml.volume(noise(), "one")
    mrml.segmentation({"a": blob()}, volume)
    export.write(tmp_path / "study")
    volume.SetName("renamed")
    mrml.volume(noise(), "two")
    assert len(Written(export.write(tmp_path / "study")).content["unlabeled"]) == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.docx").write_text("years of work")
    (mine / "dataset.json").write_text('{"training": []}')
    with pytest.raises(StudyFaults, match="other files"):
        export.write(mine)
    assert sorted(path.name for path in mine.iterdir()) == ["dataset.json", "thesis.docx"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "study"]


def test_with_faults_or_an_error_the_study_of_before_stays_and_nothing_else(mrml, export, tmp_path, monkeypatch):
    volume = mrml.volume(noise(), "one")
    node = mrml.segmentation({"a": blob()}, volume)
    file = export.write(tmp_path / "study")
    before = file.read_bytes()
    broken = mrml.volume(noise((*SHAPE, 2)), "channels")
    with pytest.raises(StudyFaults, match="2 channels"):
        export.write(tmp_path / "study")
    mrml.scene.RemoveNode(broken)

    def full(*_arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("GenSegSlicerLib.StudyExport.writeVolume", full)
    with pytest.raises(StudyFaults, match="no space left"):
        export.write(tmp_path / "study")
    assert [path.name for path in tmp_path.iterdir()] == ["study"] and file.read_bytes() == before
    assert node.GetSegmentation().GetNumberOfSegments() == 1


def test_the_scene_is_left_as_it_was(mrml, export, tmp_path):
    volume = mrml.volume(noise(), "one", GRIDS["oblique"])
    mrml.segmentation({"a": blob(), "b": blob((0, 0, 0), (2, 3, 9))}, volume, ijkToRas=oblique((1, 1, 2), (9, -19, 31)))
    ids = {mrml.scene.GetNthNode(i).GetID() for i in range(mrml.scene.GetNumberOfNodes())}
    array = mrml.array(volume)
    export.check()
    assert {mrml.scene.GetNthNode(i).GetID() for i in range(mrml.scene.GetNumberOfNodes())} == ids
    assert np.array_equal(mrml.array(volume), array)


# --- faults -------------------------------------------------------------------------------------


def test_an_empty_scene_is_told_what_to_do(export, tmp_path):
    (fault,) = export.check()
    assert fault.case == "study" and "Label this scan" in fault.remedy
    with pytest.raises(StudyFaults):
        export.write(tmp_path / "study")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layers", [True, False])
def test_overlapping_segments_are_named_with_the_number_of_voxels(mrml, export, layers):
    volume = mrml.volume(noise(), "one")
    first, second, third = blob((1, 1, 1), (4, 5, 6)), blob((2, 3, 4), (6, 8, 9)), blob((0, 0, 9), (1, 9, 11))
    assert (first & second).sum() > 3
    node = mrml.segmentation({"liver": first, "tumor": second, "far": third}, volume)
    if not layers:
        mrml.segmentationsLogic.CollapseBinaryLabelmaps(node, False)
    (fault,) = export.check()
    assert fault.case == "one"
    assert f"'liver' and 'tumor' overlap in {(first & second).sum()} voxels" in fault.rule


def test_a_damaged_file_in_which_two_segments_share_a_number_is_an_overlap(mrml, export):
    node = mrml.segmentation({"a": blob(), "b": blob((0, 0, 0), (1, 2, 3))}, mrml.volume(noise()), layers=False)
    node.GetSegmentation().GetNthSegment(1).SetLabelValue(1)
    assert f"overlap in {blob().sum()} voxels" in rules(export.check())


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", ["first", "last"])
def test_what_is_drawn_outside_the_scan_is_counted(mrml, export, axis, end):
    volume = mrml.volume(noise(), "one", GRIDS["oblique"])
    large = np.zeros((9, 11, 13), bool)  # one voxel more than the scan on every side
    box = [slice(3, 6), slice(2, 4), slice(5, 9)]
    size = [3, 2, 4][axis]
    box[axis] = slice(0, size) if end == "first" else slice(large.shape[axis] - size, None)
    large[tuple(box)] = True
    mrml.segmentation({"liver": large}, volume, offset=(-1, -1, -1))
    (fault,) = export.check()
    assert f"{24 // size} of the 24 voxels of 'liver' are drawn outside" in fault.rule


def test_a_segmentation_of_another_scan_is_outside_altogether(mrml, export):
    volume = mrml.volume(noise(), "one")
    far = oblique((1, 1, 1), (500, 0, 0), (10, 0, 0))
    ScanList(mrml.scene).setSegmentation(volume, mrml.segmentation({"a": blob()}, ijkToRas=far))
    assert f"{blob().sum()} of the {blob().sum()} voxels" in rules(export.check())


def test_a_structure_that_vanishes_between_coarse_voxels_is_a_fault(mrml, export):
    volume = mrml.volume(noise(), "one", np.diag([4.0, 4, 4, 1]))
    tiny = np.zeros((8, 8, 8), bool)
    tiny[2, 2, 2] = True
    mrml.segmentation({"dot": tiny, "a": blob((3, 3, 3), (8, 8, 8), (8, 8, 8))}, volume, ijkToRas=np.eye(4))
    assert "'dot' is finer than the voxels" in rules(export.check())


def test_a_bend_between_scan_and_segmentation_is_refused_but_a_shared_one_is_not(mrml, export, tmp_path):
    volume, warp = mrml.volume(noise(), "one"), mrml.warp()
    node = mrml.segmentation({"a": blob()}, volume)
    node.SetAndObserveTransformNodeID(warp.GetID())
    assert "bends space" in rules(export.check())
    volume.SetAndObserveTransformNodeID(warp.GetID())
    assert np.array_equal(written(export, tmp_path).values() == 1, blob())


def test_a_labelled_scan_without_anything_drawn_is_a_fault(mrml, export):
    scanList = ScanList(mrml.scene)
    mrml.segmentation({"a": blob()}, mrml.volume(noise(), "good"))
    empty, none = mrml.volume(noise(), "empty"), mrml.volume(noise(), "none")
    mrml.segmentation({"a": blob() & ~blob()}, empty)
    for volume in (empty, none):
        scanList.setRole(volume, Role.LABELLED)
    assert [fault.case for fault in export.check()] == ["empty", "none"]


@pytest.mark.parametrize("role", [Role.LABELLED, Role.SEGMENT, Role.TEST])
def test_a_scan_that_is_there_twice_is_a_fault(mrml, export, role):
    array = noise()
    mrml.segmentation({"a": blob()}, mrml.volume(array, "one"))
    twin = mrml.volume(array, "twin")
    mrml.segmentation({"a": blob()}, twin)
    ScanList(mrml.scene).setRole(twin, role)
    (fault,) = export.check()
    assert fault.case == "twin" and "'one'" in fault.rule


def test_one_patient_in_training_and_test_is_a_fault(mrml, export):
    ana = mrml.patient("Ana")
    for name, role in (("before", Role.LABELLED), ("after", Role.TEST)):
        volume = mrml.volume(noise(), name, parent=ana)
        mrml.segmentation({"a": blob()}, volume)
        ScanList(mrml.scene).setRole(volume, role)
    (fault,) = export.check()
    assert fault.case == "before" and "'after'" in fault.rule


def test_scans_unlike_the_others_are_named(mrml, export):
    for number in range(3):
        volume = mrml.volume(noise(), f"scan {number}")
        if number == 0:
            mrml.segmentation({"a": blob()}, volume)
    mrml.volume(noise((1, 9, 11)), "slice")
    mrml.volume(noise((*SHAPE, 3)), "color")
    assert [(fault.case, "channels" in fault.rule) for fault in export.check()] == [("slice", False), ("color", True)]


def test_images_that_cannot_be_used_are_all_named(mrml, export):
    mrml.segmentation({"a": blob()}, mrml.volume(noise(dtype=np.float32), "good"))
    holes = RANDOM.normal(size=SHAPE).astype(np.float32)
    holes.flat[:3] = np.nan, np.inf, -np.inf
    mrml.volume(holes, "holes")
    mrml.volume(np.full(SHAPE, 7.0, np.float32), "constant")
    sheared = np.eye(4)
    sheared[0, 1] = 0.1
    mrml.volume(noise(dtype=np.float32), "tilted", sheared)
    mrml.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing")
    found = {fault.case: fault.rule for fault in export.check()}
    assert set(found) == {"holes", "constant", "tilted", "nothing"}
    assert "3 of its voxels" in found["holes"]


def test_faults_of_the_label_table_and_of_the_scans_are_told_together(mrml, export):
    mrml.segmentation({"a": blob(), "A": blob((0, 0, 0), (2, 3, 9))}, mrml.volume(noise(), "one"), name="seg")
    mrml.volume(np.zeros(SHAPE, np.int16), "constant")
    assert {fault.case for fault in export.check()} == {"seg", "constant"}


# --- the backend reads it -----------------------------------------------------------------------

READ = """
import json, sys
from pathlib import Path
from genseg.study import read_study, check_study
from genseg.imageio import read_scan, read_label
study = read_study(Path(sys.argv[1]))
facts = check_study(study)
cases = {}
for case in [*study.training, *study.unlabeled, *study.test]:
    scan = read_scan(case.images)
    cases[case.id] = {"shape": scan.array.shape, "spacing": scan.spacing, "group": case.group}
    if case.label:
        labels, _ = read_label(case.label, study.labels)
        cases[case.id]["counts"] = [int((labels == i).sum()) for i in range(len(study.labels))]
print(json.dumps({"labels": [[l.value, l.name, l.color, l.terminology] for l in study.labels.labels],
                  "dims": facts.dims, "physical": facts.physical, "cases": cases}))
"""


def test_the_backend_accepts_a_study_of_volumes(mrml, export, tmp_path, backend):
    for number, grid in enumerate(GRIDS):
        volume = mrml.volume(noise(), f"Größe {number} 肝", GRIDS[grid], parent=mrml.patient(f"patient {number}"))
        if number < 3:
            mrml.segmentation({"Leber ä": blob(), "脾": blob((0, 0, 0), (2, 3, 9))}, volume)
        if number in (2, 3):
            ScanList(mrml.scene).setRole(volume, Role.TEST)
    study = written(export, tmp_path)
    found = json.loads(backend(READ, study.folder))
    assert found["dims"] == 3 and found["physical"]
    assert [label[:2] for label in found["labels"]] == [[0, "background"], [1, "Leber ä"], [2, "脾"]]
    assert all("Tissue" in label[3] for label in found["labels"][1:])
    for case in ("Grosse-0", "Grosse-1", "Grosse-2"):
        counts = found["cases"][case]["counts"]
        assert counts[1:] == [int(blob().sum()), int(blob((0, 0, 0), (2, 3, 9)).sum())]
    assert found["cases"]["Grosse-7"]["shape"] == [1, 9, 11, 7]  # the sagittal one, turned to z, y, x
    assert np.allclose(found["cases"]["Grosse-7"]["spacing"], [0.8, 0.7, 3])
    assert len({case["group"] for case in found["cases"].values()}) == len(GRIDS)


def test_the_backend_accepts_photographs(mrml, export, tmp_path, backend):
    mask = blob((0, 4, 3), (1, 18, 30), (1, 40, 50))
    for number in range(3):
        photo = mrml.photo(noise((40, 50, 3 + number % 2), np.uint8), f"photo {number}")
        if number < 2:
            mrml.segmentation({"polyp": mask}, photo)
    found = json.loads(backend(READ, written(export, tmp_path).folder))
    assert found["dims"] == 2 and not found["physical"]
    assert found["cases"]["photo-1"]["shape"] == [3, 40, 50]
    assert found["cases"]["photo-1"]["counts"] == [40 * 50 - int(mask.sum()), int(mask.sum())]


def test_the_backend_accepts_single_slices_and_mixed_photographs(mrml, export, tmp_path, backend):
    mask = blob((0, 4, 3), (1, 18, 30), (1, 40, 50))
    mrml.segmentation({"a": mask}, mrml.volume(noise((1, 40, 50)), "slice", np.diag([-0.7, -0.8, 5, 1])))
    mrml.photo(noise((40, 50), np.uint8), "photo")
    found = json.loads(backend(READ, written(export, tmp_path).folder))
    assert found["dims"] == 2 and found["physical"]
    assert np.allclose(found["cases"]["slice"]["spacing"], [0.8, 0.7])
    assert found["cases"]["slice"]["counts"][1] == int(mask.sum())


def test_the_backend_reads_real_scans_from_the_scene_like_from_their_files(mrml, export, tmp_path, data, backend):
    """Hippocampus: image and mask through Slicer and back to files, equal voxel by voxel in physical space."""
    content = json.loads((data / "hippocampus" / "dataset.json").read_text(encoding="utf-8"))
    for case in content["training"][:3]:
        volume = mrml.loadVolume(data / "hippocampus" / case["image"])
        node = mrml.loadSegmentation(data / "hippocampus" / case["label"])
        ScanList(mrml.scene).setSegmentation(volume, node)
    study = written(export, tmp_path)
    assert json.loads(backend(READ, study.folder))["dims"] == 3
    for number, case in enumerate(content["training"][:3]):
        for mine, key in ((study.image(case=number), "image"), (study.mask(case=number), "label")):
            source = sitk.ReadImage(str(data / "hippocampus" / case[key]))
            there = sitk.Resample(
                sitk.Cast(mine, sitk.sitkFloat64), source, sitk.Transform(), sitk.sitkNearestNeighbor, -1.0
            )
            assert np.array_equal(sitk.GetArrayFromImage(there), sitk.GetArrayFromImage(source).astype(float))
