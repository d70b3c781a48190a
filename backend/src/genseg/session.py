"""A command as a process: its streams, its signals and its exit status.

Every command of the command line runs through `serve`, so that faults, failures, stops and the
unexpected look the same everywhere, for people and for programs.
"""

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

import typer

from genseg import events
from genseg.console import PeopleListener
from genseg.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputFaults, RunFailed
from genseg.runfolder import RunFolder
from genseg.watch import silence_if_unheard, watch_stdin

_NOTHING_LEFT = 1 << 20  # bytes
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG)


def use_utf8() -> None:
    """Names in any script print on every system; a character a terminal lacks never ends a run."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="backslashreplace")


@contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Give the real stdout; whatever else prints meanwhile, in Python or in C, goes to stderr."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    previous, sys.stdout = sys.stdout, sys.stderr
    stream = os.fdopen(os.dup(real), "w", encoding="utf-8", newline="\n")
    try:
        yield stream
    finally:
        sys.stderr.flush()
        with suppress(OSError):  # the reader may be gone
            stream.close()
        os.dup2(real, 1)
        os.close(real)
        sys.stdout = previous


class Session:
    """What a command works with: its event log, its stdout, and what has happened so far."""

    def __init__(self, stdout: TextIO, programs: bool, run: Path | None, again: str | None):
        self.stdout, self.run = stdout, run
        self.again = again or f'genseg train --resume "{run}"'  # how a run that has begun goes on
        self.people = PeopleListener()
        self.started = self.finished = False
        self.begin = time.monotonic()
        self._errors: set[tuple[str, str | None, str]] = set()
        self._reader = programs
        self.log = events.EventLog([self._watch, self._print_line if programs else self.people])

    @property
    def can_go_on(self) -> bool:
        """Whether the run has begun and left something to go on from."""
        folder = None if self.run is None else RunFolder(self.run)
        return self.started and folder is not None and (folder.last.exists() or folder.best.exists())

    def print(self, text: str) -> None:
        """A result, as one or more lines on stdout."""
        self.stdout.write(text + "\n")
        self.stdout.flush()

    def error(self, code: str, message: str, remedy: str, case: str | None = None) -> None:
        """Report an error, once, even where the run has said it already."""
        if (code, case, message) not in self._errors:
            self._tell(events.Error(code=code, message=message, remedy=remedy, case=case))

    def finish(self, status: int) -> None:
        if not self.finished:
            model = RunFolder(self.run).found_model() if self.run is not None and self.started else None
            self._tell(events.Finished(status=status, seconds=time.monotonic() - self.begin, model=model))
        self.people.close()
        with suppress(OSError):
            self.log.close()

    def _tell(self, event: events.Event) -> None:
        """Emit; where the disk is too full even for a line, events.jsonl is given up and the listeners still hear."""
        try:
            self.log.emit(event)
        except OSError:
            with suppress(OSError):
                self.log.close()
            self.log.emit(event)

    def _watch(self, event: events.Event) -> None:
        self.started |= isinstance(event, events.Started)
        self.finished |= isinstance(event, events.Finished)
        if isinstance(event, events.Error):
            self._errors.add((event.code, event.case, event.message))

    def _print_line(self, event: events.Event) -> None:
        if not self._reader:
            return
        try:
            self.print(events.to_line(event))
        except OSError:  # the program that listened is gone: the run goes on, events.jsonl has everything
            self._reader = False


@contextmanager
def graceful_stop(session: Session) -> Iterator[None]:
    """Ctrl-C or SIGTERM asks the run to stop with its model kept; a second one aborts at once."""
    asked = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked or session.run is None or not session.started:
            raise KeyboardInterrupt
        asked = True
        (session.run / "stop").touch()
        # Not through print: the signal may have come in the middle of one.
        silence_if_unheard(b"\nStopping after this step and keeping the model. Press Ctrl-C again to abort at once.\n")

    names = [name for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), on_signal) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _keep_traceback(session: Session) -> Path:
    """Write the traceback being handled beside the run's results, or else to a temporary file."""
    text = traceback.format_exc()
    if session.run is not None and session.started:
        path = session.run / "traceback.txt"
        path.write_text(text, encoding="utf-8")
        return path
    handle, name = tempfile.mkstemp(prefix="genseg-", suffix="-traceback.txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    return Path(name)


def _is_full_disk(error: BaseException, session: Session) -> bool:
    """Python says so by number, other writers only by an error on a disk that has nothing left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return True
    if not isinstance(error, (OSError, RuntimeError)) or session.run is None or not session.run.exists():
        return False
    return shutil.disk_usage(session.run).free < _NOTHING_LEFT


def _explain(session: Session, error: Exception) -> None:
    """Say what the system refused in words; of everything else keep the traceback."""
    if _is_full_disk(error, session):
        where = f"the disk of {session.run}" if session.run is not None else "the disk"
        resume = f" Then go on with: {session.again}" if session.can_go_on else ""
        session.error("no_disk", f"There is no space left on {where}.", f"Delete files you do not need.{resume}")
    elif isinstance(error, OSError) and error.errno in _REFUSED and error.filename:
        what = f"'{error.filename}' cannot be used: {error.strerror}."
        session.error("no_access", what, "Choose another folder, or ask for the right to write there.")
    else:
        name = type(error).__name__
        path = _keep_traceback(session)
        remedy = f"The details are in {path}; please send them with a report of the problem."
        session.error("unexpected", f"Something went wrong that should not: {name}: {error}", remedy)


def _attempt(session: Session, body: Callable[[Session], int | None]) -> int:
    """Run `body` and turn whatever happens into words and an exit status."""
    try:
        return body(session) or EXIT_OK
    except InputFaults as caught:
        for fault in caught.faults:
            session.error(fault.code, fault.rule, fault.remedy, fault.case)
        number = len(caught.faults)
        session.people.say(f"{number} fault{'s' * (number != 1)} in the input.", "bold")
        return EXIT_BAD_INPUT
    except RunFailed as failed:
        session.error(failed.code, failed.message, failed.remedy)
    except KeyboardInterrupt:
        resume = f"Go on from the last checkpoint with: {session.again}"
        session.error("aborted", "Aborted on request.", resume if session.can_go_on else "")
    except Exception as unexpected:
        _explain(session, unexpected)
    return EXIT_FAILED


def _watching(body: Callable[[Session], int | None]) -> Callable[[Session], int | None]:
    def watched(session: Session) -> int | None:
        watch_stdin()
        return body(session)

    return watched


def serve(
    body: Callable[[Session], int | None],
    programs: bool = False,
    machine: bool = False,
    run: Path | None = None,
    watch: bool = False,
    again: str | None = None,
) -> NoReturn:
    """Run a command and leave with its exit status.

    `programs`: stdout carries event lines and nothing else. `machine`: stdout carries only what the
    body prints, such as JSON. `run`: the run folder in which a file `stop` ends the work gracefully.
    `watch`: when standard input closes, do as on Ctrl-C. `again`: the command that goes on with a run that broke off,
    where it is not --resume.
    """
    with ExitStack() as stack:
        reserve = programs or machine
        session = Session(stack.enter_context(reserved_stdout()) if reserve else sys.stdout, programs, run, again)
        stack.enter_context(graceful_stop(session))
        status = _attempt(session, _watching(body) if watch else body)
        session.finish(status)
    raise typer.Exit(status)
