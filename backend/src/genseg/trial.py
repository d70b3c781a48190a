"""A segmenter other than the default is tried before a run begins: it may be the user's own."""

from typing import Any

import torch
from torch import Tensor, nn

from genseg.methods.hypergradient import call, slope_along
from genseg.networks import build_segmenter
from genseg.networks.segmenter import DEFAULT, unfit
from genseg.plan import Plan
from genseg.processor import quicken

OTHER_SIZE = (64, 96, 70)  # neither a cube nor a multiple of much


def tried(plan: Plan) -> Plan:
    """The plan with the memory that its network takes. Raises RunFailed where the network is unfit."""
    name = plan.segmenter
    if name == DEFAULT:
        return plan
    usual = _values(build_segmenter(plan.model_copy(update={"segmenter": DEFAULT})), plan)
    network = quicken(build_segmenter(plan))
    try:
        if ":" in name:
            _try_all_that_training_does(network, plan)
        memory = round(plan.memory_mb * _values(network, plan) / usual)
    except Exception as error:
        raise unfit(name, error) from error
    weights = sum(p.numel() for p in network.parameters()) / 1e6
    note = f"The network is '{name}' with {weights:.1f} million weights; about {memory} MB instead."
    if ":" in name:
        note += f" It comes from {name.partition(':')[0]}, which must be there wherever the model is used."
    return plan.model_copy(update={"memory_mb": memory, "notes": [*plan.notes, note]})


def _values(network: nn.Module, plan: Plan) -> int:
    """How many values its layers put out for one patch, which is what training keeps in memory."""
    seen: list[int] = []

    def count(_: nn.Module, __: Any, out: Any) -> None:
        seen.append(out.numel() if isinstance(out, Tensor) else 0)

    hooks = [part.register_forward_hook(count) for part in network.modules() if not list(part.children())]
    with torch.no_grad():
        network(torch.zeros(1, plan.channels, *plan.patch))
    for hook in hooks:
        hook.remove()
    return sum(seen)


def _try_all_that_training_does(network: nn.Module, plan: Plan) -> None:
    """Another size, predicting, and the derivative of a derivative that level 3 takes."""
    image = torch.rand(1, plan.channels, *OTHER_SIZE[: plan.dims])
    with torch.no_grad():
        network.eval()(image)
    network.train()
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    image.requires_grad_()
    slope = slope_along(lambda at: call(network, at, image).square().mean(), weights, weights)
    torch.autograd.grad(slope, image)
