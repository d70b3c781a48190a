"""How good a label map is: overlap and surface distance per case and label, in mm where the file has a physical size.

The rules, stated once:

- A label absent from prediction and reference says nothing: its scores are None and left out of every mean.
- A label absent from exactly one of them scores 0 in Dice, IoU and NSD. Its distance is infinite, so
  `hd95_mm` is None and left out of the mean distance: read that mean together with the Dice.
- A mean over cases is taken for each label first, then the mean over labels, so that a rare label counts
  as much as a frequent one. Labels without any score are left out.
- NSD counts a surface element as right within a tolerance: the median of the file's spacings (1 mm at
  1x1x1 mm, the in-plane spacing of thick slices), that is about one voxel; for photos, which have no physical
  size, 1 % of the long side, at least 1 pixel. Distances of photos are in pixels (`unit` says which).
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice
from rich.console import Console
from rich.table import Table
from scipy.ndimage import find_objects

from genseg.errors import Fault, InputFaults
from genseg.events import Error, EventLog, Progress
from genseg.imagefile import UnusableImage
from genseg.imageio import Geometry, grid_difference, read_label
from genseg.inference import Predictor
from genseg.labels import LabelTable
from genseg.predict import by_model
from genseg.study import Case, read_study


@dataclass(frozen=True)
class Scores:
    """One label in one case. dice, iou and nsd in 0..1; hd95_mm in mm (pixels for photos), None where infinite."""

    dice: float | None = None
    iou: float | None = None
    hd95_mm: float | None = None
    nsd: float | None = None


NOT_PRESENT = Scores()  # absent from prediction and reference
MISSED = Scores(dice=0.0, iou=0.0, hd95_mm=None, nsd=0.0)  # absent from exactly one of them
METRICS = [field.name for field in fields(Scores)]


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case by label name, the NSD tolerance they were taken with, and its unit."""

    case: str
    labels: dict[str, Scores]
    tolerance: float
    physical: bool = True


def surface_tolerance(shape: tuple[int, ...], spacing: tuple[float, ...], physical: bool = True) -> float:
    """Tolerance of the surface Dice in mm (pixels for photos) for an array [*spatial]; see the top of this file."""
    if not physical:
        return max(1.0, 0.01 * max(shape))
    return float(median(spacing))


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: tuple[float, ...],
    table: LabelTable,
    tolerance: float | None = None,
) -> dict[str, Scores]:
    """Compare two index maps [*spatial] (2D or 3D), spacing in array order in mm → scores by label name.

    `tolerance` of the surface Dice in the unit of `spacing`; by default `surface_tolerance`.
    Raises ValueError where the two maps differ in shape.
    """
    if prediction.shape != reference.shape:
        raise ValueError(f"the prediction is {prediction.shape} voxels, the reference {reference.shape}")
    if tolerance is None:
        tolerance = surface_tolerance(reference.shape, spacing)
    boxes_p, boxes_r = (find_objects(array.astype(np.int32), max_label=len(table)) for array in (prediction, reference))
    return {
        label.name: _score_label(prediction == index, reference == index, (box_p, box_r), spacing, tolerance)
        for index, (label, box_p, box_r) in enumerate(zip(table.structures, boxes_p, boxes_r, strict=False), start=1)
    }


def _score_label(
    prediction: np.ndarray,
    reference: np.ndarray,
    boxes: tuple[tuple[slice, ...] | None, tuple[slice, ...] | None],
    spacing: tuple[float, ...],
    tolerance: float,
) -> Scores:
    """Scores of one label given as two boolean masks [*spatial] and their bounding boxes."""
    if boxes[0] is None and boxes[1] is None:
        return NOT_PRESENT
    if boxes[0] is None or boxes[1] is None:
        return MISSED
    # Everything outside the common box (and one voxel around it, for the edges) is background in both.
    sides = zip(boxes[0], boxes[1], strict=True)
    crop = tuple(slice(max(min(a.start, b.start) - 1, 0), max(a.stop, b.stop) + 1) for a, b in sides)
    p, r = (torch.from_numpy(mask[crop].astype(np.float32))[None, None] for mask in (prediction, reference))
    with warnings.catch_warnings():  # MONAI warns of an argument that only MONAI itself passes
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)
        distance = compute_hausdorff_distance(p, r, include_background=True, percentile=95, spacing=spacing)
        surface = compute_surface_dice(p, r, [tolerance], include_background=True, spacing=spacing)
    scores = Scores(
        dice=compute_dice(p, r).item(), iou=compute_iou(p, r).item(), hd95_mm=distance.item(), nsd=surface.item()
    )
    if not all(np.isfinite(value) for value in asdict(scores).values()):
        raise ArithmeticError(f"a metric of two masks that both hold the label is not finite: {scores}")
    return scores


def summarise(cases: list[CaseScores]) -> dict[str, Any]:
    """Scores of cases → the evaluation as JSON-ready dictionary.

    {"mean": {metric: value}, "labels": {name: {metric: value}}, "cases": [{"case", "labels": {name: {metric: value}}}],
    "unit": "mm" | "pixel", "nsd_tolerance": [lowest, highest] or null}; a value is a finite float or None (null).
    """
    names = list(dict.fromkeys(name for case in cases for name in case.labels))
    labels = {
        name: {
            metric: _mean(getattr(case.labels[name], metric) for case in cases if name in case.labels)
            for metric in METRICS
        }
        for name in names
    }
    tolerances = [case.tolerance for case in cases]
    return {
        "mean": {metric: _mean(scores[metric] for scores in labels.values()) for metric in METRICS},
        "labels": labels,
        "cases": [
            {"case": case.case, "labels": {name: asdict(scores) for name, scores in case.labels.items()}}
            for case in cases
        ],
        "unit": "mm" if all(case.physical for case in cases) else "pixel",
        "nsd_tolerance": [min(tolerances), max(tolerances)] if tolerances else None,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None where there is none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else None


def print_table(evaluation: dict[str, Any], console: Console, title: str = "Evaluation") -> None:
    """Print the result of `summarise`: a row for each case and label, then the mean of each label and of all."""
    table = Table(title=title, caption=_caption(evaluation))
    table.add_column("case", overflow="fold")
    table.add_column("label", overflow="fold")
    for heading in ("Dice", "IoU", f"HD95 ({evaluation['unit']})", "NSD"):
        table.add_column(heading, justify="right")
    for case in evaluation["cases"]:
        for name, scores in case["labels"].items():
            table.add_row(case["case"], name, *_cells(scores))
    table.add_section()
    for name, scores in evaluation["labels"].items():
        table.add_row("mean", name, *_cells(scores))
    table.add_row("mean", "all labels", *_cells(evaluation["mean"]), style="bold")
    console.print(table)


def _cells(scores: dict[str, float | None]) -> list[str]:
    return [
        "–" if scores[metric] is None else f"{scores[metric]:.2f}" if metric == "hd95_mm" else f"{scores[metric]:.3f}"
        for metric in METRICS
    ]


def _caption(evaluation: dict[str, Any]) -> str:
    tolerance = evaluation["nsd_tolerance"]
    if tolerance is None:
        return "no case with a reference"
    low, high = (f"{value:.3g}" for value in tolerance)
    within = low if low == high else f"{low} to {high}"
    return f"NSD within {within} {evaluation['unit']}; –: label in neither mask, or distance infinite"


# Case → index map [*spatial] in the orientation of `read_scan`, and the grid of the image's file.
Segment = Callable[[Case], tuple[np.ndarray, Geometry]]


def evaluate_cases(
    cases: list[Case], table: LabelTable, segment: Segment, log: EventLog | None = None
) -> tuple[list[CaseScores], list[Fault]]:
    """Score every case that has a reference; cases without one are passed over.

    Returns the scores and the faults of the cases that could not be read or compared; each fault is also
    emitted as an error event, and the other cases go on.
    """
    log = log or EventLog()
    scores: list[CaseScores] = []
    faults: list[Fault] = []
    labelled = [case for case in cases if case.label is not None]
    for step, case in enumerate(labelled, start=1):
        try:
            scores.append(_evaluate_case(case, table, segment))
        except UnusableImage as error:
            faults.append(Fault(error.code, case.id, error.rule, error.remedy))
            log.emit(Error(code=error.code, message=error.rule, remedy=error.remedy, case=case.id))
        log.emit(Progress(phase="predict", step=step, total=len(labelled)))
    return scores, faults


def _evaluate_case(case: Case, table: LabelTable, segment: Segment) -> CaseScores:
    assert case.label is not None
    reference, geometry = read_label(case.label, table)
    prediction, image = segment(case)
    difference = grid_difference(geometry, image)
    if difference is not None:
        raise UnusableImage(
            "geometry_mismatch",
            f"A reference must lie on the grid of its image, but {case.label.name} differs: {difference}.",
            "Give the label map that was drawn on this image, or resample it to the image with nearest neighbour.",
        )
    spacing = image.array_spacing
    tolerance = surface_tolerance(reference.shape, spacing, image.physical)
    scores = score_case(prediction, reference, spacing, table, tolerance)
    return CaseScores(case.id, scores, tolerance, image.physical)


def evaluate_run(run: Path, dataset: Path, split: str, device: str, log: EventLog) -> dict[str, Any]:
    """Segment the cases of a split ("test" or "training") that have a reference, and score them.

    `run` is a run folder or a bundle, `dataset` whatever `read_study` reads. Structures are matched by name, so the
    values in the files may differ from those of training. Returns what `summarise` returns and "failed":
    [{"case", "rule", "remedy"}]. Raises InputFaults where nothing can be compared.
    """
    study = read_study(dataset)
    cases = study.test if split == "test" else study.training
    if not any(case.label for case in cases):
        rule = f"The split '{split}' of this study has no reference labels to compare with."
        raise InputFaults([Fault("no_reference", split, rule, "Choose another split, or add labels to the study.")])
    predictor = Predictor.load(run, device)
    scores, faults = evaluate_cases(cases, _matched(study.labels, predictor.table), by_model(predictor), log)
    if not scores:
        raise InputFaults(faults)
    return summarise(scores) | {"failed": [{"case": f.case, "rule": f.rule, "remedy": f.remedy} for f in faults]}


def _matched(files: LabelTable, model: LabelTable) -> LabelTable:
    """The table with the values of `files` and the indices of `model`; raises InputFaults where names differ."""
    values = {label.name: label.value for label in files.structures}
    if set(values) != {label.name for label in model.structures}:
        theirs, ours = (", ".join(label.name for label in table.structures) for table in (files, model))
        rule = f"Model and study must have the same structures, but the model has {ours} and the study {theirs}."
        raise InputFaults([Fault("label_table_mismatch", "study", rule, "Rename the labels in dataset.json.")])
    background = files.labels[0].model_copy(update={"name": model.labels[0].name})
    structures = [label.model_copy(update={"value": values[label.name]}) for label in model.structures]
    return LabelTable(labels=[background, *structures])
