"""The segmenter of a plan: MONAI's DynUNet (nnU-Net's architecture) or another one, plain or behind prompts."""

from typing import Any

from monai.networks.nets import DynUNet
from torch import nn

from genseg.errors import RunFailed
from genseg.networks import segmenters
from genseg.networks.prompted import RARE, prompted_dynunet, prompted_segmenter
from genseg.plan import DEFAULT_SEGMENTER, Plan

NORM = ("INSTANCE", {"affine": True})
ACTIVATIONS = {
    "leakyrelu": ("leakyrelu", {"inplace": False, "negative_slope": 0.01}),  # forward mode needs the input kept
    "swish": "swish",
}


def build_segmenter(plan: Plan, deep_supervision: bool = False) -> nn.Module:
    """[n, C, *patch] → logits [n, classes, *patch]; with deep supervision [n, heads, classes, *patch] in training.

    Raises RunFailed where the user's own network cannot be made.
    """
    if plan.segmenter != DEFAULT_SEGMENTER:
        return _other_segmenter(plan)
    deep = {"deep_supervision": deep_supervision, "deep_supr_num": min(2, len(plan.filters) - 2)}
    arguments = dynunet_arguments(plan) | deep
    if plan.prompts is not None:
        return prompted_dynunet(**plan.prompts.arguments(), **arguments)
    network = DynUNet(**arguments)
    nn.init.constant_(network.output_block.conv.conv.bias[1:], RARE)
    return network


def _other_segmenter(plan: Plan) -> nn.Module:
    try:
        if plan.prompts is not None:
            return prompted_segmenter(**plan.prompts.arguments(), **segmenter_arguments(plan))
        return segmenters.build(**segmenter_arguments(plan))
    except Exception as error:  # of the user's own network: it may be gone, or anything else
        raise unfit(plan.segmenter, error) from error


def dynunet_arguments(plan: Plan) -> dict[str, Any]:
    """What DynUNet has to be told of the plan."""
    return {
        "spatial_dims": plan.dims,
        "in_channels": plan.channels,
        "out_channels": plan.classes if plan.prompts is None else plan.prompts.count,
        "kernel_size": plan.kernels,
        "strides": plan.strides,
        "upsample_kernel_size": plan.strides[1:],
        "filters": plan.filters,
        "norm_name": NORM,
        "act_name": ACTIVATIONS[plan.activation],
    }


def segmenter_arguments(plan: Plan) -> dict[str, Any]:
    """What `segmenters.build` has to be told of it."""
    shared = {"segmenter": plan.segmenter, "dims": plan.dims, "channels": plan.channels, "filters": plan.filters}
    own = {"outputs": plan.classes, "rare": RARE} if plan.prompts is None else {"outputs": plan.filters[0]}
    return shared | own


def unfit(name: str, error: Exception) -> RunFailed:
    """What is told of a network that cannot be used."""
    return RunFailed(
        "segmenter_unfit",
        f"The segmenter '{name}' cannot be used: {type(error).__name__}: {error}",
        "A network of your own is named package.module:factory, in the current folder or installed. "
        "The factory takes spatial_dims, in_channels and out_channels and returns a torch.nn.Module that maps "
        "[n, in, *size] to [n, out, *size], each of the n samples on its own and always alike.",
    )
