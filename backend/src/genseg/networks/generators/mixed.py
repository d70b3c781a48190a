"""Convolutions whose kernel is searched: a softmax-weighted mixture of several sizes, evaluated as one.

The sizes are nested about the same centre and a convolution is linear in its kernel, so the mixture equals ONE
convolution of the widest size whose kernel is the weighted sum of the zero-padded kernels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _MixedConv(nn.Module):
    """Even kernel sizes from small to wide, all of stride 2 with padding size / 2 - 1."""

    def __init__(self, dims: int, kernels: Sequence[torch.Tensor], channels_out: int):
        super().__init__()
        self.dims = dims
        self.kernels = nn.ParameterList(nn.Parameter(kernel) for kernel in kernels)
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def merged(self, mixture: Tensor) -> Tensor:
        """`mixture` [kernels] logits → the one kernel that equals the mixture."""
        widest = self.kernels[-1].shape[-1]
        padded = [F.pad(k, [(widest - k.shape[-1]) // 2] * (2 * self.dims)) for k in self.kernels]
        return torch.stack([w * k for w, k in zip(mixture.softmax(0), padded, strict=True)]).sum(0)

    @property
    def padding(self) -> int:
        return int(self.kernels[-1].shape[-1]) // 2 - 1


class MixedUpConv(_MixedConv):
    """Doubles the resolution: the mixture of transposed convolutions."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, sizes: Sequence[int]):
        kernels = [
            torch.randn(channels_in, channels_out, *[k] * dims) / (channels_in * (k / 2) ** dims) ** 0.5 for k in sizes
        ]
        super().__init__(dims, kernels, channels_out)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """[n, in, *s] with `mixture` [kernels] logits → [n, out, *2s]."""
        convolve = F.conv_transpose2d if self.dims == 2 else F.conv_transpose3d
        return convolve(x, self.merged(mixture), self.bias, stride=2, padding=self.padding)


class MixedDownConv(_MixedConv):
    """Halves the resolution: the mixture of convolutions."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, sizes: Sequence[int]):
        kernels = [torch.randn(channels_out, channels_in, *[k] * dims) / (channels_in * k**dims) ** 0.5 for k in sizes]
        super().__init__(dims, kernels, channels_out)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """[n, in, *2s] with `mixture` [kernels] logits → [n, out, *s]."""
        convolve = F.conv2d if self.dims == 2 else F.conv3d
        return convolve(x, self.merged(mixture), self.bias, stride=2, padding=self.padding)
