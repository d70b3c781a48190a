"""One training of the benchmark, in this process: the backend's own steps, without the files that a run writes."""

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import page
import torch
from runs import GRIDS, Run, code, machine

from genseg.augment import UNCHANGED, Strength
from genseg.cases import Study
from genseg.device import Device, find_device
from genseg.evaluate import Segment, evaluate_cases, summarise
from genseg.events import EventLog
from genseg.inference import Predictor
from genseg.methods.joint import Joint, Stage, Synthesis
from genseg.methods.synthesis import SyntheticDraw, implanted, label_of
from genseg.networks.generators import style_of
from genseg.networks.generators.generator import QUANTILES
from genseg.plan import Plan
from genseg.predict import by_model
from genseg.prepare import load
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.sampling import BatchDraw, Sampler
from genseg.schedule import Clock
from genseg.startingmodel import StartingModel
from genseg.state import RunState, build_state
from genseg.train import pretrain_step, shapes_due, train_step


@dataclass
class ProcessorClock(Clock):
    """Counts what this process, of one thread, uses of a core: what else the machine does takes none of the budget."""

    _since: float = field(default_factory=time.process_time)

    def tick(self) -> None:
        now = time.process_time()
        self.elapsed, self._since = self.elapsed + now - self._since, now


RESTYLED = 0.3  # SDs of the styles by which a drawn one is changed
FLAT = 0.1  # grey values (z) nearer to each other than this are not drawn apart further


class Unchanged(Sampler):
    """The arm `none`: patches as they are in the scan."""

    def load(self, draw: BatchDraw, strength: Strength = UNCHANGED) -> tuple[torch.Tensor, torch.Tensor]:
        return super().load(replace(draw, spatial=draw.spatial.unmoved()), UNCHANGED)


class Warped(Joint):
    """`warp` and `warp+versemi`: the masks of `separate`, each with the real image under the same operations."""

    def step(self, step: int, stage: Stage) -> dict[str, float]:
        everyone: list[list[int] | None] = [None] * len(stage.others)
        return super().step(
            step, replace(stage, level1=False, level3=False, train=None, validation=[], others=everyone)
        )

    def _synthetic_pairs(self, s: Synthesis, step: int, stage: Stage) -> tuple[torch.Tensor, ...]:
        rng, strength = stream(self.seed, "synthetic", step), s.meta.plain_strength()
        draw = SyntheticDraw.make(self._half, self.sampler, s.sources, s.generator, rng, stage.train)
        pair = self.sampler.load(draw.batch, strength)
        if draw.implant is not None:
            pair = implanted(pair, self.sampler.load(draw.implant, strength), self.plan.classes)
        return pair[0], label_of(pair[1], self.plan.classes), draw.wanted.to(pair[0].device)


class Restyled(Warped):
    """`restyle` and `restyle+versemi`: the same pairs, each image part of the way to the grey values of another scan,
    labelled or not."""

    def _synthetic_pairs(self, s: Synthesis, step: int, stage: Stage) -> tuple[torch.Tensor, ...]:
        image, label, wanted = super()._synthetic_pairs(s, step, stage)
        rng = stream(self.seed, "restyle", step)
        style, deviation, _, _ = s.sources.styles.draw([0] * len(image), rng)
        share = torch.rand(len(image), *[1] * (image.ndim - 1), generator=rng).to(image.device)
        return torch.lerp(image, restyled(image, (style + deviation * RESTYLED).to(image.device)), share), label, wanted


def restyled(image: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """[n, C, *patch] with every channel's quantiles moved to those of a style [n, s], straight lines between them."""
    n, channels = image.shape[:2]
    shape = (n, channels, *[1] * (image.ndim - 2), 2 + len(QUANTILES))  # mean and SD come first
    here, there = (one.view(shape)[..., 2:].sort(-1).values for one in (style_of(image), style))
    gaps = here.diff(dim=-1)
    slopes = there.diff(dim=-1) / gaps.clamp_min(FLAT)
    least, most = torch.zeros_like(gaps), gaps.clone()
    least[..., 0], most[..., -1] = -math.inf, math.inf  # the lines at both ends go on
    return there[..., 0] + (slopes * (image[..., None] - here[..., :-1]).clamp(least, most)).sum(-1)


def go(run: Run, device: str, jobs: int, pages: Path | None) -> dict[str, Any]:
    """Train and test. → the row, times in seconds of the processor where that trains."""
    torch.set_num_threads(1)
    target, studies, made_with = find_device(device), run.studies(), code()
    now = time.process_time if target.is_cpu else time.monotonic
    times = [now()]
    state = prepared(run, studies, target)
    times.append(now())
    train(state, run.warps, (ProcessorClock if target.is_cpu else Clock)(state.settings))
    times.append(now())
    memory = peak_mb(target)
    models = [Predictor(p.model, p.joint.plan, p.prepared.study.labels, target) for p in state.parts]
    scores = [score(by_model(model), one) for model, one in zip(models, studies, strict=True)]
    times.append(now())
    if pages is not None and run.arm == "genseg" and run.seed == 0:
        page.keep(state, pages, f"{run.set}-{run.generator}")
    other = run.other_source()
    row = run.row() | {name: mean_text([one[metric] for one in scores], digits) for name, metric, digits in METRICS}
    prepare_s, train_s, predict_s = (after - before for before, after in pairwise(times))
    tested = sum(len(one.test) for one in studies)
    return row | {
        "dices": " ".join(f"{one['dice']:.4f}" for one in scores),
        "other_dice": "" if other is None else f"{score(by_model(models[0]), other)['dice']:.4f}",
        "steps": state.counters.step, "prepare_s": f"{prepare_s:.1f}", "train_s": f"{train_s:.1f}",
        "predict_s": f"{predict_s / tested:.3f}", "memory_mb": memory,
        "device": machine(target), "jobs": jobs, "code": made_with,
    }  # fmt: skip


METRICS = (("dice", "dice", 4), ("hd95", "hd95_mm", 2), ("nsd", "nsd", 4))


def mean_text(values: list[float | None], digits: int) -> str:
    """The mean of what is known, as it stands in a row."""
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.{digits}f}" if known else ""


@dataclass
class OnGrid:
    """What plans are fitted to: a grid, and the network of a start."""

    grid: str
    start: StartingModel | None = None

    @property
    def solid(self) -> bool:
        return self.start is not None and self.start.solid

    @property
    def segmenter(self) -> str:
        return "auto" if self.start is None else self.start.segmenter

    def shape(self, plan: Plan) -> Plan:
        plan = GRIDS[self.grid](plan)
        if self.start is None:
            return plan
        if self.start.plan.filters != plan.filters:
            known = f"{self.start.plan.filters}, not {plan.filters}"
            raise ValueError(f"{self.start.path} is not of the grid '{self.grid}': {known}.")
        return self.start.shape(plan)


def prepared(run: Run, studies: list[Study], target: Device) -> RunState:
    """Scans in memory, on the plan that a processor gets, with the run's start and the arm's changes."""
    settings, log = run.settings(), EventLog()
    start = StartingModel.load(Path(run.start)) if run.start else None
    if start is not None:
        need_unseen(start, studies)
    ready = load(studies, None, settings, find_device("cpu"), [log] * len(studies), OnGrid(run.grid, start))
    for one in ready:
        one.plan.precision = target.precision
    ready = [
        replace(
            one, device=target, labelled=on_device(one.labelled, target), unlabelled=on_device(one.unlabelled, target)
        )
        for one in ready
    ]
    state = build_state(ready, settings)
    if start is not None:
        start.give(state, log)
    for part in state.parts:
        if run.arm == "none":
            part.joint.sampler = Unchanged(part.joint.sampler.cases, part.joint.plan)
        elif run.warps:
            made = Restyled if run.arm.startswith("restyle") else Warped
            part.joint = made(**{f.name: getattr(part.joint, f.name) for f in fields(Joint)})
    return state


def need_unseen(start: StartingModel, studies: Sequence[Study]) -> None:
    """Raises ValueError where a start would be tested on what it was learned from."""
    if known := {one.name for one in start.trained_on} & {one.name for one in studies}:
        raise ValueError(f"{start.path} was learned from {', '.join(known)}, and that is what it would be tested on.")


def on_device(cases: Sequence[WorkingCase], device: Device) -> list[WorkingCase]:
    """Scans where the training is."""
    return [
        replace(c, image=c.image.to(device.torch), label=None if c.label is None else c.label.to(device.torch))
        for c in cases
    ]


def train(state: RunState, warps: bool, clock: Clock) -> None:
    """As the command line does it, but for recovery: what diverges has no row.

    Where there are only warped scans there is no generator to pretrain.
    """
    counters = state.counters
    while state.settings.generates and clock.pretrain_progress(counters.pretrain_step) < 1:
        if warps and shapes_due(state, clock) is None:
            break
        pretrain_step(state, clock)
    while (progress := clock.progress(counters.step)) < 1:
        seen = train_step(state, progress)
        assert all(math.isfinite(value) for value in seen.values()), f"step {counters.step}: {seen}"
        clock.tick()


def score(segment: Segment, study: Study) -> dict[str, Any]:
    """Means over structures and test scans; every scan must be scored."""
    scores, faults = evaluate_cases(study.test, study.labels, segment)
    assert not faults, faults
    return summarise(scores)["mean"]


def peak_mb(target: Device) -> int:
    """The most memory that the process has had; on a graphics card of that card's."""
    if target.is_cpu:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return torch.cuda.max_memory_allocated() // 2**20
