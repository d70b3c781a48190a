"""Builds run folders from real scans for tests of whatever reads a run folder. No model is trained: predictions are the
references, shifted and grown or shrunk by a few voxels, and synthetic images are real ones, blurred, shaded and warped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from genseg import events
from genseg.cases import Case, Study, draw
from genseg.evaluate import CaseScores, score_case, summarise, surface_tolerance
from genseg.imageio import read_label, read_scan, write_image, write_label
from genseg.runfolder import RunFolder, write_json
from genseg.settings import Settings
from genseg.study import read_study


@dataclass(frozen=True)
class Recipe:
    """What a run is made from; `test` and `unlabelled` say how many scans are predicted, `pairs` how many made."""

    data: str
    labelled: int = 3
    test: int = 4
    unlabelled: int = 1
    pairs: int = 4
    physical: bool = True
    method: str = "genseg"


def build_run(path: Path, data: Path, recipe: Recipe) -> RunFolder:
    """Write a finished run into `path`: every file of the contract but the checkpoints and the bundle."""
    run = RunFolder(path)
    whole = draw(read_study(data / recipe.data), recipe.labelled, recipe.unlabelled, seed=0)
    study = whole.model_copy(
        update={"test": whole.test[: recipe.test], "unlabeled": whole.unlabeled[: recipe.unlabelled]}
    )
    rng = np.random.default_rng(0)
    study.save(run.study)
    settings = Settings(
        dataset=data / recipe.data, out=path, method=recipe.method, labelled=recipe.labelled or None, device="cpu"
    )
    settings.versions = {"genseg": "0.1.0", "python": "3.11", "torch": "2.13.0"}
    settings.save(run.settings)
    write_json(run.plan, _plan(study, recipe))
    log = events.EventLog()
    log.open(run.events)
    log.emit(events.Started(version="0.1.0", run=str(path), method=recipe.method, device="cpu", time=1_760_000_000.0))
    log.emit(
        events.Warning_(
            code="few", message="Only a few labelled scans.", remedy="Label two more.", time=1_760_000_001.0
        )
    )
    _curves(log, rng, recipe.method)
    if recipe.pairs:
        _pairs(run, study, recipe.pairs, rng)
    scores = _predictions(run, study, rng)
    if scores:
        write_json(run.metrics, {"test": summarise(scores)})
    log.emit(events.Finished(status=0, seconds=252.0, model="model", time=1_760_000_252.0))
    log.close()
    run.done.touch()
    return run


def _plan(study: Study, recipe: Recipe) -> dict:
    scan = read_scan((study.training + study.test)[0].images)
    return {
        "dims": scan.dims, "slice_axis": None, "channels": len(scan.array), "classes": len(study.labels),
        "spacing": list(scan.spacing), "physical": recipe.physical, "patch": [32] * scan.dims, "batch": 2,
        "normalisation": [{"kind": "zscore"}] * len(scan.array), "filters": [16, 32, 64], "precision": "bf16",
        "memory_mb": 900, "notes": ["The working grid is the median spacing of the labelled scans."],
    }  # fmt: skip


def _curves(log: events.EventLog, rng: np.random.Generator, method: str) -> None:
    for step in range(0, 500, 5):
        t = step / 500
        values = {
            "loss/real": 1.4 * np.exp(-4 * t) + 0.15 + 0.05 * rng.standard_normal(),
            "learning_rate": 0.01 * (1 - t) ** 0.9,
        }
        if step % 50 == 0:
            values |= {"loss/validation": 1.2 * np.exp(-3 * t) + 0.3, "dice/validation": 0.85 - 0.7 * np.exp(-5 * t)}
        if method != "supervised":
            values |= {
                "loss/synthetic": 1.5 * np.exp(-3 * t) + 0.2 + 0.05 * rng.standard_normal(),
                "loss/generator": 3 - t + 0.2 * rng.standard_normal(),
                "loss/discriminator": 1 + 0.1 * rng.standard_normal(),
                "meta/synthetic_weight": 1 - 0.4 * t, "meta/synthetic_share": 0.5 + 0.1 * t,
                "meta/strength/rotation": 0.5 + 0.2 * t, "meta/strength/gamma": 0.5 - 0.1 * t,
                "meta/strength/noise": 0.5 - 0.3 * t, "meta/gradient_norm": 0.1 + 0.02 * rng.standard_normal(),
            }  # fmt: skip
        for name, value in values.items():
            log.emit(events.Metric(name=name, value=float(value), step=step, time=1_760_000_010.0 + step / 3))


def _pairs(run: RunFolder, study: Study, count: int, rng: np.random.Generator) -> None:
    entries = []
    for i in range(count):
        case = study.training[i % len(study.training)]
        scan = read_scan(case.images)
        labels, _ = read_label(case.label, study.labels)
        shift = rng.integers(-3, 4, labels.ndim)
        moved = ndimage.shift(scan.array, (0, *shift), order=1, mode="nearest")
        image = ndimage.gaussian_filter(moved, (0, *([1.0] * labels.ndim))) * rng.uniform(0.8, 1.1)
        suffix = "png" if not scan.geometry.physical else "nrrd"
        image_path = write_image(np.clip(image, 0, 255) if suffix == "png" else image, scan.geometry,
                                 run.synthetic / f"{i:04d}_image.{suffix}")  # fmt: skip
        mask_path = run.synthetic / f"{i:04d}_mask.{suffix}"
        write_label(ndimage.shift(labels, shift, order=0), scan.geometry, study.labels, mask_path)
        entries.append({
            "image": image_path.name, "mask": mask_path.name, "source": case.id,
            "parameters": {"shift": shift.tolist()},
            "agreement": 0.91 - 0.2 * i, "nearest": case.id, "similarity": 0.97 if i == 1 else 0.6, "near_copy": i == 1,
            "used": i not in (1, 3), "step": 100 * i,
        })  # fmt: skip
    write_json(run.synthetic_index, {"pairs": entries})


def _predictions(run: RunFolder, study: Study, rng: np.random.Generator) -> list[CaseScores]:
    entries, scores = [], []
    for i, (split, case) in enumerate([("test", c) for c in study.test] + [("unlabeled", c) for c in study.unlabeled]):
        scan = read_scan(case.images)
        # A scan without a label is given the outline of a neighbour's: wrong, as a first model's may be.
        source = case if case.label else study.test[0] if study.test else study.training[0]
        reference, _ = read_label(source.label, study.labels)
        if reference.shape != scan.array.shape[1:]:
            centred = np.zeros(scan.array.shape[1:], reference.dtype)
            part = tuple(slice(0, min(a, b)) for a, b in zip(reference.shape, centred.shape, strict=True))
            centred[part] = reference[part]
            reference = centred
        labels = ndimage.shift(reference, rng.integers(-1, 2, reference.ndim), order=0)
        labels = ndimage.grey_erosion(labels, 3) if i % 2 else labels
        name = f"{case.id}.{'seg.nrrd' if scan.geometry.physical else 'png'}"
        write_label(labels, scan.geometry, study.labels, run.predictions / name)
        ml = float(np.prod(scan.spacing)) / 1000
        volumes = {
            label.name: float((labels == k).sum()) * ml if scan.geometry.physical else None
            for k, label in enumerate(study.labels.structures, 1)
        }
        entries.append({
            "case": case.id, "path": name, "images": [str(p) for p in case.images], "split": split,
            "volumes_ml": volumes, "uncertainty": min(round(0.05 + 0.11 * i, 3), 0.95), "step": 500,
        })  # fmt: skip
        if split == "test":
            scores.append(_score(case, labels, study))
    write_json(run.predictions_index, {"cases": entries})
    return scores


def _score(case: Case, labels: np.ndarray, study: Study) -> CaseScores:
    reference, geometry = read_label(case.label, study.labels)
    spacing = read_scan(case.images).spacing
    tolerance = surface_tolerance(reference.shape, spacing, geometry.physical)
    return CaseScores(
        case.id, score_case(labels, reference, spacing, study.labels, tolerance), tolerance, geometry.physical
    )
