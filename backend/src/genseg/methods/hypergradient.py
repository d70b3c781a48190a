"""The hypergradient of one unrolled step, exact, by forward-over-reverse differentiation.

    S'(A) = S - η P (g_fixed + ∇_S L_train(S; A, G'(A))),   G'(A) = G - η_G ∇_G L_G(G; A)
    dL_val(S'(A))/dA = - d/dA ⟨∇_S L_train(S; A, G'(A)), w⟩,   w = η P ∇_{S'} L_val(S')

P is the optimiser's diagonal preconditioner (1 for SGD, 1/(√v + ε) for Adam), taken as a constant;
g_fixed is the part of the gradient that does not depend on A.

⟨∇_S L, w⟩ is the derivative of L in direction w, which forward mode gives as an ordinary number with
an ordinary graph behind it. So no convolution is ever differentiated twice backwards, which on a
processor costs many times as much.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters], Tensor]


def call(module: nn.Module, weights: Parameters, *arguments: object) -> Any:
    """The module with other weights.

    Without tie_weights=False, torch restores a block that is registered under two names (DynUNet's
    are) to the other weights instead of its own, and the optimiser would go on with orphans.
    """
    return functional_call(module, weights, arguments, tie_weights=False)


def hypergradient(
    segmenter: Parameters,
    generator: Parameters,
    train_loss: Callable[[Parameters, Parameters], Tensor],
    generator_loss: Loss,
    validation_loss: Loss,
    meta: Sequence[Tensor],
    rate: Parameters,
    generator_rate: float,
    fixed_gradient: Parameters | None = None,
) -> tuple[list[Tensor], Tensor]:
    """→ (a gradient for each of `meta`, zeros where it has no influence; the validation loss after the step).

    segmenter, generator: weights by name. train_loss(S, G) and generator_loss(G) may use `meta`
    inside; rate holds ηP by name of the segmenter's weights, generator_rate is η_G.
    """
    weights = {name: p.detach() for name, p in segmenter.items()}
    start = {name: p.detach() for name, p in generator.items()}
    ahead = _step(start, _gradient(generator_loss, start), dict.fromkeys(start, generator_rate))
    gradient = _gradient(lambda s: train_loss(s, ahead), weights)
    if fixed_gradient is not None:
        gradient = {name: g + fixed_gradient.get(name, 0) for name, g in gradient.items()}
    stepped = _step(weights, gradient, rate)
    validation, slope = value_and_gradient(validation_loss, stepped)
    direction = {name: rate[name] * slope[name] for name in weights}

    leaves = {name: p.requires_grad_() for name, p in ahead.items()}
    downhill = -slope_along(lambda s: train_loss(s, leaves), weights, direction)
    found = _grad(downhill, [*meta, *leaves.values()])
    direct, at_generator = found[: len(meta)], dict(zip(leaves, found[len(meta) :], strict=True))
    # The path through the generator's own step: -η_G d/dA ⟨∇_G L_G(G; A), dL/dG'⟩.
    through = -generator_rate * slope_along(generator_loss, start, at_generator)
    return [a + b for a, b in zip(direct, _grad(through, meta), strict=True)], validation


def adam_rates(optimiser: torch.optim.Optimizer, parameters: Parameters) -> Parameters:
    """ηP of Adam or AdamW by parameter name: lr · (1 - β1) / (√v̂ + ε). Before its first step, lr."""
    group = optimiser.param_groups[0]
    beta1, beta2 = group["betas"]
    rates = {}
    for name, p in parameters.items():
        state = optimiser.state.get(p)
        if not state:
            rates[name] = torch.full_like(p, group["lr"])
            continue
        corrected = state["exp_avg_sq"] / (1 - beta2 ** state["step"])
        rates[name] = group["lr"] * (1 - beta1) / (corrected.sqrt() + group["eps"])
    return rates


class _WrittenOutNorms(TorchFunctionMode):
    """Norms from their formula, where torch (2.13) differentiates the forward mode of its own wrongly or not at all.

    Of instance, layer and batch norm the tangent itself is right, its gradient is not; mean(x^3) of such a norm shows
    it. Group norm has no forward mode where the channels come last in memory.
    """

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return _WRITTEN_OUT.get(function, function)(*arguments, **(named or {}))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The signature of torch's own, whose derivatives are right where it takes running statistics instead."""
    if not use_input_stats:
        return F.instance_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _by_channel(_normed(input, list(range(2, input.ndim)), eps), weight, bias)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """The same; running statistics are not moved."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    return _by_channel(_normed(input, [0, *range(2, input.ndim)], eps), weight, bias)


def _weights_first(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same norm with its arguments in the order of torch.instance_norm and torch.batch_norm."""

    def reordered(
        input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
        running_var: Tensor | None, own: bool, momentum: float, eps: float, cudnn_enabled: bool = True,
    ) -> Tensor:  # fmt: skip
        return norm(input, running_mean, running_var, weight, bias, own, momentum, eps)

    return reordered


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """The signature of torch's own."""
    grouped = input.unflatten(1, (num_groups, -1))
    return _by_channel(_normed(grouped, list(range(2, grouped.ndim)), eps).flatten(1, 2), weight, bias)


def _by_channel(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    wide = [1, -1] + [1] * (y.ndim - 2)
    y = y if weight is None else y * weight.view(wide)
    return y if bias is None else y + bias.view(wide)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """The signature of torch's own."""
    y = _normed(input, list(range(-len(normalized_shape), 0)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _normed(x: Tensor, axes: list[int], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


_WRITTEN_OUT: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.instance_norm: _instance_norm,
    F.batch_norm: _batch_norm,
    torch.instance_norm: _weights_first(_instance_norm),
    torch.batch_norm: _weights_first(_batch_norm),
    **dict.fromkeys((F.layer_norm, torch.layer_norm), _layer_norm),
    **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
}


def slope_along(loss: Loss, at: Parameters, direction: Parameters) -> Tensor:
    """⟨∇ loss, direction⟩, which can be differentiated once more."""
    with _WrittenOutNorms(), sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no forward mode
        return jvp(loss, (at,), (direction,))[1]


def value_and_gradient(loss: Loss, at: Parameters) -> tuple[Tensor, Parameters]:
    leaves = {name: p.detach().requires_grad_() for name, p in at.items()}
    value = loss(leaves)
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    gradient = {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(leaves.items(), found, strict=True)}
    return value.detach(), gradient


def _gradient(loss: Loss, at: Parameters) -> Parameters:
    return value_and_gradient(loss, at)[1]


def _step(at: Parameters, gradient: Parameters, rate: Parameters | dict[str, float]) -> Parameters:
    return {name: (p - rate[name] * gradient[name]).detach() for name, p in at.items()}


def _grad(value: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Gradients, zeros where there is no path (also where there is none at all)."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in of]
    found = torch.autograd.grad(value, list(of), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(of, found, strict=True)]
