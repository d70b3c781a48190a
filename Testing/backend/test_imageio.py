"""Scans and masks keep their grid and their values through reading, turning and writing, on real files."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.imageio import (
    Geometry,
    UnusableImage,
    grid_difference,
    read_label,
    read_scan,
    stem_of,
    suffix_of,
    write_image,
    write_label,
)
from genseg.labels import LabelTable

HIPPOCAMPUS = LabelTable.from_names({1: "anterior", 2: "posterior"})
ORIENTATIONS = [
    "".join(code)
    for axes in itertools.permutations(("LR", "PA", "SI"))
    for code in itertools.product(*axes)
]  # fmt: skip


@pytest.fixture
def volume(data: Path) -> sitk.Image:
    """A real MRI (35 x 51 x 35 or so) with unequal spacing and a shifted origin."""
    image = sitk.ReadImage(str(sorted((data / "hippocampus" / "images").iterdir())[0]))
    image.SetSpacing((0.7, 1.3, 2.9))
    image.SetOrigin((5.5, -7.0, 123.25))
    return image


@pytest.fixture
def mask(data: Path) -> sitk.Image:
    return sitk.ReadImage(str(sorted((data / "hippocampus" / "labels").iterdir())[0]))


def oblique(image: sitk.Image, code: str) -> sitk.Image:
    """The image in the given axis order, its axes then tilted in space."""
    turned = sitk.DICOMOrient(image, code)
    tilt = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.15, 0.3)
    matrix = np.array(tilt.GetMatrix()).reshape(3, 3) @ np.array(turned.GetDirection()).reshape(3, 3)
    turned.SetDirection(matrix.ravel().tolist())
    return turned


def save(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def assert_same_grid(a: Path, b: Path, tolerance: float = 0) -> None:
    first, second = sitk.ReadImage(str(a)), sitk.ReadImage(str(b))
    assert first.GetSize() == second.GetSize()
    for part in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(first, part)(), getattr(second, part)(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_every_axis_order_is_read_in_lps_and_written_back_voxel_for_voxel(
    volume: sitk.Image, code: str, tmp_path: Path
) -> None:
    path = save(oblique(volume, code), tmp_path / "scan.mha")
    scan = read_scan([path])
    canonical = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    np.testing.assert_array_equal(scan.array[0], sitk.GetArrayFromImage(canonical))
    assert scan.geometry.orientation == code and scan.array.dtype == np.float32
    np.testing.assert_allclose(scan.spacing, canonical.GetSpacing()[::-1])
    back = write_image(scan.array, scan.geometry, tmp_path / "back.mha")
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (path, back)))
    assert_same_grid(path, back)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd"])
def test_masks_go_back_into_the_exact_grid_with_the_values_of_the_file(
    mask: sitk.Image, suffix: str, tmp_path: Path
) -> None:
    table = LabelTable.from_names({300: "vorne – größer", 7: "posterior"})
    gaps = sitk.ChangeLabel(sitk.Cast(mask, sitk.sitkInt16), {1: 300, 2: 7})
    source = save(oblique(gaps, "PIR"), tmp_path / ("größe mit leerzeichen" + suffix.removeprefix(".seg")))
    indices, geometry = read_label(source, table)
    assert set(np.unique(indices)) == {0, 1, 2}
    target = tmp_path / f"neu{suffix}"
    write_label(indices, geometry, table, target)
    written = sitk.ReadImage(str(target))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(sitk.ReadImage(str(source))))
    assert_same_grid(source, target, 1e-6 if suffix == ".nii.gz" else 1e-15)
    again, grid = read_label(target, table)
    np.testing.assert_array_equal(again, indices)
    assert grid_difference(grid, geometry) is None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".part")] == []


def test_a_written_segmentation_carries_names_colours_and_terminology(mask: sitk.Image, tmp_path: Path) -> None:
    table = LabelTable.from_names({1: "vorne größer", 2: "b"}, {1: (255, 0, 51)}, {2: "Anatomy~SCT^1^Liver"})
    indices, geometry = read_label(save(mask, tmp_path / "m.nrrd"), HIPPOCAMPUS)
    write_label(indices, geometry, table, tmp_path / "s.seg.nrrd")
    image = sitk.ReadImage(str(tmp_path / "s.seg.nrrd"))
    read = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys() if key.startswith("Segment")}
    assert read["Segment0_Name"] == "vorne größer" and read["Segment0_LabelValue"] == "1"
    np.testing.assert_allclose([float(c) for c in read["Segment0_Color"].split()], (1, 0, 0.2), atol=1e-5)
    assert read["Segment1_Tags"].startswith("TerminologyEntry:Anatomy~SCT^1^Liver|")
    assert read["Segment0_ID"] != read["Segment1_ID"] and read["Segment1_Layer"] == "0"
    assert read["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert read["Segment0_Extent"] == " ".join(f"0 {n - 1}" for n in image.GetSize())


def test_segments_are_matched_by_name_where_slicer_numbered_them_otherwise(mask: sitk.Image, tmp_path: Path) -> None:
    indices, geometry = read_label(save(mask, tmp_path / "m.nrrd"), HIPPOCAMPUS)
    swapped = LabelTable.from_names({1: "posterior", 2: "anterior"})
    write_label(np.array([0, 2, 1], np.uint8)[indices], geometry, swapped, tmp_path / "s.seg.nrrd")
    np.testing.assert_array_equal(read_label(tmp_path / "s.seg.nrrd", HIPPOCAMPUS)[0], indices)


def test_a_segmentation_with_overlapping_layers_is_refused(mask: sitk.Image, tmp_path: Path) -> None:
    layers = sitk.Compose(sitk.Cast(mask > 0, sitk.sitkUInt8), sitk.Cast(mask == 2, sitk.sitkUInt8))
    with pytest.raises(UnusableImage) as caught:
        read_label(save(layers, tmp_path / "s.seg.nrrd"), HIPPOCAMPUS)
    assert caught.value.code == "overlapping_segments"


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "LIP", "ASL"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".seg.nrrd"])
def test_a_single_slice_is_a_2d_scan_and_goes_back_as_one_slice(
    mask: sitk.Image, code: str, suffix: str, tmp_path: Path
) -> None:
    source = save(sitk.DICOMOrient(mask, code)[:, :, 12:13], tmp_path / "slice.nrrd")
    indices, geometry = read_label(source, HIPPOCAMPUS)
    assert indices.ndim == 2 and indices.shape == geometry.shape and geometry.dims == 2 and indices.any()
    write_label(indices, geometry, HIPPOCAMPUS, tmp_path / f"back{suffix}")
    assert_same_grid(source, tmp_path / f"back{suffix}", 1e-6)
    np.testing.assert_array_equal(read_label(tmp_path / f"back{suffix}", HIPPOCAMPUS)[0], indices)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "LIP", "ASL"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_photo_of_a_single_slice_has_the_pixels_of_its_file_in_their_order(
    mask: sitk.Image, code: str, axis: int, tmp_path: Path
) -> None:
    turned = sitk.DICOMOrient(mask, code)
    kept = [slice(None)] * 3
    kept[axis] = slice(17, 18)
    source = save(turned[tuple(kept)], tmp_path / "slice.nrrd")
    indices, geometry = read_label(source, HIPPOCAMPUS)
    write_label(indices, geometry, HIPPOCAMPUS, tmp_path / "back.png")
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(source))).squeeze(2 - axis)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "back.png"))), pixels)


@pytest.mark.parametrize("code", ["LPS", "PIR", "LIP"])  # axial, sagittal, coronal, as scanners store them
def test_standard_slices_stand_as_a_radiologist_sees_them(mask: sitk.Image, code: str, tmp_path: Path) -> None:
    stored = sitk.DICOMOrient(mask, code)[:, :, 12:13]
    indices, _ = read_label(save(stored, tmp_path / "slice.nrrd"), HIPPOCAMPUS)
    np.testing.assert_array_equal(indices, sitk.GetArrayFromImage(stored)[0])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG"])
def test_photos_have_no_physical_size_and_lose_their_alpha(data: Path, suffix: str, tmp_path: Path) -> None:
    photo = sorted((data / "isic2017" / "images").iterdir())[0]
    image = sitk.ReadImage(str(photo))
    image.SetSpacing((0.08, 0.08))
    bands = [sitk.VectorIndexSelectionCast(image, i) for i in range(3)]
    rgba = save(sitk.Compose(*bands, bands[0] * 0 + 255), tmp_path / f"photo{suffix}")
    scan = read_scan([rgba])
    assert scan.array.shape[0] == 3 and not scan.geometry.physical and scan.spacing == (1.0, 1.0)
    np.testing.assert_array_equal(scan.array, read_scan([photo]).array)


def test_synthetic_photos_become_png_and_others_nrrd(data: Path, volume: sitk.Image, tmp_path: Path) -> None:
    photo = read_scan([sorted((data / "isic2017" / "images").iterdir())[0]])
    written = write_image(photo.array, photo.geometry, tmp_path / "0000_image")
    assert written.name == "0000_image.png"
    np.testing.assert_array_equal(read_scan([written]).array, photo.array)
    assert write_image(photo.array - 300, photo.geometry, tmp_path / "0001_image").suffix == ".nrrd"
    scan = read_scan([save(volume, tmp_path / "v.mha")])
    assert write_image(scan.array, scan.geometry, tmp_path / "v.1").name == "v.1.nrrd"


def test_one_file_per_channel_and_one_file_with_several_are_the_same(volume: sitk.Image, tmp_path: Path) -> None:
    volume = sitk.Cast(volume, sitk.sitkFloat32)
    files = [save(oblique(volume + i, "RSP"), tmp_path / f"c{i}.nrrd") for i in range(2)]
    both = save(sitk.Compose(*(sitk.ReadImage(str(f)) for f in files)), tmp_path / "both.nrrd")
    scan = read_scan([both])
    np.testing.assert_array_equal(read_scan(files).array, scan.array)
    assert scan.array.shape[0] == 2
    back = write_image(scan.array, scan.geometry, tmp_path / "back.nrrd")
    np.testing.assert_array_equal(*(sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (both, back)))


def test_the_grey_mask_of_many_painting_programs_in_colour_is_read_as_one(data: Path, tmp_path: Path) -> None:
    table = LabelTable.from_names({255: "lesion"})
    grey = sorted((data / "isic2017" / "masks").iterdir())[0]
    band = sitk.ReadImage(str(grey))
    rgba = save(sitk.Compose(band, band, band, band * 0 + 255), tmp_path / "mask.png")
    np.testing.assert_array_equal(read_label(rgba, table)[0], read_label(grey, table)[0])


def test_sixty_labels_of_a_torso_keep_their_numbers(data: Path, tmp_path: Path) -> None:
    path = data / "torso_ct_mr" / "labels" / "ct_torso.nii.gz"
    values = [int(v) for v in np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path)))) if v]
    table = LabelTable.from_names({value: f"organ {value}" for value in values})
    indices, geometry = read_label(path, table)
    assert indices.max() == len(values) > 50
    write_label(indices, geometry, table, tmp_path / "t.nii.gz")
    np.testing.assert_array_equal(
        *(sitk.GetArrayFromImage(sitk.ReadImage(str(p))) for p in (path, tmp_path / "t.nii.gz"))
    )
    assert_same_grid(path, tmp_path / "t.nii.gz")


def test_a_scan_with_voxels_that_are_no_number_is_refused_in_every_format(volume: sitk.Image, tmp_path: Path) -> None:
    array = sitk.GetArrayFromImage(volume).astype(np.float32)
    array[3, 3, 3:5] = np.nan
    for suffix in (".nii.gz", ".nii", ".nrrd", ".mha"):  # the NIfTI reader alone would turn them into 0
        path = save(sitk.GetImageFromArray(array), tmp_path / f"nan{suffix}")
        with pytest.raises(UnusableImage) as caught:
            read_scan([path])
        assert caught.value.code == "nan_voxels" and " 2 " in caught.value.rule
        assert read_scan([path], finite=False).bad_voxels == 2


def test_a_photo_does_not_fit_a_scan_whose_stored_axes_were_turned() -> None:
    photo = Geometry((8, 9), (1, 1), (0, 0), (1, 0, 0, 1), physical=False)
    eye = (1, 0, 0, 0, 1, 0, 0, 0, 1)
    assert grid_difference(photo, Geometry((8, 9, 1), (1, 1, 1), (0, 0, 0), eye, orientation="LPS")) is None
    for physical in (True, False):
        turned = Geometry((8, 9, 1), (1, 1, 1), (0, 0, 0), (-1, 0, 0, 0, 1, 0, 0, 0, -1), physical, orientation="RPI")
        assert "photo" in (grid_difference(photo, turned) or "") and grid_difference(turned, turned) is None


def test_suffixes_are_known_in_any_case_and_stems_keep_their_dots() -> None:
    names = {"a.b.nii.gz": ".nii.gz", "S.SEG.NRRD": ".seg.nrrd", "x.JPG": ".jpg", "IM0001": "", "v.1": ""}
    assert {name: suffix_of(Path(name)) for name in names} == names
    assert [stem_of(Path(name)) for name in names] == ["a.b", "S", "x", "IM0001", "v.1"]
