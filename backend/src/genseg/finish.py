"""The regular checks of a run and its end: usable model, predictions, pairs, metrics, bundle, report."""

import shutil
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby
from pathlib import Path

from genseg.cases import Case
from genseg.errors import EXIT_OK, EXIT_STOPPED
from genseg.evaluate import evaluate_cases, summarise
from genseg.events import EventLog, Progress
from genseg.export import export_bundle
from genseg.inference import Predictor
from genseg.outputs import Output
from genseg.predict import Split, by_files, predict_cases
from genseg.report import build_reports
from genseg.runfolder import RunFolder, building_folder, read_json, write_json
from genseg.schedule import TEACHES_FROM
from genseg.state import RunState
from genseg.synthesize import write_pairs

PAIRS = 4  # written at a check
FIRST_LOOK = 0.02  # of the budget that predictions in the middle of a run may take
FIRST_LOOK_SECONDS = 10.0  # the same where the run is limited by iterations
FOUND = 0.01  # running Dice on patches of the labelled scans below which a structure counts as not found


def check(run: RunFolder, state: RunState, made: list[Output]) -> None:
    """Save the usable model, write some pairs, and predict as many scans as fit into a small part of the budget."""
    state.save_model(run.best)
    limit = FIRST_LOOK_SECONDS if state.settings.iterations else FIRST_LOOK * (state.settings.budget or 0)
    for output in made:
        _save(run, output)
        if output.state.joint.synthesis is not None:
            _write_pairs(output)
        _predict(output, partial(_over, time.monotonic() + limit / len(made), run), tta=False)


def _over(end: float, run: RunFolder) -> bool:
    return time.monotonic() > end or run.stop.exists()


def _save(run: RunFolder, output: Output) -> None:
    """The usable model beside the plan and the label table that belong to it."""
    if output.folder is not run:
        output.state.save_model(output.folder.best)


def finish(run: RunFolder, state: RunState, status: int, made: list[Output], log: EventLog) -> int:
    """Everything a finished or stopped run leaves; `done` is written last, and only where the run is finished.

    → exit status: a stop may still be asked for while the last predictions are made.
    """
    if status != EXIT_OK and not run.best.exists() and state.counters.step == 0:
        return status  # stopped before the segmenter's first step: there is nothing to show
    state.save_model(run.best)
    seen = [case.images for part in state.parts for case in part.prepared.seen_unlabelled]
    for output in made:
        _save(run, output)
        status = _show(run, output, seen) if status == EXIT_OK else status
    log.emit(Progress(phase="report", step=0, total=2))
    for output in made:
        export_bundle(output.folder, output.folder.model)
        if (s := output.state.joint.synthesis) is not None:
            with building_folder(output.folder.generator) as temporary:
                s.generator.save(temporary, s.meta.noise_log)
                shutil.rmtree(output.folder.generator, ignore_errors=True)  # of an earlier end of this run
    log.emit(Progress(phase="report", step=1, total=2))
    build_reports(run, status)
    log.emit(Progress(phase="report", step=2, total=2))
    if status == EXIT_OK:
        for folder in [output.folder for output in made if output.folder is not run] + [run]:
            folder.mark_done(state.counters.step)
        run.stop.unlink(missing_ok=True)  # asked for too late
    return status


def _show(run: RunFolder, output: Output, seen: list[list[Path]]) -> int:
    """Last pairs, predictions and scores of a study. → exit status."""
    if output.state.joint.synthesis is not None:
        _write_pairs(output)
    _predict(output, run.stop.exists, tta=True)
    if run.stop.exists():
        return EXIT_STOPPED
    _name_the_unfound(output)
    _say_if_too_short(output)
    _evaluate(output, seen)
    return EXIT_OK


def _predict(output: Output, stopped: Callable[[], bool], tta: bool) -> None:
    """Predict the scans without labels and the test scans until all are done or `stopped()`.

    The scans that have no prediction yet come first, then those whose prediction is oldest.
    """
    part, folder, step = output.state.turn, output.folder, output.state.counters.step
    study = part.prepared.study
    predictor = Predictor(part.model, part.joint.plan, study.labels, part.joint.device)
    entries = read_json(folder.predictions_index)["cases"] if folder.predictions_index.exists() else []
    made = {entry["case"]: entry["step"] for entry in entries}
    cases: list[tuple[Split, Case]] = [("unlabeled", case) for case in study.unlabeled]
    cases += [("test", case) for case in study.test]
    cases.sort(key=lambda pair: made.get(pair[1].id, -1))
    for split, group in groupby(cases, key=lambda pair: pair[0]):
        some = [case for _, case in group]
        predict_cases(predictor, some, folder.predictions, output.log, split, tta=tta, step=step, stopped=stopped)


def _write_pairs(output: Output) -> None:
    """New pairs of the generator as it is now, beside the earlier ones."""
    state, counters = output.state, output.state.counters
    seed, first = state.settings.seed * 1000 + counters.checks, (counters.checks - 1) * PAIRS
    write_pairs(state, PAIRS, output.folder.synthetic, output.log, seed, first=first, prefix="synthetic/")


def _name_the_unfound(output: Output) -> None:
    """Warn of structures that the segmenter does not find even where it was taught them."""
    part = output.state.turn
    structures = zip(part.prepared.study.labels.structures, part.joint.found.tolist(), strict=True)
    unfound = [structure.name for structure, dice in structures if dice < FOUND]
    if unfound:
        output.log.warn(
            "not_found",
            f"The model finds no {' and no '.join(unfound)}, not even in the scans that it was trained on.",
            "Train longer, and see that it is drawn alike in all labelled scans.",
        )


def _say_if_too_short(output: Output) -> None:
    """A training may end before it begins to learn from scans without labels."""
    state, unlabelled = output.state, output.state.prepared.unlabelled
    own = state.counters.step // len(state.settings.datasets)  # the study's own count
    if state.settings.mixes and unlabelled and own <= TEACHES_FROM:
        output.log.warn(
            "too_short",
            f"Training was too short to learn from the {len(unlabelled)} scans without labels: it made {own} steps, "
            f"and it learns from them only after {TEACHES_FROM}, when the model knows something.",
            "Train longer.",
        )


def _evaluate(output: Output, seen: list[list[Path]]) -> None:
    """Score the predictions of the test scans that have a reference. `seen`: what training saw without labels."""
    study, folder, log = output.state.prepared.study, output.folder, output.log
    cases = [case for case in study.test if case.label is not None] if folder.predictions_index.exists() else []
    segment = by_files(folder.predictions, study.labels) if cases else None
    scores = evaluate_cases(cases, study.labels, segment, log)[0] if segment is not None else []
    if len(scores) < len(cases):
        log.warn("not_evaluated", f"{len(cases) - len(scores)} of {len(cases)} test scans could not be evaluated.")
    if scores:
        seen_unlabelled = [case.id for case in cases if case.images in seen]
        write_json(folder.metrics, {"test": summarise(scores), "seen_unlabelled": seen_unlabelled})
