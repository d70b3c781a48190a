"""A segmenter other than the default is tried before a run begins: it may be the user's own."""

from typing import Any

import torch
from torch import Tensor, nn

from genseg.errors import Fault, InputFaults, RunFailed
from genseg.methods.hypergradient import call, slope_along
from genseg.networks import build_segmenter
from genseg.networks.prompted import PromptedSegmenter
from genseg.networks.segmenter import unfit
from genseg.networks.segmenters import own
from genseg.plan import DEFAULT_SEGMENTER, Plan
from genseg.processor import quicken

OTHER_SIZE = (64, 96, 70)  # neither a cube nor a multiple of much
ALIKE = 1e-3  # of the largest logit: what rounding may change, and far less than another sample or dropout does


def missing(name: str) -> list[Fault]:
    """The fault of the user's own network that cannot be found; none of this project's is missing."""
    if ":" not in name:
        return []
    try:
        own.found(name)
    except Exception as error:
        return [_fault(unfit(name, error))]
    return []


def tried(plan: Plan) -> Plan:
    """The plan, with its prompts, and the memory that its network takes. Raises InputFaults where that is unfit."""
    name = plan.segmenter
    if name == DEFAULT_SEGMENTER:
        return plan
    usual = _values(build_segmenter(plan.model_copy(update={"segmenter": DEFAULT_SEGMENTER})), plan)
    try:
        network = quicken(build_segmenter(plan))
        memory = _memory_mb(network, plan, usual)
    except RunFailed as failed:
        raise InputFaults([_fault(failed)]) from failed
    weights = sum(p.numel() for p in network.parameters()) / 1e6
    note = f"The network is '{name}' with {weights:.1f} million weights; about {memory} MB instead."
    if ":" in name:
        note += f" It comes from {name.partition(':')[0]}, which must be there wherever the model is used."
    return plan.model_copy(update={"memory_mb": memory, "notes": [*plan.notes, note]})


def _fault(failed: RunFailed) -> Fault:
    return Fault(failed.code, "--segmenter", failed.message, failed.remedy)


def _memory_mb(network: nn.Module, plan: Plan, usual: int) -> int:
    """`usual`: what the default network's layers put out. Raises RunFailed where the network does not pass."""
    try:
        if ":" in plan.segmenter:
            _try_all_that_training_does(network, plan)
        share = _values(network, plan) / usual
    except Exception as error:
        raise unfit(plan.segmenter, error) from error
    return round((plan.memory_mb - plan.heads_mb) * share + plan.heads_mb)


def _values(network: nn.Module, plan: Plan) -> int:
    """How many values its layers put out for two patches, which is what training keeps in memory beside the heads."""
    seen: list[int] = []

    def count(_: nn.Module, __: Any, out: Any) -> None:
        seen.append(out.numel() if isinstance(out, Tensor) else 0)

    body = network.backbone if isinstance(network, PromptedSegmenter) else network
    hooks = [part.register_forward_hook(count) for part in body.modules() if not list(part.children())]
    with torch.no_grad():
        network(torch.zeros(2, plan.channels, *plan.patch))
    for hook in hooks:
        hook.remove()
    return sum(seen)


def _try_all_that_training_does(network: nn.Module, plan: Plan) -> None:
    """Another size, predicting, samples side by side, and the derivative of a derivative that level 3 takes."""
    image = torch.rand(2, plan.channels, *OTHER_SIZE[: plan.dims])
    image[1] = 1 + 2 * image[1]  # nothing that is common to the samples
    with torch.no_grad():
        network.eval()(image)
        network.train()
        _compare(network, image)
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    image.requires_grad_()
    slope = slope_along(lambda at: call(network, at, image).square().mean(), weights, weights)
    torch.autograd.grad(slope, image)


def _compare(network: nn.Module, image: Tensor) -> None:
    """Raises ValueError where the same image [2, C, *s] gives another answer again, or its samples alone do."""
    before = torch.get_rng_state()
    first = network(image)
    drawn = not torch.equal(before, torch.get_rng_state())
    if not first.isfinite().all():
        raise ValueError("it gives values that are not finite")
    if drawn or not _alike(network(image), first):
        raise ValueError("in training it gives another answer the second time: is there dropout in its forward?")
    if not _alike(torch.cat([network(image[:1]), network(image[1:])]), first):
        raise ValueError("a sample's answer depends on the others of its batch: is there a batch norm in its forward?")


def _alike(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= ALIKE * other.abs().max())
