"""--watch-stdin: when the program that started a run is gone, the run ends and nothing is left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_run import ENVIRONMENT, tiny_study

from genseg import events
from genseg.runfolder import RunFolder

WATCHED = """
import sys, time
from pathlib import Path
import typer
from genseg import events, session as sessions
run = Path(sys.argv[1])

def body(session):
    if sys.argv[2] == "started":
        run.mkdir()
        session.log.open(run / "events.jsonl")
        session.log.emit(events.Started(version="0", run=str(run), method="genseg", device="cpu"))
    print("ready", file=sys.stderr, flush=True)
    end = time.monotonic() + float(sys.argv[3])
    while time.monotonic() < end and not (run / "stop").exists():
        time.sleep(30 if sys.argv[2] == "asleep" else 0.05)
    print("a library says something at the end", file=sys.stderr, flush=True)
    return 3 if (run / "stop").exists() else 0

try:
    sessions.serve(body, programs=True, run=run, watch=True)
except typer.Exit as left:
    (run.parent / "status").write_text(str(left.exit_code))
    sys.exit(left.exit_code)
"""


@pytest.fixture
def watched(tmp_path):
    """watched(kind, seconds): a process that waits so long, with its standard input in our hands."""
    script = tmp_path / "watched.py"
    script.write_text(WATCHED, encoding="utf-8")
    started: list[subprocess.Popen[str]] = []

    def start(kind: str, seconds: float, **pipes) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
        command = [sys.executable, str(script), str(tmp_path / "run"), kind, str(seconds)]
        started.append(subprocess.Popen(command, env=ENVIRONMENT, encoding="utf-8", **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def heard(process: subprocess.Popen[str]) -> list[events.Event]:
    return [events.parse_event(line) for line in process.stdout.read().splitlines()]


def test_a_started_run_stops_gracefully_when_standard_input_closes(watched, tmp_path):
    process = watched("started", 60)
    assert process.stderr.readline() == "ready\n"
    process.stdin.close()
    assert process.wait(20) == 3
    assert [event.event for event in heard(process)] == ["started", "finished"]
    assert (tmp_path / "run" / "stop").exists()


def test_what_is_not_yet_started_aborts_even_from_a_long_sleep(watched, tmp_path):
    process = watched("asleep", 600)
    assert process.stderr.readline() == "ready\n"
    begin = time.monotonic()
    process.stdin.close()
    assert process.wait(20) == 1 and time.monotonic() - begin < 10
    error, finished = heard(process)
    assert error.code == "aborted" and finished.status == 1
    assert not (tmp_path / "run").exists()


def test_an_open_standard_input_changes_nothing_whatever_comes_in(watched):
    process = watched("started", 1.0)
    process.stdin.write("some\nwords\n")
    process.stdin.flush()
    assert process.wait(60) == 0
    assert "Stopping" not in process.stderr.read()


def test_an_input_that_is_closed_from_the_beginning_counts(watched):
    assert watched("started", 60, stdin=subprocess.DEVNULL).wait(60) in (1, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no kill -9")
def test_kill_9_of_the_program_that_started_it_ends_it_with_the_last_words_of_libraries_unheard(tmp_path):
    (tmp_path / "watched.py").write_text(WATCHED, encoding="utf-8")
    starter = tmp_path / "starter.py"
    starter.write_text(
        textwrap.dedent(f"""
        import subprocess, sys, time
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        command = [sys.executable, {str(tmp_path / "watched.py")!r}, {str(tmp_path / "run")!r}, "started", "60"]
        child = subprocess.Popen(command, **pipes)
        child.stderr.readline()
        print(child.pid, flush=True)
        time.sleep(60)
        """),
        encoding="utf-8",
    )
    parent = subprocess.Popen([sys.executable, str(starter)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        until((tmp_path / "status").exists, 20)
        assert (tmp_path / "status").read_text() == "3"
        log = RunFolder(tmp_path / "run").events.read_text().splitlines()
        assert events.parse_event(log[-1]).event == "finished"
        until(lambda: not _lives(child), 20)
    finally:
        if _lives(child):
            os.kill(child, signal.SIGKILL)
        parent.wait()


def _lives(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not yet collected by its parent does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("command", ["train", "predict"])
def test_with_an_open_input_the_commands_report_what_is_wrong_as_ever(command, tmp_path):
    arguments = {"train": ["no study", "--out", "run"], "predict": ["no run", "a.png", "--out", "out"]}
    program = [sys.executable, "-m", "genseg", command, *arguments[command], "--events", "--watch-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    process = subprocess.Popen(program, env=ENVIRONMENT, cwd=tmp_path, **pipes)
    try:
        assert process.wait(120) == 2, process.stderr.read()
    finally:
        process.kill()
    assert [event.event for event in heard(process)] == ["error", "finished"]


@pytest.mark.slow
@pytest.mark.usefixtures("data")
def test_a_real_training_keeps_its_checkpoint_when_standard_input_closes_and_goes_on_later(data, tmp_path):
    study = tiny_study(data / "hippocampus", tmp_path / "study", 2, 1)
    run = RunFolder(tmp_path / "run")
    command = [sys.executable, "-m", "genseg", "train", str(study), "--out", str(run.path), "--iterations", "2000"]
    command += ["--method", "supervised", "--device", "cpu", "--events", "--watch-stdin"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "encoding": "utf-8"}
    process = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
    try:
        for line in process.stdout:
            if '"metric"' in line:
                break
        process.stdin.close()
        rest = [events.parse_event(line) for line in process.stdout]
        assert process.wait(120) == 3
    finally:
        process.kill()
        process.wait()
    assert rest[-1].event == "finished" and rest[-1].status == 3 and rest[-1].model == str(run.best)
    assert run.last.exists() and run.best.exists() and not run.done.exists()
