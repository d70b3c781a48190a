"""Train: set up, fit, check now and then, finish. The method itself is methods/joint.py."""

import math
import os
import shutil
from pathlib import Path

from rich.console import Console

from genseg import __version__
from genseg.device import is_out_of_memory
from genseg.errors import EXIT_OK, EXIT_STOPPED, RunFailed
from genseg.events import EventLog, Finished, Metric, Planned, Progress, Started
from genseg.exclusions import Exclusions
from genseg.finish import check, finish
from genseg.prepare import prepare, prepare_again, versions
from genseg.recovery import Recovery
from genseg.runfolder import RunFolder
from genseg.schedule import Clock, learning_rate, stage_at
from genseg.settings import Settings
from genseg.state import RunState, build_state
from genseg.warmstart import start_from

CHECKS = 5  # the first after a fifth of the training: from then on there is a usable model
CHECKPOINT_SECONDS = 20.0
METRIC_EVERY = 10  # steps
METRIC_SECONDS = 2.0  # the same where steps are slow


def train(settings: Settings, log: EventLog) -> int:
    """A new run. → exit status. Raises InputFaults or RunFailed; a faulty study leaves no run folder behind."""
    settings.versions = versions()
    prepared = prepare(settings, log)
    state = build_state(prepared, settings)
    if settings.init is not None:
        start_from(settings.init, state, log)
    run = RunFolder(settings.out)
    _create(run, state)
    return _run(run, state, log, resumed=False)


def resume(path: Path, log: EventLog) -> int:
    """Go on from the last checkpoint. On a processor the result equals that of an uninterrupted run."""
    run = RunFolder(path)
    if not run.last.exists():
        raise RunFailed("no_checkpoint", f"{path} holds no checkpoint to go on from.", "Give the folder of a run.")
    if run.done.exists():
        log.warn("already_done", "This run is finished; there is nothing to go on with.")
        return EXIT_OK
    settings = Settings.load(run.settings)
    run.stop.unlink(missing_ok=True)
    _clear_leftovers(run)
    state = build_state(prepare_again(run, settings, log), settings)
    state.load(run.last)
    return _run(run, state, log, resumed=True)


def _create(run: RunFolder, state: RunState) -> None:
    """The run folder with all that a resume needs, built under a temporary name and then renamed."""
    building = RunFolder(run.path.with_name(f".part-{os.getpid()}-{run.path.name}"))
    try:
        state.settings.save(building.settings)
        state.prepared.study.save(building.study)
        state.prepared.plan.save(building.plan)
        state.save(building.last)
        if run.path.is_dir():
            run.path.rmdir()  # empty, or this refuses
        os.replace(building.path, run.path)
    finally:
        shutil.rmtree(building.path, ignore_errors=True)


def _clear_leftovers(run: RunFolder) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for path in run.path.rglob(".part-*"):
        path.unlink(missing_ok=True)


def _run(run: RunFolder, state: RunState, log: EventLog, resumed: bool) -> int:
    settings, counters = state.settings, state.counters
    clock = Clock(settings, counters.elapsed, counters.pretrain_seconds)
    log.open(run.events)
    log.emit(
        Started(
            version=__version__,
            run=str(run.path),
            method=settings.method,
            device=state.joint.device.name,
            resumed=resumed,
        )
    )
    log.emit(Planned(plan=state.joint.plan.model_dump(mode="json")))
    status = finish(run, state, fit(run, state, clock, log), log)
    seconds = clock.elapsed
    log.emit(Finished(status=status, seconds=seconds, model=str(run.best) if run.best.exists() else None))
    return status


def fit(run: RunFolder, state: RunState, clock: Clock, log: EventLog) -> int:
    """Pretrain the generator, then train jointly until the budget is used up or a stop is asked for."""
    recovery, exclusions = Recovery(run, state, log), Exclusions(run, log)
    saved = clock.elapsed
    while True:
        clock.tick()
        counters = state.counters
        pretraining = state.joint.synthesis is not None and clock.pretrain_progress(counters.pretrain_step) < 1
        pretraining = pretraining and counters.step == 0
        progress = 0.0 if pretraining else clock.progress(counters.step)
        due = not pretraining and clock.share(counters.step) >= (counters.checks + 1) / CHECKS
        finished = not pretraining and progress >= 1
        stopped = run.stop.exists()
        if due or finished or stopped or clock.elapsed - saved > CHECKPOINT_SECONDS:
            if not _checkpoint(run, state, clock):
                recovery.go_back(clock)
                continue
            saved = clock.elapsed
        if stopped:
            return EXIT_STOPPED
        if finished:
            counters.checks = CHECKS
            return EXIT_OK
        if due:
            counters.checks = int(CHECKS * clock.share(counters.step) + 1e-9)  # a slow step may pass several
            check(run, state, log)
        if state.joint.synthesis is not None and not pretraining:
            state.joint.synthesis.sources.styles.excluded = exclusions.at(counters.step)
        seen = _step(state, clock, pretraining, progress, log)
        if seen is None:
            recovery.make_smaller()
        elif not all(math.isfinite(value) for value in seen.values()):
            recovery.go_back(clock)
        else:
            _report(state, clock, pretraining, progress, seen, log)


def _step(state: RunState, clock: Clock, pretraining: bool, progress: float, log: EventLog) -> dict[str, float] | None:
    """What a step saw; None where memory ran out. Then everything the step held is free again on return."""
    try:
        return _pretrain_step(state, clock, log) if pretraining else _train_step(state, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def _pretrain_step(state: RunState, clock: Clock, log: EventLog) -> dict[str, float]:
    """First maps to other scans' shapes, one at a time, then steps of level 1 alone, on augmented real pairs."""
    joint, counters = state.joint, state.counters
    assert joint.synthesis is not None
    shapes = joint.synthesis.sources.shapes
    seen: dict[str, float] = {}
    if counters.pretrain_step == 0 and len(shapes.maps) < clock.shapes_wanted(len(shapes.maps), len(shapes.pairs)):
        shapes.find()
    else:
        if counters.pretrain_step == 0 and shapes.failed:
            log.warn(
                "not_registered",
                f"{shapes.failed} of {len(shapes.maps)} registrations between scans did not succeed; training does "
                "without the shapes of those scans.",
            )
        seen = joint.pretrain(joint.synthesis, counters.pretrain_step)
        counters.pretrain_step += 1
    clock.tick()
    counters.pretrain_seconds = clock.elapsed
    clock.pretrain_seconds = clock.elapsed
    return seen


def _train_step(state: RunState, progress: float) -> dict[str, float]:
    joint, counters = state.joint, state.counters
    rate = learning_rate(progress, counters.step, counters.rate_scale)
    for group in joint.optimiser.param_groups:
        group["lr"] = rate
    stage = stage_at(progress, counters.step, state.prepared.study.patients, state.settings)
    seen = joint.step(counters.step, stage)
    counters.step += 1
    return seen | {"learning_rate": rate}


def _checkpoint(run: RunFolder, state: RunState, clock: Clock) -> bool:
    """Save the state; → False where a weight is not finite: a last step can ruin what its own loss did not show."""
    if not state.is_finite():
        return False
    state.counters.elapsed = clock.elapsed
    state.save(run.last)
    return True


def _report(
    state: RunState, clock: Clock, pretraining: bool, progress: float, seen: dict[str, float], log: EventLog
) -> None:
    """Events of a step: not more than the curves need."""
    counters = state.counters
    step = counters.pretrain_step if pretraining else counters.step
    if step % METRIC_EVERY and "loss/validation" not in seen and clock.elapsed - clock.reported < METRIC_SECONDS:
        return
    clock.reported = clock.elapsed
    at = counters.step
    if not pretraining:
        for name, value in seen.items():
            log.emit(Metric(name=name, value=value, step=at))
        total = state.settings.iterations or (round(at / progress) if progress > 0.01 else 0)
        log.emit(Progress(phase="train", step=at, total=max(at, total), seconds_left=clock.seconds_left(progress)))
        return
    if step == 0:
        assert state.joint.synthesis is not None
        shapes = state.joint.synthesis.sources.shapes
        found = len(shapes.maps)
        log.emit(Progress(phase="shapes", step=found, total=clock.shapes_wanted(found, len(shapes.pairs))))
        return
    for name, value in seen.items():
        log.emit(Metric(name=f"pretrain/{name}", value=value, step=step))
    share = max(clock.pretrain_progress(step), 1e-6)
    log.emit(Progress(phase="pretrain", step=step, total=max(step, round(step / share))))


def profile(settings: Settings, log: EventLog) -> None:
    """Print what a joint step costs against a supervised step, both timed in this process, step about step."""
    from genseg.profiling import compare_steps

    settings = settings.model_copy(update={"method": "genseg"})
    state = build_state(prepare(settings, log), settings)
    compare_steps(state, Console())
