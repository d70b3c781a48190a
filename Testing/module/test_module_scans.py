"""Roles, segmentations and ids of scans, kept in a real MRML scene."""

import numpy as np
import pytest
from GenSegSlicerLib.Scans import CASE, DRAWN, RUN, Role, ScanList
from GenSegSlicerLib.SegmentMasks import drawnSegments


def ramp(shape=(4, 5, 6), dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def ball(shape=(4, 5, 6)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:3, 1:4, 2:5] = True
    return mask


@pytest.fixture
def scanList(mrml) -> ScanList:
    return ScanList(mrml.scene)


def test_an_empty_scene_has_no_scans(scanList):
    assert scanList.scans() == []
    assert scanList.byCaseId("anything") is None


def test_scalar_and_color_volumes_are_scans_but_label_maps_tensors_and_hidden_nodes_are_not(mrml, scanList):
    ct, photo = mrml.volume(ramp(), "ct"), mrml.photo(np.zeros((5, 6, 3), np.uint8))
    hidden = mrml.volume(ramp(), "hidden")
    hidden.SetHideFromEditors(True)
    for kind in ("LabelMapVolume", "DiffusionWeightedVolume", "DiffusionTensorVolume"):
        mrml.scene.AddNewNodeByClass(f"vtkMRML{kind}Node", kind)
    assert [scan.volumeNode for scan in scanList.scans()] == [ct, photo]


def test_the_order_is_that_of_the_scene_and_a_scan_is_compared_by_value(mrml, scanList):
    nodes = [mrml.volume(ramp(), name) for name in ("b", "a", "c")]
    assert [scan.name for scan in scanList.scans()] == ["b", "a", "c"]
    assert scanList.scans() == scanList.scans()
    assert scanList.scan(nodes[1]) == scanList.scans()[1]


def test_a_volume_without_an_image_says_so(mrml, scanList):
    mrml.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    (scan,) = scanList.scans()
    assert scan.state == "No image in it" and not scan.isPhotograph


def test_a_drawn_segmentation_makes_a_scan_labelled_an_empty_one_does_not(mrml, scanList):
    drawn, begun, alone = (mrml.volume(ramp(), name) for name in ("drawn", "begun", "alone"))
    mask = mrml.segmentation({"a": ball(), "b": ~ball(), "none": ball() & ~ball()}, drawn)
    empty = mrml.segmentation({"a": np.zeros((4, 5, 6), bool)}, begun)
    scans = scanList.scans()
    assert [scan.role for scan in scans] == [Role.LABELLED, Role.SEGMENT, Role.SEGMENT]
    assert [scan.segmentationNode for scan in scans] == [mask, empty, None]
    assert [scan.drawn for scan in scans] == [2, 0, 0]
    assert [scan.state for scan in scans] == ["2 structures drawn", "Nothing drawn yet", "Not segmented"]
    assert scans[2].volumeNode is alone


def test_of_two_segmentations_the_drawn_one_is_the_scans_own_and_a_choice_goes_before(mrml, scanList):
    volume = mrml.volume(ramp())
    empty = mrml.segmentation({"a": np.zeros((4, 5, 6), bool)}, volume)
    first, second = mrml.segmentation({"a": ball()}, volume), mrml.segmentation({"a": ball()}, volume)
    assert scanList.segmentationOf(volume) is first
    scanList.setSegmentation(volume, second)
    assert scanList.segmentationOf(volume) is second
    scanList.setSegmentation(volume, empty)
    assert scanList.segmentationOf(volume) is empty
    scanList.setSegmentation(volume, None)
    assert scanList.segmentationOf(volume) is None, "also where a segmentation refers to the scan"
    scanList.setSegmentation(volume, first)
    assert scanList.segmentationOf(volume) is first


def test_a_removed_segmentation_leaves_the_scan_without_one(mrml, scanList):
    volume = mrml.volume(ramp())
    node = mrml.segmentation({"a": ball()}, volume)
    scanList.setSegmentation(volume, node)
    mrml.scene.RemoveNode(node)
    assert scanList.scan(volume).segmentationNode is None


def test_a_prediction_is_never_taken_for_the_users_segmentation(mrml, scanList):
    volume = mrml.volume(ramp())
    prediction = mrml.segmentation({"a": ball()}, volume)
    prediction.SetAttribute(RUN, "/some/run")
    scan = scanList.scan(volume)
    assert scan.segmentationNode is None and scan.role == Role.SEGMENT
    assert scan.state == "Segmented by the model, to be looked at"
    assert scanList.predictionsOf(volume) == [prediction]
    assert scanList.predictionsOf(mrml.volume(ramp(), "other")) == []


def test_choosing_a_prediction_makes_it_the_users(mrml, scanList):
    volume = mrml.volume(ramp())
    prediction = mrml.segmentation({"a": ball()}, volume)
    for attribute in (RUN, CASE, DRAWN):
        prediction.SetAttribute(attribute, "x")
    scanList.setSegmentation(volume, prediction)
    assert scanList.predictionsOf(volume) == [] and scanList.segmentationOf(volume) is prediction
    assert not any(prediction.GetAttribute(attribute) for attribute in (RUN, CASE, DRAWN))


def test_a_role_is_kept_and_an_unknown_one_is_refused(mrml, scanList):
    volume = mrml.volume(ramp())
    for role in Role:
        scanList.setRole(volume, role)
        assert scanList.scan(volume).role == role
    scanList.setRole(volume, "test")
    assert scanList.scan(volume).role == Role.TEST
    with pytest.raises(ValueError):
        scanList.setRole(volume, "train")
    volume.SetAttribute("GenSegSlicer.Role", "of a later version")
    assert scanList.scan(volume).role == Role.SEGMENT


def test_single_slices_are_2d_along_whichever_axis(mrml, scanList):
    for shape in ((1, 5, 6), (4, 1, 6), (4, 5, 1)):
        mrml.volume(ramp(shape))
    mrml.volume(ramp())
    assert [scan.dims for scan in scanList.scans()] == [2, 2, 2, 3]


def test_photographs_are_told_from_slices_with_a_size(mrml, scanList, tmp_path):
    gray = ramp((5, 6), np.uint8)
    mrml.photo(gray)
    mrml.photo(np.zeros((5, 6, 4), np.uint8))
    mrml.volume(gray[None], "no size given, not turned")
    mrml.volume(gray[None], "slice", np.diag([0.7, 0.7, 5, 1]))
    mrml.volume(gray[None].astype(np.int16), "signed", np.diag([-1, -1, 1, 1]))
    mrml.volume(np.stack([gray, gray]), "two slices")
    dicom = mrml.photo(gray)
    dicom.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    jpeg = mrml.volume(gray[None], "printing size", np.diag([-0.35, -0.35, 1, 1]))
    jpeg.AddDefaultStorageNode()
    jpeg.GetStorageNode().SetFileName(str(tmp_path / "Polyp.JPG"))
    assert [scan.isPhotograph for scan in scanList.scans()] == [True, True, True, False, False, False, False, True]


def test_what_is_drawn_is_counted_again_after_every_change(mrml, scanList):
    volume = mrml.volume(ramp())
    node = mrml.segmentation({"a": ball(), "b": np.zeros((4, 5, 6), bool)}, volume, layers=False)
    assert scanList.scan(volume).drawn == 1
    segmentation = node.GetSegmentation()
    image = segmentation.GetNthSegment(1).GetRepresentation("Binary labelmap")
    image.SetScalarComponentFromDouble(0, 0, 0, 0, 2)  # as a brush would
    image.Modified()
    assert scanList.scan(volume).drawn == 2
    segmentation.ClearSegment(segmentation.GetNthSegmentID(0))
    assert scanList.scan(volume).drawn == 1
    segmentation.RemoveAllSegments()
    assert scanList.scan(volume).drawn == 0


def test_values_no_segment_has_are_nothing_drawn(mrml):
    node = mrml.segmentation({"a": ball(), "b": ~ball()}, mrml.volume(ramp()), layers=False)
    node.GetSegmentation().GetNthSegment(1).SetLabelValue(9)
    assert drawnSegments(node) == ["id 0 of a"]


def test_a_segmentation_of_surfaces_counts_as_drawn(mrml, scanList):
    volume = mrml.volume(ramp())
    node = mrml.segmentation({"a": ball()}, volume)
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.RemoveBinaryLabelmapRepresentation()
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")
    assert scanList.scan(volume).drawn == 1


# --- ids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hippocampus_001", "hippocampus_001"),
        ("3: T1 AX  (post KM)", "3-T1-AX-post-KM"),
        ("Größe Ökonomie", "Grosse-Okonomie"),
        ("肝脏", "scan-1"),
        ("肝脏 7", "7"),
        ("../../etc/passwd", "etc-passwd"),
        ("  ", "scan-1"),
        ("___", "scan-1"),
        ("CON", "scan-CON"),
        ("com1", "scan-com1"),
        ("x" * 300, "x" * 40),
    ],
)
def test_an_id_is_a_file_name_in_ascii(mrml, scanList, name, expected):
    assert scanList.caseId(mrml.volume(ramp(), name)) == expected


def test_ids_differ_also_without_upper_and_lower_case_and_stay(mrml, scanList):
    nodes = [mrml.volume(ramp(), name) for name in ("Scan", "scan", "SCAN", "肝", "脾")]
    ids = [scanList.caseId(node) for node in nodes]
    assert ids == ["Scan", "scan-2", "SCAN-3", "scan-1", "scan-4"]
    nodes[0].SetName("another name")
    assert [scanList.caseId(node) for node in nodes] == ids
    assert [scanList.byCaseId(case) for case in ids] == nodes
    assert scanList.byCaseId("Scan-2") is nodes[1]


def test_a_copied_volume_gets_an_id_of_its_own_and_the_original_keeps_its(mrml, scanList):
    original = mrml.volume(ramp(), "brain")
    assert scanList.caseId(original) == "brain"
    copy = mrml.volume(ramp(), "brain copy")
    copy.SetAttribute(CASE, "brain")  # Slicer copies attributes
    assert scanList.byCaseId("brain") is original
    assert scanList.caseId(copy) == "brain-copy"
    assert scanList.caseId(original) == "brain"


def test_the_id_of_a_removed_volume_with_a_prediction_goes_to_no_other(mrml, scanList):
    volume = mrml.volume(ramp(), "brain")
    prediction = mrml.segmentation({"a": ball()}, volume)
    prediction.SetAttribute(CASE, scanList.caseId(volume))
    mrml.scene.RemoveNode(volume)
    assert scanList.caseId(mrml.volume(ramp(), "brain")) == "brain-2"


# --- saved and loaded ---------------------------------------------------------------------------


def test_roles_segmentations_and_ids_are_saved_with_the_scene(mrml, scanList, tmp_path):
    names = ("Größe & Co", "肝", "c")
    volumes = [mrml.volume(ramp(), name) for name in names]
    chosen = mrml.segmentation({"a": ball()}, name="chosen")
    scanList.setSegmentation(volumes[1], chosen)
    scanList.setRole(volumes[0], Role.IGNORE)
    scanList.setRole(volumes[1], Role.TEST)
    prediction = mrml.segmentation({"a": ball()}, volumes[2], name="prediction")
    prediction.SetAttribute(RUN, "C:/Läufe; 1/run:2")
    ids = [scanList.caseId(volume) for volume in volumes]
    scene = mrml.save(tmp_path / "Szene ü")
    mrml.open(scene)
    again = ScanList(mrml.scene)
    loaded = again.scans()
    assert [scan.name for scan in loaded] == list(names)
    assert [scan.role for scan in loaded] == [Role.IGNORE, Role.TEST, Role.SEGMENT]
    assert [again.caseId(scan.volumeNode) for scan in loaded] == ids
    assert loaded[1].segmentationNode is mrml.node("chosen") and loaded[1].drawn == 1
    assert again.predictionsOf(loaded[2].volumeNode) == [mrml.node("prediction")]
    assert mrml.node("prediction").GetAttribute(RUN) == "C:/Läufe; 1/run:2"


def test_a_scene_added_to_itself_keeps_both_apart(mrml, scanList, tmp_path):
    volume = mrml.volume(ramp(), "brain")
    scanList.setSegmentation(volume, mrml.segmentation({"a": ball()}, name="mine"))
    scanList.caseId(volume)
    mrml.add(mrml.save(tmp_path / "scene"))
    first, second = ScanList(mrml.scene).scans()
    assert first.segmentationNode is not second.segmentationNode and second.segmentationNode is not None
    assert ScanList(mrml.scene).caseId(first.volumeNode) == "brain"
    assert ScanList(mrml.scene).caseId(second.volumeNode) == "brain-2"
