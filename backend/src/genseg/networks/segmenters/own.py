"""`package.module:factory`: the user's own network."""

import importlib
import os
import sys

from torch import nn

from .fitting import Arguments

COARSEST = 32  # of this its image is made a multiple: five halvings are safe


def make(name: str, a: Arguments) -> tuple[nn.Module, int]:
    """The package is looked for in the current folder, too.

    Calls factory(spatial_dims, in_channels, out_channels). → network, and of what its image is made a multiple.
    """
    module, _, factory = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    make_network = getattr(importlib.import_module(module), factory)
    return make_network(spatial_dims=a.dims, in_channels=a.channels, out_channels=a.outputs), COARSEST
