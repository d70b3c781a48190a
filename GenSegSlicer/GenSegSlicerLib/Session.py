"""What a study does in one scene: label, write out, read back, look at. No Qt, no process, no views."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from GenSegSlicerLib.Curves import Curves
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.LabelTable import LabelTable
from GenSegSlicerLib.PredictionImport import PredictionImport, runKey
from GenSegSlicerLib.ResultTable import ResultTable
from GenSegSlicerLib.Runs import Run, RunList
from GenSegSlicerLib.Scans import CASE, RUN, Role, ScanList, isPrediction
from GenSegSlicerLib.StudyExport import StudyExport
from GenSegSlicerLib.Suggest import Suggest
from GenSegSlicerLib.Translate import _

STUDIES = "studies"  # beside the runs: what each was trained on


class Session:
    """`scene` is Slicer's; `loadVolume(path)` returns the volume node of a file, or None where it is no image."""

    def __init__(self, scene, loadVolume: Callable):
        self.scene, self.loadVolume = scene, loadVolume
        self.scans = ScanList(scene)
        self.export = StudyExport(scene, self.scans)
        self.predictions = PredictionImport(scene, self.scans)
        self.suggest = Suggest()
        self.curves = Curves(scene)
        self.table = ResultTable(scene)
        self._imported: dict[tuple, float] = {}  # (run, case) → when the file was written that is in the scene

    # --- labeling ---

    def segmentationToLabel(self, volumeNode):
        """The scan's own segmentation, made if there is none, with all the study's structures. Raises StudyFaults."""
        table = LabelTable.ofScans(self.scans.scans())
        segmentation = self.scans.scan(volumeNode).segmentationNode
        if segmentation is None:
            segmentation = table.newSegmentation(self.scene, volumeNode)
            self.scans.setSegmentation(volumeNode, segmentation)
        else:
            table.addMissing(segmentation)
        return segmentation

    def structureNames(self) -> list[str]:
        """Names of the study's structures; [] where the segmentations contradict each other, which training reports."""
        try:
            return [structure.name for structure in LabelTable.ofScans(self.scans.scans()).structures]
        except StudyFaults:
            return []

    # --- out ---

    def newRun(self, folder: Path) -> tuple[Path, Path]:
        """(run folder, study folder) in the folder for results: named by the time, not there yet."""
        name = base = time.strftime("%Y-%m-%d_%H-%M-%S")
        number = 2
        while (folder / name).exists() or (folder / STUDIES / name).exists():
            name, number = f"{base}_{number}", number + 1
        return folder / name, folder / STUDIES / name

    def writeStudy(self, folder: Path, useUnlabeled: bool, progress: Callable | None = None) -> Path:
        """Write the scans for a training → its dataset.json. Raises StudyFaults; then nothing is left behind.

        Without `useUnlabeled` the scans to segment are segmented all the same, but nothing is learned from them.
        """
        file = self.export.write(folder, progress=progress)
        if not useUnlabeled:
            content = json.loads(file.read_text(encoding="utf-8"))
            waiting = [{k: v for k, v in case.items() if k != "group"} for case in content["unlabeled"]]
            content |= {"unlabeled": [], "test": content["test"] + waiting}
            temporary = file.with_name(".part-dataset.json")
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
            os.replace(temporary, file)
        return file

    def dropStudy(self, runFolder: Path) -> None:
        """Remove the copies of the scans that were written for a run, where they are in their usual place."""
        shutil.rmtree(runFolder.parent / STUDIES / runFolder.name, ignore_errors=True)

    def removeRun(self, run: Run, active: Path | None) -> None:
        """Delete a run and the copies of its scans. Raises StudyFaults; then nothing was deleted."""
        RunList(run.path.parent).remove(run, active)
        self.dropStudy(run.path)

    # --- back ---

    def index(self, folder: Path | None) -> dict:
        """predictions/index.json of a run, or index.json of a folder that `genseg predict` wrote; {} without one."""
        for file in [folder / "predictions" / "index.json", folder / "index.json"] if folder is not None else []:
            try:
                return {**json.loads(file.read_text(encoding="utf-8")), "folder": file.parent}
            except (OSError, ValueError):
                continue
        return {}

    def importPredictions(
        self, runFolder: Path, model: Path | None = None, loadScans: bool = False, surface: bool = True
    ) -> list[Fault]:
        """Bring what is new in a folder of predictions into the scene. → what could not be brought, one by one.

        `model`: the run whose label table holds, where `runFolder` is a folder of predictions alone. `loadScans`: scans
        that are not in the scene are loaded from their files.
        """
        index = self.index(runFolder)
        if not index.get("cases"):
            return []
        try:
            table = LabelTable.ofRun(model or runFolder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = _("The structures of the run cannot be read ({reason}).").format(reason=error)
            return [Fault(runFolder.name, rule, _("Train again."))]
        faults = []
        for case in index["cases"]:
            try:
                self._import(case, index["folder"], runFolder, table, loadScans, surface)
            except StudyFaults as error:
                faults += error.faults
        return faults

    def _import(self, case: dict, folder: Path, runFolder: Path, table: LabelTable, loadScans: bool, surface: bool):
        file = folder / case["path"]
        volume = self.volumeOf(case["case"], case.get("images") or [], loadScans)
        if volume is None:
            return
        key, written = (runKey(runFolder), case["case"]), file.stat().st_mtime if file.exists() else 0.0
        if self._imported.get(key) == (written, surface) and self._prediction(volume, runFolder, case["case"]):
            return
        self.predictions.load(file, volume, table, runFolder, case["case"], surface)
        self._imported[key] = (written, surface)

    def volumeOf(self, case: str, images: list[str], load: bool = False):
        """The volume of a case: by its id in the scene, else, with `load`, from its file; None where there is none."""
        volume = self.scans.byCaseId(case)
        if volume is None and load and images and Path(images[0]).exists():
            volume = self.loadVolume(Path(images[0]))
            if volume is not None:
                volume.SetAttribute(CASE, case)
        return volume

    def _prediction(self, volume, runFolder: Path | None, case: str):
        for node in self.scans.predictionsOf(volume):
            if runFolder is None or (node.GetAttribute(RUN) == runKey(runFolder) and node.GetAttribute(CASE) == case):
                return node
        return None

    def predictionOf(self, runFolder: Path | None, case: str) -> tuple:
        """(volume, predicted segmentation) of a case; None for what is not in the scene, or was accepted."""
        volume = self.scans.byCaseId(case)
        return (None, None) if volume is None else (volume, self._prediction(volume, runFolder, case))

    def accept(self, segmentation, volume) -> None:
        """The prediction becomes the scan's own, a labelled one."""
        self.predictions.accept(segmentation, volume)

    def discardPredictions(self, runFolder: Path) -> None:
        """Take a run's predictions out of the scene; what was accepted stays."""
        key = runKey(runFolder)
        for i in reversed(range(self.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))):
            node = self.scene.GetNthNodeByClass(i, "vtkMRMLSegmentationNode")
            if isPrediction(node) and node.GetAttribute(RUN) == key:
                self.scene.RemoveNode(node)

    # --- to look at ---

    def nodesOfCase(self, case: str):
        """(volume, its own segmentation) of a case in the scene, or None."""
        volume = self.scans.byCaseId(case)
        segmentation = None if volume is None else self.scans.segmentationOf(volume)
        return None if segmentation is None else (volume, segmentation)

    def results(self, runFolder: Path | None) -> tuple[list[str], list[str], list[list[str]]]:
        """(titles, case of every row, rows of text) of a run's predictions, the least sure first."""
        if runFolder is None:
            return [], [], []
        names = {self.scans.caseId(scan.volumeNode): scan.name for scan in self.scans.scans()}
        node = self.table.update(runFolder, names)
        if node is None:
            return [], [], []
        columns = [node.GetTable().GetColumn(i) for i in range(node.GetNumberOfColumns())]
        cells = [[column.GetValue(row) for column in columns] for row in range(node.GetNumberOfRows())]
        return [column.GetName() for column in columns], self.table.cases(), cells

    def suggestNext(self, runFolder: Path | None) -> tuple:
        """(scan or None, reason): which scan to label next."""
        return self.suggest.suggestNext(self.scans.scans(), self.index(runFolder) or None)

    def studyText(self) -> str:
        """How many scans of each kind there are, in a sentence."""
        roles = [scan.role for scan in self.scans.scans()]
        text = _("Labelled scans: {labelled}. To segment: {segment}. Test: {test}.")
        return text.format(
            labelled=roles.count(Role.LABELLED), segment=roles.count(Role.SEGMENT), test=roles.count(Role.TEST)
        )
