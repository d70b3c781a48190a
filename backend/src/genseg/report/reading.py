"""What a run folder holds, read with patience: a stopped or young run lacks some parts, and the page still stands."""

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from genseg import events
from genseg.cases import Case, Study
from genseg.labels import LabelTable
from genseg.runfolder import RunFolder, read_json

Points = list[tuple[int, float]]


@dataclass
class RunView:
    """The parts of a run folder; a part that is absent is empty or None, one that cannot be read is in `unreadable`."""

    folder: RunFolder
    settings: dict[str, Any] = field(default_factory=dict)
    plan: dict[str, Any] = field(default_factory=dict)
    study: Study | None = None
    log: list[events.Event] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    excluded: set[tuple[str, str]] = field(default_factory=set)  # kinds of pairs: (scan of the mask, of the look)
    unreadable: list[str] = field(default_factory=list)
    ending: int | None = None  # exit status of a run that ends now and could not yet say so in its events

    @property
    def table(self) -> LabelTable:
        return self.study.labels if self.study else LabelTable.from_names({0: "background"})

    @property
    def physical(self) -> bool:
        """Whether the scans have a size in mm."""
        return bool(self.plan.get("physical", True))

    @cached_property
    def cases(self) -> dict[str, Case]:
        """Every case of the study by id; a labelled entry wins over the same scan among the unlabelled."""
        study = self.study
        return {case.id: case for case in (*study.unlabeled, *study.test, *study.training)} if study else {}

    @cached_property
    def curves(self) -> dict[str, Points]:
        """Metric name → its points in order of steps; after a resume the later value of a step counts."""
        found: dict[str, dict[int, float]] = {}
        for event in self.log:
            if isinstance(event, events.Metric) and math.isfinite(event.value):
                found.setdefault(event.name, {})[event.step] = event.value
        return {name: sorted(points.items()) for name, points in found.items()}

    @cached_property
    def sessions(self) -> list[list[events.Event]]:
        """The events of each time the run was started or resumed."""
        sessions: list[list[events.Event]] = []
        for event in self.log:
            if isinstance(event, events.Started) or not sessions:
                sessions.append([])
            sessions[-1].append(event)
        return sessions

    @property
    def seconds(self) -> float | None:
        """Time at work so far, all sessions together."""
        return sum(s[-1].time - s[0].time for s in self.sessions) if self.log else None

    @property
    def status(self) -> int | None:
        """Exit status of the last session; None where it has not ended or was killed."""
        if self.ending is not None:
            return self.ending
        last = self.sessions[-1][-1] if self.sessions else None
        return last.status if isinstance(last, events.Finished) else None

    @property
    def judged(self) -> dict[str, Any] | None:
        """The evaluation of the test scans; None where none has a reference."""
        evaluation = self.metrics.get("test", {})
        return evaluation if evaluation.get("cases") else None

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Case id → {label name: metrics}, of the test cases."""
        return {entry["case"]: entry["labels"] for entry in self.metrics.get("test", {}).get("cases", [])}


def read_run(folder: RunFolder) -> RunView:
    """Read everything the report needs except the pictures."""
    view = RunView(folder)
    view.settings = _json(view, folder.settings, {})
    view.plan = _json(view, folder.plan, {})
    view.pairs = _json(view, folder.synthetic_index, {}).get("pairs", [])
    wishes = _json(view, folder.exclusions, [])
    view.excluded = {(source, style) for source, style in wishes[-1]["pairs"]} if wishes else set()
    view.predictions = _json(view, folder.predictions_index, {}).get("cases", [])
    view.metrics = _json(view, folder.metrics, {})
    if folder.study.exists():
        try:
            view.study = Study.load(folder.study)
        except ValueError:
            view.unreadable.append(folder.study.name)
    if folder.events.exists():
        view.log = _events(view, folder.events)
    return view


def _json(view: RunView, path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return read_json(path)
    except ValueError:
        view.unreadable.append(path.relative_to(view.folder.path).as_posix())
        return default


def _events(view: RunView, path: Path) -> list[events.Event]:
    """The events of a run; a line that a killed process left unfinished is counted, not read."""
    found, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found.append(events.parse_event(line))
        except ValidationError:
            bad += 1
    if bad:
        view.unreadable.append(f"{bad} line{'s' * (bad > 1)} of {path.name}")
    return found
