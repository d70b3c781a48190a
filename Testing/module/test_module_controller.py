"""A run from its button to its end: real processes that speak like the backend, and the backend itself."""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from GenSegSlicerLib.Backend import Backend, TrainSettings
from GenSegSlicerLib.BackendProcess import BackendProcess, Line
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.RunController import RunController, State
from GenSegSlicerLib.Runs import RunKind, RunList
from packaged import backendPython

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "backend" / "src"

# Speaks as the backend does: events on stdout, a run folder, obedience to `stop` and to a closed input.
SPEAKER = """
import json, os, sys, threading, time
from pathlib import Path
run = Path(sys.argv[1])

def tell(event, **more):
    print(json.dumps({"event": event, **more}), flush=True)

def progress(step, phase="train"):
    tell("progress", phase=phase, step=step, total=100, seconds_left=9.0)

def begin(**more):
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "settings.json").write_text("{}")
    (run / "checkpoints" / "last.safetensors").write_text("")
    tell("started", version="0", run=str(run), method="genseg", device="cpu", **more)

def finish(status):
    tell("finished", status=status, seconds=1.0, model=None)
    sys.exit(status)

def until_stopped(seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (run / "stop").exists():
        time.sleep(0.01)

def watch_stdin():
    def wait():
        sys.stdin.read()
        tell("error", code="aborted", message="Aborted on request.", remedy="")
        os._exit(1)
    threading.Thread(target=wait, daemon=True).start()
"""


@pytest.fixture
def speak(tmp_path):
    """speak(code, resume=False): a controller whose process runs this code; ended at the end of the test."""
    controllers = []

    def start(code: str, runFolder: Path | None = tmp_path / "run", resume: bool = False) -> RunController:
        script = tmp_path / f"speaker {len(controllers)}.py"
        script.write_text(SPEAKER + textwrap.dedent(code), encoding="utf-8")
        command = [sys.executable, str(script), str(tmp_path / "run")]
        backend = Backend(SOURCE, Path(sys.executable))
        backend.resumeCommand = lambda folder: command
        controller = RunController(backend)
        controllers.append(controller)
        assert controller.resume(runFolder) if resume else controller.start(command, runFolder)
        return controller

    yield start
    for controller in controllers:
        controller.forceStop(grace=0.0)


def ticked(controller: RunController, until=lambda: False, seconds: float = 30.0) -> set[str]:
    """Ticks as a timer does until nothing runs or `until()`. → the names of everything that changed."""
    seen: set[str] = set()
    end = time.monotonic() + seconds
    while controller.active and not until():
        assert time.monotonic() < end, (controller.state, list(controller.progress.log))
        changes = controller.tick()
        seen |= {name for name, value in vars(changes).items() if value}
        time.sleep(0.005)
    return seen


def test_a_run_goes_from_starting_over_running_to_done_and_says_what_changed(speak):
    controller = speak("""
        time.sleep(0.3); begin(); progress(50); time.sleep(0.3)
        tell("metric", name="loss/real", value=1.0, step=1)
        tell("synthetic", path="a", mask="b", step=1, agreement=0.5, near_copy=False)
        tell("prediction", case="c", path="p", volumes_ml={}, uncertainty=0.1, step=1)
        tell("warning", code="w", message="Slow.")
        finish(0)
    """)
    assert controller.state is State.STARTING and controller.active
    assert ticked(controller, until=lambda: controller.state is not State.STARTING) >= {"state"}
    assert controller.state is State.RUNNING and controller.progress.started
    seen = ticked(controller)
    assert seen == {"state", "progress", "curves", "synthetic", "predictions", "messages", "log"}
    assert (controller.state, controller.status, controller.explanation) == (State.DONE, 0, "")
    assert not controller.active and not controller.tick()


def test_nothing_new_is_no_change(speak):
    controller = speak("begin(); time.sleep(30)")
    ticked(controller, until=lambda: controller.state is State.RUNNING)
    time.sleep(0.1)
    assert not controller.tick()


def test_a_stop_is_graceful_and_says_what_is_left(speak, tmp_path):
    controller = speak("""
        begin(); progress(1); until_stopped()
        (run / "checkpoints" / "best.safetensors").write_text("")
        finish(3)
    """)
    ticked(controller, until=lambda: controller.state is State.RUNNING)
    assert not controller.resumable and controller.secondsStopping == 0
    controller.stop()
    controller.stop()
    assert controller.state is State.STOPPING and controller.active
    time.sleep(0.02)
    assert 0 < controller.secondsStopping < 5
    ticked(controller)
    assert (controller.state, controller.status) == (State.STOPPED, 3)
    assert controller.usable and controller.resumable and "can be used" in controller.explanation


def test_a_stop_before_the_run_has_begun_closes_the_input_and_leaves_no_folder(speak, tmp_path):
    controller = speak("watch_stdin(); progress(1, 'prepare'); time.sleep(60)")
    ticked(controller, until=lambda: controller.state is State.RUNNING)
    controller.stop()
    ticked(controller, seconds=10)
    assert controller.state is State.STOPPED and "before the training had begun" in controller.explanation
    assert not (tmp_path / "run").exists() and not controller.resumable


def test_a_stop_while_a_resumed_run_loads_is_not_lost(speak, tmp_path):
    """The backend takes an older `stop` away when it begins; the wish came in between."""
    controller = speak(
        """
        begin()
        progress(0, "prepare"); time.sleep(0.5); (run / "stop").unlink(missing_ok=True); begin(resumed=True)
        until_stopped(10)
        finish(3 if (run / "stop").exists() else 0)
        """
    )
    ticked(controller, until=lambda: controller.progress.phase == "prepare")
    controller.stop()
    ticked(controller)
    assert controller.state is State.STOPPED


def test_a_stop_before_a_resumed_run_says_anything_aborts_it_and_leaves_no_stop_file(speak, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "settings.json").write_text("{}")
    (tmp_path / "run" / "checkpoints" / "last.safetensors").write_text("")
    controller = speak("watch_stdin(); time.sleep(60)", resume=True)
    controller.stop()
    ticked(controller, seconds=20)
    assert controller.state is State.STOPPED and controller.resumable
    assert not (tmp_path / "run" / "stop").exists()


def test_a_forced_stop_ends_what_does_not_listen(speak):
    controller = speak("""
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        begin(); time.sleep(60)
    """)
    ticked(controller, until=lambda: controller.state is State.RUNNING)
    controller.stop()
    begin = time.monotonic()
    controller.forceStop(grace=0.2)
    assert time.monotonic() - begin < 5
    assert controller.state is State.STOPPED and controller.resumable and not controller.active


def test_closing_waits_for_a_graceful_end_and_then_uses_force(speak, tmp_path):
    patient = speak("begin(); until_stopped(); (run / 'polite').write_text(''); finish(3)")
    ticked(patient, until=lambda: patient.state is State.RUNNING)
    patient.close(seconds=10)
    assert patient.state is State.STOPPED and (tmp_path / "run" / "polite").exists()
    deaf = speak("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); begin(); time.sleep(60)")
    ticked(deaf, until=lambda: deaf.state is State.RUNNING)
    begin = time.monotonic()
    deaf.close(seconds=0.3)
    assert 0.3 <= time.monotonic() - begin < 5 and not deaf.active
    deaf.close()
    RunController().close()


def test_faults_of_the_input_are_all_told_with_their_remedies(speak):
    controller = speak("""
        tell("error", code="a", message="Rule one.", remedy="Do this.", case="scan 1")
        tell("error", code="b", message="Rule two.", remedy="Do that.", case="scan 2")
        finish(2)
    """)
    assert "messages" in ticked(controller)
    assert (controller.state, controller.status) == (State.FAILED, 2)
    assert controller.faults == [Fault("scan 1", "Rule one.", "Do this."), Fault("scan 2", "Rule two.", "Do that.")]
    for words in ("scan 1: Rule one.", "→ Do this.", "scan 2: Rule two.", "→ Do that."):
        assert words in controller.explanation
    assert "resumed" not in controller.explanation


def test_a_failure_after_checkpoints_says_that_the_run_can_go_on(speak):
    controller = speak("begin(); tell('error', code='no_disk', message='Full.', remedy='Delete.'); finish(1)")
    ticked(controller)
    assert controller.state is State.FAILED and controller.resumable and "can be resumed" in controller.explanation


def test_an_error_that_comes_while_stopping_is_not_hidden(speak):
    controller = speak("""
        begin(); progress(1); until_stopped()
        tell("error", code="no_disk", message="Full.", remedy="Delete."); finish(1)
    """)
    ticked(controller, until=lambda: controller.state is State.RUNNING)
    controller.stop()
    ticked(controller)
    assert controller.state is State.FAILED and "Full." in controller.explanation


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nosuchpackage", "The Python package nosuchpackage is missing."),
        ("print('Usage: genseg', file=sys.stderr); print('No such option --x', file=sys.stderr); sys.exit(2)", "--x"),
        ("os.kill(os.getpid(), 9)", "memory was full"),
        ("print('error: [python] exit abnormally', file=sys.stderr); sys.exit(1)", "memory was full"),
        ("os.kill(os.getpid(), 11)", "crashed (status -11)"),
        ("print('odd words'); sys.exit(5)", "ended unexpectedly (status 5). odd words"),
        ("sys.stderr.buffer.write(b'caf\\xe9 \\xff'); sys.exit(1)", "caf\\xe9 \\xff"),
    ],
)
def test_an_end_without_an_error_event_is_explained_as_well_as_can_be(speak, code, words):
    if os.name == "nt" and "kill" in code:
        pytest.skip("signals")
    controller = speak(code)
    ticked(controller)
    assert controller.state is State.FAILED and words in controller.explanation
    assert len(controller.faults) == 1 and controller.faults[0].remedy


def test_what_is_printed_on_either_stream_is_in_the_log(speak):
    controller = speak("print('a banner'); sys.stdout.flush(); print('a warning', file=sys.stderr); begin(); finish(0)")
    ticked(controller)
    assert {"a banner", "a warning"} < set(controller.progress.log) and controller.state is State.DONE


def test_a_program_that_is_not_there_is_a_failure_with_an_explanation(tmp_path):
    controller = RunController()
    assert not controller.start([str(tmp_path / "python"), "-m", "genseg"], tmp_path / "run")
    assert controller.state is State.FAILED and not controller.active
    assert "could not be started" in controller.explanation and controller.faults[0].remedy
    assert not controller.tick()


def test_only_one_run_at_a_time_and_a_new_one_forgets_the_old(speak, tmp_path):
    controller = speak("begin(); time.sleep(60)")
    for again in (lambda: controller.start(["x"], None), lambda: controller.show(tmp_path)):
        with pytest.raises(RuntimeError):
            again()
    controller.forceStop(grace=0.0)
    script = tmp_path / "speaker 0.py"
    script.write_text(SPEAKER + "begin(); finish(0)", encoding="utf-8")
    assert controller.start([sys.executable, str(script), str(tmp_path / "run")], tmp_path / "run")
    assert controller.state is State.STARTING and controller.explanation == "" and controller.progress.started == {}
    ticked(controller)
    assert controller.state is State.DONE


def test_a_resumed_run_shows_its_earlier_curves_and_forgets_its_earlier_end(speak, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    metric = {"event": "metric", "name": "loss/real", "value": 2.0, "step": 5}
    error = {"event": "error", "code": "x", "message": "Old trouble.", "remedy": ""}
    ended = {"event": "finished", "status": 1, "seconds": 1.0, "model": None}
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in (metric, error, ended)))
    controller = speak("sys.exit('new trouble')", resume=True)
    assert controller.progress.curves == {"loss/real": [(5, 2.0)]} and controller.progress.finished is None
    ticked(controller)
    assert "new trouble" in controller.explanation and "Old trouble" not in controller.explanation
    controller.show(run)
    assert controller.state is State.IDLE and controller.progress.finished == 1


def test_a_stop_file_that_cannot_be_written_closes_the_input_instead():
    calls = []

    class Process:
        finished, status = False, None

        def __init__(self, command, environment):
            pass

        def start(self):
            pass

        def poll(self):
            return [Line(json.dumps({"event": "progress", "phase": "train", "step": 1, "total": 2}), False)]

        def stopGracefully(self, folder):
            raise OSError("No space left on device")

        def closeInput(self):
            calls.append("closed")

    controller = RunController(makeProcess=Process)
    controller.start(["x"], Path("run"))
    controller.tick()
    controller.stop()
    assert calls == ["closed"] and controller.state is State.STOPPING


# --- the commands ---------------------------------------------------------------------------------------------------


def test_the_program_is_found_in_the_source_tree_and_beside_an_installed_module(tmp_path):
    assert Backend.locate(ROOT / "GenSegSlicer") == SOURCE
    installed = tmp_path / "lib" / "Slicer-5.10" / "qt-scripted-modules"
    (installed / "genseg").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="Install the extension again"):
        Backend.locate(installed)
    (installed / "genseg" / "cli.py").write_text("")
    assert Backend.locate(installed) == installed


def test_slicers_python_is_found_and_its_absence_is_said(tmp_path, monkeypatch):
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="Python was not found"):
        Backend.python(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / name).write_text("")
    assert Backend.python(tmp_path) == tmp_path / "bin" / name


@pytest.mark.skipif(os.name == "nt", reason="other names there")
def test_an_external_python_may_be_named_by_its_environment(tmp_path):
    (tmp_path / "venv ü" / "bin").mkdir(parents=True)
    python = tmp_path / "venv ü" / "bin" / "python"
    python.symlink_to(sys.executable)
    assert Backend.externalPython(tmp_path / "venv ü") == Backend.externalPython(python) == python
    (tmp_path / "text").write_text("")
    for wrong in (tmp_path / "none", tmp_path / "text", tmp_path):
        with pytest.raises(StudyFaults) as refused:
            Backend.externalPython(wrong)
        assert refused.value.faults[0].case == str(wrong)


def every(backend: Backend, folder: Path) -> dict[str, list[str]]:
    settings = TrainSettings(
        folder / "Studie ü", folder / "-run", "separate", 90.4, None, "cuda:1", folder / "alt", 7, 3, 0, 0.5, False,
        "unet", "pix2pix",
    )  # fmt: skip
    images = [folder / "a b.nrrd", folder / "脾.nrrd"]
    return {
        "train": backend.trainCommand(settings),
        "resume": backend.resumeCommand(folder / "run"),
        "predict": backend.predictCommand(folder / "run", images, folder / "out", "cpu", mirrored=False),
        "doctor": backend.doctorCommand(),
    }


def test_the_commands_carry_every_setting_and_only_absolute_paths(tmp_path):
    commands = every(Backend(SOURCE, Path("/py")), tmp_path)
    assert all(command[:3] == ["/py", "-m", "genseg"] for command in commands.values())
    train = [part for part in commands["train"] if part != "--no-learn-unlabelled"]
    assert len(train) == len(commands["train"]) - 1
    assert train[3:7] == ["train", str(tmp_path / "Studie ü"), "--out", str(tmp_path / "-run")]
    pairs = dict(zip(train[5:-2:2], train[6:-2:2], strict=True))
    expected = {"--budget": "90s", "--method": "separate", "--device": "cuda:1", "--init": str(tmp_path / "alt")}
    expected |= {"--generator": "pix2pix", "--segmenter": "unet", "--seed": "7"}
    expected |= {"--labelled": "3", "--unlabelled": "0", "--synthetic-weight": "0.5"}
    assert pairs == expected | {"--out": str(tmp_path / "-run")}
    for name in ("train", "resume", "predict"):
        assert commands[name][-2:] == ["--events", "--watch-stdin"]
    by_steps = Backend(SOURCE, Path("/py")).trainCommand(TrainSettings(Path("d"), Path("o"), iterations=12))
    assert "--budget" not in by_steps and "--no-learn-unlabelled" not in by_steps
    assert by_steps[by_steps.index("--method") + 1] == "auto"
    assert by_steps[by_steps.index("--iterations") + 1] == "12"
    for method in ("versemi", "supervised"):
        without = Backend(SOURCE, Path("/py")).trainCommand(
            TrainSettings(Path("d"), Path("o"), method, generator="vae")
        )
        assert "--generator" not in without, "it would be refused"
    assert Path(by_steps[4]).is_absolute()


def test_the_real_command_line_knows_every_option(tmp_path):
    backend = Backend(SOURCE, Path(backendPython()))
    environment = backend.environment({**os.environ, "COLUMNS": "200"})
    for name, command in every(backend, tmp_path).items():
        done = subprocess.run([*command[:4], "--help"], env=environment, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        options = [part for part in command[4:] if part.startswith("--")]
        assert not [option for option in options if option not in done.stdout], (name, done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "resume", "predict"])
def test_the_real_program_understands_each_command_and_refuses_what_is_not_there(name, tmp_path):
    """With exit status 2 and faults as events, which come after every option was understood."""
    backend = Backend(SOURCE, Path(backendPython()))
    controller = RunController(backend, backend.environment(os.environ))
    command = ["cpu" if part == "cuda:1" else part for part in every(backend, tmp_path)[name]]
    controller.start(command, tmp_path / "run")
    ticked(controller, seconds=120)
    assert (controller.state, controller.status) == (State.FAILED, 2), controller.explanation
    assert controller.progress.errors and all(fault.remedy for fault in controller.faults)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_lets_an_external_python_be_itself(tmp_path):
    home = tmp_path / "Slicer"
    libraries = os.pathsep.join([str(home / "lib"), "/opt/cuda/lib"])
    base = {"PATH": "/bin", "PYTHONHOME": str(home), "PYTHONPATH": str(home), "LD_LIBRARY_PATH": libraries, "X": "1"}
    inside = Backend(SOURCE, Path("/py")).environment(base, home)
    outside = Backend(SOURCE, Path("/py"), external=True).environment(base, home)
    assert inside["PYTHONPATH"] == os.pathsep.join([str(SOURCE), str(home)]) and inside["PYTHONHOME"] == str(home)
    assert outside["PYTHONPATH"] == str(SOURCE) and "PYTHONHOME" not in outside
    assert outside["LD_LIBRARY_PATH"] == "/opt/cuda/lib" and inside["LD_LIBRARY_PATH"] == libraries
    for one in (inside, outside):
        assert one["X"] == "1" and one["PYTHONUTF8"] == "1" and one["PYTHONUNBUFFERED"] == "1"
    assert base["PYTHONHOME"] == str(home)


def test_a_file_of_the_working_folder_is_never_taken_for_a_library(tmp_path):
    (tmp_path / "typer.py").write_text("raise SystemExit('taken')")
    backend = Backend(SOURCE, Path(backendPython()))
    process = BackendProcess([*backend.doctorCommand()[:3], "--version"], backend.environment(os.environ), tmp_path)
    process.start()
    said = []
    while not process.finished:
        said += process.poll()
        time.sleep(0.01)
    assert process.status == 0 and said[0].text.startswith("genseg "), said


# --- the real thing -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tinyStudy(data, tmp_path_factory) -> Path:
    """Two real labelled scans and a test scan, cut small; made by the backend's own Python."""
    folder = tmp_path_factory.mktemp("Studie ü") / "study"
    code = "import sys; from pathlib import Path; from tiny_run import tiny_study; tiny_study(*map(Path, sys.argv[1:]))"
    paths = os.pathsep.join([str(ROOT / "Testing" / "backend"), str(SOURCE)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [backendPython(), "-c", code, str(data / "hippocampus"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_real_training_is_started_stopped_resumed_and_finished(tinyStudy, tmp_path):
    run = tmp_path / "Lauf 脾"
    backend = Backend(SOURCE, Path(backendPython()))
    controller = RunController(backend, backend.environment({**os.environ, "OMP_NUM_THREADS": "1"}))
    settings = TrainSettings(tinyStudy, run, method="supervised", iterations=160, device="cpu")
    try:
        assert controller.start(backend.trainCommand(settings), run)
        told = controller.progress
        ticked(controller, until=lambda: bool(told.curves) and told.phase == "train", seconds=240)  # not at a check
        assert controller.state is State.RUNNING
        controller.stop()
        ticked(controller, seconds=240)
        assert (controller.state, controller.status) == (State.STOPPED, 3), controller.explanation
        assert controller.usable and controller.resumable and not (run / "done").exists()
        first = dict(controller.progress.curves)

        assert controller.resume(run)
        seen = ticked(controller, seconds=300)
        assert (controller.state, controller.explanation) == (State.DONE, ""), list(controller.progress.log)
    finally:
        controller.forceStop(grace=0.0)
    assert {"state", "progress", "curves", "predictions", "log"} <= seen
    progress = controller.progress
    assert progress.started["resumed"] and progress.finished == 0 and progress.fraction == 1.0
    assert len(progress.predictions) == 1 and (run / "done").exists() and not (run / "stop").exists()
    steps = [step for step, _value in progress.curves["loss/real"]]
    assert steps == sorted(set(steps)) and steps[-1] == 160 and steps[0] == first["loss/real"][0][0]
    controller.show(run)
    assert controller.progress.curves == progress.curves and controller.progress.predictions == progress.predictions
    (listed,) = RunList(tmp_path).runs()
    assert (listed.kind, listed.method, listed.labelled) == (RunKind.FINISHED, "supervised", 2)
    assert listed.dice is not None and listed.seconds > 0 and len(listed.labels) == 2
    RunList(tmp_path).remove(listed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_study_with_faults_is_refused_with_every_fault_and_no_folder(tinyStudy, tmp_path):
    content = json.loads((tinyStudy / "dataset.json").read_text(encoding="utf-8"))
    content["training"] = [{"image": "weg 1.nii.gz", "label": "weg 2.nii.gz"}]
    broken = tinyStudy / "broken.json"
    broken.write_text(json.dumps(content), encoding="utf-8")
    backend = Backend(SOURCE, Path(backendPython()))
    controller = RunController(backend, backend.environment(os.environ))
    controller.start(backend.trainCommand(TrainSettings(broken, tmp_path / "run")), tmp_path / "run")
    ticked(controller, seconds=120)
    assert (controller.state, controller.status) == (State.FAILED, 2)
    assert "weg 1" in controller.explanation and "weg 2" in controller.explanation
    assert not (tmp_path / "run").exists()
