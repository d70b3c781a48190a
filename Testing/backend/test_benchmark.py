"""The benchmark: its controls do what their names say, its clock counts work, its tables say what its rows say."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_study

from genseg.augment import REFERENCE
from genseg.device import find_device
from genseg.events import EventLog
from genseg.metatrain import learner_of, meta_train, plan_of
from genseg.methods.joint import Stage
from genseg.networks.generators import style_of
from genseg.settings import MetaSettings, Settings
from genseg.startingmodel import StartingModel

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fewshot  # noqa: E402
import figures  # noqa: E402
import peers  # noqa: E402
import runs  # noqa: E402
from runs import FIELDS, Run, read_rows  # noqa: E402
from training import ProcessorClock, Warped, prepared, restyled  # noqa: E402


def state_of(arm: str, set_: str = "hippocampus-2"):
    run = Run(set_, arm, 0, "4", "light")
    return prepared(run, run.studies(), find_device("cpu"))


def test_without_augmentation_a_patch_is_the_scan(data):
    joint = state_of("none").joint
    rng = torch.Generator().manual_seed(0)
    draw = joint.sampler.draw(4, rng)
    draw.spatial.centre[:] = torch.tensor(joint.plan.patch) / 2 - 0.5  # the patch begins with the scan
    image, _ = joint.sampler.load(draw)
    for index, patch in zip(draw.cases, image, strict=True):
        scan = joint.sampler.cases[index].image
        seen = [slice(0, min(p, s)) for p, s in zip(joint.plan.patch, scan.shape[1:], strict=True)]
        assert torch.allclose(patch[0][tuple(seen)], scan[0][tuple(seen)], atol=1e-2)


def only_their_masks(joint) -> None:
    """Images that show nothing but their masks, whose intensities stay: both must go the same way."""
    for case in joint.sampler.cases:
        case.image.copy_((case.label < joint.plan.classes) * case.label.float())
    strength = REFERENCE | dict.fromkeys(("brightness", "contrast", "gamma", "noise", "blur", "low_resolution"), 0.0)
    joint.synthesis.meta.plain_strength = lambda: strength


def test_a_warped_pairs_image_is_the_scan_at_the_very_places_of_its_mask(data):
    joint = state_of("warp").joint
    only_their_masks(joint)
    joint.synthesis.sources.shapes.find()
    image, label, _ = joint._synthetic_pairs(joint.synthesis, 3, Stage(synthetic=True))
    assert (label > 0).any()
    assert ((image[:, 0] - label).abs() > 0.51).float().mean() < 0.01  # linear and nearest differ at edges only


def test_a_warped_photograph_shows_the_structures_that_were_implanted_into_its_mask(data):
    joint = state_of("warp", "kvasir-5").joint
    only_their_masks(joint)
    assert joint.synthesis.sources.implants
    for step in range(4):
        image, label, _ = joint._synthetic_pairs(joint.synthesis, step, Stage(synthetic=True))
        assert ((image[:, 0] > 0.5) != (label > 0)).float().mean() < 0.03  # implants have soft edges


def test_a_restyled_image_has_the_quantiles_of_the_style_and_keeps_the_order_of_its_greys(data):
    joint = state_of("restyle", "kvasir-5").joint
    image, label, _ = joint._synthetic_pairs(joint.synthesis, 0, Stage(synthetic=True))
    plain, same, _ = Warped._synthetic_pairs(joint, joint.synthesis, 0, Stage(synthetic=True))
    assert torch.equal(label, same)
    assert not torch.allclose(image, plain, atol=0.1)
    assert torch.allclose(restyled(plain, style_of(plain)), plain, atol=1e-3)
    style = style_of(plain).flip(0)  # every patch as another
    there = restyled(plain, style)
    assert torch.allclose(style_of(there).view(-1, 3, 7)[..., 2:], style.view(-1, 3, 7)[..., 2:], atol=0.05)
    for before, after in zip(plain.flatten(0, 1).flatten(1), there.flatten(0, 1).flatten(1), strict=True):
        assert (after[before.argsort()].diff() > -1e-4).all()


def test_seconds_of_waiting_take_nothing_from_the_budget():
    clock = ProcessorClock(Settings(dataset=Path("x"), out=Path("y"), budget=10.0))
    time.sleep(0.3)
    clock.tick()
    assert clock.elapsed < 0.1
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    clock.tick()
    assert clock.elapsed >= 0.2


def test_all_arms_of_a_seed_get_the_same_scans_and_no_tested_scan_is_trained_on(data):
    for tested in ("test", "training"):
        for name in ("hippocampus-3", "acdc-2", "kvasir-5"):
            drawn = [Run(name, arm, seed, "9s", tested=tested) for seed in (0, 2) for arm in ("supervised", "versemi")]
            studies = [run.studies()[0] for run in drawn]
            assert studies[0] == studies[1] and studies[2] == studies[3] and studies[0].training != studies[2].training
            for study in studies:
                seen = {patient(case) for case in [*study.training, *study.unlabeled]}
                assert study.test and not seen & {patient(case) for case in study.test}


def patient(case) -> str:
    return case.id.split("_frame")[0]


@pytest.mark.parametrize(("tested", "unlabelled"), [("test", 12), ("training", 4)])
def test_acdc_is_counted_in_patients(tested, unlabelled, data):
    study = Run("acdc-2", "supervised", 1, "9s", tested=tested).studies()[0]
    assert len(study.training) == 4 and len(set(study.patients)) == 2 and len(study.unlabeled) == unlabelled


def test_in_the_time_of_a_supervised_step_each_arm_makes_what_it_was_measured_to_make():
    steps = {arm: Run("a-1", arm, 0, "500").settings().iterations for arm in ("none", "warp", "warp+versemi", "genseg")}
    assert steps == {"none": 500, "warp": 500, "warp+versemi": 400, "genseg": 394}
    with pytest.raises(ValueError, match="give seconds"):
        Run("a-1", "genseg", 0, "500", generator="vae").settings()


def test_a_page_without_its_marks_or_a_table_without_rows_is_refused_and_left_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- matrix light -->\nold\n<!-- end -->\n")
    with pytest.raises(ValueError, match="no rows"):
        figures.write([], page, "light")
    with pytest.raises(ValueError, match="matrix full"):
        figures.write([row("a-1", "genseg", 0, 0.5)], page, "full")
    assert "old" in page.read_text()


def test_a_training_that_has_two_rows_is_told(tmp_path):
    rows = tmp_path / "rows.csv"
    read_rows(rows)
    for _ in range(2):
        runs.add_row(rows, row("a-1", "genseg", 0, 0.5))
    with pytest.raises(ValueError, match="several rows of one training"):
        read_rows(rows)


def row(set_: str, arm: str, seed: int, dice: float, **more: str) -> dict[str, str]:
    values = dict.fromkeys(FIELDS, "") | {"set": set_, "arm": arm, "seed": str(seed), "dice": f"{dice:.4f}"}
    usual = {
        "length": "9s",
        "generator": "spade",
        "segmenter": "dynunet",
        "train_s": "9",
        "steps": "3",
        "prepare_s": "1",
        "predict_s": "2",
    }
    return values | usual | more


def test_differences_are_of_pairs_with_the_same_seed_and_every_set_counts_the_same():
    rows = [row("a-1", "supervised", s, d) for s, d in ((0, 0.5), (1, 0.7), (2, 0.1))]
    rows += [row("a-1", "genseg", s, d) for s, d in ((1, 0.72), (0, 0.54))]  # seed 2 has no pair
    rows += [row("b-1", "supervised", 0, 0.4), row("b-1", "genseg", 0, 0.41)]
    assert figures.paired(figures.scores_of(rows), "a-1", "genseg", "supervised") == pytest.approx([4.0, 2.0])
    line = next(one for one in figures.text(rows).splitlines() if one.startswith("| genseg − supervised"))
    assert line == "| genseg − supervised | +2.0 (1.0) | – | a-1 +3.0 (1.0), b-1 +1.0 |"


def test_trainings_of_different_lengths_generators_or_starts_are_never_averaged():
    rows = [row("a-1", "genseg", 0, 0.5), row("a-1", "genseg", 1, 0.7, length="90s")]
    rows += [row("a-1", "genseg", 2, 0.9, generator="vae"), row("a-1", "genseg", 3, 0.3, start="imaml-0")]
    tables = [figures.table([one for one in rows if one["length"] == length]) for length in ("9s", "90s")]
    lines = [line for table in tables for line in table.splitlines() if line.startswith("| a-1")]
    assert [one.split(" | ")[1:4] for one in lines] == [
        ["genseg", "1", "0.500"], ["genseg, from imaml-0", "1", "0.300"], ["genseg, vae", "1", "0.900"],
        ["genseg", "1", "0.700"],
    ]  # fmt: skip


def test_a_peer_stands_in_the_table_with_its_version():
    rows = [row("a-1", "nnunet", 0, 0.5, code="abc nnunetv2 2.6.2"), row("a-1", "genseg", 0, 0.6, code="abc")]
    lines = figures.table(rows).splitlines()
    assert lines[2].startswith("| a-1 | genseg | 1 ") and lines[3].startswith("| a-1 | nnunet (nnunetv2 2.6.2) | 1 ")


def test_another_segmenter_or_start_is_compared_with_the_same_arm_that_has_the_usual_one():
    rows = [row("a-1", "genseg", s, d) for s, d in ((0, 0.5), (1, 0.7))] + [row("a-1", "supervised", 0, 0.1)]
    rows += [row("a-1", "genseg", s, d, segmenter="deeplabv3") for s, d in ((0, 0.52), (1, 0.74))]
    assert "| genseg, deeplabv3 − genseg | +3.0 | – | a-1 +3.0 (1.0) |" in figures.text(rows)


def test_arms_of_the_same_other_segmenter_are_compared_and_claims_are_tested_from_three_seeds_on():
    made = {"supervised": (0.5, 0.6, 0.7, 0.9), "genseg": (0.53, 0.6, 0.76)}
    rows = [row("a-1", arm, s, d, segmenter="unet") for arm, dices in made.items() for s, d in enumerate(dices)]
    told = figures.text(rows)
    assert "| genseg, unet − supervised, unet | +3.0 | – | a-1 +3.0 (1.7) |" in told
    line = "| a-1 | genseg, unet | 3 | 0.600 ± 0.100 | 0.630 ± 0.118 | +3.0 (1.7) | 0.23 | 2 of 3 |"
    assert line in told, "seed 3 has no pair"
    assert "better in" not in figures.text([one for one in rows if one["seed"] != "2"])


def test_what_an_arm_is_worth_in_labels_lies_on_the_supervised_curve():
    curve = {(1, 0): 0.4, (1, 1): 0.5, (4, 0): 0.65, (16, 0): 0.85}
    rows = [row(f"a-{n}", "supervised", seed, dice) for (n, seed), dice in curve.items()]
    rows += [row("a-1", "genseg", seed, dice) for seed, dice in ((0, 0.5), (1, 0.6))]
    line = "| a | 1 | genseg | 0.450 | 0.550 | 2.0 | 0.850 (16) | 25% |"  # half way from 1 to 4 over the logarithm
    assert line in figures.text(rows)
    assert figures.labels_for({1: 0.5, 4: 0.7}, 0.4) == "≤ 1" and figures.labels_for({1: 0.5, 4: 0.7}, 0.8) == "> 4"
    others = [one | {"segmenter": "unet"} for one in rows]
    assert line.replace("genseg", "genseg, unet") in figures.text(others)
    assert "supervised needs" not in figures.text([one for one in rows if one["set"] == "a-1"])


def test_an_arm_of_fewer_seeds_is_drawn_as_far_from_supervised_as_its_pairs_are():
    rows = [row(f"a-{n}", "supervised", seed, 0.4 + seed / 5) for n in (1, 5) for seed in (0, 1)]
    rows += [row("a-5", "genseg", 1, 0.63), row("b-1", "supervised", 0, 0.5)]  # of b is no second number
    drawn = figures._by_labels(figures.scores_of(rows))
    assert drawn == {"a": {"supervised": pytest.approx({1: 0.5, 5: 0.5}), "genseg": pytest.approx({5: 0.53})}}


def test_seconds_of_two_machines_are_two_lengths_and_steps_are_not():
    slow, fast = (row("a-1", "supervised", 0, d, device=m) for d, m in ((0.5, "a processor"), (0.7, "a card")))
    rows = [slow, fast, row("a-1", "genseg", 0, 0.6, device="a processor")]
    assert len({runs.key_of(one) for one in rows}) == 3
    assert "| genseg − supervised | +10.0 |" in figures.text(rows) and "−10.0" not in figures.text(rows)
    assert "**9s, a processor**" in figures.text(rows) and "**9s, a card**" in figures.text(rows)
    in_steps = [one | {"length": "500"} for one in (slow, fast)]
    assert len({runs.key_of(one) for one in in_steps}) == 1


def test_a_steps_cost_is_told_in_supervised_steps_of_the_same_set():
    rows = [row("a-1", "supervised", 0, 0.5, steps="6"), row("a-1", "genseg", 0, 0.5), row("b-1", "genseg", 0, 0.5)]
    lines = [one.split(" | ") for one in figures.costs(rows).splitlines()[2:]]
    assert [one[5] for one in lines] == ["1.00", "2.00", "–"]
    assert lines[0][2:4] == ["5", "12"]  # 1 + 9 / 5 + 2, and 1 + 9 + 2


def test_only_what_stands_between_the_marks_is_written_again(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- matrix light -->\nold\n<!-- end -->\nafter\n<!-- matrix full -->\nkept\n<!-- end -->\n"
    )
    rows = [row(s, arm, n, 0.5 + n / 10) for s in ("a-1", "a-5") for arm in ("supervised", "genseg") for n in range(3)]
    figures.write(rows, page, "light")
    first = page.read_text()
    assert first.startswith("before\n") and "old" not in first and "kept" in first and "\nafter\n" in first
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"light-9s-differences.svg", "light-9s-labels.svg"}
    plots = {p: p.read_bytes() for p in (tmp_path / "figures").iterdir()}
    figures.write(rows, page, "light")
    assert page.read_text() == first and all(p.read_bytes() == content for p, content in plots.items())


def test_a_peer_trains_for_its_seconds_on_the_drawn_scans_and_is_scored_as_all_are(data, tmp_path, monkeypatch):
    tiny_study(data / "hippocampus", tmp_path / "hippocampus")
    monkeypatch.setattr(runs, "DATA", tmp_path)
    found = peers.go(Run("hippocampus-2", "monai-unet", 0, "3s"), jobs=1)
    assert set(found) == set(FIELDS) and int(found["steps"]) > 1 and 3 <= float(found["train_s"]) < 9
    assert 0 <= float(found["dice"]) < 1 and "monai" in found["code"]


@pytest.mark.parametrize("run", [("hippocampus-1", "nnunet", 0, "500"), ("hippocampus-1+acdc-2", "nnunet", 0, "9s")])
def test_a_peer_refuses_what_it_cannot_do(run):
    with pytest.raises(ValueError, match="A peer trains for seconds"):
        peers.go(Run(*run), jobs=1)


def test_starts_are_judged_on_the_same_episodes_of_a_study_that_they_never_saw(data, tmp_path, monkeypatch):
    study = tiny_study(data / "isic2017", tmp_path / "isic2017")
    monkeypatch.setattr("genseg.methods.metalearn.INNER_STEPS", 1)
    monkeypatch.setattr("genseg.methods.metalearn.SCORED", 1)
    learned = MetaSettings(dataset=study, out=tmp_path / "start", method="pretrain", iterations=1, device="cpu")
    assert meta_train(learned, EventLog()) == 0
    start = StartingModel.load(tmp_path / "start")
    monkeypatch.setattr(fewshot, "DATA", tmp_path)
    with pytest.raises(ValueError, match="was learned from isic2017"):
        fewshot.ready_for("isic2017", start, "full")
    ready = fewshot.ready_for("isic2017", replace(start, trained_on=[]), "full")
    nothing, known = (fewshot.episodes(ready, one, 3) for one in (None, start))
    drawn = learner_of([ready], plan_of([ready]), learned).start()
    assert fewshot.episodes(ready, replace(start, weights=drawn), 3) == nothing != known


@pytest.mark.slow
def test_a_matrix_makes_a_row_for_each_training_and_none_a_second_time(data, tmp_path):
    tiny_study(data / "hippocampus", tmp_path / "hippocampus")
    command = [
        sys.executable, str(BENCHMARKS / "matrix.py"), str(tmp_path / "rows.csv"), "--sets", "hippocampus-1",
        "--arms", "supervised", "warp", "--lengths", "2", "--seeds", "0",
    ]  # fmt: skip
    environment = os.environ | {"GENSEG_DATA": str(tmp_path), "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout for _ in range(2)
    )
    rows = read_rows(tmp_path / "rows.csv")
    assert sorted(one["arm"] for one in rows) == ["supervised", "warp"]
    assert all(0 <= float(one["dice"]) < 1 and int(one["steps"]) == 2 for one in rows)
    assert first.endswith(second) and second.count("\n| hippocampus-1 |") == 4
