"""A processor computes the same as before, only faster."""

import copy
import platform
from itertools import product

import pytest
import torch
from torch.func import functional_call, jvp

from genseg.networks import build_generator, build_segmenter
from genseg.plan import Normalisation, Plan
from genseg.processor import HalvedConv3d, keep_freed_memory, quicken

PLAN = Plan(
    dims=3, slice_axis=None, channels=1, classes=3, physical=True, reference_long_side=None, spacing=[1.0] * 3,
    patch=[32, 32, 32], batch=2, normalisation=[Normalisation(kind="zscore")], mirror_axes=[],
    filters=[16, 32, 64], kernels=[3] * 3, strides=[1, 2, 2], deep_supervision=False,
    precision="fp32", memory_mb=0, notes=[],
)  # fmt: skip


CONVOLUTIONS = [(3, 1, 1, {}), (3, 2, 1, {}), (4, 2, 1, {}), (5, 1, 0, {}), (1, 1, 0, {}), (3, 1, "same", {})]
CONVOLUTIONS += [(3, 1, 1, {"padding_mode": mode}) for mode in ("reflect", "circular", "replicate")]
CONVOLUTIONS += [(3, 1, (1, 2, 2), {"dilation": (1, 2, 2)}), (3, 1, 2, {"dilation": 2})]


@pytest.mark.parametrize(("kernel", "stride", "padding", "more"), CONVOLUTIONS)
def test_a_sample_in_two_halves_gives_what_the_whole_gives_in_value_gradient_and_tangent(kernel, stride, padding, more):
    for slices, one in product((kernel + 2, kernel + 3, 8, 9), (True, False)):
        torch.manual_seed(slices)
        plain = torch.nn.Conv3d(3, 4, kernel, stride, padding, **more).double()
        halved = quicken(copy.deepcopy(plain))
        assert type(halved) is HalvedConv3d
        x = torch.randn(1 if one else 2, 3, slices, 7, 6, dtype=torch.float64)
        results = []
        for network in (plain, halved):
            weights = dict(network.named_parameters())
            y, tangent = jvp(
                lambda z, weights=weights, network=network: functional_call(network, weights, (z,)), (x,), (x.sin(),)
            )
            at = x.clone().requires_grad_()
            slopes = torch.autograd.grad(network(at).square().sum(), [at, *network.parameters()], create_graph=True)
            second = torch.autograd.grad(slopes[0].square().sum(), at)
            results.append([y, tangent, *slopes, *second])
        for a, b in zip(*results, strict=True):
            assert a.shape == b.shape and torch.allclose(a, b, atol=1e-9)


def slow_convolutions(work) -> int:
    with torch.profiler.profile() as seen:
        work()
    return sum(event.count for event in seen.key_averages() if event.key == "aten::slow_conv3d_forward")


def test_no_convolution_of_a_single_sample_takes_torchs_slow_way():
    """But those one voxel wide, which have no neighbours to gather."""
    x, layout, style = torch.randn(1, 1, *PLAN.patch), torch.rand(1, 4, *PLAN.patch), torch.zeros(1, 7)

    def counts(segmenter, generator) -> tuple[int, int]:
        noise = generator.draw_noise(1, PLAN.patch, torch.Generator())
        level3 = torch.zeros(generator.levels, 3), torch.zeros(generator.levels + 1)
        return (
            slow_convolutions(lambda: segmenter(x)),
            slow_convolutions(lambda: generator(layout, style, noise, *level3)),
        )

    segmenter, generator = build_segmenter(PLAN), build_generator(PLAN, 4)
    ones = sum(m.kernel_size == (1, 1, 1) for m in segmenter.modules() if isinstance(m, torch.nn.Conv3d))
    assert min(counts(segmenter, generator)) > ones, "torch has learned it: HalvedConv3d can go"
    slow = counts(quicken(segmenter), quicken(generator))
    assert slow[0] <= ones and slow[1] == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_memory_that_a_tensor_frees_is_taken_by_the_next_without_a_page_fault():
    import resource

    assert keep_freed_memory()

    def faults_of_twenty_tensors() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.ones(20_000_000)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults_of_twenty_tensors()
    assert faults_of_twenty_tensors() < 4000  # in pages of 4 kB they have 400 000
