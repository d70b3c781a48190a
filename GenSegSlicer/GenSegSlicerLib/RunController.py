"""One run at a time, from its start to its end: what state it is in, and why it ended as it did."""

import enum
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from GenSegSlicerLib.Backend import Backend
from GenSegSlicerLib.BackendProcess import BackendProcess, Line
from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.RunProgress import RunProgress
from GenSegSlicerLib.Translate import _

LAST_WORDS = 12  # lines of standard error that explain an end without an error event
LAUNCHER_SAYS = "exit abnormally"  # Slicer's launcher gives status 1 for whatever ended its Python by force
OUT_OF_MEMORY = (-9, 137)  # what the system does to a process when memory is full
CRASHES = (-11, -6, -4, -7, 134, 139, 0xC0000005, 0xC000001D, 0xC0000409)


class State(enum.StrEnum):
    """Of a RunController. The first and the last three mean that nothing runs."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass
class Changes:
    """What is new since the last tick. False as a whole where nothing is."""

    state: bool = False
    progress: bool = False
    curves: bool = False
    synthetic: bool = False
    predictions: bool = False
    messages: bool = False  # warnings and errors
    log: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, one.name) for one in fields(self))


_KINDS = {
    "started": "progress",
    "plan": "progress",
    "progress": "progress",
    "metric": "curves",
    "synthetic": "synthetic",
    "prediction": "predictions",
    "warning": "messages",
    "error": "messages",
    "finished": "progress",
}


class RunController:
    """Starts, watches and ends a command of the backend. A timer calls `tick` a few times a second; no Qt in here.

    backend: builds the command to resume with. environment: of the processes; this program's own where None.
    state, progress (RunProgress), runFolder, status (exit status, None while it runs or where it never started),
    explanation (why it ended as it did, in sentences; empty where all is well), faults (the same, one by one).
    """

    def __init__(
        self,
        backend: Backend | None = None,
        environment: Mapping[str, str] | None = None,
        makeProcess: Callable[..., BackendProcess] = BackendProcess,
    ):
        self.backend, self.environment, self._makeProcess = backend, environment, makeProcess
        self._process: BackendProcess | None = None
        self._forget(None, RunProgress(), State.IDLE)

    @property
    def active(self) -> bool:
        """Whether a process runs, or may still."""
        return self.state in (State.STARTING, State.RUNNING, State.STOPPING)

    @property
    def usable(self) -> bool:
        """Whether the run has a model that can segment."""
        return self.runFolder is not None and (self.runFolder / "checkpoints" / "best.safetensors").is_file()

    @property
    def resumable(self) -> bool:
        """Whether the run can be gone on with now."""
        folder = self.runFolder
        begun = folder is not None and (folder / "checkpoints" / "last.safetensors").is_file()
        return begun and not self.active and not (folder / "done").exists()

    @property
    def secondsStopping(self) -> float:
        """For how long a stop has been asked for; 0 where none is."""
        return time.monotonic() - self._stopAsked if self.state is State.STOPPING else 0.0

    def start(self, command: Sequence[str], runFolder: Path | None) -> bool:
        """Start a command. → False where the program cannot be started: then `state` is FAILED, with explanation.

        `runFolder`: of a training; None for other commands. Raises RuntimeError while a run is active.
        """
        return self._start(command, runFolder, RunProgress())

    def resume(self, runFolder: Path) -> bool:
        """Go on with a run; curves and predictions so far are read from its folder. Otherwise as `start`."""
        if self.backend is None:
            raise RuntimeError("Resuming needs a backend.")
        progress = RunProgress.fromFile(Path(runFolder) / "events.jsonl")
        progress.reopen()
        return self._start(self.backend.resumeCommand(runFolder), runFolder, progress)

    def show(self, runFolder: Path) -> None:
        """Take up what a run on the disk has told, without starting anything: after a scene was loaded.

        Raises RuntimeError while a run is active.
        """
        self._refuseWhileActive()
        folder = Path(runFolder)
        self._forget(folder, RunProgress.fromFile(folder / "events.jsonl"), State.IDLE)

    def tick(self) -> Changes:
        """Take in what the process has said. → what changed; returns at once."""
        changes = Changes()
        if self._process is None:
            return changes
        before = self.state
        for line in self._process.poll():
            self._hear(line, changes)
        if self._process.finished:
            self._settle(self._process.status)
        changes.state = self.state is not before
        return changes

    def stop(self) -> None:
        """Ask the run to stop with its model kept. A second call changes nothing; see `forceStop`."""
        if self.state not in (State.STARTING, State.RUNNING):
            return
        self._askToStop(begun=self.state is State.RUNNING)
        self.state, self._stopAsked = State.STOPPING, time.monotonic()

    def forceStop(self, grace: float = 1.0) -> None:
        """End the run now, within about `grace` seconds; what was trained since the last checkpoint is lost."""
        if not self.active:
            return
        self.state = State.STOPPING
        self._process.kill(grace)
        end = time.monotonic() + 3.0
        while self.active and time.monotonic() < end:
            self.tick()
            time.sleep(0.01)
        if self.active:
            self._settle(None)

    def close(self, seconds: float = 3.0) -> None:
        """For the end of the scene, the module or Slicer: stop gracefully, and after `seconds` by force."""
        self.stop()
        end = time.monotonic() + seconds
        while self.active and time.monotonic() < end:
            self.tick()
            time.sleep(0.02)
        self.forceStop(grace=0.2)

    def _start(self, command: Sequence[str], runFolder: Path | None, progress: RunProgress) -> bool:
        self._refuseWhileActive()
        self._forget(None if runFolder is None else Path(runFolder), progress, State.STARTING)
        process = self._makeProcess(command, self.environment)
        try:
            process.start()
        except (OSError, ValueError) as refused:
            self.state = State.FAILED
            rule = _("The training program could not be started: {reason}").format(reason=refused)
            remedy = _("Install the extension again, or check the Python chosen under Advanced.")
            self._explain([Fault(str(command[0]), rule, remedy)])
            return False
        self._process = process
        return True

    def _refuseWhileActive(self) -> None:
        if self.active:
            raise RuntimeError("A run is active.")

    def _forget(self, runFolder: Path | None, progress: RunProgress, state: State) -> None:
        self.runFolder, self.progress, self.state = runFolder, progress, state
        self.status: int | None = None
        self.explanation = ""
        self.faults: list[Fault] = []
        self._process = None
        self._stopAsked = 0.0
        self._lastWords: deque[str] = deque(maxlen=LAST_WORDS)

    def _hear(self, line: Line, changes: Changes) -> None:
        changes.log = True
        if line.isError:
            self._lastWords.append(line.text)
            self.progress.say(line.text)
            return
        event = self.progress.feed(line.text)
        if event is None:
            self._lastWords.append(line.text)
            return
        setattr(changes, _KINDS[event["event"]], True)
        if self.state is State.STARTING and event["event"] not in ("warning", "error", "finished"):
            self.state = State.RUNNING
        if self.state is State.STOPPING and event["event"] == "started":
            self._askToStop(begun=True)  # a resumed run takes an earlier `stop` away when it begins

    def _askToStop(self, begun: bool) -> None:
        try:
            self._process.stopGracefully(self.runFolder if begun else None)
        except OSError:  # a disk that is full or gone
            self._process.closeInput()

    def _settle(self, status: int | None) -> None:
        """The process has ended: name the state and say why."""
        asked = self.state is State.STOPPING
        self.status, self._process = status, None
        real = [event for event in self.progress.errors if event["code"] != "aborted"]
        if status == 0:
            self.state = State.DONE
        elif status == 3 or (asked and not real):
            self.state = State.STOPPED
            self.explanation = self._afterStop()
        else:
            self.state = State.FAILED
            self._explain(self.progress.faults() or [self._unexplained(status)])

    def _afterStop(self) -> str:
        if self.runFolder is None:
            return _("Stopped.")
        if self.usable:
            return _("Stopped. The model trained so far can be used, and the run can be resumed.")
        if self.resumable:
            return _("Stopped before there was a model. The run can be resumed.")
        return _("Stopped before the training had begun.")

    def _explain(self, faults: list[Fault]) -> None:
        self.faults = faults
        lines = [f"{fault.case}: {fault.rule}" + (f"\n→ {fault.remedy}" if fault.remedy else "") for fault in faults]
        if self.resumable:
            lines.append(_("What was trained until the last checkpoint is kept: the run can be resumed."))
        self.explanation = "\n".join(lines)

    def _unexplained(self, status: int | None) -> Fault:
        """An end without an error event: from the last words and the status make the best of it."""
        case, words = _("The training program"), "\n".join(self._lastWords)
        missing = re.findall(r"No module named '([\w.]+)'", words)
        if missing:
            rule = _("The Python package {name} is missing.").format(name=missing[-1].split(".")[0])
            return Fault(case, rule, _("Install what is missing with the button, or choose another Python."))
        if status in OUT_OF_MEMORY or LAUNCHER_SAYS in words:
            rule = _("The system ended it, most likely because the memory was full.")
            return Fault(case, rule, _("Close other programs, or crop the scans, and resume the run."))
        if status in CRASHES:
            rule = _("It crashed (status {status}). {words}").format(status=status, words=words)
            return Fault(case, rule.strip(), _("Update the graphics driver, or train on the processor."))
        rule = _("It ended unexpectedly (status {status}). {words}").format(status=status, words=words)
        return Fault(case, rule.strip(), _("Look into the log, and send it with a report of the problem."))
