"""`attention_unet`: the U-Net whose skip connections are gated by the coarser level (Oktay et al., 2018)."""

from monai.networks.nets import AttentionUnet
from torch import nn

from .fitting import Arguments


def make(a: Arguments) -> tuple[nn.Module, int]:
    """→ network, and of what its image must be a multiple."""
    return AttentionUnet(a.dims, a.channels, a.outputs, a.filters, a.strides), 2 ** len(a.strides)
