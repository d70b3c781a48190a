"""The Brownian bridge between an image and what is known of it, as a scheduler in diffusers' manner."""

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor


@dataclass
class BridgeOutput(BaseOutput):
    prev_sample: Tensor


class BrownianBridgeScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Li et al. (CVPR 2023): at time t of 0..1 an image x is seen as x_t ~ N((1 - t) x + t y, 2 s t (1 - t)).

    `variance` is s, the `end` y; x_0 = x and x_1 = y. Times are given in thousandths, as to diffusers' own networks.
    """

    order = 1

    @register_to_config
    def __init__(self, variance: float = 1.0, num_train_timesteps: int = 1000):
        self.variance, self.end_time = variance, num_train_timesteps
        self.set_timesteps(1)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Evenly from 1 towards 0, which is not among them."""
        steps = torch.arange(num_inference_steps, 0, -1)
        self.timesteps = steps * self.end_time / num_inference_steps
        self.stride = self.end_time / num_inference_steps

    def add_noise(self, original: Tensor, end: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of images [n, ...] at the times [n], noise standard normal."""
        t = self._share(timesteps).view(-1, *[1] * (original.ndim - 1))
        deviation = (2 * self.variance * t * (1 - t)).sqrt()
        return torch.lerp(original, end, t) + deviation * noise

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, noise: Tensor) -> BridgeOutput:
        """From x_t at a time (0-dim) to the next: the bridge from here to the image that the network now expects.

        x_t' ~ N(x + t'/t (x_t - x), 2 s t' (t - t') / t), for `model_output` x. The end has no part in it: the bridge
        forgets where it came from. The last step, to t' = 0, gives x itself.
        """
        t, to = self._share(timestep), self._share(timestep - self.stride)
        deviation = (2 * self.variance * to * (t - to) / t).sqrt()
        return BridgeOutput(prev_sample=model_output + to / t * (sample - model_output) + deviation * noise)

    def _share(self, timesteps: Tensor) -> Tensor:
        return timesteps / self.end_time
