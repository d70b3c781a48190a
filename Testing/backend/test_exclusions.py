"""Excluded pairs: no more of their kind are drawn, all else stays, and a resumed run repeats what happened."""

from pathlib import Path

import pytest
import torch
from method_rig import advance, built, prepared
from tiny_run import before_step, counters, differences, listen, run_train, tiny_study

from genseg.errors import EXIT_OK
from genseg.events import EventLog
from genseg.exclusions import Exclusions
from genseg.methods.joint import Stage
from genseg.methods.synthesis import SyntheticDraw
from genseg.randomness import stream
from genseg.runfolder import RunFolder, read_json, write_json
from genseg.train import resume


def wish(run: RunFolder, *pairs: tuple[str, str]) -> None:
    entries = [{"image": "0000_image.nrrd", "source": source, "style": style} for source, style in pairs]
    write_json(run.excluded, {"pairs": entries})


def drawn(joint, times: int) -> list[SyntheticDraw]:
    s = joint.synthesis
    return [
        SyntheticDraw.make(3, joint.sampler, s.sources, s.generator, stream(0, "drawn", number))
        for number in range(times)
    ]


def test_an_excluded_combination_is_never_drawn_again_and_all_others_stay_as_they_were(data):
    joint = built(prepared(data, "hippocampus", 2, 3)).joint
    styles, sampler = joint.synthesis.sources.styles, joint.sampler
    mask, look = sampler.cases[0].id, styles.ids[3]
    before = drawn(joint, 60)
    styles.excluded = frozenset({(mask, look)})
    changed = 0
    for old, new in zip(before, drawn(joint, 60), strict=True):
        assert old.batch.cases == new.batch.cases and torch.equal(old.deviation, new.deviation)
        assert torch.equal(old.batch.spatial.bend, new.batch.spatial.bend) and bool((new.wanted == 1).all())
        for i, case in enumerate(old.batch.cases):
            if (sampler.cases[case].id, old.styled_as[i]) == (mask, look):
                changed += 1
                assert new.styled_as[i] == styles.ids[(3 + 1) % 5]
                assert not torch.equal(old.style[i], new.style[i])
            else:
                assert new.styled_as[i] == old.styled_as[i] and torch.equal(old.style[i], new.style[i])
    assert changed > 5


def test_a_mask_of_which_every_look_is_excluded_teaches_the_segmenter_nothing(data):
    joint = built(prepared(data, "hippocampus", 1, 1)).joint
    advance(joint, 3)
    joint.agreement.fill_(0.0)
    s, styles = joint.synthesis, joint.synthesis.sources.styles
    norms = []
    for excluded in (frozenset(), frozenset((joint.sampler.cases[0].id, look) for look in styles.ids)):
        styles.excluded = excluded
        joint.optimiser.zero_grad(set_to_none=True)
        seen = joint._add_gradient([joint._synthetic_part(s, 5, Stage(synthetic=True))])
        norms.append(sum(float(p.grad.abs().sum()) for p in joint.segmenter.parameters() if p.grad is not None))
        assert seen["synthetic/kept"] == (0.0 if excluded else 1.0)
    assert norms[0] > 0 and norms[1] == 0


def test_a_wish_holds_from_the_step_at_which_it_is_seen_and_is_taken_back_the_same_way(tmp_path):
    run, heard = RunFolder(tmp_path), []
    exclusions = Exclusions(run, EventLog([heard.append]))
    assert exclusions.at(3) == frozenset()
    wish(run, ("a", "x"), ("a", "x"), ("b", "y"))
    assert exclusions.at(7) == {("a", "x"), ("b", "y")} and exclusions.at(8) == exclusions.last()
    wish(run)
    assert exclusions.at(11) == frozenset()
    assert [entry["from_step"] for entry in read_json(run.exclusions)] == [7, 11]
    assert [event.code for event in heard] == ["excluded"] * 2
    again = Exclusions(run, EventLog())
    assert [len(again.at(step)) for step in (6, 7, 10, 11)] == [0, 2, 2, 0], "a resumed run repeats it"


def test_a_wish_made_while_the_run_rests_never_changes_what_has_happened(tmp_path):
    run = RunFolder(tmp_path)
    wish(run, ("a", "x"))
    Exclusions(run, EventLog()).at(9)
    wish(run, ("a", "x"), ("b", "y"))
    resumed = Exclusions(run, EventLog())
    assert [len(resumed.at(step)) for step in (5, 8, 9)] == [0, 0, 2]


def test_an_unreadable_wish_is_told_and_changes_nothing(tmp_path):
    run, heard = RunFolder(tmp_path), []
    exclusions = Exclusions(run, EventLog([heard.append]))
    wish(run, ("a", "x"))
    exclusions.at(1)
    run.excluded.write_text('{"pairs": [3]}')
    assert exclusions.at(2) == exclusions.at(3) == {("a", "x")}
    assert [event.code for event in heard] == ["excluded", "excluded_unreadable"]


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.slow
def test_a_run_killed_after_an_exclusion_goes_on_to_the_same_weights(data, tmp_path, monkeypatch):
    study = tiny_study(data / "hippocampus", tmp_path / "study", 1, 0, 1)
    source, look = Path(study / "dataset.json"), None
    names = [Path(case["image"]).name.split(".")[0] for case in read_json(source)["training"]]
    look = Path(read_json(source)["unlabeled"][0]).name.split(".")[0]
    monkeypatch.setattr("genseg.train.CHECKPOINT_SECONDS", 1e9)  # only at every fifth, so that steps are repeated
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")

    def act(run: RunFolder, end: int):
        def before(step: int) -> None:
            if step == 14 and not run.excluded.exists():
                wish(run, (names[0], look))
            if step == end:
                raise Killed

        return before

    with monkeypatch.context() as patch:
        before_step(patch, act(whole, -1))
        run_train(study, whole.path, 30)
    with monkeypatch.context() as patch:
        before_step(patch, act(killed, 17))
        with pytest.raises(Killed):
            run_train(study, killed.path, 30)
    assert counters(killed)["step"] < 14 and read_json(killed.exclusions)[0]["from_step"] == 15
    assert listen(killed, lambda log: resume(killed.path, log)).status == EXIT_OK
    assert differences(whole.last, killed.last) == []
    assert read_json(whole.exclusions) == read_json(killed.exclusions)
