"""A study without a label table takes the values of its masks, unless smoothing made them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genseg.errors import Fault, InputFaults
from genseg.study import read_study


@pytest.fixture
def pair(small_study, tmp_path: Path) -> Callable[[Callable[[Image.Image, Path], None]], Path]:
    """pair(save): a folder of `images` and `masks` with two real photos, each mask written by save(mask, stem)."""

    def make(save: Callable[[Image.Image, Path], None]) -> Path:
        source, folder = small_study("kvasir", training=2, test=0), tmp_path / "pair"
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for case in (0, 1):
            shutil.copy(source.image(case), folder / "images")
            save(Image.open(source.label(case)).convert("L"), folder / "masks" / source.id(case))
        return folder

    return make


def faults(folder: Path) -> list[Fault]:
    with pytest.raises(InputFaults) as caught:
        read_study(folder)
    return caught.value.faults


def halved_and_doubled(mask: Image.Image, path: Path) -> None:
    width, height = mask.size
    smaller = mask.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    smaller.resize(mask.size, Image.Resampling.BILINEAR).save(f"{path}.png")


def as_jpeg(mask: Image.Image, path: Path) -> None:
    mask.convert("RGB").save(f"{path}.jpg", quality=95)


@pytest.mark.parametrize("save", [as_jpeg, halved_and_doubled])
def test_the_values_of_smoothed_masks_are_no_structures(pair, save) -> None:
    found = faults(pair(save))
    assert [fault.code for fault in found] == ["smoothed_mask"] * 2 and "PNG" in found[0].remedy


def test_many_values_of_which_none_prevails_are_structures(pair) -> None:
    def striped(mask: Image.Image, path: Path) -> None:
        rows = np.linspace(0, 255, 12).astype(np.uint8)[np.arange(mask.size[1]) * 12 // mask.size[1]]
        Image.fromarray(np.repeat(rows[:, None], mask.size[0], axis=1)).save(f"{path}.png")

    assert len(read_study(pair(striped)).labels) == 12
