"""The scans of a scene: their roles, their segmentations and the ids of their files. All of it is kept in the scene."""

import json
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from GenSegSlicerLib.SegmentMasks import drawingState, drawnSegments
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import hasVoxels, isPhotograph, nodesOf

ROLE = "GenSegSlicer.Role"  # attribute of a volume
CASE = "GenSegSlicer.Case"  # attribute of a volume, and of a prediction until it is accepted
RUN = "GenSegSlicer.Run"  # attribute of a prediction: its run folder
ACCEPTED = "GenSegSlicer.Accepted"  # attribute of a prediction that became the user's: JSON [run folder, case]
WRITTEN = "GenSegSlicer.Written"  # attribute of a prediction: when its file was written, in ns since 1970
DRAWN = "GenSegSlicer.Drawn"  # attribute of a prediction: what it held when it came, to notice corrections
GALLERY = "GenSegSlicer.Gallery"  # attribute of all that PairView makes, value: what it is; no scan of the study
DETACHED = "GenSegSlicer.Detached"  # attribute of a volume: no segmentation is its own, whatever refers to it
SEGMENTATION = "GenSegSlicer.Segmentation"  # node reference from a volume to its own segmentation

_LONGEST_ID = 40
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)$", re.IGNORECASE)  # no file may be called so on Windows


class Role(StrEnum):
    """What a scan is for."""

    LABELLED = "labelled"  # its segmentation is what the model learns from
    SEGMENT = "segment"  # the model shall segment it
    TEST = "test"  # the model is measured on it, and never learns from it
    IGNORE = "ignore"


@dataclass(frozen=True)
class Scan:
    """One volume of the scene. `drawn`: how many of its segments hold something. `dims`: 2 for a single slice."""

    volumeNode: object
    segmentationNode: object | None
    role: Role
    state: str
    drawn: int
    isPhotograph: bool
    dims: int

    @property
    def name(self) -> str:
        return self.volumeNode.GetName() or self.volumeNode.GetID()


class ScanList:
    """Reads and writes what the scene says about its scans. Reading changes nothing but the ids of `caseId`."""

    def __init__(self, scene):
        self.scene = scene
        self._drawnBefore: dict[str, tuple[tuple, int]] = {}  # segmentation's id → (state, count)

    def scans(self) -> list[Scan]:
        """Every scalar and color volume, in the order of the scene. Label maps and hidden nodes do not count."""
        owners = self._owners()
        return [self._scan(volume, owners) for volume in self.volumes()]

    def volumes(self) -> list:
        return [node for node in nodesOf(self.scene, "vtkMRMLScalarVolumeNode") if _isScan(node)]

    def scan(self, volumeNode) -> Scan:
        """The scan of one volume."""
        return self._scan(volumeNode, self._owners())

    def setRole(self, volumeNode, role: Role | str) -> None:
        volumeNode.SetAttribute(ROLE, Role(role).value)

    def setSegmentation(self, volumeNode, segmentationNode) -> None:
        """Make a segmentation the scan's own; a prediction becomes the user's by it. None: the scan has none."""
        if segmentationNode is None:
            volumeNode.RemoveNodeReferenceIDs(SEGMENTATION)
            volumeNode.SetAttribute(DETACHED, "1")
            return
        volumeNode.RemoveAttribute(DETACHED)
        if isPrediction(segmentationNode):
            made = [segmentationNode.GetAttribute(RUN), segmentationNode.GetAttribute(CASE)]
            segmentationNode.SetAttribute(ACCEPTED, json.dumps(made))
        for attribute in (RUN, CASE, DRAWN, WRITTEN):
            segmentationNode.RemoveAttribute(attribute)
        volumeNode.SetNodeReferenceID(SEGMENTATION, segmentationNode.GetID())

    def segmentationOf(self, volumeNode):
        """The scan's own segmentation or None: the chosen one, else the first drawn on it; never a prediction."""
        return self._segmentationOf(volumeNode, self._owners())

    def predictionsOf(self, volumeNode) -> list:
        """Predictions of this volume that wait to be accepted, in the order of the scene."""
        return [node for node in nodesOf(self.scene, "vtkMRMLSegmentationNode") if _predicts(node, volumeNode)]

    def drawn(self, segmentationNode) -> int:
        """How many segments hold something; counted again only after a change."""
        key, state = segmentationNode.GetID(), drawingState(segmentationNode)
        before = self._drawnBefore.get(key)
        if before is None or before[0] != state:
            before = state, len(drawnSegments(segmentationNode))
            self._drawnBefore[key] = before
        return before[1]

    # --- ids -------------------------------------------------------------------------------------

    def caseId(self, volumeNode) -> str:
        """The scan's id: ASCII, usable as a file name, unique in the scene; made once and saved with the scene.

        A copy of a volume carries the id of its original; it gets one of its own.
        """
        own = volumeNode.GetAttribute(CASE)
        if own and self.byCaseId(own) in (volumeNode, None):
            return own
        taken = {str(node.GetAttribute(CASE)).casefold() for node in self._nodesWithCase() if node is not volumeNode}
        base = _asFileName(volumeNode.GetName() or "")
        candidates = [base] if base else []
        number = 2 if base else 1
        while not candidates or candidates[-1].casefold() in taken:
            candidates.append(f"{base or 'scan'}-{number}")
            number += 1
        volumeNode.SetAttribute(CASE, candidates[-1])
        return candidates[-1]

    def byCaseId(self, caseId: str):
        """The volume of this id, or None; where copies share one, the original (it comes first in the scene)."""
        for node in nodesOf(self.scene, "vtkMRMLVolumeNode"):
            if str(node.GetAttribute(CASE) or "").casefold() == caseId.casefold():
                return node
        return None

    def _nodesWithCase(self) -> list:
        """Ids of predictions count too, so that the id of a removed volume does not go to another one."""
        kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode")
        return [node for kind in kinds for node in nodesOf(self.scene, kind) if node.GetAttribute(CASE)]

    # --- one scan --------------------------------------------------------------------------------

    def _scan(self, volume, owners: dict[str, list]) -> Scan:
        segmentation = self._segmentationOf(volume, owners)
        drawn = self.drawn(segmentation) if segmentation is not None else 0
        chosen = volume.GetAttribute(ROLE)
        known = chosen in list(Role)
        image = volume.GetImageData()
        return Scan(
            volumeNode=volume,
            segmentationNode=segmentation,
            role=Role(chosen) if known else Role.LABELLED if drawn else Role.SEGMENT,
            state=self._state(volume, segmentation, drawn),
            drawn=drawn,
            isPhotograph=isPhotograph(volume),
            dims=2 if hasVoxels(image) and min(image.GetDimensions()) == 1 else 3,
        )

    def _state(self, volume, segmentation, drawn: int) -> str:
        if not hasVoxels(volume.GetImageData()):
            return _("No image in it")
        if drawn == 1:
            return _("1 structure drawn")
        if drawn > 1:
            return _("{count} structures drawn").format(count=drawn)
        if self.predictionsOf(volume):
            return _("Segmented by the model, to be looked at")
        return _("Nothing drawn yet") if segmentation is not None else _("Not segmented")

    def _owners(self) -> dict[str, list]:
        """{volume's id: segmentations drawn on it}, without predictions and hidden nodes."""
        owners: dict[str, list] = {}
        for node in nodesOf(self.scene, "vtkMRMLSegmentationNode"):
            if not node.GetHideFromEditors() and not isPrediction(node):
                owners.setdefault(_referenceVolumeId(node), []).append(node)
        return owners

    def _segmentationOf(self, volume, owners: dict[str, list]):
        chosen = volume.GetNodeReference(SEGMENTATION)
        if chosen is not None and not isPrediction(chosen):
            return chosen
        if volume.GetAttribute(DETACHED):
            return None
        candidates = owners.get(volume.GetID(), [])
        return next((node for node in candidates if self.drawn(node)), candidates[0] if candidates else None)


def isPrediction(segmentationNode) -> bool:
    """Whether a segmentation was made by a run and not accepted yet."""
    return bool(segmentationNode.GetAttribute(RUN))


def madeBy(segmentationNode) -> tuple[str, str] | None:
    """(run folder, case) of a prediction, accepted or not; None for what no run has made."""
    if isPrediction(segmentationNode):
        return segmentationNode.GetAttribute(RUN), segmentationNode.GetAttribute(CASE) or ""
    try:
        run, case = json.loads(segmentationNode.GetAttribute(ACCEPTED) or "null")
        return str(run), str(case)
    except (ValueError, TypeError):
        return None


def _isScan(node) -> bool:
    if node.GetHideFromEditors() or node.GetAttribute(GALLERY) or node.IsA("vtkMRMLLabelMapVolumeNode"):
        return False
    if node.IsA("vtkMRMLVectorVolumeNode"):
        return True
    return not (node.IsA("vtkMRMLTensorVolumeNode") or node.IsA("vtkMRMLDiffusionWeightedVolumeNode"))


def _predicts(segmentationNode, volumeNode) -> bool:
    if not isPrediction(segmentationNode):
        return False
    return _referenceVolumeId(segmentationNode) == volumeNode.GetID()


def _referenceVolumeId(segmentationNode) -> str:
    role = segmentationNode.GetReferenceImageGeometryReferenceRole()
    return segmentationNode.GetNodeReferenceID(role) or ""


def _asFileName(name: str) -> str:
    """A name in letters, digits, - and _ of ASCII; '' where nothing of it remains."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode("ascii")
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", plain)[:_LONGEST_ID].strip("-_")
    if not re.search(r"[A-Za-z0-9]", plain):
        return ""
    return f"scan-{plain}" if _RESERVED.match(plain) else plain
