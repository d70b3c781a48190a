"""`swin_unetr`: a Swin transformer as encoder of a U-Net (Hatamizadeh et al., 2022)."""

from monai.networks.nets import SwinUNETR
from torch import nn

from .fitting import INSTANCE, Arguments

HEADS = 12  # the width is shared by 3, 6, 12 and 24 heads, and 12 of it at the finest level is the least


def make(a: Arguments) -> tuple[nn.Module, int]:
    """→ network, and of what its image must be a multiple."""
    width = HEADS * -(-a.filters[0] // HEADS)
    network = SwinUNETR(a.channels, a.outputs, feature_size=width, norm_name=INSTANCE, spatial_dims=a.dims)
    return network, 2**5
