"""What a study does in one scene: label, write out, read back, look at. No Qt, no process, no views."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from GenSegSlicerLib.Batches import Batches, isBatch
from GenSegSlicerLib.CaseVolumes import STUDIES, CaseVolumes
from GenSegSlicerLib.Curves import Curves
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import readJson
from GenSegSlicerLib.LabelTable import LabelTable
from GenSegSlicerLib.PredictionImport import PredictionImport, runKey
from GenSegSlicerLib.ResultTable import ResultTable
from GenSegSlicerLib.Runs import Run, RunList
from GenSegSlicerLib.Scans import WRITTEN, Role, ScanList, isPrediction, madeBy
from GenSegSlicerLib.StudyExport import StudyExport
from GenSegSlicerLib.Suggest import Suggest
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import nodesOf

_SETTLED = 3600  # seconds after which copies of scans without a run are stranded
# What may go wrong with the files of one case; the others go on.
_TROUBLE = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError)


class Session:
    """`scene` is Slicer's; `loadVolume(path)` returns the volume node of a file, or None where it is no image."""

    def __init__(self, scene, loadVolume: Callable):
        self.scene, self.loadVolume = scene, loadVolume
        self.scans = ScanList(scene)
        self.volumes = CaseVolumes(scene, self.scans, loadVolume)
        self.export = StudyExport(scene, self.scans)
        self.predictions = PredictionImport(scene, self.scans)
        self.suggest = Suggest()
        self.curves = Curves(scene)
        self.table = ResultTable(scene)
        self._brought: dict[tuple, str] = {}  # (run, case) → when the file was written that came last
        self._told: set[tuple] = set()  # (run, case, when its file was written) of faults that were told

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

    def dropStudy(self, runFolder: Path) -> None:
        """Remove the copies of the scans that were written for a run, where they are in their usual place."""
        shutil.rmtree(runFolder.parent / STUDIES / runFolder.name, ignore_errors=True)

    def strandedStudies(self, folder: Path) -> list[Path]:
        """Copies of scans in the folder for results that no run there belongs to: after a crash, or a run was moved.

        Those of the last hour do not count: another Slicer may be about to start a run with them.
        """
        try:
            entries = sorted(entry for entry in (folder / STUDIES).iterdir() if entry.is_dir())
            alone = [entry for entry in entries if not (folder / entry.name).is_dir()]
            return [entry for entry in alone if time.time() - entry.stat().st_mtime > _SETTLED]
        except OSError:
            return []

    def removeRun(self, run: Run, active: Path | None) -> None:
        """Delete a run, the copies of its scans, and the masks of more scans that its model has segmented.

        Raises StudyFaults; then nothing was deleted.
        """
        batches = Batches(run.path)
        batches.checkRemovable()
        RunList(run.path.parent).remove(run, active)
        batches.remove()
        self.dropStudy(run.path)

    # --- back ---

    def index(self, folder: Path | None) -> dict:
        """predictions/index.json of a run, or index.json of a folder that `genseg predict` wrote; {} without one."""
        for file in [folder / "predictions" / "index.json", folder / "index.json"] if folder is not None else []:
            content = readJson(file)
            if content:
                return {**content, "folder": file.parent}
        return {}

    def importPredictions(
        self,
        folder: Path,
        model: Path | None = None,
        loadScans: bool = False,
        again: bool = False,
        repeat: bool = True,
        leaveAbsent: bool = False,
        only: str | None = None,
    ) -> Iterator[Fault | None]:
        """Bring what is new in a folder of predictions into the scene, at most one case with every step.

        Yields None for a case that came, or every Fault of one that could not; what is there unchanged, was accepted,
        or was deleted by the user gives no step. `folder`: a run, or a folder that `genseg predict` wrote with the
        run `model` (where it is not given, the one remembered). `loadScans`: scans that are not in the scene are
        loaded from their files. `again`: bring deleted ones, too. `repeat`: tell faults that were told before.
        `leaveAbsent`: a scan that is not in the scene is no fault. `only`: this case alone.
        """
        index = self.index(folder)
        if not index.get("cases"):
            return
        try:
            table = LabelTable.ofRun(self._model(folder, model))
            cases = list(index["cases"])
        except _TROUBLE as error:
            if repeat or (runKey(folder), "", "") not in self._told:
                rule = _("The structures of the run cannot be read ({reason}).").format(reason=error)
                yield Fault(folder.name, rule, _("Train again."))
            self._told.add((runKey(folder), "", ""))
            return
        for case in cases:
            stamp = _stamp(case, index["folder"], folder)
            if not repeat and stamp in self._told:
                continue
            try:
                found = _Case.of(case, index["folder"], folder)
                if self._isSettled(found, again) or only not in (None, found.name):
                    continue
                if leaveAbsent and not self.volumes.isThere(folder, found.name, found.images):
                    continue
                self._bring(found, table, loadScans)
                faults: list[Fault | None] = [None]
            except StudyFaults as error:
                faults = list(error.faults)
            except _TROUBLE as error:
                faults = [_notBrought(case, error)]
            if faults != [None]:
                self._told.add(stamp)
            yield from faults

    def sizeOfAbsent(self, folder: Path) -> int:
        """Bytes of the scans of a folder of predictions that would have to be loaded from their files."""
        cases = [_Case.of(one, folder, folder) for one in self.index(folder).get("cases") or [] if _isWhole(one)]
        absent = [case for case in cases if not self.volumes.isThere(folder, case.name, case.images)]
        return sum(Path(image).stat().st_size for case in absent for image in case.images if Path(image).is_file())

    def _isSettled(self, case: "_Case", again: bool) -> bool:
        """Whether nothing is to be done: it is there, or the user has decided otherwise."""
        waiting = []
        for node in nodesOf(self.scene, "vtkMRMLSegmentationNode"):
            if madeBy(node) != case.key:
                continue
            if not isPrediction(node):
                return True  # accepted: it is the user's now
            if self.volumeOf(node) is not None:
                waiting.append(node)
        if any(node.GetAttribute(WRITTEN) == case.written for node in waiting):
            return True
        if again or case.key not in self._brought or not self.volumes.isThere(case.folder, case.name, case.images):
            return False
        return not waiting or self._brought[case.key] == case.written

    def _bring(self, case: "_Case", table: LabelTable, loadScans: bool) -> None:
        volume = self.volumes.find(case.folder, case.name, case.images, loadScans)
        node = self.predictions.load(case.file, volume, table, case.folder, case.name)
        node.SetAttribute(WRITTEN, case.written)
        self._brought[case.key] = case.written

    def _model(self, folder: Path, model: Path | None) -> Path:
        """The run whose table of structures holds for a folder of predictions."""
        known = Batches.modelOf(folder) if model is None and isBatch(folder) else model
        return Path(known or folder)

    def volumeOf(self, segmentationNode):
        """The volume on which a segmentation lies, or None."""
        return segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())

    def predictionOf(self, folder: Path | None, case: str) -> tuple:
        """(volume, predicted segmentation) of a case of a run or a batch.

        None for what is not in the scene, or was accepted; both None where the scan in the scene is another one.
        """
        if folder is None:
            return None, None
        volume = self.volumes.known(folder, case, self._imagesOf(folder, case))
        if volume is None:
            return None, None
        nodes = [node for node in self.scans.predictionsOf(volume) if madeBy(node) == (runKey(folder), case)]
        return volume, next(iter(nodes), None)

    def _imagesOf(self, folder: Path, case: str) -> list[str]:
        """The image files of a case of a batch; a run's cases are known by their ids."""
        cases = (self.index(folder).get("cases") or []) if isBatch(folder) else []
        return next((_images(one) for one in cases if isinstance(one, dict) and one.get("case") == case), [])

    def showSurface(self, segmentation) -> bool:
        """Before a segmentation is shown: make its surface, where it is one of a volume. → whether it has one."""
        return self.predictions.showSurface(segmentation)

    def accept(self, segmentation, volume) -> None:
        """The prediction becomes the scan's own, a labeled one. Its run does not bring it again."""
        self.predictions.accept(segmentation, volume)

    # --- to look at ---

    def nodesOfCase(self, case: str, runFolder: Path | None = None):
        """(volume, its own segmentation) of a case in the scene, or None; with a run only if it is that run's scan."""
        volume = self.scans.byCaseId(case)
        if volume is not None and runFolder is not None and not self.volumes.isTheScanOf(runFolder, case, volume):
            return None
        segmentation = None if volume is None else self.scans.segmentationOf(volume)
        return None if segmentation is None else (volume, segmentation)

    def results(self, folder: Path | None, model: Path | None = None) -> tuple[list[str], list[str], list[list[str]]]:
        """(titles, case of every row, rows of text) of the predictions of a run or a batch, the least sure first.

        `model`: the run that made a batch, where it is not the one remembered.
        """
        if folder is None:
            return [], [], []
        node = self.table.update(folder, self._namesOf(folder), self._model(folder, model))
        if node is None:
            return [], [], []
        columns = [node.GetTable().GetColumn(i) for i in range(node.GetNumberOfColumns())]
        cells = [[column.GetValue(row) for column in columns] for row in range(node.GetNumberOfRows())]
        return [column.GetName() for column in columns], self.table.cases(), cells

    def _namesOf(self, folder: Path) -> dict[str, str]:
        """{case: name for people}: as the scan is called in the scene where it is surely this one."""
        if isBatch(folder):
            names = self.volumes.namesOfBatch(folder)
        else:
            names = {case: str(entry["name"]) for case, entry in self.volumes.study(folder).items() if "name" in entry}
            if not names:  # an older run, of which only the ids are known
                names = {self.scans.caseId(scan.volumeNode): scan.name for scan in self.scans.scans()}
        for node in nodesOf(self.scene, "vtkMRMLSegmentationNode"):
            run, case = madeBy(node) or ("", "")
            volume = self.volumeOf(node) if run == runKey(folder) else None
            if volume is not None:
                names[case] = volume.GetName()
        return names

    def suggestNext(self, runFolder: Path | None) -> tuple:
        """(scan or None, reason): which scan to label next."""
        return self.suggest.suggestNext(self.scans.scans(), self.index(runFolder) or None)

    def studyText(self) -> str:
        """How many scans of each kind there are, in a sentence."""
        roles = [scan.role for scan in self.scans.scans()]
        text = _("Labeled scans: {labelled}. To segment: {segment}. Test: {test}.")
        return text.format(
            labelled=roles.count(Role.LABELLED), segment=roles.count(Role.SEGMENT), test=roles.count(Role.TEST)
        )


@dataclass(frozen=True)
class _Case:
    """One entry of an index. `folder`: the run or batch; `written`: when the file was written, "" without one."""

    folder: Path
    name: str
    file: Path
    images: list[str]
    written: str

    @classmethod
    def of(cls, entry: dict, predictions: Path, folder: Path) -> "_Case":
        """Raises KeyError or TypeError where the entry is broken."""
        file = predictions / entry["path"]
        return cls(folder, str(entry["case"]), file, _images(entry), _writtenAt(file))

    @property
    def key(self) -> tuple[str, str]:
        return runKey(self.folder), self.name


def _isWhole(entry) -> bool:
    return isinstance(entry, dict) and "case" in entry and isinstance(entry.get("path"), str)


def _stamp(entry, predictions: Path, folder: Path) -> tuple[str, str, str]:
    """(run, case, when its file was written) of an entry, also of a broken one."""
    if not isinstance(entry, dict):
        return runKey(folder), str(entry), ""
    return runKey(folder), str(entry.get("case")), _writtenAt(predictions / str(entry.get("path")))


def _writtenAt(file: Path) -> str:
    try:
        return str(file.stat().st_mtime_ns)
    except OSError:
        return ""


def _images(entry: dict) -> list[str]:
    images = entry.get("images")
    return [str(image) for image in images] if isinstance(images, list) else []


def _notBrought(entry, error: Exception) -> Fault:
    case = str(entry.get("case") or "") if isinstance(entry, dict) else ""
    if isinstance(error, MemoryError):
        rule = _("The memory does not suffice for its mask.")
        return Fault(case or _("study"), rule, _("Close other programs or scans, and press 'Load'."))
    rule = _("Its mask could not be brought into the scene ({reason}).")
    reason = f"{type(error).__name__}: {error}"
    return Fault(case or _("study"), rule.format(reason=reason), _("Run the model again for this scan."))
