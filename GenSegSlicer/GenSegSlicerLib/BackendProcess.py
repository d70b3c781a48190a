"""A child process with its whole family: read without waiting, ended for certain."""

import atexit
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ON_WINDOWS = os.name == "nt"
LONGEST_LINE = 1 << 20  # bytes; what goes beyond is cut
MOST_AT_ONCE = 1 << 20  # bytes taken from a stream in one poll, so that a talkative process never freezes the window
PIPE_SIZE = 1 << 20  # bytes of output that wait for us where the system allows it (Linux)
AFTER_END = 2.0  # seconds in which a process that has ended may still hold its output open through a stranger


class Line(NamedTuple):
    """One line of output, without its end. `isError`: it came on standard error."""

    text: str
    isError: bool


class BackendProcess:
    """Runs one command and hands out its lines.

    There are no threads: inside Slicer a thread only runs while the main one happens to release the interpreter.
    Standard input is a pipe on which nothing is ever written. It closes when this program ends, however it ends;
    the backend's `--watch-stdin` takes that as its sign to stop.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, folder: Path | None = None
    ):
        """`environment`: the whole of it; this program's own where None. `folder`: where the process works."""
        self.command = [str(part) for part in command]
        self.environment = None if environment is None else dict(environment)
        self.folder = folder
        self._popen: subprocess.Popen | None = None
        self._streams: list[_Stream] = []
        self._endedAt: float | None = None

    def start(self) -> None:
        """Start the process. Raises OSError where the program cannot be started, RuntimeError the second time."""
        if self._popen is not None:
            raise RuntimeError("A process is started once.")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "bufsize": 0}
        self._popen = subprocess.Popen(
            self.command, env=self.environment, cwd=self.folder, close_fds=True, **pipes, **_ownGroup()
        )
        _living.add(self)
        self._streams = [_Stream(self._popen.stdout, False), _Stream(self._popen.stderr, True)]

    @property
    def pid(self) -> int | None:
        return None if self._popen is None else self._popen.pid

    @property
    def status(self) -> int | None:
        """The exit status once the process has ended and all its output was handed out, else None.

        A signal that ended it is a negative number, as in `subprocess`.
        """
        return self._popen.returncode if self._popen is not None and self.finished else None

    @property
    def finished(self) -> bool:
        """Whether the process has ended and `poll` has handed out all of its output."""
        return self._endedAt is not None and not self._streams

    def poll(self) -> list[Line]:
        """The lines that have come since the last call; returns at once. Call it often, from one thread."""
        if self._popen is None:
            return []
        self._lookAtEnd()
        lines = []
        for stream in list(self._streams):
            lines += stream.read()
            overdue = self._endedAt is not None and time.monotonic() - self._endedAt > AFTER_END
            if stream.ended or overdue:
                lines += stream.close()
                self._streams.remove(stream)
        return lines

    def closeInput(self) -> None:
        """Close standard input. To a backend with `--watch-stdin` this is what Ctrl-C is in a terminal."""
        if self._popen is not None and self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    def stopGracefully(self, runFolder: Path | None) -> None:
        """Ask for a stop: by the file `stop` where the run has begun, else by closing standard input. Returns at once.

        Raises OSError where the file cannot be written.
        """
        if runFolder is not None and (Path(runFolder) / "settings.json").is_file():
            (Path(runFolder) / "stop").touch()
        else:  # there is nothing yet to be kept, and the run folder must not exist before the run makes it
            self.closeInput()

    def kill(self, grace: float = 1.0) -> None:
        """End the process and everything it has started; waits `grace` seconds at most before it uses force.

        On Windows force is used at once. Processes that have left the group on purpose are not found.
        """
        if self._popen is None or self._endedAt is not None:
            return
        self.closeInput()
        if ON_WINDOWS:
            _killTreeOnWindows(self._popen.pid)
            self._popen.kill()
        else:
            self._signalGroup(signal.SIGTERM)
            self._waitForEnd(grace)
            self._signalGroup(signal.SIGKILL)
        self._waitForEnd(5.0)

    def _waitForEnd(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while self._endedAt is None and time.monotonic() < end:
            self._lookAtEnd()
            time.sleep(0.01)

    def _lookAtEnd(self) -> None:
        """Note the end of the process, and take along what it leaves behind in its group."""
        if self._endedAt is None and self._popen.poll() is not None:
            self._signalGroup(getattr(signal, "SIGKILL", signal.SIGTERM))
            self._endedAt = time.monotonic()
            self.closeInput()
            _living.discard(self)

    def _signalGroup(self, number: int) -> None:
        """To every process of the group, until its end was noted: later the number may be somebody else's."""
        if not ON_WINDOWS and self._endedAt is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._popen.pid, number)


class _Stream:
    """One pipe of a process, cut into lines. Bytes that are no UTF-8 appear as \\xNN."""

    def __init__(self, pipe, isError: bool):
        self.pipe, self.isError, self.ended = pipe, isError, False
        self._rest = b""
        self._cutting = False  # the rest of a line that was too long is being thrown away
        _prepare(pipe)

    def read(self) -> list[Line]:
        """What has arrived, without waiting for more."""
        taken, lines = 0, []
        while not self.ended and taken < MOST_AT_ONCE:
            try:
                data = _readAvailable(self.pipe)
            except OSError:
                data = b""
            if data is None:
                break
            self.ended = not data
            taken += len(data)
            lines += self._split(data)
        return lines

    def close(self) -> list[Line]:
        """Close the pipe. → the last line, where it has no end."""
        with contextlib.suppress(OSError):
            self.pipe.close()
        rest, self._rest = self._rest, b""
        return [self._line(rest)] if rest and not self._cutting else []

    def _split(self, data: bytes) -> list[Line]:
        # A carriage return alone draws a line anew, as progress bars do: to us it is a new line.
        *whole, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        lines = []
        for piece in whole:
            if piece and not self._cutting:
                lines.append(self._line(piece))
            self._cutting = False
        if len(self._rest) > LONGEST_LINE:
            if not self._cutting:
                lines.append(self._line(self._rest))
            self._rest, self._cutting = b"", True
        return lines

    def _line(self, data: bytes) -> Line:
        text = data[:LONGEST_LINE].decode("utf-8", "backslashreplace")
        return Line(text + (" …" if len(data) > LONGEST_LINE else ""), self.isError)


def _ownGroup() -> dict:
    """Options of Popen: a group of its own, so that all of it can be ended, and no console window."""
    if ON_WINDOWS:
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def _prepare(pipe) -> None:
    if ON_WINDOWS:
        return
    import fcntl

    os.set_blocking(pipe.fileno(), False)
    with contextlib.suppress(OSError, AttributeError):
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_SIZE)


def _readAvailable(pipe) -> bytes | None:
    """What lies in the pipe now; None where there is nothing yet, b"" or OSError at its end."""
    if not ON_WINDOWS:
        try:
            return os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return None
    import _winapi
    import msvcrt

    waiting = _winapi.PeekNamedPipe(msvcrt.get_osfhandle(pipe.fileno()), 0)[0]
    return os.read(pipe.fileno(), waiting) if waiting else None


def _killTreeOnWindows(pid: int) -> None:
    """The process and its descendants; PythonSlicer is only a launcher, the real Python is its child."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            ["taskkill", "/T", "/F", "/PID", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=10,
            creationflags=subprocess.CREATE_NO_WINDOW,
        )


_living: set[BackendProcess] = set()


@atexit.register
def _killAll() -> None:
    """Nothing outlives this program."""
    for process in list(_living):
        process.kill(grace=0.2)
