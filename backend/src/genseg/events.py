"""Events: what a run tells the world, one ASCII JSON object a line, on stdout and in events.jsonl.

The models below are the schema; docs/events.schema.json is generated from them
(`python -m genseg.events > docs/events.schema.json`) and a test holds the two together.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid")
    time: float = Field(default_factory=time.time, description="seconds since 1970, UTC")


class Started(_Event):
    """The run folder exists and work begins (again, where `resumed`)."""

    event: Literal["started"] = "started"
    version: str
    run: str
    method: str
    device: str
    resumed: bool = False


class Planned(_Event):
    """What was derived from the scans and the device: the content of plan.json."""

    event: Literal["plan"] = "plan"
    plan: dict[str, Any]


class Progress(_Event):
    """`step` of `total` in `phase`; in a run with a time budget `total` is an estimate."""

    event: Literal["progress"] = "progress"
    phase: Literal["prepare", "shapes", "pretrain", "train", "predict", "report"]
    step: int
    total: int
    seconds_left: float | None = None


class Metric(_Event):
    """One point of a curve, for example loss/real, dice/validation, meta/synthetic_weight."""

    event: Literal["metric"] = "metric"
    name: str
    value: float
    step: int


class Synthetic(_Event):
    """A synthetic pair was written; `path` is its image, relative to the run folder."""

    event: Literal["synthetic"] = "synthetic"
    path: str
    mask: str
    step: int
    agreement: float = Field(description="Dice of the segmenter on the pair, 0..1")
    near_copy: bool = Field(description="true where the image nearly copies a training image")


class Prediction(_Event):
    """A label map was written; `path` is relative to the run folder."""

    event: Literal["prediction"] = "prediction"
    case: str
    path: str
    volumes_ml: dict[str, float | None] = Field(description="by label name; null where the image has no physical size")
    uncertainty: float = Field(description="0 (sure) .. 1 (unsure)")
    step: int | None = None


class Warning_(_Event):  # noqa: N801 (Warning alone is a builtin)
    """Something the user should know; the run goes on."""

    event: Literal["warning"] = "warning"
    code: str
    message: str
    remedy: str = ""


class Error(_Event):
    """A fault of the input or the end of the run; `case` names what it concerns."""

    event: Literal["error"] = "error"
    code: str
    message: str
    remedy: str = ""
    case: str | None = None


class Finished(_Event):
    """The last event of a run; `status` equals the exit status of the process."""

    event: Literal["finished"] = "finished"
    status: int
    seconds: float
    model: str | None = None


Event = Annotated[
    Union[Started, Planned, Progress, Metric, Synthetic, Prediction, Warning_, Error, Finished],
    Field(discriminator="event"),
]
_adapter: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str) -> Event:
    """One line of events.jsonl → event; raises pydantic.ValidationError where it is none."""
    return _adapter.validate_json(line)


def schema() -> dict[str, Any]:
    """JSON Schema of one event line."""
    return {"title": "GenSeg event", **_adapter.json_schema()}


class EventLog:
    """Appends events to a file, flushed line by line, and hands each to the listeners.

    A listener is the progress display for people or the JSON printer for programs.
    """

    def __init__(self, listeners: list[Callable[[Event], None]] | None = None):
        self.listeners = listeners or []
        self._file: Any = None
        self._early: list[Event] = []  # warnings from before there was a file

    def open(self, path: Path) -> None:
        """Append from now on to `path`, ending a line that a killed process left unfinished."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="ascii")
        if unfinished:
            self._file.write("\n")

    def emit(self, event: Event) -> None:
        if self._file is not None:
            # Behind the first event of the file (`started`), what was warned of before there was a file.
            for entry in [event, *self._early]:
                self._file.write(to_line(entry) + "\n")
            self._early = []
            self._file.flush()
        elif isinstance(event, Warning_):
            self._early.append(event)
        for listener in self.listeners:
            listener(event)

    def of_study(self, name: str) -> "EventLog":
        """A log of one study of several, which tells this one what it hears, under the study's name."""

        def forward(event: Event) -> None:
            if isinstance(event, Metric):
                event = event.model_copy(update={"name": f"{name}/{event.name}"})
            elif isinstance(event, Synthetic):
                inside = {key: f"studies/{name}/{getattr(event, key)}" for key in ("path", "mask")}
                event = event.model_copy(update=inside)
            elif isinstance(event, Prediction):
                event = event.model_copy(update={"path": f"studies/{name}/{event.path}"})
            elif isinstance(event, Warning_):
                event = event.model_copy(update={"message": f"{name}: {event.message}"})
            if not isinstance(event, Started | Finished):
                self.emit(event)

        return EventLog([forward])

    def warn(self, code: str, message: str, remedy: str = "") -> None:
        self.emit(Warning_(code=code, message=message, remedy=remedy))

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def to_line(event: Event) -> str:
    """Event → one line of ASCII JSON, without the newline."""
    return json.dumps(event.model_dump(mode="json"), ensure_ascii=True)


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
