"""`joint`: mask and image from one code, so that new shapes, and not only warped ones, appear.

A variational autoencoder of layouts, with the default generator behind it: an encoder finds the code of a layout, a
decoder makes a layout of it again, and the image is drawn from what the decoder made. A synthetic pair's code is
that of a labelled scan, mixed with one drawn from the prior; level 3 learns the share. GenSeg's paper compares with
WGAN-GP, which makes both from noise alone; from a handful of masks that learns little else than those masks.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from genseg.methods.losses import segmentation_loss
from genseg.networks.generators.code import LATENT, Encoder, with_code
from genseg.networks.generators.generator import NOISE_START, widths
from genseg.networks.generators.spade import SpadeGenerator
from genseg.plan import Plan

KL_WEIGHT = 0.02
LAYOUT_WEIGHT = 10.0  # of the layout that is made again, as much as the image in level 1
PRIOR = 0.25  # share of the prior in a code, where level 3 begins
SHARP = 3.0  # what the logits are multiplied with, so that a layout is nearly as sure of itself as a real one


class JointGenerator(SpadeGenerator):
    """`filters`: coarse to fine. The channels of the coarsest noise from the second on are the prior's code."""

    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int]):
        super().__init__(dims, channels, layouts, filters)
        conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
        self.encoder = Encoder(dims, layouts, filters[::-1])
        self.first = conv(LATENT, filters[0], 3, padding=1)
        self.decoder = nn.ModuleList(
            nn.Sequential(norm(a, affine=True), nn.SiLU(), nn.Upsample(scale_factor=2), conv(a, b, 3, padding=1))
            for a, b in pairwise(filters)
        )
        self.shares = nn.Sequential(norm(filters[-1], affine=True), nn.SiLU(), conv(filters[-1], layouts, 3, padding=1))

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        return with_code(super().draw_noise(n, patch, rng), rng)

    def forward(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor,
        real: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """As every generator; the layout that the image shows is a new one."""
        code = self.encoder(layout)
        if real is None:
            share = torch.sigmoid(noise_log[0] - NOISE_START + math.log(PRIOR / (1 - PRIOR)))
            prior = noise[0][:, 1:].to(layout.device)
            made = self.sharp(self.made((1 - share).sqrt() * code.mean + share.sqrt() * prior))
            return self.draw(made, style, noise, mixture, noise_log), made
        logits = self.made(code.drawn(noise[0][:, 1:]))
        penalty = LAYOUT_WEIGHT * segmentation_loss(logits, layout).mean() + KL_WEIGHT * code.divergence()
        return self.draw(self.sharp(logits), style, noise, mixture, noise_log), penalty

    @staticmethod
    def sharp(logits: Tensor) -> Tensor:
        """Logits → shares. Background is divided among grey levels: unsharpened, a structure that is more likely than
        each of them would often be less likely than all together."""
        return (SHARP * logits).softmax(1)

    def made(self, code: Tensor) -> Tensor:
        """Code [n, LATENT, *coarsest] → logits of a layout [n, L, *patch]."""
        x = self.first(code)
        for layer in self.decoder:
            x = layer(x)
        logits: Tensor = self.shares(x).float()
        return logits


def make(plan: Plan, layouts: int) -> JointGenerator:
    """As wide as the default generator."""
    return JointGenerator(plan.dims, plan.channels, layouts, widths(plan))
