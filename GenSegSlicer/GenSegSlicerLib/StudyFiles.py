"""Volumes and label maps to files and back, by SimpleITK. RAS in the scene, LPS in files; arrays are KJI."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FAST = 1  # of zlib's levels: scans hardly get smaller with more, and the user waits


def toImage(array: np.ndarray, ijkToRas: np.ndarray) -> sitk.Image:
    """KJI or KJIC → an image with the same voxel order, placed by the matrix."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array), isVector=array.ndim == 4)
    lps = _RAS_LPS @ ijkToRas
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def toMatrix(image: sitk.Image) -> np.ndarray:
    """The IJK to RAS matrix of a 3D image."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return _RAS_LPS @ matrix


def writeVolume(array: np.ndarray, ijkToRas: np.ndarray, path: Path) -> None:
    """Write KJI or KJIC (single slices too) as a 3D file with its place in space, in its own data type."""
    sitk.WriteImage(toImage(array, ijkToRas), str(path), useCompression=True, compressionLevel=_FAST)


def writePhoto(array: np.ndarray, path: Path) -> None:
    """Write [1, J, I] or [1, J, I, C] as a PNG: rows are J from the top, columns I."""
    plane = np.ascontiguousarray(array[0])
    sitk.WriteImage(sitk.GetImageFromArray(plane, isVector=plane.ndim == 3), str(path), useCompression=True)


def readLabels(path: Path) -> tuple[np.ndarray, sitk.Image]:
    """A label map as integers KJI (2D files get one slice), and the image. Raises RuntimeError or ValueError."""
    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1 or image.GetDimension() not in (2, 3):
        raise ValueError(f"{path.name} is no single label map")
    array = sitk.GetArrayFromImage(image)
    if not np.issubdtype(array.dtype, np.integer):
        whole = np.rint(array)
        if not np.array_equal(whole, array):
            raise ValueError(f"{path.name} holds fractions")
        array = whole.astype(np.int32)
    return (array[None] if image.GetDimension() == 2 else array), image


def segmentNames(image: sitk.Image) -> dict[int, str]:
    """{label value: segment name} of a Slicer segmentation file; empty for any other image."""
    names: dict[int, str] = {}
    number = 0
    while image.HasMetaDataKey(f"Segment{number}_Name"):
        value = f"Segment{number}_LabelValue"
        names[int(image.GetMetaData(value)) if image.HasMetaDataKey(value) else 1] = image.GetMetaData(
            f"Segment{number}_Name"
        )
        number += 1
    return names
