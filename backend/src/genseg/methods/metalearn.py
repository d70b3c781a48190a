"""One step of learning to learn, by iMAML or by what it is compared with.

The network is an ordinary segmenter for one structure. Its last layer is drawn anew for every task; what lies before is
the starting point θ that is learned.
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

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
RECENT = 20  # episodes of a task whose scores are kept
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
    dices: dict[Task, deque[float]] = field(default_factory=dict)  # of the last episodes of each task

    def step(self, step: int) -> dict[str, float]:
        """A few tasks, then one step of the optimiser. → mean query loss and Dice, and what the method tells."""
        self.optimiser.zero_grad(set_to_none=True)
        seen = [self._task(stream(self.seed, f"task {number}", step)) for number in range(TASKS)]
        self.optimiser.step()
        return {name: sum(one[name] for one in seen) / len(seen) for name in seen[0]}

    def start(self) -> Parameters:
        """θ."""
        return {name: p for name, p in self.network.named_parameters() if not name.startswith(OUTPUT)}

    def recent(self) -> dict[str, list[float]]:
        """Query Dice of the last episodes by the task's name."""
        return {self.tasks.name(task): list(dices) for task, dices in self.dices.items()}

    def _task(self, rng: torch.Generator) -> dict[str, float]:
        """Adds a task's gradient to that of θ."""
        episode = self.tasks.draw(rng)
        if self.method == "pretrain":
            return self._pretrain(episode, rng)
        theta = {name: p.detach() for name, p in self.start().items()} | fresh_output(self.network, rng)
        support = [self.tasks.load(episode.task, episode.support, rng) for _ in range(INNER_STEPS)]
        query = self.tasks.load(episode.task, episode.query, rng)
        phi = adapt(lambda weights, step: self._loss(weights, support[step]), theta, STRENGTH, INNER_STEPS, INNER_RATE)
        loss, slope = value_and_gradient(lambda weights: self._loss(weights, query), phi)
        seen = {"loss/query": float(loss), "dice/query": self._dice(phi, query, episode.task)}
        if self.method == "imaml":
            slope, solution = self._implicit(slope, phi, episode.task, support[-1])
            seen |= {"imaml/residual": solution.residuals[-1], "imaml/steps": len(solution.residuals) - 1.0}
        elif self.method == "reptile":
            slope = {name: theta[name] - phi[name] for name in theta}
        self._add(slope, self.start())
        return seen

    def _implicit(self, slope: Parameters, phi: Parameters, task: Task, support: Batch) -> tuple[Parameters, Solution]:
        """(I + H/λ)⁻¹ ∇L_query with H on one of the support batches, from where the same task's search has ended."""
        curvature = hessian_product(lambda weights: self._loss(weights, support, exact=True), phi)
        found, solution = implicit_gradient(slope, curvature, STRENGTH, self.earlier.get(task))
        self.earlier[task] = solution.x
        return found, solution

    def _pretrain(self, episode: Episode, rng: torch.Generator) -> dict[str, float]:
        """An ordinary training step of the shared weights and of the task's own last layer."""
        batch = self.tasks.load(episode.task, sorted({*episode.support, *episode.query}), rng)
        if episode.task not in self.heads:
            head = {name: p.requires_grad_() for name, p in fresh_output(self.network, rng).items()}
            self.heads[episode.task] = head
            self.optimiser.add_param_group({"params": list(head.values())})
        weights = self.start() | self.heads[episode.task]
        loss, slope = value_and_gradient(lambda at: self._loss(at, batch), weights)
        self._add(slope, weights)
        return {"loss/query": float(loss), "dice/query": self._dice(weights, batch, episode.task)}

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
    def _dice(self, weights: Parameters, batch: Batch, task: Task) -> float:
        with self.device.autocast():
            dice = float(dice_agreement(call(self.network, weights, batch[0]), batch[1]).mean())
        self.dices.setdefault(task, deque(maxlen=RECENT)).append(dice)
        return dice


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
