"""The regular checks of a run and its end: usable model, predictions, pairs, metrics, bundle, report."""

import time

from genseg.cases import Case
from genseg.errors import EXIT_OK
from genseg.evaluate import evaluate_cases, summarise
from genseg.events import EventLog, Progress
from genseg.export import export_bundle
from genseg.inference import Predictor
from genseg.predict import Split, by_files, predict_cases
from genseg.report import build_report
from genseg.runfolder import RunFolder, replacing, write_json
from genseg.state import RunState
from genseg.synthesize import write_pairs

PAIRS = 4  # written at a check
FIRST_LOOK = 0.05  # of the budget that predictions in the middle of a run may take
FIRST_LOOK_SECONDS = 10.0  # the same where the run is limited by iterations


def check(run: RunFolder, state: RunState, log: EventLog) -> None:
    """Save the usable model, write some pairs, and predict as many scans as fit into a small part of the budget."""
    state.save_models(run.best, run.generator)
    if state.joint.synthesis is not None and state.counters.checks > 0:
        _write_pairs(run, state, log)
    limit = FIRST_LOOK_SECONDS if state.settings.iterations else FIRST_LOOK * (state.settings.budget or 0)
    begin, predictor = time.monotonic(), _predictor(state)
    for split, case in _to_predict(state):
        if time.monotonic() - begin > limit:
            break
        predict_cases(predictor, [case], run.predictions, log, split, tta=False, step=state.counters.step)


def finish(run: RunFolder, state: RunState, status: int, log: EventLog) -> None:
    """Everything a finished or stopped run leaves; `done` is written last, and only where the run is finished."""
    if status != EXIT_OK and not run.best.exists() and state.counters.step == 0:
        return  # stopped before the segmenter's first step: there is nothing to show
    state.save_models(run.best, run.generator)
    if status == EXIT_OK:
        if state.joint.synthesis is not None:
            _write_pairs(run, state, log)
        predictor = _predictor(state)
        for split in ("unlabeled", "test"):
            cases = [case for of, case in _to_predict(state) if of == split]
            if cases:
                predict_cases(predictor, cases, run.predictions, log, split, step=state.counters.step)
        _evaluate(run, state, log)
    log.emit(Progress(phase="report", step=0, total=2))
    export_bundle(run, run.model)
    log.emit(Progress(phase="report", step=1, total=2))
    build_report(run)
    log.emit(Progress(phase="report", step=2, total=2))
    if status == EXIT_OK:
        with replacing(run.done) as temporary:
            temporary.write_text(f"step {state.counters.step}\n", encoding="utf-8")


def _predictor(state: RunState) -> Predictor:
    return Predictor(state.average.network, state.joint.plan, state.prepared.study.labels, state.joint.device)


def _to_predict(state: RunState) -> list[tuple[Split, Case]]:
    study = state.prepared.study
    unlabeled: list[tuple[Split, Case]] = [("unlabeled", case) for case in study.unlabeled]
    return unlabeled + [("test", case) for case in study.test]


def _write_pairs(run: RunFolder, state: RunState, log: EventLog) -> None:
    """New pairs of the generator as it is now, beside the earlier ones."""
    counters = state.counters
    seed = state.settings.seed * 1000 + counters.checks
    write_pairs(state, PAIRS, run.synthetic, log, seed, first=counters.checks * PAIRS, prefix="synthetic/")


def _evaluate(run: RunFolder, state: RunState, log: EventLog) -> None:
    """Score the predictions of the test scans that have a reference."""
    study = state.prepared.study
    cases = [case for case in study.test if case.label is not None]
    scores, _ = evaluate_cases(cases, study.labels, by_files(run.predictions, study.labels), log) if cases else ([], [])
    if scores:
        write_json(run.metrics, {"test": summarise(scores)})
