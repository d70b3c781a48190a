"""Synthetic pairs: what the gallery lists and draws, what it shows in the scene, and what the user excludes."""

import json
import os

import numpy as np
import pytest
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gallery import AMBER, RED, Gallery
from written_run import BLUE, CT, ORANGE, WrittenRun, head


def opened(run):
    gallery = Gallery(run.folder)
    gallery.refresh()
    return gallery


def where(picture, color):
    """(rows, columns) of the pixels that have exactly this color."""
    return np.nonzero((picture == color).all(axis=2))


# --- the list ----------------------------------------------------------------------------------------------------


def test_pairs_are_listed_newest_first_with_everything_the_index_says(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head(), step=100, agreement=0.91, nearest="b", similarity=0.97, near_copy=True)
    run.pair(*head(), step=200, used=False, implant="c", source="b")
    run.pair(*head(), step=200)
    newest, second, oldest = opened(run).pairs()
    assert (newest.name, second.name, oldest.name) == ("0001", "0002", "0000")
    assert (newest.used, newest.implant, newest.source, newest.step) == (False, "c", "b", 200)
    assert (oldest.agreement, oldest.nearest, oldest.similarity, oldest.nearCopy) == (0.91, "b", 0.97, True)
    assert oldest.image == run.folder / "synthetic" / "0000_image.nrrd" and oldest.mask.exists()


def test_a_run_without_pairs_has_an_empty_gallery_and_no_complaint(tmp_path):
    gallery = Gallery(tmp_path / "nothing")
    assert gallery.refresh() is False and gallery.pairs() == [] and gallery.problem == ""


def test_new_pairs_appear_at_the_next_look_and_nothing_is_read_twice(tmp_path, monkeypatch):
    run = WrittenRun(tmp_path / "run")
    gallery = opened(run)
    run.pair(*head())
    assert gallery.refresh() is True and len(gallery.pairs()) == 1
    with monkeypatch.context() as patched:
        patched.setattr(json, "loads", None)
        assert gallery.refresh() is False and gallery.problem == ""
    run.pair(*head())
    assert gallery.refresh() is True and len(gallery.pairs()) == 2


def test_a_broken_index_keeps_the_pairs_that_were_read_and_says_so(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head())
    gallery = opened(run)
    (run.folder / "synthetic" / "index.json").write_text('{"pairs": [', encoding="utf-8")
    assert gallery.refresh() is False
    assert len(gallery.pairs()) == 1 and "cannot be read" in gallery.problem
    run.pair(*head())
    assert gallery.refresh() is True and len(gallery.pairs()) == 2 and gallery.problem == ""


def test_a_pair_whose_files_have_gone_is_left_out_and_named(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head())
    run.pair(*head())
    (run.folder / "synthetic" / "0001_mask.nrrd").unlink()
    gallery = opened(run)
    assert [pair.name for pair in gallery.pairs()] == ["0000"] and "0001_mask.nrrd" in gallery.problem


def test_the_words_about_a_pair_name_its_scans_and_what_is_wrong_with_it(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head(), source="anna", nearest="berta", agreement=0.55, near_copy=True, used=False, implant="carl")
    gallery = opened(run)
    told = gallery.describe(gallery.pairs()[0])
    assert all(name in told for name in ("anna", "berta", "carl", "0.55", "do not share", "left out"))
    assert "excluded" not in told


# --- pictures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spacing", "shape"), [((1, 1, 1), (160, 128)), ((3, 1, 1), (67, 160)), ((1, 2, 1), (160, 64))]
)
def test_a_picture_has_the_true_proportions_of_the_patient(tmp_path, spacing, shape):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head(), spacing=spacing)  # x, y, z
    gallery = opened(run)
    assert gallery.thumbnail(gallery.pairs()[0], 160).shape == (*shape, 3)


def test_the_slice_with_most_mask_is_drawn_every_structure_counting_alike(tmp_path):
    mask = np.zeros((9, 20, 20), np.uint8)
    mask[2, 2:18, 2:18] = 1  # large, alone
    mask[6, 2:10, 2:18] = 1  # smaller, with the whole of the other structure
    mask[6, 12:14, 12:14] = 2
    image = np.zeros(mask.shape, np.float32)
    image[6] = 100
    image[0, 0, 0] = 200
    run = WrittenRun(tmp_path / "run")
    run.pair(image, mask)
    gallery = opened(run)
    picture = gallery.thumbnail(gallery.pairs()[0], 200)
    assert len(where(picture, BLUE)[0]) > 20 and len(where(picture, ORANGE)[0]) > 20
    assert picture[190, 190].min() > 100, "the image must come from the same slice as the mask"


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_pictures_follow_radiological_convention_however_the_file_lies(tmp_path, flips):
    """The patient's left is on the right of the picture, the front is up."""
    mask = np.zeros((10, 30, 30), np.uint8)  # LPS
    mask[4:6, 3:9, 20:28] = 1  # in front, on the left
    stored = np.ascontiguousarray(mask[:: flips[2], :: flips[1], :: flips[0]])
    run = WrittenRun(tmp_path / "run")
    run.pair(stored.astype(np.float32), stored, spacing=(1, 1, 2), direction=np.diag(flips))
    gallery = opened(run)
    picture = gallery.thumbnail(gallery.pairs()[0], 120)
    rows, columns = where(picture, ORANGE)
    assert picture.shape == (120, 120, 3)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 35, 80, 111)


def test_slabs_and_slices_of_coronal_stacks_are_shown_across_with_the_head_up(tmp_path):
    mask = np.zeros((40, 6, 30), np.uint8)  # LPS: thin from front to back
    mask[30:38, 2, 4:10] = 1  # near the head, on the right
    volume = WrittenRun(tmp_path / "volume")
    volume.pair(mask.astype(np.float32), mask)
    slices = WrittenRun(tmp_path / "slices", sliceAxis=1)
    slices.scan("a", mask.astype(np.float32), mask)
    slices.pair(mask[:, 2].astype(np.float32), mask[:, 2], spacing=(1, 1))
    pictures = [gallery.thumbnail(gallery.pairs()[0], 80) for gallery in (opened(volume), opened(slices))]
    for picture in pictures:
        rows, columns = where(picture, ORANGE)
        assert picture.shape == (80, 60, 3) and rows.max() < 20 and columns.max() < 20


def test_under_the_light_color_of_the_mask_the_image_can_still_be_judged(tmp_path):
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:20], image[20:30] = 80, 160
    mask = np.zeros((40, 40), np.uint8)
    mask[5:35, 5:35] = 2
    run = WrittenRun(tmp_path / "run")
    run.pair(image, mask, suffix=".png")
    gallery = opened(run)
    picture = gallery.thumbnail(gallery.pairs()[0], 80).astype(int)
    dark, bright = picture[30, 40], picture[50, 40]
    assert (bright - dark).min() > 60, "contrast within the structure"
    assert tuple(picture[2, 2]) == (0, 0, 0) and tuple(picture[10, 40]) == BLUE


def test_ct_is_drawn_in_the_window_of_the_plan(tmp_path):
    hounsfield = np.full((6, 10, 10), 100.0, np.float32)  # in the middle of the window
    hounsfield[:, 0], hounsfield[:, 1] = 3000, -1000  # metal and air
    mask = np.zeros(hounsfield.shape, np.uint8)
    run = WrittenRun(tmp_path / "run", normalisation=CT)
    run.pair((hounsfield - 50) / 100, mask)
    gallery = opened(run)
    made = gallery.thumbnail(gallery.pairs()[0], 10)
    assert set(made[5].ravel()) == {128}
    assert made[0].min() == 255 and made[1].max() == 0


def test_an_unreadable_pair_gives_a_grey_picture_and_a_sentence(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head())
    gallery = opened(run)
    gallery.pairs()[0].image.write_bytes(b"no image")
    picture = gallery.thumbnail(gallery.pairs()[0], 64)
    assert picture.shape == (64, 64, 3) and np.ptp(picture) == 0 and "cannot be drawn" in gallery.problem


def test_a_pair_that_was_written_again_after_a_resume_is_drawn_again(tmp_path):
    run = WrittenRun(tmp_path / "run")
    image, mask = head()
    run.pair(image, mask, parameters={"seed": 1, "number": 0}, step=100)
    gallery = opened(run)
    before = gallery.thumbnail(gallery.pairs()[0], 64)
    run.pairs.clear()
    run.pair(image[:, ::-1], mask[:, ::-1], parameters={"seed": 1, "number": 0}, step=101)
    gallery.refresh()
    assert not np.array_equal(gallery.thumbnail(gallery.pairs()[0], 64), before)


def test_near_copies_and_unused_pairs_have_a_frame_and_excluded_ones_a_cross(tmp_path):
    run = WrittenRun(tmp_path / "run")
    for about in ({}, {"near_copy": True}, {"used": False}):
        run.pair(*head(), **about)
    gallery = opened(run)
    plain, copy, unused = (gallery.thumbnail(pair, 100) for pair in gallery.pairs())
    before = plain.copy()
    plain[:] = 7  # what a caller does to its picture stays its own affair
    plain = gallery.thumbnail(gallery.pairs()[0], 100)
    assert np.array_equal(plain, before)
    assert tuple(copy[0, 50]) == AMBER == tuple(unused[99, 50]) and tuple(plain[0, 50]) != AMBER
    gallery.exclude(gallery.pairs()[0])
    crossed = gallery.thumbnail(gallery.pairs()[0], 100)
    assert tuple(crossed[0, 0]) == RED == tuple(crossed[50, 40]) and crossed[50, 10].mean() < 0.5 * plain[50, 10].mean()
    gallery.include(gallery.pairs()[0])
    assert np.array_equal(gallery.thumbnail(gallery.pairs()[0], 100), plain), "what is kept is not drawn over"


# --- excluding ---------------------------------------------------------------------------------------------------


def test_what_is_excluded_stands_in_the_run_folder_and_is_found_again(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head(), source="größe", style="b", parameters={"seed": 7, "number": 3})
    run.pair(*head())
    gallery = opened(run)
    bad = next(pair for pair in gallery.pairs() if pair.name == "0000")
    gallery.exclude(bad)
    gallery.exclude(bad)
    entry = {"image": "0000_image.nrrd", "source": "größe", "implant": None, "style": "b", "seed": 7, "number": 3}
    assert json.loads((run.folder / "excluded.json").read_text(encoding="utf-8")) == {"pairs": [entry | {"step": 100}]}
    for reader in (gallery, opened(run)):
        assert {pair.name: pair.excluded for pair in reader.pairs()} == {"0000": True, "0001": False}
    gallery.include(bad)
    assert json.loads((run.folder / "excluded.json").read_text(encoding="utf-8")) == {"pairs": []}
    assert not any(pair.excluded for pair in opened(run).pairs())


def test_another_pair_under_the_same_name_is_not_excluded(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head(), parameters={"seed": 1, "number": 0})
    gallery = opened(run)
    gallery.exclude(gallery.pairs()[0])
    run.pairs.clear()
    run.pair(*head(), parameters={"seed": 2, "number": 0})
    gallery.refresh()
    assert not gallery.pairs()[0].excluded


def test_a_list_of_exclusions_that_cannot_be_read_is_never_written_over(tmp_path):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head())
    (run.folder / "excluded.json").write_text("{broken", encoding="utf-8")
    gallery = opened(run)
    assert len(gallery.pairs()) == 1 and "excluded pairs cannot be read" in gallery.problem
    with pytest.raises(StudyFaults) as caught:
        gallery.exclude(gallery.pairs()[0])
    assert "excluded.json" in caught.value.faults[0].remedy
    assert (run.folder / "excluded.json").read_text(encoding="utf-8") == "{broken"


def test_a_failed_write_leaves_the_old_list_and_no_temporary_file(tmp_path, monkeypatch):
    run = WrittenRun(tmp_path / "run")
    run.pair(*head())
    run.pair(*head())
    gallery = opened(run)
    gallery.exclude(gallery.pairs()[0])
    before = (run.folder / "excluded.json").read_bytes()

    def full(*_paths):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        gallery.exclude(gallery.pairs()[1])
    assert (run.folder / "excluded.json").read_bytes() == before
    assert not list(run.folder.glob(".part-*"))
