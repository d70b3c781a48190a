"""Checking a study reads several files at a time, but never more voxels than a laptop has room for."""

import os
import threading
import time
from pathlib import Path

import pytest
import SimpleITK as sitk

from genseg import check
from genseg.check import find_faults
from genseg.imagefile import announced_voxels
from genseg.study import Study, read_study


@pytest.fixture
def study(small_study, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Five cases, on a machine with eight processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    return read_study(small_study().write())


def test_small_cases_are_read_at_the_same_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(5)
    monkeypatch.setattr(check, "_read", lambda *_: together.wait(timeout=60))  # which breaks unless all five are there
    assert find_faults(study, judge_whole=False) == []


def test_a_case_that_fills_the_room_is_read_alone(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, alone = threading.Lock(), []

    def read(*_) -> None:
        alone.append(lock.acquire(blocking=False))
        time.sleep(0.05)
        lock.release()

    monkeypatch.setattr(check, "_read", read)
    monkeypatch.setattr(check, "MOST_VOXELS", 1000)
    find_faults(study, judge_whole=False)
    assert alone == [True] * 5


def test_the_header_tells_the_voxels_of_a_volume_a_photo_and_a_series(data: Path, tmp_path: Path) -> None:
    volume, photo = (sorted((data / name / "images").iterdir())[0] for name in ("hippocampus", "kvasir"))
    image = sitk.ReadImage(str(volume))
    assert announced_voxels(volume) == image.GetNumberOfPixels()
    assert announced_voxels(photo) == 3 * sitk.ReadImage(str(photo)).GetNumberOfPixels()
    for i in range(4):
        sitk.WriteImage(sitk.Cast(image[:, :, i], sitk.sitkInt16), str(tmp_path / f"{i}.dcm"))
    assert announced_voxels(tmp_path) == 4 * image[:, :, 0].GetNumberOfPixels()


def test_what_has_no_header_takes_no_room_and_is_reported_later(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    assert [announced_voxels(tmp_path / name) for name in ("empty", "broken.nii.gz", "absent.png")] == [0, 0, 0]
