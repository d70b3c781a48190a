"""The implicit meta-gradient: against the closed form, and against a literal unrolling."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genseg.methods.hypergradient import Parameters, call
from genseg.methods.imaml import adapt, conjugate_gradient, flat, hessian_product, implicit_gradient, split
from genseg.methods.losses import segmentation_loss


def spd(n: int, condition: float, seed: int) -> Tensor:
    """[n, n] symmetric, its eigenvalues evenly spread in the logarithm from 1 to `condition`."""
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return q @ torch.diag(torch.logspace(0, torch.tensor(condition).log10(), n, dtype=torch.float64)) @ q.T


def test_on_a_quadratic_problem_the_meta_gradient_is_the_closed_form():
    """L_support = ½ φᵀHφ − bᵀφ, L_query = ½ ‖φ − c‖²: φ* = (H + λ)⁻¹ (b + λθ), so dL/dθ = λ (H + λ)⁻¹ (φ* − c)."""
    n, strength = 12, 0.7
    h, rng = spd(n, 20, 1), torch.Generator().manual_seed(2)
    b, c, theta = (torch.randn(n, generator=rng, dtype=torch.float64) for _ in range(3))
    start = {"a": theta[:5].clone(), "b": theta[5:].view(7, 1).clone()}

    def support(weights: Parameters, _step: int = 0) -> Tensor:
        phi = flat(weights)
        return 0.5 * phi @ h @ phi - b @ phi

    found = adapt(support, start, strength, steps=2000, rate=0.02)
    system = h + strength * torch.eye(n, dtype=torch.float64)
    best = torch.linalg.solve(system, b + strength * theta)
    assert torch.allclose(flat(found), best, atol=1e-6)
    slope = split(flat(found) - c, start)
    gradient, solution = implicit_gradient(
        slope, lambda v: split(h @ flat(v), start), strength, steps=50, tolerance=1e-12
    )
    exact = strength * torch.linalg.solve(system, best - c)
    assert torch.allclose(flat(gradient), exact, rtol=1e-4, atol=1e-6)
    assert solution.residuals[-1] < 1e-8


def test_the_pull_acts_in_every_step_and_not_once():
    """One weight, L_support = −φ: with the pull in every step it settles at θ + 1/λ instead of running away."""
    start = {"w": torch.tensor([3.0])}
    found = adapt(lambda weights, _: -weights["w"].sum(), start, strength=2.0, steps=400, rate=0.05)
    assert abs(float(found["w"]) - 3.5) < 1e-3 and float(start["w"]) == 3.0


@pytest.mark.parametrize("condition", [10.0, 100.0])
def test_conjugate_gradients_converge_at_least_at_the_rate_of_the_textbook(condition):
    """‖e_k‖_A ≤ 2 ((√κ − 1)/(√κ + 1))^k ‖e_0‖_A, and n steps suffice."""
    n = 60
    a, rng = spd(n, condition, 3), torch.Generator().manual_seed(4)
    b = torch.randn(n, generator=rng, dtype=torch.float64)
    exact = torch.linalg.solve(a, b)

    def energy(e: Tensor) -> float:
        return float((e @ a @ e).sqrt())

    root = condition**0.5
    for steps in (3, 6, 12):
        found = conjugate_gradient(lambda v: a @ v, b, steps=steps, tolerance=0.0)
        bound = 2 * ((root - 1) / (root + 1)) ** steps
        assert energy(exact - found.x) <= bound * energy(exact)
    assert torch.allclose(conjugate_gradient(lambda v: a @ v, b, steps=n, tolerance=1e-12).x, exact, atol=1e-6)


def test_a_good_start_saves_steps_and_a_bad_one_is_not_taken():
    a, rng = spd(30, 50, 5), torch.Generator().manual_seed(6)
    b = torch.randn(30, generator=rng, dtype=torch.float64)
    exact = torch.linalg.solve(a, b)
    cold = conjugate_gradient(lambda v: a @ v, b, steps=30, tolerance=1e-3)
    warm = conjugate_gradient(lambda v: a @ v, b, start=exact + 1e-3 * b, steps=30, tolerance=1e-3)
    bad = conjugate_gradient(lambda v: a @ v, b, start=100 * b, steps=30, tolerance=1e-3)
    assert len(warm.residuals) < len(cold.residuals) == len(bad.residuals)


def test_a_direction_without_upward_curvature_ends_the_search_with_what_there_is():
    a = torch.diag(torch.tensor([2.0, -1.0, 1.0]))
    found = conjugate_gradient(lambda v: a @ v, torch.tensor([1.0, 3.0, 0.0]), steps=10)
    assert bool(torch.isfinite(found.x).all()) and len(found.residuals) <= 2


def test_a_direction_that_bends_down_too_much_is_not_followed_and_the_gradient_itself_is_taken():
    """A = I + H/λ = diag(0.1, 1): along the first weight 1/A would make ten of one."""
    slope = {"w": torch.tensor([1.0, 0.1])}
    found, _ = implicit_gradient(slope, lambda v: {"w": v["w"] * torch.tensor([-0.9, 0.0])}, strength=1.0)
    assert torch.equal(found["w"], slope["w"])


def test_the_error_never_grows_with_a_step_although_the_residual_does():
    """Fifteen sharp directions among many flat ones, as networks have."""
    n, rng = 200, torch.Generator().manual_seed(11)
    values = torch.cat([torch.linspace(20, 80, 15), torch.ones(n - 15)]).double()
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=rng, dtype=torch.float64))
    a, b = q @ torch.diag(values) @ q.T, torch.randn(n, generator=rng, dtype=torch.float64)
    exact = torch.linalg.solve(a, b)
    found = [conjugate_gradient(lambda v: a @ v, b, steps=steps, tolerance=0.0) for steps in range(7)]
    errors = [float((one.x - exact).norm()) for one in found]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.5 * errors[0]
    assert max(found[-1].residuals) > 1
    for one in found:
        assert float((b - a @ one.x).norm() / b.norm()) == pytest.approx(one.residuals[-1], rel=1e-6)


def test_where_no_direction_can_be_followed_an_earlier_solution_is_not_returned_either():
    slope = {"w": torch.tensor([1.0, 0.1, 0.0])}
    bend, earlier = torch.tensor([-0.9, 0.0, 0.0]), torch.tensor([0.0, 0.09, 0.0])
    found, solution = implicit_gradient(slope, lambda v: {"w": v["w"] * bend}, 1.0, start=earlier)
    assert torch.equal(found["w"], slope["w"]) and solution.refused


class Small(nn.Module):
    """2 channels to 3 classes with a norm like the real one's; smooth, so that there is a minimum to reach."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.InstanceNorm2d(4, affine=True),
            nn.Conv2d(4, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.silu(self.norm(self.one(x))))


def small_problem() -> tuple[Small, dict[str, tuple[Tensor, Tensor]]]:
    torch.manual_seed(7)
    network = Small().double()
    network.one.weight.data *= 5  # the smaller weights before a norm are, the sharper the loss bends along them
    rng = torch.Generator().manual_seed(8)
    data = {}
    for name in ("support", "query"):
        label = (torch.rand(2, 8, 8, generator=rng) * 3).long()
        image = torch.stack([label == 1, label == 2], 1).double()
        data[name] = image + 0.5 * torch.randn(2, 2, 8, 8, generator=rng, dtype=torch.float64), label
    return network, data


def test_on_a_small_network_it_points_where_backpropagation_through_a_long_inner_loop_does():
    network, data = small_problem()
    theta = {name: p.detach() for name, p in network.named_parameters()}
    strength, rate, steps = 0.3, 0.1, 300

    def loss(weights: Parameters, name: str) -> Tensor:
        image, label = data[name]
        return segmentation_loss(call(network, weights, image), label).mean()

    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    phi = leaves
    for _ in range(steps):  # plain gradient descent, every step kept for the way back
        inner = loss(phi, "support") + strength / 2 * sum(((phi[n] - leaves[n]) ** 2).sum() for n in phi)
        slopes = torch.autograd.grad(inner, list(phi.values()), create_graph=True)
        phi = {n: p - rate * g for (n, p), g in zip(phi.items(), slopes, strict=True)}
    unrolled = torch.autograd.grad(loss(phi, "query"), list(leaves.values()))

    found = adapt(lambda weights, _: loss(weights, "support"), theta, strength, 600, rate / 10)
    assert float((flat(found) - flat({n: p.detach() for n, p in phi.items()})).norm()) < 1e-2
    at = {name: p.requires_grad_() for name, p in found.items()}
    slope = dict(zip(at, torch.autograd.grad(loss(at, "query"), list(at.values())), strict=True))
    curvature = hessian_product(lambda weights: loss(weights, "support"), found)
    gradient, _ = implicit_gradient(slope, curvature, strength, steps=30, tolerance=1e-6)
    reference = torch.cat([g.flatten() for g in unrolled])
    cosine = float(F.cosine_similarity(flat(gradient), reference, 0))
    first_order = float(F.cosine_similarity(flat(slope), reference, 0))
    assert cosine >= 0.95 and cosine > first_order, (cosine, first_order)
    assert abs(float(flat(gradient).norm() / reference.norm()) - 1) < 0.1


def test_the_product_with_the_hessian_is_the_one_written_out():
    network, data = small_problem()
    theta = {name: p.detach() for name, p in network.named_parameters()}
    image, label = data["support"]
    rng = torch.Generator().manual_seed(9)
    direction = torch.randn(flat(theta).shape, generator=rng, dtype=torch.float64)

    def loss(weights: Parameters) -> Tensor:
        return segmentation_loss(call(network, weights, image), label).mean()

    h = torch.autograd.functional.hessian(lambda vector: loss(split(vector, theta)), flat(theta))
    product = flat(hessian_product(loss, theta)(split(direction, theta)))
    assert float((product - h @ direction).norm() / (h @ direction).norm()) < 1e-4
