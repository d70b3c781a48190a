"""Compare methods at the same training time: every run is the command line's own, every figure its metrics.json.

    python Testing/benchmarks/compare.py OUT --budget 480s --jobs 2 --rows docs/comparison.csv

runs what has no row yet (so it can be interrupted and go on another day) and prints a Markdown table: mean test Dice
of each data set, number of labelled scans, method and seed. Each run has one thread, so that `--jobs` runs side by
side do not disturb each other's time more than they must.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from threading import Lock

METHODS = ("supervised", "separate", "genseg")
SETS = (("hippocampus", 1, 40), ("isic2017", 5, 40), ("kvasir", 5, 40))  # name, labelled, unlabelled
DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")


@dataclass(frozen=True)
class Run:
    """One training: what, with how much, how, from which seed."""

    data: str
    labelled: int
    unlabelled: int
    method: str
    seed: int
    budget: str

    def go(self, out: Path) -> dict[str, str] | None:
        """Train, predict, evaluate; what an interrupted comparison left is begun again. → the row, None if it fails."""
        folder = out / f"{self.data}-{self.labelled}-{self.method}-{self.seed}-{self.budget}"
        shutil.rmtree(folder, ignore_errors=True)
        command = [
            sys.executable, "-m", "genseg", "train", str(DATA / self.data), "--out", str(folder),
            "--labelled", str(self.labelled), "--unlabelled", str(self.unlabelled),
            "--method", self.method, "--seed", str(self.seed), "--budget", self.budget,
        ]  # fmt: skip
        done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            print(f"{folder.name} failed: {done.stderr[-500:]}", file=sys.stderr, flush=True)
            return None
        mean = json.loads((folder / "metrics.json").read_text())["test"]["mean"]
        steps = json.loads((folder / "checkpoints" / "last.json").read_text())["step"]
        figures = {name: "" if mean[name] is None else f"{mean[name]:.4f}" for name in ("dice", "hd95_mm", "nsd")}
        print(f"{folder.name}: {figures['dice']}", file=sys.stderr, flush=True)
        return self.key() | {"steps": str(steps)} | figures | {"code": _code()}

    def key(self) -> dict[str, str]:
        return {name: str(value) for name, value in asdict(self).items()}


def _code() -> str:
    """The commit that a row was made with; delete the rows of a code that has changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


class Rows:
    """The CSV of finished runs."""

    def __init__(self, path: Path):
        self.path, self.lock = path, Lock()
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def find(self, run: Run) -> dict[str, str] | None:
        return next((row for row in self.rows if run.key().items() <= row.items()), None)

    def add(self, row: dict[str, str]) -> None:
        with self.lock:
            self.rows.append(row)
            temporary = self.path.with_suffix(".part")
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
            os.replace(temporary, self.path)


def table(runs: list[Run], rows: Rows) -> str:
    """Markdown: a row for each data set and method, a column for each seed, mean, SD and segmenter steps."""
    seeds = sorted({run.seed for run in runs})
    head = "| data | labelled | method | " + " | ".join(f"seed {s}" for s in seeds) + " | mean | SD | steps |"
    lines = [head, "|" + "---|" * (len(seeds) + 6)]
    for data, method in product(SETS, METHODS):
        mine = [run for run in runs if (run.data, run.method) == (data[0], method)]
        found = [row for run in mine if (row := rows.find(run)) is not None]
        if not mine or len(found) < len(mine):
            continue
        scores = [float(row["dice"]) for row in found]
        cells = " | ".join(f"{score:.3f}" for score in scores)
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        steps = round(statistics.mean(int(row["steps"]) for row in found))
        lines.append(
            f"| {data[0]} | {data[1]} | {method} | {cells} | {statistics.mean(scores):.3f} | {spread:.3f} | {steps} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=Path, help="CSV of finished runs [OUT/rows.csv]")
    parser.add_argument("--budget", default="480s", help="training time of each run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sets", nargs="*", default=[name for name, _, _ in SETS])
    parser.add_argument("--methods", nargs="*", default=METHODS)
    chosen = parser.parse_args()
    runs = [
        Run(*data, method, seed, chosen.budget)
        for seed, data, method in product(range(chosen.seeds), SETS, METHODS)
        if data[0] in chosen.sets and method in chosen.methods
    ]
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = Rows(chosen.rows or chosen.out / "rows.csv")

    def go(run: Run) -> None:
        row = run.go(chosen.out)
        if row is not None:
            rows.add(row)

    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(go, [run for run in runs if rows.find(run) is None]))
    print(table(runs, rows))


if __name__ == "__main__":
    main()
