"""The curves of a training run as tables and charts of the scene."""

from dataclasses import dataclass

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from GenSegSlicerLib.Translate import _

ATTRIBUTE = "GenSegSlicer.Curves"  # on every node that this file makes; value: what it is
MOST = 240  # points of a line; longer ones are averaged over equal runs of steps
COLORS = (  # told apart also by people who see few colors (Okabe and Ito)
    (0.00, 0.45, 0.70), (0.90, 0.62, 0.00), (0.00, 0.62, 0.45), (0.80, 0.47, 0.65),
    (0.84, 0.37, 0.00), (0.34, 0.71, 0.91), (0.35, 0.35, 0.35), (0.60, 0.50, 0.10),
)  # fmt: skip


@dataclass(frozen=True)
class _Group:
    """One chart. `curves`: {name in the events: words}; a name that ends in / stands for all that begin with it."""

    key: str
    title: str
    axis: str
    curves: dict
    bounds: tuple | None = None  # of the vertical axis


def _groups():
    """The charts, in the order in which they are worth looking at."""
    learned = {
        "meta/synthetic_weight": _("How much a synthetic scan counts (real = 1)"),
        "meta/synthetic_share": _("Share of steps with synthetic scans"),
        "synthetic/kept": _("Share of synthetic scans that were usable"),
        "meta/consistency": _("How much a scan without labels counts"),
        "mix/sure": _("Share of scans without labels that it is sure of"),
    }
    return (
        _Group("dice", _("How well it segments"), _("Overlap (Dice, 1 is perfect)"), {
            "dice/training": _("Training scans, changed at random"),
            "dice/validation": _("Scans held back for a while"),
        }, (0.0, 1.0)),
        _Group("loss", _("Errors"), _("Error (lower is better)"), {
            "loss/real": _("Real scans"),
            "loss/synthetic": _("Synthetic scans"),
            "loss/mixed": _("Mixed scans"),
            "loss/validation": _("Scans held back for a while"),
        }),
        _Group("learned", _("What it has learned about other scans"), _("Learned value"), learned),
        _Group("variation", _("How strongly it varies synthetic scans"), _("Strength"), {
            "meta/strength/": "{name}",
            "meta/style_spread": _("look"),
            "meta/noise": _("fine detail"),
        }),
    )  # fmt: skip


class Curves:
    """Keeps one table, its plot series and one chart a group in `scene`, from the first point on.

    The nodes are found again by their attribute GenSegSlicer.Curves, also after the scene was saved and loaded; of a
    node that somebody removed a new one is made. Curves with names that no chart knows are left out.
    """

    def __init__(self, scene):
        self.scene = scene

    def update(self, curves: dict[str, list]) -> dict:
        """Bring the scene to `curves`, {name: [(step, value)]}. → {group: chart node} of groups with points.

        Groups are "dice", "loss", "learned" and "variation". Values that are no numbers are left out; long curves are
        thinned and noisy ones smoothed for the eye.
        """
        charts = {}
        for group in _groups():
            lines = _linesOf(group, curves)
            if lines:
                charts[group.key] = self._draw(group, lines)
            else:
                self._removeGroup(group.key)
        return charts

    def charts(self) -> dict:
        """→ {group: chart node} as they are in the scene now."""
        found = {group.key: self._find("vtkMRMLPlotChartNode", f"chart {group.key}") for group in _groups()}
        return {key: node for key, node in found.items() if node is not None}

    def remove(self) -> None:
        """Take every node that was made for curves out of the scene."""
        for node in self._tagged(lambda value: True):
            self.scene.RemoveNode(node)

    def _draw(self, group, lines):
        """Table, series and chart of a group. lines: {name: (words, float [n, 2] of steps and values)}."""
        table = self._node("vtkMRMLTableNode", f"table {group.key}")
        table.SetName(_("Training: {title}").format(title=group.title))
        table.SetLocked(True)
        table.SetAndObserveTable(_tableOf(lines.values()))
        series = []
        for index, (name, (words, _points)) in enumerate(lines.items()):
            node = self._node("vtkMRMLPlotSeriesNode", f"series {group.key} {name}")
            if node.GetTableNodeID() != table.GetID() or node.GetName() != words:
                _style(node, table, words, index)
            series.append(node)
        kept = {node.GetID() for node in series}
        for node in self._tagged(lambda value: value.startswith(f"series {group.key} ")):
            if node.GetID() not in kept:
                self.scene.RemoveNode(node)
        chart = self._chart(group, series)
        _frame(chart, [points for _words, points in lines.values()], group.bounds)
        return chart

    def _chart(self, group, series):
        chart = self._node("vtkMRMLPlotChartNode", f"chart {group.key}")
        wanted = [node.GetID() for node in series]
        shown = [chart.GetNthPlotSeriesNodeID(i) for i in range(chart.GetNumberOfPlotSeriesNodes())]
        if shown == wanted and chart.GetTitle() == group.title:
            return chart  # its table has told it already
        change = chart.StartModify()
        chart.SetName(group.title)
        chart.SetTitle(group.title)
        chart.SetXAxisTitle(_("Training step"))
        chart.SetYAxisTitle(group.axis)
        chart.SetLegendVisibility(True)
        chart.SetTitleFontSize(16)
        chart.SetAxisTitleFontSize(12)
        chart.SetLegendFontSize(12 if len(series) < 6 else 9)  # a long legend would hide the lines
        chart.SetGridVisibility(True)
        chart.RemoveAllPlotSeriesNodeIDs()
        for nodeId in wanted:
            chart.AddAndObservePlotSeriesNodeID(nodeId)
        chart.EndModify(change)
        return chart

    def _node(self, className, what):
        """The node for one thing, found again or made."""
        node = self._find(className, what)
        if node is None:
            node = getattr(slicer, className)()
            node.SetAttribute(ATTRIBUTE, what)
            node.SetHideFromEditors(className == "vtkMRMLPlotSeriesNode")  # nobody chooses a single line
            node = self.scene.AddNode(node)
        return node

    def _find(self, className, what):
        return next((node for node in self._tagged(lambda value: value == what) if node.IsA(className)), None)

    def _tagged(self, wanted):
        """Nodes in the scene whose attribute passes `wanted`."""
        nodes = [self.scene.GetNthNode(i) for i in range(self.scene.GetNumberOfNodes())]
        return [node for node in nodes if node.GetAttribute(ATTRIBUTE) and wanted(node.GetAttribute(ATTRIBUTE))]

    def _removeGroup(self, key):
        for node in self._tagged(lambda value: key in value.split()[:2]):
            self.scene.RemoveNode(node)


def _frame(chart, lines, bounds):
    """Axes from the first step to the last: a view that is open does not widen them by itself when points come."""
    values = np.concatenate([points[:, 1] for points in lines])
    low, high = bounds or (float(values.min()), float(values.max()))
    margin = 0.0 if bounds else 0.05 * (high - low) or 0.5
    change = chart.StartModify()
    chart.SetXAxisRangeAuto(False)
    chart.SetXAxisRange(0.0, max(1.0, max(float(points[-1, 0]) for points in lines)))
    chart.SetYAxisRangeAuto(False)
    chart.SetYAxisRange(low - margin, high + margin)
    chart.EndModify(change)


def _linesOf(group, curves):
    """→ {name: (words, float [n, 2])} of the curves of a group that have points, in the order of the group."""
    lines = {}
    for known, words in group.curves.items():
        names = sorted(name for name in curves if name.startswith(known)) if known.endswith("/") else [known]
        for name in names:
            points = np.array(curves.get(name) or [], dtype=float).reshape(-1, 2)
            points = points[np.isfinite(points).all(axis=1)]
            if len(points):
                lines[name] = (words.format(name=_strength(name[len(known) :])), _smoothed(_thinned(points)))
    return lines


def _strength(name):
    """What a random change does, in words; a name that is not known is shown as it is."""
    known = {
        "rotate": _("turning"),
        "scale": _("stretching"),
        "elastic": _("bending"),
        "shape": _("shapes of other scans"),
        "brightness": _("brightness"),
        "contrast": _("contrast"),
        "gamma": _("gray curve"),
        "noise": _("noise"),
        "blur": _("blur"),
        "low_resolution": _("coarse resolution"),
    }
    return known.get(name, name.replace("_", " "))


def _thinned(points):
    """[n, 2] → at most MOST rows, each the mean over a run of rows. The last step is the last step told."""
    if len(points) <= MOST:
        return points
    thin = np.array([run.mean(axis=0) for run in np.array_split(points, MOST)])
    thin[-1, 0] = points[-1, 0]
    return thin


def _smoothed(points):
    """[n, 2] → the same with every value averaged over the fifteenth of the points around it."""
    reach = len(points) // 30
    if reach < 1:
        return points
    smooth = points.copy()
    for i in range(len(points)):
        smooth[i, 1] = points[max(i - reach, 0) : i + reach + 1, 1].mean()
    return smooth


def _tableOf(lines):
    """vtkTable with two columns a line: its steps and its values.

    Curves have points at different steps; shorter ones repeat their last point, which draws nothing new, because a
    column of a table cannot be shorter than the others.
    """
    table = vtk.vtkTable()
    lines = list(lines)
    longest = max(len(points) for _words, points in lines)
    for words, points in lines:
        filled = np.vstack([points, np.repeat(points[-1:], longest - len(points), axis=0)])
        for title, column in ((_stepColumn(words), filled[:, 0]), (words, filled[:, 1])):
            array = numpy_to_vtk(np.ascontiguousarray(column), deep=True, array_type=vtk.VTK_DOUBLE)
            array.SetName(title)
            table.AddColumn(array)
    return table


def _stepColumn(words):
    return _("Training step: {curve}").format(curve=words)


def _style(node, table, words, index):
    change = node.StartModify()
    node.SetName(words)
    node.SetAndObserveTableNodeID(table.GetID())
    node.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    node.SetXColumnName(_stepColumn(words))
    node.SetYColumnName(words)
    styles = slicer.vtkMRMLPlotSeriesNode.LineStyleSolid, slicer.vtkMRMLPlotSeriesNode.LineStyleDash
    node.SetLineStyle(styles[index // len(COLORS) % 2])  # where the colors begin anew
    node.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
    node.SetLineWidth(2.5)
    node.SetColor(*COLORS[index % len(COLORS)])
    node.EndModify(change)
