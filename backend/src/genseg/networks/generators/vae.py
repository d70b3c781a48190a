"""`vae`: a variational autoencoder given the layout, whose decoder is the default generator.

An encoder finds a latent map z of the real image; the decoder draws the image from layout, style and z; synthetic
images have a z of the prior. What is drawn from a real image's z goes before level 1's discriminator, as in VAE-GAN
(Larsen et al., 2016), so that it is not blurred; the divergence to the prior pays for what z tells. Soft-intro VAE
(Daniel and Tamar, CVPR 2021), which GenSeg's paper takes, has the encoder in the discriminator's place.
"""

import torch
from torch import Tensor

from genseg.networks.generators.code import LATENT, Encoder, with_code
from genseg.networks.generators.generator import NOISE_START, widths
from genseg.networks.generators.spade import SpadeGenerator
from genseg.plan import Plan

KL_WEIGHT = 0.05


class ConditionalVae(SpadeGenerator):
    """`filters`: coarse to fine. The first channel of the coarsest noise is its level's noise, the others are z."""

    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int]):
        super().__init__(dims, channels, layouts, filters, more=LATENT)
        self.encoder = Encoder(dims, channels + layouts, filters[::-1])

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        return with_code(super().draw_noise(n, patch, rng), rng)

    def coarsest(self, layout: Tensor, noise: Tensor, noise_log: Tensor) -> Tensor:
        """The layout beside z."""
        return torch.cat([layout, noise[:, 1:]], 1)

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        """From z of the prior, which is standard where level 3 begins; level 3 may make it wider or narrower."""
        own, z = noise[0].to(layout.device).split([1, LATENT], 1)
        wider = torch.cat([own, z * (noise_log[0] - NOISE_START).exp()], 1)
        return super().draw(layout, style, [wider, *noise[1:]], mixture, noise_log)

    def redraw(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """From z of the real image, as it is: what level 3 makes of the prior is no matter of level 1."""
        noise, penalty = self.posterior(layout, real, noise)
        return super().draw(layout, style, noise, mixture, noise_log), penalty

    def posterior(self, layout: Tensor, real: Tensor, noise: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """z of the real image, and the Kullback-Leibler divergence from its distribution to the prior, a mean."""
        code, drawn = self.encoder(torch.cat([real, layout], 1)), noise[0].to(real.device)
        z = code.drawn(drawn[:, 1:])
        return [torch.cat([drawn[:, :1], z], 1), *noise[1:]], KL_WEIGHT * code.divergence()


def make(plan: Plan, layouts: int) -> ConditionalVae:
    """As wide as the default generator."""
    return ConditionalVae(plan.dims, plan.channels, layouts, widths(plan))
