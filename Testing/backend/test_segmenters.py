"""Every segmenter takes any image, learns, is shaped by level 3, and comes back from a run folder and a bundle."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_rig import advance, built, in_double, next_level3, prepared, searching, widen
from test_export import in_float32, monai_bundle
from test_hypergradient import cosine, hypergradient, level3_with, norm_ratio, unrolled
from tiny_run import ENVIRONMENT, run_train, tiny_study
from torch import nn

from genseg.errors import EXIT_OK, RunFailed
from genseg.export import export_bundle
from genseg.imageio import read_label, read_scan
from genseg.inference import Predictor
from genseg.networks import build_segmenter
from genseg.networks import segmenters as module
from genseg.networks.segmenter import with_segmenter
from genseg.plan import Plan
from genseg.runfolder import RunFolder, read_json
from genseg.settings import SEGMENTERS
from genseg.study import read_study

OTHERS = [name for name in SEGMENTERS if name != "dynunet"]


def made(name: str, dims: int = 2, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return module.build(name, **{"dims": dims, "channels": 2, "outputs": 3, "filters": [8, 16, 32, 64]} | changes)


def test_every_segmenter_that_can_be_asked_for_is_there():
    assert set(OTHERS) == set(module.MADE)


@pytest.mark.parametrize("name", [*OTHERS, "own_networks:small"])
@pytest.mark.parametrize("size", [(40, 56), (21, 33), (24, 40, 24)])
def test_any_size_gives_logits_of_that_size_and_every_weight_a_gradient(name, size):
    network = made(name, len(size))
    logits = network(torch.randn(1, 2, *size))
    assert logits.shape == (1, 3, *size)
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", [*OTHERS, "own_networks:small"])
def test_a_sample_is_segmented_alike_alone_and_beside_others_in_training_and_after_it(name):
    network, images = made(name), torch.randn(3, 2, 32, 32)
    alone, together = network(images[:1]), network(images)[:1]
    assert torch.allclose(alone, together, atol=1e-4)
    assert torch.allclose(alone, network.eval()(images[:1]), atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_structures_begin_as_rare(name):
    shares = made(name, rare=-2.0)(torch.randn(2, 2, 64, 64)).softmax(1).mean((0, 2, 3))
    assert shares[0] > 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_level3_equals_the_double_backward_oracle_for_every_segmenter(data, name):
    ready = prepared(data, "isic2017", 2)
    ready = replace(ready, plan=ready.plan.model_copy(update={"segmenter": name}))
    joint = built(ready, "genseg").joint
    advance(joint, 4)
    step = next_level3(advance(joint, 3, searching(2), first=5))

    with in_double():
        exact = level3_with(hypergradient, widen(copy.deepcopy(joint)), step, 2)
        oracle = level3_with(unrolled, widen(copy.deepcopy(joint)), step, 2)
    assert cosine(exact.found[0], oracle.found[0]) == pytest.approx(1, abs=1e-6)
    assert norm_ratio(exact.found[0], oracle.found[0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deeplabv3", "own_networks:small"])
def test_a_run_with_any_segmenter_ends_predicts_and_its_model_is_found_again(name, data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    outcome = run_train(study, tmp_path / "run", iterations=3, segmenter=name)
    assert outcome.status == EXIT_OK and read_json(outcome.run.plan)["segmenter"] == name
    assert any(f"'{name}'" in note for note in read_json(outcome.run.plan)["notes"])
    predictor = Predictor.load(outcome.run.path, "cpu")
    assert predictor.segment(read_scan(read_study(study).test[0].images)).labels.shape == (64, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("segresnet", "supervised"), ("swin_unetr", "genseg+versemi")])
def test_a_bundle_of_another_segmenter_runs_in_monai_without_our_package(name, method, data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    run = run_train(study, tmp_path / "run", iterations=6, segmenter=name, method=method).run
    bundle = tmp_path / "bundle"
    export_bundle(run, bundle)
    case = read_study(study).test[0]
    images = bundle / "images"
    images.mkdir()
    (images / case.images[0].name).write_bytes(Path(case.images[0]).read_bytes())
    monai_bundle(bundle, "run", "--config_file", "configs/inference.json")
    (written,) = (bundle / "predictions").rglob("*.png")
    table = read_study(study).labels
    mine = in_float32(RunFolder(run.path)).segment(read_scan(case.images)).labels
    assert (read_label(written, table)[0] == mine).mean() > 0.999


def test_a_network_that_cannot_be_used_is_told_with_what_is_asked_of_one(data):
    plan = prepared(data, "isic2017", 2).plan
    for name, words in {
        "own_networks:Halving": "instead of [1, 2, 64, 64]",
        "own_networks:other_arguments": "unexpected keyword argument",
        "own_networks:missing": "has no attribute 'missing'",
        "no_such_package:factory": "No module named 'no_such_package'",
    }.items():
        with pytest.raises(RunFailed, match=r"cannot be used") as told:
            with_segmenter(plan, name)
        assert told.value.code == "segmenter_unfit" and words in str(told.value)
        assert "[n, in, *size] to [n, out, *size]" in told.value.remedy


def test_the_memory_of_another_segmenter_is_reckoned_from_what_its_layers_put_out(data):
    plan = prepared(data, "isic2017", 2).plan.model_copy(update={"patch": [64, 64]})
    swin, small = (with_segmenter(plan, name).memory_mb for name in ("swin_unetr", "own_networks:small"))
    assert small < plan.memory_mb < swin


def test_an_unknown_segmenter_is_refused_by_the_command_line_with_the_known_ones(tmp_path):
    command = [sys.executable, "-m", "genseg", "train", str(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--segmenter", "resnet"], capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    assert done.returncode == 2 and all(name in " ".join(done.stderr.split()) for name in SEGMENTERS)


def test_a_starting_model_of_another_network_is_refused(data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 0)
    run = run_train(study, tmp_path / "run", iterations=1, method="supervised", segmenter="unet").run
    with pytest.raises(RunFailed, match="is a 'unet', not a 'dynunet'"):
        run_train(study, tmp_path / "other", iterations=1, method="supervised", init=run.path)
    again = run_train(study, tmp_path / "same", iterations=1, method="supervised", segmenter="unet", init=run.path)
    assert again.status == EXIT_OK and not [w for w in again.named("warning") if w.code == "init_partly"]


def test_plans_of_older_runs_have_the_default_segmenter(data):
    plan = prepared(data, "isic2017", 2).plan
    old = plan.model_dump(exclude={"segmenter"})
    assert isinstance(build_segmenter(Plan(**old)), type(build_segmenter(plan)))
