"""Codes of variational autoencoders: normal maps at the coarsest level, found by an encoder or drawn from the prior."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LATENT = 8  # channels of a code


@dataclass
class Code:
    """A normal distribution of maps [n, LATENT, *coarsest]; the prior is the standard one."""

    mean: Tensor
    log_variance: Tensor

    def drawn(self, noise: Tensor) -> Tensor:
        """A map of this distribution from one of the prior."""
        return self.mean + (0.5 * self.log_variance).exp() * noise.to(self.mean.device)

    def divergence(self) -> Tensor:
        """Kullback-Leibler divergence to the prior, the mean over all values, 0-dim."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1 - self.log_variance).mean()


class Encoder(nn.Module):
    """`filters`: fine to coarse; each after the first halves the resolution."""

    def __init__(self, dims: int, channels: int, filters: list[int]):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        self.first = conv(channels, filters[0], 3, padding=1)
        self.halvings = nn.ModuleList(
            nn.Sequential(nn.SiLU(), conv(a, b, 3, stride=2, padding=1), norm(b, affine=True))
            for a, b in pairwise(filters)
        )
        self.moments = conv(filters[-1], 2 * LATENT, 1)

    def forward(self, x: Tensor) -> Code:
        """[n, channels, *patch] → its code."""
        x = self.first(x)
        for layer in self.halvings:
            x = layer(x)
        mean, log_variance = self.moments(F.silu(x)).float().chunk(2, 1)
        return Code(mean, log_variance.clamp(-8, 4))


def with_code(noise: list[Tensor], rng: torch.Generator) -> list[Tensor]:
    """Noise maps, coarse to fine, with a code of the prior behind the first channel of the coarsest."""
    coarsest = noise[0]
    code = torch.randn(len(coarsest), LATENT, *coarsest.shape[2:], generator=rng)
    return [torch.cat([coarsest, code], 1), *noise[1:]]
