"""Predicted label maps back into the scene: as segmentations on the very voxels of their scan."""

import hashlib
import os
from pathlib import Path

import numpy as np
import slicer
from vtk.util.numpy_support import numpy_to_vtk

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.LabelTable import LabelTable, describe, lieOn, nameKey, placeBeside
from GenSegSlicerLib.Scans import CASE, DRAWN, RUN, Role, ScanList
from GenSegSlicerLib.SegmentMasks import BINARY_LABELMAP, BendingTransform, SegmentMasks, cornersOf
from GenSegSlicerLib.StudyFiles import readLabels, segmentNames, toMatrix
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import PHOTO_SUFFIXES, hasVoxels, ijkToRas, toVtk

CLOSED_SURFACE = "Closed surface"
_SHIFT = 0.01  # of a voxel: a larger distance between the grids is a fault


class PredictionImport:
    """Loads what a run has written for a scan. Each run has one prediction a scan, replaced by its next one."""

    def __init__(self, scene, scanList: ScanList):
        self.scene = scene
        self.scanList = scanList

    def load(self, file: Path, volumeNode, table: LabelTable, runFolder: Path, caseId: str):
        """The segmentation node of a label map file (.seg.nrrd and the like, .png) that belongs to `volumeNode`.

        `table` is the one the run was trained with (LabelTable.ofRun). A prediction that the user has changed stays
        as it is, and the new one is put beside it. A new one is not visible, and none has a surface (see
        `showSurface`). Raises StudyFaults; then the scene is as before, as it is with a new one after other errors.
        """
        labels = self._read(Path(file), volumeNode, table)
        image = _orientedImage(labels, volumeNode)
        earlier = self._earlier(volumeNode, runFolder, caseId)
        node = earlier if earlier is not None else self._new(volumeNode, runFolder, caseId)
        try:
            if node.GetDisplayNode() is None:
                node.CreateDefaultDisplayNodes()
                node.GetDisplayNode().SetVisibility(False)
            lieOn(node, volumeNode)
            wasModifying = node.StartModify()
            try:
                _fill(node, image, table)
            finally:
                node.EndModify(wasModifying)
            placeBeside(self.scene, node, volumeNode)
            node.SetAttribute(DRAWN, _fingerprint(node, volumeNode))
        except Exception:
            if earlier is None:
                for part in (node.GetDisplayNode(), node):
                    if part is not None:
                        self.scene.RemoveNode(part)
            raise
        return node

    def _new(self, volumeNode, runFolder: Path, caseId: str):
        name = self.scene.GenerateUniqueName(_("{scan} prediction").format(scan=volumeNode.GetName()))
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.SetAttribute(RUN, runKey(runFolder))
        node.SetAttribute(CASE, caseId)
        return node

    @staticmethod
    def showSurface(segmentationNode) -> bool:
        """Make the surface of a segmentation of a volume, where it has none yet. → whether it has one now."""
        segmentation = segmentationNode.GetSegmentation()
        if segmentation is None or segmentation.GetNumberOfSegments() == 0:
            return False
        volume = segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())
        if volume is not None and volume.GetImageData() is not None and min(volume.GetImageData().GetDimensions()) == 1:
            return False
        if not segmentation.ContainsRepresentation(CLOSED_SURFACE):
            segmentationNode.CreateClosedSurfaceRepresentation()
        return segmentation.ContainsRepresentation(CLOSED_SURFACE)

    def accept(self, segmentationNode, volumeNode) -> None:
        """The prediction becomes the scan's own segmentation, the scan a labeled one. No run replaces it any more."""
        self.scanList.setSegmentation(volumeNode, segmentationNode)
        self.scanList.setRole(volumeNode, Role.LABELLED)
        name = _("{scan} segmentation").format(scan=volumeNode.GetName())
        segmentationNode.SetName(self.scene.GenerateUniqueName(name))

    def corrected(self, segmentationNode, volumeNode) -> bool:
        """Whether the user has changed a prediction since it came: its voxels, segments or their names."""
        return segmentationNode.GetAttribute(DRAWN) != _fingerprint(segmentationNode, volumeNode)

    def _earlier(self, volumeNode, runFolder: Path, caseId: str):
        """This run's unchanged prediction of the scan, or None."""
        for node in self.scanList.predictionsOf(volumeNode):
            same = node.GetAttribute(RUN) == runKey(runFolder) and node.GetAttribute(CASE) == caseId
            if same and not self.corrected(node, volumeNode):
                return node
        return None

    def _read(self, file: Path, volumeNode, table: LabelTable) -> np.ndarray:
        """The label map KJI on the volume's grid, with the table's values."""
        name = volumeNode.GetName()
        try:
            labels, image = readLabels(file)
        except (RuntimeError, ValueError, OSError) as error:
            rule = _("Its prediction {file} cannot be read.").format(file=file)
            raise StudyFaults([Fault(name, rule, _("Run the model again for this scan."))]) from error
        try:
            labels = _onScan(labels, image, file, volumeNode)
        except _Elsewhere as error:
            rule = _("The prediction does not lie on this scan: {difference}.").format(difference=error)
            remedy = _("The scan was changed or replaced after the run began. Run the model again for this scan.")
            raise StudyFaults([Fault(name, rule, remedy)]) from error
        faults = _labelFaults(name, labels, segmentNames(image), table)
        if faults:
            raise StudyFaults(faults)
        return labels


class _Elsewhere(ValueError):
    """A label map lies on other voxels than the scan; its text says how they differ."""


def runKey(runFolder: Path) -> str:
    """How a run folder is written into the scene."""
    return Path(os.path.abspath(runFolder)).as_posix()


def _labelFaults(name: str, labels: np.ndarray, named: dict[int, str], table: LabelTable) -> list[Fault]:
    """Values the table does not know, and values that the file names differently."""
    remedy = _("Load it with the structures it was trained with, or run the model again.")
    faults = []
    known = {0: "", **{structure.value: structure.name for structure in table.structures}}
    unknown = [str(value) for value in np.unique(labels).tolist() if value not in known]
    if unknown:
        rule = _("The prediction holds numbers that no structure has: {values}.").format(values=", ".join(unknown))
        faults.append(Fault(name, rule, remedy))
    for value, text in named.items():
        if value in known and nameKey(known[value]) != nameKey(text):
            rule = _("Number {value} is '{found}' in the prediction but '{expected}' in the study.")
            faults.append(Fault(name, rule.format(value=value, found=text, expected=known[value]), remedy))
    return faults


def _onScan(labels: np.ndarray, image, file: Path, volumeNode) -> np.ndarray:
    """The label map with its axes in the order of the scan's. Raises _Elsewhere where it lies on other voxels.

    Slicer turns the slices of some files (left-handed ones) around when it loads them, the backend does not: then the
    same voxels lie in another order, which is put right here exactly, without interpolation.
    """
    scan = volumeNode.GetImageData()
    if not hasVoxels(scan):
        raise _Elsewhere(_("the scan holds no image"))
    shape, placed = scan.GetDimensions()[::-1], file.suffix.lower() not in PHOTO_SUFFIXES
    expected = ijkToRas(volumeNode)
    if placed and not _isPlane(image, labels):
        found = toMatrix(image)
        labels, found = _turned(labels, found, np.linalg.inv(expected) @ found)
    if labels.shape != shape:
        sizes = [" × ".join(map(str, size[::-1])) for size in (labels.shape, shape)]
        raise _Elsewhere(_("it has {found} voxels, the scan {expected}").format(found=sizes[0], expected=sizes[1]))
    if not placed:
        return labels  # photographs have no place in space
    if _isPlane(image, labels):
        if not np.allclose(image.GetSpacing()[:2], np.linalg.norm(expected[:3, :2], axis=0), rtol=1e-3, atol=0):
            raise _Elsewhere(_("its pixels have another size"))
        return labels
    distance = float(np.linalg.norm(((found - expected) @ cornersOf(shape))[:3], axis=0).max())
    if distance > _SHIFT * min(image.GetSpacing()) + 1e-6 * float(np.abs(expected[:3, 3]).max()):
        raise _Elsewhere(_("it lies up to {distance} mm away from the scan").format(distance=f"{distance:.3g}"))
    return labels


def _turned(labels: np.ndarray, matrix: np.ndarray, toScan: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """KJI labels and their IJK to RAS matrix with axes swapped and flipped so that they run like the scan's."""
    axes = np.argmax(np.abs(toScan[:3, :3]), axis=1)  # for each axis i, j, k of the scan: that of the label map
    if sorted(axes.tolist()) != [0, 1, 2]:
        return labels, matrix
    change = np.zeros((4, 4))  # indices in the new order → indices in the file
    change[3, 3] = 1
    for new, old in enumerate(axes.tolist()):
        flipped = toScan[new, old] < 0
        change[old, new] = -1 if flipped else 1
        change[old, 3] = labels.shape[2 - old] - 1 if flipped else 0
        labels = np.flip(labels, 2 - old) if flipped else labels
    return np.transpose(labels, [2 - int(axes[2 - axis]) for axis in range(3)]), matrix @ change


def _isPlane(image, labels: np.ndarray) -> bool:
    """A 2D file, or the single slice that the backend makes of one: no third spacing, no place along it."""
    if image.GetDimension() == 2:
        return True
    direction = np.array(image.GetDirection()).reshape(3, 3)
    plain = image.GetSpacing()[2] == 1 and image.GetOrigin()[2] == 0 and np.array_equal(direction[2], [0, 0, 1])
    return labels.shape[0] == 1 and plain


def _orientedImage(labels: np.ndarray, volumeNode):
    """A vtkOrientedImageData of KJI labels in the volume's own frame."""
    dtype = np.uint8 if labels.max() < 256 and labels.min() >= 0 else np.int16
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(labels.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(labels, dtype).ravel(), deep=True))
    image.SetGeometryFromImageToWorldMatrix(toVtk(ijkToRas(volumeNode)))
    return image


def _fill(segmentationNode, image, table: LabelTable) -> None:
    """One segment for each structure of the table, all in one layer, with the table's values; empty ones, too."""
    segmentation = segmentationNode.GetSegmentation()
    segmentation.RemoveAllSegments()
    for structure in table.structures:
        segment = slicer.vtkSegment()
        describe(segment, structure)
        segment.SetLabelValue(structure.value)
        segment.AddRepresentation(BINARY_LABELMAP, image)
        segmentation.AddSegment(segment, f"Segment_{structure.value}")


def _fingerprint(segmentationNode, volumeNode) -> str:
    """Changes with every change of voxels, segments, their order or names."""
    try:
        masks = SegmentMasks.of(segmentationNode, volumeNode)
    except BendingTransform:
        return ""
    segmentation = segmentationNode.GetSegmentation()
    names = "\n".join(segmentation.GetSegment(i).GetName() for i in masks.segmentIds)
    overlaps = "\n".join(f"{first} {second} {count}" for (first, second), count in masks.overlaps.items())
    digest = hashlib.blake2b(np.ascontiguousarray(masks.labels).data, digest_size=12)
    digest.update(f"{names}\n\n{overlaps}".encode())
    return digest.hexdigest()
