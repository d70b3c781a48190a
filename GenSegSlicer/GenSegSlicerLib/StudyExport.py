"""From the scene to a study folder: dataset.json with images and masks on the scans' own voxels."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from GenSegSlicerLib import ScanChecks
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import readJson, writeJson
from GenSegSlicerLib.LabelTable import LabelTable
from GenSegSlicerLib.Scans import Role, Scan, ScanList
from GenSegSlicerLib.SegmentMasks import BendingTransform, SegmentMasks
from GenSegSlicerLib.StudyFiles import writePhoto, writeVolume
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import ijkToRas, lookUp

Progress = Callable[[int, int, str], None]  # scans done, scans in all, name of the scan

_SPLITS = {Role.LABELLED: "training", Role.SEGMENT: "unlabeled", Role.TEST: "test"}
_MARK = "GenSegSlicer"  # in dataset.json: this folder was written here and may be replaced


class StudyExport:
    """Writes the scans of a scene for the backend. Parent transforms of volumes stay out of it: files are in the
    volume's own frame, and what comes back is put under the same transform. `warnings` is filled by check and write.
    """

    def __init__(self, scene, scanList: ScanList):
        self.scene = scene
        self.scanList = scanList
        self.warnings: list[str] = []

    def check(self) -> list[Fault]:
        """Every fault of the study; nothing is written."""
        return self._study(None, None)[0]

    def write(self, folder: Path, progress: Progress | None = None) -> Path:
        """Write `folder` and return the path of its dataset.json. Raises StudyFaults; then nothing is left behind.

        A folder that was written here before is replaced; any other folder that holds something is a fault.
        """
        folder = Path(folder).absolute()
        if not _mayReplace(folder):
            rule = _("The folder {folder} holds other files.").format(folder=folder)
            raise StudyFaults([Fault(_("study"), rule, _("Choose an empty or a new folder."))])
        temporary = folder.with_name(f".part-{folder.name}-{os.getpid()}")
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            faults, content = self._study(temporary, progress)
            if faults:
                raise StudyFaults(faults)
            writeJson(temporary / "dataset.json", {"name": folder.name, "generator": _MARK, **content})
            _replace(temporary, folder)
        except (OSError, RuntimeError) as error:
            rule = _("The study could not be written to {folder} ({reason}).").format(folder=folder, reason=error)
            remedy = _("Free space on the disk, or choose a folder in which you may write.")
            raise StudyFaults([Fault(_("study"), rule, remedy)]) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder / "dataset.json"

    def _study(self, folder: Path | None, progress: Progress | None) -> tuple[list[Fault], dict]:
        """Check everything and, with a folder, write its files → (faults, what belongs in dataset.json).

        Where there are faults neither the files nor the content are of use.
        """
        scans = [scan for scan in self.scanList.scans() if scan.role != Role.IGNORE]
        patients = ScanChecks.patientsOf(self.scene, scans)
        faults = list(ScanChecks.studyFaults(scans, patients))
        table = LabelTable([])
        try:
            table = LabelTable.ofScans(scans)
        except StudyFaults as error:
            faults += error.faults
        work = _Work(self.scanList, table, folder, photos=_allPhotos(scans), broken=bool(faults))
        for number, scan in enumerate(scans):
            if progress is not None:
                progress(number, len(scans), scan.name)
            work.take(scan, patients.get(scan.volumeNode.GetID()))
        faults += work.faults
        self.warnings = [*table.warnings, *work.warnings()]
        if progress is not None:
            progress(len(scans), len(scans), "")
        return faults, {"labels": table.toDataset(), **work.lists}


class _Work:
    """One pass over the scans: faults, files (with a folder) and the lists of dataset.json."""

    def __init__(self, scanList: ScanList, table: LabelTable, folder: Path | None, photos: bool, broken: bool):
        self.scanList, self.table, self.folder, self.photos, self.broken = scanList, table, folder, photos, broken
        self.faults: list[Fault] = []
        self.lists: dict[str, list] = {split: [] for split in _SPLITS.values()}
        self._seen: set[int] = set()  # values that some labeled scan shows
        self._blank: list[str] = []  # test scans on which nothing is drawn
        if folder is not None:
            (folder / "images").mkdir()
            (folder / "labels").mkdir()

    def take(self, scan: Scan, patient: str | None) -> None:
        """Check one scan and write it, as long as no fault has made the folder useless."""
        found = ScanChecks.imageFaults(scan)
        labels = None
        if not found and scan.role in (Role.LABELLED, Role.TEST):
            labels = self._labels(scan, found)
        self.faults += found
        if self.folder is None or self.broken or self.faults:
            return
        caseId = self.scanList.caseId(scan.volumeNode)
        entry = {"id": caseId, "name": scan.name, "image": f"images/{caseId}{self._suffix}"}
        entry["token"] = ScanChecks.scanToken(scan.volumeNode)  # the run's predictions are for this scan alone
        self._write(scan, ScanChecks.withoutOpacity(scan.volumeNode), entry["image"])
        if labels is not None:
            entry["label"] = f"labels/{caseId}{self._suffix}"
            self._write(scan, labels, entry["label"])
        if patient is not None:
            entry["group"] = patient
        self.lists[_SPLITS[scan.role]].append(entry)

    @property
    def _suffix(self) -> str:
        return ".png" if self.photos else ".nrrd"

    def _write(self, scan: Scan, array: np.ndarray, name: str) -> None:
        if self.photos:
            writePhoto(array, self.folder / name)
        else:
            writeVolume(array, ijkToRas(scan.volumeNode), self.folder / name)

    def _labels(self, scan: Scan, found: list[Fault]) -> np.ndarray | None:
        """The label map KJI with the table's values, uint8; None for a test scan without one. Adds to `found`."""
        drawn = scan.segmentationNode is not None and scan.drawn
        if not drawn:
            if scan.role == Role.LABELLED:
                rule = _("It is labeled, but nothing is drawn on it.")
                remedy = _("Press 'Label this scan' and draw, or set its use to To segment.")
                found.append(Fault(scan.name, rule, remedy))
            elif scan.segmentationNode is not None:
                self._blank.append(scan.name)
            return None
        try:
            masks = SegmentMasks.of(scan.segmentationNode, scan.volumeNode)
        except BendingTransform:
            rule = _("Scan and segmentation lie under different transforms, and one of them bends space.")
            remedy = _("Harden the transforms in the module Transforms, or draw on the hardened scan.")
            found.append(Fault(scan.name, rule, remedy))
            return None
        found += ScanChecks.maskFaults(scan, masks)
        values = self.table.values(scan.segmentationNode)
        lookup = np.array([0, *(values.get(i, 0) for i in masks.segmentIds)], np.uint8)
        if scan.role == Role.LABELLED:
            self._seen.update(values[i] for i in masks.segmentIds if masks.kept[i] and i in values)
        return lookUp(lookup, masks.labels)

    def warnings(self) -> list[str]:
        text = _("'{name}' is drawn on no labeled scan, so it cannot be learned.")
        absent = [text.format(name=s.name) for s in self.table.structures if s.value not in self._seen]
        text = _("Nothing is drawn on the test scan '{name}': it is segmented, but not measured.")
        return absent + [text.format(name=name) for name in self._blank]


def _allPhotos(scans: list[Scan]) -> bool:
    """PNG is used where it loses nothing: photographs only, all held the same way up. Else every file has its place."""
    if not scans or not all(scan.isPhotograph for scan in scans):
        return False
    signs = {tuple(np.sign(np.round(ijkToRas(scan.volumeNode)[:3, :3], 6)).ravel()) for scan in scans}
    return len(signs) == 1


def _mayReplace(folder: Path) -> bool:
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    if not any(folder.iterdir()):
        return True
    return readJson(folder / "dataset.json").get("generator") == _MARK


def _replace(temporary: Path, folder: Path) -> None:
    """Rename; what was there before is removed only after the new folder stands."""
    old = folder.with_name(f".old-{folder.name}-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
