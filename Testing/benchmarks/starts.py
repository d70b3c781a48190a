"""What a starting model is worth: learned from some studies in several ways, adapted to another with few labels.

    python Testing/benchmarks/starts.py ROWS.csv MODELS --device cuda --jobs 16

First every starting model is learned that MODELS does not hold yet, all for the same time; then each is adapted, as
`genseg train --method supervised --init` does it, in trainings of several lengths, each with its own schedule. Plans
are those of a processor. What has a row is not run again. At the end the table of mean test Dice is printed, and the
steps after which a start reaches what the longest training from nothing does.
"""

import argparse
import csv
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from unlabelled import DATA, _code, _on, test

# Studies learned from; torso's model-made labels, of which the data set says that they are no expert's, only here.
GROUPS = {"photographs": ("isic2017", "busi", "shenzhen", "dsb2018", "drive"), "volumes": ("acdc", "torso_ct_mr")}
TARGETS = {"photographs": ("kvasir", (1, 5, 10)), "volumes": ("hippocampus", (1, 3))}
METHODS = ("imaml", "first-order", "reptile", "pretrain")
STARTS = ("nothing", *METHODS)
LENGTHS = (25, 50, 100, 200, 400)  # steps
FIELDS = ("target", "shots", "start", "seed", "steps", "dice", "train_s", "meta_s", "meta_steps", "device", "code")


@dataclass(frozen=True)
class Run:
    """One adaptation."""

    group: str
    shots: int
    start: str
    seed: int
    steps: int

    def key(self) -> tuple[str, ...]:
        return TARGETS[self.group][0], str(self.shots), self.start, str(self.seed), str(self.steps)


def learn(group: str, method: str, seed: int, out: Path, seconds: float, device: str) -> None:
    """A starting model in `out`, learned for `seconds`."""
    import torch

    from genseg import metatrain
    from genseg.device import find_device
    from genseg.events import EventLog
    from genseg.methods.episodes import with_channels
    from genseg.prepare import load
    from genseg.settings import MetaSettings
    from genseg.study import read_study

    torch.set_num_threads(1)
    studies = [read_study(DATA / name) for name in GROUPS[group]]
    studies = [s if s.training else s.model_copy(update={"training": s.test}) for s in studies]
    studies = [s.model_copy(update={"unlabeled": [], "test": []}) for s in studies]
    settings = MetaSettings(
        dataset=DATA / GROUPS[group][0], out=out, method=method, seed=seed, budget=seconds, device=device
    )
    target, log = find_device(device), EventLog()
    ready = load(studies, None, settings.as_training(), find_device("cpu"), [log] * len(studies))
    channels = max(one.plan.channels for one in ready)
    ready = [with_channels(one, channels) for one in ready]
    moved = [replace(one, device=target, labelled=_on(one.labelled, target)) for one in ready]
    metatrain.learn_from(moved, settings, log)


def adapt(run: Run, models: Path, device: str) -> dict[str, Any]:
    """Train from the start on a few scans and test. → the row."""
    import torch

    from genseg.cases import draw
    from genseg.device import find_device
    from genseg.events import EventLog
    from genseg.inference import Predictor
    from genseg.prepare import load
    from genseg.schedule import Clock
    from genseg.settings import Settings
    from genseg.startingmodel import StartingModel
    from genseg.state import build_state
    from genseg.study import read_study
    from genseg.train import _train_step

    torch.set_num_threads(1)
    study = draw(read_study(DATA / TARGETS[run.group][0]), run.shots, 0, run.seed)
    settings = Settings(dataset=DATA, out=Path("unwritten"), method="supervised", seed=run.seed, iterations=run.steps)
    target, log = find_device(device), EventLog()
    folder = models / f"{run.group}-{run.start}-{run.seed}"
    start = None if run.start == "nothing" else StartingModel.load(folder)
    (ready,) = load([study], None, settings, find_device("cpu"), [log], None if start is None else start.shape)
    ready = replace(ready, device=target, labelled=_on(ready.labelled, target))
    ready.plan.precision = target.precision
    state, clock = build_state([ready], settings), Clock(settings)
    card: dict[str, Any] = {}
    if start is not None:
        start.give(state, log)
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    begin = time.monotonic()
    while state.counters.step < run.steps:
        _train_step(state, clock.progress(state.counters.step))
    seconds = time.monotonic() - begin
    dice = test(Predictor(state.parts[0].model, ready.plan, study.labels, target), study)
    values = (*run.key(), f"{dice:.4f}", f"{seconds:.1f}", card.get("seconds", 0), card.get("meta_steps", 0))
    return dict(zip(FIELDS, (*values, target.name, _code()), strict=True))


def work(waiting: Any, lock: Any, rows: Path, until: float) -> None:
    """A process: one job after the other, until none is left or no more may begin."""
    while (job := waiting.get()) is not None:
        if time.time() > until:
            continue
        try:
            row = job()
        except Exception as error:  # the others go on; what failed is tried again next time
            print(f"{job}: {type(error).__name__}: {error}", flush=True)
            continue
        if row is not None:
            print(json.dumps(row), flush=True)
            with lock, rows.open("a", newline="") as file:
                csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def side_by_side(jobs: list[Callable[[], Any]], rows: Path, processes: int, until: float) -> None:
    context = multiprocessing.get_context("spawn")
    waiting, lock = context.Queue(), context.Lock()
    for job in [*jobs, *[None] * processes]:
        waiting.put(job)
    workers = [context.Process(target=work, args=(waiting, lock, rows, until)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def table(rows: list[dict[str, str]]) -> str:
    """Markdown: mean Dice over the seeds for each length, and the steps to what the longest from nothing reaches."""
    found: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for row in rows:
        lengths = found.setdefault((row["target"], row["shots"], row["start"]), {})
        lengths.setdefault(int(row["steps"]), []).append(float(row["dice"]))
    means = {key: {n: statistics.mean(v) for n, v in sorted(lengths.items())} for key, lengths in found.items()}
    columns = sorted({n for lengths in means.values() for n in lengths})
    lines = ["| target | labelled | start | " + " | ".join(f"{n} steps" for n in columns) + " | steps to the goal |"]
    lines.append("|" + "---|" * (len(columns) + 4))
    for (target, shots, start), lengths in sorted(
        means.items(), key=lambda item: (item[0][0], int(item[0][1]), STARTS.index(item[0][2]))
    ):
        plain = means.get((target, shots, "nothing"), {})
        goal = plain.get(max(plain, default=0), 2.0)
        reached = next((str(n) for n, dice in lengths.items() if dice >= goal), "–")
        cells = " | ".join(f"{lengths[n]:.3f}" if n in lengths else "–" for n in columns)
        lines.append(f"| {target} | {shots} | {start} | {cells} | {reached} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="CSV of the adaptations that are done")
    parser.add_argument("models", type=Path, help="folder of the starting models")
    parser.add_argument("--groups", nargs="*", default=[*GROUPS], choices=[*GROUPS])
    parser.add_argument("--starts", nargs="*", default=[*STARTS], choices=STARTS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--lengths", nargs="*", type=int, default=[*LENGTHS])
    parser.add_argument("--meta-seconds", type=float, default=1800, help="of learning a starting model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing after that")
    chosen = parser.parse_args()
    until = time.time() + chosen.seconds
    if not chosen.rows.exists():
        chosen.rows.write_text(",".join(FIELDS) + "\n")
    learned = [start for start in chosen.starts if start != "nothing"]
    jobs: list[Callable[[], Any]] = []
    for seed, group, method in product(chosen.seeds, chosen.groups, learned):
        out = chosen.models / f"{group}-{method}-{seed}"
        if not (out / "done").exists():
            jobs.append(partial(learn, group, method, seed, out, chosen.meta_seconds, chosen.device))
    side_by_side(jobs, chosen.rows, chosen.jobs, until)
    done = {tuple(row[k] for k in FIELDS[:5]) for row in csv.DictReader(chosen.rows.open())}
    runs = [
        Run(group, shots, start, seed, steps)
        for seed, group, steps, start in product(chosen.seeds, chosen.groups, chosen.lengths, chosen.starts)
        for shots in TARGETS[group][1]
    ]
    left = [partial(adapt, run, chosen.models, chosen.device) for run in runs if run.key() not in done]
    side_by_side(left, chosen.rows, chosen.jobs, until)
    print(table(list(csv.DictReader(chosen.rows.open()))))


if __name__ == "__main__":
    main()
