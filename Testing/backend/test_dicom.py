"""DICOM series are read as the volume they are in space, on the slices of a real scan."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.imageio import UnusableImage, grid_difference, read_scan

_PIXEL_SPACING, _UNKNOWN = b"\x28\x00\x30\x00", b"\x28\x00\x35\x00"  # DICOM elements


@pytest.fixture
def volume(data: Path) -> sitk.Image:
    """A real MRI (35 x 51 x 35 or so) with unequal spacing and a shifted origin."""
    image = sitk.ReadImage(str(sorted((data / "hippocampus" / "images").iterdir())[0]))
    image.SetSpacing((0.7, 1.3, 2.9))
    image.SetOrigin((5.5, -7.0, 123.25))
    return sitk.Cast(image, sitk.sitkInt16)


def dicom_series(
    volume: sitk.Image, folder: Path, kept: list[int] | None = None, uid: str = "1.2.826.1", shift: float = 0
) -> Path:
    """Write axial slices of a volume as a DICOM series, each `shift` mm further back than the one before it."""
    folder.mkdir(exist_ok=True)
    direction = volume.GetDirection()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i in kept if kept is not None else range(volume.GetSize()[2]):
        plane = volume[:, :, i]
        position = np.add(volume.TransformIndexToPhysicalPoint((0, 0, i)), (0, shift * i, 0))
        for key, value in {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"{uid}.{i + 1}",
            "0020|000d": "1.2.826.2",
            "0020|000e": uid,
            "0020|0013": str(i + 1),
            "0018|0050": str(volume.GetSpacing()[2]),
            "0020|0032": "\\".join(map(str, position)),
            "0020|0037": "\\".join(str(direction[k]) for k in (0, 3, 6, 1, 4, 7)),
        }.items():
            plane.SetMetaData(key, value)
        plane.SetSpacing(volume.GetSpacing()[:2])
        writer.SetFileName(str(folder / f"{uid}.{i:03d}.dcm"))
        writer.Execute(plane)
    return folder


def test_a_dicom_series_is_read_as_its_volume_in_space(volume: sitk.Image, tmp_path: Path) -> None:
    scan = read_scan([dicom_series(volume, tmp_path / "Sérié 1")])
    sitk.WriteImage(volume, str(tmp_path / "v.nrrd"))
    expected = read_scan([tmp_path / "v.nrrd"])
    np.testing.assert_array_equal(scan.array, expected.array)
    assert grid_difference(scan.geometry, expected.geometry) is None and scan.geometry.physical


def test_a_single_dicom_file_is_a_2d_scan(volume: sitk.Image, tmp_path: Path) -> None:
    volume = sitk.DICOMOrient(volume, "LPS")
    folder = dicom_series(volume, tmp_path / "one", kept=[9])
    for source in (folder, next(folder.iterdir())):
        scan = read_scan([source])
        np.testing.assert_array_equal(scan.array[0], sitk.GetArrayFromImage(volume)[9])
        assert scan.dims == 2 and scan.spacing == pytest.approx((1.3, 0.7))


def test_a_dicom_folder_with_missing_slices_or_two_series_or_none_is_refused(
    volume: sitk.Image, tmp_path: Path
) -> None:
    gap = dicom_series(volume, tmp_path / "gap", kept=[1, 2, 3, 6, 7])
    two = dicom_series(volume, dicom_series(volume, tmp_path / "two", [1, 2]), [4, 5], uid="1.2.826.9")
    (tmp_path / "none").mkdir()
    for folder, code in ((gap, "missing_slices"), (two, "dicom_series"), (tmp_path / "none", "dicom_series")):
        with pytest.raises(UnusableImage) as caught:
            read_scan([folder])
        assert caught.value.code == code


@pytest.mark.parametrize(("degrees", "refused"), [(0.05, False), (1, True), (-20, True)])
def test_a_series_taken_with_a_tilted_gantry_is_refused(
    volume: sitk.Image, tmp_path: Path, degrees: float, refused: bool
) -> None:
    shift = float(np.tan(np.radians(degrees))) * volume.GetSpacing()[2]
    folder = dicom_series(volume, tmp_path / "tilted", shift=shift)
    if not refused:
        assert read_scan([folder]).dims == 3
        return
    with pytest.raises(UnusableImage) as caught:
        read_scan([folder])
    assert caught.value.code == "sheared_geometry"


def test_an_image_without_a_pixel_size_has_none_in_its_folder_either(volume: sitk.Image, tmp_path: Path) -> None:
    folder = dicom_series(volume, tmp_path / "capture", kept=[9])
    file = next(folder.iterdir())
    assert read_scan([folder]).geometry.physical
    file.write_bytes(file.read_bytes().replace(_PIXEL_SPACING, _UNKNOWN))
    assert [read_scan([source]).geometry.physical for source in (file, folder)] == [False, False]


@pytest.mark.parametrize("kept", [[9], [9, 10, 11]])
def test_images_in_which_the_highest_value_is_black_are_inverted_alone_and_in_a_series(
    volume: sitk.Image, tmp_path: Path, kept: list[int]
) -> None:
    folder = dicom_series(volume, tmp_path / "inverted", kept)
    plain = read_scan([folder]).array
    for file in folder.iterdir():
        one = read_scan([file]).array
        file.write_bytes(file.read_bytes().replace(b"MONOCHROME2", b"MONOCHROME1"))
        np.testing.assert_array_equal(read_scan([file]).array, -1 - one)  # of 16 bits
    np.testing.assert_array_equal(read_scan([folder]).array, -1 - plain)
