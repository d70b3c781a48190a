"""What every network is given and brought to, whoever wrote it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

INSTANCE = ("INSTANCE", {"affine": True})


@dataclass
class Arguments:
    """What a segmenter is made from; `filters` are the widths of its levels, the finest first, each half as fine."""

    dims: int
    channels: int
    outputs: int
    filters: Sequence[int]
    rare: float = 0.0  # logit of every structure at first, the background's being 0

    @property
    def strides(self) -> list[int]:
        return [2] * (len(self.filters) - 1)


class Fitted(nn.Module):
    """Any network behind sizes that it can take: the image is padded to a multiple, the logits are cropped.

    And behind a bias of its own, so that structures begin as rare as with the default network. Where its mask is
    `coarser` than the image, logits are interpolated, and last of all: a head behind it has as little to do.
    """

    def __init__(self, network: nn.Module, multiple: int, a: Arguments, coarser: int = 1):
        super().__init__()
        self.network, self.multiple, self.coarser = network, multiple, coarser
        self.bias = nn.Parameter(torch.full([a.outputs, *[1] * a.dims], a.rare))
        self.bias.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, *s] → [n, outputs, *s]. Raises ValueError where the network gives another shape, TypeError where it
        gives no tensor.
        """
        return self.grown(self.coarse(x), x.shape[2:])

    def coarse(self, x: Tensor) -> Tensor:
        """[n, C, *s] → [n, outputs, *t], of the padded image and as coarse as the network's mask. Raises the same."""
        pad = [part for more in reversed(self._missing(x.shape[2:])) for part in (more // 2, more - more // 2)]
        x = F.pad(x, pad) if any(pad) else x
        # A processor's bf16 convolutions in 3D are wrong below three voxels (torch 2.13).
        exact = x.device.type == "cpu" and x.ndim == 5 and min(x.shape[2:]) < 3 * self.multiple
        with torch.autocast(x.device.type, enabled=False) if exact else nullcontext():
            logits: Tensor = self.network(x.float() if exact else x)
        if not isinstance(logits, Tensor):
            raise TypeError(f"the network gives a {type(logits).__name__} instead of a tensor")
        given, wanted = list(logits.shape), [len(x), len(self.bias), *(side // self.coarser for side in x.shape[2:])]
        if given != wanted:
            raise ValueError(f"for an image of {list(x.shape)} the network gives {given} instead of {wanted}")
        return logits + self.bias

    def grown(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """What lies on the grid of `coarse`, [n, k, *t] → [n, k, *s], on that of the image."""
        missing = self._missing(size)
        if self.coarser > 1:
            padded = [side + more for side, more in zip(size, missing, strict=True)]
            logits = F.interpolate(logits.float(), padded, mode="bilinear" if len(padded) == 2 else "trilinear")
        for axis, (side, more) in enumerate(zip(size, missing, strict=True), start=2):
            logits = logits.narrow(axis, more // 2, side)
        return logits

    def _missing(self, size: Sequence[int]) -> list[int]:
        """Voxels for a multiple, and two at the coarsest level: an instance norm of a single one would be 0."""
        return [max(-side % self.multiple, 2 * self.multiple - side) for side in size]


def instance_normed(network: nn.Module) -> nn.Module:
    """Batch norms become instance norms with their scale and shift, nothing overwrites its input, nothing drops out.

    A batch of two small patches says little of the mean over scans, running means would be shared by a step and the
    steps that level 3 looks ahead, its derivatives need the inputs kept, and what is dropped would depend on more
    than seed and step.
    """
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        for name, child in list(module.named_children()):
            if isinstance(child, _NormBase) and (isinstance(child, _BatchNorm) or child.track_running_stats):
                setattr(module, name, _instance_norm(child))
    return network


def _instance_norm(norm: _NormBase) -> nn.Module:
    kinds = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    dims = next((n for n in kinds if f"{n}d" in type(norm).__name__), None)
    if dims is None:
        raise ValueError(f"its {type(norm).__name__} has no counterpart that normalises each sample on its own")
    made = kinds[dims](norm.num_features, eps=norm.eps, affine=norm.affine)
    if norm.affine:
        made.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return made
