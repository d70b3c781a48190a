"""Every segmenter takes any image, learns, is shaped by level 3, and comes back from a run folder and a bundle."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from method_rig import advance, built, in_double, next_level3, prepared, searching, widen, with_segmenter
from test_export import in_float32, monai_bundle
from test_hypergradient import cosine, hypergradient, level3_with, norm_ratio, unrolled
from test_networks import small_plan
from tiny_run import ENVIRONMENT, run_train, tiny_study
from torch import nn
from typer.testing import CliRunner

from genseg.cli import app
from genseg.errors import EXIT_BAD_INPUT, EXIT_OK, InputFaults, RunFailed
from genseg.export import export_bundle
from genseg.imageio import read_label, read_scan
from genseg.inference import Predictor
from genseg.networks import build_segmenter
from genseg.networks import segmenters as module
from genseg.networks.segmenters.fitting import Arguments, Fitted, instance_normed
from genseg.plan import Plan, Prompts
from genseg.runfolder import RunFolder, read_json
from genseg.settings import SEGMENTERS
from genseg.startingmodel import BACKGROUND, StartingModel, _plain, last_layer
from genseg.study import read_study
from genseg.together import prompts_of
from genseg.trial import tried

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
    image = torch.randn(1, 2, *size)
    logits = network(image)
    assert logits.shape == (1, 3, *size)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    # The gradient of a bias before a norm, which changes nothing, is rounding, on some processors exactly 0.
    without = {n: p for n, p in network.named_parameters() if not p.grad.any()}
    assert [n for n in without if not n.endswith("bias")] == []
    with torch.no_grad():
        for p in without.values():
            p += 1
    assert torch.allclose(network(image), logits, atol=1e-3)


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


@pytest.mark.parametrize("size", [(45, 64), (64, 50), (45, 50, 41)])
def test_a_mask_coarser_than_the_image_comes_to_lie_where_the_image_does(size):
    """A network that averages blocks of 8 voxels gives a slope back in its place, whatever it was padded by."""
    dims = len(size)
    slope = sum(torch.arange(side).float().view(-1, *[1] * (dims - 1 - axis)) for axis, side in enumerate(size))
    pool = nn.AvgPool2d(8) if dims == 2 else nn.AvgPool3d(8)
    network = Fitted(pool, 8, Arguments(dims, 1, 1, [8]), coarser=8)
    found = network(slope[None, None])
    assert found.shape == (1, 1, *size)
    inside = (0, 0, *[slice(12, -12)] * dims)
    assert torch.allclose(found[inside], slope[inside[2:]], atol=1e-3)


def test_a_head_told_by_prompts_works_on_deeplabv3s_own_grid_and_answers_on_the_images():
    plan = small_plan(2, [64, 48], filters=[8, 16, 32]).model_copy(
        update={"segmenter": "deeplabv3", "prompts": Prompts(count=3, tasks=[0, 1])}
    )
    network, seen = build_segmenter(plan), []
    network.head.register_forward_pre_hook(lambda module, given: seen.append(list(given[0].shape[2:])))
    assert network(torch.zeros(2, plan.channels, 64, 48)).shape == (2, 3, 64, 48)
    assert network(torch.zeros(2, plan.channels, 61, 48)).shape == (2, 3, 61, 48)
    assert seen == [[8, 6], [8, 6]]
    static = build_segmenter(plan.model_copy(update={"prompts": Prompts(count=3, tasks=[0, 1], dynamic=False)}))
    with torch.autocast("cpu", torch.bfloat16):
        for made in (network, static):
            logits = made(torch.zeros(2, plan.channels, 64, 48))
            assert logits.dtype == torch.float32, "many pixels' gradients meet in one of the mask's"


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


UNFIT = {
    "own_networks:Halving": "instead of [2, 2, 64, 96]",
    "own_networks:other_arguments": "unexpected keyword argument",
    "own_networks:missing": "has no attribute 'missing'",
    "own_networks:turned": "instead of [2, 2, 64, 96]",
    "own_networks:checkpointed": "cannot be used",
    "own_networks:dropping": "another answer the second time: is there dropout",
    "own_networks:counting": "another answer the second time",
    "own_networks:batch_normed": "depends on the others of its batch",
    "own_networks:first_only": "gives [1, 2, 64, 96] instead of [2, 2, 64, 96]",
    "own_networks:several": "gives a list instead of a tensor",
    "own_networks:endless": "values that are not finite",
    "own_networks:lazy": "'0.weight' has no size before the first image",
    "own_networks:no_network": "gives a OrderedDict instead of a torch.nn.Module",
    "own_networks:leaving": "ends the program (SystemExit(3))",
    "no_such_package:factory": "No module named 'no_such_package'",
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_network_that_cannot_be_used_is_told_with_what_is_asked_of_one(name, data):
    plan = prepared(data, "isic2017", 2).plan
    with pytest.raises(InputFaults, match=r"cannot be used") as told:
        tried(with_segmenter(plan, name))
    (fault,) = told.value.faults
    assert (fault.code, fault.case) == ("segmenter_unfit", "--segmenter") and UNFIT[name] in fault.rule
    assert "[n, in, *size] to [n, out, *size]" in fault.remedy


def test_a_network_is_tried_as_training_builds_it_behind_prompts(data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 1)
    with pytest.raises(InputFaults, match="instead of"):
        run_train(study, tmp_path / "run", 1, method="versemi", segmenter="own_networks:always_two")
    assert not (tmp_path / "run").exists()


def test_heads_told_by_prompts_take_as_much_memory_with_any_network(data):
    ready = prepared(data, "isic2017", 2)
    plain = ready.plan.model_copy(update={"patch": [512, 512]})
    asked = plain.asked(prompts_of([ready.study], True)[0])
    more = asked.memory_mb - plain.memory_mb
    behind, without = (tried(with_segmenter(plan, "own_networks:small")) for plan in (asked, plain))
    assert more > 50 and asked.heads_mb == behind.heads_mb == more and plain.heads_mb == 0
    assert behind.memory_mb - more == pytest.approx(without.memory_mb, rel=0.15)  # of features, not of classes
    assert 0 < with_segmenter(asked, "deeplabv3").heads_mb < more / 10, "on its own grid they take little"


def test_a_package_that_is_not_there_is_bad_input_and_told_before_the_scans_are_read(data, tmp_path, monkeypatch):
    monkeypatch.setattr("genseg.prepare.check_study", lambda *_: pytest.fail("reads the scans"))
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 0, 0)
    command = ["train", str(study), "--out", str(tmp_path / "run"), "--segmenter"]
    for name in ("no_such_package:factory", "own_networks:missing"):
        done = CliRunner().invoke(app, [*command, name])
        assert done.exit_code == EXIT_BAD_INPUT and "--segmenter" in done.output and name in done.output
    assert not (tmp_path / "run").exists()


def test_a_factory_that_gives_the_same_network_again_does_not_tie_the_average_to_it(data):
    ready = prepared(data, "isic2017", 2)
    ready = replace(ready, plan=tried(with_segmenter(ready.plan, "own_networks:the_same")))
    joint = built(ready, "supervised").joint
    advance(joint, 2)
    pairs = zip(joint.segmenter.parameters(), joint.average.network.parameters(), strict=True)
    assert all(mine is not kept and not torch.equal(mine, kept) for mine, kept in pairs)


def test_the_memory_of_another_segmenter_is_reckoned_from_what_its_layers_put_out(data):
    plan = prepared(data, "isic2017", 2).plan.model_copy(update={"patch": [64, 64]})
    swin, small = (tried(with_segmenter(plan, name)).memory_mb for name in ("swin_unetr", "own_networks:small"))
    assert small < plan.memory_mb < swin


def test_an_unknown_segmenter_is_refused_by_the_command_line_with_the_known_ones(tmp_path):
    command = [sys.executable, "-m", "genseg", "train", str(tmp_path), "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, "--segmenter", "resnet"], capture_output=True, encoding="utf-8", env=ENVIRONMENT)
    assert done.returncode == 2 and all(name in " ".join(done.stderr.split()) for name in SEGMENTERS)


def test_a_starting_model_of_another_network_is_refused_and_the_automatic_one_is_the_models(data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 0)
    run = run_train(study, tmp_path / "run", iterations=1, method="supervised", segmenter="unet").run
    with pytest.raises(InputFaults, match="is a 'unet', not a 'dynunet'"):
        run_train(study, tmp_path / "other", 1, method="supervised", segmenter="dynunet", init=run.path)
    for name in ("unet", "auto"):
        again = run_train(study, tmp_path / name, 1, method="supervised", segmenter=name, init=run.path)
        assert again.status == EXIT_OK and not [w for w in again.named("warning") if w.code == "init_partly"]
        assert Plan.load(again.run.plan).segmenter == "unet"


@pytest.mark.parametrize("name", ["dynunet", "unet", "deeplabv3", "own_networks:small"])
@pytest.mark.parametrize("prompted", [False, True])
def test_a_starting_model_gives_its_weights_to_a_plain_and_to_a_prompted_network(name, prompted, data):
    ready = prepared(data, "isic2017", 2)
    ready = replace(ready, plan=with_segmenter(ready.plan, name))
    methods = ("genseg", "versemi") if prompted else ("versemi", "genseg")
    giver, taker = (built(ready, method).joint for method in methods)
    weights = {_plain(n): p for n, p in giver.segmenter.state_dict().items()}
    anew = StartingModel(Path("model"), giver.plan, weights, []).copy_to(taker.segmenter, taker.plan)
    mine = {_plain(n): p for n, p in taker.segmenter.named_parameters()}
    last = last_layer(taker.segmenter, taker.plan) if name != "dynunet" and not prompted else []
    assert {*last} <= {_plain(n) for n in anew}  # what is the last layer here makes features there
    common = [n for n, p in mine.items() if n in weights and weights[n].shape == p.shape and n not in last]
    assert len(common) >= 4 and all(torch.equal(mine[n], weights[n]) for n in common)


@pytest.mark.parametrize("name", ["unet", "own_networks:small"])
def test_a_plain_networks_last_layer_never_makes_the_features_of_a_prompted_one(name, data):
    ready = prepared(data, "isic2017", 2)
    taker = built(replace(ready, plan=with_segmenter(ready.plan, name)), "versemi").joint
    plan = ready.plan.model_copy(update={"segmenter": name, "classes": taker.plan.filters[0]})
    giver = build_segmenter(plan)
    weights = {_plain(n): p.detach() + 1 for n, p in giver.state_dict().items()}
    last = last_layer(giver, plan)
    anew = StartingModel(Path("model"), plan, weights, []).copy_to(taker.segmenter, taker.plan)
    mine = {_plain(n): p for n, p in taker.segmenter.named_parameters()}
    alike = {n for n in last if n in mine and mine[n].shape == weights[n].shape}
    assert alike and alike <= {_plain(n) for n in anew}
    assert not any(torch.equal(mine[n], weights[n]) for n in alike)


@pytest.mark.parametrize(
    "name", ["unet", "attention_unet", "segresnet", "swin_unetr", "deeplabv3", "own_networks:small"]
)
def test_the_last_layer_of_every_network_goes_by_the_names_of_structures(name, data):
    """The model knows two structures, of which the new study asks for the second, and for another one."""
    ready = prepared(data, "isic2017", 2)
    plan = ready.plan.model_copy(update={"segmenter": name, "classes": 3, "patch": [64, 64]})
    known, wanted = ({BACKGROUND: 0, "old": 1, "both": 2}, {BACKGROUND: 0, "both": 1, "new": 2})
    giver, taker = build_segmenter(plan), build_segmenter(plan)
    before = {n: p.detach().clone() for n, p in taker.named_parameters()}
    weights = {_plain(n): p.detach() + 1 for n, p in giver.state_dict().items()}
    anew = StartingModel(Path("model"), plan, weights, [], known).copy_to(taker, plan, wanted)
    last, mine = last_layer(taker, plan), dict(taker.named_parameters())
    assert sorted(anew) == sorted(last) and len(last) >= 2
    for n in last:
        assert torch.equal(mine[n][0], weights[n][0]) and torch.equal(mine[n][1], weights[n][2])
        assert torch.equal(mine[n][2], before[n][2])
    assert all(torch.equal(p, weights[n]) for n, p in mine.items() if n not in last)


@pytest.mark.parametrize("name", ["attention", "unused_and_frozen"])
def test_own_networks_with_attention_and_with_weights_that_nothing_moves_are_shaped_by_level3(name, data):
    ready = prepared(data, "isic2017", 2)
    ready = replace(ready, plan=tried(with_segmenter(ready.plan, f"own_networks:{name}")))
    joint = built(ready, "genseg").joint
    step = next_level3(advance(joint, 2))
    assert joint.step(step, searching(2))["meta/gradient_norm"] > 0


def test_own_networks_keep_the_scale_of_their_norms_and_nothing_drops_out_or_runs_along():
    network = made("own_networks:with_state")
    norms = [m for m in network.modules() if isinstance(m, nn.InstanceNorm2d)]
    assert [float(norm.weight[0]) for norm in norms] == [3.0, 3.0, 3.0] and not list(network.buffers())
    image = torch.randn(1, 2, 64, 64)
    assert torch.equal(network(image), network(image)) and torch.equal(network(image), network.eval()(image))


def test_attention_drops_nothing():
    layer = nn.TransformerEncoderLayer(4, 1, 8, dropout=0.5, batch_first=True)
    fitted, tokens = instance_normed(nn.Sequential(layer)), torch.randn(1, 6, 4)
    assert torch.equal(fitted(tokens), fitted(tokens))


def test_a_network_that_is_gone_is_named_when_its_model_is_used(data, tmp_path):
    study = tiny_study(data / "isic2017", tmp_path / "study", 2, 1, 0)
    run = run_train(study, tmp_path / "run", 1, method="supervised", segmenter="own_networks:small").run
    plan = Plan.load(run.plan).model_copy(update={"segmenter": "gone_networks:small"})
    plan.save(run.plan)
    with pytest.raises(RunFailed, match="No module named 'gone_networks'"):
        Predictor.load(run.path, "cpu")


def test_a_network_in_the_current_folder_is_found(tmp_path):
    (tmp_path / "here_alone.py").write_text((Path(__file__).parent / "own_networks.py").read_text())
    code = "from genseg.networks.segmenters import build; "
    code += "build('here_alone:small', dims=2, channels=1, outputs=2, filters=[8])"
    isolated = [sys.executable, "-P", "-c", code]  # as in the program genseg, the folder is not on the path
    assert subprocess.run(isolated, cwd=tmp_path, env=ENVIRONMENT).returncode == 0


def test_plans_of_older_runs_have_the_default_segmenter(data):
    plan = prepared(data, "isic2017", 2).plan
    old = plan.model_dump(exclude={"segmenter"})
    assert isinstance(build_segmenter(Plan(**old)), type(build_segmenter(plan)))
