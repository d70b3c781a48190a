"""The segmenter of a plan: MONAI's DynUNet (nnU-Net's architecture) or another one, plain or behind prompts."""

from typing import Any

import torch
from monai.networks.nets import DynUNet
from torch import nn

from genseg.errors import RunFailed
from genseg.networks import segmenters
from genseg.networks.prompted import RARE, prompted_dynunet, prompted_segmenter
from genseg.plan import Plan

DEFAULT = "dynunet"
NORM = ("INSTANCE", {"affine": True})
ACTIVATION = ("leakyrelu", {"inplace": False, "negative_slope": 0.01})  # forward mode needs the input kept


def build_segmenter(plan: Plan, deep_supervision: bool = False) -> nn.Module:
    """[n, C, *patch] → logits [n, classes, *patch]; with deep supervision [n, heads, classes, *patch] in training."""
    if plan.segmenter != DEFAULT:
        if plan.prompts is not None:
            return prompted_segmenter(**plan.prompts.arguments(), **segmenter_arguments(plan))
        return segmenters.build(**segmenter_arguments(plan))
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


def segmenter_arguments(plan: Plan) -> dict[str, Any]:
    """What `segmenters.build` has to be told of it."""
    shared = {"segmenter": plan.segmenter, "dims": plan.dims, "channels": plan.channels, "filters": plan.filters}
    own = {"outputs": plan.classes, "rare": RARE} if plan.prompts is None else {"outputs": plan.filters[0]}
    return shared | own


def with_segmenter(plan: Plan, name: str) -> Plan:
    """The plan with another network, tried on an empty patch. Raises RunFailed where it cannot be made or is unfit."""
    if name == DEFAULT:
        return plan
    usual = _trial(build_segmenter(plan), plan)
    plan = plan.model_copy(update={"segmenter": name, "deep_supervision": False})
    try:
        network = build_segmenter(plan)
        values = _trial(network, plan)
    except Exception as error:
        message = f"The segmenter '{name}' cannot be used: {type(error).__name__}: {error}"
        raise RunFailed(
            "segmenter_unfit",
            message,
            "A network of your own is named package.module:factory. The factory takes spatial_dims, in_channels and "
            "out_channels and returns a torch.nn.Module that maps [n, in, *size] to [n, out, *size].",
        ) from error
    weights = sum(p.numel() for p in network.parameters()) / 1e6
    memory = round(plan.memory_mb * values / usual)
    note = f"The network is '{name}' with {weights:.1f} million weights; about {memory} MB instead."
    if ":" in name:
        note += f" It comes from {name.partition(':')[0]}, which must be there wherever the model is used."
    return plan.model_copy(update={"memory_mb": memory, "notes": [*plan.notes, note]})


def _trial(network: nn.Module, plan: Plan) -> int:
    """→ how many values its layers put out for one patch, which is what training keeps in memory."""
    seen: list[int] = []

    def count(_: nn.Module, __: Any, out: Any) -> None:
        seen.append(out.numel() if isinstance(out, torch.Tensor) else 0)

    hooks = [part.register_forward_hook(count) for part in network.modules() if not list(part.children())]
    with torch.no_grad():
        network(torch.zeros(1, plan.channels, *plan.patch))
    for hook in hooks:
        hook.remove()
    return sum(seen)
