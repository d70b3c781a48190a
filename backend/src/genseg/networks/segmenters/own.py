"""`package.module:factory`: the user's own network."""

import importlib

from torch import nn

from .fitting import Arguments

COARSEST = 32  # of this its image is made a multiple: five halvings are safe


def make(name: str, a: Arguments) -> tuple[nn.Module, int]:
    """Calls factory(spatial_dims, in_channels, out_channels). → network, and of what its image is made a multiple."""
    module, _, factory = name.partition(":")
    make_network = getattr(importlib.import_module(module), factory)
    return make_network(spatial_dims=a.dims, in_channels=a.channels, out_channels=a.outputs), COARSEST
