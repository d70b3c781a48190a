"""`pix2pix`: GenSeg's own generator, a U-Net from the layout to the image whose kernels are searched.

Isola et al. (CVPR 2017), with each convolution that halves or doubles the resolution a mixture of the kernels 4, 6 and
8 (Zhang et al., 2025). Unlike theirs it has as many levels and as wide ones as the data bear, a style that scales and
shifts each level, and noise in the place of dropout, so that looks can be borrowed and repeated.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genseg.networks.generators.generator import Generator, style_values, widths
from genseg.networks.generators.mixed import MixedDownConv, MixedUpConv
from genseg.plan import Plan

KERNELS = (4, 6, 8)  # nested: stride 2, padding 1, 2, 3


class Pix2Pix(Generator):
    """`filters`: coarse to fine. Of the mixtures the halving layers' come first, from fine to coarse."""

    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int]):
        levels = len(filters) - 1
        names = [f"{way} {n}" for way in ("down", "up") for n in range(1, levels + 1)]
        super().__init__(dims, levels, names, KERNELS)
        conv, style = (nn.Conv2d if dims == 2 else nn.Conv3d), style_values(channels)
        fine_first = filters[::-1]
        self.start = conv(layouts, fine_first[0], 3, padding=1)
        self.downs = nn.ModuleList(MixedDownConv(dims, a, b, KERNELS) for a, b in pairwise(fine_first))
        # From the second on, each sees the skip connection beside what comes from below.
        inputs = [filters[0]] + [2 * width for width in filters[1:-1]]
        self.ups = nn.ModuleList(MixedUpConv(dims, a, b, KERNELS) for a, b in zip(inputs, filters[1:], strict=True))
        self.norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
        self.down_norms = nn.ModuleList(self.norm(width, affine=True) for width in fine_first[1:])
        self.up_norms = nn.ModuleList(self.norm(width) for width in filters)
        self.styles = nn.ModuleList(nn.Linear(style, 2 * width) for width in filters)
        self.out = conv(2 * filters[-1], channels, 3, padding=1)
        self.style_out = nn.Linear(style, 2 * channels)
        for layer in (*self.styles, self.style_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        down, up = mixture[: self.levels], mixture[self.levels :]
        skips = [self.start(layout)]
        for layer, norm, of in zip(self.downs, self.down_norms, down, strict=True):
            skips.append(norm(layer(F.leaky_relu(skips[-1], 0.2), of)))
        x = self._styled(skips.pop(), 0, style, noise, noise_log)
        for level, (layer, of) in enumerate(zip(self.ups, up, strict=True), start=1):
            x = self._styled(layer(x, of), level, style, noise, noise_log)
            x = torch.cat([x, skips.pop()], 1)
        scale, shift = self.style_out(style).view(x.shape[0], 2, -1, *[1] * self.dims).unbind(1)
        return self.out(x).float() * (1 + scale) + shift

    def _styled(self, x: Tensor, level: int, style: Tensor, noise: list[Tensor], noise_log: Tensor) -> Tensor:
        """Normalised, scaled and shifted by the style, with noise, through SiLU."""
        scale, shift = self.styles[level](style).view(x.shape[0], 2, -1, *[1] * self.dims).unbind(1)
        x = self.up_norms[level](x) * (1 + scale) + shift
        return F.silu(x + noise[level].to(x.device) * noise_log[level].exp())


def make(plan: Plan, layouts: int) -> Pix2Pix:
    """As wide as the default generator."""
    return Pix2Pix(plan.dims, plan.channels, layouts, widths(plan))
