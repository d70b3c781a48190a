"""`synthseg`: grey values by what the layout names, without a network (Billot et al., Medical Image Analysis 2023).

Each structure and each grey level of the background has a mean and an SD in units of its scan, so that both follow a
style's brightness and contrast. An image is drawn from them: a random shift for each structure, texture of several
scales, a blur. SynthSeg draws all of it within bounds that its authors chose; here means and SDs begin as those of the
labelled scans, level 1 goes on with them, and level 3 learns how far structures shift, the textures and the blur.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genseg.networks.generators.generator import NOISE_START, Generator, style_of, widths
from genseg.plan import Plan

BLURS = (1, 3, 5)  # widths in voxels of the binomial kernels that are mixed
MEASURED = 16  # real pairs from which means and SDs begin
LEAST_SHIFT = 0.1  # SD of a structure's shift, in SDs of its scan; more where real scans differ more
LEAST_SD = 1e-2  # the same of what is of one grey
LIKELIHOOD = 0.1  # weight of the negative log-likelihood in level 1


class SynthSegGenerator(Generator):
    """`noise` is a shift for each layout [n, layouts, 1, ...], then a map a level, all but the coarsest."""

    shift: Tensor

    def __init__(self, dims: int, channels: int, layouts: int, levels: int):
        super().__init__(dims, levels, ["blur"], BLURS)
        self.mean = nn.Parameter(torch.zeros(layouts, channels))  # above the scan's, in its SDs
        self.sd_log = nn.Parameter(torch.full((layouts, channels), -1.0))  # of the SD in the scan's
        self.register_buffer("shift", torch.full((layouts, channels), LEAST_SHIFT))

    @torch.no_grad()
    def begin(self, pairs: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        image, layout = pairs(MEASURED)
        middle, sd = _middle_and_sd(style_of(image), image.shape[1])
        unit = (image - self._wide(middle)) / self._wide(sd)
        size = layout.flatten(2).sum(-1)[..., None]  # [n, L, 1]
        means, squares = (
            torch.einsum("nl...,nc...->nlc", layout, x) / size.clamp_min(1) for x in (unit, unit.square())
        )
        there = (size > 0).float() / (size > 0).sum(0).clamp_min(1)
        self.mean.copy_((means * there).sum(0))
        variance = ((squares - means.square()) * there).sum(0)
        self.sd_log.copy_(variance.clamp_min(LEAST_SD**2).log() / 2)
        self.shift.copy_(((means - self.mean).square() * there).sum(0).sqrt().clamp_min(LEAST_SHIFT))

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        shifts = torch.randn(n, len(self.mean), *[1] * self.dims, generator=rng)
        return [shifts, *super().draw_noise(n, patch, rng)[1:]]

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        with torch.autocast(layout.device.type, enabled=False):
            scales = (noise_log - NOISE_START).exp()
            mean, sd = self._statistics(layout, style, noise[0].to(layout) * scales[0])
            mode = "bilinear" if self.dims == 2 else "trilinear"
            maps = [F.interpolate(level.to(layout), layout.shape[2:], mode=mode) for level in noise[1:]]
            texture = sum(scale * x for scale, x in zip(scales[1:], maps, strict=True)) / len(maps) ** 0.5
            return self._blurred(mean + sd * texture, mixture)

    def redraw(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """With the texture that the real image has, and minus the logarithm of that image's likelihood."""
        with torch.autocast(layout.device.type, enabled=False):
            mean, sd = self._statistics(layout, style, torch.zeros_like(noise[0]).to(layout))
            texture = (real.float() - mean) / sd
            penalty = LIKELIHOOD * (texture.square() / 2 + sd.log()).mean()
            scale = (noise_log[1:] - NOISE_START).mean().exp()
            return self._blurred(mean + sd * texture.detach() * scale, mixture), penalty

    def _statistics(self, layout: Tensor, style: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """[n, C, *patch] each: the mean and the SD of what the layout names there."""
        middle, sd = (x[:, None] for x in _middle_and_sd(style, self.mean.shape[1]))  # [n, 1, C]
        mean = middle + sd * (self.mean + self.shift * shifts.flatten(1)[..., None])
        sds = sd * self.sd_log.clamp_min(math.log(LEAST_SD)).exp()
        return torch.einsum("nl...,nlc->nc...", layout, mean), torch.einsum("nl...,nlc->nc...", layout, sds)

    def _blurred(self, image: Tensor, mixture: Tensor) -> Tensor:
        """By a mixture of binomial kernels, one axis after the other."""
        rows = [[math.comb(width - 1, k) / 2 ** (width - 1) for k in range(width)] for width in BLURS]
        reach = BLURS[-1] // 2
        padded = torch.stack([F.pad(torch.tensor(row), [reach - len(row) // 2] * 2) for row in rows]).to(image)
        kernel = (mixture[0].softmax(0) @ padded).repeat(image.shape[1], 1)
        for axis in range(self.dims):
            shape, pad = [1] * self.dims, [0, 0] * self.dims
            shape[axis], pad[2 * (self.dims - 1 - axis)], pad[2 * (self.dims - 1 - axis) + 1] = BLURS[-1], reach, reach
            convolve = F.conv2d if self.dims == 2 else F.conv3d
            weight = kernel.view(len(kernel), 1, *shape)
            image = convolve(F.pad(image, pad, mode="replicate"), weight, groups=len(kernel))
        return image

    def _wide(self, numbers: Tensor) -> Tensor:
        return numbers.view(*numbers.shape, *[1] * self.dims)


def _middle_and_sd(style: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """[n, C] each, of a whole scan."""
    values = style.view(len(style), channels, -1)
    return values[..., 0], values[..., 1].clamp_min(1e-3)


def make(plan: Plan, layouts: int) -> SynthSegGenerator:
    return SynthSegGenerator(plan.dims, plan.channels, layouts, len(widths(plan)) - 1)
