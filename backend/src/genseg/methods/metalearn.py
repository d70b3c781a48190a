"""One step of learning to learn, by iMAML or by what it is compared with.

The network is an ordinary segmenter for one structure. Its last layer is drawn anew for every task; what lies before is
the starting point θ that is learned.
"""

import math
import statistics
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genseg.augment import UNCHANGED
from genseg.device import Device
from genseg.methods.episodes import Batch, Episode, Task, Tasks
from genseg.methods.hypergradient import Parameters, call, value_and_gradient
from genseg.methods.imaml import Solution, adapt, hessian_product, implicit_gradient
from genseg.methods.losses import dice_agreement, segmentation_loss
from genseg.networks.prompted import RARE
from genseg.randomness import stream
from genseg.settings import MetaMethod

STRENGTH = 1.0  # λ
INNER_STEPS = 10
INNER_RATE = 1e-2
TASKS = 2  # of a meta-step
GRADIENT_CLIP = 12.0
SCORED = 3  # episodes of a structure by which a starting point is judged
REMEMBERED = 32  # structures whose last solution is kept, in half the precision: 2 bytes a weight
OUTPUT = "output_block."  # names of the last layer's weights begin so


@dataclass
class MetaLearner:
    """The state that a meta-step changes."""

    network: nn.Module  # its weights are θ; its last layer is not used
    optimiser: torch.optim.Optimizer
    tasks: Tasks
    device: Device
    method: MetaMethod
    seed: int
    heads: dict[Task, Parameters] = field(default_factory=dict)  # of plain pretraining: each task keeps its last layer
    earlier: dict[Task, Tensor] = field(default_factory=dict)  # solutions from which conjugate gradients begin

    def step(self, step: int) -> dict[str, float] | None:
        """A few tasks, then one step of the optimiser. → mean query loss and Dice, and what the method tells.

        None, and nothing has changed, where a loss or a gradient is not finite.
        """
        self.optimiser.zero_grad(set_to_none=True)
        seen = [self._task(number, step) for number in range(TASKS)]
        weights = [p for group in self.optimiser.param_groups for p in group["params"] if p.grad is not None]
        length = float(nn.utils.clip_grad_norm_(weights, GRADIENT_CLIP))
        if not all(map(math.isfinite, [length, *(value for one in seen for value in one.values())])):
            return None
        self.optimiser.step()
        names = dict.fromkeys(name for one in seen for name in one)
        return {name: statistics.mean(one[name] for one in seen if name in one) for name in names}

    def start(self) -> Parameters:
        """θ."""
        return {name: p for name, p in self.network.named_parameters() if not name.startswith(OUTPUT)}

    def score(self, task: Task) -> float | None:
        """Mean query Dice of a task after adapting θ as it is; None where one patient alone shows the structures.

        Of patches as they are, half of them about the structures, in scans that other tasks have learned from.
        """
        dices = []
        for number in range(SCORED):
            rng = Streams(self.seed, f"score {self.tasks.name(task)}", number)
            episode = self.tasks.of(task, rng.of("episode"))
            query = self.tasks.load(task, episode.query, rng.of("query"), UNCHANGED) if episode.query else None
            if query is not None and bool(query[1].any()):
                dices.append(self._dice(self._adapted(self._theta(rng), episode, rng), query))
        return statistics.mean(dices) if dices else None

    def _task(self, number: int, step: int) -> dict[str, float]:
        """Adds a task's gradient to that of θ."""
        rng = Streams(self.seed, f"task {number}", step)
        episode = self.tasks.draw(rng.of("episode"))
        if self.method == "pretrain":
            return self._pretrain(episode, rng)
        theta = self._theta(rng)
        phi = self._adapted(theta, episode, rng)
        query = self.tasks.load(episode.task, episode.query or episode.support, rng.of("query"))
        loss, slope = value_and_gradient(lambda weights: self._loss(weights, query), phi)
        seen = {"loss/query": float(loss)}
        if episode.query and bool(query[1].any()):  # else the same scans ask, or nothing is to be found
            seen["dice/query"] = self._dice(phi, query)
        if self.method == "imaml":
            near = self.tasks.load(episode.task, episode.support, rng.of("near"), small=True)
            slope, solution = self._implicit(slope, phi, episode.task, near)
            seen |= {
                "imaml/residual": solution.residuals[-1],
                "imaml/steps": len(solution.residuals) - 1.0,
                "imaml/first_order": float(solution.refused),
            }
        elif self.method == "reptile":
            slope = {name: theta[name] - phi[name] for name in theta}
        self._add(slope, self.start())
        return seen

    def _theta(self, rng: "Streams") -> Parameters:
        """θ with a new last layer."""
        return {name: p.detach() for name, p in self.start().items()} | fresh_output(self.network, rng.of("last layer"))

    def _adapted(self, theta: Parameters, episode: Episode, rng: "Streams") -> Parameters:
        """φ*; every inner step loads its own batch, so that none is kept."""

        def loss(weights: Parameters, step: int) -> Tensor:
            return self._loss(weights, self.tasks.load(episode.task, episode.support, rng.of(f"support {step}")))

        return adapt(loss, theta, STRENGTH, INNER_STEPS, INNER_RATE)

    def _implicit(self, slope: Parameters, phi: Parameters, task: Task, support: Batch) -> tuple[Parameters, Solution]:
        """(I + H/λ)⁻¹ ∇L_query with H on a batch of small patches, from where the same structure's search has ended."""
        curvature = hessian_product(lambda weights: self._loss(weights, support, exact=True), phi)
        earlier = self.earlier.pop(task, None)
        start = None if earlier is None else earlier.to(self.device.torch, torch.float32)
        found, solution = implicit_gradient(slope, curvature, STRENGTH, start)
        if len(task.structures) == 1:  # the same union hardly comes twice
            self.earlier[task] = solution.x.to("cpu", torch.bfloat16)
            while len(self.earlier) > REMEMBERED:
                del self.earlier[next(iter(self.earlier))]
        return found, solution

    def _pretrain(self, episode: Episode, rng: "Streams") -> dict[str, float]:
        """An ordinary training step of the shared weights and of the task's own last layer."""
        batch = self.tasks.load(episode.task, sorted({*episode.support, *episode.query}), rng.of("batch"))
        if episode.task not in self.heads:
            head = {name: p.requires_grad_() for name, p in fresh_output(self.network, rng.of("last layer")).items()}
            self.heads[episode.task] = head
            self.optimiser.add_param_group({"params": list(head.values()), "lr": self.optimiser.param_groups[0]["lr"]})
        weights = self.start() | self.heads[episode.task]
        loss, slope = value_and_gradient(lambda at: self._loss(at, batch), weights)
        self._add(slope, weights)
        return {"loss/query": float(loss)}

    def _add(self, slope: Parameters, to: Parameters) -> None:
        """To the gradients of the weights `to`, as the mean over the tasks of a step."""
        for name, p in to.items():
            part = slope[name] / TASKS
            p.grad = part if p.grad is None else p.grad + part

    def _loss(self, weights: Parameters, batch: Batch, exact: bool = False) -> Tensor:
        """`exact`: in float32, for second derivatives."""
        with self.device.autocast(not exact):
            logits = call(self.network, weights, batch[0])
        return segmentation_loss(logits, batch[1]).mean()

    @torch.no_grad()
    def _dice(self, weights: Parameters, batch: Batch) -> float:
        """Of the patches that show something."""
        shows = batch[1].flatten(1).any(1)
        with self.device.autocast():
            logits = call(self.network, weights, batch[0])
        return float(dice_agreement(logits, batch[1])[shows].mean())


@dataclass
class Streams:
    """Random numbers of a task, one stream for each purpose: nothing depends on what was drawn before."""

    seed: int
    task: str
    step: int

    def of(self, purpose: str) -> torch.Generator:
        return stream(self.seed, f"{self.task}: {purpose}", self.step)


def fresh_output(network: nn.Module, rng: torch.Generator) -> Parameters:
    """A last layer for a new task, as a new network has one (He's), and its structure rare."""
    fresh = {}
    for name, p in network.named_parameters():
        if name.startswith(OUTPUT):
            if p.ndim == 1:
                value = torch.full(p.shape, RARE)
                value[0] = 0.0
            else:
                value = torch.randn(p.shape, generator=rng) * math.sqrt(2 / p[0].numel())
            fresh[name] = value.to(p.device)
    return fresh
