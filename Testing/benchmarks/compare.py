"""Compare methods at the same training time: every run is the command line's own, every figure its metrics.json.

    python Testing/benchmarks/compare.py OUT --budget 180s --jobs 2

runs what is not yet in OUT (so it can be interrupted) and prints a Markdown table: mean test Dice of each
data set, number of labelled scans, method and seed. Each run has one thread, so that `--jobs` runs side by side
do not disturb each other's time more than they must.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

METHODS = ("supervised", "separate", "genseg")
SETS = (("hippocampus", 1, 40), ("isic2017", 5, 40), ("kvasir", 5, 40))  # name, labelled, unlabelled
DATA = Path(os.environ.get("GENSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))


@dataclass(frozen=True)
class Run:
    """One training: what, with how much, how, from which seed."""

    data: str
    labelled: int
    unlabelled: int
    method: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / f"{self.data}-{self.labelled}-{self.method}-{self.seed}"

    def go(self, out: Path, limit: list[str]) -> None:
        folder = self.folder(out)
        if (folder / "done").exists():
            return
        command = [
            sys.executable, "-m", "genseg", "train", str(DATA / self.data), "--out", str(folder),
            "--labelled", str(self.labelled), "--unlabelled", str(self.unlabelled),
            "--method", self.method, "--seed", str(self.seed), *limit,
        ]  # fmt: skip
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        state = "done" if done.returncode == 0 else f"failed: {done.stderr[-500:]}"
        print(f"{folder.name}: {state}", file=sys.stderr, flush=True)

    def dice(self, out: Path) -> float | None:
        metrics = self.folder(out) / "metrics.json"
        return json.loads(metrics.read_text())["test"]["mean"]["dice"] if metrics.exists() else None

    def steps(self, out: Path) -> int:
        return json.loads((self.folder(out) / "checkpoints" / "last.json").read_text())["step"]


def table(out: Path, seeds: int) -> str:
    """Markdown: a row for each data set and method, a column for each seed, mean, SD and segmenter steps."""
    head = "| data | labelled | method | " + " | ".join(f"seed {s}" for s in range(seeds)) + " | mean | SD | steps |"
    rows = [head, "|" + "---|" * (seeds + 6)]
    for (data, labelled, unlabelled), method in product(SETS, METHODS):
        runs = [Run(data, labelled, unlabelled, method, seed) for seed in range(seeds)]
        finished = [(run.dice(out), run.steps(out)) for run in runs if run.dice(out) is not None]
        if len(finished) < seeds:
            continue
        scores = [score for score, _ in finished if score is not None]
        cells = " | ".join(f"{score:.3f}" for score in scores)
        spread = statistics.stdev(scores) if seeds > 1 else 0.0
        steps = round(statistics.mean(step for _, step in finished))
        rows.append(
            f"| {data} | {labelled} | {method} | {cells} | {statistics.mean(scores):.3f} | {spread:.3f} | {steps} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", default="180s")
    parser.add_argument("--iterations", help="instead of a budget")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sets", nargs="*", default=[name for name, _, _ in SETS])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    chosen = parser.parse_args()
    limit = ["--iterations", chosen.iterations] if chosen.iterations else ["--budget", chosen.budget]
    runs = [
        Run(*data, method, seed)
        for seed, data, method in product(range(chosen.seeds), SETS, METHODS)
        if data[0] in chosen.sets and method in chosen.methods
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(lambda run: run.go(chosen.out, limit), runs))
    print(table(chosen.out, chosen.seeds))


if __name__ == "__main__":
    main()
