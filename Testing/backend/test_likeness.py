"""Scans that are unlike the labelled ones: real scans of other kinds are found, those of one kind are not."""

from pathlib import Path

import pytest
import torch
from method_rig import planned

from genseg.cases import draw
from genseg.imageio import read_scan
from genseg.likeness import Unlike, _look, _widest_gap, unlike
from genseg.plan import Normalisation, Plan
from genseg.preprocess import WorkingCase, colours_of, to_working_grid
from genseg.study import read_study


def scans(data: Path, name: str, plan: Plan, count: int, skip: int = 0) -> list[WorkingCase]:
    """Some training scans of a data set on the working grid of `plan`, as a run would get them."""
    cases = draw(read_study(data / name), skip + count, None, 0).training[skip:]
    read = [(case.id, read_scan(case.images)) for case in cases]
    return [WorkingCase(i, to_working_grid(scan, plan), None, colours_of(scan, plan)) for i, scan in read]


def ids(found: list[Unlike] | list[WorkingCase]) -> set[str]:
    return {item.case if isinstance(item, Unlike) else item.id for item in found}


@pytest.mark.parametrize("labelled", [1, 3])
@pytest.mark.parametrize("name", ["hippocampus", "acdc", "kvasir", "shenzhen"])
def test_scans_of_one_kind_raise_no_alarm(data: Path, name: str, labelled: int) -> None:
    plan = planned(data, name, labelled)
    few, rest = scans(data, name, plan, labelled), scans(data, name, plan, 12, skip=labelled)
    assert unlike(few, rest, plan) == []
    assert unlike(few, rest[:1], plan) == [], "a single scan says little about what is usual"
    assert unlike(few, [], plan) == []


@pytest.mark.parametrize(
    ("name", "other", "words", "share"),
    [
        ("hippocampus", "acdc", "extent", 1.0),
        ("acdc", "hippocampus", "extent", 1.0),
        ("kvasir", "dsb2018", "grey values", 0.8),  # microscopy is of several kinds itself
    ],
)
@pytest.mark.parametrize(("own", "foreign"), [(12, 1), (3, 9)])
def test_scans_of_another_kind_are_found_also_where_they_are_most(
    data: Path, name: str, other: str, words: str, share: float, own: int, foreign: int
) -> None:
    plan = planned(data, name, 2)
    few, rest = scans(data, name, plan, 2), scans(data, name, plan, own, skip=2)
    strange = scans(data, other, plan, foreign)
    found = unlike(few, strange + rest, plan)
    assert ids(found) <= ids(strange) and len(found) >= share * foreign
    assert all(item.score > 1 for item in found) and found == sorted(found, key=lambda item: -item.score)
    assert any(words in item.reason for item in found), found


def test_the_reason_says_how_much_larger_a_scan_is(data: Path) -> None:
    plan = planned(data, "hippocampus", 1)
    (heart,) = scans(data, "acdc", plan, 1)
    (few,) = scans(data, "hippocampus", plan, 1)
    (found,) = unlike([few], [heart], plan)
    ratios = [a / b for a, b in zip(heart.image.shape[1:], few.image.shape[1:], strict=True)]
    assert f"its extent is {max(ratios):.2g} x theirs" in found.reason


def test_a_torso_of_another_modality_is_found_and_a_longer_one_of_the_same_is_not(data: Path) -> None:
    """In a window common to the study, as for CT: two CT of very different length, and an MR of the same part."""
    folder = data / "torso_ct_mr/images"
    window = Normalisation(kind="ct", low=-1000, high=700, mean=0, std=240)
    plan = planned(data, "hippocampus", 1).model_copy(update={"spacing": [6.0] * 3, "normalisation": [window]})
    short, long, mr = (
        WorkingCase(name, to_working_grid(read_scan([folder / f"{name}.nii.gz"]), plan), None)
        for name in ("ct_sm", "ct_torso", "mr_sm")
    )
    assert long.image.shape[1] > 3 * short.image.shape[1]
    (found,) = unlike([short], [long, mr], plan)
    assert found.case == "mr_sm" and "grey values" in found.reason
    assert ids(unlike([mr], [long, short], plan)) == {"ct_torso", "ct_sm"}


def test_a_photograph_of_other_colours_is_found_although_its_normalised_image_is_the_same(data: Path) -> None:
    plan = planned(data, "kvasir", 1)
    few, rest = scans(data, "kvasir", plan, 1), scans(data, "kvasir", plan, 10, skip=1)
    swapped = WorkingCase("blue", rest[0].image, None, rest[0].colours.flip(0))
    (found,) = unlike(few, [*rest, swapped], plan)
    assert found.case == "blue" and found.reason == "its colours are others"


def test_number_and_order_of_slices_and_the_scale_of_a_photographs_values_have_no_say(data: Path) -> None:
    plan = planned(data, "acdc", 1)
    (stack,) = scans(data, "acdc", plan, 1)
    every = torch.arange(stack.image.shape[1])
    doubled = WorkingCase("twice", stack.image[:, torch.cat([every[::2], every[1::2]]).repeat(2)], None)
    for name, value in _look(stack, plan).items():
        assert torch.allclose(value, _look(doubled, plan)[name], atol=0.15), name
    (photo,) = scans(data, "kvasir", kvasir := planned(data, "kvasir", 1), 1)
    in_16_bit = WorkingCase("16 bit", photo.image, None, photo.colours * 257)
    for name, value in _look(photo, kvasir).items():
        assert torch.allclose(value, _look(in_16_bit, kvasir)[name], atol=1e-3), name


def test_the_widest_gap_is_that_of_the_best_way_over_other_scans() -> None:
    """On a line: labelled at 0; 1, 2, 3 follow step by step, 10 lies behind a gap of 7, and 11 behind 10."""
    at = torch.tensor([[0.0], [3.0], [11.0], [1.0], [10.0], [2.0]])
    assert _widest_gap(torch.cdist(at, at), 1).tolist() == [0, 1, 7, 1, 7, 1]
