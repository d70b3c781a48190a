"""The names of Slicer's segments decide which structure is which, on a real mask numbered the other way."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.imageio import UnusableImage, read_label, read_label_values
from genseg.labels import LabelTable
from genseg.study import read_study

TABLE = LabelTable.from_names({1: "anterior hippocampus", 2: "posterior hippocampus"})


@pytest.fixture
def mask(data: Path) -> Path:
    return sorted((data / "hippocampus" / "labels").iterdir())[0]


def swapped(mask: Path, path: Path, names: list[str]) -> Path:
    """The mask with its two values exchanged, as a segmentation whose segment i has the value i + 1."""
    image = sitk.ChangeLabel(sitk.ReadImage(str(mask)), {1: 2, 2: 1})
    for i, name in enumerate(names):
        image.SetMetaData(f"Segment{i}_Name", name)
        image.SetMetaData(f"Segment{i}_LabelValue", str(i + 1))
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize(
    "names",
    [
        ["Posterior Hippocampus", " anterior  HIPPOCAMPUS "],
        ["posterior hippocampus", "anterior hippocampus", "an empty segment"],
    ],
)
def test_names_are_matched_whatever_their_case_and_blanks(mask: Path, tmp_path: Path, names: list[str]) -> None:
    path = swapped(mask, tmp_path / "m.seg.nrrd", names)
    np.testing.assert_array_equal(read_label(path, TABLE)[0], read_label(mask, TABLE)[0])


def test_values_count_where_slicer_itself_named_the_segments(mask: Path, tmp_path: Path) -> None:
    path = swapped(mask, tmp_path / "m.seg.nrrd", ["Segment_1", "Segment_2"])
    np.testing.assert_array_equal(read_label(path, TABLE)[0], read_label_values(path)[0])


@pytest.mark.parametrize("names", [["posterior", "anterior hippocampus"], ["Segment_1", "anterior hippocampus"]])
def test_a_name_that_is_not_in_the_table_is_a_fault_that_names_both_lists(
    mask: Path, tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(UnusableImage) as caught:
        read_label(swapped(mask, tmp_path / "m.seg.nrrd", names), TABLE)
    assert caught.value.code == "segment_names"
    assert all(name in caught.value.rule for name in [*names, "posterior hippocampus"])


def test_names_in_another_case_are_one_structure_where_the_masks_make_the_table(small_study) -> None:
    source = small_study(training=2, test=0)
    for case, names in enumerate((["posterior", "anterior"], ["Posterior", "Anterior"])):
        swapped(source.label(case), source.folder / "labels" / f"{source.id(case)}.seg.nrrd", names)
        source.label(case).unlink()
    assert [label.name for label in read_study(source.folder).labels.structures] == ["posterior", "anterior"]
