"""What a run has told so far: its event lines, reduced to what the window shows."""

import json
import math
from collections import Counter, deque
from pathlib import Path

from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.Translate import _

LOG_LINES = 2000  # kept
LOG_WIDTH = 2000  # characters of a line kept
MOST_ALIKE = 5  # warnings of one kind that are told outside the log

# What a line of the contract (docs/events.schema.json) must hold to be taken for an event.
_NUMBER = (int, float)
_FIELDS = {
    "started": {"run": str, "method": str, "device": str},
    "plan": {"plan": dict},
    "progress": {"phase": str, "step": int, "total": int},
    "metric": {"name": str, "value": _NUMBER, "step": int},
    "synthetic": {"path": str, "mask": str, "step": int, "agreement": _NUMBER, "near_copy": bool},
    "prediction": {"case": str, "path": str, "volumes_ml": dict, "uncertainty": _NUMBER},
    "warning": {"code": str, "message": str},
    "error": {"code": str, "message": str},
    "finished": {"status": int, "seconds": _NUMBER},
}
# Where each phase begins and ends on the bar, 0..1. Phases that a method leaves out are skipped over.
_PARTS = {
    "prepare": (0.0, 0.02),
    "shapes": (0.02, 0.05),
    "pretrain": (0.05, 0.12),
    "train": (0.12, 0.92),
    "predict": (0.92, 0.98),
    "report": (0.98, 1.0),
}
_LAST_PREDICTIONS = 0.95  # of the training: predictions before that are only a first look


class RunProgress:
    """Feed it every line of standard output; read its attributes. It touches no file and no clock.

    started: content of the first event, {} before; plan: content of plan.json, {} before.
    phase: key of the phase, "" before the first. fraction: 0..1 of the whole run, never going back within one start.
    secondsLeft: of the training, or None where unknown.
    curves: {name: [(step, value), …]}, steps ascending, values finite; where a step is told again the newer counts.
    predictions: {case: event}, the newest of each. synthetic: list of events, one for each image file, in order of
    first appearance. warnings, errors: events. finished: exit status told by the run, None before.
    seconds: of training, told at the end. model: path of the usable model, or None.
    log: the newest lines for a person to read; whatever is no event is kept in it as it came.
    """

    def __init__(self):
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.predictions: dict[str, dict] = {}
        self._pairs: dict[str, dict] = {}
        self.plan: dict = {}
        self._trained = 0.0  # share of the training; what an earlier part has reached counts until it goes on
        self._begin({})

    @classmethod
    def fromFile(cls, path: Path) -> "RunProgress":
        """Rebuild from events.jsonl; a last line without an end is left out, a missing file gives an empty one."""
        progress = cls()
        try:
            content = Path(path).read_bytes()
        except OSError:
            return progress
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            progress.feed(line.decode("utf-8", "backslashreplace"))
        return progress

    def feed(self, line: str) -> dict | None:
        """Take one line of standard output. → the event, or None where the line is none (then it is in the log)."""
        event = _parsed(line)
        if event is None:
            self.say(line)
            return None
        self._take(event)
        for sentence in _sentences(event):
            self.say(sentence)
        return event

    def reopen(self) -> None:
        """The run is about to go on: what it had found stays, how it ended is forgotten."""
        self._begin({})

    def say(self, text: str) -> None:
        """Add a line to the log; empty ones are left out, long ones cut."""
        text = text.rstrip()
        if text:
            self.log.append(text if len(text) <= LOG_WIDTH else text[:LOG_WIDTH] + " …")

    @property
    def synthetic(self) -> list[dict]:
        return list(self._pairs.values())

    @property
    def phaseText(self) -> str:
        """The phase in words; empty before the first."""
        return {
            "prepare": _("Reading the scans"),
            "shapes": _("Learning the shapes of other scans"),
            "pretrain": _("Training the generator"),
            "train": _("Training"),
            "predict": _("Segmenting the scans"),
            "report": _("Writing the results"),
        }.get(self.phase, self.phase)

    @property
    def timeLeftText(self) -> str:
        """'about 4 minutes left', empty where unknown."""
        if self.secondsLeft is None or self.finished is not None:
            return ""
        if self.secondsLeft < 45:
            return _("less than a minute left")
        return _("about {time} left").format(time=durationText(self.secondsLeft))

    def faults(self) -> list[Fault]:
        """The errors as faults, in order; a run that only failed gives one for "the run"."""
        return [_fault(event, _("The run")) for event in self.errors]

    def warningFaults(self) -> list[Fault]:
        """The warnings in the same form."""
        return [_fault(event, _("Note")) for event in self.warnings]

    def warningTexts(self) -> list[str]:
        """The warnings as sentences, in order; of one kind the first MOST_ALIKE, and how many more the log holds."""
        alike, texts = Counter(), []
        for event, fault in zip(self.warnings, self.warningFaults(), strict=True):
            alike[event["code"]] += 1
            if alike[event["code"]] <= MOST_ALIKE:
                texts.append(f"{fault.rule} {fault.remedy}".strip())
        more = sum(max(0, count - MOST_ALIKE) for count in alike.values())
        return [*texts, _("The log holds {count} more notes like these.").format(count=more)] if more else texts

    def _begin(self, event: dict) -> None:
        """A run starts, or goes on: what was true of an earlier part no longer counts, its curves and results do."""
        self.started = event
        self.phase, self.fraction, self.secondsLeft = "", 0.0, None
        self.warnings: list[dict] = []
        self.errors: list[dict] = []
        self.finished: int | None = None
        self.seconds: float | None = None
        self.model: str | None = None

    def _take(self, event: dict) -> None:
        kind = event["event"]
        if kind == "started":
            early = self.warnings if not self.started else []  # told before the run folder was there
            self._begin(event)
            self.warnings = early
        elif kind == "plan":
            self.plan = event["plan"]
        elif kind == "progress":
            self._takeProgress(event)
        elif kind == "metric":
            self._takeMetric(event)
        elif kind == "synthetic":
            self._pairs[event["path"]] = event
        elif kind == "prediction":
            self.predictions[event["case"]] = event
        elif kind in ("warning", "error"):
            getattr(self, kind + "s").append(event)
        else:
            self.finished, self.seconds, self.model = event["status"], event["seconds"], event.get("model")
            self.fraction = 1.0 if self.finished == 0 else self.fraction
            self.secondsLeft = None

    def _takeProgress(self, event: dict) -> None:
        share = min(1.0, max(0.0, event["step"] / event["total"])) if event["total"] > 0 else 0.0
        if share == 1.0 and (event.get("seconds_left") or 0.0) > 1.0:
            share = 0.0  # the first steps of a training cannot tell how many there will be
        self.phase = event["phase"]
        if self.phase == "train":
            self._trained = share
        elif self.phase == "predict" and self.started and self._trained < _LAST_PREDICTIONS:
            return  # a first look in the middle of the training
        begin, end = _PARTS.get(self.phase, (0.0, 0.0))
        if self.phase == "predict" and not self.started:
            begin, end = 0.0, 1.0  # a command that does nothing else
        self.fraction = max(self.fraction, begin + share * (end - begin))
        self.secondsLeft = event.get("seconds_left")

    def _takeMetric(self, event: dict) -> None:
        if not math.isfinite(event["value"]):
            return
        curve = self.curves.setdefault(event["name"], [])
        while curve and curve[-1][0] >= event["step"]:
            curve.pop()
        curve.append((event["step"], float(event["value"])))


def durationText(seconds: float) -> str:
    """'45 seconds', '4 minutes', '1 hour 20 minutes'."""
    if seconds < 90:
        number = max(1, round(seconds))
        return _("1 second") if number == 1 else _("{number} seconds").format(number=number)
    minutes = round(seconds / 60)
    if minutes < 90:
        return _("{number} minutes").format(number=minutes)
    hours, minutes = divmod(minutes, 60)
    parts = [_("1 hour") if hours == 1 else _("{number} hours").format(number=hours)]
    if minutes:
        parts.append(_("1 minute") if minutes == 1 else _("{number} minutes").format(number=minutes))
    return " ".join(parts)


def _parsed(line: str) -> dict | None:
    """The event of a line; None where it is no JSON, of an unknown kind, or lacks what the contract promises."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str) or event["event"] not in _FIELDS:
        return None
    for name, kind in _FIELDS[event["event"]].items():
        value = event.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            return None
    return event


def _fault(event: dict, unnamed: str) -> Fault:
    return Fault(event.get("case") or unnamed, event["message"], event.get("remedy") or "")


def _sentences(event: dict) -> list[str]:
    """What the log says of an event: nothing of those that come all the time."""
    kind = event["event"]
    if kind == "started":
        text = _("Going on with the run") if event.get("resumed") else _("The run has begun")
        return [_("{text}: method {method}, on {device}.").format(text=text, **_only(event, "method", "device"))]
    if kind == "plan":
        return [str(note) for note in event["plan"].get("notes") or []]
    if kind == "prediction":
        return [_("Segmented: {case}").format(case=event["case"])]
    if kind in ("warning", "error"):
        said = [event.get("case"), event["message"], event.get("remedy")]
        return [" ".join([_("Warning:") if kind == "warning" else _("Error:"), *filter(None, said)])]
    if kind == "finished":
        time = durationText(event["seconds"])
        known = {0: _("Finished after {time}."), 3: _("Stopped on request after {time}.")}
        return [known.get(event["status"], _("Ended with an error after {time}.")).format(time=time)]
    return []


def _only(event: dict, *names: str) -> dict:
    return {name: event[name] for name in names}
