"""The curves of a run in real table, series and chart nodes."""

import time

import numpy as np
import pytest
from GenSegSlicerLib.Curves import ATTRIBUTE, MOST, Curves
from vtk.util.numpy_support import vtk_to_numpy


@pytest.fixture
def curves():
    """As `RunProgress` gives them, short enough to be drawn as they are."""
    return {
        "dice/training": [(10 * i, 0.1 + 0.02 * i) for i in range(1, 21)],
        "dice/validation": [(16, 0.3), (32, 0.5), (48, 0.6)],
        "loss/real": [(10, 1.5), (20, 1.0)],
        "loss/synthetic": [(20, 1.2)],
        "meta/synthetic_weight": [(16, 0.7), (32, 0.9)],
        "meta/strength/rotate": [(16, 1.0), (32, 0.9)],
        "meta/strength/never_heard_of": [(16, 1.0), (32, 1.1)],
        "learning_rate": [(10, 0.001)],
        "something/new": [(10, 1.0)],
    }


def tagged(scene):
    nodes = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())]
    return [node for node in nodes if node.GetAttribute(ATTRIBUTE)]


def lines(chart):
    """{legend: [n, 2]} as Slicer's plot view reads them: by the columns that the series name."""
    found = {}
    for i in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(i)
        table = series.GetTableNode().GetTable()
        columns = [table.GetColumnByName(name) for name in (series.GetXColumnName(), series.GetYColumnName())]
        found[series.GetName()] = np.column_stack([vtk_to_numpy(column) for column in columns])
    return found


def test_every_curve_is_drawn_with_exactly_its_own_points(mrml, curves):
    charts = Curves(mrml.scene).update(curves)
    assert {key: chart.GetTitle() for key, chart in charts.items()} == {
        "dice": "How well it segments",
        "loss": "Errors",
        "learned": "What it has learned about other scans",
        "variation": "How strongly it varies synthetic scans",
    }
    drawn = lines(charts["dice"])
    wanted = {"Training scans, changed at random": "dice/training", "Scans held back for a while": "dice/validation"}
    assert list(drawn) == list(wanted)
    for words, name in wanted.items():
        assert np.allclose(np.unique(drawn[words], axis=0), curves[name]), "a shorter curve gets no invented points"
    assert list(lines(charts["variation"])) == ["never heard of", "turning"]


def test_the_chart_says_what_its_axes_are_and_dice_runs_from_0_to_1(mrml, curves):
    chart = Curves(mrml.scene).update(curves)["dice"]
    assert chart.GetXAxisTitle() == "Training step" and "Dice" in chart.GetYAxisTitle()
    assert not chart.GetYAxisRangeAuto() and chart.GetYAxisRange() == (0.0, 1.0) and chart.GetLegendVisibility()


def test_an_update_reuses_every_node_and_tells_the_chart(mrml, curves):
    keeper = Curves(mrml.scene)
    before = keeper.update(curves)["dice"]
    ids = {node.GetID() for node in tagged(mrml.scene)}
    told = []
    before.AddObserver("AnyEvent", lambda caller, event: told.append(event))
    curves["dice/validation"].append((640, 0.7))
    after = keeper.update(curves)["dice"]
    assert after is before and {node.GetID() for node in tagged(mrml.scene)} == ids
    assert lines(after)["Scans held back for a while"].max(axis=0).tolist() == [640, 0.7]
    assert told, "else the plot view would not draw it"
    assert after.GetXAxisRange() == (0.0, 640.0), "a view that is open would not widen its axis by itself"


def test_curves_come_and_go_with_what_the_run_tells(mrml, curves):
    keeper = Curves(mrml.scene)
    assert keeper.update({}) == {} and tagged(mrml.scene) == []
    keeper.update({"dice/training": [(10, 0.1)]})
    assert list(keeper.charts()) == ["dice"]
    keeper.update(curves)
    assert list(keeper.charts()) == ["dice", "loss", "learned", "variation"]
    del curves["dice/validation"], curves["loss/real"], curves["loss/synthetic"]
    charts = keeper.update(curves)
    assert list(lines(charts["dice"])) == ["Training scans, changed at random"] and "loss" not in keeper.charts()
    kept = [node.GetAttribute(ATTRIBUTE).split()[1] for node in tagged(mrml.scene)]
    assert set(kept) == {"dice", "learned", "variation"} and kept.count("dice") == 3, "table, chart and one series"


def test_values_that_are_no_numbers_are_left_out(mrml):
    points = [(10, 0.1), (20, float("nan")), (30, float("inf")), (40, 0.4)]
    chart = Curves(mrml.scene).update({"dice/training": points, "loss/real": [(10, float("nan"))]})
    assert list(chart) == ["dice"]
    assert next(iter(lines(chart["dice"]).values())).tolist() == [[10, 0.1], [40, 0.4]]


def test_a_long_noisy_run_is_thinned_and_smoothed_and_stays_true_and_quick(mrml):
    steps = np.arange(10, 500_010, 10)
    noise = np.random.default_rng(0).normal(0, 0.3, len(steps))
    truth = np.exp(-steps / 100_000)
    curve = {"loss/real": list(zip(steps.tolist(), (truth + noise).tolist(), strict=True))}
    keeper = Curves(mrml.scene)
    keeper.update(curve)
    begin = time.perf_counter()
    drawn = lines(keeper.update(curve)["loss"])["Real scans"]
    assert time.perf_counter() - begin < 1.0
    assert len(drawn) == MOST and drawn[-1, 0] == steps[-1]
    inside = slice(MOST // 30, -(MOST // 30))  # at the ends the mean is lopsided
    assert np.abs(drawn[inside, 1] - np.exp(-drawn[inside, 0] / 100_000)).max() < 0.05


def test_remove_takes_all_of_it_and_nothing_else(mrml, curves):
    before = mrml.scene.GetNumberOfNodes()
    own = mrml.scene.AddNewNodeByClass("vtkMRMLTableNode", "mine")
    keeper = Curves(mrml.scene)
    keeper.update(curves)
    keeper.remove()
    assert mrml.scene.GetNumberOfNodes() == before + 1 and mrml.scene.IsNodePresent(own)
    assert keeper.charts() == {}


def test_what_a_user_deleted_is_made_again(mrml, curves):
    keeper = Curves(mrml.scene)
    keeper.update(curves)
    for kind in ("vtkMRMLPlotChartNode", "vtkMRMLTableNode", "vtkMRMLPlotSeriesNode"):
        mrml.scene.RemoveNode(mrml.scene.GetFirstNodeByClass(kind))
        drawn = lines(keeper.update(curves)["dice"])
        assert [len(np.unique(points, axis=0)) for points in drawn.values()] == [20, 3]


def test_after_the_scene_was_saved_and_loaded_the_same_nodes_go_on(mrml, curves, tmp_path):
    Curves(mrml.scene).update(curves)
    count = len(tagged(mrml.scene))
    mrml.open(mrml.save(tmp_path / "saved"))
    assert len(tagged(mrml.scene)) == count
    charts = Curves(mrml.scene).update(curves)
    assert len(tagged(mrml.scene)) == count
    assert [len(np.unique(points, axis=0)) for points in lines(charts["dice"]).values()] == [20, 3]


def test_no_two_lines_of_a_chart_look_alike(mrml):
    names = [*"abcdefghi", "low_resolution"]
    charts = Curves(mrml.scene).update({f"meta/strength/{name}": [(1, 1.0)] for name in names})
    series = [charts["variation"].GetNthPlotSeriesNode(i) for i in range(len(names))]
    assert len({(node.GetColor(), node.GetLineStyle()) for node in series}) == len(names)
    assert all("_" not in node.GetName() for node in series)
