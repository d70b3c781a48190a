"""Networks as users write them, for `--segmenter own_networks:...`."""

import sys
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


def small(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Batch norm and a ReLU that overwrites its input: what many networks have."""
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(
        conv(in_channels, 8, 3, padding=1), norm(8), nn.ReLU(inplace=True), conv(8, out_channels, 3, padding=1)
    )


class Halving(nn.Module):
    """Gives a mask of half the size, as some networks do."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(in_channels, out_channels, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def other_arguments(channels: int) -> nn.Module:
    raise AssertionError("is never called")


class Turned(nn.Module):
    """Swaps height and width."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).transpose(-1, -2)


turned = Turned


class Checkpointed(nn.Module):
    """Saves memory in a way that forward mode does not know."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.conv, x, use_reentrant=True)


checkpointed = Checkpointed


class Attention(nn.Module):
    """Attention between an image's coarse places."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 8, stride=8)
        self.last = nn.ConvTranspose2d(8, out_channels, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.last(tokens.transpose(1, 2).reshape(x.shape))


attention = Attention


class UnusedAndFrozen(nn.Module):
    """A head that is not asked, and a layer that is not to be trained."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, 8, 3, padding=1).requires_grad_(False)
        self.last = nn.Conv2d(8, out_channels, 3, padding=1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu())


unused_and_frozen = UnusedAndFrozen


def with_state(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Norms with running means and scales of their own, and dropout."""
    norms = [
        nn.BatchNorm2d(in_channels),
        nn.BatchNorm2d(in_channels, track_running_stats=False),
        nn.InstanceNorm2d(in_channels, affine=True, track_running_stats=True),
    ]
    for norm in norms:
        nn.init.constant_(norm.weight, 3.0)
    return nn.Sequential(*norms, nn.Dropout(0.5), nn.Conv2d(in_channels, out_channels, 1))


class Bent(nn.Module):
    """A convolution, and what its kind does with the result."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def bend(self, y: torch.Tensor) -> object:
        return y

    def forward(self, x: torch.Tensor) -> object:
        return self.bend(self.conv(x))


class dropping(Bent):  # noqa: N801
    """So seldom that answers do not show it."""

    def bend(self, y: torch.Tensor) -> torch.Tensor:
        return F.dropout(y, 1e-9, self.training)


class counting(Bent):  # noqa: N801
    """Gives another answer each time without a random number."""

    times = 0

    def bend(self, y: torch.Tensor) -> torch.Tensor:
        self.times += 1
        return y * self.times


class batch_normed(Bent):  # noqa: N801
    def bend(self, y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, None, None, training=True)


class first_only(Bent):  # noqa: N801
    """Written for one image at a time."""

    def bend(self, y: torch.Tensor) -> torch.Tensor:
        return y[:1]


class several(Bent):  # noqa: N801
    """Deep supervision of its own."""

    def bend(self, y: torch.Tensor) -> list[torch.Tensor]:
        return [y, y]


class endless(Bent):  # noqa: N801
    def bend(self, y: torch.Tensor) -> torch.Tensor:
        return y / 0


class always_two(Bent):  # noqa: N801
    """Knows better how many classes there are."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int):
        super().__init__(spatial_dims, in_channels, 2)


def lazy(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(out_channels, 3, padding=1))


def no_network(spatial_dims: int, in_channels: int, out_channels: int) -> dict:
    return nn.Conv2d(in_channels, out_channels, 1).state_dict()


def leaving(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    sys.exit(3)


@cache
def the_same(spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Made once."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)
