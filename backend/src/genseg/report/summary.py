"""The top of the page: what was trained, how good it is, what to look at first."""

from collections import Counter

from genseg import events
from genseg.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_STOPPED
from genseg.report import words
from genseg.report.cards import least_sure_first
from genseg.report.html import Html, named, number, tag
from genseg.report.reading import RunView
from genseg.wording import duration

METHODS = {
    "genseg+versemi": "a generator and a segmenter were trained together, also on unlabelled scans",
    "versemi": "a segmenter was trained on labelled scans and on scans without labels",
    "genseg": "a generator of synthetic scans and a segmenter were trained together",
    "separate": "a generator was trained first, then a segmenter on real and synthetic scans",
    "supervised": "a segmenter was trained on the labelled scans alone, without synthetic scans",
}
RESEARCH_ONLY = (
    "Research use only. This is not a medical device. Every outline must be checked by a qualified person before it "
    "is used, and none may be used for diagnosis or treatment."
)


def summary(run: RunView) -> Html:
    """Status, key figures, the story in sentences, what to look at first, warnings."""
    return tag(
        "section", status_of(run), _tiles(run), tag("p", " ".join(story(run)), class_="lead"), _dice_by_label(run),
        _look_first(run), warnings(run), tag("p", RESEARCH_ONLY, class_="notice"), id="summary",
    )  # fmt: skip


def status_of(run: RunView) -> Html:
    if run.folder.done.exists() or run.status == EXIT_OK:
        text, kind = "Finished", "good"
    elif run.status == EXIT_STOPPED:
        text, kind = "Stopped on request: the best model so far is kept and usable", "warn"
    elif run.status == EXIT_BAD_INPUT:
        text, kind = "Not trained: the input has faults", "bad"
    elif run.status is not None:
        text, kind = "Failed", "bad"
    else:
        text, kind = "Not finished: still running, or interrupted", "warn"
    return tag("p", tag("span", text, class_=f"chip {kind}"))


def _tiles(run: RunView) -> Html:
    tiles = []
    if run.study:
        tiles.append(("labelled scans learned from", str(len(run.study.training))))
    if run.seconds is not None:
        tiles.append(("time at work", duration(run.seconds)))
    found = run.judged
    if found:
        tiles.append((f"mean Dice on {len(found['cases'])} test scans", number(found["mean"].get("dice"))))
    tiles.append(("scans outlined", str(len(run.predictions))))
    if run.pairs:
        tiles.append(("synthetic pairs kept on disk", str(len(run.pairs))))
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in tiles), class_="tiles")


def story(run: RunView) -> list[str]:
    names = [label.name for label in run.table.structures]
    method = METHODS.get(str(run.settings.get("method")), "a segmenter was trained")
    said = []
    if run.study:
        said.append(
            f"To outline {words.listing(names)} in {run.study.name} scans, {method}, from "
            f"{words.count(len(run.study.training), 'labelled scan')}."
        )
    found = run.judged
    if found is None:
        said.append(
            "No scan with a reference outline was kept apart, so there is no figure for how good the outlines are."
        )
        return said
    value, n = found["mean"].get("dice"), len(found["cases"])
    seen = len(run.metrics.get("seen_unlabelled", []))
    unseen = " that it had never seen"
    if seen:
        unseen = f" whose references it had never seen ({seen} of them it had learned from without)"
    said.append(f"On {words.count(n, 'test scan')}{unseen}, its outlines were compared with references:")
    if isinstance(value, (int, float)):
        said.append(f"the mean Dice is {value:.2f}, {words.dice(value)}. (Dice: 1 is the same outline, 0 no overlap.)")
    return said


def _dice_by_label(run: RunView) -> Html | None:
    found = run.judged
    if found is None or len(run.table.structures) < 2:
        return None
    scores = {name: score.get("dice") for name, score in found.get("labels", {}).items()}
    known = [label for label in run.table.structures if label.name in scores]
    known = sorted(known, key=lambda label: (scores[label.name] is None, scores[label.name] or 0))[:6]
    items = [tag("li", named(s, f": Dice {number(scores[s.name])}")) for s in known]
    least = "" if len(scores) <= 6 else tag("p", f"The 6 of {len(scores)} structures with the lowest Dice:")
    return tag("div", least or None, tag("ul", *items, class_="legend"))


def _look_first(run: RunView) -> Html | None:
    items: list[object] = []
    ordered = least_sure_first(run.predictions)
    if ordered:
        least = [tag("a", entry["case"], href=f"#prediction-{i + 1}") for i, entry in enumerate(ordered[:3])]
        linked = [part for link in least for part in (link, ", ")][:-1]
        items.append(tag("li", "The scans in which the model is least sure: ", *linked, "."))
    empty = [e["case"] for e in ordered if e.get("volumes_ml") and not any(e["volumes_ml"].values())
             and all(v is not None for v in e["volumes_ml"].values())]  # fmt: skip
    if empty:
        items.append(tag("li", f"Nothing was outlined in {words.listing(empty)}."))
    poor = _poor(run)
    if poor:
        items.append(tag("li", f"Little overlap with the reference (Dice below 0.5): {words.listing(poor)}."))
    copies = sum(bool(pair.get("near_copy")) for pair in run.pairs)
    if copies:
        noun = words.count(copies, "synthetic image")
        items.append(
            tag("li", f"{noun} nearly {'copies' if copies == 1 else 'copy'} a patient's scan: treat as patient data.")
        )
    return tag("div", tag("h2", "Look at this first"), tag("ul", *items)) if items else None


def _poor(run: RunView) -> list[str]:
    """Test cases and labels with Dice below 0.5, worst first."""
    rows = [
        (score["dice"], f"{case} ({name})" if len(run.table.structures) > 1 else case)
        for case, labels in run.scores.items()
        for name, score in labels.items()
        if isinstance(score.get("dice"), (int, float)) and score["dice"] < 0.5
    ]
    return [text for _, text in sorted(rows)]


def warnings(run: RunView) -> Html | None:
    """Errors and warnings of the run, each once."""
    met = Counter(
        (e.event, e.message, e.remedy, getattr(e, "case", None))
        for e in run.log
        if isinstance(e, (events.Warning_, events.Error))
    )
    items = [
        tag("li", tag("strong", "Error: ") if kind == "error" else None, f"{case}: " if case else None,
            f"{message} {remedy}", f" ({n} times)" if n > 1 else None)
        for (kind, message, remedy, case), n in met.items()
    ]  # fmt: skip
    items += [tag("li", f"Could not be read for this page: {what}.") for what in run.unreadable]
    return tag("div", tag("h2", "What the run warned of"), tag("ul", *items)) if items else None
