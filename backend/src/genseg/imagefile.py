"""From a path to SimpleITK images: every format, DICOM folders, and clear words where it cannot be done."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from genseg.intact import Damaged, check_intact
from genseg.wording import times

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", *DICOM_SUFFIXES, *PHOTO_SUFFIXES)
MANY_FRAMES = 16  # beyond that a fourth axis is taken for time and never for channels
STRAIGHT = 0.002  # sine of the angle by which slices may be stacked aslant: rounded numbers in the header, no gantry

_COMPLETE = "Copy or export the file again from where it came from."
sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's C++ warnings would end up between the events


class UnusableImage(ValueError):
    """A file that cannot be used: a stable `code`, the `rule` it breaks and the `remedy`, as in `errors.Fault`."""

    def __init__(self, code: str, rule: str, remedy: str):
        self.code, self.rule, self.remedy = code, rule, remedy
        super().__init__(f"{rule} {remedy}")


def suffix_of(path: Path) -> str:
    """The known image suffix of a file name in lower case, e.g. '.nii.gz'; '' where there is none."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The file name without its known image suffix."""
    return path.name[: len(path.name) - len(suffix_of(path))]


@dataclass
class Loaded:
    """A file's 2D or 3D volumes (one per step of the fourth axis in a 4D file).

    `physical`: it has a size in mm. `bad_voxels`: NaN or infinite ones that the NIfTI reader turned into 0.
    """

    volumes: list[sitk.Image]
    physical: bool = True
    bad_voxels: int = 0


def load(path: Path) -> Loaded:
    """Read an image file or a DICOM folder; the reader inverts DICOM images whose highest value is black (MONOCHROME1).

    Raises UnusableImage.
    """
    try:
        if path.is_dir():
            image, physical = _load_series(path)
            return Loaded([image], physical)
        if not path.exists():
            raise UnusableImage(
                "missing_file", f"The file {path} does not exist.", "Put it there, or correct its path in the study."
            )
        bad_voxels = check_intact(path)
        image, physical = _load_file(path)
    except (RuntimeError, OSError, Damaged) as error:
        raise _explained(path, error) from error
    volumes = [image] if image.GetDimension() <= 3 else _unstacked(image, path)
    return Loaded(volumes, physical, bad_voxels)


def announced_voxels(path: Path) -> int:
    """Voxels of all channels by the header of a file or of a DICOM folder's first file; 0 where it cannot be read."""
    reader = sitk.ImageFileReader()
    try:
        files = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else [path]
        reader.SetFileName(str(min(files)))
        with _silenced():
            reader.ReadImageInformation()
    except (RuntimeError, OSError, ValueError):  # ValueError: an empty folder
        return 0
    return len(files) * int(np.prod(reader.GetSize())) * reader.GetNumberOfComponents()


def _load_file(path: Path) -> tuple[sitk.Image, bool]:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _silenced():
        image = reader.Execute()
    if suffix_of(path) in PHOTO_SUFFIXES:  # resolutions in photos are printing sizes, not millimetres
        n = image.GetDimension()
        image.SetSpacing((1.0,) * n)
        image.SetOrigin((0.0,) * n)
        image.SetDirection(np.eye(n).ravel().tolist())
        return image, False
    if not reader.HasMetaDataKey("0008|0060"):  # no modality: no DICOM
        return image, True
    physical = any(reader.HasMetaDataKey(key) for key in ("0028|0030", "0018|1164")) or image.GetSize()[-1] > 1
    return image, physical


def _load_series(folder: Path) -> tuple[sitk.Image, bool]:
    finder = sitk.ImageSeriesReader()
    with _silenced():
        series = finder.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise UnusableImage(
            "dicom_series",
            f"A DICOM folder must hold exactly one series, but {folder.name} holds {len(series)}.",
            "Put each series into a folder of its own."
            if series
            else "Name a folder with the DICOM files of one scan, or the image file itself.",
        )
    with _silenced():
        names = finder.GetGDCMSeriesFileNames(str(folder), series[0])
        if len(names) == 1:
            return _load_file(Path(names[0]))
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        reader.MetaDataDictionaryArrayUpdateOn()
        image = reader.Execute()
    if image.GetDimension() == 3 and all(reader.HasMetaDataKey(i, "0020|0032") for i in range(len(names))):
        positions = np.array([_numbers(reader.GetMetaData(i, "0020|0032")) for i in range(len(names))])
        _check_slice_distances(positions, folder)
        if reader.HasMetaDataKey(0, "0020|0037"):
            _check_straight(positions, _numbers(reader.GetMetaData(0, "0020|0037")), folder)
    return image, True


def _numbers(text: str) -> list[float]:
    """A DICOM element with several decimal numbers."""
    return [float(number) for number in text.split("\\")]


def _check_slice_distances(positions: np.ndarray, folder: Path) -> None:
    """positions [slices, 3] in mm, in reading order; equal steps are needed for a volume."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if steps.max() - steps.min() > 0.1 * np.median(steps) or steps.min() == 0:
        raise UnusableImage(
            "missing_slices",
            f"The slices of a scan must lie at equal distances, but those in {folder.name} lie {steps.min():.2f} to "
            f"{steps.max():.2f} mm apart.",
            "Export the whole series again: slices are missing or two scans are mixed.",
        )


def _check_straight(positions: np.ndarray, orientation: list[float], folder: Path) -> None:
    """positions [slices, 3] in mm; slices must be stacked at a right angle to their rows and columns.

    `orientation`: the direction cosines of both. The reader would pass over the angle without a word.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    stacked = positions[-1] - positions[0]
    if np.linalg.norm(np.cross(stacked, normal)) > STRAIGHT * np.linalg.norm(stacked):
        raise _sheared(folder)


def _unstacked(image: sitk.Image, path: Path) -> list[sitk.Image]:
    size = image.GetSize()
    steps = int(np.prod(size[3:]))
    if steps > MANY_FRAMES or len(size) > 4:
        raise UnusableImage(
            "four_dimensional",
            f"A scan must have two or three dimensions, but {path.name} holds {steps} volumes ({times(size)}).",
            "Save the time point you want to segment as a file of its own.",
        )
    return [image[:, :, :, i] for i in range(steps)]


def _sheared(path: Path) -> UnusableImage:
    return UnusableImage(
        "sheared_geometry",
        f"The axes of a scan must be perpendicular, but those of {path.name} are sheared (tilted gantry).",
        "Open it in Slicer, harden its transform or resample it, and save it again.",
    )


def _explained(path: Path, error: Exception) -> UnusableImage:
    """What the reading library says → what the user can do."""
    text = str(error)
    if "orthonormal" in text:
        return _sheared(path)
    if "MemoryError" in text or "allocate memory" in text:
        return UnusableImage("too_large", f"{path.name} does not fit into memory.", "Close other programs or crop it.")
    if isinstance(error, PermissionError):
        return UnusableImage("unreadable_file", f"{path} may not be read.", "Give yourself the right to read it.")
    reason = f" ({text})" if isinstance(error, Damaged) else ""
    if "Unable to determine ImageIO" in text and not suffix_of(path):
        return UnusableImage(
            "unknown_format",
            f"{path.name} is in no format that can be read.",
            "Use NIfTI, NRRD, MHA, DICOM, PNG, JPEG or TIFF.",
        )
    return UnusableImage("corrupt_file", f"{path.name} is damaged and cannot be read{reason}.", _COMPLETE)


_lock = threading.Lock()
_silent = {"readers": 0, "stderr": -1}


@contextmanager
def _silenced() -> Iterator[None]:
    """Keep what the C libraries print about a file (libjpeg, GDCM) off the terminal; any number of threads."""
    with _lock:
        if _silent["readers"] == 0:
            try:
                _silent["stderr"] = os.dup(2)
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)
            except OSError:  # a process without a terminal
                _silent["stderr"] = -1
        _silent["readers"] += 1
    try:
        yield
    finally:
        with _lock:
            _silent["readers"] -= 1
            if _silent["readers"] == 0 and _silent["stderr"] >= 0:
                os.dup2(_silent["stderr"], 2)
                os.close(_silent["stderr"])
