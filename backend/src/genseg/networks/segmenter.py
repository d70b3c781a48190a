"""The segmenter: MONAI's DynUNet, nnU-Net's architecture, plain or behind prompts."""

from typing import Any

from monai.networks.nets import DynUNet
from torch import nn

from genseg.networks.prompted import RARE, PromptedSegmenter, prompted_dynunet
from genseg.plan import Plan

NORM = ("INSTANCE", {"affine": True})
ACTIVATION = ("leakyrelu", {"inplace": False, "negative_slope": 0.01})  # forward mode needs the input kept


def build_segmenter(plan: Plan, deep_supervision: bool = False) -> DynUNet | PromptedSegmenter:
    """[n, C, *patch] → logits [n, classes, *patch]; with deep supervision [n, heads, classes, *patch] in training."""
    deep = {"deep_supervision": deep_supervision, "deep_supr_num": min(2, len(plan.filters) - 2)}
    arguments = dynunet_arguments(plan) | deep
    if plan.prompts is not None:
        return prompted_dynunet(**plan.prompts.arguments(), **arguments)
    network = DynUNet(**arguments)
    nn.init.constant_(network.output_block.conv.conv.bias[1:], RARE)
    return network


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
        "act_name": ACTIVATION,
    }
