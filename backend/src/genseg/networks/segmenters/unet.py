"""`unet`: the U-Net with residual units that MONAI's tutorials train."""

from monai.networks.nets import UNet
from torch import nn

from .fitting import INSTANCE, Arguments


def make(a: Arguments) -> tuple[nn.Module, int]:
    """→ network, and of what its image must be a multiple."""
    network = UNet(a.dims, a.channels, a.outputs, a.filters, a.strides, num_res_units=2, norm=INSTANCE)
    return network, 2 ** len(a.strides)
