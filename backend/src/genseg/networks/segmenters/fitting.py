"""What every network is given and brought to, whoever wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

    And behind a bias of its own, so that structures begin as rare as with the default network.
    """

    def __init__(self, network: nn.Module, multiple: int, a: Arguments):
        super().__init__()
        self.network, self.multiple = network, multiple
        self.bias = nn.Parameter(torch.full([a.outputs, *[1] * a.dims], a.rare))
        self.bias.data[0] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """[n, C, *s] → [n, outputs, *s]."""
        size = x.shape[2:]
        # Two voxels at the coarsest level: an instance norm of a single one would be 0.
        missing = [max(-side % self.multiple, 2 * self.multiple - side) for side in size]
        pad = [part for more in reversed(missing) for part in (more // 2, more - more // 2)]
        x = F.pad(x, pad) if any(pad) else x
        logits: Tensor = self.network(x)
        given, wanted = list(logits.shape), [len(x), len(self.bias), *x.shape[2:]]
        if given != wanted:
            raise ValueError(f"for an image of {list(x.shape)} the network gives {given} instead of {wanted}")
        for axis, (side, more) in enumerate(zip(size, missing, strict=True), start=2):
            logits = logits.narrow(axis, more // 2, side)
        return logits + self.bias


def instance_normed(network: nn.Module) -> nn.Module:
    """Batch norms become instance norms, and nothing overwrites its input.

    A batch of two small patches says little of the mean over scans, running means would be shared by a step and the
    steps that level 3 looks ahead, and its derivatives need the inputs kept.
    """
    for module in network.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, (nn.BatchNorm2d, nn.BatchNorm3d)):
                kind = nn.InstanceNorm2d if isinstance(child, nn.BatchNorm2d) else nn.InstanceNorm3d
                setattr(module, name, kind(child.num_features, affine=True))
    return network
