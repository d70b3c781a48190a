"""Pictures of synthetic pairs for the gallery."""

import numpy as np

from GenSegSlicerLib.ImageFile import ImageFile
from GenSegSlicerLib.Thumbnail import Thumbnail, greyWindow, planeOf, sliceAt, tellingSlice


def drawPair(pair, about, size: int) -> np.ndarray:
    """→ uint8 [h, w, 3], `size` pixels along the longer side: the slice that shows most, with its mask.

    `about`: the `RunAbout` of the run. Raises OSError or RuntimeError where a file cannot be read, ValueError where the
    mask does not fit the image.
    """
    image, array, labels = _read(pair.image, pair.mask)
    window = about.window(synthetic=True) or greyWindow(array)  # of the whole volume, not of a slice
    pixel, axis = image.spacing(), about.sliceAxis
    if labels.ndim == 3:
        array, labels, pixel = _slice(array, labels, pixel, planeOf(labels.shape, pixel))
    elif axis in (1, 2):  # the network's slices have the feet first
        array, labels = array[::-1], labels[::-1]
    return Thumbnail(about.colors).draw(array, labels, pixel, window, size)


def _read(imagePath, maskPath):
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
