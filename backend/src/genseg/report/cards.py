"""The pictures with their words: one card for each synthetic pair and for each predicted scan."""

from pathlib import Path
from typing import Any

import numpy as np

from genseg.imagefile import UnusableImage
from genseg.imageio import Geometry, read_label, read_scan
from genseg.report import words
from genseg.report.html import Html, millilitres, named, number, table, tag
from genseg.report.pictures import figure, make_views
from genseg.report.reading import RunView

LABELS_SHOWN = 8  # rows of a card's table that are open at once
SPLITS = {
    "test": "test scan: never used for training",
    "unlabeled": "scan without labels",
    "given": "scan given for prediction",
}


def least_sure_first(predictions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorted by falling uncertainty; those without one last."""
    return sorted(predictions, key=lambda entry: (entry.get("uncertainty") is None, -(entry.get("uncertainty") or 0)))


def telling_pairs(pairs: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """The latest pairs, with up to a third of the places for flagged ones, so that they are never out of sight."""
    latest = sorted(pairs, key=lambda pair: -pair.get("step", 0))
    flagged = [pair for pair in latest if pair.get("near_copy") or not pair.get("used", True)][: max(limit // 3, 1)]
    return (flagged + [pair for pair in latest if not any(pair is other for other in flagged)])[:limit]


def window(run: RunView) -> tuple[float, float] | None:
    """The grey window of CT from the plan (None elsewhere: each scan's own range)."""
    normalisation = run.plan.get("normalisation") or [{}]
    first = normalisation[0]
    return (first["low"], first["high"]) if first.get("kind") == "ct" else None


def prediction_card(run: RunView, entry: dict[str, Any], rank: int, total: int) -> Html:
    """One predicted scan: slices with outlines, how sure the model is, volumes, Dice where a reference exists."""
    case, said = entry["case"], words.uncertainty(entry.get("uncertainty"))
    chips = [tag("span", f"{said[0]} ({number(entry.get('uncertainty'))})", class_=f"chip {said[1]}")]
    if total > 1 and rank in (0, total - 1):
        chips.append(tag("span", f"{'least' if rank == 0 else 'most'} sure of {total}", class_="chip plain"))
    try:
        scan = read_scan([Path(path) for path in entry["images"]])
        labels, _ = read_label(run.folder.predictions / entry["path"], run.table)
        reference = _reference(run, case)
        pictures, body = _pictures(run, f"Scan {case}", scan, labels, reference), []
        if not labels.any():
            chips.append(tag("span", "nothing was outlined in this scan", class_="chip warn"))
        body.append(_measures(run, entry, labels, reference, scan.geometry))
    except (OSError, RuntimeError, UnusableImage, ValueError) as error:
        pictures, body = _no_picture(error), []
    split = SPLITS.get(entry.get("split", ""), entry.get("split", ""))
    about = tag("p", split, tag("br"), tag("span", entry.get("path", ""), class_="path"), class_="about")
    side = tag("div", tag("h3", case), tag("p", *chips), *body, about, class_="side")
    return tag("article", side, pictures, class_="card prediction", id=f"prediction-{rank + 1}")


def _reference(run: RunView, case: str) -> np.ndarray | None:
    known = run.cases.get(case)
    return read_label(known.label, run.table)[0] if known is not None and known.label is not None else None


def _pictures(run: RunView, what: str, scan: Any, labels: np.ndarray, reference: np.ndarray | None = None) -> Html:
    if labels.shape != scan.array.shape[1:] or (reference is not None and reference.shape != labels.shape):
        raise ValueError(f"the image has {scan.array.shape[1:]} voxels, the label map {labels.shape}")
    views = make_views(scan, labels, reference, window(run))
    widths = " ".join(f"{view.image.shape[1] * view.pixel[1]:.1f}fr" for view in views)  # one scale for all planes
    pictures = (figure(view, run.table, what) for view in views)
    return tag("div", *pictures, class_=f"pictures n{len(views)}", style=f"--widths:{widths}")


def _measures(
    run: RunView, entry: dict[str, Any], labels: np.ndarray, reference: np.ndarray | None, geometry: Geometry
) -> Html:
    """Table of one scan: structure, volume (photos: share of the image), the reference's, Dice; present ones only."""
    scores = run.scores.get(entry["case"], {})
    solid = geometry.physical and len(geometry.spacing) == 3
    head: list[object] = ["structure", "ml" if solid else "of image"]
    head += [] if reference is None else ["reference ml" if solid else "reference"]
    head += ["Dice"] if scores else []
    maps = [labels] if reference is None else [labels, reference]
    counts = [np.bincount(volume.ravel(), minlength=len(run.table)) for volume in maps]
    voxel_ml = float(np.prod(geometry.spacing)) / 1000
    rows = []
    for i, label in enumerate(run.table.structures, 1):
        if not any(count[i] for count in counts):
            continue
        sizes = [millilitres(n[i] * voxel_ml) if solid else f"{100 * n[i] / labels.size:.1f} %" for n in counts]
        dice = [number(scores.get(label.name, {}).get("dice"))] if scores else []
        rows.append([named(label), *sizes, *dice])
    if len(rows) <= LABELS_SHOWN:
        return table(head, rows)
    return tag("details", tag("summary", f"{len(rows)} structures in this scan"), table(head, rows))


def _no_picture(error: Exception) -> Html:
    return tag("p", f"No picture: the files cannot be read any more ({error}).", class_="note")


def pair_card(run: RunView, pair: dict[str, Any], index: int) -> Html:
    """A synthetic image with its mask beside the real training scan that it resembles most."""
    near_copy, excluded = bool(pair.get("near_copy")), (pair.get("source"), pair.get("style")) in run.excluded
    used = bool(pair.get("used", True)) and not excluded
    agreement, similarity = pair.get("agreement"), pair.get("similarity")
    chips = []
    if near_copy:
        chips.append(tag("span", "nearly copies a patient's scan: do not share it", class_="chip bad"))
    if not used:
        why = ": you excluded them" if excluded else "" if near_copy else ": image and mask do not match well enough"
        chips.append(tag("span", f"pairs like this are left out of training{why}", class_="chip warn"))
    if used and not near_copy:
        chips.append(tag("span", "pairs like this are used in training", class_="chip plain"))
    nearest = str(pair.get("nearest", ""))
    halves = [
        _half(run, "Synthetic", f"Synthetic pair {index + 1}", [run.folder.synthetic / pair["image"]],
              run.folder.synthetic / pair["mask"]),
        _nearest(run, nearest),
    ]  # fmt: skip
    said = [tag("dt", "Real scan"), tag("dd", nearest)]
    if agreement is not None:
        said += [tag("dt", "Agreement"), tag("dd", f"{number(agreement)} of 1, {words.agreement(agreement)}.")]
    if similarity is not None:
        likeness = f"{number(similarity)} of 1, {words.similarity(similarity, near_copy)}."
        said += [tag("dt", "Likeness"), tag("dd", likeness)]
    if pair.get("source"):
        said += [tag("dt", "Mask"), tag("dd", f"a deformed mask of {pair['source']}")]
    title = tag("h3", f"Pair {index + 1}", tag("small", f" step {pair.get('step', '–')}"))
    return tag(
        "article", title, tag("p", *chips), tag("div", *halves, class_="halves"), tag("dl", *said), class_="card"
    )


def _nearest(run: RunView, case: str) -> Html:
    known = run.cases.get(case)
    if known is None or known.label is None:
        return tag("div", tag("p", f"The training scan {case} is not in the study any more.", class_="note"))
    return _half(run, "Nearest real scan", f"Training scan {case}", list(known.images), known.label)


def _half(run: RunView, title: str, what: str, images: list[Path], mask: Path) -> Html:
    """One half of a pair: its axial slice (or the photo)."""
    try:
        scan = read_scan(images)
        labels, _ = read_label(mask, run.table)
        if labels.shape != scan.array.shape[1:]:
            raise ValueError(f"the image has {scan.array.shape[1:]} voxels, the mask {labels.shape}")
        view = make_views(scan, labels, None, window(run) if title != "Synthetic" else None, planes=1)[0]
        body = figure(view, run.table, what)
    except (OSError, RuntimeError, UnusableImage, ValueError) as error:
        body = _no_picture(error)
    return tag("div", tag("h4", title), body)
