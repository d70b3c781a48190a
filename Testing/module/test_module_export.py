"""The study's images and masks, voxel by voxel: what is written is what the user sees, in the scan's own frame."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from GenSegSlicerLib.Scans import ScanList
from GenSegSlicerLib.StudyExport import StudyExport
from made_scans import GRIDS, RANDOM, SHAPE, blob, noise, written
from mrml import oblique


@pytest.fixture
def export(mrml) -> StudyExport:
    return StudyExport(mrml.scene, ScanList(mrml.scene))


def assertPlaced(image: sitk.Image, ijkToRas: np.ndarray) -> None:
    """Every corner and some inner points lie where the matrix puts them; files are LPS, the matrix is RAS."""
    size = np.array(image.GetSize())
    for fraction in ([0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0.3, 0.6, 0.2]):
        index = (size - 1) * np.array(fraction)
        lps = image.TransformContinuousIndexToPhysicalPoint(index.tolist())
        ras = ijkToRas @ np.array([*index, 1])
        assert np.allclose([-lps[0], -lps[1], lps[2]], ras[:3], rtol=0, atol=1e-6)


# --- geometry -----------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", [False, True], ids=["at rest", "under a transform"])
@pytest.mark.parametrize("grid", GRIDS)
def test_image_and_mask_are_exact_on_every_grid(mrml, export, tmp_path, grid, moved):
    array, first, second = noise(), blob(), blob((0, 0, 0), (2, 9, 3))
    volume = mrml.volume(array, "scan", GRIDS[grid])
    if moved:
        outer = mrml.transform(oblique((1, 1, 1), (3, 2, 1), (0, 0, 90)))
        inner = mrml.transform(oblique((1.1, 0.9, 1), (30, -20, 10), (35, 10, -20)))
        inner.SetAndObserveTransformNodeID(outer.GetID())
        volume.SetAndObserveTransformNodeID(inner.GetID())
    mrml.segmentation({"a": first, "b": second}, volume)
    study = written(export, tmp_path)
    assert study.image().GetPixelID() == sitk.sitkInt16
    assert np.array_equal(sitk.GetArrayFromImage(study.image()), array)
    assert np.array_equal(study.values(), first + 2 * second.astype(int))
    for image in (study.image(), study.mask()):
        assertPlaced(image, GRIDS[grid])  # the transform is not in the file


@pytest.mark.parametrize("grid", GRIDS)
def test_slicer_loads_the_files_where_the_scan_was(mrml, export, tmp_path, grid):
    volume = mrml.volume(noise(), "scan", GRIDS[grid])
    node = mrml.segmentation({"a": blob()}, volume)
    study = written(export, tmp_path)
    image = mrml.loadVolume(study.folder / study.content["training"][0]["image"])
    flipped = np.eye(4)
    if np.linalg.det(GRIDS[grid]) < 0:  # Slicer turns the slices of left-handed files around when it loads them
        flipped[2, 2], flipped[2, 3] = -1, SHAPE[0] - 1
    assert np.allclose(mrml.ijkToRas(image), GRIDS[grid] @ flipped, rtol=0, atol=1e-6)
    turned = slice(None, None, int(flipped[2, 2]))
    assert np.array_equal(mrml.array(image)[turned], mrml.array(volume))
    mask = mrml.loadVolume(study.folder / study.content["training"][0]["label"])
    assert np.array_equal(mrml.array(mask) == 1, mrml.mask(node, "a", image))
    assert np.array_equal(mrml.array(mask)[turned] == 1, blob())


def test_a_segmentation_under_another_transform_is_taken_where_it_is_seen(mrml, export, tmp_path):
    volume = mrml.volume(noise(), "scan", GRIDS["oblique"])
    node = mrml.segmentation({"a": blob((2, 3, 3), (5, 6, 8))}, volume)
    shift = np.eye(4)
    shift[:3, 3] = GRIDS["oblique"][:3, 0] - GRIDS["oblique"][:3, 1]  # one voxel along i, one back along j
    node.SetAndObserveTransformNodeID(mrml.transform(shift).GetID())
    assert np.array_equal(written(export, tmp_path).values() == 1, blob((2, 2, 4), (5, 5, 9)))


def test_a_volume_under_a_transform_and_a_segmentation_drawn_in_the_world(mrml, export, tmp_path):
    volume = mrml.volume(noise(), "scan", GRIDS["anisotropic"])
    turned = oblique((1, 1, 1), (7, 8, 9), (20, -30, 50))
    volume.SetAndObserveTransformNodeID(mrml.transform(turned).GetID())
    node = mrml.segmentation({"a": blob()}, name="world", ijkToRas=turned @ GRIDS["anisotropic"])
    ScanList(mrml.scene).setSegmentation(volume, node)
    assert np.array_equal(written(export, tmp_path).values() == 1, blob())


@pytest.mark.parametrize("offset", [(2, 2, 2), (-3, -2, -1)], ids=["within", "beyond"])
def test_segments_drawn_on_another_extent_of_the_grid_keep_their_voxels(mrml, export, tmp_path, offset):
    volume = mrml.volume(noise(), "scan", GRIDS["oblique"])
    i, j, k = offset
    small = np.zeros((14, 16, 18), bool)  # larger than the scan where it begins before it
    small[2 - k : 4 - k, 3 - j : 6 - j, 4 - i : 9 - i] = True
    mrml.segmentation({"a": small}, volume, offset=offset)
    expected = np.zeros(SHAPE, bool)
    expected[2:4, 3:6, 4:9] = True
    assert np.array_equal(written(export, tmp_path).values() == 1, expected)


@pytest.mark.parametrize(
    ("spacing", "degrees", "high"),
    [
        pytest.param((0.31, 0.33, 0.47), (0, 0, 0), (30, 15, 30), id="finer"),
        pytest.param((1.9, 2.1, 2.3), (0, 0, 0), (9, 6, 7), id="coarser"),
        pytest.param((0.7, 0.7, 0.7), (30, 20, 10), (20, 12, 15), id="turned"),
    ],
)
def test_a_segmentation_on_a_grid_of_its_own_agrees_with_slicers_export(mrml, export, tmp_path, spacing, degrees, high):
    shape, (k, j, i) = (24, 50, 50), high
    volume = mrml.volume(noise(shape), "scan", oblique((1, 1, 1.5), (1, 2, 3), (5, 5, 5)))
    own = oblique(spacing, (15.13, 11.21, 8.37), degrees)
    masks = {"a": blob((2, 2, 2), high, (32, 32, 32)), "b": blob((2, j + 1, 2), (k, j + 5, i), (32, 32, 32))}
    node = mrml.segmentation(masks, volume, ijkToRas=own)
    mine = written(export, tmp_path).values()
    for value, segment in enumerate(masks, 1):
        slicers = mrml.mask(node, segment, volume)
        assert slicers.sum() > 20
        assert np.array_equal(mine == value, slicers)


def test_segments_sharing_one_layer_are_told_apart(mrml, export, tmp_path):
    volume = mrml.volume(noise())
    first, second, third = blob((0, 0, 0), (2, 3, 9)), blob((2, 2, 2), (5, 6, 8)), blob((5, 1, 1), (7, 4, 5))
    mrml.segmentation({"a": first, "b": second, "c": third}, volume, layers=False)
    expected = first * 1 + second * 2 + third * 3
    assert np.array_equal(written(export, tmp_path).values(), expected)


def test_a_segmentation_drawn_as_surfaces_is_brought_onto_the_voxels_and_not_changed(mrml, export, tmp_path):
    shape = (20, 22, 24)
    volume = mrml.volume(noise(shape), "scan", oblique((1, 1.2, 1.5), (3, 4, 5), (10, 20, 30)))
    mask = blob((4, 5, 5), (15, 16, 18), shape)
    node = mrml.segmentation({"a": mask}, volume)
    node.GetSegmentation().SetConversionParameter("Smoothing factor", "0.0")
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    node.RemoveBinaryLabelmapRepresentation()
    found = written(export, tmp_path).values() == 1
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) > 0.97
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


# --- kinds of images ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32, np.float64])
def test_voxels_keep_their_type_and_value(mrml, export, tmp_path, dtype):
    array = (
        noise(dtype=np.uint8).astype(dtype)
        if np.issubdtype(dtype, np.integer)
        else RANDOM.normal(size=SHAPE).astype(dtype)
    )
    if np.issubdtype(dtype, np.integer):
        array.flat[:2] = np.iinfo(dtype).min, np.iinfo(dtype).max
    mrml.segmentation({"a": blob()}, mrml.volume(array))
    image = written(export, tmp_path).image()
    stored = sitk.GetArrayFromImage(image)
    assert stored.dtype == dtype and np.array_equal(stored, array)


def test_color_photographs_are_png_with_their_rows_in_order(mrml, export, tmp_path):
    photos = [noise((13, 17, 3), np.uint8) for _ in range(2)]
    mask = blob((0, 2, 3), (1, 9, 12), (1, 13, 17))
    first = mrml.photo(photos[0], "Größe 1")
    mrml.photo(photos[1], "two")
    mrml.segmentation({"polyp": mask}, first)
    study = written(export, tmp_path)
    entry = study.content["training"][0]
    assert entry["image"] == "images/Grosse-1.png" and entry["label"] == "labels/Grosse-1.png"
    assert entry["name"] == "Größe 1" and study.image().GetDimension() == 2
    assert np.array_equal(sitk.GetArrayFromImage(study.image()), photos[0])
    assert np.array_equal(sitk.GetArrayFromImage(study.image("unlabeled")), photos[1])
    assert np.array_equal(study.values() == 1, mask[0])


def test_opacity_is_left_out_and_gray_with_16_bits_stays(mrml, export, tmp_path):
    photo = noise((13, 17, 4), np.uint8)
    mrml.segmentation({"a": blob((0, 2, 3), (1, 9, 12), (1, 13, 17))}, mrml.photo(photo, "rgba"))
    mrml.photo(noise((13, 17, 3), np.uint8), "rgb")
    study = written(export, tmp_path / "color")
    assert np.array_equal(sitk.GetArrayFromImage(study.image()), photo[..., :3])
    mrml.scene.Clear(0)
    gray = (noise((13, 17), np.uint16) * 60).astype(np.uint16)
    mrml.segmentation({"a": blob((0, 2, 3), (1, 9, 12), (1, 13, 17))}, mrml.photo(gray, "gray"))
    stored = written(export, tmp_path / "gray").image()
    assert stored.GetPixelID() == sitk.sitkUInt16 and np.array_equal(sitk.GetArrayFromImage(stored), gray)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_single_slice_keeps_its_place_in_space(mrml, export, tmp_path, grid):
    array, mask = noise((1, 13, 17)), blob((0, 2, 3), (1, 9, 12), (1, 13, 17))
    volume = mrml.volume(array, "CT slice", GRIDS[grid])
    mrml.segmentation({"a": mask}, volume)
    study = written(export, tmp_path)
    assert np.array_equal(sitk.GetArrayFromImage(study.image()), array)
    assert np.array_equal(study.values() == 1, mask)
    assertPlaced(study.image(), GRIDS[grid])
    assertPlaced(study.mask(), GRIDS[grid])


def test_photographs_beside_slices_with_a_size_are_all_written_with_their_place(mrml, export, tmp_path):
    gray = noise((13, 17), np.uint8)
    mask = blob((0, 2, 3), (1, 9, 12), (1, 13, 17))
    mrml.segmentation({"a": mask}, mrml.photo(gray, "photo"))
    mrml.volume(noise((1, 13, 17)), "slice", np.diag([-0.7, -0.7, 5, 1]))
    study = written(export, tmp_path)
    assert study.content["training"][0]["image"].endswith(".nrrd")
    assert study.image().GetDimension() == 3


def test_photographs_held_differently_are_not_turned_in_silence(mrml, export, tmp_path):
    gray = [noise((1, 13, 17), np.uint8) for _ in range(2)]
    mrml.segmentation(
        {"a": blob((0, 2, 3), (1, 9, 12), (1, 13, 17))}, mrml.volume(gray[0], "a", np.diag([-1, -1, 1, 1]))
    )
    mrml.volume(gray[1], "b", np.diag([1, 1, 1, 1]))
    assert written(export, tmp_path).content["training"][0]["image"].endswith(".nrrd")


def test_volumes_with_several_channels_keep_them(mrml, export, tmp_path):
    array = noise((*SHAPE, 3), np.float32)
    mrml.segmentation({"a": blob()}, mrml.volume(array, "dce", GRIDS["oblique"]))
    image = written(export, tmp_path).image()
    assert np.array_equal(sitk.GetArrayFromImage(image), array)
    assertPlaced(image, GRIDS["oblique"])


@pytest.mark.parametrize("name", ["busi", "drive", "kvasir", "chase_db1", "dsb2018"])
def test_real_photographs_are_known_as_such_and_written_unchanged(mrml, export, tmp_path, data, name):
    content = json.loads((data / name / "dataset.json").read_text(encoding="utf-8"))
    case = content["training"][0]
    volume = mrml.loadPhoto(data / name / case["image"])
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(data / name / case["label"]))) > 0
    mask = mask if mask.ndim == 2 else mask.any(axis=-1)
    assert ScanList(mrml.scene).scan(volume).isPhotograph
    mrml.segmentation({"a": mask[None]}, volume)
    study = written(export, tmp_path)
    source = sitk.GetArrayFromImage(sitk.ReadImage(str(data / name / case["image"])))
    source = source[..., :3] if source.ndim == 3 and source.shape[-1] == 4 else source
    assert study.content["training"][0]["image"].endswith(".png")
    assert np.array_equal(sitk.GetArrayFromImage(study.image()), source.squeeze())
    assert np.array_equal(study.values() == 1, mask)
