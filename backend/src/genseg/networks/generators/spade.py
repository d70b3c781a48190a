"""`spade`: SPADE (Park et al., CVPR 2019) from a layout, a style and noise to an image, in 2D and 3D.

The layout (labels, and grey-level clusters of the background) modulates every level. The style is a
handful of statistics of a real image, so that looks can be borrowed from scans without labels. Two
sets of its parameters are "architecture" in GenSeg's sense and belong to level 3: the kernel mixture
of the up-convolutions and the noise scale of each level.
"""

from itertools import pairwise

import torch.nn.functional as F
from monai.networks.blocks.spade_norm import SPADE
from torch import Tensor, nn

from genseg.networks.generators.generator import Generator, style_values, widths
from genseg.networks.generators.mixed import MixedUpConv
from genseg.plan import Plan

KERNELS = (2, 4, 6)  # nested: stride 2, padding 0, 1, 2


class SpadeBlock(nn.Module):
    """Layout-modulated normalisation, style (scale and shift a channel), noise, SiLU, convolution."""

    def __init__(self, dims: int, channels: int, layouts: int, style: int):
        super().__init__()
        self.spade = SPADE(
            layouts, channels, 3, dims, hidden_channels=16, norm="INSTANCE", norm_params={"affine": False}
        )
        self.style = nn.Linear(style, 2 * channels)
        nn.init.zeros_(self.style.weight)
        nn.init.zeros_(self.style.bias)
        self.conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, layout: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        scale, shift = self.style(style).view(x.shape[0], 2, -1, *[1] * (x.ndim - 2)).unbind(1)
        y = self.spade(x, layout) * (1 + scale) + shift
        return x + self.conv(F.silu(y + noise))


class SpadeGenerator(Generator):
    """`filters`: coarse to fine. `more`: channels that come beside the layout at the coarsest level."""

    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int], more: int = 0):
        levels = len(filters) - 1
        super().__init__(dims, levels, [f"up {n}" for n in range(1, levels + 1)], KERNELS)
        style = style_values(channels)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.start = conv(layouts + more, filters[0], 3, padding=1)
        self.blocks = nn.ModuleList(SpadeBlock(dims, width, layouts, style) for width in filters)
        self.ups = nn.ModuleList(MixedUpConv(dims, a, b, KERNELS) for a, b in pairwise(filters))
        self.out = conv(filters[-1], channels, 3, padding=1)
        self.style_out = nn.Linear(style, 2 * channels)
        nn.init.zeros_(self.style_out.weight)
        nn.init.zeros_(self.style_out.bias)

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        pyramid = [layout]
        for _ in range(self.levels):
            pyramid.insert(0, (F.avg_pool2d if self.dims == 2 else F.avg_pool3d)(pyramid[0], 2))
        x = self.start(self.coarsest(pyramid[0], noise[0].to(layout.device), noise_log[0]))
        for level, block in enumerate(self.blocks):
            x = block(x, pyramid[level], style, noise[level][:, :1].to(x.device) * noise_log[level].exp())
            if level < self.levels:
                x = self.ups[level](x, mixture[level])
        scale, shift = self.style_out(style).view(x.shape[0], 2, -1, *[1] * (x.ndim - 2)).unbind(1)
        return self.out(F.silu(x)).float() * (1 + scale) + shift

    def coarsest(self, layout: Tensor, noise: Tensor, noise_log: Tensor) -> Tensor:
        """What the first layer sees."""
        return layout


def make(plan: Plan, layouts: int) -> SpadeGenerator:
    """With half of the segmenter's width at the finest level."""
    return SpadeGenerator(plan.dims, plan.channels, layouts, widths(plan))
