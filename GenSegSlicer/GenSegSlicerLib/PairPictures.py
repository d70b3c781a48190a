"""Pictures of a synthetic pair and of the real scan that it resembles, in the same plane and at the same scale."""

from dataclasses import dataclass

import numpy as np

from GenSegSlicerLib.ImageFile import ImageFile
from GenSegSlicerLib.Thumbnail import Thumbnail, cropped, greyWindow, planeOf, sliceAt, tellingSlice


@dataclass(frozen=True)
class _Look:
    """How a pair is looked at: the axis of a volume [z, y, x] across which, and how large its slice is in mm."""

    axis: int | None
    field: tuple | None  # rows, columns; None for photographs, which have no size


class PairPictures:
    """Draws for a gallery. `about` is the `RunAbout` of the run.

    Files that cannot be read raise OSError or RuntimeError, a mask that does not fit its image ValueError.
    """

    def __init__(self, about):
        self.about = about
        self._looks = {}
        self._nearest = {}  # many pairs have the same nearest scan, and a CT takes seconds to read

    def drawPair(self, pair, size: int) -> np.ndarray:
        """→ uint8 [h, w, 3], `size` pixels along the longer side: the slice that shows most, with its mask."""
        image, array, labels = self._read(pair.image, pair.mask)
        window = self.about.window(synthetic=True) or greyWindow(array)  # of the whole volume, not of a slice
        pixel, axis = image.spacing(), self.about.sliceAxis
        if labels.ndim == 3:
            axis = planeOf(labels.shape, pixel)
            array, labels, pixel = _slice(array, labels, pixel, axis)
        elif axis in (1, 2):  # the network's slices have the feet first
            array, labels = array[::-1], labels[::-1]
        field = None if image.isPhotograph else tuple(n * mm for n, mm in zip(labels.shape, pixel, strict=True))
        self._looks[pair.key] = _Look(axis, field)
        return Thumbnail(self.about.colors).draw(array, labels, pixel, window, size)

    def drawNearest(self, pair, size: int) -> np.ndarray | None:
        """→ uint8 [h, w, 3] of the training scan most like the pair, or None where the study does not know it.

        Of a larger scan the part around its structures, so that a structure of equal size appears equally large.
        """
        files = self.about.caseFiles(pair.nearest)
        if files is None:
            return None
        if pair.key not in self._looks:
            self.drawPair(pair, size)
        key = (pair.nearest, self._looks[pair.key], int(size))
        if key not in self._nearest:
            self._nearest[key] = self._drawCase(*files, self._looks[pair.key], size)
        return self._nearest[key]

    def _drawCase(self, imageFile, maskFile, look, size):
        image, array, labels = self._read(imageFile, maskFile)
        window, pixel = self.about.window(synthetic=False) or greyWindow(array), image.spacing()
        if labels.ndim == 3:
            axis = planeOf(labels.shape, pixel) if 1 in labels.shape or look.axis is None else look.axis
            array, labels, pixel = _slice(array, labels, pixel, axis)
        if look.field is not None:
            whole = max(look.field)
            array, labels = cropped([array, labels], labels, pixel, look.field)
            size = max(1, round(size * max(n * mm for n, mm in zip(labels.shape, pixel, strict=True)) / whole))
        return Thumbnail(self.about.colors).draw(array, labels, pixel, window, size)

    def _read(self, imagePath, maskPath):
        """→ (image file, its voxels upright with one or three channels, mask upright)."""
        image, mask = ImageFile(imagePath), ImageFile(maskPath)
        array, labels = image.upright(), mask.upright()
        if mask.channels > 1:  # a grey mask saved in color, or one layer a structure
            labels = labels.max(axis=-1)
        if image.channels > 1 and not (image.channels == 3 and labels.ndim == 2):
            array = array[..., 0]
        if array.shape[: labels.ndim] != labels.shape:
            raise ValueError(f"{imagePath} has {array.shape} voxels, but {maskPath} has {labels.shape}")
        return image, array, labels


def _slice(array, labels, pixel, axis):
    index = tellingSlice(labels, axis)
    pixel = tuple(mm for i, mm in enumerate(pixel) if i != axis)
    return np.ascontiguousarray(sliceAt(array, axis, index)), sliceAt(labels, axis, index), pixel
