"""iMAML: a starting point θ from which a few labelled scans suffice (arXiv 2106.03223, after arXiv 1909.04630).

    φ*(θ) = argmin_φ  L_support(φ) + λ/2 ‖φ − θ‖²
    d L_query(φ*) / dθ = z,   (I + H/λ) z = ∇L_query(φ*),   H = ∇² L_support(φ*)

z is found by conjugate gradients, which ask only for products with H: nothing is propagated back through the steps that
led to φ*, and memory does not grow with their number. H alone is indefinite, but at φ* I + H/λ is not. Where few steps
have not led there, a direction may bend downwards so much that it is not followed; then the search ends where it is.
Without such a limit z came out up to eight times as long as the gradient that it stands for. Every direction followed
brings z nearer to the solution, although the residual may grow on the way, with few sharp directions beyond ‖b‖.

Weights are dictionaries by name; the vectors of the linear system are flat, [number of weights].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genseg.methods.hypergradient import Loss, Parameters, slope_along

MOMENTUM = 0.9
CG_STEPS = 5
CG_TOLERANCE = 1e-2  # of the right side's length
LEAST = 0.5  # curvature of I + H/λ, which is 1 without H, below which a direction is not followed


def adapt(
    loss: Callable[[Parameters, int], Tensor], start: Parameters, strength: float, steps: int, rate: float
) -> Parameters:
    """φ* by gradient descent with momentum from θ = `start`; loss(φ, step) is L_support, `strength` is λ.

    The pull λ (φ − θ) is part of every step.
    """
    weights = {name: p.detach().clone().requires_grad_() for name, p in start.items()}
    optimiser = torch.optim.SGD(list(weights.values()), rate, MOMENTUM)
    anchors = [start[name].detach() for name in weights]
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss(weights, step).backward()
        with torch.no_grad():
            for p, anchor in zip(weights.values(), anchors, strict=True):
                pull = strength * (p - anchor)
                p.grad = pull if p.grad is None else p.grad.add_(pull)
        optimiser.step()
    return {name: p.detach() for name, p in weights.items()}


@dataclass
class Solution:
    """What conjugate gradients found; `residuals`: ‖b − A x‖ / ‖b‖ before each step, and last that of x."""

    x: Tensor
    residuals: list[float]
    refused: bool = False  # not even the first direction could be followed


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor | None = None,
    steps: int = CG_STEPS,
    tolerance: float = CG_TOLERANCE,
    least: float = 0.0,
) -> Solution:
    """x with A x = `right`, A symmetric and given by its products.

    `start` is taken where ½ xᵀA x − bᵀx is below the 0 of x = 0. The search ends where the residual is small enough or
    a direction's curvature is not above `least`.
    """
    size = max(float(right.norm()), 1e-30)
    x, residual = torch.zeros_like(right), right.clone()
    if start is not None:
        along = product(start)
        bent = float(start @ along)
        if bent > least * float(start @ start) and bent / 2 < float(right @ start):
            x, residual = start.clone(), right - along
    residuals, direction = [float(residual.norm()) / size], residual.clone()
    for step in range(steps):
        if residuals[-1] <= tolerance:
            break
        along = product(direction)
        curvature = float(direction @ along)
        if not curvature > least * float(direction @ direction) or not math.isfinite(curvature):
            return Solution(x, residuals, refused=step == 0)
        before = float(residual @ residual)
        x = x + (before / curvature) * direction
        residual = residual - (before / curvature) * along
        direction = residual + (float(residual @ residual) / before) * direction
        residuals.append(float(residual.norm()) / size)
    return Solution(x, residuals)


def hessian_product(loss: Loss, at: Parameters) -> Callable[[Parameters], Parameters]:
    """v → ∇² loss(at) v, exact: the gradient of the slope along v, which costs about three gradients."""
    leaves = {name: p.detach().requires_grad_() for name, p in at.items()}

    def product(direction: Parameters) -> Parameters:
        found = torch.autograd.grad(slope_along(loss, leaves, direction), list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}

    return product


def implicit_gradient(
    slope: Parameters,
    curvature: Callable[[Parameters], Parameters],
    strength: float,
    start: Tensor | None = None,
    steps: int = CG_STEPS,
    tolerance: float = CG_TOLERANCE,
) -> tuple[Parameters, Solution]:
    """(I + H/λ)⁻¹ ∇L_query. `slope`: ∇L_query(φ*) by name; `curvature`: products with H; `start`: an earlier x.

    Where not even the first direction can be followed it is ∇L_query itself, as in first-order MAML.
    """
    like = dict(slope)

    def product(vector: Tensor) -> Tensor:
        return vector + flat(curvature(split(vector, like))) / strength

    solution = conjugate_gradient(product, flat(slope), start, steps, tolerance, LEAST)
    if solution.refused:
        solution = Solution(flat(slope), solution.residuals, refused=True)
    return split(solution.x, like), solution


def flat(weights: Parameters) -> Tensor:
    """All of them one behind the other."""
    return torch.cat([p.flatten() for p in weights.values()])


def split(vector: Tensor, like: Parameters) -> Parameters:
    """The inverse of `flat`: names and shapes of `like`."""
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view_as(p) for (name, p), part in zip(like.items(), parts, strict=True)}
