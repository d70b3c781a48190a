"""Every generator and every segmenter in the same time: Dice in and out of domain, steps, seconds a step, memory.

    python Testing/benchmarks/family.py docs/family.csv --device cuda --jobs 8 --budget 300
    python Testing/benchmarks/family.py docs/family.csv --jobs 2 --budget 600 --sets isic2017-10 --pages /tmp/pages

Each training is a process of its own with the backend's own steps, and with the plan that a processor gets. Generators
are compared with the default segmenter, segmenters with the default generator, by `--method genseg`. What has a row
is not run again. At the end the table is printed; with --pages each generator's pairs of the same masks and styles are
drawn, row under row. Other processes on the same device slow a training down, so that a table is to be made on one
machine with one number of jobs.
"""

import argparse
import csv
import json
import multiprocessing
import resource
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import page
from unlabelled import DATA, _code, _on, test

from genseg.settings import GENERATORS, SEGMENTERS

# Name: study, labelled scans, unlabelled scans, study of another source to test on.
SETS = {
    "hippocampus-3": ("hippocampus", 3, 40, None),
    "isic2017-10": ("isic2017", 10, 40, None),
    "drive-5": ("drive", 5, 15, "chase_db1"),
}
OF_GENERATORS = ("hippocampus-3", "isic2017-10", "drive-5")
OF_SEGMENTERS = ("isic2017-10", "drive-5")
FIELDS = ("set", "generator", "segmenter", "seed", "budget", "dice", "other_dice", "steps", "step_s", "memory_mb")
FIELDS += ("device", "jobs", "code")


@dataclass(frozen=True)
class Run:
    """One training."""

    set: str
    generator: str
    segmenter: str
    seed: int
    budget: float

    def key(self) -> tuple[str, ...]:
        return self.set, self.generator, self.segmenter, str(self.seed), f"{self.budget:g}"


def go(run: Run, device: str, jobs: int, pages: Path | None) -> dict[str, Any]:
    """Train and test. → the row."""
    import torch

    from genseg.cases import draw
    from genseg.device import find_device
    from genseg.events import EventLog
    from genseg.inference import Predictor
    from genseg.prepare import load
    from genseg.settings import Settings
    from genseg.state import build_state
    from genseg.study import read_study

    torch.set_num_threads(1)
    name, labelled, unlabelled, other = SETS[run.set]
    study = draw(read_study(DATA / name), labelled, unlabelled, run.seed)
    settings = Settings(
        dataset=DATA / name, out=Path("unwritten"), method="genseg", seed=run.seed, budget=run.budget,
        generator=run.generator, segmenter=run.segmenter,
    )  # fmt: skip
    target = find_device(device)
    (ready,) = load([study], None, settings, find_device("cpu"), [EventLog()])
    ready.plan.precision = target.precision
    moved = replace(
        ready, device=target, labelled=_on(ready.labelled, target), unlabelled=_on(ready.unlabelled, target)
    )
    state = build_state([moved], settings)
    seconds = train(state, settings)
    if pages is not None and run.segmenter == "dynunet" and run.seed == 0:
        page.keep(state, pages, f"{run.set}-{run.generator}")
    predictor = Predictor(state.parts[0].model, state.joint.plan, study.labels, target)
    other_study = None if other is None else read_study(DATA / other)
    found = {
        "dice": f"{test(predictor, study):.4f}",
        "other_dice": "" if other_study is None else f"{test(predictor, other_study):.4f}",
        "steps": state.counters.step,
        "step_s": f"{seconds / max(1, state.counters.step):.3f}",
        "memory_mb": peak_mb(target.is_cpu),
        "device": target.name, "jobs": jobs, "code": _code(),
    }  # fmt: skip
    return dict(zip(FIELDS, run.key(), strict=False)) | found


def train(state: Any, settings: Any) -> float:
    """As the command line does it, without the files. → seconds of the segmenter's training."""
    from genseg.schedule import Clock
    from genseg.train import _pretrain_step, _train_step

    clock = Clock(settings)
    while clock.pretrain_progress(state.counters.pretrain_step) < 1:
        _pretrain_step(state, clock)
    begin = time.monotonic()
    while (progress := clock.progress(state.counters.step)) < 1:
        _train_step(state, progress)
        clock.tick()
    return time.monotonic() - begin


def peak_mb(on_processor: bool) -> int:
    """The most memory that the process has had; on a graphics card of that card's."""
    import torch

    if on_processor:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return torch.cuda.max_memory_allocated() // 2**20


def work(run: Run, rows: Path, lock: Any, device: str, jobs: int, pages: Path | None) -> None:
    """The body of a process: one training, so that its peak of memory is its own."""
    try:
        row = go(run, device, jobs, pages)
    except Exception as error:  # the others go on; what has no row is tried again next time
        print(f"{run}: {type(error).__name__}: {error}", flush=True)
        return
    print(json.dumps(row), flush=True)
    with lock, rows.open("a", newline="") as file:
        csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def table(rows: list[dict[str, str]], budget: float) -> str:
    """Markdown; means over the seeds that there are."""
    lines = ["| data | generator | segmenter | seeds | Dice | of another source | steps | s a step | memory, MB |"]
    lines.append("|" + "---|" * 9)
    mine = [row for row in rows if row["budget"] == f"{budget:g}"]
    for key in sorted({(row["set"], row["generator"], row["segmenter"]) for row in mine}):
        same = [row for row in mine if (row["set"], row["generator"], row["segmenter"]) == key]
        cells = [_mean(same, "dice", 3), _mean(same, "other_dice", 3), _mean(same, "steps", 0)]
        cells += [_mean(same, "step_s", 2), _mean(same, "memory_mb", 0)]
        lines.append("| " + " | ".join([*key, str(len(same)), *cells]) + " |")
    return "\n".join(lines)


def _mean(rows: list[dict[str, str]], field: str, digits: int) -> str:
    values = [float(row[field]) for row in rows if row[field]]
    return f"{sum(values) / len(values):.{digits}f}" if values else "–"


def wanted(chosen: argparse.Namespace) -> list[Run]:
    """Every generator with the default segmenter, every segmenter with the default generator."""
    pairs = [(name, generator, "dynunet") for name in OF_GENERATORS for generator in GENERATORS]
    pairs += [(name, "spade", segmenter) for name in OF_SEGMENTERS for segmenter in SEGMENTERS]
    pairs = [pair for pair in dict.fromkeys(pairs) if pair[0] in chosen.sets and pair[1] in chosen.generators]
    return [Run(*pair, seed, chosen.budget) for seed in chosen.seeds for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="CSV of the trainings that are done")
    parser.add_argument("--sets", nargs="*", default=[*SETS], choices=[*SETS])
    parser.add_argument("--generators", nargs="*", default=[*GENERATORS], choices=[*GENERATORS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of each training")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--pages", type=Path, help="folder for the pictures")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no training after that")
    chosen = parser.parse_args()
    if not chosen.rows.exists():
        chosen.rows.write_text(",".join(FIELDS) + "\n")
    done = {tuple(row[k] for k in FIELDS[:5]) for row in csv.DictReader(chosen.rows.open())}
    context, until = multiprocessing.get_context("spawn"), time.time() + chosen.seconds
    lock, running = context.Lock(), []
    for run in [run for run in wanted(chosen) if run.key() not in done]:
        while len(running := [p for p in running if p.is_alive()]) >= chosen.jobs:
            time.sleep(0.2)
        if time.time() > until:
            break
        told = (run, chosen.rows, lock, chosen.device, chosen.jobs, chosen.pages)
        running.append(context.Process(target=work, args=told))
        running[-1].start()
    for process in running:
        process.join()
    for set_ in chosen.sets if chosen.pages else []:
        page.page(chosen.pages, set_, GENERATORS, chosen.pages / f"{set_}.png")
    print(table(list(csv.DictReader(chosen.rows.open())), chosen.budget))


if __name__ == "__main__":
    main()
