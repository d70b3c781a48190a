"""Train: set up, fit, check now and then, finish. The method itself is methods/joint.py."""

import math
import shutil
from pathlib import Path

from rich.console import Console

from genseg import __version__
from genseg.device import is_out_of_memory
from genseg.errors import EXIT_OK, EXIT_STOPPED, RunFailed
from genseg.events import EventLog, Finished, Metric, Planned, Progress, Started
from genseg.exclusions import Exclusions
from genseg.finish import check, finish
from genseg.methods.shapes import ShapePool
from genseg.outputs import Output, outputs
from genseg.prepare import prepare, prepare_again, versions
from genseg.recovery import Recovery
from genseg.runfolder import RunFolder, building, write_json
from genseg.schedule import Clock, learning_rate, stage_at
from genseg.settings import Settings
from genseg.startingmodel import Start, StartingModel, described
from genseg.state import RunState, build_state

CHECKS = 5  # the first after a fifth of the training: from then on there is a usable model
CHECKPOINT_SECONDS = 20.0
METRIC_EVERY = 10  # steps
METRIC_SECONDS = 2.0  # the same where steps are slow


def train(settings: Settings, log: EventLog) -> int:
    """A new run. → exit status. Raises InputFaults or RunFailed; a faulty study leaves no run folder behind."""
    settings.versions = versions()
    start = Start(settings.init)
    state = build_state(prepare(settings, log, start=start), settings)
    if start.model is not None:
        start.model.give(state, log)
    run = RunFolder(settings.out)
    _create(run, state, start.model)
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


def _create(run: RunFolder, state: RunState, start: StartingModel | None) -> None:
    """The run folder with all that a resume needs, built under a temporary name and then renamed."""
    with building(run.path) as made:
        state.settings.save(made.settings)
        names = [part.prepared.study.name for part in state.parts]
        together = [described(part.prepared.study).model_dump() for part in state.parts]
        for folder, part in zip(made.studies(names), state.parts, strict=True):
            state.settings.save(folder.settings)
            part.prepared.study.save(folder.study)
            part.prepared.plan.save(folder.plan)
            if len(names) > 1:
                write_json(folder.together, together)
            if start is not None:
                write_json(folder.origin, [one.model_dump() for one in start.trained_on])
        if len(names) > 1:
            write_json(made.order, names)
        state.save(made.last)


def _clear_leftovers(run: RunFolder) -> None:
    """Remove the temporary files of a process that was killed while it wrote."""
    for path in list(run.path.rglob(".part-*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _run(run: RunFolder, state: RunState, log: EventLog, resumed: bool) -> int:
    settings, counters = state.settings, state.counters
    clock = Clock(settings, counters.elapsed, counters.pretrain_seconds)
    if len(state.parts) > 1:
        log.open(run.events)
    made = outputs(run, state)
    started = Started(
        version=__version__,
        run=str(run.path),
        method=settings.method,
        device=state.joint.device.name,
        resumed=resumed,
    )
    for own in {id(one): one for one in [log, *(output.log for output in made)]}.values():
        own.emit(started)
    for output in made:
        output.log.emit(Planned(plan=output.state.joint.plan.model_dump(mode="json")))
    status = finish(run, state, fit(run, state, clock, made), made, log)
    for output in made if len(made) > 1 else []:
        output.log.emit(Finished(status=status, seconds=clock.elapsed, model=output.folder.found_model()))
    log.emit(Finished(status=status, seconds=clock.elapsed, model=run.found_model()))
    return status


def fit(run: RunFolder, state: RunState, clock: Clock, made: list[Output]) -> int:
    """Pretrain the generator, then train jointly until the budget is used up or a stop is asked for."""
    recovery, wishes = Recovery(run, state), [Exclusions(output.folder, output.log) for output in made]
    saved = clock.elapsed
    while True:
        clock.tick()
        counters = state.counters
        pretraining = state.settings.generates and clock.pretrain_progress(counters.pretrain_step) < 1
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
            check(run, state, made)
        turn = state.parts.index(state.turn)
        if state.joint.synthesis is not None and not pretraining:
            state.joint.synthesis.sources.styles.excluded = wishes[turn].at(counters.step)
        seen = _step(state, clock, pretraining, progress)
        if seen is None:
            recovery.make_smaller()
        elif not all(math.isfinite(value) for value in seen.values()):
            recovery.go_back(clock)
        else:
            _report(state, clock, pretraining, progress, seen, made[turn].log)


def _step(state: RunState, clock: Clock, pretraining: bool, progress: float) -> dict[str, float] | None:
    """What a step saw; None where memory ran out. Then everything the step held is free again on return."""
    try:
        return pretrain_step(state, clock) if pretraining else train_step(state, progress)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None


def pretrain_step(state: RunState, clock: Clock) -> dict[str, float]:
    """First maps to other scans' shapes, one at a time, then steps of level 1 alone, on augmented real pairs."""
    joint, counters = state.joint, state.counters
    seen: dict[str, float] = {}
    if (shapes := shapes_due(state, clock)) is not None:
        shapes.find()
    else:
        if counters.pretrain_step == 0:
            _warn_of_lost(state)
        assert joint.synthesis is not None
        seen = joint.pretrain(joint.synthesis, counters.pretrain_step // len(state.parts))
        counters.pretrain_step += 1
    clock.tick()
    counters.pretrain_seconds = clock.elapsed
    clock.pretrain_seconds = clock.elapsed
    return seen


def shapes_due(state: RunState, clock: Clock) -> ShapePool | None:
    """The study with the fewest maps to other scans' shapes, as long as more of them are to be found."""
    pools = _shapes(state) if state.counters.pretrain_step == 0 else []
    due = [pool for pool in pools if len(pool.maps) < clock.shapes_wanted(len(pool.maps), len(pool.pairs))]
    return min(due, key=lambda pool: len(pool.maps), default=None)


def _shapes(state: RunState) -> list[ShapePool]:
    return [part.joint.synthesis.sources.shapes for part in state.parts if part.joint.synthesis is not None]


def _warn_of_lost(state: RunState) -> None:
    for part, pool in zip(state.parts, _shapes(state), strict=True):
        if pool.failed:
            part.prepared.log.warn(
                "not_registered",
                f"{pool.failed} of {len(pool.maps)} registrations between scans did not succeed; training does "
                "without the shapes of those scans.",
            )


def train_step(state: RunState, progress: float) -> dict[str, float]:
    joint, counters = state.joint, state.counters
    rate = learning_rate(progress, counters.step, counters.rate_scale)
    for group in joint.optimiser.param_groups:
        group["lr"] = rate
    own = counters.step // len(state.parts)  # the study's own count of steps
    stages = [stage_at(progress, own, part.prepared.study.patients, state.settings) for part in state.parts]
    stage = stages.pop(state.parts.index(state.turn))
    stage.others = [other.train for other in stages]  # what another study holds out, nobody trains on
    seen = joint.step(own, stage)
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
    if (
        step // len(state.parts) % METRIC_EVERY
        and "loss/validation" not in seen
        and clock.elapsed - clock.reported < METRIC_SECONDS
    ):
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
        counts = [(len(pool.maps), len(pool.pairs)) for pool in _shapes(state)]
        wanted = sum(clock.shapes_wanted(found, possible) for found, possible in counts)
        log.emit(Progress(phase="shapes", step=sum(found for found, _ in counts), total=wanted))
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
