"""Segments brought onto the voxels of a scan: what is drawn where, what overlaps, what lies outside."""

from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from GenSegSlicerLib.Voxels import (
    countValues,
    hasVoxels,
    ijkToRas,
    imageArray,
    lookUp,
    toNumpy,
    toVtk,
    transformBetween,
)

BINARY_LABELMAP = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
_SAME_GRID = 0.01  # of a voxel: closer than this, two grids are the same and nothing is resampled


class BendingTransform(ValueError):
    """Between segmentation and scan lies a transform that bends space."""


@dataclass
class SegmentMasks:
    """`labels` KJI on the scan's grid: 0, or 1 + the place of the segment in `segmentIds`.

    Voxel counts are kept by segment id: `drawn` on the grid the segment was drawn on, `kept` on the scan's grid,
    `outside` of the drawn ones beyond the scan. `overlaps` {(first, second): voxels of the scan in both}; there
    `labels` shows the first.
    """

    segmentIds: list[str]
    labels: np.ndarray
    drawn: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    outside: dict[str, int] = field(default_factory=dict)
    overlaps: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, segmentationNode, volumeNode) -> "SegmentMasks":
        """Every segment on the grid of the volume, nearest voxel. Parent transforms of both are heeded.

        Neither node is changed. Raises BendingTransform where the two lie under different transforms that bend.
        """
        between = transformBetween(segmentationNode, volumeNode)
        if between is None:
            raise BendingTransform
        segmentation = _withLabelmaps(segmentationNode, volumeNode, between)
        ids = list(segmentation.GetSegmentIDs())
        shape = volumeNode.GetImageData().GetDimensions()[::-1]
        masks = cls(ids, np.zeros(shape, np.uint8 if len(ids) < 256 else np.uint16))
        for counts in (masks.drawn, masks.kept, masks.outside):
            counts.update(dict.fromkeys(ids, 0))
        toScan = np.linalg.inv(ijkToRas(volumeNode)) @ between
        for image, layerIds in _layers(segmentation):
            masks._add(image, layerIds, segmentation, toScan)
        for segmentId, count in zip(ids, countValues(masks.labels, len(ids) + 1)[1:].tolist(), strict=True):
            masks.kept[segmentId] += count
        return masks

    def _add(self, image, layerIds: list[str], segmentation, toScan: np.ndarray) -> None:
        """One layer of the segmentation. toScan: from the segmentation's frame to the scan's voxel indices."""
        array = imageArray(image)
        places = {}  # label value → 1 + place in segmentIds
        for segmentId in layerIds:
            value, place = segmentation.GetSegment(segmentId).GetLabelValue(), self.segmentIds.index(segmentId) + 1
            if value in places:  # a damaged file: two segments share the same voxels
                first = self.segmentIds[places[value] - 1]
                self.overlaps[first, segmentId] = int(np.count_nonzero(array == value))
            places.setdefault(value, place)
        box = _boundingBox(array)
        if box is None:
            return
        extent = image.GetExtent()
        start = [extent[2 * axis] + box[2 - axis].start for axis in range(3)]  # (i, j, k)
        layer = _translated(array[box], places, self.labels.dtype)
        toIjk = toScan @ _imageToWorld(image) @ _shift(start)  # from indices (i, j, k) in `layer`
        self._count(layer, toIjk)
        onScan = _resampled(layer, toIjk, self.labels.shape)
        self._lay(onScan)

    def _count(self, layer: np.ndarray, toIjk: np.ndarray) -> None:
        drawn = countValues(layer, len(self.segmentIds) + 1)
        outside = _outside(layer, toIjk, self.labels.shape, len(self.segmentIds) + 1)
        for i, segmentId in enumerate(self.segmentIds):
            self.drawn[segmentId] += int(drawn[i + 1])
            self.outside[segmentId] += int(outside[i + 1])

    def _lay(self, layer: np.ndarray) -> None:
        """Put a layer under what is there already; count where both hold something."""
        both = (self.labels != 0) & (layer != 0)
        if both.any():
            n = len(self.segmentIds) + 1
            pairs = np.bincount(self.labels[both].astype(np.int64) * n + layer[both], minlength=n * n)
            for pair in np.flatnonzero(pairs).tolist():
                first, second = (self.segmentIds[place - 1] for place in divmod(pair, n))
                self.overlaps[first, second] = self.overlaps.get((first, second), 0) + int(pairs[pair])
                self.kept[second] += int(pairs[pair])
        np.copyto(self.labels, layer, where=self.labels == 0)


def drawnSegments(segmentationNode) -> list[str]:
    """The ids of the segments in which at least one voxel (or a surface) is drawn, in their order."""
    segmentation = segmentationNode.GetSegmentation()
    if segmentation is None:
        return []
    if not segmentation.ContainsRepresentation(BINARY_LABELMAP):
        return [i for i in segmentation.GetSegmentIDs() if _hasSurface(segmentation, i)]
    found = set()
    for image, ids in _layers(segmentation):
        present = _presentValues(imageArray(image))
        found.update(i for i in ids if segmentation.GetSegment(i).GetLabelValue() in present)
    return [i for i in segmentation.GetSegmentIDs() if i in found]


def drawingState(segmentationNode) -> tuple:
    """Changes whenever what is drawn may have changed: a key for keeping what was counted."""
    segmentation = segmentationNode.GetSegmentation()
    if segmentation is None:
        return ()
    state = [segmentation.GetMTime()]
    for i in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(i)
        image = segment.GetRepresentation(BINARY_LABELMAP)
        state.append((segment.GetMTime(), segment.GetLabelValue(), image.GetMTime() if image is not None else 0))
    return tuple(state)


def _hasSurface(segmentation, segmentId: str) -> bool:
    surface = segmentation.GetSegment(segmentId).GetRepresentation(segmentation.GetSourceRepresentationName())
    return surface is not None and surface.GetNumberOfPoints() > 0


def _withLabelmaps(segmentationNode, volumeNode, between: np.ndarray):
    """The node's vtkSegmentation, or a copy on the scan's grid where it is drawn as surfaces only."""
    segmentation = segmentationNode.GetSegmentation()
    if segmentation.ContainsRepresentation(BINARY_LABELMAP) or not segmentation.GetNumberOfSegments():
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    grid = toVtk(np.linalg.inv(between) @ ijkToRas(volumeNode))
    converter = slicer.vtkSegmentationConverter
    geometry = converter.SerializeImageGeometry(grid, volumeNode.GetImageData())
    copy.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    copy.CreateRepresentation(BINARY_LABELMAP, True)
    return copy


def _layers(segmentation) -> list[tuple]:
    """(image with voxels, ids of the segments in it) for each labelmap of the segmentation."""
    result = []
    for layer in range(segmentation.GetNumberOfLayers(BINARY_LABELMAP)):
        image = segmentation.GetLayerDataObject(layer, BINARY_LABELMAP)
        if hasVoxels(image):
            result.append((image, list(segmentation.GetSegmentIDsForLayer(layer, BINARY_LABELMAP))))
    return result


def _presentValues(array: np.ndarray) -> set[int]:
    """The values of a label map KJI, slice by slice, without sorting or copying the whole."""
    if array.dtype.itemsize > 2:
        return set(np.unique(array).tolist())
    low = int(np.iinfo(array.dtype).min)
    seen = np.zeros(2 ** (8 * array.dtype.itemsize), bool)
    for plane in array:
        seen[plane.astype(np.int64) - low] = True
    return {int(v) + low for v in np.flatnonzero(seen)}


def _boundingBox(array: np.ndarray) -> tuple[slice, slice, slice] | None:
    """The smallest box around everything that is not 0; None where there is nothing."""
    planes = np.zeros(array.shape[0], bool)
    rows, columns = np.zeros(array.shape[1], bool), np.zeros(array.shape[2], bool)
    for k, plane in enumerate(array):
        filled = plane.any(axis=1)
        planes[k] = filled.any()
        if planes[k]:
            rows |= filled
            columns |= plane.any(axis=0)
    if not planes.any():
        return None
    found = [np.flatnonzero(axis) for axis in (planes, rows, columns)]
    return tuple(slice(int(axis[0]), int(axis[-1]) + 1) for axis in found)


def _translated(array: np.ndarray, places: dict[int, int], dtype) -> np.ndarray:
    """Label values → places; values of no segment become 0."""
    low, high = int(array.min()), int(array.max())
    table = np.zeros(high - low + 1, dtype)
    for value, place in places.items():
        if low <= value <= high and value != 0:
            table[value - low] = place
    return lookUp(table, array, low)


def _imageToWorld(image) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return toNumpy(matrix)


def _shift(start) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = start
    return matrix


def cornersOf(shape) -> np.ndarray:
    """The voxel indices (i, j, k, 1) of the eight corners of a KJI array, [4, 8]."""
    k, j, i = (n - 1 for n in shape)
    return np.array([[x, y, z, 1.0] for x in (0, i) for y in (0, j) for z in (0, k)]).T


def _outside(layer: np.ndarray, toIjk: np.ndarray, shape, classes: int) -> np.ndarray:
    """Voxels of `layer` whose center lies in no voxel of a scan of `shape` (KJI), counted by value."""
    limits = np.array(shape[::-1])[:, None] - 0.5 + _SAME_GRID
    corners = (toIjk @ cornersOf(layer.shape))[:3]
    counts = np.zeros(classes, np.int64)
    if np.all((corners >= -0.5 - _SAME_GRID) & (corners <= limits)):
        return counts
    for k, plane in enumerate(layer):
        j, i = np.nonzero(plane)
        points = (toIjk @ np.stack([i, j, np.full(len(i), k), np.ones(len(i))]))[:3]
        beyond = np.any((points < -0.5 - _SAME_GRID) | (points > limits), axis=0)
        counts += np.bincount(plane[j[beyond], i[beyond]], minlength=classes)
    return counts


def _resampled(layer: np.ndarray, toIjk: np.ndarray, shape) -> np.ndarray:
    """`layer` (KJI) on a scan of `shape` (KJI), nearest voxel; toIjk: indices of the layer → those of the scan."""
    start = np.rint(toIjk[:3, 3]).astype(int)
    corners = cornersOf(layer.shape)
    if np.abs(toIjk @ corners - _shift(start) @ corners).max() < _SAME_GRID:
        return _pasted(layer, start[::-1], shape)
    source = vtk.vtkImageData()
    source.SetDimensions(layer.shape[::-1])
    source.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(layer).ravel(), deep=True))
    toLayer = vtk.vtkTransform()
    toLayer.SetMatrix(toVtk(np.linalg.inv(toIjk)))
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(source)
    reslice.SetResliceTransform(toLayer)
    reslice.SetInterpolationModeToNearestNeighbor()
    reslice.SetBackgroundLevel(0)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputExtent([value for n in shape[::-1] for value in (0, n - 1)])
    reslice.Update()
    return imageArray(reslice.GetOutput()).copy()


def _pasted(layer: np.ndarray, start, shape) -> np.ndarray:
    """`layer` (KJI) at voxel `start` (k, j, i) of an empty array of `shape`; what does not fit is cut off."""
    result = np.zeros(shape, layer.dtype)
    here = [slice(max(0, s), max(0, min(n, s + m))) for s, n, m in zip(start, shape, layer.shape, strict=True)]
    there = [slice(max(0, -s), max(0, min(m, n - s))) for s, n, m in zip(start, shape, layer.shape, strict=True)]
    result[tuple(here)] = layer[tuple(there)]
    return result
