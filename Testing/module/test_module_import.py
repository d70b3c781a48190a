"""Predictions back in the scene: on the very voxels of their scan, with never over the user's work."""

import json
import os

import numpy as np
import pytest
import SimpleITK as sitk
import vtk
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.LabelTable import LabelTable, Structure
from GenSegSlicerLib.PredictionImport import PredictionImport, runKey
from GenSegSlicerLib.Scans import CASE, RUN, Role, ScanList
from GenSegSlicerLib.StudyExport import StudyExport
from GenSegSlicerLib.StudyFiles import writePhoto, writeVolume
from made_scans import GRIDS, blob, noise
from mrml import CLOSED_SURFACE, oblique

LIVER = "General Anatomy~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^~Anatomic codes~^^~^^"
TABLE = LabelTable(
    [
        Structure(1, "Leber ä", (0.2, 0.4, 0.6), LIVER),
        Structure(2, "never there", (1, 0, 0)),
        Structure(5, "脾", (0, 1, 0.5)),
    ]
)
FIRST, LAST = blob(), blob((0, 0, 0), (2, 3, 9))
LABELS = (FIRST + 5 * LAST).astype(np.uint8)


@pytest.fixture
def scanList(mrml) -> ScanList:
    return ScanList(mrml.scene)


@pytest.fixture
def predictions(mrml, scanList) -> PredictionImport:
    return PredictionImport(mrml.scene, scanList)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "Lauf ü 1"
    (folder / "predictions").mkdir(parents=True)
    return folder


def put(run, labels=LABELS, grid=None, name="case.seg.nrrd"):
    path = run / "predictions" / name
    if path.suffix == ".png":
        writePhoto(labels, path)
    else:
        writeVolume(labels, np.eye(4) if grid is None else grid, path)
    return path


def nodes(mrml) -> int:
    return mrml.scene.GetNumberOfNodes()


def paint(node, segment: int, voxel) -> None:
    """One voxel (i, j, k) as a brush would."""
    part = node.GetSegmentation().GetNthSegment(segment)
    image = part.GetRepresentation("Binary labelmap")
    image.SetScalarComponentFromDouble(*voxel, 0, part.GetLabelValue())
    image.Modified()


# --- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True], ids=["at rest", "under a transform"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_prediction_lies_on_the_very_voxels_of_its_scan(mrml, predictions, run, grid, moved):
    volume = mrml.volume(noise(), "scan", GRIDS[grid])
    if moved:
        transform = mrml.transform(oblique((1.1, 0.9, 1), (30, -20, 10), (35, 10, -20)))
        volume.SetAndObserveTransformNodeID(transform.GetID())
    node = predictions.load(put(run, grid=GRIDS[grid]), volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), FIRST)
    assert np.array_equal(mrml.mask(node, "脾", volume), LAST)
    assert not mrml.mask(node, "never there", volume).any()
    assert node.GetParentTransformNode() is volume.GetParentTransformNode()


@pytest.mark.parametrize("grid", GRIDS)
def test_a_scan_whose_axes_slicer_turned_when_loading_gets_its_prediction_right(mrml, predictions, run, grid, tmp_path):
    """The file and the prediction keep the file's order of voxels, the volume has Slicer's."""
    writeVolume(noise(), GRIDS[grid], tmp_path / "image.nrrd")
    volume = mrml.loadVolume(tmp_path / "image.nrrd")
    node = predictions.load(put(run, grid=GRIDS[grid]), volume, TABLE, run, "case")
    toScan = np.linalg.inv(mrml.ijkToRas(volume)) @ GRIDS[grid]
    k, j, i = np.nonzero(FIRST)
    there = np.rint(toScan @ np.stack([i, j, k, np.ones(len(i))])).astype(int)
    expected = np.zeros_like(FIRST)
    expected[there[2], there[1], there[0]] = True
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), expected)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_the_same_voxels_in_any_order_of_axes_come_right(mrml, predictions, run, order, flips):
    grid = oblique((0.7, 1.1, 2.3), (10, 20, 30), (20, -10, 35))
    volume = mrml.volume(noise(), "scan", grid)
    file = put(run, grid=grid)
    itk = sitk.PermuteAxes(sitk.ReadImage(str(file)), order)
    itk = sitk.Flip(itk, [axis in flips for axis in range(3)])
    sitk.WriteImage(itk, str(file))
    node = predictions.load(file, volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), FIRST)
    assert np.array_equal(mrml.mask(node, "脾", volume), LAST)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda g: g @ np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "1.1 mm away"),
        (lambda g: g @ np.diag([1.01, 1, 1, 1]), "mm away"),
        (lambda g: oblique((1, 1, 1), (0, 0, 0), (0, 0, 1)) @ g, "mm away"),
        (lambda g: g * np.array([[-1], [-1], [1], [1]]), "mm away"),
        (lambda g: g @ np.diag([-1, 1, 1, 1]), "mm away"),
    ],
    ids=["a voxel aside", "other spacing", "turned by a degree", "LPS taken for RAS", "mirrored"],
)
def test_a_prediction_that_lies_elsewhere_is_refused_with_the_distance(mrml, predictions, run, change, said):
    grid = oblique((1.1, 0.9, 2), (30, -40, 50), (10, 20, 5))
    volume = mrml.volume(noise(), "scan", grid)
    before = nodes(mrml)
    with pytest.raises(StudyFaults, match=said):
        predictions.load(put(run, grid=change(grid)), volume, TABLE, run, "case")
    assert nodes(mrml) == before


def test_another_number_of_voxels_is_refused(mrml, predictions, run):
    volume = mrml.volume(noise((7, 9, 12)), "scan")
    with pytest.raises(StudyFaults, match="11 × 9 × 7 voxels, the scan 12 × 9 × 7"):
        predictions.load(put(run), volume, TABLE, run, "case")


def test_a_nearly_equal_grid_is_the_same_grid(mrml, predictions, run):
    grid = GRIDS["flipped k, far away"]
    volume = mrml.volume(noise(), "scan", grid.astype(np.float32).astype(float))  # as a NIfTI header has it
    node = predictions.load(put(run, grid=grid), volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), FIRST)


def test_a_photographs_prediction_keeps_its_rows(mrml, predictions, run):
    volume = mrml.photo(noise((13, 17, 3), np.uint8))
    labels = np.zeros((1, 13, 17), np.uint8)
    labels[0, 1:4, 2:9] = 5
    node = predictions.load(put(run, labels, name="case.png"), volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "脾", volume), labels == 5)
    assert not predictions.showSurface(node) and not node.GetSegmentation().ContainsRepresentation(CLOSED_SURFACE)
    with pytest.raises(StudyFaults, match="17 × 12 × 1 voxels"):
        predictions.load(put(run, labels[:, 1:], name="case.png"), volume, TABLE, run, "case")


@pytest.mark.parametrize("grid", GRIDS)
def test_a_single_slice_comes_back_to_its_place(mrml, predictions, run, grid):
    volume = mrml.volume(noise((1, 13, 17)), "slice", GRIDS[grid])
    labels = np.zeros((1, 13, 17), np.uint8)
    labels[0, 1:4, 2:9] = 1
    node = predictions.load(put(run, labels, GRIDS[grid]), volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), labels == 1)


def test_a_plane_without_a_place_is_compared_by_its_pixels_only(mrml, predictions, run):
    """A 2D file becomes a single slice at 0 with thickness 1 in the backend's .seg.nrrd."""
    volume = mrml.volume(noise((1, 13, 17)), "slice", np.diag([-0.7, -0.8, 5, 1]))
    labels = np.zeros((1, 13, 17), np.uint8)
    labels[0, 1:4, 2:9] = 1
    flat = np.diag([-0.7, -0.8, 1, 1.0])
    node = predictions.load(put(run, labels, flat), volume, TABLE, run, "case")
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), labels == 1)
    with pytest.raises(StudyFaults, match="another size"):
        predictions.load(put(run, labels, np.diag([-0.9, -0.8, 1, 1.0])), volume, TABLE, run, "case")


# --- structures ---------------------------------------------------------------------------------


def test_segments_have_the_studys_names_colors_terminology_and_numbers(mrml, predictions, run):
    node = predictions.load(put(run), mrml.volume(noise(), "scan"), TABLE, run, "case")
    segments = mrml.segments(node)
    assert [s.GetName() for s in segments] == ["Leber ä", "never there", "脾"]
    assert [s.GetColor() for s in segments] == [s.color for s in TABLE.structures]
    assert [s.GetLabelValue() for s in segments] == [1, 2, 5]
    assert segments[0].GetTerminology() == LIVER
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_reference_geometry_surface_display_and_place_in_the_subject_hierarchy(mrml, predictions, run):
    study = mrml.patient("Ana", "CT")
    volume = mrml.volume(noise(), "scan 肝", parent=study)
    node = predictions.load(put(run), volume, TABLE, run, "case")
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    hierarchy = mrml.subjectHierarchy
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert node.GetDisplayNode() is not None and node.GetName() == "scan 肝 prediction"
    assert not node.GetDisplayNode().GetVisibility(), "it waits until it is looked at"
    assert not node.GetSegmentation().ContainsRepresentation(CLOSED_SURFACE)
    assert predictions.showSurface(node)
    points = []
    for segmentId in node.GetSegmentation().GetSegmentIDs():
        surface = vtk.vtkPolyData()
        node.GetClosedSurfaceRepresentation(segmentId, surface)
        points.append(surface.GetNumberOfPoints())
    assert points[0] > 0 and points[1] == 0 and points[2] > 0
    assert node.GetAttribute(RUN) == runKey(run) and node.GetAttribute(CASE) == "case"


def test_numbers_no_structure_has_and_other_names_are_refused(mrml, predictions, run):
    volume = mrml.volume(noise(), "scan")
    before = nodes(mrml)
    with pytest.raises(StudyFaults, match="no structure has: 3, 9"):
        predictions.load(put(run, (3 * FIRST + 9 * LAST).astype(np.uint8)), volume, TABLE, run, "case")
    image = sitk.ReadImage(str(put(run)))
    names = {"Segment0_Name": "spleen", "Segment0_LabelValue": "1", "Segment1_Name": "脾", "Segment1_LabelValue": "5"}
    for key, text in names.items():
        image.SetMetaData(key, text)
    sitk.WriteImage(image, str(run / "predictions" / "named.seg.nrrd"))
    with pytest.raises(StudyFaults, match="Number 1 is 'spleen' in the prediction but 'Leber ä' in the study"):
        predictions.load(run / "predictions" / "named.seg.nrrd", volume, TABLE, run, "case")
    assert nodes(mrml) == before


@pytest.mark.parametrize("content", [None, b"", b"NRRD0004\ntype: short\n", b"no image at all"])
def test_a_missing_or_damaged_file_is_a_fault_and_changes_nothing(mrml, predictions, run, content):
    path = run / "predictions" / "case.seg.nrrd"
    if content is not None:
        path.write_bytes(content)
    volume, before = mrml.volume(noise(), "scan"), nodes(mrml)
    before = nodes(mrml)
    with pytest.raises(StudyFaults, match="cannot be read"):
        predictions.load(path, volume, TABLE, run, "case")
    assert nodes(mrml) == before


# --- again and again ----------------------------------------------------------------------------


def test_the_next_prediction_of_a_run_replaces_its_last_in_the_same_node(mrml, predictions, scanList, run, tmp_path):
    volume = mrml.volume(noise(), "scan")
    node = predictions.load(put(run), volume, TABLE, run, "case")
    node.GetDisplayNode().SetOpacity(0.3)
    node.GetDisplayNode().SetVisibility(True)
    predictions.showSurface(node)
    other = predictions.load(put(run), volume, TABLE, tmp_path / "another run", "case")
    before = nodes(mrml)
    again = predictions.load(put(run, (2 * LAST).astype(np.uint8)), volume, TABLE, run, "case")
    assert again is node and nodes(mrml) == before and node.GetDisplayNode().GetOpacity() == 0.3
    assert node.GetDisplayNode().GetVisibility(), "what is looked at stays in view"
    assert np.array_equal(mrml.mask(node, "never there", volume), LAST)
    assert not mrml.mask(node, "Leber ä", volume).any()
    assert not node.GetSegmentation().ContainsRepresentation(CLOSED_SURFACE), "no surface of what was there before"
    surface = vtk.vtkPolyData()
    assert predictions.showSurface(node)
    node.GetClosedSurfaceRepresentation("Segment_2", surface)
    assert surface.GetNumberOfPoints() > 0
    assert np.array_equal(mrml.mask(other, "Leber ä", volume), FIRST)
    assert scanList.predictionsOf(volume) == [node, other]


@pytest.mark.parametrize("how", ["painted", "erased", "renamed", "added", "moved"])
def test_a_prediction_the_user_has_changed_is_never_replaced(mrml, predictions, run, how):
    volume = mrml.volume(noise(), "scan")
    node = predictions.load(put(run), volume, TABLE, run, "case")
    assert not predictions.corrected(node, volume)
    if how == "painted":
        paint(node, 0, (10, 8, 6))
    elif how == "erased":
        node.GetSegmentation().ClearSegment("Segment_1")
    elif how == "renamed":
        node.GetSegmentation().GetSegment("Segment_1").SetName("Hepar")
    elif how == "added":
        node.GetSegmentation().AddEmptySegment("", "new")
    else:
        node.SetAndObserveTransformNodeID(mrml.transform(oblique((1, 1, 1), (3, 0, 0))).GetID())
    assert predictions.corrected(node, volume)
    kept = mrml.mask(node, "脾", volume)
    again = predictions.load(put(run, (2 * LAST).astype(np.uint8)), volume, TABLE, run, "case")
    assert again is not node and np.array_equal(mrml.mask(node, "脾", volume), kept)
    assert predictions.load(put(run), volume, TABLE, run, "case") is again  # from now on this one


def test_an_accepted_prediction_is_the_users_and_stays(mrml, predictions, scanList, run):
    volume = mrml.volume(noise(), "scan")
    node = predictions.load(put(run), volume, TABLE, run, "case")
    predictions.accept(node, volume)
    scan = scanList.scan(volume)
    assert scan.segmentationNode is node and scan.role == Role.LABELLED and scan.drawn == 2
    assert node.GetAttribute(RUN) is None and node.GetName() == "scan segmentation"
    again = predictions.load(put(run, (2 * LAST).astype(np.uint8)), volume, TABLE, run, "case")
    assert again is not node and np.array_equal(mrml.mask(node, "Leber ä", volume), FIRST)
    assert scanList.scan(volume).segmentationNode is node


def test_what_the_user_drew_is_not_touched(mrml, predictions, scanList, run):
    volume = mrml.volume(noise(), "scan")
    drawn = mrml.segmentation({"mine": LAST}, volume)
    node = predictions.load(put(run), volume, TABLE, run, "case")
    assert node is not drawn and np.array_equal(mrml.mask(drawn, "mine", volume), LAST)
    assert scanList.scan(volume).segmentationNode is drawn


def test_after_saving_and_loading_the_scene_a_prediction_is_still_known(mrml, predictions, run, tmp_path):
    grid = oblique((0.7, 1.1, 2.3), (10, 20, 30), (20, -10, 35))
    volume = mrml.volume(noise(), "scan", grid)
    predictions.load(put(run, grid=grid), volume, TABLE, run, "case")
    mrml.open(mrml.save(tmp_path / "scene"))
    volume, node = mrml.node("scan"), mrml.node("scan prediction")
    again = PredictionImport(mrml.scene, ScanList(mrml.scene))
    assert np.array_equal(mrml.mask(node, "Leber ä", volume), FIRST)
    assert not again.corrected(node, volume)
    assert again.load(put(run, grid=grid), volume, TABLE, run, "case") is node
    paint(node, 0, (9, 8, 6))
    mrml.open(mrml.save(tmp_path / "scene 2"))
    again = PredictionImport(mrml.scene, ScanList(mrml.scene))
    assert again.corrected(mrml.node("scan prediction"), mrml.node("scan"))


def test_the_run_folder_is_one_however_it_is_written(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert runKey(run) == runKey(run.name) == runKey(f"./{run.name}/../{run.name}/")
    assert os.sep == "\\" or "\\" not in runKey(run)


# --- there and back with the real backend -------------------------------------------------------

PREDICT = """
import sys
from pathlib import Path
from genseg.study import read_study
from genseg.imageio import read_label, read_scan, write_label
study = read_study(Path(sys.argv[1]))
out = Path(sys.argv[2])
for case in [*study.training, *study.test]:
    labels, _ = read_label(case.label, study.labels)
    scan = read_scan(case.images)
    photo = not scan.geometry.physical
    write_label(labels, scan.geometry, study.labels, out / (case.id + (".png" if photo else ".seg.nrrd")))
study.save(out.parent / "study.json")
"""


def roundTrip(mrml, scanList, run, backend) -> None:
    """Export the scene, let the backend write the reference masks as its predictions, and load them again."""
    exporter = StudyExport(mrml.scene, scanList)
    file = exporter.write(run.parent / "study")
    backend(PREDICT, file, run / "predictions")
    table = LabelTable.ofRun(run)
    assert [s.name for s in table.structures] == [s.name for s in LabelTable.ofScans(scanList.scans()).structures]
    for case in json.loads(file.read_text(encoding="utf-8"))["training"]:
        volume = scanList.byCaseId(case["id"])
        own = scanList.scan(volume).segmentationNode
        (path,) = (run / "predictions").glob(f"{case['id']}.*")
        node = PredictionImport(mrml.scene, scanList).load(path, volume, table, run, case["id"])
        for structure in table.structures:
            if own.GetSegmentation().GetSegmentIdBySegmentName(structure.name):
                expected = mrml.mask(own, structure.name, volume)
                assert np.array_equal(mrml.mask(node, structure.name, volume), expected), (case["id"], structure.name)


def test_there_and_back_through_the_backend_every_voxel_is_where_it_was(mrml, scanList, run, backend):
    for number, grid in enumerate(GRIDS):
        volume = mrml.volume(noise(), f"Größe {number}", GRIDS[grid])
        if number % 2:
            turned = mrml.transform(oblique((1, 1, 1), (5, 6, 7), (number * 7, -20, 13)))
            volume.SetAndObserveTransformNodeID(turned.GetID())
        masks = {"Leber ä": FIRST, "脾": LAST} if number % 3 else {"脾": LAST, "only here": FIRST}
        mrml.segmentation(masks, volume, layers=number > 4)
    roundTrip(mrml, scanList, run, backend)


def test_there_and_back_for_single_slices_along_every_axis(mrml, scanList, run, backend):
    mask = blob((0, 2, 3), (1, 9, 12), (1, 13, 17))
    for number, grid in enumerate(GRIDS):
        for axis in range(3):
            volume = mrml.volume(np.moveaxis(noise((1, 13, 17)), 0, axis).copy(), f"slice {number} {axis}", GRIDS[grid])
            mrml.segmentation({"a": np.moveaxis(mask, 0, axis).copy()}, volume)
    roundTrip(mrml, scanList, run, backend)


def test_there_and_back_for_photographs(mrml, scanList, run, backend):
    mask = blob((0, 2, 3), (1, 9, 12), (1, 13, 17))
    for number in range(2):
        mrml.segmentation({"a": mask}, mrml.photo(noise((13, 17, 3), np.uint8), f"photo {number}"))
    roundTrip(mrml, scanList, run, backend)


@pytest.mark.parametrize("study", ["hippocampus", "acdc"])
def test_there_and_back_for_real_scans(mrml, scanList, run, data, backend, study):
    content = json.loads((data / study / "dataset.json").read_text(encoding="utf-8"))
    for case in content["training"][:3]:
        volume = mrml.loadVolume(data / study / case["image"])
        scanList.setSegmentation(volume, mrml.loadSegmentation(data / study / case["label"]))
    roundTrip(mrml, scanList, run, backend)
