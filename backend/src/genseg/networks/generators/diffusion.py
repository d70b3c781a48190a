"""`diffusion`: a Brownian bridge from the painted layout to the image (BBDM; Li et al., CVPR 2023) in a few steps.

The bridge ends in the layout, painted in the greys that a style gives it; a network says which image is at its start.
Unlike theirs it is trained before a discriminator, as in denoising diffusion GANs (Xiao et al., ICLR 2022), so that few
steps suffice, and the painting is learned, too. A large plan is folded: 2 x 2 (x 2) voxels become channels, a latent
space that needs no training. The segmenter's gradient passes through the last steps of sampling alone.
"""

from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from genseg.networks.generators.bridge import BrownianBridgeScheduler
from genseg.networks.generators.generator import NOISE_START, Generator, style_values, widths
from genseg.plan import Plan

STEPS = 5  # of sampling
LAST = 2  # of them, those that a gradient passes through
PAINTED = 32  # hidden channels of the painting
PAINT_WEIGHT = 2.0
FOLD = 2
LARGE = 4  # levels of the segmenter from which on images are folded
GROUPS = 4  # of channels; those of a group are normalised together


class BridgeGenerator(Generator, ModelMixin, ConfigMixin):  # type: ignore[misc]
    """`filters`: fine to coarse, each a multiple of `GROUPS`; `fold`: 1 or `FOLD`.

    Level 3 learns the bridge's variance, as the one noise level; no kernel is searched.
    """

    @register_to_config
    def __init__(self, dims: int, channels: int, layouts: int, filters: list[int], fold: int):
        super().__init__(dims, 0, (), ())
        self.fold, self.channels, folded = fold, channels, fold**dims
        self.scheduler = BrownianBridgeScheduler()
        self.scheduler.set_timesteps(STEPS)
        self.look = nn.Linear(style_values(channels), PAINTED)
        self.sketch = nn.Linear(layouts, PAINTED)
        self.paint = nn.Linear(PAINTED, channels)
        self.network = DiffusionModelUNet(
            spatial_dims=dims,
            in_channels=(2 * channels + layouts) * folded,
            out_channels=channels * folded,
            channels=filters,
            num_res_blocks=1,
            attention_levels=[False] * len(filters),
            num_head_channels=filters[-1],
            norm_num_groups=GROUPS,
            use_flash_attention=True,  # of large thin patches many positions meet at the coarsest level
        )

    def draw_noise(self, n: int, patch: list[int], rng: torch.Generator) -> list[Tensor]:
        """A map [n, channels, *patch], folded, for each step but the last, and [n, 1] for the time in level 1."""
        size = [n, self.channels * self.fold**self.dims, *(side // self.fold for side in patch)]
        return [torch.randn(*shape, generator=rng) for shape in (*[size] * (STEPS - 1), [n, 1])]

    def redraw(
        self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor, real: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the network makes of the real image at a random time of the bridge."""
        painted = self.painted(layout, style)
        end, shares, original = self._folded(painted), self._folded(layout), self._folded(real)
        share = torch.special.ndtr(noise[-1][:, 0])  # uniform in 0..1
        times = self.scheduler.timesteps[(share * STEPS).long().clamp_max(STEPS - 1)].to(real)
        wider = self._wider(noise_log) * noise[0].to(real.device)
        expected = self._expected(self.scheduler.add_noise(original, end, wider, times), times, end, shares)
        return self._unfolded(expected), PAINT_WEIGHT * (painted - real).abs().mean()

    def draw(self, layout: Tensor, style: Tensor, noise: list[Tensor], mixture: Tensor, noise_log: Tensor) -> Tensor:
        # Never with gradients under autocast: its cache would give the last steps the early ones' weights without any.
        end, shares = self._folded(self.painted(layout, style)), self._folded(layout)
        sample, times = end, self.scheduler.timesteps.to(end)
        for number, time in enumerate(times):
            early = number < STEPS - LAST
            with torch.set_grad_enabled(torch.is_grad_enabled() and not early):
                expected = self._expected(sample, time.expand(len(layout)), end, shares)
            fresh = noise[number].to(layout.device) if number < STEPS - 1 else torch.zeros_like(sample)
            if early:
                sample = sample.detach()
            sample = self.scheduler.step(expected, time, sample, self._wider(noise_log) * fresh).prev_sample
        return self._unfolded(sample)

    def painted(self, layout: Tensor, style: Tensor) -> Tensor:
        """Each share of a layout [n, L, *patch] in its grey of the style → [n, C, *patch]."""
        wide = (len(style), *[1] * self.dims, -1)
        mixed = self.sketch(layout.movedim(1, -1)) + self.look(style).view(wide)
        return self.paint(nn.functional.silu(mixed)).movedim(-1, 1).float()

    def _expected(self, sample: Tensor, times: Tensor, end: Tensor, shares: Tensor) -> Tensor:
        """The image at the bridge's start, as a change of its end: a network that knows nothing gives the painting."""
        return end + self.network(torch.cat([sample, end, shares], 1), times).float()

    def save(self, folder: Path, noise_log: Tensor) -> None:
        """As diffusers does: config.json, the weights, and the scheduler with the variance that level 3 learned."""
        self.save_pretrained(folder)
        variance = self.scheduler.variance * float(self._wider(noise_log.detach())) ** 2
        BrownianBridgeScheduler(variance=variance).save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[Any] | None, **how: Any
    ) -> "BridgeGenerator":
        """What `save` made, ready to draw with a `noise_log` of [NOISE_START]; `how` is for diffusers.

        Raises OSError where a file is missing.
        """
        how = {"low_cpu_mem_usage": False} | how
        made: BridgeGenerator = super().from_pretrained(pretrained_model_name_or_path, **how)
        made.scheduler = BrownianBridgeScheduler.from_pretrained(pretrained_model_name_or_path)
        made.scheduler.set_timesteps(STEPS)
        return made

    @staticmethod
    def _wider(noise_log: Tensor) -> Tensor:
        """How much wider the bridge is than the scheduler has it: not at all where level 3 begins."""
        return (noise_log[0] - NOISE_START).exp()

    def _folded(self, x: Tensor) -> Tensor:
        """[n, C, *patch] → [n, C fold^dims, *patch / fold]."""
        if self.dims == 2:
            return rearrange(x, "n c (y v) (x u) -> n (c v u) y x", v=self.fold, u=self.fold)
        return rearrange(x, "n c (a w) (y v) (x u) -> n (c w v u) a y x", w=self.fold, v=self.fold, u=self.fold)

    def _unfolded(self, x: Tensor) -> Tensor:
        if self.dims == 2:
            return rearrange(x, "n (c v u) y x -> n c (y v) (x u)", v=self.fold, u=self.fold)
        return rearrange(x, "n (c w v u) a y x -> n c (a w) (y v) (x u)", w=self.fold, v=self.fold, u=self.fold)


def make(plan: Plan, layouts: int) -> BridgeGenerator:
    """As wide as the default generator, folded where the segmenter has so many levels that its patches are large."""
    fold = FOLD if len(plan.filters) >= LARGE else 1
    fine_first = widths(plan)[::-1]
    return BridgeGenerator(plan.dims, plan.channels, layouts, fine_first[1:] if fold > 1 else fine_first, fold)
