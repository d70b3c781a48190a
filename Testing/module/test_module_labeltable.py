"""One table of numbers, names, colors and terminology for all scans, from real segmentation nodes."""

import json

import numpy as np
import pytest
import slicer
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.LabelTable import LabelTable, Structure, termKey, termText
from GenSegSlicerLib.Scans import Role, ScanList

TISSUE = slicer.vtkSegment().GetTerminology()


def term(code: str, meaning: str, modifier: str = "^^", region: str = "^^", context: str = "General Anatomy") -> str:
    return (
        f"{context}~SCT^123037004^Anatomical Structure~SCT^{code}^{meaning}~{modifier}"
        f"~Anatomic codes - DICOM master list~{region}~^^"
    )


LIVER, SPLEEN = term("10200004", "Liver"), term("78961009", "Spleen")
KIDNEY = term("64033007", "Kidney")
LEFT_KIDNEY = term("64033007", "Kidney", "SCT^7771000^Left")


@pytest.fixture
def draw(mrml):
    """draw("name", …) or draw(("name", terminology), …) → a segmentation with these segments, nothing in them."""

    def make(*segments, name="seg"):
        node = mrml.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        for entry in segments:
            text, terminology = (entry, None) if isinstance(entry, str) else entry
            segmentation = node.GetSegmentation()
            segment = segmentation.GetSegment(segmentation.AddEmptySegment("", "to be named"))
            segment.SetName(text)
            if terminology is not None:
                segment.SetTerminology(terminology)
        return node

    return make


def numbers(table: LabelTable, node) -> list[int]:
    """The table's values of the segments, in their order."""
    return list(table.values(node).values())


def faults(nodes) -> list[str]:
    with pytest.raises(StudyFaults) as error:
        LabelTable.ofSegmentations(nodes)
    return [str(fault) for fault in error.value.faults]


def test_every_new_segment_of_slicer_is_tissue_and_that_says_nothing():
    assert termKey(TISSUE) is None and termKey("") is None
    assert termKey(LIVER) is not None and termKey(LIVER) != termKey(SPLEEN)


def test_a_region_makes_even_tissue_specific_and_contexts_do_not_count():
    assert termKey(TISSUE.replace("~^^~^^", "~SCT^10200004^Liver~^^")) is not None
    assert termKey(LIVER) == termKey(term("10200004", "Leber", context="my own list"))
    assert termKey(LEFT_KIDNEY) != termKey(KIDNEY)
    assert termText(LEFT_KIDNEY) == "Kidney, Left"


def test_numbers_follow_first_appearance_and_not_the_order_within_each_scan(draw):
    first, second, third = draw("a", "b"), draw("c", "b"), draw("b", "a", "c")
    table = LabelTable.ofSegmentations([first, second, third])
    assert [(s.value, s.name) for s in table.structures] == [(1, "a"), (2, "b"), (3, "c")]
    assert [numbers(table, node) for node in (first, second, third)] == [[1, 2], [3, 2], [2, 1, 3]]
    assert table.warnings == []


def test_names_match_whatever_their_spaces_case_and_way_of_storing_umlauts(draw):
    nodes = [draw("Größe  1"), draw(" gro\u0308ße 1 "), draw("GRÖSSE 1"), draw("肝脏"), draw("肝脏")]
    table = LabelTable.ofSegmentations(nodes)
    assert [s.name for s in table.structures] == ["Größe 1", "肝脏"]
    assert [numbers(table, node) for node in nodes] == [[1], [1], [1], [2], [2]]


def test_the_same_terminology_under_another_name_is_the_same_structure_and_told(draw):
    first, second, third = draw(("liver", LIVER)), draw(("Leber", LIVER), name="scan 2"), draw("leber")
    table = LabelTable.ofSegmentations([first, second, third])
    assert [s.name for s in table.structures] == ["liver"]
    assert [numbers(table, node) for node in (first, second, third)] == [[1], [1], [1]]
    (warning,) = table.warnings
    assert "'Leber' in scan 2 is taken as 'liver'" in warning and "Liver" in warning


def test_a_terminology_used_twice_in_one_segmentation_tells_nothing_apart(draw):
    first = draw(("left kidney", KIDNEY), ("right kidney", KIDNEY))
    second = draw(("right kidney", KIDNEY))
    table = LabelTable.ofSegmentations([second, first])
    assert [s.name for s in table.structures] == ["right kidney", "left kidney"]
    assert numbers(table, first) == [2, 1] and numbers(table, second) == [1]
    assert table.warnings == []


def test_a_later_terminology_is_adopted_by_a_structure_without(draw):
    table = LabelTable.ofSegmentations([draw("liver"), draw(("Liver", LIVER)), draw(("Hepar", LIVER))])
    (liver,) = table.structures
    assert liver.name == "liver" and liver.terminology == LIVER


def test_the_same_name_with_another_terminology_is_one_structure_and_told(draw):
    mass, neoplasm = term("4147007", "Mass"), term("108369006", "Neoplasm")
    nodes = [draw(("tumor", mass)), draw(("tumor", neoplasm), name="scan 2")]
    table = LabelTable.ofSegmentations(nodes)
    assert [numbers(table, node) for node in nodes] == [[1], [1]]
    (warning,) = table.warnings
    assert "Neoplasm in scan 2" in warning and "Mass" in warning


def test_structures_that_a_later_scan_shows_to_be_one_are_joined(draw):
    nodes = [draw("spleen", "liver"), draw(("Hepar", LIVER)), draw(("liver", LIVER)), draw("SPLEEN")]
    table = LabelTable.ofSegmentations(nodes)
    assert [(s.name, s.terminology) for s in table.structures] == [("spleen", TISSUE), ("liver", LIVER)]
    assert [numbers(table, node) for node in nodes] == [[1, 2], [2], [2], [1]]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_named_like_one_structure_and_classified_like_another_is_a_fault_in_any_order(draw, order):
    nodes = [draw(("liver", LIVER)), draw(("liver", SPLEEN), name="wrong"), draw(("spleen", SPLEEN))]
    assert faults([nodes[i] for i in order])


def test_all_faults_are_told_at_once(draw):
    wrong = draw("a", "A ", "", "Background", name="scan 7")
    texts = faults([draw("b"), wrong])
    assert len(texts) == 3 and all(text.startswith("scan 7: ") for text in texts)
    assert any("'a' and 'A '" in text for text in texts)
    assert any("no name" in text for text in texts) and any("'background'" in text for text in texts)


def test_more_structures_than_the_backend_can_hold_are_a_fault(draw):
    names = [f"s{i}" for i in range(250)]
    assert len(LabelTable.ofSegmentations([draw(*names[:249])])) == 249
    assert "at most 249" in faults([draw(*names)])[0]


def test_which_scans_make_the_table(mrml):
    scanList, empty = ScanList(mrml.scene), np.zeros((4, 5, 6), bool)
    filled = ~empty
    cases = [("labelled", filled), ("test", filled), ("begun", empty), ("not used", filled), ("ignored", filled)]
    roles = [Role.LABELLED, Role.TEST, Role.SEGMENT, Role.SEGMENT, Role.IGNORE]
    for (name, mask), role in zip(cases, roles, strict=True):
        volume = mrml.volume(np.zeros((4, 5, 6), np.int16), name)
        mrml.segmentation({f"of {name}": mask}, volume)
        scanList.setRole(volume, role)
    names = [s.name for s in LabelTable.ofScans(scanList.scans()).structures]
    assert names == ["of labelled", "of test", "of begun"]


# --- new segmentations --------------------------------------------------------------------------


def test_a_new_segmentation_has_the_studys_structures_on_the_scans_grid_and_in_its_place(mrml, draw):
    study = mrml.patient("Ana", "CT of the abdomen")
    matrix = np.array([[0, 0, 3, 5], [-0.7, 0, 0, 6], [0, 0.8, 0, 7], [0, 0, 0, 1.0]])
    volume = mrml.volume(np.zeros((4, 5, 6), np.int16), "scan 肝", matrix, study)
    moved = mrml.transform(np.array([[0, -1, 0, 9], [1, 0, 0, 8], [0, 0, 1, 7], [0, 0, 0, 1.0]]))
    volume.SetAndObserveTransformNodeID(moved.GetID())
    table = LabelTable([Structure(1, "Leber ä", (0.2, 0.4, 0.6), LIVER), Structure(4, "脾", (1.0, 0.0, 0.5))])
    node = table.newSegmentation(mrml.scene, volume)
    assert [s.GetName() for s in mrml.segments(node)] == ["Leber ä", "脾"]
    assert [s.GetColor() for s in mrml.segments(node)] == [(0.2, 0.4, 0.6), (1.0, 0.0, 0.5)]
    assert [s.GetTerminology() for s in mrml.segments(node)] == [LIVER, TISSUE]
    assert not any(s.GetNameAutoGenerated() or s.GetColorAutoGenerated() for s in mrml.segments(node))
    assert node.GetParentTransformNode() is moved and node.GetDisplayNode() is not None
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    geometry = slicer.vtkOrientedImageData()
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = node.GetSegmentation().GetConversionParameter(parameter)
    assert slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    ras = slicer.vtkMatrix4x4() if hasattr(slicer, "vtkMatrix4x4") else __import__("vtk").vtkMatrix4x4()
    geometry.GetImageToWorldMatrix(ras)
    assert np.allclose([[ras.GetElement(r, c) for c in range(4)] for r in range(4)], matrix, atol=1e-6)
    assert geometry.GetExtent() == (0, 5, 0, 4, 0, 3)
    hierarchy = mrml.subjectHierarchy
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert LabelTable.ofSegmentations([node]).warnings == []


def test_drawing_into_a_new_segmentation_lands_on_the_scans_voxels(mrml):
    volume = mrml.volume(np.zeros((4, 5, 6), np.int16), ijkToRas=np.diag([-0.5, 0.7, 2.0, 1]))
    node = LabelTable([Structure(1, "a", (1, 0, 0)), Structure(2, "b", (0, 1, 0))]).newSegmentation(mrml.scene, volume)
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2:4, 3] = True
    drawn = mrml.segmentation({"x": mask}, volume)
    image = drawn.GetSegmentation().GetNthSegment(0).GetRepresentation("Binary labelmap")
    second = node.GetSegmentation().GetNthSegmentID(1)
    assert mrml.segmentationsLogic.SetBinaryLabelmapToSegment(image, node, second)
    assert np.array_equal(mrml.mask(node, "b", volume), mask) and not mrml.mask(node, "a", volume).any()


def test_without_structures_a_new_segmentation_is_empty(mrml):
    volume = mrml.volume(np.zeros((4, 5, 6), np.int16))
    assert mrml.segments(LabelTable([]).newSegmentation(mrml.scene, volume)) == []


def test_a_volume_outside_the_subject_hierarchy_is_no_obstacle(mrml):
    volume = mrml.volume(np.zeros((4, 5, 6), np.int16))
    hierarchy = mrml.subjectHierarchy
    hierarchy.RemoveItem(hierarchy.GetItemByDataNode(volume), False)
    node = LabelTable([Structure(1, "a", (1, 0, 0))]).newSegmentation(mrml.scene, volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == hierarchy.GetSceneItemID()


def test_missing_structures_are_added_and_none_twice(draw):
    table = LabelTable.ofSegmentations([draw("a", ("liver", LIVER), "c")])
    node = draw("C", ("Leber", LIVER))
    assert table.addMissing(node) == ["a"]
    assert table.addMissing(node) == []
    assert numbers(table, node) == [3, 2, 1]


# --- files --------------------------------------------------------------------------------------


def test_structures_are_written_for_the_backend_with_name_color_and_terminology():
    table = LabelTable([Structure(1, "Größe", (0.2, 0.4, 0.6), LIVER), Structure(7, "肝", (1.0, 1.0, 1.0))])
    labels = json.loads(json.dumps(table.toDataset()))
    assert labels["0"] == "background"
    assert labels["1"] == {"name": "Größe", "color": [51, 102, 153], "terminology": LIVER}
    assert labels["7"] == {"name": "肝", "color": [255, 255, 255]}


def test_the_table_of_a_run_is_read_from_its_folder(tmp_path):
    labels = [
        {"value": 0, "name": "background", "color": [0, 0, 0], "terminology": None},
        {"value": 2, "name": "Milz", "color": [255, 0, 51], "terminology": SPLEEN},
    ]
    (tmp_path / "study.json").write_text(json.dumps({"labels": {"labels": labels}}), encoding="utf-8")
    assert LabelTable.ofRun(tmp_path).structures == [Structure(2, "Milz", (1.0, 0.0, 0.2), SPLEEN)]
