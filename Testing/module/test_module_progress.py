"""What the window shows of a run, from its event lines alone."""

import json
import time
from pathlib import Path

import pytest
from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.RunProgress import LOG_LINES, RunProgress, durationText

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "events.schema.json").read_text(encoding="utf-8"))
KINDS = {shape["properties"]["event"]["const"]: shape for shape in SCHEMA["$defs"].values()}


def documented() -> list[str]:
    """The event lines in docs/run-folder.md, in their order."""
    blocks = (DOCS / "run-folder.md").read_text(encoding="utf-8").split("```jsonl\n")[1:]
    return [line for block in blocks for line in block.split("```")[0].splitlines()]


def fed(*events: dict | str) -> RunProgress:
    progress = RunProgress()
    for event in events:
        progress.feed(event if isinstance(event, str) else json.dumps(event))
    return progress


def started(**more) -> dict:
    return {"event": "started", "version": "0", "run": "/r", "method": "genseg", "device": "cpu", **more}


def at(phase: str, step: int, total: int, left: float | None = None) -> dict:
    return {"event": "progress", "phase": phase, "step": step, "total": total, "seconds_left": left}


def metric(name: str, step: int, value: float) -> dict:
    return {"event": "metric", "name": name, "value": value, "step": step}


def sample(shape: dict):
    """A value that fits a piece of the schema."""
    if "const" in shape or "enum" in shape:
        return shape.get("const") or shape["enum"][0]
    if "anyOf" in shape:
        return sample(shape["anyOf"][0])
    return {"string": "x", "integer": 1, "number": 0.5, "boolean": True, "object": {}}[shape["type"]]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_of_the_contract_is_understood_with_and_without_what_is_optional(kind):
    properties, required = KINDS[kind]["properties"], KINDS[kind].get("required", [])
    whole = {name: sample(shape) for name, shape in properties.items()}
    least = {"event": kind, **{name: whole[name] for name in required}}
    for event in (whole, least):
        assert RunProgress().feed(json.dumps(event)) == event


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_that_lacks_what_the_contract_promises_is_only_a_line_of_the_log(kind):
    required = KINDS[kind].get("required", [])
    whole = {"event": kind, **{name: sample(KINDS[kind]["properties"][name]) for name in required}}
    ignored = {"version"}  # which nobody shows
    for name in set(required) - ignored:
        line = json.dumps({key: value for key, value in whole.items() if key != name})
        progress = RunProgress()
        assert progress.feed(line) is None and list(progress.log) == [line], name


def test_the_examples_of_the_documentation_are_understood_and_add_up():
    progress = fed(*documented())
    assert progress.started["method"] == "genseg" and progress.plan["dims"] == 3
    assert progress.curves == {"loss/validation": [(120, 0.2312)]}
    assert progress.predictions["hippocampus_007"]["volumes_ml"]["anterior"] == 1.82
    assert [pair["path"] for pair in progress.synthetic] == ["synthetic/0003_image.nrrd"]
    assert progress.warnings[0]["code"] == "out_of_memory"
    (fault,) = progress.faults()
    assert fault.case == "hippocampus_003" and "same grid" in fault.rule and "Resample" in fault.remedy
    assert progress.finished == 0 and progress.seconds == 300.9 and progress.model.endswith("best.safetensors")
    assert progress.fraction == 1.0 and progress.timeLeftText == ""


@pytest.mark.parametrize(
    "line",
    [
        "Traceback (most recent call last):",
        "{not json",
        '["event", "metric"]',
        '{"event": "dance", "step": 1}',
        '{"event": ["metric"], "name": "loss", "value": 1, "step": 1}',
        '{"event": "metric", "name": "loss", "value": "low", "step": 1}',
        '{"event": "metric", "name": "loss", "value": true, "step": 1}',
        '{"event": "progress", "phase": "train", "step": "many", "total": 3}',
        "\\xff\\xfe caf\\xe9",
        "[" * 100000,
        '{"a":' * 100000,
    ],
)
def test_whatever_is_no_event_stays_readable_in_the_log_and_changes_nothing_else(line):
    progress = RunProgress()
    assert progress.feed(line) is None
    assert len(progress.log) == 1 and progress.log[0][:40] == line[:40]
    assert (progress.curves, progress.errors, progress.fraction) == ({}, [], 0.0)


def test_the_log_is_bounded_in_lines_and_in_width():
    progress = fed(*(f"line {number}" for number in range(LOG_LINES + 10)), "x" * 10_000_000)
    assert len(progress.log) == LOG_LINES and progress.log[0] == "line 11"
    assert len(progress.log[-1]) < 2100


def test_the_bar_follows_the_phases_and_never_goes_back():
    steps = [at("prepare", 1, 2), at("shapes", 3, 6), at("pretrain", 5, 10), at("pretrain", 9, 30), at("train", 1, 100)]
    steps += [at("train", 50, 100, 60.0), at("predict", 1, 26), at("predict", 26, 26), at("train", 50, 120, 55.0)]
    steps += [at("train", 118, 120, 1.0), at("predict", 1, 26), at("predict", 26, 26), at("report", 2, 2)]
    progress, seen = fed(started()), []
    for step in steps:
        progress.feed(json.dumps(step))
        seen.append(progress.fraction)
    assert seen == sorted(seen)
    assert seen[5] == pytest.approx(0.52) and seen[6:9] == [seen[5]] * 3  # a first look does not move it
    assert 0.9 < seen[9] < seen[10] < seen[11] < seen[12] == 1.0


def test_a_command_that_only_segments_fills_the_bar_from_nothing_to_the_end():
    progress, seen = RunProgress(), []
    for step in range(1, 5):
        progress.feed(json.dumps(at("predict", step, 4)))
        seen.append(progress.fraction)
    assert seen == [0.25, 0.5, 0.75, 1.0]


def test_in_a_very_short_training_a_first_look_before_any_step_was_told_does_not_move_the_bar():
    progress = fed(started(), at("pretrain", 10, 10), at("predict", 1, 2), at("predict", 2, 2))
    assert progress.fraction == pytest.approx(0.12) and progress.phaseText == "Segmenting the scans"
    progress.feed(json.dumps(at("report", 0, 2)))
    assert progress.fraction == pytest.approx(0.98)


def test_a_run_that_goes_on_with_its_last_predictions_shows_how_far_they_are():
    progress = fed(started(), at("train", 100, 100), at("predict", 1, 4))
    progress.reopen()
    for event in (started(resumed=True), at("predict", 2, 4)):
        progress.feed(json.dumps(event))
    assert progress.fraction == pytest.approx(0.95)


def test_a_first_look_in_the_middle_says_so_and_keeps_the_time_left():
    progress = fed(started(), at("train", 50, 100, 120.0), at("predict", 1, 26))
    assert progress.phaseText == "Segmenting the scans" and progress.timeLeftText == "about 2 minutes left"


def test_a_total_of_nothing_is_no_progress():
    assert fed(started(), at("train", 0, 0)).fraction == pytest.approx(0.12)


def test_every_phase_of_the_contract_has_words():
    for phase in KINDS["progress"]["properties"]["phase"]["enum"]:
        text = fed(at(phase, 0, 1)).phaseText
        assert text != phase and text[0].isupper()


def test_a_step_that_is_told_again_replaces_what_was_told_before():
    points = [metric("loss/real", step, value) for step, value in [(10, 3.0), (20, 2.0), (30, 1.0)]]
    progress = fed(*points, started(resumed=True), metric("loss/real", 20, 2.5), metric("loss/new", 20, 7))
    assert progress.curves == {"loss/real": [(10, 3.0), (20, 2.5)], "loss/new": [(20, 7.0)]}


def test_a_value_that_is_no_number_leaves_a_gap_in_the_curve():
    progress = fed(metric("loss/real", 10, 1.0), '{"event": "metric", "name": "loss/real", "value": NaN, "step": 20}')
    progress.feed('{"event": "metric", "name": "loss/real", "value": Infinity, "step": 30}')
    assert progress.curves == {"loss/real": [(10, 1.0)]}


def test_a_run_that_goes_on_forgets_how_its_earlier_part_ended_but_not_what_it_found():
    prediction = {"event": "prediction", "case": "a", "path": "p", "volumes_ml": {}, "uncertainty": 0.1, "step": 9}
    ended = {"event": "finished", "status": 1, "seconds": 3.0, "model": None}
    error = {"event": "error", "code": "no_disk", "message": "Full.", "remedy": "Delete."}
    before = [started(), at("train", 90, 100), metric("loss/real", 9, 1.0), prediction, error, ended]
    progress = fed(*before, started(resumed=True), at("train", 10, 100))
    assert (progress.finished, progress.errors, progress.model) == (None, [], None)
    assert progress.fraction == pytest.approx(0.2)
    assert list(progress.predictions) == ["a"] and list(progress.curves) == ["loss/real"]


def test_a_warning_from_before_the_run_folder_was_there_is_kept():
    warning = {"event": "warning", "code": "w", "message": "No GPU.", "remedy": "Buy one."}
    assert fed(warning, started()).warningFaults() == [Fault("Note", "No GPU.", "Buy one.")]


def test_a_prediction_and_a_pair_that_come_again_replace_the_earlier_ones():
    prediction = {"event": "prediction", "case": "a", "path": "p", "volumes_ml": {"x": None}, "uncertainty": 0.1}
    pair = {"event": "synthetic", "path": "s", "mask": "m", "step": 1, "agreement": 0.5, "near_copy": False}
    progress = fed(prediction, prediction | {"uncertainty": 0.05}, pair, pair | {"path": "t"}, pair | {"step": 2})
    assert progress.predictions["a"]["uncertainty"] == 0.05
    assert [(one["path"], one["step"]) for one in progress.synthetic] == [("s", 2), ("t", 1)]


def test_the_log_speaks_to_a_person():
    error = {"event": "error", "code": "c", "message": "Full.", "remedy": "Delete.", "case": "scan-3"}
    plan = {"event": "plan", "plan": {"notes": ["The scans are volumes."]}}
    ended = {"event": "finished", "status": 3, "seconds": 130.0, "model": None}
    log = list(fed(started(), plan, metric("loss/real", 1, 1.0), at("train", 1, 2), error, ended).log)
    assert log == [
        "The run has begun: method genseg, on cpu.",
        "The scans are volumes.",
        "Error: scan-3 Full. Delete.",
        "Stopped on request after 2 minutes.",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 second"), (44, "44 seconds"), (100, "2 minutes"), (3600, "60 minutes"), (7260, "2 hours 1 minute")],
)
def test_durations_are_said_in_words(seconds, text):
    assert durationText(seconds) == text


def test_a_run_is_rebuilt_from_its_file_up_to_the_last_whole_line(tmp_path):
    file = tmp_path / "events.jsonl"
    lines = [json.dumps(started()), json.dumps(metric("loss/real", 1, 1.0)), '{"event": "metr', "caf\xe9 \udcff"]
    content = "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n" + json.dumps(metric("x", 2, 1.0)).encode()
    file.write_bytes(content)
    progress = RunProgress.fromFile(file)
    assert progress.curves == {"loss/real": [(1, 1.0)]} and progress.started
    assert progress.log[-1] == "café \\xff"
    assert RunProgress.fromFile(tmp_path / "none").started == {}


def test_two_hours_of_events_are_rebuilt_in_a_moment(tmp_path):
    lines = [json.dumps(metric(f"curve {name}", step, 0.5)) for step in range(3600) for name in range(10)]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    begin = time.process_time()
    assert len(RunProgress.fromFile(tmp_path / "events.jsonl").curves["curve 3"]) == 3600
    assert time.process_time() - begin < 3.0


def test_the_first_steps_of_a_training_with_a_budget_do_not_fill_the_bar():
    progress = RunProgress()
    line = '{"time": 1.0, "event": "progress", "phase": "train", "step": 2, "total": 2, "seconds_left": 136.8}'
    assert progress.feed(line) is not None
    assert progress.fraction < 0.2
