"""The regular checks of a run and its end: usable model, predictions, pairs, metrics, bundle, report."""

import time
from collections.abc import Callable
from itertools import groupby

from genseg.cases import Case
from genseg.errors import EXIT_OK, EXIT_STOPPED
from genseg.evaluate import evaluate_cases, summarise
from genseg.events import EventLog, Progress
from genseg.export import export_bundle
from genseg.inference import Predictor
from genseg.predict import Split, by_files, predict_cases
from genseg.report import build_report
from genseg.runfolder import RunFolder, read_json, replacing, write_json
from genseg.state import RunState
from genseg.synthesize import write_pairs

PAIRS = 4  # written at a check
FIRST_LOOK = 0.02  # of the budget that predictions in the middle of a run may take
FIRST_LOOK_SECONDS = 10.0  # the same where the run is limited by iterations


def check(run: RunFolder, state: RunState, log: EventLog) -> None:
    """Save the usable model, write some pairs, and predict as many scans as fit into a small part of the budget."""
    state.save_model(run.best)
    if state.joint.synthesis is not None:
        _write_pairs(run, state, log)
    limit = FIRST_LOOK_SECONDS if state.settings.iterations else FIRST_LOOK * (state.settings.budget or 0)
    end = time.monotonic() + limit
    _predict(run, state, log, lambda: time.monotonic() > end or run.stop.exists(), tta=False)


def finish(run: RunFolder, state: RunState, status: int, log: EventLog) -> int:
    """Everything a finished or stopped run leaves; `done` is written last, and only where the run is finished.

    → exit status: a stop may still be asked for while the last predictions are made.
    """
    if status != EXIT_OK and not run.best.exists() and state.counters.step == 0:
        return status  # stopped before the segmenter's first step: there is nothing to show
    state.save_model(run.best)
    if status == EXIT_OK:
        if state.joint.synthesis is not None:
            _write_pairs(run, state, log)
        _predict(run, state, log, run.stop.exists, tta=True)
        status = EXIT_STOPPED if run.stop.exists() else EXIT_OK
    if status == EXIT_OK:
        _evaluate(run, state, log)
    log.emit(Progress(phase="report", step=0, total=2))
    export_bundle(run, run.model)
    log.emit(Progress(phase="report", step=1, total=2))
    build_report(run, status)
    log.emit(Progress(phase="report", step=2, total=2))
    if status == EXIT_OK:
        with replacing(run.done) as temporary:
            temporary.write_text(f"step {state.counters.step}\n", encoding="utf-8")
        run.stop.unlink(missing_ok=True)  # asked for too late
    return status


def _predict(run: RunFolder, state: RunState, log: EventLog, stopped: Callable[[], bool], tta: bool) -> None:
    """Predict the scans without labels and the test scans until all are done or `stopped()`.

    The scans that have no prediction yet come first, then those whose prediction is oldest.
    """
    study, step = state.prepared.study, state.counters.step
    predictor = Predictor(state.average.network, state.joint.plan, study.labels, state.joint.device)
    entries = read_json(run.predictions_index)["cases"] if run.predictions_index.exists() else []
    made = {entry["case"]: entry["step"] for entry in entries}
    cases: list[tuple[Split, Case]] = [("unlabeled", case) for case in study.unlabeled]
    cases += [("test", case) for case in study.test]
    cases.sort(key=lambda pair: made.get(pair[1].id, -1))
    for split, group in groupby(cases, key=lambda pair: pair[0]):
        some = [case for _, case in group]
        predict_cases(predictor, some, run.predictions, log, split, tta=tta, step=step, stopped=stopped)


def _write_pairs(run: RunFolder, state: RunState, log: EventLog) -> None:
    """New pairs of the generator as it is now, beside the earlier ones."""
    counters = state.counters
    seed = state.settings.seed * 1000 + counters.checks
    write_pairs(state, PAIRS, run.synthetic, log, seed, first=(counters.checks - 1) * PAIRS, prefix="synthetic/")


def _evaluate(run: RunFolder, state: RunState, log: EventLog) -> None:
    """Score the predictions of the test scans that have a reference."""
    study = state.prepared.study
    cases = [case for case in study.test if case.label is not None] if run.predictions_index.exists() else []
    scores, _ = evaluate_cases(cases, study.labels, by_files(run.predictions, study.labels), log) if cases else ([], [])
    if len(scores) < len(cases):
        log.warn("not_evaluated", f"{len(cases) - len(scores)} of {len(cases)} test scans could not be evaluated.")
    if scores:
        write_json(run.metrics, {"test": summarise(scores)})
