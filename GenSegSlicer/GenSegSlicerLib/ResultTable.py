"""The table of results: one row a predicted scan, with volumes, confidence and, where a reference exists, Dice."""

import json
from pathlib import Path

import slicer
import vtk

from GenSegSlicerLib.Batches import isBatch
from GenSegSlicerLib.ImageFile import ImageFile
from GenSegSlicerLib.RunAbout import RunAbout
from GenSegSlicerLib.Translate import _

ATTRIBUTE = "GenSegSlicer.Results"  # on the table node; value: JSON list of the case of every row
SURE, FAIRLY_SURE = 0.85, 0.65  # confidence from which these words are used, as in the report


class ResultTable:
    """Keeps one vtkMRMLTableNode in `scene`, found again by its attribute GenSegSlicer.Results.

    Cells are text with fixed decimals, empty where nothing is known, because a table of numbers would show "nan".
    `problem` is a sentence about what could not be read, or "".
    """

    def __init__(self, scene):
        self.scene = scene
        self.problem = ""
        self._shares = {}  # (label map, when it was written) → {structure: percent of the image}

    def update(self, folder: Path | str, names: dict[str, str] | None = None, model: Path | str | None = None):
        """Bring the table to RUN/predictions/index.json and RUN/metrics.json. → the node; None where there is none yet.

        folder: a run, or a folder that `genseg predict` wrote (index.json directly inside) with the run `model`.
        names: {case: name of the scan for people}. The scans about which the model is least sure come first: they
        deserve the first look. Of a run without predictions the table is empty; where the list of predictions cannot
        be read it stays as it was.
        """
        self.problem = ""
        folder = Path(folder)
        batch = isBatch(folder)
        masks = folder if batch else folder / "predictions"
        index = self._read(masks / "index.json")
        cases = [case for case in index.get("cases") or [] if isinstance(case, dict) and case.get("case")]
        if self.problem or (not cases and self.node() is None):
            return self.node()
        metrics = {} if batch else self._read(folder / "metrics.json")
        cases.sort(key=lambda case: -(case.get("uncertainty") if case.get("uncertainty") is not None else -1))
        about = RunAbout(model or folder)
        shares = [self._share(masks / str(case.get("path")), case, about) for case in cases]
        columns = _columns(cases, _structures(about, cases), _dice(metrics), names or {}, shares)
        node = self.node() or self._make()
        change = node.StartModify()
        node.SetAttribute(ATTRIBUTE, json.dumps([case["case"] for case in cases]))
        node.SetAndObserveTable(_tableOf(columns))
        node.EndModify(change)
        return node

    def node(self):
        """The table node in the scene, or None."""
        for i in range(self.scene.GetNumberOfNodesByClass("vtkMRMLTableNode")):
            node = self.scene.GetNthNodeByClass(i, "vtkMRMLTableNode")
            if node.GetAttribute(ATTRIBUTE):
                return node
        return None

    def cases(self) -> list[str]:
        """The case of every row, from the top; [] without a table."""
        node = self.node()
        return json.loads(node.GetAttribute(ATTRIBUTE)) if node is not None else []

    def remove(self) -> None:
        """Take the table out of the scene."""
        node = self.node()
        if node is not None:
            self.scene.RemoveNode(node)

    def _make(self):
        node = slicer.vtkMRMLTableNode()
        node.SetName(_("Segmentation results"))
        node.SetLocked(True)
        node.SetUseColumnTitleAsColumnHeader(True)
        node.SetAttribute(ATTRIBUTE, "[]")
        return self.scene.AddNode(node)

    def _share(self, file, case, about):
        """{structure: percent of the image} of an image without physical size; {} for all others."""
        volumes = case.get("volumes_ml") or {}
        if not volumes or any(value is not None for value in volumes.values()):
            return {}
        try:
            key = file, file.stat().st_mtime_ns
            if key not in self._shares:
                voxels = ImageFile(file).upright()
                values = {structure["name"]: structure["value"] for structure in about.structures}
                self._shares[key] = {name: 100 * float((voxels == value).mean()) for name, value in values.items()}
            return self._shares[key]
        except (OSError, RuntimeError) as error:
            self.problem = _("{file} cannot be read: {error}").format(file=file, error=error)
            return {}

    def _read(self, file):
        """Content of a JSON file; {} where there is none, or, with `problem` set, where it cannot be read."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            self.problem = _("{file} cannot be read: {error}").format(file=file, error=error)
            return {}


def confidenceWords(confidence: float | None) -> str:
    """0 (unsure) to 1 (sure), or None → what it means for the person who checks the scan."""
    if confidence is None:
        return _("not measured")
    if confidence > SURE:
        return _("sure")
    return _("fairly sure") if confidence > FAIRLY_SURE else _("unsure, look closely")


def _structures(about, cases):
    """Names of all structures, in the order of the study; those that it does not know at the end."""
    names = [structure["name"] for structure in about.structures]
    found = [name for case in cases for name in case.get("volumes_ml") or {}]
    return list(dict.fromkeys(names + found))


def _dice(metrics):
    """{case: {structure: Dice or None}} of the test scans."""
    cases = (metrics.get("test") or {}).get("cases") or []
    labels = {case["case"]: case.get("labels") or {} for case in cases}
    return {case: {name: values.get("dice") for name, values in found.items()} for case, found in labels.items()}


def _columns(cases, structures, dice, names, shares):
    """→ {title: [text a row]}; columns without any content are left out, but for name and confidence."""
    confidence = [None if c.get("uncertainty") is None else 1 - c["uncertainty"] for c in cases]
    columns = {
        _("Scan"): [names.get(case["case"]) or case["case"] for case in cases],
        _("Confidence"): [confidenceWords(value) for value in confidence],
        _("Confidence (0 to 1)"): [_number(value, 2) for value in confidence],
    }
    optional = {
        _("{structure} (ml)").format(structure=name): [_number((c.get("volumes_ml") or {}).get(name), 2) for c in cases]
        for name in structures
    }
    for name in structures:
        title = _("{structure} (% of the image)").format(structure=name)
        optional[title] = [_number(share.get(name), 1) for share in shares]
    scores = [dice.get(case["case"], {}) for case in cases]
    optional[_("Dice")] = [_number(_mean(score.values()), 2) for score in scores]
    if len(structures) > 1:
        for name in structures:
            title = _("Dice {structure}").format(structure=name)
            optional[title] = [_number(score.get(name), 2) for score in scores]
    return columns | {title: cells for title, cells in optional.items() if any(cells)}


def _mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value, decimals):
    return "" if value is None else f"{value:.{decimals}f}"


def _tableOf(columns):
    table = vtk.vtkTable()
    for title, cells in columns.items():
        array = vtk.vtkStringArray()
        array.SetName(title)
        for cell in cells:
            array.InsertNextValue(cell)
        table.AddColumn(array)
    return table
