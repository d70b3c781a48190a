"""`package.module:factory`: the user's own network."""

import copy
import importlib
import os
import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from .fitting import Arguments

COARSEST = 32  # of this its image is made a multiple: five halvings are safe


def make(name: str, a: Arguments) -> tuple[nn.Module, int]:
    """Calls factory(spatial_dims, in_channels, out_channels). → network, and of what its image is made a multiple.

    Raises TypeError where that gives no network, ValueError where one without weights as yet, whatever `found` or the
    factory raises, and RuntimeError where the factory would end the program.
    """
    factory = found(name)
    try:
        made = factory(spatial_dims=a.dims, in_channels=a.channels, out_channels=a.outputs)
    except SystemExit as end:
        raise RuntimeError(f"its factory ends the program ({end!r})") from end
    if not isinstance(made, nn.Module):
        raise TypeError(f"its factory gives a {type(made).__name__} instead of a torch.nn.Module")
    lazy = [key for key, tensor in chain(made.named_parameters(), made.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ValueError(f"'{lazy[0]}' has no size before the first image; make the layer with its number of channels")
    return copy.deepcopy(made), COARSEST  # a factory that gives the same one twice would tie the average to the network


def found(name: str) -> Callable[..., Any]:
    """The factory; its package is looked for in the current folder, too.

    Raises ImportError, AttributeError or whatever the package raises; RuntimeError where that would end the program.
    """
    module, _, factory = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        made: Callable[..., Any] = getattr(importlib.import_module(module), factory)
    except SystemExit as end:
        raise RuntimeError(f"importing {module} ends the program ({end!r})") from end
    return made
