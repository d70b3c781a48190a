"""The command line as its users meet it: real processes, their streams and exit statuses."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from genseg import events

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
GENSEG = [sys.executable, "-m", "genseg"]
COMMANDS = ["train", "predict", "evaluate", "synthesize", "report", "export", "sample", "doctor"]


def genseg(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [*GENSEG, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, cwd=cwd, timeout=120)


def said(done: subprocess.CompletedProcess[str]) -> str:
    """stderr on one line, so that folded sentences can be looked for."""
    return " ".join(done.stderr.split())


def served(code: str, tmp_path: Path, **options: str) -> subprocess.Popen[str]:
    """A process that runs `body(session)`, given as source, through the very function every command uses."""
    keywords = ", ".join(f"{name}={value}" for name, value in options.items())
    script = tmp_path / "script.py"
    source = f"""
    import os, subprocess, sys, time
    from pathlib import Path
    import typer
    from genseg import events, session as sessions
    from genseg.errors import Fault, InputFaults, RunFailed
    run = Path({str(tmp_path / "run")!r})
    {{body}}
    sessions.use_utf8()
    try:
        sessions.serve(body, {keywords})
    except typer.Exit as left:
        sys.exit(left.exit_code)
    """
    script.write_text(textwrap.dedent(source).replace("{body}", textwrap.dedent(code)), encoding="utf-8")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT, **pipes)


STARTED = """
def body(session):
    run.mkdir()
    session.log.open(run / "events.jsonl")
    session.log.emit(events.Started(version="0", run=str(run), method="genseg", device="cpu"))
"""


def test_help_comes_within_a_second_and_without_torch():
    begin = os.times().children_user
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "genseg", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert os.times().children_user - begin < 1.0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "monai", "numpy", "SimpleITK", "skimage"}
    assert all(f"\n  {command}" in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    done = genseg(command, "--help")
    assert done.returncode == 0 and "Usage:" in done.stdout


def test_the_version_is_printed():
    import genseg as package

    assert genseg("--version").stdout.strip() == f"genseg {package.__version__}"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train"], "DATASET"),
        (["train", "study"], "--out"),
        (["train", "study", "--out", "run", "--budget", "5m", "--iterations", "10"], "not both"),
        (["train", "study", "--out", "run", "--budget", "soon"], "is no budget"),
        (["train", "study", "--out", "run", "--labelled", "0"], "--labelled"),
        (["train", "study", "--out", "run", "--method", "magic"], "--method"),
        (["train", "--resume", "run", "--seed", "1"], "seed"),
        (["train", "study", "--resume", "run"], "dataset"),
        (["predict", "run", "--out", "masks"], "IMAGE"),
        (["predict", "run", "a.png", "--out", "masks", "--format", "doc"], "doc"),
        (["sample", "brain", "--out", "brain"], "brain"),
        (["paint"], "paint"),
    ],
)
def test_wrong_usage_ends_with_2_says_why_and_writes_nothing(arguments, reason, tmp_path):
    done = genseg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == "" and reason in said(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["train", "study"], ["sample", "phantom"], ["synthesize", "run"], ["export", "run"], ["predict", "run", "a.png"]],
)
def test_results_never_go_into_a_folder_in_use(command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "settings.json").write_text("{}")
    out = tmp_path / "schon da"
    out.mkdir()
    (out / "Brief.txt").write_text("mine")
    done = genseg(*command, "--out", out, cwd=tmp_path)
    assert done.returncode == 2
    assert "is not empty" in said(done) and "another folder" in said(done) and "schon da" in said(done)
    assert [file.name for file in out.iterdir()] == ["Brief.txt"]


def test_a_file_in_place_of_the_result_folder_is_a_fault(tmp_path):
    (tmp_path / "run").write_text("mine")
    done = genseg("train", "study", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2 and "A file has the name" in said(done)


def test_a_fault_reaches_a_program_as_an_error_event_and_nothing_else_is_on_stdout(tmp_path):
    (tmp_path / "läuft").mkdir()
    (tmp_path / "läuft" / "x").write_text("")
    done = genseg("train", "study", "--out", tmp_path / "läuft", "--events")
    error, finished = [events.parse_event(line) for line in done.stdout.splitlines()]
    assert (error.event, error.code, error.case) == ("error", "out_in_use", str(tmp_path / "läuft"))
    assert error.remedy
    assert (finished.event, finished.status, done.returncode) == ("finished", 2, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--resume", "nowhere"],
        ["predict", "nowhere", "a.png", "--out", "masks"],
        ["evaluate", "nowhere", "study"],
        ["synthesize", "nowhere", "--out", "pairs"],
        ["report", "nowhere"],
        ["export", "nowhere", "--out", "bundle"],
    ],
)
def test_a_run_folder_that_is_none_is_a_fault_with_a_remedy(arguments, tmp_path):
    done = genseg(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "no such run folder" in said(done) and "when training" in said(done)
    assert list(tmp_path.iterdir()) == []


def test_every_fault_is_listed_at_once_with_case_rule_and_remedy(tmp_path):
    body = """
    def body(session):
        first = Fault("a", "Fall [bold] Ä", "Rule one.", "Do this.")
        raise InputFaults([first, Fault("b", "case 2", "Rule two.", "Do that.")])
    """
    process = served(body, tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and out == ""
    expected = ("Fall [bold] Ä", "Rule one.", "Do this.", "case 2", "Rule two.", "Do that.", "2 faults in the input.")
    assert all(words in err for words in expected)


def test_what_libraries_print_stays_off_the_stdout_of_a_program(tmp_path):
    body = """
    def body(session):
        print("a library's banner")
        os.system("echo a banner from C")
        session.log.warn("w", "Grüße", "none")
    """
    process = served(body, tmp_path, programs="True")
    out, err = process.communicate(timeout=60)
    assert [events.parse_event(line).event for line in out.splitlines()] == ["warning", "finished"]
    assert "a library's banner" in err and "a banner from C" in err
    assert process.returncode == 0


def test_a_failed_run_says_what_happened_and_the_remedy_in_one_go(tmp_path):
    body = (
        STARTED
        + """
    session.error("nan", "The loss is no number.", "Look at the scans.")
    raise RunFailed("nan", "The loss is no number.", "Look at the scans.")
"""
    )
    process = served(body, tmp_path, run="run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.count("The loss is no number.") == 1 and "Look at the scans." in err
    log = [events.parse_event(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event.event for event in log] == ["started", "error", "finished"]
    assert log[-1].status == 1


@pytest.mark.parametrize("usable", [True, False])
def test_a_run_that_fails_names_the_model_that_it_leaves_if_any(usable, tmp_path):
    save = '(run / "checkpoints").mkdir(); (run / "checkpoints" / "best.safetensors").touch()' if usable else "pass"
    body = f"""{STARTED}
    {save}
    raise RunFailed("nan", "The loss is no number.", "Look at the scans.")
"""
    process = served(body, tmp_path, run="run", programs="True")
    out, _ = process.communicate(timeout=60)
    last = events.parse_event(out.splitlines()[-1])
    best = tmp_path / "run" / "checkpoints" / "best.safetensors"
    assert (last.status, last.model) == (1, str(best) if usable else None)


def test_the_unexpected_is_one_sentence_with_the_traceback_in_a_file(tmp_path):
    process = served(STARTED + "    raise ZeroDivisionError('by nothing')\n", tmp_path, run="run")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ZeroDivisionError: by nothing" in err and "Traceback" not in err
    kept = tmp_path / "run" / "traceback.txt"
    assert str(kept) in err.replace("\n", "") and "Traceback" in kept.read_text()


def test_the_unexpected_before_a_run_exists_keeps_its_traceback_too(tmp_path):
    process = served("def body(session): raise ZeroDivisionError('early')", tmp_path, programs="True", run="run")
    out, _ = process.communicate(timeout=60)
    error, finished = [events.parse_event(line) for line in out.splitlines()]
    assert (error.code, finished.status, process.returncode) == ("unexpected", 1, 1)
    kept = Path(error.remedy.split("are in ")[1].split("; please")[0])
    assert "Traceback" in kept.read_text()
    kept.unlink()
    assert not (tmp_path / "run").exists()


needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals to another process")
WAITING = (
    STARTED
    + """
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "last.safetensors").touch()  # as a run has from its beginning
    (run / "ready").touch()
    while not (run / "stop").exists():
        time.sleep(0.02)
    {then}
"""
)


def wait_for(condition, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@needs_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_interrupt_asks_for_a_graceful_stop(number, tmp_path):
    process = served(WAITING.replace("{then}", "return 3"), tmp_path, run="run")
    wait_for(lambda: (tmp_path / "run" / "ready").exists())
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert (tmp_path / "run" / "stop").exists() and "keeping the model" in err


@needs_signals
def test_a_second_interrupt_aborts_at_once_and_says_how_to_go_on(tmp_path):
    process = served(WAITING.replace("{then}", "time.sleep(60)"), tmp_path, run="run")
    wait_for(lambda: (tmp_path / "run" / "ready").exists())
    process.send_signal(signal.SIGINT)
    wait_for(lambda: (tmp_path / "run" / "stop").exists())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1
    assert "genseg train --resume" in err


@needs_signals
def test_an_interrupt_before_the_run_exists_ends_at_once_and_leaves_nothing(tmp_path):
    body = "def body(session):\n    Path(run.parent, 'ready').touch()\n    time.sleep(60)"
    process = served(body, tmp_path, run="run")
    wait_for(lambda: (tmp_path / "ready").exists())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 1 and "Aborted" in err
    assert not (tmp_path / "run").exists()


@needs_signals
def test_a_run_goes_on_when_the_program_that_listened_is_gone(tmp_path):
    body = (
        STARTED
        + """
    (run / "listening").touch()
    while not (run / "gone").exists():
        time.sleep(0.02)
    for step in range(1000):
        session.log.emit(events.Progress(phase="train", step=step, total=1000))
    (run / "reached the end").touch()
"""
    )
    process = served(body, tmp_path, programs="True", run="run")
    wait_for(lambda: (tmp_path / "run" / "listening").exists())
    process.stdout.close()
    (tmp_path / "run" / "gone").touch()
    assert process.wait(timeout=60) == 0
    process.stderr.close()
    assert (tmp_path / "run" / "reached the end").exists()
    assert len((tmp_path / "run" / "events.jsonl").read_text().splitlines()) == 1002


def test_without_a_terminal_a_long_run_prints_a_few_plain_lines(tmp_path):
    body = (
        STARTED
        + """
    for step in range(1, 5001):
        session.log.emit(events.Progress(phase="train", step=step, total=5000, seconds_left=75.0))
        session.log.emit(events.Prediction(case="a", path="a", volumes_ml={}, uncertainty=0.0, step=step))
    session.log.emit(events.Finished(status=0, seconds=90.0, model=str(run / "model")))
"""
    )
    process = served(body, tmp_path, run="run")
    out, err = process.communicate(timeout=60)
    assert out == "" and len(err.splitlines()) <= 15
    assert "Training: 5000 of 5000" in err and "Done after 1 min 30 s" in err and "Cases predicted: 1." in err
    assert "\x1b" not in err
