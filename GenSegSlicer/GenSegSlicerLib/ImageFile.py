"""One image of a study or a run, read from its file for looking at it."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from GenSegSlicerLib.Voxels import PHOTO_SUFFIXES


class ImageFile:
    """An image or a label map as it lies on the disk: a file, or a folder with a DICOM series.

    `image` is the SimpleITK image on the file's own grid (LPS, mm). `isPhotograph` says that its pixels have no size in
    mm; what the file claims about them is then ignored. Raises OSError or RuntimeError where nothing can be read.
    """

    def __init__(self, path: Path | str):
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        self.path = path
        self.isPhotograph = path.suffix.lower() in PHOTO_SUFFIXES
        image = _readSeries(path) if path.is_dir() else sitk.ReadImage(str(path))
        if image.GetDimension() > 3:  # several volumes in one file: the first one is shown
            image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
        if self.isPhotograph:
            if image.GetDimension() == 3:  # some formats call a plane a stack of one
                image = image[:, :, 0]
            image.SetSpacing((1.0, 1.0))
        self.image = image

    def upright(self) -> np.ndarray:
        """→ array [z, y, x] of a volume in LPS, or [y, x] of a photograph or a plane; several channels come last.

        Only axes are swapped and turned; voxels stay what they are. The alpha channel of a photograph is dropped.
        """
        array = sitk.GetArrayFromImage(self._turned())
        if self._alpha:
            array = array[..., 0] if self.channels == 1 else array[..., : self.channels]
        return array

    def spacing(self) -> tuple[float, ...]:
        """mm per voxel along the axes of `upright()`; 1 for photographs."""
        return self._turned().GetSpacing()[::-1]

    @property
    def channels(self) -> int:
        """How many values a voxel of `upright()` has."""
        return self.image.GetNumberOfComponentsPerPixel() - self._alpha

    @property
    def _alpha(self) -> bool:
        return self.isPhotograph and self.image.GetNumberOfComponentsPerPixel() in (2, 4)

    def _turned(self) -> sitk.Image:
        return sitk.DICOMOrient(self.image, "LPS") if self.image.GetDimension() == 3 else self.image


def _readSeries(folder: Path) -> sitk.Image:
    """The longest DICOM series in a folder."""
    reader = sitk.ImageSeriesReader()
    series = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    if not series:
        raise FileNotFoundError(f"{folder} holds no DICOM series")
    reader.SetFileNames(max(series, key=len))
    return reader.Execute()
