"""What the benchmark trains: sets, arms and grids of one training, and the table of those that are done."""

import csv
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from genseg.cases import Study, draw
from genseg.device import Device
from genseg.plan import Plan
from genseg.settings import PARTS, Settings
from genseg.study import read_study

Row = dict[str, str]
DATA = Path(os.environ.get("GENSEG_DATA") or Path(__file__).parents[3] / "shared" / "data")
MOST_UNLABELLED = {"hippocampus": 100}  # elsewhere 300
OTHER_SOURCE = {"drive": "chase_db1"}  # of the same structure, never trained on
HELD_BACK = 26  # scans at the end of `training` (or half of them) to choose by, so that no test scan is
# Time of a step in supervised steps, the generator's pretraining included: docs/benchmarks.md.
COST = {"supervised": 1.0, "none": 1.0, "warp": 1.0, "separate": 1.15, "genseg": 1.27, "versemi": 1.24}
COST |= {"restyle": 1.0, "restyle+versemi": 1.25, "warp+versemi": 1.25, "genseg+versemi": 1.7, "versemi-prompts": 1.1}
METHOD = {"none": "supervised", "warp": "separate", "warp+versemi": "genseg+versemi"}
METHOD |= {"restyle": "separate", "restyle+versemi": "genseg+versemi"}
METHOD |= {f"versemi-{part}": "versemi" for part in PARTS}
PEERS = ("nnunet", "monai-unet")
ARMS = ("none", "supervised", "warp", "separate", "genseg", "versemi", "warp+versemi", "genseg+versemi")
ARMS += (*(arm for arm in METHOD if arm not in ARMS), *PEERS)


@dataclass(frozen=True)
class Run:
    """One training; these values are the row's key, with the machine where it is given in seconds.

    `set` is study-labelled, several joined by +, as in hippocampus-1+acdc-2; acdc is counted in patients of two scans.
    `start` is a folder of a starting model, or "". `length` is "300s", of one processor core or of the graphics card,
    or the number of supervised steps in whose time the arm's own steps are made. `tested` on test or training scans.
    """

    set: str
    arm: str
    seed: int
    length: str
    grid: str = "full"
    generator: str = "spade"
    segmenter: str = "dynunet"
    start: str = ""
    tested: str = "test"

    def row(self) -> Row:
        """The row's first part; a starting model is known by its folder's name and its meta-steps, wherever it lies."""
        card = Path(self.start) / "card.json"
        steps = f" ({json.loads(card.read_text())['meta_steps']} steps)" if self.start and card.exists() else ""
        values = astuple(replace(self, start=Path(self.start).name + steps))
        return {name: str(value) for name, value in zip(KEY, values, strict=True)}

    @property
    def seconds(self) -> float | None:
        return float(self.length[:-1]) if self.length.endswith("s") else None

    @property
    def warps(self) -> bool:
        """Whether synthetic masks come with real images, as they are or restyled, in the place of generated ones."""
        return self.arm.startswith(("warp", "restyle"))

    def settings(self) -> Settings:
        method = METHOD.get(self.arm, self.arm)
        without = [self.arm.removeprefix("versemi-")] if self.arm.startswith("versemi-") else []
        studies = len(self.set.split("+"))
        if not self.seconds and (self.generator, self.segmenter) != ("spade", "dynunet"):
            raise ValueError(f"What a step costs is known of the default networks only; give seconds: {self}")
        cost = COST.get(self.arm, COST[method])
        steps = None if self.seconds else max(1, round(int(self.length) * studies / cost))
        return Settings.model_validate(
            {
                "dataset": DATA, "out": Path("unwritten"), "method": method, "without": without, "seed": self.seed,
                "budget": self.seconds, "iterations": steps, "generator": self.generator, "segmenter": self.segmenter,
            }
        )  # fmt: skip

    def studies(self) -> list[Study]:
        """The studies with their scans drawn. What is tested on is never trained on."""
        return [self._study(*part.rsplit("-", 1)) for part in self.set.split("+")]

    def _study(self, name: str, count: str) -> Study:
        study, labelled, seed = read_study(DATA / name), int(count), self.seed
        if name == "acdc":
            study = _by_patient(study, 0)
        if self.tested == "training":
            at = max(len(study.training) // 2, len(study.training) - HELD_BACK)
            study = study.model_copy(update={"training": study.training[:at], "test": study.training[at:]})
        if name == "acdc":
            study, labelled, seed = _by_patient(study, seed), 2 * labelled, 0
        rest = len(study.training) - labelled + len(study.unlabeled)
        return draw(study, labelled, min(rest, MOST_UNLABELLED.get(name, 300)), seed)

    def other_source(self) -> Study | None:
        other = OTHER_SOURCE.get(self.set.rsplit("-", 1)[0])
        return None if other is None else read_study(DATA / other)


def light(plan: Plan) -> Plan:
    """Half as wide a network, in 3D on a grid 1.5 times coarser, in 2D with half the batch: a fifth of the time."""
    coarser = 1.5 if plan.dims == 3 else 1.0
    patch = [max(16, -(-int(side / coarser) // 8) * 8) for side in plan.patch]
    levels = len(plan.filters)
    while any(side % 2 ** (levels - 1) or side // 2 ** (levels - 1) < 3 for side in patch):
        levels -= 1
    return plan.model_copy(
        update={
            "filters": [width // 2 for width in plan.filters][:levels],
            "kernels": plan.kernels[:levels],
            "strides": plan.strides[:levels],
            "spacing": [side * coarser for side in plan.spacing],
            "patch": patch,
            "batch": max(2, plan.batch // 2),
        }
    )


GRIDS: dict[str, Callable[[Plan], Plan]] = {"full": lambda plan: plan, "light": light}


def _by_patient(study: Study, seed: int) -> Study:
    """Both frames of a patient side by side and said to be of one; patients in the order of the seed (0: as listed)."""
    cases = [case.model_copy(update={"group": case.id.split("_frame")[0]}) for case in study.training]
    patients = list(dict.fromkeys(case.group for case in cases))
    order = np.random.default_rng(seed).permutation(len(patients)) if seed else range(len(patients))
    return study.model_copy(update={"training": [c for i in order for c in cases if c.group == patients[i]]})


KEY = tuple(field.name for field in fields(Run))
FIGURES = ("dice", "hd95", "nsd", "dices", "other_dice", "steps", "prepare_s", "train_s", "predict_s", "memory_mb")
FIELDS = (*KEY, *FIGURES, "device", "jobs", "code")


def read_rows(path: Path) -> list[Row]:
    """The trainings that are done; a new table where there is none."""
    if not path.exists():
        path.write_text(",".join(FIELDS) + "\n")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if len({key_of(row) for row in rows}) < len(rows):
        raise ValueError(f"{path} has several rows of one training; delete all but one.")
    return rows


def key_of(row: Row) -> tuple[str, ...]:
    """Which training a row is of."""
    return *(row[name] for name in KEY), seconds_of(row)


def seconds_of(row: Row) -> str:
    """The machine whose seconds the length counts, or "" where it is in steps."""
    return row["device"] if row["length"].endswith("s") else ""


def machine(device: Device) -> str:
    """Its name, and the arithmetic: a processor that multiplies bf16 makes about four times as many steps."""
    return f"{device.name}, {device.precision}"


def add_row(path: Path, row: dict[str, Any]) -> None:
    """One line, in one write."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def code() -> str:
    """The commit that a row is made with; delete the rows of a code that has changed since."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()
