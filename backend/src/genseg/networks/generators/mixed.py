"""Convolutions whose kernel is searched: a softmax-weighted mixture of several sizes, evaluated as one.

The sizes are nested about the same centre and a convolution is linear in its kernel, so the mixture equals ONE
convolution of the widest size whose kernel is the weighted sum of the zero-padded kernels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# oneDNN (torch 2.13, AVX-512) leaves the volume in the gradient of a kernel 8 planes deep where the finer
# side has 6 or 8 planes: infinite gradients, or a crash. With zeros behind it, up to 10 planes, it does not.
UNSAFE_KERNEL, UNSAFE_PLANES, SAFE_PLANES = 8, (6, 8), 10


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

    def missing_planes(self, finer: int) -> int:
        """How many planes of zeros the finer side of a volume, `finer` planes deep, needs behind it."""
        unsafe = self.dims == 3 and self.kernels[-1].shape[-1] == UNSAFE_KERNEL and finer in UNSAFE_PLANES
        return SAFE_PLANES - finer if unsafe else 0

    @property
    def padding(self) -> int:
        return int(self.kernels[-1].shape[-1]) // 2 - 1


def _with_planes(x: Tensor, more: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, more)) if more else x


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
        finer = 2 * x.shape[2]
        x = _with_planes(x, self.missing_planes(finer) // 2)
        return convolve(x, self.merged(mixture), self.bias, stride=2, padding=self.padding)[:, :, :finer]


class MixedDownConv(_MixedConv):
    """Halves the resolution: the mixture of convolutions."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, sizes: Sequence[int]):
        kernels = [torch.randn(channels_out, channels_in, *[k] * dims) / (channels_in * k**dims) ** 0.5 for k in sizes]
        super().__init__(dims, kernels, channels_out)

    def forward(self, x: Tensor, mixture: Tensor) -> Tensor:
        """[n, in, *2s] with `mixture` [kernels] logits → [n, out, *s]."""
        convolve = F.conv2d if self.dims == 2 else F.conv3d
        coarser = x.shape[2] // 2
        x = _with_planes(x, self.missing_planes(x.shape[2]))
        return convolve(x, self.merged(mixture), self.bias, stride=2, padding=self.padding)[:, :, :coarser]
