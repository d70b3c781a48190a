"""What a joint step costs against a supervised one, timed side by side in one process."""

import time
from collections.abc import Callable
from functools import partial

from rich.console import Console

from genseg.methods.joint import META_EVERY, Joint, Stage
from genseg.schedule import LEVEL3_UNTIL, SYNTHETIC_FROM, stage_at
from genseg.state import RunState

ROUNDS = 4  # of META_EVERY joint and as many supervised steps; the first round is a warm-up


def compare_steps(state: RunState, console: Console) -> dict[str, float]:
    """Time supervised and joint steps in turn; print and return seconds a step.

    `search` is a step while level 3 is at work (levels 1 to 3, amortised over META_EVERY steps),
    `frozen` a step after it, `run` the mean over a whole training, pretraining left out.
    """
    joint = state.joint
    if joint.synthesis is not None:
        shapes = joint.synthesis.sources.shapes
        for _ in range(min(len(shapes.pairs), len(state.prepared.labelled))):  # one for each: more cost a step no more
            shapes.find()
    searching = stage_at(SYNTHETIC_FROM, 0, state.prepared.study.patients, state.settings)
    for group in joint.optimiser.param_groups:
        group["lr"] = 1e-6  # timing, not training
    seconds = {"supervised": 0.0, "search": 0.0, "frozen": 0.0}
    for round_ in range(ROUNDS):
        kinds: dict[str, Stage] = {"supervised": Stage(), "search": searching, "frozen": Stage(synthetic=True)}
        for kind, stage in kinds.items():
            first = round_ * META_EVERY
            spent = _timed(partial(_advance, joint, range(first, first + META_EVERY), stage))
            seconds[kind] += spent / META_EVERY / (ROUNDS - 1) if round_ else 0.0
    seconds["run"] = (
        SYNTHETIC_FROM * seconds["supervised"]
        + (LEVEL3_UNTIL - SYNTHETIC_FROM) * seconds["search"]
        + (1 - LEVEL3_UNTIL) * seconds["frozen"]
    )
    told = {
        "supervised": "supervised step", "search": "joint step while level 3 learns",
        "frozen": "joint step after that", "run": "mean over a whole training",
    }  # fmt: skip
    for kind, name in told.items():
        ratio = f" = {seconds[kind] / seconds['supervised']:.2f} x supervised" if kind != "supervised" else ""
        console.print(f"{name:<35} {seconds[kind]:.3f} s{ratio}")
    return seconds


def _advance(joint: Joint, steps: range, stage: Stage) -> None:
    for step in steps:
        joint.step(step, stage)


def _timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
