"""Every arm on every set, many trainings side by side, one row each; and what docs/benchmarks.md says of the rows.

    python Testing/benchmarks/matrix.py docs/matrix.csv --size quick --jobs 2
    python Testing/benchmarks/matrix.py docs/matrix.csv --size gpu --jobs 16 --device cuda
    python Testing/benchmarks/matrix.py docs/matrix.csv --sets kvasir-5 --arms none genseg --lengths 120s --seeds 7

A training has a process of its own with one thread, so that its memory and its time are its own. What has a row is not
run again: a matrix can be stopped at any time and gone on with. The same seed draws the same scans for all arms.
With --tune the last scans of `training` are held back and tested on instead of the test scans: to choose by.
"""

import argparse
import json
import multiprocessing
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import figures
import page
import torch
from runs import ARMS, GRIDS, PEERS, Run, add_row, key_of, machine, read_rows

from genseg.device import find_device
from genseg.settings import GENERATORS, SEGMENTERS

FEWEST = ("hippocampus-1", "acdc-2", "isic2017-5", "kvasir-5", "shenzhen-5", "busi-5", "dsb2018-5", "drive-5")
MORE = ("hippocampus-3", "hippocampus-10", "acdc-4", *(name.replace("-5", "-20") for name in FEWEST[2:-1]))
SIZES: dict[str, dict[str, Any]] = {
    "quick": {"grid": "light", "lengths": ["180s"], "sets": FEWEST, "arms": (*ARMS[:8], "monai-unet")},
    "gpu": {"grid": "full", "lengths": ["500"], "sets": (*FEWEST, *MORE), "arms": [a for a in ARMS if a not in PEERS]},
}


def wanted(chosen: argparse.Namespace) -> list[Run]:
    """The first seed of everything first. A generator matters only where there is one."""
    runs = [
        Run(set_, arm, seed, length, chosen.grid, generator, segmenter, start, "training" if chosen.tune else "test")
        for seed, length, set_, arm, generator, segmenter, start in product(
            chosen.seeds, chosen.lengths, chosen.sets, chosen.arms,
            chosen.generators, chosen.segmenters, chosen.starts,
        )
    ]  # fmt: skip
    return [run for run in runs if _matters(run)]


def _matters(run: Run) -> bool:
    """Whether the arm has what is varied: a generator, a network of this project's."""
    if run.arm in PEERS:
        return (run.generator, run.segmenter, run.start) == ("spade", "dynunet", "")
    return run.generator == "spade" or (run.settings().generates and not run.warps)


def work(run: Run, rows: Path, lock: Any, chosen: argparse.Namespace) -> None:
    """The body of a process: one training."""
    if run.arm in PEERS:
        import peers

        row = peers.go(run, chosen.jobs, chosen.device)
    else:
        import training

        row = training.go(run, chosen.device, chosen.jobs, chosen.pages)
    print(json.dumps(row), flush=True)
    with lock:
        add_row(rows, row)


def side_by_side(runs: list[Run], chosen: argparse.Namespace) -> list[Run]:
    """So many processes at a time; after --seconds none is begun any more. → those that failed; the others go on."""
    context, until = multiprocessing.get_context("spawn"), time.time() + chosen.seconds
    lock, begun = context.Lock(), []
    for run in runs:
        while sum(process.is_alive() for _, process in begun) >= chosen.jobs:
            time.sleep(0.2)
        if time.time() > until:
            break
        begun.append((run, context.Process(target=work, args=(run, chosen.rows, lock, chosen))))
        begun[-1][1].start()
    for _, process in begun:
        process.join()
    return [run for run, process in begun if process.exitcode]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="CSV of the trainings that are done")
    parser.add_argument("--size", choices=[*SIZES], default="quick", help="what is run where it is not said below")
    parser.add_argument("--sets", nargs="*", help="study-labelled, such as kvasir-5, or hippocampus-1+acdc-2")
    parser.add_argument("--arms", nargs="*", choices=ARMS)
    parser.add_argument("--lengths", nargs="*", help="seconds such as 180s, or supervised steps such as 500")
    parser.add_argument("--grid", choices=[*GRIDS])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--generators", nargs="*", choices=GENERATORS, default=["spade"])
    parser.add_argument("--segmenters", nargs="*", choices=SEGMENTERS, default=["dynunet"])
    parser.add_argument("--starts", nargs="*", default=[""], help='folders of starting models, "" for none')
    parser.add_argument("--tune", action="store_true", help="test on scans of `training`, to choose by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no training after that")
    parser.add_argument("--pages", type=Path, help="folder for pictures of the pairs of genseg with seed 0")
    parser.add_argument("--write", type=Path, help="Markdown file to put tables and plots of all rows of the grid into")
    chosen = parser.parse_args()
    for name, value in SIZES[chosen.size].items():
        if getattr(chosen, name) is None:
            setattr(chosen, name, value)
    if chosen.write:
        figures.place(chosen.write, chosen.grid)
    torch.set_num_threads(1)
    here = machine(find_device(chosen.device))
    runs = {key_of(run.row() | {"device": here}): run for run in wanted(chosen)}
    done = {key_of(row) for row in read_rows(chosen.rows)}
    failed = side_by_side([run for key, run in runs.items() if key not in done], chosen)
    rows = read_rows(chosen.rows)
    for set_ in chosen.sets if chosen.pages else []:
        page.page(chosen.pages, set_, GENERATORS, chosen.pages / f"{set_}.png")
    print(figures.text([row for row in rows if key_of(row) in runs]))
    if chosen.write:
        on_page = [row for row in rows if row["grid"] == chosen.grid and row["tested"] == "test"]
        figures.write(on_page, chosen.write, chosen.grid)
    if failed:
        sys.exit("Without a row, to be tried again next time:\n" + "\n".join(str(run) for run in failed))


if __name__ == "__main__":
    main()
