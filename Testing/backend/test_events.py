"""The events: schema, documentation and log hold together."""

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from genseg import events

DOCS = Path(__file__).parents[2] / "docs"
EVENT_CLASSES = get_args(get_args(events.Event)[0])

ONE_OF_EACH = [
    events.Started(version="0.1.0", run="/läufe/run 1", method="genseg", device="cpu"),
    events.Planned(plan={"dims": 3, "spacing": [1.0, 1.0, 2.5], "notes": ["dünne Schichten"]}),
    events.Progress(phase="train", step=3, total=9, seconds_left=1.5),
    events.Metric(name="dice/validation", value=0.123456789012345, step=3),
    events.Synthetic(path="synthetic/0_image.png", mask="synthetic/0_mask.png", step=3, agreement=0.9, near_copy=True),
    events.Prediction(case="Fall Ä", path="predictions/a.png", volumes_ml={"海馬": None, "b": 1.25}, uncertainty=0.1),
    events.Warning_(code="w", message="line one\nline two", remedy="r"),
    events.Error(code="e", message="m", case="Fall Ä"),
    events.Finished(status=3, seconds=1.0, model="/läufe/run 1/model"),
]


def documented_lines() -> list[str]:
    text = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```jsonl\n")[1:]]
    return [line for block in blocks for line in block.splitlines()]


def test_the_schema_file_is_what_the_code_generates():
    assert json.loads((DOCS / "events.schema.json").read_text(encoding="utf-8")) == events.schema()


def test_every_kind_of_event_is_tried_here():
    assert {type(event) for event in ONE_OF_EACH} == set(EVENT_CLASSES)


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: event.event)
def test_an_event_becomes_one_ascii_line_and_the_same_event_again(event):
    line = events.to_line(event)
    assert line.isascii() and "\n" not in line
    assert events.parse_event(line) == event


def test_the_documentation_shows_every_kind_of_event_in_a_valid_line():
    shown = [events.parse_event(line) for line in documented_lines()]
    assert {type(event) for event in shown} == set(EVENT_CLASSES)


def test_the_json_examples_in_the_documentation_are_json():
    text = (DOCS / "run-folder.md").read_text(encoding="utf-8")
    examples = [json.loads(block.split("```")[0]) for block in text.split("```json\n")[1:]]
    assert [next(iter(example)) for example in examples] == ["method", "pairs", "cases", "test", "pairs"]


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "unheard_of"}',
        '{"event": "metric", "name": "loss/real", "step": 1}',
        '{"event": "progress", "phase": "dance", "step": 1, "total": 2}',
        '{"event": "finished", "status": 0, "seconds": 1.0, "colour": "red"}',
        '{"event": "finis',
    ],
)
def test_a_line_outside_the_schema_is_refused(line):
    with pytest.raises(ValidationError):
        events.parse_event(line)


def test_a_line_left_unfinished_by_a_kill_is_ended_on_reopening(tmp_path):
    path = tmp_path / "lauf 1" / "events.jsonl"
    log = events.EventLog()
    log.open(path)
    log.emit(ONE_OF_EACH[0])
    log.close()
    whole = path.read_text(encoding="ascii")
    path.write_text(whole + '{"event": "prog', encoding="ascii")
    log.open(path)
    log.emit(ONE_OF_EACH[-1])
    log.close()
    lines = path.read_text(encoding="ascii").splitlines()
    assert lines[0] + "\n" == whole and lines[1] == '{"event": "prog'
    assert [events.parse_event(line).event for line in (lines[0], lines[2])] == ["started", "finished"]


def test_reopening_a_whole_log_adds_no_empty_line(tmp_path):
    path = tmp_path / "events.jsonl"
    for event in ONE_OF_EACH:
        log = events.EventLog()
        log.open(path)
        log.emit(event)
        log.close()
    assert [events.parse_event(line) for line in path.read_text(encoding="ascii").splitlines()] == ONE_OF_EACH


def test_a_warning_from_before_the_run_folder_follows_the_first_event_of_the_file(tmp_path):
    log = events.EventLog()
    log.warn("study_note", "No training mask shows tumour.")
    log.emit(ONE_OF_EACH[1])
    log.open(tmp_path / "events.jsonl")
    log.emit(ONE_OF_EACH[0])
    log.emit(ONE_OF_EACH[1])
    log.close()
    lines = (tmp_path / "events.jsonl").read_text(encoding="ascii").splitlines()
    kinds = [events.parse_event(line).event for line in lines]
    assert kinds == [ONE_OF_EACH[0].event, "warning", ONE_OF_EACH[1].event]


def test_every_line_is_on_disk_and_with_the_listeners_before_emit_returns(tmp_path):
    heard = []
    log = events.EventLog([heard.append])
    log.emit(ONE_OF_EACH[0])  # before the run folder exists, only the listeners hear it
    log.open(tmp_path / "events.jsonl")
    log.emit(ONE_OF_EACH[1])
    assert (tmp_path / "events.jsonl").read_text(encoding="ascii") == events.to_line(ONE_OF_EACH[1]) + "\n"
    assert heard == ONE_OF_EACH[:2]
    log.close()
