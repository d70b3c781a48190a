"""The table of results in a real table node."""

import numpy as np
import pytest
from GenSegSlicerLib.ResultTable import ResultTable, confidenceWords
from written_run import WrittenRun, writeImage


def rows(node):
    """[{column: text}] as Slicer's table view shows them."""
    table = node.GetTable()
    names = [table.GetColumnName(i) for i in range(table.GetNumberOfColumns())]
    return [
        {name: table.GetValue(row, i).ToString() for i, name in enumerate(names)}
        for row in range(table.GetNumberOfRows())
    ]


@pytest.fixture
def run(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.predict("a", {"head": 1.8234, "tail": 1.5}, 0.08)
    run.predict("b", {"head": 12.0, "tail": 0.0}, 0.42)
    run.predict("c", {"head": 2.0, "tail": 1.0}, None)
    run.metrics({"b": {"head": 0.9, "tail": None}, "a": {"head": 0.8, "tail": 0.7}})
    return run


def test_a_row_tells_volumes_confidence_and_dice_the_least_sure_scan_first(run, mrml):
    table = ResultTable(mrml.scene)
    node = table.update(run.folder, {"a": "Müller 2", "b": "扫描"})
    assert table.cases() == ["b", "a", "c"]
    unsure, sure, unknown = rows(node)
    assert sure == {
        "Scan": "Müller 2", "Confidence": "sure", "Confidence (0 to 1)": "0.92", "head (ml)": "1.82",
        "tail (ml)": "1.50", "Dice": "0.75", "Dice head": "0.80", "Dice tail": "0.70",
    }  # fmt: skip
    assert (unsure["Scan"], unsure["Confidence"], unsure["tail (ml)"]) == ("扫描", "unsure, look closely", "0.00")
    assert (unsure["Dice"], unsure["Dice tail"]) == ("0.90", ""), "what has no meaning does not count in the mean"
    assert (unknown["Scan"], unknown["Confidence"], unknown["Confidence (0 to 1)"]) == ("c", "not measured", "")
    assert unknown["Dice"] == ""
    assert node.GetLocked() and node.GetUseColumnTitleAsColumnHeader()


def test_without_references_there_are_no_columns_for_dice(run, mrml):
    (run.folder / "metrics.json").unlink()
    assert not any("Dice" in name for name in rows(ResultTable(mrml.scene).update(run.folder))[0])


def test_structures_stand_in_the_order_of_the_study_also_where_a_scan_lacks_one(tmp_path, mrml):
    run = WrittenRun(tmp_path / "run")
    run.predict("a", {"tail": 1.0}, 0.1)
    run.predict("b", {"tail": 2.0, "head": 3.0}, 0.2)
    first, second = rows(ResultTable(mrml.scene).update(run.folder))
    assert list(first)[3:] == ["head (ml)", "tail (ml)"]
    assert (second["head (ml)"], first["head (ml)"]) == ("", "3.00")


def test_of_photographs_the_share_of_the_image_is_told_instead_of_a_volume(tmp_path, mrml):
    run = WrittenRun(tmp_path / "run")
    labels = np.zeros((10, 20), np.uint8)
    labels[:5, :5] = 1
    writeImage(run.folder / "predictions" / "a.png", labels)
    run.predict("a", {"head": None, "tail": None}, 0.2, "a.png")
    run.predict("gone", {"head": None, "tail": None}, 0.1, "gone.png")
    table = ResultTable(mrml.scene)
    there, gone = rows(table.update(run.folder))
    assert (there["head (% of the image)"], there["tail (% of the image)"]) == ("12.5", "0.0")
    assert gone["head (% of the image)"] == "" and "gone.png" in table.problem
    assert not any("ml" in name for name in there)


def test_the_node_is_reused_and_found_again_and_removed(run, mrml):
    before = mrml.scene.GetNumberOfNodes()
    node = ResultTable(mrml.scene).update(run.folder)
    run.predict("d", {"head": 1.0, "tail": 1.0}, 0.3)
    table = ResultTable(mrml.scene)
    assert table.update(run.folder) is node and table.cases() == ["b", "d", "a", "c"] and len(rows(node)) == 4
    assert mrml.scene.GetNumberOfNodes() == before + 1
    table.remove()
    assert mrml.scene.GetNumberOfNodes() == before and table.node() is None and table.cases() == []


def test_a_run_without_predictions_never_shows_those_of_another(run, mrml, tmp_path):
    table = ResultTable(mrml.scene)
    fresh = WrittenRun(tmp_path / "fresh")
    assert table.update(fresh.folder) is None
    node = table.update(run.folder)
    assert table.update(fresh.folder) is node and rows(node) == [] and table.cases() == []


def test_a_list_that_cannot_be_read_leaves_the_table_and_says_so(run, mrml):
    table = ResultTable(mrml.scene)
    node = table.update(run.folder)
    (run.folder / "predictions" / "index.json").write_text("{", encoding="utf-8")
    assert table.update(run.folder) is node and len(rows(node)) == 3 and "index.json" in table.problem


def test_metrics_that_cannot_be_read_cost_only_the_dice(run, mrml):
    (run.folder / "metrics.json").write_text("{", encoding="utf-8")
    table = ResultTable(mrml.scene)
    found = rows(table.update(run.folder))
    assert len(found) == 3 and "Dice" not in found[0] and "metrics.json" in table.problem


def test_confidence_is_said_in_the_words_of_the_report():
    said = [confidenceWords(value) for value in (1.0, 0.86, 0.85, 0.66, 0.65, 0.0, None)]
    assert said == ["sure", "sure", *["fairly sure"] * 2, *["unsure, look closely"] * 2, "not measured"]
