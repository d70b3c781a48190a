"""Which volume of the scene a prediction belongs to. A name alone never decides: other patients' files share it."""

import json
import os
from collections.abc import Callable
from itertools import product
from pathlib import Path

from GenSegSlicerLib.Batches import isBatch
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import readJson
from GenSegSlicerLib.PredictionImport import runKey
from GenSegSlicerLib.ScanChecks import scanToken
from GenSegSlicerLib.Scans import CASE, ScanList
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import hasVoxels, nodesOf

BATCHES = "GenSegSlicer.Batches"  # attribute of a volume: JSON list of [folder of predictions, case, token]
STUDIES = "studies"  # beside the runs: what each was trained on


class CaseVolumes:
    """Finds volumes, or loads them with `loadVolume(path)`, which returns None where a file is no image.

    Of a run: the volume with the case's id, whose voxels must be those that the run was given (the token in its
    dataset.json; runs without tokens leave that to the grid). Of a batch: the volume that came from the very file.
    """

    def __init__(self, scene, scanList: ScanList, loadVolume: Callable):
        self.scene, self.scanList, self.loadVolume = scene, scanList, loadVolume
        self._tokens: dict[str, tuple] = {}  # volume's id → (stamp, token, tokens in other orders or None)
        self._studies: dict[Path, tuple] = {}  # dataset.json → (when it was written, {case: entry})

    def find(self, folder: Path, case: str, images: list[str], load: bool = False):
        """The volume of a case. `load`: from its file where it is not in the scene. Raises StudyFaults."""
        if isBatch(folder):
            return self._known(folder, case, images) or self._loaded(folder, case, images, load)
        volume = self.scanList.byCaseId(case)
        if volume is None:
            return self._loaded(folder, case, images, load)
        if not self.isTheScanOf(folder, case, volume):
            rule = _("The scan in the scene has other voxels than the one the training was given.")
            remedy = _(
                "If it is another patient's, open an empty scene and press 'Load' there. "
                "If the scan was changed, train again or segment it with 'Segment more files'."
            )
            raise StudyFaults([Fault(volume.GetName() or case, rule, remedy)])
        return volume

    def known(self, folder: Path, case: str, images: list[str]):
        """The volume of a case where it is in the scene and surely the right one, else None."""
        if isBatch(folder):
            return self._known(folder, case, images)
        volume = self.scanList.byCaseId(case)
        return volume if volume is not None and self.isTheScanOf(folder, case, volume) else None

    def isThere(self, folder: Path, case: str, images: list[str]) -> bool:
        """Whether some volume stands for the case, without a look at its voxels."""
        if isBatch(folder):
            return self._known(folder, case, images) is not None
        return self.scanList.byCaseId(case) is not None

    def isTheScanOf(self, runFolder: Path, case: str, volumeNode) -> bool:
        """Whether a volume has the voxels that the run was given for the case; True where that was not noted."""
        token = self.study(runFolder).get(case, {}).get("token")
        return token is None or self._has(volumeNode, token)

    def study(self, runFolder: Path) -> dict[str, dict]:
        """{case: its entry in the dataset.json that a run was given}; {} where there is none."""
        for file in _datasets(Path(runFolder)):
            try:
                written = file.stat().st_mtime_ns
                if self._studies.get(file, (None,))[0] != written:
                    content = json.loads(file.read_text(encoding="utf-8"))
                    entries = [entry for split in ("training", "unlabeled", "test") for entry in content.get(split, [])]
                    named = {str(e["id"]): e for e in entries if isinstance(e, dict) and "id" in e}
                    self._studies[file] = written, named
                return self._studies[file][1]
            except (OSError, ValueError, TypeError, AttributeError):
                continue
        return {}

    def namesOfBatch(self, folder: Path) -> dict[str, str]:
        """{case: name of its volume in the scene} of what was remembered of a batch."""
        key = runKey(folder)
        pairs = [(entry, v) for v in nodesOf(self.scene, "vtkMRMLVolumeNode") for entry in _entries(v)]
        return {entry[1]: volume.GetName() for entry, volume in pairs if entry[0] == key}

    # --- batches ---

    def _known(self, folder: Path, case: str, images: list[str]):
        key = runKey(folder)
        for volume in self.scanList.volumes():
            for batch, remembered, token in _entries(volume):
                if (batch, remembered) == (key, case) and self._has(volume, token):
                    return volume
        for volume in self.scanList.volumes():
            if len(images) == 1 and _isFileOf(volume, images[0]):
                self._remember(volume, folder, case)
                return volume
        return None

    def _remember(self, volume, folder: Path, case: str) -> None:
        entry = [runKey(folder), case, self._token(volume)]
        kept = [other for other in _entries(volume) if other[:2] != entry[:2]]
        volume.SetAttribute(BATCHES, json.dumps([*kept, entry]))

    # --- files ---

    def _loaded(self, folder: Path, case: str, images: list[str], load: bool):
        """The scan from its file, with an id of its own. Raises StudyFaults."""
        if not load:
            rule = _("Its scan is not in the scene.")
            raise StudyFaults([Fault(case, rule, _("Choose the training under Results and press 'Load'."))])
        if not images or not Path(images[0]).exists():
            rule = _("Its scan is not in the scene, and its file is gone: {file}.")
            rule = rule.format(file=images[0] if images else case)
            raise StudyFaults([Fault(case, rule, _("Put the file back, and press 'Load' again."))])
        volume = self.loadVolume(Path(images[0]))
        if volume is None or not hasVoxels(volume.GetImageData()):
            rule = _("Its scan {file} cannot be opened.").format(file=images[0])
            raise StudyFaults([Fault(case, rule, _("Load it with 'Add files' and look at what is said."))])
        volume.RemoveAttribute(CASE)
        if isBatch(folder):
            self.scanList.caseId(volume)
            self._remember(volume, folder, case)
        elif self.isTheScanOf(folder, case, volume):
            volume.SetAttribute(CASE, case)
        else:
            self.scene.RemoveNode(volume)
            rule = _("The file {file} holds another scan than the training was given.").format(file=images[0])
            raise StudyFaults([Fault(case, rule, _("Put the original file back, or train again."))])
        return volume

    # --- tokens ---

    def _token(self, volume) -> str:
        return self._tokensOf(volume)[1]

    def _tokensOf(self, volume) -> tuple:
        image = volume.GetImageData()
        stamp = image.GetMTime() if image is not None else 0  # no two images have the same
        if self._tokens.get(volume.GetID(), (None,))[0] != stamp:
            self._tokens[volume.GetID()] = stamp, scanToken(volume), None
        return self._tokens[volume.GetID()]

    def _has(self, volume, token: str) -> bool:
        """Slicer turns the axes of some files around when it loads them: then the same voxels are in another order."""
        stamp, own, others = self._tokensOf(volume)
        if own == token:
            return True
        if not hasVoxels(volume.GetImageData()) or min(volume.GetImageData().GetDimensions()) == 1:
            return False  # the place of a single image is not compared, so its order must be the same
        if others is None:
            others = {scanToken(volume, flips) for flips in product((False, True), repeat=3) if any(flips)}
            self._tokens[volume.GetID()] = stamp, own, others
        return token in others


def _datasets(runFolder: Path) -> list[Path]:
    """Where the dataset.json of a run may lie: where it was when it began, or in its usual place."""
    usual = runFolder.parent / STUDIES / runFolder.name / "dataset.json"
    dataset = readJson(runFolder / "settings.json").get("dataset")
    if not isinstance(dataset, str):
        return [usual]
    told = Path(dataset)
    return [told / "dataset.json" if told.is_dir() else told, usual]


def _entries(volume) -> list[list[str]]:
    """[folder of predictions, case, token] of a volume, without what is broken."""
    try:
        entries = json.loads(volume.GetAttribute(BATCHES) or "[]")
        return [entry for entry in entries if isinstance(entry, list) and len(entry) == 3]
    except (ValueError, TypeError):
        return []


def _isFileOf(volume, file: str) -> bool:
    """Whether a volume came from this one file."""
    storage = volume.GetStorageNode()
    if storage is None or not storage.GetFileName() or storage.GetNumberOfFileNames() > 1:
        return False
    try:
        return os.path.samefile(storage.GetFullNameFromFileName(), file)
    except OSError:
        return False
