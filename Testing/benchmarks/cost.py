"""How cost grows with the size of the scans, the number of structures and the number of scans.

    python Testing/benchmarks/cost.py docs/cost.csv --grid light

One row for each study, measured in a process of its own with one thread: phantoms (`genseg sample phantom`), enlarged,
their structures cut into as many slabs as there are to be labels. A row that is there is not
measured again; at the end all are printed as a table. Steps are timed by the clock: leave the machine to it.
"""

import argparse
import csv
import multiprocessing
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from rich.console import Console
from runs import GRIDS, code, machine
from training import OnGrid, peak_mb

from genseg.cases import Study
from genseg.device import find_device
from genseg.events import EventLog
from genseg.inference import Predictor
from genseg.phantom import SPACING, make_body
from genseg.predict import by_model
from genseg.prepare import load
from genseg.profiling import compare_steps
from genseg.runfolder import write_json
from genseg.settings import Settings
from genseg.state import build_state
from genseg.study import read_study

PREDICTED = 3  # scans of which the mean time is told


@dataclass(frozen=True)
class Sized:
    """What is varied: voxels of a side in those of the phantom (64 x 48 x 36), structures, labelled scans."""

    side: float = 1.0
    structures: int = 3
    scans: int = 4


BASE = Sized()
VARIED = [
    BASE, *(Sized(side=side) for side in (1.5, 2.0, 3.0, 4.0)), *(Sized(structures=n) for n in (1, 10, 30, 70)),
    *(Sized(scans=n) for n in (1, 16, 64)),
]  # fmt: skip
MEASURED = ("patch", "prepare_s", "supervised_s", "genseg_s", "ratio", "predict_s", "memory_mb")
FIELDS = (*(field.name for field in fields(Sized)), *MEASURED, "grid", "device", "code")


def make_study(folder: Path, sized: Sized) -> Study:
    """Write `scans` labelled phantoms and as many without labels."""
    entries = [{"image": f"{i}.nii", "label": f"{i}_label.nii"} for i in range(sized.scans)]
    for i in range(2 * sized.scans):
        body = make_body(i)
        image = sitk.GetImageFromArray(body.image)
        image.SetSpacing([SPACING] * 3)
        label = sitk.GetImageFromArray(slabs(body.label > 0, sized.structures))
        label.CopyInformation(image)
        sitk.WriteImage(_enlarged(image, sized.side, sitk.sitkLinear), folder / f"{i}.nii")
        if i < sized.scans:
            sitk.WriteImage(_enlarged(label, sized.side, sitk.sitkNearestNeighbor), folder / f"{i}_label.nii")
    names = {"background": 0} | {f"slab {k}": k for k in range(1, sized.structures + 1)}
    unlabelled = [f"{i}.nii" for i in range(sized.scans, 2 * sized.scans)]
    content = {"name": "cost", "labels": names, "training": entries, "unlabeled": unlabelled, "test": []}
    write_json(folder / "dataset.json", content)
    return read_study(folder)


def slabs(mask: np.ndarray, count: int) -> np.ndarray:
    """uint8 [z, y, x]: a mask cut into slabs of equal volume along x, 1..count."""
    label = np.zeros(mask.shape, np.uint8)
    x = np.nonzero(mask)[2]
    label[mask] = 1 + np.argsort(np.argsort(x, kind="stable"), kind="stable") * count // len(x)
    return label


def _enlarged(image: sitk.Image, factor: float, how: int) -> sitk.Image:
    """More voxels of the same size, as of a larger patient: plans follow voxels, not the patient."""
    size = [round(side * factor) for side in image.GetSize()]
    stretched = sitk.AffineTransform(3)
    stretched.Scale(1 / factor)
    return sitk.Resample(image, size, stretched, how, image.GetOrigin(), image.GetSpacing(), image.GetDirection())


def measure(sized: Sized, grid: str, rows: Path) -> None:
    """The body of a process: one study, its row."""
    torch.set_num_threads(1)
    target = find_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        study = make_study(Path(folder), sized)
        settings = Settings(dataset=Path(folder), out=Path("unwritten"), method="genseg", iterations=100)
        begin = time.perf_counter()
        ready = load([study], None, settings, target, [EventLog()], OnGrid(grid))
        state = build_state(ready, settings)
        prepared = time.perf_counter()
        step = compare_steps(state, Console(quiet=True))
        segment = by_model(Predictor(state.parts[0].model, state.joint.plan, study.labels, target))
        predicting = time.perf_counter()
        for case in (study.training * PREDICTED)[:PREDICTED]:
            segment(case)
        predicted = (time.perf_counter() - predicting) / PREDICTED
    row: dict[str, Any] = asdict(sized) | {
        "patch": " ".join(map(str, state.joint.plan.patch)), "prepare_s": f"{prepared - begin:.2f}",
        "supervised_s": f"{step['supervised']:.4f}", "genseg_s": f"{step['run']:.4f}",
        "ratio": f"{step['run'] / step['supervised']:.2f}", "predict_s": f"{predicted:.2f}",
        "memory_mb": peak_mb(target), "grid": grid, "device": machine(target), "code": code(),
    }  # fmt: skip
    with rows.open("a", newline="") as file:
        csv.DictWriter(file, FIELDS, lineterminator="\n").writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("rows", type=Path, help="CSV of what has been measured")
    parser.add_argument("--grid", default="light", choices=[*GRIDS])
    chosen = parser.parse_args()
    if not chosen.rows.exists():
        chosen.rows.write_text(",".join(FIELDS) + "\n")
    here = machine(find_device("cpu"))
    known = {tuple(row.values())[: len(fields(Sized))] for row in read(chosen.rows, chosen.grid, here)}
    for sized in VARIED:
        if tuple(map(str, asdict(sized).values())) not in known:
            process = multiprocessing.get_context("spawn").Process(
                target=measure, args=(sized, chosen.grid, chosen.rows)
            )
            process.start()
            process.join()
    shown = FIELDS[: -len(("grid", "device", "code"))]
    print(f"| {' | '.join(shown)} |\n|{'---|' * len(shown)}")
    for row in read(chosen.rows, chosen.grid, here):
        print(f"| {' | '.join(row[name] for name in shown)} |")


def read(rows: Path, grid: str, device: str) -> list[dict[str, str]]:
    """What has been measured on this grid and machine."""
    with rows.open(newline="") as file:
        return [row for row in csv.DictReader(file) if (row["grid"], row["device"]) == (grid, device)]


if __name__ == "__main__":
    main()
