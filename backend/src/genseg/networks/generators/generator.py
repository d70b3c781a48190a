"""What every generator is given and has: the seam between it and the method."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from genseg.plan import Plan

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NOISE_START = math.log(0.1)  # log SD of the noise with which level 3 begins
MOST_LEVELS, WIDEST = 4, 96


def style_of(image: Tensor) -> Tensor:
    """[n, C, *patch] → [n, C * 7]: each channel's mean, SD and five quantiles (about every 4th voxel)."""
    voxels = image.flatten(2)[..., ::4].float()
    levels = torch.tensor(QUANTILES, device=image.device)
    quantiles = torch.quantile(voxels, levels, dim=-1).permute(1, 2, 0)
    return torch.cat([voxels.mean(-1, keepdim=True), voxels.std(-1, keepdim=True), quantiles], -1).flatten(1)


def style_values(channels: int) -> int:
    """How many numbers `style_of` gives."""
    return channels * (2 + len(QUANTILES))


class Generator(nn.Module):
    """A layout, a style and noise → an image.

    `levels`: how often the resolution is halved. `mixed`: names of the layers whose kernel is a mixture of the sizes
    `kernels`; the mixture belongs to level 3, which learns it.
    """

    def __init__(self, dims: int, levels: int, mixed: Sequence[str], kernels: Sequence[int]):
        super().__init__()
        self.dims, self.levels, self.mixed, self.kernel_sizes = dims, levels, tuple(mixed), tuple(kernels)

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        """One standard normal map [n, 1, *s] a level, coarse to fine, for images of shape `patch`."""
        sizes = [[p // 2 ** (self.levels - level) for p in patch] for level in range(self.levels + 1)]
        return [torch.randn(n, 1, *size, generator=rng) for size in sizes]

    def begin(self, pairs: Callable[[int], tuple[Tensor, Tensor]]) -> None:
        """Take what can be measured of real pairs, before anything is learned. Here: nothing.

        `pairs`: n → images [n, C, *patch], layouts [n, L, *patch] (shares).
        """

    def forward(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """layout [n, L, *patch] (shares), style [n, s], noise as drawn → image [n, C, *patch], z-scored range, and the
        layout that it shows.

        `mixture` [mixed, kernel sizes] logits and `noise_log` [levels + 1] (log SD) belong to level 3. With the `real`
        image of the layout, as in level 1: → (image, what the generator adds to level 1's loss, 0-dim).
        """
        if real is None:
            return self.draw(layout, style, noise, mixture, noise_log), layout
        return self.redraw(layout, style, noise, mixture, noise_log, real)

    def redraw(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `forward` gives with the real image: here it is drawn from the noise of the posterior."""
        noise, penalty = self.posterior(layout, real, noise)
        return self.draw(layout, style, noise, mixture, noise_log), penalty

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        raise NotImplementedError

    def posterior(self, layout: Tensor, real: Tensor, noise: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """The noise from which the real image is to be drawn again, and what it costs to know. Here: any, nothing."""
        return noise, torch.zeros((), device=real.device)

    def save(self, folder: Path, noise_log: Tensor) -> None:
        """Make a folder of what other programs can read of it. Here: none, the checkpoints have what is needed."""


def widths(plan: Plan) -> list[int]:
    """Coarse to fine: as many levels as the segmenter, at most four, with half of its width at the finest.

    Not told from the patch: when memory runs out it gets smaller, and a resumed run builds the same network again.
    """
    levels = min(MOST_LEVELS, len(plan.filters) - 1)
    finest = max(8, plan.filters[0] // 2)
    return [min(finest * 2**level, WIDEST) for level in range(levels, -1, -1)]
