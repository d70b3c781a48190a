"""The segmenters beside the default one, each in a file of its own: `build(arguments)` makes any of them by name.

Nothing here needs more than torch and MONAI: exported bundles carry a copy of this folder.
"""

from torch import nn

from . import attention_unet, deeplabv3, own, segresnet, swin_unetr, unet
from .fitting import Arguments, Fitted, instance_normed

MADE = {
    "unet": unet.make,
    "attention_unet": attention_unet.make,
    "segresnet": segresnet.make,
    "swin_unetr": swin_unetr.make,
    "deeplabv3": deeplabv3.make,
}
COARSER = {"deeplabv3": deeplabv3.STRIDE}  # than the image is the mask

__all__ = ["MADE", "Arguments", "build"]


def build(segmenter: str, **arguments: object) -> nn.Module:
    """`arguments` are those of `Arguments`. → network, [n, channels, *s] → [n, outputs, *s] for any size s.

    Raises what `own.make` raises where `segmenter` names the user's own.
    """
    told = Arguments(**arguments)  # type: ignore[arg-type]
    network, multiple = MADE[segmenter](told) if segmenter in MADE else own.make(segmenter, told)
    return Fitted(instance_normed(network), multiple, told, COARSER.get(segmenter, 1))
