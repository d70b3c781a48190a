"""The sections below the summary: synthetic pairs, predictions, metrics, curves, settings."""

import json
from typing import Any

from genseg.report import words
from genseg.report.cards import least_sure_first, pair_card, prediction_card, telling_pairs
from genseg.report.curves import Panel, chart, sparkline
from genseg.report.html import Html, millilitres, named, number, table, tag
from genseg.report.reading import Points, RunView
from genseg.settings import GENERATING

MANY = 16  # longer lists of structures are folded
MOST_ROWS = 1500  # of the table per case and label; everything stands in metrics.json
STRENGTH = "meta/strength/"
KERNEL = "meta/kernel/"
KNOWN_CURVES = {
    "loss/real": "on real scans", "loss/synthetic": "on synthetic scans", "loss/validation": "on held-back scans",
    "loss/generator": "generator", "loss/discriminator": "discriminator", "dice/validation": "mean Dice",
    "meta/synthetic_weight": "weight", "meta/synthetic_share": "share", "loss/mixed": "on mixed scans",
    "meta/consistency": "weight", "mix/sure": "share",
}  # fmt: skip
SETTINGS = {
    "dataset": "study", "studies": "studies of the run", "learn_unlabelled": "learns from scans without labels",
    "without": "parts left out", "out": "run folder", "method": "method", "labelled": "labelled scans asked for",
    "unlabelled": "unlabelled scans asked for", "seed": "seed of everything random", "budget": "time budget, seconds",
    "iterations": "training steps asked for", "device": "device asked for", "init": "started from",
    "synthetic_weight": "fixed weight of synthetic scans", "generator": "generator", "segmenter": "segmenter",
}  # fmt: skip
PLAN = {
    "dims": "dimensions of the network", "slice_axis": "axis cut into slices", "channels": "channels of a scan",
    "classes": "classes, with the background", "spacing": "working grid, mm (slices, rows, columns)",
    "patch": "patch, voxels", "batch": "scans at once", "normalisation": "intensities", "filters": "filters by level",
    "kernels": "kernels by level", "strides": "strides by level", "deep_supervision": "deep supervision",
    "mirror_axes": "axes that may be mirrored",
    "prompts": "prompts of the network",
    "precision": "number format", "memory_mb": "memory estimate, MB", "physical": "scans have a size in mm",
    "reference_long_side": "long side taken as reference, pixels",
}  # fmt: skip


def legend(run: RunView, reference: bool) -> Html:
    """Names and colours of the labels, and the line of the reference."""
    items = [tag("li", named(label)) for label in run.table.structures]
    entries = tag("ul", *items, class_="legend")
    if len(items) > MANY:
        entries = tag("details", tag("summary", f"Colours of the {len(items)} structures"), entries)
    line = tag("span", class_="dashed", aria_hidden="true")
    dashed = tag("ul", tag("li", line, "reference (white, dashed)"), class_="legend") if reference else None
    return tag("div", entries, dashed, tag("p", "Point at a picture to hide its outlines.", class_="note screen"))


def pairs_section(run: RunView, limit: int) -> Html | None:
    if not run.pairs:
        return None
    chosen = telling_pairs(run.pairs, limit)
    hidden = len(run.pairs) - len(chosen)
    explained = (
        "Each pair was made by the generator: a mask of a labelled scan was deformed, in volumes towards the shape of "
        "other scans, in photographs with a second scan's structures put in (the generator “joint” makes a new one of "
        "it), and an image was drawn to fit it. On the right, the real training scan that the image resembles most. "
        "Agreement is the Dice between the mask and what the segmenter sees in the synthetic image; a pair on which it "
        "agrees less than half as well as on real training scans is left out of training. "
        "Likeness is the correlation with the nearest training scan; near 1 the image repeats a patient."
    )
    shown = f" {words.count(len(chosen), 'pair')} shown"
    shown += f", {hidden} more in the folder synthetic." if hidden else "."
    cards = tag("div", *(pair_card(run, pair, i) for i, pair in enumerate(chosen)), class_="cards")
    heading = tag("h2", "Synthetic scans beside real ones")
    return tag("section", heading, tag("p", explained, shown), legend(run, False), cards, id="pairs")


def predictions_section(run: RunView, limit: int) -> Html | None:
    if not run.predictions:
        return None
    ordered = least_sure_first(run.predictions)
    total, hidden = len(ordered), max(len(ordered) - limit, 0)
    referenced = any((case := run.cases.get(e["case"])) is not None and case.label is not None for e in ordered)
    text = "The scans in which the model is least sure come first. "
    if run.physical:
        text += (
            "Slices lie where the structures are largest, in radiological orientation: the patient's right (R) is on "
            "the left of the picture. Volumes are in millilitres. "
        )
    else:
        text += "The images have no physical size, so areas are given as a share of the image. "
    text += f"{total - hidden} of {words.count(total, 'scan')} shown"
    text += "; all are in the table below and in the folder predictions." if hidden else "."
    cards = tag("div", *(prediction_card(run, e, i, total) for i, e in enumerate(ordered[:limit])), class_="cards wide")
    everything = _all_predictions(run, ordered) if total > 1 else None
    heading = tag("h2", "Outlines made by the model")
    return tag("section", heading, tag("p", text), legend(run, referenced), cards, everything, id="predictions")


def _all_predictions(run: RunView, ordered: list[dict[str, Any]]) -> Html:
    names = [label.name for label in run.table.structures]
    shown = names if run.physical and len(names) <= 8 else []
    head = ["scan", "uncertainty (0 sure, 1 unsure)", *(f"{name}, ml" for name in shown)]
    rows = [
        [e["case"], number(e.get("uncertainty")), *(millilitres((e.get("volumes_ml") or {}).get(n)) for n in shown)]
        for e in ordered
    ]
    return tag("details", tag("summary", f"All {len(rows)} scans"), table(head, rows))


def metrics_section(run: RunView) -> Html | None:
    evaluation = run.judged
    if evaluation is None:
        return None
    unit = "mm" if run.physical else "pixels"
    text = (
        "Dice and IoU measure overlap (1 is perfect). HD95 is the distance below which 95 % of the border lies "
        f"(in {unit}, 0 is perfect). NSD is the share of the border within tolerance (1 is perfect). – means that the "
        "structure is in neither outline, or that a distance cannot be measured."
    )
    heading = tag("h2", "How close the outlines are to the reference")
    return tag("section", heading, tag("p", text), _evaluation(run, evaluation), id="metrics")


def _evaluation(run: RunView, evaluation: dict[str, Any]) -> Html:
    head = ["Dice", "IoU", f"HD95, {'mm' if run.physical else 'pixels'}", "NSD"]
    known = {label.name: label for label in run.table.structures}

    def label(name: str) -> Html:
        return named(known[name]) if name in known else tag("span", name)

    means = [[label(name), *_scores(scores)] for name, scores in evaluation.get("labels", {}).items()]
    means.append([tag("strong", "mean of all structures"), *_scores(evaluation.get("mean", {}))])
    rows = [
        [case["case"], label(name), *_scores(scores)]
        for case in evaluation["cases"]
        for name, scores in case["labels"].items()
    ]
    n = len(evaluation["cases"])
    note = f"The first {MOST_ROWS} of {len(rows)} rows; all are in metrics.json." if len(rows) > MOST_ROWS else None
    details = tag(
        "details", tag("summary", f"Each scan ({n})"), tag("p", note) if note else None,
        table(["scan", "structure", *head], rows[:MOST_ROWS], numeric=2),
        open="open" if len(rows) <= 40 else None,
    )  # fmt: skip
    heading = tag("h3", f"Test scans: mean of {words.count(n, 'scan')}")
    overview = table(["structure", *head], means)
    if len(means) > MANY:
        folded = tag("details", tag("summary", f"Each structure ({len(means) - 1})"), overview)
        overview = tag("div", table(["structure", *head], means[-1:]), folded)
    return tag("div", heading, overview, details)


def _scores(scores: dict[str, Any]) -> list[str]:
    return [number(scores.get(key), 1 if key == "hd95_mm" else 3) for key in ("dice", "iou", "hd95_mm", "nsd")]


def curves_section(run: RunView) -> Html | None:
    curves = run.curves
    panels = [panel for panel in _panels(curves) if panel.lines]
    strengths = {n.removeprefix(STRENGTH): p for n, p in curves.items() if n.startswith(STRENGTH)}
    kernels = {n.removeprefix(KERNEL): p for n, p in curves.items() if n.startswith(KERNEL)}
    rest = {n: p for n, p in curves.items() if n not in KNOWN_CURVES and not n.startswith((STRENGTH, KERNEL))}
    if not (panels or strengths or rest):
        return None
    further = [
        Panel(name.replace("_", " "), "value", {name: points}, "For engineers.") for name, points in rest.items()
    ]
    return tag(
        "section", tag("h2", "How the training went"),
        tag("div", *(chart(panel) for panel in panels), class_="charts"),
        _strengths(strengths) if strengths else None,
        _architecture(kernels) if kernels else None,
        tag("details", tag("summary", "Further curves"), tag("div", *map(chart, further), class_="charts"))
        if rest else None,
        id="curves",
    )  # fmt: skip


def _panels(curves: dict[str, Points]) -> list[Panel]:
    def pick(*names: str) -> dict[str, Points]:
        return {KNOWN_CURVES[name]: curves[name] for name in names if curves.get(name)}

    return [
        Panel("Error of the segmenter", "loss", pick("loss/real", "loss/synthetic", "loss/mixed", "loss/validation"),
              "Should fall and then level off. If it falls on real scans but rises on held-back scans, the model "
              "learns by heart: more labelled scans would help."),
        Panel("Overlap on scans held back for a while", "Dice", pick("dice/validation"),
              "On labelled scans that were left out for up to the last 32 steps but trained on before; with a single "
              "labelled scan, on changed copies of it. So it flatters: only test scans tell how good the model is. "
              "Where it is still rising at the end, a longer run would pay.", (0.0, 1.0)),
        Panel("Generator against discriminator", "loss", pick("loss/generator", "loss/discriminator"),
              "The two work against each other: neither should run to zero or grow without end."),
        Panel("Trust in synthetic scans", "weight", pick("meta/synthetic_weight"),
              "Learned: how much an error on a synthetic scan counts against one on a real scan (1 is the same)."),
        Panel("Share of steps with synthetic scans", "share of steps", pick("meta/synthetic_share"),
              "Learned: how many of the steps give half of their scans to synthetic ones.", (0.0, 1.0)),
        Panel("What the model is sure of in scans without labels", "share of voxels", pick("mix/sure"),
              "Only there its own answer teaches it. It says nothing about whether the answer is right.", (0.0, 1.0)),
        Panel("Trust in scans without labels", "weight", pick("meta/consistency"),
              "Learned: how much disagreeing with itself there counts against an error on a labelled scan."),
    ]  # fmt: skip


def _strengths(strengths: dict[str, Points]) -> Html:
    values = [value for points in strengths.values() for _, value in points]
    bounds = (min(0.0, *values, 0.0), max(values))
    rows = [
        [
            "shape of other scans" if name == "shape" else name.replace("_", " "),
            number(points[0][1]),
            number(points[-1][1]),
            sparkline(points, bounds, name),
        ]
        for name, points in sorted(strengths.items())
    ]
    text = "Learned: how strongly each kind of change is applied to the synthetic scans. All lines share one scale."
    return tag("div", tag("h3", "Strength of the augmentation"), tag("p", text),
               table(["change", "start", "end", "course"], rows))  # fmt: skip


def _architecture(kernels: dict[str, Points]) -> Html:
    """`kernels`: {size/layer: share of the layer's mixture}."""
    sizes = sorted({int(name.split("/")[0]) for name in kernels})
    layers = list(dict.fromkeys(name.split("/", 1)[1] for name in kernels))
    rows = [
        [layer, *(number(kernels.get(f"{size}/{layer}", [(0, None)])[-1][1]) for size in sizes)] for layer in layers
    ]
    text = (
        "Learned: how the generator's layers share their work between kernels of several sizes. Wide kernels look "
        "farther around. All begin with equal shares."
    )
    return tag("details", tag("summary", "Architecture of the generator"), tag("p", text),
               table(["layer", *(f"kernel {size}" for size in sizes)], rows))  # fmt: skip


def settings_section(run: RunView) -> Html:
    tables, settings = [], dict(run.settings)
    if settings.get("method") not in GENERATING:
        settings.pop("generator", None)
    if more := settings.pop("more", None):
        settings = {"studies": [settings.pop("dataset"), *more], **settings}
    for title, content, known in (
        ("Settings", settings, SETTINGS),
        ("Plan, derived from the scans", run.plan, PLAN),
    ):
        rows = [[known.get(key, key.replace("_", " ")), _value(value)] for key, value in content.items()
                if key not in ("versions", "notes") and value is not None]  # fmt: skip
        if rows:
            tables.append(tag("div", tag("h3", title), table(["what", "value"], rows, numeric=9)))
    notes = run.plan.get("notes") or []
    versions = run.settings.get("versions") or {}
    cited = run.study.reference if run.study else ""
    return tag(
        "section", tag("h2", "Settings, plan and versions"), tag("div", *tables, class_="columns"),
        tag("ul", *(tag("li", note) for note in notes)) if notes else None,
        tag("p", "Versions: ", ", ".join(f"{k} {v}" for k, v in versions.items()), ".") if versions else None,
        tag("p", "Scans: ", cited) if cited else None,
        id="settings",
    )  # fmt: skip


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if value == []:
        return "none"
    if isinstance(value, list) and all(isinstance(v, (int, float)) for v in value):
        return " × ".join(f"{v:.4g}" for v in value)
    if isinstance(value, list) and all(isinstance(v, list) for v in value):
        return ", ".join(_value(v) for v in value)
    if isinstance(value, list) and all(isinstance(v, dict) for v in value):
        return "; ".join(_intensities(channel) for channel in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _intensities(channel: dict[str, Any]) -> str:
    if channel.get("kind") == "ct":
        return f"CT window {channel['low']:.0f} to {channel['high']:.0f} HU"
    return "each scan's own mean and spread (z-score)"
