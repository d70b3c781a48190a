"""A synthetic pair in the scene, beside the real scan that it resembles."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from GenSegSlicerLib.Gallery import Gallery
from GenSegSlicerLib.Scans import GALLERY, isPrediction
from written_run import ORANGE, WrittenRun, ball, head


def opened(run):
    gallery = Gallery(run.folder)
    gallery.refresh()
    return gallery


@pytest.fixture
def shown(tmp_path, mrml):
    """A run with one volume pair and a real scan that lies oblique, far from the origin."""
    run = WrittenRun(tmp_path / "run")
    image, mask = head()
    mask = mask + 2 * ball(mask.shape, (3, 15, 12), 2).astype(np.uint8)
    turned = sitk.Euler3DTransform((0, 0, 0), 0.1, 0.2, 0.3).GetMatrix()
    run.scan("a", image.astype(np.int16), mask, spacing=(0.7, 0.8, 2.5), direction=turned, origin=(-90, 30, 500))
    run.pair(image.astype(np.float32), mask, spacing=(1, 1.5, 2))
    return run, opened(run), image, mask


def test_a_shown_pair_has_its_voxels_places_names_and_colors(shown, mrml):
    run, gallery, image, mask = shown
    pair = gallery.pairs()[0]
    nodes = gallery.show(pair, mrml.scene)
    assert np.array_equal(mrml.array(nodes.image), image.astype(np.float32))
    reference = {"made": mrml.loadVolume(pair.image), "real": mrml.loadVolume(run.training[0]["images"][0])}
    for volume, own, segmentation in (
        (reference["made"], nodes.image, nodes.mask),
        (reference["real"], nodes.nearestImage, nodes.nearestMask),
    ):
        assert np.allclose(mrml.ijkToRas(volume), mrml.ijkToRas(own), atol=1e-6), "as Slicer itself loads the file"
        assert [segment.GetName() for segment in mrml.segments(segmentation)] == ["head", "tail"]
        assert np.allclose(mrml.segments(segmentation)[0].GetColor(), np.array(ORANGE) / 255)
        assert np.array_equal(mrml.mask(segmentation, "head", volume), mask == 1)
        assert np.array_equal(mrml.mask(segmentation, "tail", volume), mask == 2)
    assert nodes.problem == "" and "0000" in nodes.image.GetName() and "a" in nodes.nearestImage.GetName()


def test_the_views_are_told_a_place_that_lies_in_a_structure(shown, mrml):
    _run, gallery, _image, mask = shown
    nodes = gallery.show(gallery.pairs()[0], mrml.scene)
    for volume, position in ((nodes.image, nodes.position), (nodes.nearestImage, nodes.nearestPosition)):
        i, j, k, _one = np.linalg.inv(mrml.ijkToRas(volume)) @ [*position, 1]
        assert mask[round(k), round(j), round(i)] > 0


def test_another_pair_takes_the_place_of_the_first_and_hide_leaves_the_scene_as_it_was(shown, mrml):
    run, gallery, image, mask = shown
    own = mrml.volume(np.zeros((2, 3, 4), np.int16), "mine")
    run.pair(image.astype(np.float32), mask)
    gallery.refresh()
    before = {mrml.scene.GetNthNode(i).GetID() for i in range(mrml.scene.GetNumberOfNodes())}
    counts = []
    for pair in gallery.pairs():
        gallery.show(pair, mrml.scene)
        counts.append(mrml.scene.GetNumberOfNodes())
    assert counts[0] == counts[1] > len(before)
    gallery.hide(mrml.scene)
    assert {mrml.scene.GetNthNode(i).GetID() for i in range(mrml.scene.GetNumberOfNodes())} == before
    hierarchy = mrml.subjectHierarchy
    assert hierarchy.GetNumberOfItemChildren(hierarchy.GetSceneItemID(), True) == 1
    assert hierarchy.GetItemByDataNode(own) != 0


def test_all_of_it_lies_in_one_folder_and_is_not_saved_with_the_scene(shown, mrml, tmp_path):
    _run, gallery, _image, _mask = shown
    nodes = gallery.show(gallery.pairs()[0], mrml.scene)
    hierarchy = mrml.subjectHierarchy
    folder = hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), "Synthetic pairs")
    for node in (nodes.image, nodes.mask, nodes.nearestImage, nodes.nearestMask):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == folder
        assert not node.GetSaveWithScene() and not node.GetDisplayNode().GetSaveWithScene()
        assert node.GetAttribute(GALLERY)
    mrml.open(mrml.save(tmp_path / "saved"))
    Gallery.hide(mrml.scene)
    hierarchy = mrml.subjectHierarchy
    assert hierarchy.GetNumberOfItemChildren(hierarchy.GetSceneItemID(), True) == 0
    for kind in ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLSegmentationDisplayNode"):
        assert mrml.scene.GetNumberOfNodesByClass(kind) == 0


def test_a_scan_that_is_in_the_scene_is_shown_itself_and_stays_when_the_pair_goes(shown, mrml):
    _run, gallery, image, mask = shown
    volume = mrml.volume(image, "mine", np.diag([1.0, 1, 1, 1]))
    drawn = mrml.segmentation({"head": mask == 1}, volume)
    asked = []
    nodes = gallery.show(gallery.pairs()[0], mrml.scene, scanOf=lambda case: asked.append(case) or (volume, drawn))
    assert asked == ["a"] and nodes.nearestImage is volume and nodes.nearestMask is not drawn
    assert np.array_equal(mrml.mask(nodes.nearestMask, "head", volume), mrml.mask(drawn, "head", volume))
    assert not isPrediction(nodes.nearestMask) and nodes.nearestMask.GetAttribute(GALLERY)
    k, j, i = np.argwhere(mask == 1).mean(axis=0)
    assert np.allclose(nodes.nearestPosition, (i, j, k), atol=1)
    gallery.hide(mrml.scene)
    assert mrml.scene.IsNodePresent(volume) and mrml.scene.IsNodePresent(drawn)


def test_without_the_real_scan_the_pair_is_shown_and_the_reason_told(shown, mrml, tmp_path):
    _run, gallery, _image, _mask = shown
    shutil.rmtree(tmp_path / "scans")
    nodes = gallery.show(gallery.pairs()[0], mrml.scene)
    assert nodes.image is not None and nodes.nearestImage is None and "cannot be read" in nodes.problem


def test_a_pair_that_cannot_be_read_leaves_the_scene_alone(shown, mrml):
    _run, gallery, _image, _mask = shown
    pair = gallery.pairs()[0]
    gallery.show(pair, mrml.scene)
    before = mrml.scene.GetNumberOfNodes()
    pair.mask.unlink()
    with pytest.raises(OSError):
        gallery.show(pair, mrml.scene)
    assert mrml.scene.GetNumberOfNodes() == before


def test_masks_appear_only_in_the_views_that_are_named(shown, mrml):
    _run, gallery, _image, _mask = shown
    nodes = gallery.show(gallery.pairs()[0], mrml.scene, views=["vtkMRMLSliceNodeRed"], nearestViews=["other"])
    assert nodes.mask.GetDisplayNode().IsDisplayableInView("vtkMRMLSliceNodeRed")
    assert not nodes.mask.GetDisplayNode().IsDisplayableInView("other")
    assert not nodes.nearestMask.GetDisplayNode().IsDisplayableInView("vtkMRMLSliceNodeRed")


def test_a_photograph_is_shown_in_color_where_slicer_would_put_it(tmp_path, mrml):
    from mrml import PHOTO

    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    mask = np.zeros((20, 30), np.uint8)
    mask[2:6, 20:28] = 1
    run = WrittenRun(tmp_path / "run")
    run.scan("a", image, mask, suffix=".png")
    run.pair(image, mask, suffix=".png")
    gallery = opened(run)
    nodes = gallery.show(gallery.pairs()[0], mrml.scene)
    assert nodes.image.IsA("vtkMRMLVectorVolumeNode")
    assert np.array_equal(mrml.array(nodes.image), image[None])
    assert np.allclose(mrml.ijkToRas(nodes.image), PHOTO)
    assert np.array_equal(mrml.mask(nodes.mask, "head", nodes.image), mask[None] == 1)


def test_what_the_gallery_shows_is_never_taken_for_a_scan_of_the_study(shown, mrml):
    from GenSegSlicerLib.Scans import ScanList

    _run, gallery, _image, _mask = shown
    own = mrml.volume(np.zeros((2, 3, 4), np.int16), "mine")
    gallery.show(gallery.pairs()[0], mrml.scene)
    assert [scan.volumeNode for scan in ScanList(mrml.scene).scans()] == [own]
