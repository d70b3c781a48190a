"""The generator: SPADE (Park et al., CVPR 2019) from a layout, a style and noise to an image, in 2D and 3D.

The layout (labels, and grey-level clusters of the background) modulates every level. The style is a
handful of statistics of a real image, so that looks can be borrowed from scans without labels. Two
sets of its parameters are "architecture" in GenSeg's sense and belong to level 3: the kernel mixture
of the up-convolutions and the noise scale of each level.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks.spade_norm import SPADE
from torch import Tensor, nn

from genseg.plan import Plan

KERNELS = (2, 4, 6)  # nested: stride 2, padding 0, 1, 2
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def style_of(image: Tensor) -> Tensor:
    """[n, C, *patch] → [n, C * 7]: each channel's mean, SD and five quantiles (about every 4th voxel)."""
    voxels = image.flatten(2)[..., ::4].float()
    levels = torch.tensor(QUANTILES, device=image.device)
    quantiles = torch.quantile(voxels, levels, dim=-1).permute(1, 2, 0)
    return torch.cat([voxels.mean(-1, keepdim=True), voxels.std(-1, keepdim=True), quantiles], -1).flatten(1)


class MixedUpConv(nn.Module):
    """Doubles the resolution by the softmax-weighted sum of transposed convolutions with kernels 2, 4 and 6.

    The operations are nested and linear, so their mixture equals ONE 6-wide transposed convolution
    whose kernel is the weighted sum of the zero-padded kernels.
    """

    def __init__(self, dims: int, channels_in: int, channels_out: int):
        super().__init__()
        self.dims = dims
        self.kernels = nn.ParameterList(
            nn.Parameter(torch.randn(channels_in, channels_out, *[k] * dims) / (channels_in * (k / 2) ** dims) ** 0.5)
            for k in KERNELS
        )
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """[n, in, *s] with mixture [3] logits → [n, out, *2s]."""
        weights = mixture.softmax(0)
        widest = KERNELS[-1]
        kernel = torch.stack(
            [
                w * F.pad(k, [(widest - k.shape[-1]) // 2] * (2 * self.dims))
                for w, k in zip(weights, self.kernels, strict=True)
            ]
        ).sum(0)
        convolve = F.conv_transpose2d if self.dims == 2 else F.conv_transpose3d
        return convolve(x, kernel, self.bias, stride=2, padding=2)


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


class SpadeGenerator(nn.Module):
    """layout [n, L, *patch] (shares), style [n, s], noise (one map a level) → image [n, C, *patch], z-scored range."""

    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int]):
        super().__init__()
        self.dims, self.layouts = dims, layouts
        style = channels * (2 + len(QUANTILES))
        self.levels = len(filters) - 1
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.start = conv(layouts, filters[0], 3, padding=1)
        self.blocks = nn.ModuleList(SpadeBlock(dims, width, layouts, style) for width in filters)
        self.ups = nn.ModuleList(MixedUpConv(dims, a, b) for a, b in pairwise(filters))
        self.out = conv(filters[-1], channels, 3, padding=1)
        self.style_out = nn.Linear(style, 2 * channels)
        nn.init.zeros_(self.style_out.weight)
        nn.init.zeros_(self.style_out.bias)

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        """One standard normal map [n, 1, *s] a level, coarse to fine, for images of shape `patch`."""
        sizes = [[p // 2 ** (self.levels - level) for p in patch] for level in range(self.levels + 1)]
        return [torch.randn(n, 1, *size, generator=rng) for size in sizes]

    def forward(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        """`mixture` [levels, 3] logits and `noise_log` [levels + 1] (log SD) belong to level 3."""
        pyramid = [layout]
        for _ in range(self.levels):
            pyramid.insert(0, (F.avg_pool2d if self.dims == 2 else F.avg_pool3d)(pyramid[0], 2))
        x = self.start(pyramid[0])
        for level, block in enumerate(self.blocks):
            x = block(x, pyramid[level], style, noise[level].to(x.device) * noise_log[level].exp())
            if level < self.levels:
                x = self.ups[level](x, mixture[level])
        scale, shift = self.style_out(style).view(x.shape[0], 2, -1, *[1] * (x.ndim - 2)).unbind(1)
        return self.out(F.silu(x)).float() * (1 + scale) + shift


def build_generator(plan: Plan, layouts: int) -> SpadeGenerator:
    """As many levels as the segmenter, at most four, with half of its width at the finest.

    Not told from the patch: when memory runs out it gets smaller, and a resumed run builds the same network again.
    """
    levels = min(4, len(plan.filters) - 1)
    finest = max(8, plan.filters[0] // 2)
    filters = [min(finest * 2**level, 96) for level in range(levels, -1, -1)]
    return SpadeGenerator(plan.dims, plan.channels, layouts, filters)
