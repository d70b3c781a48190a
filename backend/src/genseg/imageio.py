"""Reading and writing scans and label maps with SimpleITK, without losing their geometry.

Every array the backend works on lies in one canonical orientation: 3D [z, y, x] with x to the
patient's left, y to the back, z to the head (LPS). Results go back into the file's own grid bit for bit.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from genseg.imagefile import (
    DICOM_SUFFIXES,
    MANY_FRAMES,
    PHOTO_SUFFIXES,
    SUFFIXES,
    UnusableImage,
    load,
    stem_of,
    suffix_of,
)
from genseg.labels import LabelTable
from genseg.runfolder import replacing
from genseg.segnrrd import segment_values, segmentation_metadata
from genseg.wording import times

__all__ = [
    "DICOM_SUFFIXES", "MANY_FRAMES", "PHOTO_SUFFIXES", "SUFFIXES", "Geometry", "Scan", "UnusableImage",
    "grid_difference", "not_finite", "read_label", "read_label_values", "read_scan",
    "stem_of", "suffix_of", "value_counts", "write_image", "write_label",
]  # fmt: skip


@dataclass(frozen=True)
class Geometry:
    """The grid of the FILE in SimpleITK's order (x, y[, z]), before canonical orientation.

    size in voxels, spacing and origin in mm, direction row by row. `physical` is False for photos without
    a physical size: their spacing is 1. `orientation` is the file's axis code (e.g. 'RAS'), None for 2D files.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    physical: bool = True
    orientation: str | None = None

    @property
    def thin(self) -> int | None:
        """Patient axis (0 left, 1 back, 2 head) along which a 3D file has exactly one voxel, else None."""
        axes = [_patient_axis(letter) for letter, n in zip(self.orientation or "", self.size, strict=False) if n == 1]
        return axes[-1] if axes else None

    @property
    def dims(self) -> int:
        """2 or 3: a 3D file with exactly one slice is a 2D scan."""
        return 2 if self.orientation is None or self.thin is not None else 3

    @property
    def canonical(self) -> str | None:
        """Axis code of the array the backend works on: LPS; single sagittal and coronal slices stand upright."""
        return None if self.orientation is None else "LPS" if self.thin in (None, 2) else "LPI"

    @property
    def turned(self) -> bool:
        """Do the array's axes have another order or direction than those of the file?"""
        return self.orientation != self.canonical

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape of the oriented array."""
        return tuple(int(n) for n in self._arranged(self.size))

    @property
    def array_spacing(self) -> tuple[float, ...]:
        """Spacing of the spatial axes of the oriented array, in mm (1 for photos)."""
        return tuple(float(s) for s in self._arranged(self.spacing))

    def _arranged(self, values: tuple) -> list:
        """One value per file axis (x, y[, z]) → one per axis of the oriented array."""
        if self.orientation is None:
            return list(values)[::-1]
        by_axis = {_patient_axis(letter): value for letter, value in zip(self.orientation, values, strict=True)}
        return [by_axis[axis] for axis in (2, 1, 0) if axis != self.thin]

    def oriented(self, image: sitk.Image) -> sitk.Image:
        """`image` (of this geometry) in the canonical orientation; exact, axes are only swapped and flipped."""
        return sitk.DICOMOrient(image, self.canonical) if self.turned else image


def _patient_axis(letter: str) -> int:
    return next(i for i, pair in enumerate(("LR", "PA", "SI")) if letter in pair)


@dataclass
class Scan:
    """One scan: `array` float32 [C, *spatial], spatial (y, x) for 2D and single slices, else (z, y, x) in LPS.

    `stacked` says that the channels lay along the fourth axis of one file (which may also be time), `bad_voxels`
    how many hold no number (NaN or infinity); the NIfTI reader has put 0 in their place.
    """

    array: np.ndarray
    geometry: Geometry
    stacked: bool = False
    bad_voxels: int = 0

    @property
    def spacing(self) -> tuple[float, ...]:
        """mm per voxel along the spatial axes of `array`; 1.0 for photos."""
        return self.geometry.array_spacing

    @property
    def dims(self) -> int:
        return self.geometry.dims


def read_scan(images: list[Path], finite: bool = True) -> Scan:
    """Read one scan: one file per channel, one file with several components, or a DICOM folder or file.

    Alpha channels are dropped. 4D files with up to MANY_FRAMES volumes give one channel a volume (`stacked`).
    Raises UnusableImage, also where the files of the channels lie on different grids and, unless `finite` is
    False, where voxels hold no number.
    """
    channels: list[np.ndarray] = []
    first: Geometry | None = None
    stacked, bad = False, 0
    for path in images:
        loaded = load(Path(path))
        stacked |= len(loaded.volumes) > 1
        bad += loaded.bad_voxels
        for volume in loaded.volumes:
            geometry = _geometry(volume, loaded.physical)
            first = first or geometry
            if (difference := grid_difference(geometry, first)) is not None:
                raise UnusableImage(
                    "channel_geometry",
                    f"All channels of a scan must lie on one grid, but {Path(path).name} differs: {difference}.",
                    "Resample the channels to one of them, for example with Resample Scalar Volume in Slicer.",
                )
            channels += _channels(volume, geometry, alpha_dropped=suffix_of(Path(path)) in PHOTO_SUFFIXES)
    if first is None:
        raise UnusableImage("no_image", "A case needs at least one image file.", "Name its image in the study.")
    array = np.stack(channels).astype(np.float32, copy=False)
    scan = Scan(array, first, stacked, bad + int(np.count_nonzero(~np.isfinite(array))))
    if finite and scan.bad_voxels:
        raise not_finite(scan)
    return scan


def not_finite(scan: Scan) -> UnusableImage:
    """The fault of a scan with `bad_voxels`."""
    return UnusableImage(
        "nan_voxels",
        f"Every voxel must hold a number, but {scan.bad_voxels} hold none (NaN or infinity).",
        "Export the scan again; if they mean 'outside', replace them by the background value.",
    )


def read_label(path: Path, table: LabelTable) -> tuple[np.ndarray, Geometry]:
    """Read a label map as table indices [*spatial], oriented as `Scan.array`, with the grid of its file.

    Grey masks saved as RGB(A) are taken as grey. In a Slicer segmentation (.seg.nrrd) the segment names decide, or
    the values where all names are Slicer's own (Segment_1 …). Raises UnusableImage, also for unknown names or values.
    """
    values, geometry = read_label_values(path, table)
    present, _ = value_counts(values)
    unknown = table.unknown_values(present)
    if unknown:
        shown = ", ".join(str(v) for v in unknown[:10]) + (", …" if len(unknown) > 10 else "")
        known = ", ".join(f"{label.value} = {label.name}" for label in table.labels[:20])
        lossy = suffix_of(path) in (".jpg", ".jpeg")
        raise UnusableImage(
            "unknown_label_value",
            f"Every value of a mask must stand in the label table ({known}), but {path.name} also holds {shown}.",
            "JPEG blurs the values of a mask: save the mask as PNG, NRRD or NIfTI."
            if lossy
            else "Add these values to `labels` in dataset.json, or correct the mask.",
        )
    return table.to_index(present)[np.searchsorted(present, values)], geometry


def read_label_values(path: Path, table: LabelTable | None = None) -> tuple[np.ndarray, Geometry]:
    """A label map with the values of its file, integers [*spatial], oriented as `Scan.array`; see read_label."""
    loaded = load(path)
    if len(loaded.volumes) > 1:
        raise UnusableImage(
            "label_not_single",
            f"A mask must be one label map, but {path.name} holds {len(loaded.volumes)} volumes.",
            "Save one label map a case in which every structure has its own value.",
        )
    volume = loaded.volumes[0]
    geometry = _geometry(volume, loaded.physical)
    values = _one_layer(_channels(volume, geometry, alpha_dropped=suffix_of(path) in PHOTO_SUFFIXES), path)
    if not np.issubdtype(values.dtype, np.integer):
        whole = np.rint(values)
        if loaded.bad_voxels or not np.all(np.abs(values - whole) < 1e-3):  # false for NaN, too
            raise UnusableImage(
                "label_not_integer",
                f"A mask must hold whole numbers, but {path.name} holds fractions.",
                "Resample masks with nearest neighbour, or export the segmentation to a label map.",
            )
        values = whole.astype(np.int64)
    mapping = segment_values(volume, values, table) if table is not None else {}
    renumbered = values.astype(np.int64) if mapping else values
    for old, new in mapping.items():
        renumbered[values == old] = new
    return renumbered, geometry


def _one_layer(layers: list[np.ndarray], path: Path) -> np.ndarray:
    """The one layer of a mask, or the first of several equal ones (a grey mask saved in colour)."""
    if all(np.array_equal(layers[0], layer) for layer in layers[1:]):
        return layers[0]
    if suffix_of(path) == ".seg.nrrd":
        raise UnusableImage(
            "overlapping_segments",
            f"The segments of {path.name} overlap or lie in several layers; a voxel can belong to one structure only.",
            "In Slicer's Segmentations module, choose 'Collapse labelmap layers', or export to a label map.",
        )
    raise UnusableImage(
        "label_not_single",
        f"A mask must hold one number a pixel, but {path.name} is coloured.",
        "Save it as a grey image in which every structure has its own value.",
    )


def value_counts(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, ascending, and their counts; without sorting millions of voxels where the range is small."""
    low, high = int(values.min()), int(values.max())
    if high - low > 2**16:
        return np.unique(values, return_counts=True)
    counts = np.bincount((values.astype(np.int64) - low).ravel())
    return np.flatnonzero(counts) + low, counts[counts > 0]


def grid_difference(a: Geometry, b: Geometry) -> str | None:
    """None where two files lie on the same grid in space, else what differs, in words.

    Sizes must be equal; spacing within 0.1 %, directions within 0.001, the origin within 1 % of a voxel.
    The order and direction of the axes in the file do not matter. Photos have no place in space: only sizes count.
    """
    if a.shape != b.shape:
        return f"{times(a.shape)} voxels instead of {times(b.shape)}"
    if not (a.physical and b.physical):
        unlike = (a.orientation is None) != (b.orientation is None)
        return "a photo does not say how it lies in this scan" if unlike and (a.turned or b.turned) else None
    if not np.allclose(a.array_spacing, b.array_spacing, rtol=1e-3, atol=0):
        return f"spacing {times(a.array_spacing)} mm instead of {times(b.array_spacing)} mm"
    if len(a.size) != len(b.size):
        return None  # a plane in 2D has no place in 3D to compare
    (origin_a, direction_a), (origin_b, direction_b) = _placement(a), _placement(b)
    if not np.allclose(direction_a, direction_b, rtol=0, atol=1e-3):
        return "its axes point in other directions"
    tolerance = 0.01 * min(b.spacing) + 1e-6 * float(np.max(np.abs(origin_b)))
    if not np.allclose(origin_a, origin_b, rtol=0, atol=tolerance):
        return f"it is shifted by {float(np.max(np.abs(origin_a - origin_b))):.3g} mm"
    return None


def _placement(geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Origin [n] in mm and direction matrix [n, n] of the canonically oriented grid."""
    n = len(geometry.size)
    direction = np.array(geometry.direction).reshape(n, n)
    origin = np.array(geometry.origin)
    if geometry.orientation is None or geometry.canonical is None:
        return origin, direction
    columns: list[np.ndarray] = [np.zeros(n)] * n
    for i, letter in enumerate(geometry.orientation):
        axis = _patient_axis(letter)
        flipped = letter != geometry.canonical[axis]
        if flipped:
            origin = origin + direction[:, i] * geometry.spacing[i] * (geometry.size[i] - 1)
        columns[axis] = -direction[:, i] if flipped else direction[:, i]
    return origin, np.stack(columns, axis=1)


def write_label(indices: np.ndarray, geometry: Geometry, table: LabelTable, path: Path) -> None:
    """Write table indices [*spatial] (oriented as `Scan.array`) with file values on the grid of `geometry`.

    The suffix decides the format; .seg.nrrd becomes a Slicer segmentation with names, colours and terminology.
    """
    values = table.to_value(np.asarray(indices))
    image = _to_image(values[None], geometry, path)
    if suffix_of(path) == ".seg.nrrd":
        image = sitk.JoinSeries(image) if image.GetDimension() == 2 else image
        for key, text in segmentation_metadata(image, table).items():
            image.SetMetaData(key, text)
    _write(image, path)


def write_image(array: np.ndarray, geometry: Geometry, path: Path) -> Path:
    """Write a scan [C, *spatial] back on the grid of `geometry` and return the path written.

    A path without a known suffix gets .png where the scan is a grey or RGB photo in 0..255, else .nrrd.
    """
    array = np.asarray(array)
    if not suffix_of(path):
        photo = geometry.dims == 2 and not geometry.physical and len(array) in (1, 3)
        eight_bit = photo and float(array.min()) >= 0 and float(array.max()) <= 255
        path = path.with_name(path.name + (".png" if eight_bit else ".nrrd"))
    if suffix_of(path) in PHOTO_SUFFIXES:
        array = np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    _write(_to_image(array, geometry, path), path)
    return path


def _write(image: sitk.Image, path: Path) -> None:
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _to_image(array: np.ndarray, geometry: Geometry, path: Path) -> sitk.Image:
    """[C, *spatial] in the oriented grid → image on the file's own grid; for photo formats the plane of its pixels."""
    if array.shape[1:] != geometry.shape:
        raise ValueError(f"array of shape {array.shape[1:]} does not fit the grid {geometry.shape}")
    thin = geometry.thin
    if thin is not None:
        array = np.expand_dims(array, axis=1 + (2 - thin))
    vector = len(array) > 1
    image = sitk.GetImageFromArray(np.moveaxis(array, 0, -1) if vector else array[0], isVector=vector)
    if geometry.turned:
        orient = sitk.DICOMOrientImageFilter()
        image.SetDirection(orient.GetDirectionCosinesFromOrientation(geometry.canonical))
        image = sitk.DICOMOrient(image, geometry.orientation)
    if thin is not None and geometry.orientation is not None and suffix_of(path) in PHOTO_SUFFIXES:
        axis = [_patient_axis(letter) for letter in geometry.orientation].index(thin)
        return sitk.GetImageFromArray(sitk.GetArrayFromImage(image).take(0, axis=2 - axis), isVector=vector)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


def _geometry(image: sitk.Image, physical: bool) -> Geometry:
    three = image.GetDimension() == 3
    code = sitk.DICOMOrientImageFilter().GetOrientationFromDirectionCosines(image.GetDirection()) if three else None
    return Geometry(
        image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), physical, orientation=code
    )


def _channels(image: sitk.Image, geometry: Geometry, alpha_dropped: bool) -> list[np.ndarray]:
    """Image → its channels as arrays [*spatial] in the canonical orientation."""
    components = image.GetNumberOfComponentsPerPixel()
    array = sitk.GetArrayFromImage(geometry.oriented(image))
    if components == 1:
        array = array[..., None]
    if geometry.thin is not None:
        array = array.take(0, axis=2 - geometry.thin)
    kept = components - 1 if alpha_dropped and components in (2, 4) else components
    return [array[..., c] for c in range(kept)]
