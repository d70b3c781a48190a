"""`segresnet`: the residual encoder and decoder that won BraTS 2018 (Myronenko), without its autoencoder."""

from monai.networks.nets import SegResNet
from torch import nn

from .fitting import INSTANCE, Arguments


def make(a: Arguments) -> tuple[nn.Module, int]:
    """→ network, and of what its image must be a multiple. Its levels double their width, whatever the plan says."""
    network = SegResNet(a.dims, a.filters[0], a.channels, a.outputs, norm=INSTANCE)
    return network, 2**3
