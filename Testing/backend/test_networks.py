"""The networks: the mixed up-convolution is the sum it stands for, and the generator listens to all it is given."""

import copy
from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from method_rig import built, prepared
from torch import nn

from genseg.methods.level3 import SHARE_RANGE, STRENGTH_RANGE, WEIGHT_RANGE, MetaParameters
from genseg.methods.losses import one_hot
from genseg.networks import build_discriminator, build_generator, build_segmenter
from genseg.networks.generators import style_of
from genseg.networks.generators.mixed import MixedDownConv, MixedUpConv
from genseg.networks.generators.spade import SpadeGenerator
from genseg.plan import Normalisation, Plan
from genseg.settings import GENERATORS

SHAPES = [(2, [32, 32]), (2, [48, 32]), (2, [16, 80]), (3, [16, 16, 16]), (3, [8, 24, 16])]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_plan(
    dims: int, patch: list[int], channels: int = 2, classes: int = 3, filters: Sequence[int] = (4, 8, 16)
) -> Plan:
    return Plan(
        dims=dims, slice_axis=None, channels=channels, classes=classes, physical=True, reference_long_side=None,
        spacing=[1.0] * dims, patch=patch, batch=2, normalisation=[Normalisation()] * channels, mirror_axes=[],
        filters=list(filters), kernels=[3] * len(filters), strides=[1] + [2] * (len(filters) - 1),
        deep_supervision=False, precision="fp32", memory_mb=1, notes=[],
    )  # fmt: skip


SIZES = [(2, 4, 6), (4, 6, 8)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_mixture_is_the_weighted_sum_of_three_convolutions_that_halve(dims, sizes):
    torch.manual_seed(0)
    layer = MixedDownConv(dims, 3, 5, sizes).double()
    layer.bias.data.normal_()
    x, mixture = torch.randn(2, 3, *[12, 10, 8][:dims], dtype=torch.float64), torch.tensor([0.3, -1.0, 0.7]).double()
    convolve = F.conv2d if dims == 2 else F.conv3d
    separate = [convolve(x, k, stride=2, padding=(k.shape[-1] - 2) // 2) for k in layer.kernels]
    assert [k.shape[-1] for k in layer.kernels] == list(sizes)
    assert {tuple(s.shape[2:]) for s in separate} == {tuple(n // 2 for n in x.shape[2:])}
    expected = sum(w * s for w, s in zip(mixture.softmax(0), separate, strict=True))
    assert torch.allclose(layer(x, mixture), expected + layer.bias.view(-1, *[1] * dims), atol=1e-10)


@pytest.mark.parametrize("kind", [MixedDownConv, MixedUpConv])
@pytest.mark.parametrize("planes", [2, 4, 6, 8, 10, 12])
def test_a_shallow_volume_has_the_gradients_of_exact_arithmetic(kind, planes):
    """Where the processor's library leaves the volume they are infinite, or the program ends."""
    torch.manual_seed(0)
    layer, mixture = kind(3, 32, 16, (4, 6, 8)), torch.tensor([0.3, -1.0, 0.7])
    side = planes if kind is MixedDownConv else planes // 2
    for _ in range(10):
        x = torch.randn(2, 32, side, 6, 6)
        single, double = ([p.grad for p in differentiated(layer, x, mixture, t)] for t in (torch.float, torch.double))
        for a, b in zip(single, double, strict=True):
            assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def differentiated(layer: nn.Module, x: torch.Tensor, mixture: torch.Tensor, dtype: torch.dtype) -> list[nn.Parameter]:
    """The parameters of a copy in that precision, with their gradients of a sum of squares."""
    layer = copy.deepcopy(layer).to(dtype)
    layer(x.to(dtype), mixture.to(dtype)).square().sum().backward()
    return list(layer.parameters())


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dims", [2, 3])
def test_the_mixture_is_the_weighted_sum_of_three_transposed_convolutions(dims, sizes):
    torch.manual_seed(0)
    layer = MixedUpConv(dims, 3, 5, sizes).double()
    layer.bias.data.normal_()
    x, mixture = torch.randn(2, 3, *[6, 5, 4][:dims], dtype=torch.float64), torch.tensor([0.3, -1.0, 0.7]).double()
    convolve = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    separate = [convolve(x, k, stride=2, padding=(k.shape[-1] - 2) // 2) for k in layer.kernels]
    assert [k.shape[-1] for k in layer.kernels] == list(sizes)
    assert {tuple(s.shape[2:]) for s in separate} == {tuple(2 * n for n in x.shape[2:])}
    expected = sum(w * s for w, s in zip(mixture.softmax(0), separate, strict=True))
    expected = expected + layer.bias.view(-1, *[1] * dims)
    assert torch.allclose(layer(x, mixture), expected, atol=1e-10)


def test_the_mixtures_gradient_is_that_of_the_three_convolutions():
    torch.manual_seed(0)
    layer, x = MixedUpConv(2, 3, 4, (2, 4, 6)).double(), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    slopes = []
    for way in ("one", "three"):
        mixture = torch.tensor([0.3, -1.0, 0.7]).double().requires_grad_()
        if way == "one":
            y = layer(x, mixture)
        else:
            weights = mixture.softmax(0)
            y = sum(
                w * F.conv_transpose2d(x, k, stride=2, padding=(k.shape[-1] - 2) // 2)
                for w, k in zip(weights, layer.kernels, strict=True)
            )
        slopes.append(torch.autograd.grad((y**3).sum(), mixture)[0])
    assert torch.allclose(slopes[0], slopes[1], rtol=1e-8)
    assert float(slopes[0].sum()) == pytest.approx(0, abs=1e-6 * float(slopes[0].abs().max()))


GENERATIONS = [
    pytest.param((name, *shape), id=f"{name}-{shape[0]}D-{'x'.join(map(str, shape[1]))}")
    for name in GENERATORS
    for shape in SHAPES
]


@pytest.fixture(params=GENERATIONS)
def generation(request):
    """A generator with drawn weights (style layers too, which start at nothing) and all that it is given."""
    name, dims, patch = request.param
    plan = small_plan(dims, patch)
    torch.manual_seed(1)
    generator = build_generator(plan, 7, name)
    for p in generator.parameters():
        if not p.detach().any():
            p.data.normal_(std=0.1)
    meta = MetaParameters(generator, rng())
    layout = one_hot(torch.randint(7, (2, *patch), generator=rng()), 7)
    style = torch.randn(2, 2 * 7, generator=rng(2))
    return generator, patch, [layout, style, generator.draw_noise(2, patch, rng(3)), meta.mixture, meta.noise_log]


def test_the_generator_makes_an_image_of_the_patchs_shape(generation):
    generator, patch, given = generation
    image, shown = generator(*given)
    assert shown.shape == given[0].shape
    assert image.shape == (2, 2, *patch) and image.dtype == torch.float32 and bool(torch.isfinite(image).all())


@pytest.mark.parametrize("part", ["layout", "style", "noise", "mixture", "noise scale"])
def test_everything_that_the_generator_is_given_changes_the_image(generation, part):
    generator, patch, given = generation
    index = ["layout", "style", "noise", "mixture", "noise scale"].index(part)
    other = list(given)
    if part == "noise":
        other[index] = generator.draw_noise(2, patch, rng(99))
    elif part == "layout":
        other[index] = given[index].flip(1)
    else:
        other[index] = given[index] + torch.randn(given[index].shape, generator=rng(5))
    with torch.no_grad():
        changed = float((generator(*given)[0] - generator(*other)[0]).abs().max()) > 1e-4
    assert changed == (part != "mixture" or bool(generator.mixed))


@pytest.mark.parametrize("block", [0, -1])
@pytest.mark.parametrize(
    "generation", [g for g in GENERATIONS if g.values[0][0] not in ("diffusion", "synthseg")], indirect=True
)
def test_the_style_scales_and_shifts_every_block(generation, block):
    generator, _, given = generation
    generator.style_out.weight.data.zero_()
    styles = generator.styles if hasattr(generator, "styles") else [one.style for one in generator.blocks]
    for part in ("scale", "shift"):
        for other in styles:
            other.weight.data.zero_()
        layer = styles[block]
        half = slice(0, len(layer.bias) // 2) if part == "scale" else slice(len(layer.bias) // 2, None)
        layer.weight.data[half].normal_(generator=rng(1))
        changed = [given[0], given[1] + 1, *given[2:]]
        with torch.no_grad():
            assert float((generator(*given)[0] - generator(*changed)[0]).abs().max()) > 1e-4, part


def test_samples_of_a_batch_do_not_influence_each_other(generation):
    generator, _, given = generation
    layout, style, noise, mixture, scale = given
    with torch.no_grad():
        both, _ = generator(*given)
        alone, _ = generator(layout[:1], style[:1], [n[:1] for n in noise], mixture, scale)
    assert torch.allclose(both[:1], alone, atol=1e-4)


def test_noise_has_one_map_a_level_and_is_repeated_by_its_seed():
    generator = build_generator(small_plan(2, [48, 32]), 7)
    first, again = generator.draw_noise(2, [48, 32], rng(4)), generator.draw_noise(2, [48, 32], rng(4))
    assert [list(n.shape[2:]) for n in first][-1] == [48, 32]
    assert all(list(b.shape[2:]) == [2 * n for n in a.shape[2:]] for a, b in pairwise(first))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert float(first[-1].std()) == pytest.approx(1, abs=0.1)


def test_a_style_is_each_channels_mean_spread_and_quantiles():
    image = torch.randn(2, 3, 64, 64, generator=rng())
    image[1, 2] = image[1, 2] * 4 + 10
    style = style_of(image)
    assert style.shape == (2, 21)
    table = style.view(2, 3, 7)
    assert table[1, 2, :2].tolist() == pytest.approx([10, 4], rel=0.1)
    assert table[0, 0, :2].tolist() == pytest.approx([0, 1], abs=0.1)
    assert bool((table[..., 2:].diff(dim=-1) > 0).all()), "quantiles rise"
    assert float(table[1, 2, 4]) == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(("dims", "patch"), SHAPES)
def test_segmenter_and_discriminator_keep_to_the_patch(dims, patch):
    plan = small_plan(dims, patch)
    image = torch.randn(1, 2, *patch)
    with torch.no_grad():
        assert build_segmenter(plan)(image).shape == (1, 3, *patch)
        scores = build_discriminator(plan, 7)(torch.cat([image, torch.zeros(1, 7, *patch)], 1))[-1]
    assert scores.shape[:2] == (1, 1) and all(0 < n < p for n, p in zip(scores.shape[2:], patch, strict=True))


def test_deep_supervision_stacks_coarser_heads_in_training_only():
    plan = small_plan(2, [32, 32], filters=[4, 8, 8, 8])
    network = build_segmenter(plan, deep_supervision=True)
    image = torch.randn(2, 2, 32, 32)
    assert network(image).shape == (2, 3, 3, 32, 32)
    assert network.eval()(image).shape == (2, 3, 32, 32)


def test_a_smaller_patch_leaves_the_networks_as_they_are():
    """When memory runs out the patch is halved; the run must find its networks again when it is resumed."""
    plan = small_plan(2, [64, 64])
    for build in (build_generator, build_discriminator):
        shapes = [
            {n: p.shape for n, p in build(plan.model_copy(update={"patch": patch}), 7).named_parameters()}
            for patch in ([64, 64], [32, 64], [8, 16])
        ]
        assert shapes[0] == shapes[1] == shapes[2]


def test_the_weights_of_a_network_do_not_depend_on_which_others_are_built(data):
    ready = prepared(data, "isic2017")
    a, b = built(ready, "supervised").joint.segmenter, built(ready, "genseg").joint.segmenter
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_meta_parameters_stay_within_their_ranges_and_start_inside():
    meta = MetaParameters(SpadeGenerator(2, 1, 5, [8, 8, 8]), rng())
    assert float(meta.share()) == pytest.approx(0.6) and float(meta.weight()) == pytest.approx(0.7, abs=0.4)
    assert all(float(s) == pytest.approx(1) for s in meta.strength().values())
    for extreme in (-50.0, 50.0):
        for p in meta.parameters():
            p.data.fill_(extreme)
        values = [(meta.share(), SHARE_RANGE), (meta.weight(), WEIGHT_RANGE)]
        values += [(s, STRENGTH_RANGE) for s in meta.strength().values()]
        assert all(low - 1e-5 <= float(v) <= high + 1e-5 for v, (low, high) in values)
    assert set(meta.readings()) >= {"meta/synthetic_weight", "meta/synthetic_share", "meta/strength/rotate"}
