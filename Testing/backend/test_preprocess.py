"""To the working grid and back: shapes, half voxels, normalisation, for volumes, stacks of slices and photos."""

import numpy as np
import pytest
import torch
from method_rig import planned

from genseg.cases import draw
from genseg.imageio import Scan, read_label, read_scan
from genseg.plan import Normalisation, Plan
from genseg.preprocess import from_working_grid, label_to_working_grid, to_working_grid
from genseg.study import read_study

# Finer in one axis, coarser in another, so that both ways of resampling are taken.
FACTORS = {"hippocampus": [1.2, 0.8, 1.3], "acdc": [1.4, 0.9], "isic2017": [1.5, 1.5], "kvasir": [0.7, 0.7]}


def example(data, name: str, number: int = 0) -> tuple[Scan, np.ndarray, Plan]:
    study = draw(read_study(data / name), 3, None, 0)
    case = study.training[number]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    plan = planned(data, name, 1)
    own = [1.0] * plan.dims
    return (
        scan,
        label,
        plan.model_copy(
            update={"spacing": [s * f for s, f in zip(own, FACTORS[name], strict=True)], "classes": len(study.labels)}
        ),
    )


def scores_of(label: torch.Tensor, classes: int) -> torch.Tensor:
    return torch.stack([(label == k).float() for k in range(classes)])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("name", list(FACTORS))
def test_a_label_goes_to_the_working_grid_and_back_onto_its_own_voxels(data, name):
    for number in range(2):
        scan, label, plan = example(data, name, number)
        there = label_to_working_grid(label, scan, plan)
        assert there.dtype == torch.uint8 and there.shape == to_working_grid(scan, plan).shape[1:]
        back = from_working_grid(scores_of(there, plan.classes), scan, plan)
        assert back.shape == label.shape == scan.array.shape[1:]
        for k in np.unique(label[label > 0]):
            assert dice(back == k, label == k) > 0.9, (name, int(k))


@pytest.mark.parametrize("name", list(FACTORS))
def test_nothing_is_shifted_by_half_a_voxel(data, name):
    """An image of coordinates tells where each working voxel looks; scores of coordinates tell the way back."""
    scan, _, plan = example(data, name)
    as_is = Normalisation(kind="ct", low=-1e9, high=1e9, mean=0, std=1)
    plan = plan.model_copy(update={"normalisation": [as_is]})
    axes = [a for a in range(scan.dims) if a != plan.slice_axis]
    for number, axis in enumerate(axes, start=3 - len(axes)):
        size = scan.array.shape[1 + axis]
        shape = [size if a == axis else 1 for a in range(scan.dims)]
        ramp = np.broadcast_to(np.arange(size, dtype=np.float32).reshape(shape), scan.array.shape[1:])
        found = to_working_grid(Scan(ramp[None].copy(), scan.geometry), plan)[0].movedim(number, 0).flatten(1)
        assert float((found.amax(1) - found.amin(1)).max()) < 1e-3, "the other axes have no say"
        expected = (torch.arange(len(found)) + 0.5) * size / len(found) - 0.5
        apart = (found.mean(1) - expected)[2:-2]  # the outermost have neighbours on one side only
        assert abs(float(apart.mean())) < 0.02 and float(apart.abs().max()) < 0.1, (name, axis)


@pytest.mark.parametrize("name", list(FACTORS))
def test_the_centre_of_a_structure_stays_where_it_is(data, name):
    """An ellipsoid off the middle, so that nothing is lost on a coarser grid."""
    scan, label, plan = example(data, name)
    axes = np.meshgrid(*[(np.arange(n) - 0.45 * n) / (0.3 * n) for n in label.shape], indexing="ij")
    box = (sum(a**2 for a in axes) < 1).astype(np.uint8)
    there = label_to_working_grid(box, scan, plan)
    back = from_working_grid(scores_of(there, 2), scan, plan)
    before, after = np.argwhere(box).mean(0), np.argwhere(back == 1).mean(0)
    assert np.abs(before - after).max() < 0.2, (before, after)
    assert dice(back == 1, box == 1) > 0.93


@pytest.mark.parametrize("name", list(FACTORS))
def test_image_and_label_lie_on_the_same_voxels(data, name):
    """The label as an image: resampled both ways, the same places are bright."""
    scan, label, plan = example(data, name)
    as_image = Scan((label > 0).astype(np.float32)[None].repeat(len(scan.array), 0), scan.geometry)
    image = to_working_grid(as_image, plan)[0]
    there = label_to_working_grid(label, scan, plan) > 0
    bright = image > (image.max() + image.min()) / 2
    assert dice(bright.numpy(), there.numpy()) > 0.97


@pytest.mark.parametrize("name", list(FACTORS))
def test_the_working_grid_has_the_planned_spacing(data, name):
    scan, _, plan = example(data, name)
    shape = to_working_grid(scan, plan).shape[1:]
    axes = [a for a in range(scan.dims) if a != plan.slice_axis]
    long_side = plan.reference_long_side or 0
    for size, axis, spacing in zip(shape[-plan.dims :], axes, plan.spacing, strict=True):
        own = 1.0 if plan.physical else long_side / max(scan.array.shape[1:])
        assert size == round(scan.array.shape[1 + axis] * own / spacing)


def test_the_scan_on_its_own_grid_is_only_normalised(data):
    scan, label, plan = example(data, "hippocampus")
    same = plan.model_copy(update={"spacing": list(scan.spacing)})
    image = to_working_grid(scan, same)
    expected = (scan.array - scan.array.mean()) / scan.array.std(ddof=1)
    assert np.allclose(image.numpy(), expected, atol=1e-4)
    there = label_to_working_grid(label, scan, same)
    assert np.array_equal(there.numpy(), label)
    assert np.array_equal(from_working_grid(scores_of(there, 3), scan, same), label)


def test_each_channel_is_normalised_by_its_own_numbers(data):
    scan, _, plan = example(data, "isic2017")
    image = to_working_grid(scan, plan)
    assert image.mean((1, 2, 3)).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert image.std((1, 2, 3)).tolist() == pytest.approx([1] * 3, abs=1e-3)
    window = Normalisation(kind="ct", low=50, high=150, mean=100, std=25)
    mixed = plan.model_copy(update={"normalisation": [window, Normalisation(), Normalisation()]})
    ct = to_working_grid(scan, mixed)[0]
    assert float(ct.min()) >= -2.0001 and float(ct.max()) <= 2.0001


def test_a_constant_channel_stays_finite_and_small(data):
    scan, _, plan = example(data, "isic2017")
    flat = Scan(np.full_like(scan.array, 7.0), scan.geometry)
    assert float(to_working_grid(flat, plan).abs().max()) < 3  # what is left is rounding


def test_the_way_back_takes_the_likelier_class_between_voxels(data):
    """Linear between class scores: the border of a coarse map lies half way between its voxels."""
    scan, _, plan = example(data, "isic2017")
    coarse = plan.model_copy(update={"spacing": [8.0, 8.0]})
    shape = to_working_grid(scan, coarse).shape[1:]
    scores = torch.zeros(2, *shape)
    scores[0, ..., : shape[2] // 2], scores[1, ..., shape[2] // 2 :] = 1.0, 1.0
    back = from_working_grid(scores, scan, coarse)
    assert back.shape == scan.array.shape[1:]
    share = float((back == 1).mean())
    assert share == pytest.approx(1 - (shape[2] // 2) / shape[2], abs=1.5 / back.shape[1])
