"""What a person sees of a run: a progress bar with the time left, and short sentences.

On a terminal the bar is redrawn in place; into a file or a pipe come a few plain lines instead.
Everything goes to stderr, so that stdout carries results alone.
"""

import time
from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from genseg import events
from genseg.wording import duration

PHASES = {
    "prepare": "Reading the scans",
    "shapes": "Learning the shapes of other scans",
    "pretrain": "Training the generator",
    "train": "Training",
    "predict": "Predicting",
    "report": "Writing the report",
}
_LINES_PER_PHASE = 10  # plain lines where there is no terminal
_SHOWN_METRIC = "dice/validation"


def _model(path: str) -> str:
    several = not path.endswith(".safetensors")
    return f"The model of each study lies in its folder in {path}" if several else f"The model is {path}"


def volumes(prediction: events.Prediction) -> str:
    """'anterior 1.82 ml, posterior 1.51 ml'; empty where the image has no physical size."""
    known = [f"{name} {ml:.4g} ml" for name, ml in prediction.volumes_ml.items() if ml is not None]
    return ", ".join(known)


class PeopleListener:
    """Listener of an EventLog that shows its events to a person. Close it to take the bar away."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase: str | None = None
        self._last_line = (0, 0.0)  # tenth of the phase, time of the last plain line
        self._dice: dict[str, float] = {}  # by study, where there are several
        self._pairs: Counter[str] = Counter()
        self._predicted: set[str] = set()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.Started():
                again = "Going on with" if event.resumed else "Training with"
                self.say(f"{again} method {event.method} on {event.device}. Results go to {event.run}")
            case events.Planned():
                for note in event.plan.get("notes", []):
                    self.say(f"  {note}")
            case events.Progress():
                self._progress(event)
            case events.Metric(name=name, value=value) if name.endswith(_SHOWN_METRIC):
                self._dice[name.removesuffix(_SHOWN_METRIC)] = value
            case events.Synthetic():
                self._pairs.update(["written"] + ["near copy"] * event.near_copy)
            case events.Prediction():
                self._prediction(event)
            case events.Warning_():
                self.say(f"Warning: {event.message} {event.remedy}".rstrip(), "yellow")
            case events.Error():
                self._error(event)
            case events.Finished():
                self._finished(event)

    def say(self, sentence: str, style: str = "") -> None:
        """One line on stderr, its words taken literally; folded only where a terminal needs it."""
        self.console.print(Text(sentence, style=style), soft_wrap=not self.console.is_terminal)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None

    def _progress(self, event: events.Progress) -> None:
        if event.phase != self._phase:
            self._phase, self._last_line, self._task = event.phase, (-1, 0.0), None
        left = "" if event.seconds_left is None else f"{duration(event.seconds_left)} left"
        dice = f"validation Dice {' / '.join(f'{value:.3f}' for value in self._dice.values())}" if self._dice else ""
        note = ", ".join(part for part in (left, dice) if part)
        if self.console.is_terminal:
            self._draw(event, note)
        else:
            self._plain(event, note)

    def _draw(self, event: events.Progress, note: str) -> None:
        if self._bar is None:
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=self.console, transient=True)
            self._bar.start()
        if self._task is None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = self._bar.add_task(PHASES[event.phase], note=note)
        self._bar.update(self._task, completed=event.step, total=event.total, note=note)

    def _plain(self, event: events.Progress, note: str) -> None:
        tenth = _LINES_PER_PHASE * event.step // max(event.total, 1)
        if tenth <= self._last_line[0]:
            return
        if tenth < _LINES_PER_PHASE and time.monotonic() - self._last_line[1] < 1.0:
            return  # a phase of seconds needs no ten lines
        self._last_line = (tenth, time.monotonic())
        self.say(f"{PHASES[event.phase]}: {event.step} of {event.total}" + (f" ({note})" if note else ""))

    def _prediction(self, event: events.Prediction) -> None:
        if event.step is not None:  # while training, every case comes again and again: the end tells the number
            self._predicted.add(event.path)  # studies of one training may have scans of the same name
            return
        said = volumes(event)
        self.say(f"{event.case}: {said + ', ' if said else ''}uncertainty {event.uncertainty:.2f} → {event.path}")

    def _error(self, event: events.Error) -> None:
        self.close()
        self.say(event.case or "Error", "bold red")
        self.say(f"  {event.message}")
        if event.remedy:
            self.say(f"  → {event.remedy}", "green")

    def _finished(self, event: events.Finished) -> None:
        self.close()
        if self._pairs["written"]:
            copies = self._pairs["near copy"]
            tail = f", {copies} of them nearly copies of a training image: do not share these" if copies else ""
            self.say(f"Synthetic pairs written: {self._pairs['written']}{tail}.")
        if event.model is None:
            if event.status == 3:
                again = 'go on with "genseg train --resume".'
                self.say(
                    f"Stopped on request after {duration(event.seconds)}, before there was a model; {again}", "bold"
                )
            return
        if self._predicted:
            self.say(f"Cases predicted: {len(self._predicted)}.")
        how = {0: "Done", 3: "Stopped on request"}.get(event.status, "Failed")
        self.say(f"{how} after {duration(event.seconds)}. {_model(event.model)}", "bold")
