"""What scans without labels are worth: methods and ablations on real sets, many trainings side by side.

    python Testing/benchmarks/unlabelled.py ROWS.csv --device cuda --jobs 16
    python Testing/benchmarks/unlabelled.py ROWS.csv --jobs 2 --arms genseg genseg+versemi --sets kvasir-5

Each training is a process's own: the backend's own steps, without the files that a run writes, with the plan that a
processor gets also where a graphics card does the work, so that figures of both can stand side by side. A training of
--steps K has as many steps as its method makes in the time of K supervised ones on a processor (COST); with --same all
have K. What has a row is not run again. At the end the table of mean test Dice is printed.
"""

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
# Studies trained together, and of each the labelled and unlabelled scans; of acdc two frames are a patient.
SETS: dict[str, tuple[tuple[str, int, int], ...]] = {
    "hippocampus-1": (("hippocampus", 1, 100),),
    "hippocampus-3": (("hippocampus", 3, 100),),
    "acdc-2": (("acdc", 4, 12),),
    "isic2017-5": (("isic2017", 5, 300),),
    "kvasir-5": (("kvasir", 5, 300),),
    "hippocampus-1+acdc-2": (("hippocampus", 1, 100), ("acdc", 4, 12)),
}
# Time of a training step in supervised steps, generator's pretraining included, on a processor: docs/benchmarks.md.
COST = {"supervised": 1.0, "genseg": 1.27, "versemi": 1.24, "genseg+versemi": 1.7}
PARTS = ("prompts", "auxiliary", "synthetic-task", "consistency", "teacher")
ARMS = (*COST, *(f"versemi-{part}" for part in PARTS))
FIELDS = ("set", "arm", "seed", "steps", "dice", "dices", "train_s", "device", "code")


@dataclass(frozen=True)
class Run:
    """One training."""

    set: str
    arm: str
    seed: int
    steps: int

    @property
    def method(self) -> str:
        return "versemi" if self.arm.startswith("versemi") else self.arm

    def key(self) -> tuple[str, ...]:
        return self.set, self.arm, str(self.seed), str(self.steps)


def studies_of(run: Run, held_back: int) -> list[Any]:
    """The studies with their scans drawn; tested on the last scans of `training` or on `test`."""
    from genseg.cases import draw
    from genseg.study import read_study

    studies = []
    for name, labelled, unlabelled in SETS[run.set]:
        study = read_study(DATA / name)
        if held_back:
            training, test = study.training[:-held_back], study.training[-held_back:]
            study = study.model_copy(update={"training": training, "test": test})
        if name == "acdc":
            study = study.model_copy(update={"training": _patients_shuffled(study.training, run.seed)})
        unlabelled = min(unlabelled, len(study.unlabeled) + len(study.training) - labelled)
        studies.append(draw(study, labelled, unlabelled, 0 if name == "acdc" else run.seed))
    return studies


def _patients_shuffled(cases: Sequence[Any], seed: int) -> list[Any]:
    """Both frames of a patient side by side, the patients in the order of the seed (0: as listed)."""
    patients = list(dict.fromkeys(case.id.split("_frame")[0] for case in cases))
    order = np.random.default_rng(seed).permutation(len(patients)) if seed else range(len(patients))
    return [case for i in order for case in cases if case.id.split("_frame")[0] == patients[i]]


def go(run: Run, device: str, held_back: int) -> dict[str, Any]:
    """Train and test. → the row."""
    import torch

    from genseg.device import find_device
    from genseg.events import EventLog
    from genseg.inference import Predictor
    from genseg.prepare import load
    from genseg.schedule import Clock
    from genseg.settings import Settings
    from genseg.state import build_state
    from genseg.train import _pretrain_step, _train_step

    torch.set_num_threads(1)
    without = [run.arm.removeprefix("versemi-")] if run.arm.startswith("versemi-") else []
    settings = Settings(
        dataset=DATA, out=Path("unwritten"), method=run.method, seed=run.seed, iterations=run.steps, without=without
    )
    target, log, studies = find_device(device), EventLog(), studies_of(run, held_back)
    prepared = [
        replace(one, device=target, labelled=_on(one.labelled, target), unlabelled=_on(one.unlabelled, target))
        for one in load(studies, None, settings, find_device("cpu"), [log] * len(studies))
    ]
    for one in prepared:
        one.plan.precision = target.precision
    state, clock = build_state(prepared, settings), Clock(settings)
    begin = time.monotonic()
    while settings.generates and clock.pretrain_progress(state.counters.pretrain_step) < 1:
        _pretrain_step(state, clock)
    while state.counters.step < run.steps:
        seen = _train_step(state, clock.progress(state.counters.step))
        assert all(np.isfinite(value) for value in seen.values()), f"step {state.counters.step}: {seen}"
    seconds = time.monotonic() - begin
    dices = [
        test(Predictor(part.model, part.joint.plan, part.prepared.study.labels, target), part.prepared.study)
        for part in state.parts
    ]
    return {
        "set": run.set, "arm": run.arm, "seed": run.seed, "steps": run.steps, "dice": f"{np.mean(dices):.4f}",
        "dices": " ".join(f"{dice:.4f}" for dice in dices), "train_s": f"{seconds:.0f}", "device": target.name,
        "code": _code(),
    }  # fmt: skip


def _on(cases: Sequence[Any], device: Any) -> list[Any]:
    """Scans on the device that trains."""
    return [
        replace(c, image=c.image.to(device.torch), label=None if c.label is None else c.label.to(device.torch))
        for c in cases
    ]


def test(predictor: Any, study: Any) -> float:
    """Mean over the structures of the mean Dice over the test scans that have it or were given it."""
    from genseg.imageio import read_label, read_scan

    found: dict[int, list[float]] = {}
    for case in study.test:
        mask, label = predictor.segment(read_scan(case.images)).labels, read_label(case.label, study.labels)[0]
        for index in range(1, len(study.labels)):
            a, b = mask == index, label == index
            if a.any() or b.any():
                found.setdefault(index, []).append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean([np.mean(values) for values in found.values()]))


def _code() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def work(waiting: Any, rows: Path, lock: Any, device: str, held_back: int, until: float) -> None:
    """A process: one training after the other, until none is left or no more may begin."""
    while (run := waiting.get()) is not None:
        if time.time() > until:
            continue
        try:
            row = go(run, device, held_back)
        except Exception as error:  # the others go on; what has no row is tried again next time
            print(f"{run}: {type(error).__name__}: {error}", flush=True)
            continue
        print(json.dumps(row), flush=True)
        with lock, rows.open("a", newline="") as file:
            csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def table(rows: list[dict[str, str]], runs: list[Run]) -> str:
    """Markdown: a row for each set and arm, a column for each seed, mean and SD in points."""
    seeds = sorted({run.seed for run in runs})
    lines = ["| data | method | steps | " + " | ".join(f"seed {s}" for s in seeds) + " | mean | SD |"]
    lines.append("|" + "---|" * (len(seeds) + 5))
    found = {(row["set"], row["arm"], row["seed"], row["steps"]): float(row["dice"]) for row in rows}
    for name, arm, steps in dict.fromkeys((run.set, run.arm, run.steps) for run in runs):
        scores = [found.get((name, arm, str(seed), str(steps))) for seed in seeds]
        known = [score for score in scores if score is not None]
        if known:
            cells = " | ".join("–" if score is None else f"{score:.3f}" for score in scores)
            spread = statistics.stdev(known) if len(known) > 1 else 0.0
            lines.append(f"| {name} | {arm} | {steps} | {cells} | {statistics.mean(known):.3f} | {spread:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="CSV of the trainings that are done")
    parser.add_argument("--sets", nargs="*", default=[*SETS], choices=[*SETS])
    parser.add_argument("--arms", nargs="*", default=[*COST], choices=ARMS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=500, help="of the supervised method")
    parser.add_argument("--same", action="store_true", help="as many steps for all methods")
    parser.add_argument("--held-back", type=int, default=0, help="test on so many scans of `training`, to choose by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--long-first", action="store_true", help="so that no process waits for a long one at the end")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no training after that")
    chosen = parser.parse_args()
    runs = []
    for seed, name, arm in product(chosen.seeds, chosen.sets, chosen.arms):
        cost = 1.0 if chosen.same else COST["versemi" if arm.startswith("versemi") else arm]
        runs.append(Run(name, arm, seed, round(chosen.steps * len(SETS[name]) / cost)))
    if not chosen.rows.exists():
        chosen.rows.write_text(",".join(FIELDS) + "\n")
    done = {tuple(row[k] for k in FIELDS[:4]) for row in csv.DictReader(chosen.rows.open())}
    context = multiprocessing.get_context("spawn")
    waiting, lock = context.Queue(), context.Lock()
    left = [run for run in runs if run.key() not in done]
    for run in sorted(left, key=lambda run: -COST[run.method]) if chosen.long_first else left:
        waiting.put(run)
    for _ in range(chosen.jobs):
        waiting.put(None)
    until = time.time() + chosen.seconds
    given = (waiting, chosen.rows, lock, chosen.device, chosen.held_back, until)
    workers = [context.Process(target=work, args=given) for _ in range(chosen.jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(table(list(csv.DictReader(chosen.rows.open())), runs))


if __name__ == "__main__":
    main()
