"""The hypergradient against a literal unrolling in float64, against finite differences, and against what Adam does.

The oracle writes down S'(A) and G'(A) with their graphs and differentiates them twice backwards. Both see the very
losses of Joint._level3, on real scans, with DynUNet, the SPADE generator, warps and intensity changes.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from method_rig import advance, built, in_double, next_level3, prepared, searching, widen
from torch import Tensor, nn
from torch.nn.functional import mse_loss, silu

from genseg.methods import joint as joint_module
from genseg.methods.hypergradient import adam_rates, call, hypergradient, slope_along
from genseg.methods.joint import Joint

Found = tuple[list[Tensor], Tensor]


def unrolled(
    segmenter, generator, train_loss, generator_loss, validation_loss, meta, rate, generator_rate, fixed_gradient=None
) -> Found:  # fmt: skip
    """Same arguments and results as `hypergradient`: S'(A) and G'(A) written down, differentiated through."""
    value = after_one_step(
        segmenter, generator, train_loss, generator_loss, validation_loss, rate, generator_rate, fixed_gradient
    )
    found = torch.autograd.grad(value, list(meta), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(meta, found, strict=True)], value.detach()


def after_one_step(
    segmenter, generator, train_loss, generator_loss, validation_loss, rate, generator_rate, fixed_gradient=None
) -> Tensor:  # fmt: skip
    """L_val(S'(A)) with its graph."""
    s = {name: p.detach().clone().requires_grad_() for name, p in segmenter.items()}
    g = {name: p.detach().clone().requires_grad_() for name, p in generator.items()}
    at_g = gradient(generator_loss(g), g)
    ahead = {name: p - generator_rate * at_g[name] for name, p in g.items()}
    at_s = gradient(train_loss(s, ahead), s)
    fixed = fixed_gradient or {name: torch.zeros_like(p) for name, p in s.items()}
    return validation_loss({name: p - rate[name] * (at_s[name] + fixed[name]) for name, p in s.items()})


def gradient(value: Tensor, of: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(value, list(of.values()), create_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(of.items(), found, strict=True)}


@dataclass
class Recorded:
    """One call that Joint._level3 made, and what it got."""

    arguments: list
    found: Found


def level3_with(solver: Callable[..., Found], joint: Joint, step: int, labelled: int, generator_rate=None) -> Recorded:
    """The step with `solver` in the hypergradient's place."""
    calls = []

    def spy(*arguments):
        given = list(arguments)
        if generator_rate is not None:
            given[7] = generator_rate
        calls.append(Recorded(given, solver(*given)))
        return [g.clone() for g in calls[-1].found[0]], calls[-1].found[1]

    with patch.object(joint_module, "hypergradient", spy):
        joint.step(step, searching(labelled, None if joint.mixing is None else 0.8))
    (only,) = calls
    return only


def flat(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradients])


def cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(torch.cosine_similarity(flat(a), flat(b), dim=0))


def norm_ratio(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(flat(a).norm() / flat(b).norm())


def trained_a_little(data, name: str, labelled: int = 2, steps: int = 6, method: str = "genseg") -> tuple[Joint, int]:
    """A joint whose Adam has moments, whose generator has seen images, and the step at which level 3 is due."""
    joint = built(prepared(data, name, labelled), method).joint
    advance(joint, 12)
    first = advance(joint, steps, searching(labelled), first=13)
    return joint, next_level3(first)


def names_of(joint: Joint) -> list[str]:
    return [name for name, _ in joint.synthesis.meta.named_parameters()]


CASES = [
    (*case, "genseg") for case in (("isic2017", 2), ("kvasir", 3), ("hippocampus", 2), ("hippocampus", 1), ("acdc", 2))
]
CASES += [("isic2017", 2, "genseg+versemi"), ("hippocampus", 1, "genseg+versemi")]


@pytest.mark.parametrize(("name", "labelled", "method"), CASES)
def test_level3_equals_the_double_backward_oracle_in_float64(data, name, labelled, method):
    joint, step = trained_a_little(data, name, labelled, method=method)
    double, twin = widen(copy.deepcopy(joint)), widen(copy.deepcopy(joint))
    single = level3_with(hypergradient, joint, step, labelled)
    with in_double():
        oracle = level3_with(unrolled, double, step, labelled)

    assert single.found[0][0].dtype == torch.float32 and oracle.found[0][0].dtype == torch.float64
    assert any(bool(g.any()) for g in single.arguments[8].values()), "the real batch is part of the step"
    first_layer = next(rate for weight, rate in single.arguments[6].items() if "input_block.conv1" in weight)
    assert len(set(first_layer.flatten().tolist())) > 10, "Adam has moments"
    if method == "genseg+versemi":
        assert float(single.found[0][names_of(joint).index("consistency_logit")]) != 0, "κ has a gradient"
    figures = cosine(single.found[0], oracle.found[0]), norm_ratio(single.found[0], oracle.found[0])
    print(f"{name} {labelled}: cosine {figures[0]:.6f}, norm ratio {figures[1]:.5f}")
    assert figures[0] >= 0.99
    assert figures[1] == pytest.approx(1, abs=0.15)  # Adam divides by moments near 0, so rounding tells in float32
    assert float(single.found[1]) == pytest.approx(float(oracle.found[1]), rel=1e-3)
    with in_double():
        exact = level3_with(hypergradient, twin, step, labelled)
    for mine, wanted in zip(exact.found[0], oracle.found[0], strict=True):  # each parameter, not just the largest
        assert torch.allclose(mine, wanted, rtol=1e-6, atol=1e-9 * float(flat(oracle.found[0]).norm()))


@pytest.mark.parametrize("name", ["isic2017", "hippocampus"])
def test_the_path_through_the_generators_own_step_matters(data, name):
    joint, step = trained_a_little(data, name)
    results = {}
    for rate in (0.0, 0.02):
        double = widen(copy.deepcopy(joint))
        with in_double():
            results[rate] = (
                level3_with(hypergradient, copy.deepcopy(double), step, 2, rate).found[0],
                level3_with(unrolled, double, step, 2, rate).found[0],
            )
        assert cosine(*results[rate]) == pytest.approx(1, abs=1e-6)
        assert norm_ratio(*results[rate]) == pytest.approx(1, abs=1e-5)
    with_path, without = results[0.02][1], results[0.0][1]
    apart = flat(with_path) - flat(without)
    assert float(apart.norm() / flat(without).norm()) > 0.01


@pytest.mark.parametrize("name", ["isic2017", "hippocampus"])
def test_no_detach_between_meta_parameters_and_validation_loss_on_real_scans(data, name):
    """The oracle shares its losses' graph with the hypergradient; a finite difference of values shares none.

    Where an activation crosses the kink of leaky ReLU between the two values, the segmenter's gradient, and so the
    value, jumps; one of three step sizes has to stay clear of that. Behind a detach none would agree.
    """
    joint, step = trained_a_little(data, name)
    double = widen(joint)
    names = [n for n, _ in double.synthesis.meta.named_parameters()]

    def solver(*arguments) -> Found:
        found = hypergradient(*arguments)
        value = [*arguments[:5], *arguments[6:]]
        for meta_name, p, g in zip(names, arguments[5], found[0], strict=True):
            direction = g / g.norm()
            slopes = [
                central_difference(lambda: float(after_one_step(*value).detach()), p, direction, size)
                for size in (1e-5, 1e-6, 1e-7)
            ]
            closest = min(slopes, key=lambda slope: abs(slope - float(g.norm())))
            assert closest == pytest.approx(float(g.norm()), rel=0.01), (meta_name, slopes)
        return found

    with in_double():
        level3_with(solver, double, step, 2)


def central_difference(value: Callable[[], float], p: Tensor, direction: Tensor, step: float) -> float:
    """Derivative of `value` as the leaf `p` moves in `direction`."""
    sides = []
    origin = p.data.clone()
    for sign in (1, -1):
        p.data.copy_(origin + sign * step * direction)
        sides.append(value())
    p.data.copy_(origin)
    return (sides[0] - sides[1]) / (2 * step)


class Toy:
    """A smooth two-layer segmenter and generator; A weighs the loss, bends what is made, and enters level 1."""

    def __init__(self):
        rng = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        self.x, self.y, self.held_x, self.held_y = normal(8, 3), normal(8, 2), normal(8, 3), normal(8, 2)
        self.segmenter = {"a": normal(3, 5), "b": normal(5, 2)}
        self.generator = {"c": normal(3, 4), "d": normal(4, 3)}
        self.rate = {"a": normal(3, 5).abs() * 0.1, "b": normal(5, 2).abs() * 0.1}  # ηP, one number a weight
        self.fixed = {"a": normal(3, 5), "b": normal(5, 2)}
        self.meta = [normal(1).requires_grad_(), normal(3).requires_grad_()]

    def read(self, s, x):
        return silu(x @ s["a"]) @ s["b"]

    def make(self, g):
        return silu(self.x @ g["c"] * self.meta[0].exp()) @ g["d"] + self.meta[1]

    def arguments(self, generator_rate: float) -> dict:
        return {
            "segmenter": self.segmenter,
            "generator": self.generator,
            "train_loss": lambda s, g: self.meta[0].sigmoid()[0] * mse_loss(self.read(s, self.make(g)), self.y),
            "generator_loss": lambda g: mse_loss(self.make(g), self.x),
            "validation_loss": lambda s: mse_loss(self.read(s, self.held_x), self.held_y),
            "rate": self.rate,
            "generator_rate": generator_rate,
            "fixed_gradient": self.fixed,
        }


@pytest.mark.parametrize("generator_rate", [0.0, 0.3])
def test_every_entry_equals_the_finite_difference_of_the_validation_loss(generator_rate):
    toy = Toy()
    arguments = toy.arguments(generator_rate)
    found, value = hypergradient(meta=toy.meta, **arguments)

    def after() -> float:
        return float(after_one_step(**arguments).detach())

    assert float(value) == pytest.approx(after(), rel=1e-12)
    for p, g in zip(toy.meta, found, strict=True):
        for index in range(len(p)):
            direction = torch.zeros_like(p)
            direction[index] = 1
            slope = central_difference(after, p, direction, 1e-5)
            assert float(g[index]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


def norms() -> dict[str, Callable[[Tensor], Tensor]]:
    """Every way in which torch offers one, of [n, 4, h, 6]."""
    rng = torch.Generator().manual_seed(0)
    weight, bias, mean, wide = (torch.randn(n, generator=rng, dtype=torch.float64) for n in (4, 4, 4, 6))
    var, last = mean.square() + 0.5, {"memory_format": torch.channels_last}
    return {
        "F.layer_norm": lambda x: F.layer_norm(x, [6], wide, wide),
        "torch.layer_norm": lambda x: torch.layer_norm(x, [6], weight=wide, bias=wide),
        "F.group_norm": lambda x: F.group_norm(x.contiguous(**last), 2, weight, bias),
        "torch.group_norm": lambda x: torch.group_norm(x.contiguous(**last), 2, weight, bias),
        "F.instance_norm": lambda x: F.instance_norm(x, weight=weight, bias=bias),
        "F.instance_norm, running": lambda x: F.instance_norm(x, mean, var, weight, bias, use_input_stats=False),
        "torch.instance_norm": lambda x: torch.instance_norm(x, weight, bias, None, None, True, 0.1, 1e-5, False),
        "F.batch_norm": lambda x: F.batch_norm(x, None, None, weight, bias, training=True),
        "F.batch_norm, running": lambda x: F.batch_norm(x, mean, var, weight, bias),
        "torch.batch_norm": lambda x: torch.batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5, False),
        "torch.batch_norm, running": lambda x: torch.batch_norm(x, weight, bias, mean, var, False, 0.1, 1e-5, False),
        "F.rms_norm": lambda x: F.rms_norm(x, [6], wide),
    }


@pytest.mark.parametrize("name", norms())
def test_the_slope_of_every_norm_and_its_gradient_equal_the_double_backward_ones(name):
    norm, rng = norms()[name], torch.Generator().manual_seed(1)
    image, kernel, way = (
        torch.randn(*s, generator=rng, dtype=torch.float64) for s in ((2, 4, 5, 6), *[(4, 4, 3, 3)] * 2)
    )
    image[1] = 3 * image[1] + 1  # the samples differ, so that it tells whether they are normalised together
    image.requires_grad_()

    def loss(at: dict[str, Tensor]) -> Tensor:
        return norm(F.conv2d(image, at["kernel"], padding=1)).pow(3).mean()

    slope = slope_along(loss, {"kernel": kernel}, {"kernel": way})
    at = {"kernel": kernel.clone().requires_grad_()}
    wanted = (gradient(loss(at), at)["kernel"] * way).sum()
    assert float(slope.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    found = [torch.autograd.grad(value, image)[0] for value in (slope, wanted)]
    assert torch.allclose(*found, rtol=1e-9, atol=1e-12)


def test_a_parameter_without_influence_gets_zeros_and_not_an_error():
    toy = Toy()
    idle = torch.ones(4, dtype=torch.float64, requires_grad=True)
    found, _ = hypergradient(meta=[*toy.meta, idle], **toy.arguments(0.1))
    assert not found[-1].any() and all(bool(g.any()) for g in found[:-1])


def test_adam_rates_say_how_far_adamw_moves_each_weight_when_its_gradient_changes(data):
    joint, _ = trained_a_little(data, "isic2017", steps=30)
    network, parameters = joint.segmenter, dict(joint.segmenter.named_parameters())
    rates = adam_rates(joint.optimiser, parameters)
    ends = []
    for change in (0.0, 1.0):
        twin = copy.deepcopy(joint)
        for name, p in twin.segmenter.named_parameters():
            root = (joint.optimiser.state[parameters[name]]["exp_avg_sq"] / (1 - 0.999**42)).sqrt()
            p.grad = joint.optimiser.state[parameters[name]]["exp_avg"] + change * 1e-2 * root
        twin.optimiser.step()
        ends.append(dict(twin.segmenter.named_parameters()))
    for name, p in network.named_parameters():
        root = (joint.optimiser.state[p]["exp_avg_sq"] / (1 - 0.999**42)).sqrt()
        predicted = -rates[name] * 1e-2 * root
        real = (ends[1][name] - ends[0][name]).detach()
        chosen = root > 1e-4
        if not chosen.any() or float(predicted[chosen].norm()) < 1e-6:
            continue
        assert cosine([real[chosen]], [predicted[chosen]]) > 0.98, name
        assert norm_ratio([real[chosen]], [predicted[chosen]]) == pytest.approx(1, abs=0.25), name


def test_before_its_first_step_adam_counts_as_its_plain_rate():
    layer = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.5)
    assert all(bool((r == 0.5).all()) for r in adam_rates(optimiser, dict(layer.named_parameters())).values())


def test_call_equals_the_network_with_those_weights_and_leaves_its_own_in_place(data):
    """DynUNet registers blocks under two names, which torch's functional_call restores wrongly by itself."""
    joint = built(prepared(data, "isic2017")).joint
    network = joint.segmenter
    before = [(name, id(p)) for name, p in network.named_parameters(remove_duplicate=False)]
    other = {name: torch.randn_like(p) * 0.1 for name, p in network.named_parameters()}
    image = torch.randn(2, 3, 32, 32)
    found = call(network, other, image)
    assert [(name, id(p)) for name, p in network.named_parameters(remove_duplicate=False)] == before

    twin = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in twin.named_parameters():
            p.copy_(other[name])
    assert torch.allclose(found, twin(image), atol=1e-6)
    assert not torch.allclose(found, network(image), atol=1e-3)
