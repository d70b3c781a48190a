"""Augmentation on real scans: strength 0 changes nothing, image and label move together, millimetres count."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from method_rig import prepared
from torch import Tensor

from genseg import augment
from genseg.augment import (
    LIMIT,
    OPERATIONS,
    REFERENCE,
    UNCHANGED,
    IntensityDraw,
    SpatialDraw,
    apply_intensity,
    blur,
    draw_intensity,
    draw_spatial,
    sample_image,
    sample_label,
    sample_label_soft,
    sampling_grid,
)
from genseg.methods.losses import one_hot
from genseg.preprocess import WorkingCase
from genseg.sampling import BatchDraw, Sampler, crop_to_grid

SPATIAL = ("rotate", "scale", "elastic", "shape")
INTENSITY = tuple(name for name in OPERATIONS if name not in SPATIAL)
NAMES = ["hippocampus", "isic2017", "acdc"]


@pytest.fixture(scope="module", params=NAMES)
def sampler(request, data_folder) -> Sampler:
    ready = prepared(data_folder, request.param, 2)
    return Sampler(ready.labelled, ready.plan)


@pytest.fixture(scope="module")
def data_folder(request):
    return request.getfixturevalue("data")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(operation: str, value: float = 1.0) -> dict[str, float]:
    return {**UNCHANGED, operation: value}


def bent(draw: BatchDraw, voxels: float = 3.0) -> BatchDraw:
    """The same draw with a displacement of some voxels all over the scan, as if of another patient's shape."""
    n, d = draw.spatial.centre.shape
    draw.spatial.bend = voxels * torch.randn(n, d, *[4] * d, generator=rng(6))
    return draw


def still(centre: list[float], **changed: Tensor) -> SpatialDraw:
    d = len(centre)
    draw = SpatialDraw(
        centre=torch.tensor([centre]),
        rotate=torch.zeros(1, 3 if d == 3 else 1),
        scale=torch.zeros(1, 1 + d),
        elastic=torch.zeros(1, d, *[6] * d),
        mirror=torch.ones(1, d),
        bend=torch.zeros(1, d, *[1] * d),
    )
    for name, value in changed.items():
        setattr(draw, name, value)
    return draw


def test_strength_0_leaves_image_and_label_as_they_are(sampler):
    plan, case = sampler.plan, sampler.cases[0]
    shape = list(case.image.shape[-plan.dims :])
    whole = plan.model_copy(update={"patch": shape})
    draw = Sampler([case], whole).draw(2, rng())
    middle = torch.tensor([(n - 1) / 2 for n in shape])
    draw.spatial.centre[:], draw.spatial.mirror[:] = middle, 1.0
    for numbers in (draw.spatial.rotate, draw.spatial.scale, draw.spatial.elastic):
        numbers[:] = 0.5
    for name in INTENSITY:
        getattr(draw.intensity, name)[:] = 0.5
    image, label = Sampler([case], whole).load(draw, UNCHANGED)
    for i, slice_ in enumerate(draw.slices):
        there = (slice(None), slice_) if plan.dims == 2 else (slice(None),)
        real, layout = case.image[there], case.label[there[1:]] if plan.dims == 2 else case.label
        span = float(real.max() - real.min())
        assert float((image[i] - real).abs().max()) < 1e-3 * span  # gamma lifts the darkest ten thousandth
        assert torch.equal(label[i], layout.long())


def test_a_whole_number_of_voxels_moves_the_patch_exactly_so_far():
    scan = torch.arange(20 * 24, dtype=torch.float32).view(1, 20, 24)
    for centre, rows, columns in (([9.5, 11.5], (4, 16), (4, 20)), ([6.5, 8.5], (1, 13), (1, 17))):
        grid = sampling_grid(still(centre), 0, (20, 24), [12, 16], [1.0, 1.0], REFERENCE)
        assert torch.allclose(sample_image(scan, grid), scan[:, slice(*rows), slice(*columns)], atol=1e-3)


def test_draws_are_repeated_by_the_seed_and_differ_without_it(sampler):
    first, again, other = (sampler.draw(6, rng(seed)) for seed in (3, 3, 4))
    for part in ("spatial", "intensity"):
        for name, value in vars(getattr(first, part)).items():
            assert torch.equal(value, getattr(getattr(again, part), name)), name
    assert (first.cases, first.slices) == (again.cases, again.slices)
    assert torch.equal(sampler.load(first)[0], sampler.load(again)[0])
    assert not torch.equal(sampler.load(first)[0], sampler.load(other)[0])


def test_a_draw_changes_only_some_samples_and_stays_within_its_limits(sampler):
    draw = sampler.draw(200, rng())
    spatial, intensity = draw.spatial, draw.intensity
    for name, numbers in (
        ("rotate", spatial.rotate), ("scale", spatial.scale), ("gamma", intensity.gamma), ("blur", intensity.blur),
        ("noise", intensity.noise), ("low_resolution", intensity.low_resolution), ("brightness", intensity.brightness),
    ):  # fmt: skip
        touched = numbers.flatten(1).any(1) if numbers.ndim > 1 else numbers != 0
        expected = augment.SHARE[name]
        if name == "brightness" and sampler.plan.channels > 1:
            expected = 1 - (1 - expected) ** 2  # common or own
        assert float(touched.float().mean()) == pytest.approx(expected, abs=0.13), name
        assert float(numbers.abs().max()) <= 1
    if sampler.plan.channels > 1:
        assert not torch.equal(intensity.brightness[:, 0], intensity.brightness[:, 1]), "colour casts"


@pytest.mark.parametrize("operation", SPATIAL)
def test_the_label_moves_with_the_image(sampler, operation):
    """The label is warped once as a label and once as if it were an image: the same voxels must come out."""
    plan = sampler.plan
    binary = [
        WorkingCase(c.id, ((c.label > 0) & (c.label < plan.classes)).float()[None], c.label) for c in sampler.cases
    ]
    twin = Sampler(binary, plan.model_copy(update={"channels": 1}))
    draw = bent(twin.draw(8, rng(5)))
    strength = only(operation)
    image = twin.load_image(draw, strength)[:, 0]
    label = twin.load_label(draw, strength)
    plain = twin.load_label(draw, UNCHANGED)
    structure = (label > 0) & (label < plan.classes)
    assert not torch.equal(label, plain), f"{operation} does something"
    sure = (image < 0.01) | (image > 0.99)
    assert float(sure.float().mean()) > 0.5
    assert torch.equal(structure[sure], image[sure] > 0.5)
    # at the border nearest and linear interpolation round differently, but on neither side more often
    assert abs(float(structure.float().mean() - image.mean())) < 0.02


def test_soft_labels_add_up_to_one_and_their_largest_share_is_the_hard_label(sampler):
    draw, classes = sampler.draw(6, rng(2)), sampler.plan.classes + 4
    soft, hard = sampler.load_soft_label(draw, REFERENCE, classes), sampler.load_label(draw, REFERENCE)
    assert torch.allclose(soft.sum(1), torch.ones(soft.shape[0], *soft.shape[2:]), atol=1e-5)
    assert float(soft.min()) > -1e-5
    sure = soft.amax(1) > 0.9
    assert torch.equal(soft.argmax(1)[sure], hard[sure])
    assert float((soft.argmax(1) == hard).float().mean()) > 0.85
    assert torch.allclose(one_hot(hard, classes).mean((0, *range(2, soft.ndim))),
                          soft.mean((0, *range(2, soft.ndim))), atol=0.02)  # fmt: skip


@pytest.mark.parametrize("operation", INTENSITY)
def test_each_intensity_strength_has_a_gradient_that_matches_a_finite_difference(sampler, operation):
    draw = sampler.draw(3, rng(1))
    numbers = getattr(draw.intensity, operation)
    numbers[0], numbers[1] = 0.4, 0.9
    image = sampler.load_image(draw).double()
    changes = IntensityDraw(**{k: v.double() for k, v in vars(draw.intensity).items()})
    target = torch.randn(image.shape, generator=rng(9), dtype=torch.float64)
    strength = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)

    def value(s):
        return (apply_intensity(image, changes, only(operation, s)) * target).sum()

    (slope,) = torch.autograd.grad(value(strength), strength)
    step = 1e-6
    with torch.no_grad():
        expected = float(value(strength + step) - value(strength - step)) / (2 * step)
    assert abs(float(slope)) > 1e-3
    assert float(slope) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("operation", SPATIAL)
def test_each_spatial_strength_has_a_gradient_through_the_soft_label(sampler, operation):
    draw, classes = bent(sampler.draw(8, rng(1))), sampler.plan.classes + 4
    strength = torch.tensor(0.7, requires_grad=True)
    soft = sampler.load_soft_label(draw, only(operation, strength), classes)
    smooth = torch.randn(soft.shape, generator=rng(2))
    pool = F.avg_pool2d if sampler.plan.dims == 2 else F.avg_pool3d
    (slope,) = torch.autograd.grad((pool(soft, 4) * pool(smooth, 4)).sum(), strength)
    assert bool(torch.isfinite(slope)) and abs(float(slope)) > 1e-4


def ball(spacing: list[float], half: int) -> Tensor:
    """A bar of 2 x 16 mm (x 2 mm) along the last axis of an anisotropic grid."""
    axes = [torch.arange(-half, half + 1) * s for s in spacing]
    *short, long = torch.meshgrid(*axes, indexing="ij")
    return ((long.abs() <= 16) & torch.stack([s.abs() <= 4 for s in short]).all(0)).float()


@pytest.mark.parametrize(("spacing", "axis"), [([1.0, 2.0], 0), ([2.0, 1.0], 0), ([3.0, 1.0, 2.0], 2)])
def test_a_turn_is_a_turn_in_millimetres_on_anisotropic_grids(spacing, axis):
    """The long axis of a bar turns by the very angle, and keeps its length: no shear, no stretch."""
    d, half = len(spacing), 24
    scan = ball(spacing, half)
    angle = torch.zeros(1, 3 if d == 3 else 1)
    angle[0, axis] = 1.0
    patch = [2 * half + 1] * d
    draw = still([float(half)] * d, rotate=angle)
    turned = sample_image(scan[None], sampling_grid(draw, 0, tuple(scan.shape), patch, spacing, REFERENCE))[0]
    assert float(turned.sum()) == pytest.approx(float(scan.sum()), rel=0.05)
    lengths = []
    for mass in (scan, turned):
        where = (mass > 0.5).nonzero().float() * torch.tensor(spacing)
        where = where - where.mean(0)
        values, vectors = torch.linalg.eigh(where.T @ where / len(where))
        lengths.append(float(values[-1].sqrt()))
        direction = vectors[:, -1]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.05)
    expected = LIMIT["rotate"] * (1.0 if d == 2 else 0.67)
    found = math.acos(min(1.0, float(direction[-1].abs())))
    assert found == pytest.approx(expected, abs=math.radians(2))


def test_zoom_is_the_drawn_factor_along_each_axis():
    scan = ball([1.0, 1.0], 24)
    draw = still([24.0, 24.0], scale=torch.tensor([[1.0, 0.0, 0.0]]))
    zoomed = sample_image(scan[None], sampling_grid(draw, 0, (49, 49), [49, 49], [1.0, 1.0], REFERENCE))[0]
    assert float(scan.sum() / zoomed.sum()) == pytest.approx(math.exp(2 * LIMIT["scale"]), rel=0.06)


@pytest.mark.parametrize("axes", [[], [1], [0, 1]])
def test_only_the_plans_axes_are_mirrored_and_half_of_the_samples_along_each(axes):
    mirror = draw_spatial(torch.zeros(400, 2), axes, rng()).mirror
    for axis in range(2):
        share = float((mirror[:, axis] < 0).float().mean())
        assert share == pytest.approx(0.5, abs=0.1) if axis in axes else share == 0
    assert set(mirror.unique().tolist()) <= {-1.0, 1.0}


def test_a_mirrored_draw_is_the_flipped_patch(sampler):
    draw = sampler.draw(1, rng(4))
    draw.spatial.mirror[:] = 1.0
    plain = sampler.load_image(draw)
    for axis in range(sampler.plan.dims):
        twin = copy.deepcopy(draw)
        twin.spatial.mirror[0, axis] = -1.0
        assert torch.allclose(sampler.load_image(twin), plain.flip(2 + axis), atol=1e-3)


def test_outside_the_scan_the_image_is_its_mean_and_the_label_background():
    scan, label = torch.full((2, 10, 10), 5.0), torch.ones(10, 10, dtype=torch.uint8)
    grid = sampling_grid(still([0.0, 0.0]), 0, (10, 10), [8, 8], [1.0, 1.0], REFERENCE)
    image, hard, soft = sample_image(scan, grid), sample_label(label, grid), sample_label_soft(label, 2, grid)
    assert not image[:, :3, :3].any() and not hard[:3, :3].any() and bool((soft[0, :3, :3] == 1).all())
    assert bool((image[:, 5:, 5:] == 5).all()) and bool((hard[5:, 5:] == 1).all())


def test_intensity_operations_do_what_their_names_say():
    image = torch.randn(1, 1, 32, 32, generator=rng())
    calm = draw_intensity(1, 1, [32, 32], rng())
    for name in INTENSITY:
        setattr(calm, name, torch.zeros_like(getattr(calm, name)))
    calm.invert = torch.zeros(1)

    def changed(name: str) -> Tensor:
        draw = copy.deepcopy(calm)
        setattr(draw, name, torch.ones_like(getattr(draw, name)))
        return apply_intensity(image, draw, REFERENCE)

    assert torch.allclose(apply_intensity(image, calm, REFERENCE), image, atol=1e-6)
    assert torch.allclose(changed("brightness") - image, torch.tensor(LIMIT["brightness"]), atol=1e-5)
    ratio = changed("contrast").std() / image.std()
    assert float(ratio) == pytest.approx(math.exp(LIMIT["contrast"]), rel=1e-3)
    assert float((changed("noise") - image).std()) == pytest.approx(LIMIT["noise"], rel=0.1)
    assert float(changed("blur").std()) < 0.6 * float(image.std())
    assert float(changed("low_resolution").std()) < 0.8 * float(image.std())
    gamma = changed("gamma")
    assert float(gamma.min()) == pytest.approx(float(image.min()), abs=1e-3)
    assert float(gamma.max()) == pytest.approx(float(image.max()), abs=1e-3)
    order = image.flatten().argsort()
    assert bool((gamma.flatten()[order].diff() >= -1e-4).all()), "a power law keeps the order of grey values"


@pytest.mark.parametrize("shape", [(2, 3, 15, 18), (2, 1, 9, 10, 12)])
def test_blur_is_each_samples_own_gaussian(shape):
    image = torch.randn(shape, generator=rng())
    out = blur(image, torch.tensor([0.0, 1.0]))
    assert torch.allclose(out[0], image[0], atol=1e-6)
    assert float(out[1].std()) < 0.6 * float(image[1].std())
    constant = blur(torch.full(shape, 3.0), torch.tensor([0.5, 1.2]))
    assert torch.allclose(constant, torch.full(shape, 3.0), atol=1e-5)


def test_a_patch_larger_than_the_scan_keeps_it_whole_and_half_of_the_patches_show_a_structure(sampler):
    plan = sampler.plan
    large = Sampler(sampler.cases, plan.model_copy(update={"patch": [64] * plan.dims, "mirror_axes": []}))
    draw = large.draw(3, rng())
    label = large.load_label(draw, UNCHANGED)
    for i, index in enumerate(draw.cases):
        whole = sampler.cases[index].label
        whole = whole[draw.slices[i]] if plan.dims == 2 else whole
        kept = int(((label[i] > 0) & (label[i] < plan.classes)).sum())
        there = int(((whole > 0) & (whole < plan.classes)).sum())
        assert kept == pytest.approx(there, rel=0.15, abs=10)
    seen = sampler.load_label(sampler.draw(40, rng(1)), UNCHANGED)
    shows = ((seen > 0) & (seen < plan.classes)).flatten(1).any(1)
    assert float(shows.float().mean()) > 0.5


def test_sampling_from_the_part_a_patch_looks_at_equals_sampling_from_the_whole_scan(sampler):
    """So a batch costs what its patches cost, also where a patch lies half outside the scan."""
    plan, case = sampler.plan, sampler.cases[0]
    image, label = (case.image[:, 0], case.label[0]) if plan.dims == 2 else (case.image, case.label)
    size = torch.tensor(image.shape[1:])
    inside = False
    for seed, part in enumerate((0.5, 0.0, 1.0, 0.2)):
        draw = draw_spatial((size * part + 0.3)[None], plan.mirror_axes, rng(seed))
        small = [max(8, side // 4) for side in plan.patch]
        grid = sampling_grid(draw, 0, tuple(image.shape[1:]), small, plan.spacing, REFERENCE)
        window, within = crop_to_grid(image.shape[1:], grid)
        cropped = image[(slice(None), *window)]
        assert torch.allclose(sample_image(cropped, within), sample_image(image, grid), atol=1e-4)
        differs = sample_label(label[window], within) != sample_label(label, grid)
        assert differs.float().mean() < 0.005  # a voxel exactly between two may fall to either
        inside |= cropped.numel() < image.numel()
    assert inside


def test_coordinates_stay_exact_under_autocast(sampler):
    plan = sampler.plan
    drawn = sampler.draw(1, rng(3)).spatial
    shape = tuple(sampler.cases[0].image.shape[-plan.dims :])
    exact = sampling_grid(drawn, 0, shape, plan.patch, plan.spacing, REFERENCE)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sampling_grid(drawn, 0, shape, plan.patch, plan.spacing, REFERENCE), exact)
