"""Starting models on real scans: what tasks are drawn, what a meta-step changes, what the model is good for."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_together import genseg
from tiny_run import ENVIRONMENT, run_train, tensors, tiny_study

from genseg.device import find_device
from genseg.errors import RunFailed
from genseg.events import EventLog
from genseg.export import export_bundle
from genseg.inference import Predictor
from genseg.metatrain import learner_of, meta_train, plan_of, prepare_studies
from genseg.methods import imaml
from genseg.methods.episodes import Tasks
from genseg.methods.hypergradient import value_and_gradient
from genseg.methods.imaml import hessian_product
from genseg.methods.metalearn import OUTPUT, MetaLearner, fresh_output
from genseg.methods.synthesis import label_of
from genseg.networks import build_segmenter
from genseg.plan import Plan
from genseg.prepare import load, prepare
from genseg.randomness import stream
from genseg.runfolder import RunFolder
from genseg.settings import MetaSettings, Settings
from genseg.startingmodel import INPUT, Start, StartingModel, Studied, with_studies
from genseg.state import build_state
from genseg.study import read_study

METHODS = ("imaml", "first-order", "reptile", "pretrain")


@pytest.fixture(scope="module")
def studies(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A coloured and a grey study, cut down."""
    folder = tmp_path_factory.mktemp("studies")
    return [named(tiny_study(data / name, folder / name, 4, 1), name) for name in ("isic2017", "busi")]


def named(study: Path, name: str) -> Path:
    """The study with a name, a licence and a reference."""
    file = study / "dataset.json"
    told = {"name": name, "licence": f"licence of {name}", "reference": f"paper of {name}"}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | told), encoding="utf-8")
    return study


def settings_of(studies: list[Path], out: Path, **more: object) -> MetaSettings:
    chosen = {"method": "imaml"} | more
    return MetaSettings(dataset=studies[0], more=studies[1:], out=out, device="cpu", iterations=2, **chosen)


def learner(studies: list[Path], out: Path, **more: object) -> MetaLearner:
    """Of iMAML's smooth network whatever the method, so that methods can be compared."""
    settings = settings_of(studies, out, **more)
    ready = prepare_studies(settings, EventLog())
    return learner_of(ready, plan_of(ready, smooth=True), settings)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a meta-step takes a second."""
    monkeypatch.setattr("genseg.methods.metalearn.INNER_STEPS", 2)
    monkeypatch.setattr("genseg.methods.metalearn.TASKS", 1)


@pytest.fixture(scope="module")
def model(studies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command line, in the way that takes the least time."""
    out = tmp_path_factory.mktemp("model") / "model"
    done = genseg("meta-train", *studies, "--iterations", 1, "--out", out, "--method", "pretrain")
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_no_patient_is_in_the_question_and_in_the_answer_and_all_structures_and_unions_come(data):
    acdc = read_study(data / "acdc")
    acdc = acdc.model_copy(update={"training": acdc.training[:6], "unlabeled": []})
    ready = load([acdc], None, Settings(dataset=data, out=data, method="supervised"), find_device("cpu"), [EventLog()])
    tasks, seen = Tasks(ready), set()
    for step in range(60):
        episode = tasks.draw(stream(0, "test", step))
        sides = [{acdc.patients[i] for i in scans} for scans in (episode.support, episode.query)]
        assert sides[0] and sides[1] and not sides[0] & sides[1]
        seen.add(episode.task.structures)
    assert {(1,), (2,), (3,)} <= seen and any(len(structures) > 1 for structures in seen)
    union = next(structures for structures in seen if len(structures) > 1)
    assert " + " in tasks.name(type(episode.task)(0, union))


def test_a_task_shows_its_structures_and_nothing_else(data):
    acdc = read_study(data / "acdc")
    acdc = acdc.model_copy(update={"training": acdc.training[:2], "unlabeled": []})
    ready = load([acdc], None, Settings(dataset=data, out=data, method="supervised"), find_device("cpu"), [EventLog()])
    tasks = Tasks(ready)
    task, shows = type(tasks.draw(stream(0, "test", 0)).task), []
    for structures in ((1,), (3,), (1, 3)):
        for step in range(4):
            label = tasks.load(task(0, structures), [0, 1], stream(0, "same", step))[1]
            sampler = tasks.samplers[0]
            draw = sampler.draw(len(label), stream(0, "same", step), [0, 1], structures)
            whole = label_of(sampler.load(draw)[1], 4)
            assert torch.equal(label, sum((whole == k).long() for k in structures))
            shows += label.flatten(1).any(1).tolist()
    assert sum(shows) / len(shows) >= 0.5, "half of the patches at least are centred on what is asked for"


@pytest.mark.parametrize("method", METHODS)
def test_a_meta_step_changes_every_shared_weight_and_depends_on_seed_and_step_alone(studies, tmp_path, method, few):
    first, second = (learner(studies, tmp_path, method=method) for _ in range(2))
    before = {name: p.detach().clone() for name, p in first.network.named_parameters()}
    seen, again = first.step(0), second.step(0)
    assert seen == again and all(torch.isfinite(torch.tensor(value)) for value in seen.values())
    after = dict(first.network.named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if not name.startswith(OUTPUT)}
    assert all(torch.equal(p, after[name]) for name, p in second.network.named_parameters())


@pytest.mark.parametrize("method", METHODS)
def test_meta_steps_on_one_task_make_its_question_easier(studies, tmp_path, method, few):
    """The same draws in every step, so that nothing but θ changes."""
    state = learner(studies, tmp_path, method=method)
    seen = [state.step(0)["loss/query"] for _ in range(6)]
    assert seen[-1] < seen[0] - 0.01, seen


def test_one_strength_holds_for_inner_steps_and_system_and_the_next_search_begins_where_the_last_ended(
    studies, tmp_path, few, monkeypatch
):
    strengths, starts = [], []

    def spied_adapt(loss, start, strength, steps, rate):
        strengths.append(strength)
        return imaml.adapt(loss, start, strength, steps, rate)

    def spied_gradient(slope, curvature, strength, start):
        strengths.append(strength)
        starts.append(start)
        found, solution = imaml.implicit_gradient(slope, curvature, strength, start)
        return found, replace(solution, x=solution.x + len(starts))

    monkeypatch.setattr("genseg.methods.metalearn.adapt", spied_adapt)
    monkeypatch.setattr("genseg.methods.metalearn.implicit_gradient", spied_gradient)
    state = learner(studies, tmp_path)
    state.step(0)
    kept = next(iter(state.earlier.values())).clone()
    state.step(0)
    assert len({*strengths}) == 1 and len(strengths) == 4
    assert starts[0] is None and torch.equal(starts[1], kept)


def test_the_product_with_the_hessian_foretells_how_the_slope_changes_over_a_step_of_some_length(studies, tmp_path):
    """In the real network. With leaky ReLU the cosine is 0.3: kinks bend more than all the rest, and H has none."""
    state = learner(studies, tmp_path)
    task = state.tasks.single()[0]
    episode = state.tasks.of(task, stream(0, "test", 0))
    image, label = state.tasks.load(task, episode.support, stream(0, "near", 0), small=True)
    network, batch = state.network.double(), (image.double(), label)
    at = {name: p.detach().double() for name, p in network.named_parameters()}

    def slope(weights):
        return value_and_gradient(lambda w: state._loss(w, batch, exact=True), weights)[1]

    here = slope(at)
    length = math.sqrt(sum(float(p.square().sum()) for p in here.values()))
    step = {name: -1e-2 / length * p for name, p in here.items()}
    there = slope({name: p + step[name] for name, p in at.items()})
    told = hessian_product(lambda w: state._loss(w, batch, exact=True), at)(step)
    found, foretold = (torch.cat([p.flatten() for p in one.values()]) for one in (
        {name: there[name] - here[name] for name in here}, {name: told[name] for name in here},
    ))  # fmt: skip
    assert torch.cosine_similarity(found, foretold, dim=0) > 0.95
    assert 0.8 < foretold.norm() / found.norm() < 1.25


def test_the_scans_that_ask_are_never_those_that_were_labelled(studies, tmp_path, few, monkeypatch):
    state, asked = learner(studies, tmp_path), []
    load = state.tasks.load

    def spied(task, scans, rng, *rest, **more):
        asked.append(tuple(scans))
        return load(task, scans, rng, *rest, **more)

    monkeypatch.setattr(state.tasks, "load", spied)
    state.step(0)
    first, second, question, near = asked
    assert first == second == near and not {*first} & {*question}
    asked.clear()
    state.score(state.tasks.single()[0])
    assert len(asked) == 9 and not any({*asked[i]} & {*asked[i + 1]} for i in (0, 3, 6))  # question, two inner steps


def test_imaml_and_first_order_differ_only_by_the_solved_system(studies, tmp_path, monkeypatch, few):
    """With H = 0 the solution is the slope itself."""
    implicit, first = (learner(studies, tmp_path, method=method) for method in ("imaml", "first-order"))
    monkeypatch.setattr(
        "genseg.methods.metalearn.hessian_product",
        lambda loss, at: lambda v: {name: torch.zeros_like(p) for name, p in v.items()},
    )
    implicit.step(0), first.step(0)
    ours, theirs = implicit.start(), first.start()
    assert all(torch.allclose(ours[name].grad, theirs[name].grad, rtol=1e-4, atol=1e-8) for name in ours)


def test_a_starting_model_says_what_it_was_trained_on_and_holds_no_last_layer(model, studies):
    run = RunFolder(model)
    assert run.done.exists() and run.plan.exists() and run.settings.exists()
    names = set(tensors(run.best))
    assert names and not any(name.startswith(OUTPUT) for name in names)
    card = json.loads(run.card.read_text(encoding="utf-8"))
    assert [one["name"] for one in card["trained_on"]] == ["isic2017", "busi"] and card["meta_steps"] == 1
    assert all(one["labelled_scans"] == 4 for one in card["trained_on"])
    assert "It segments nothing by itself" in (model / "README.md").read_text(encoding="utf-8")
    kinds = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".jsonl", ".safetensors", ".md", ""}


def test_a_run_of_imaml_tells_its_curves_and_scores_on_scans_of_other_patients(studies, tmp_path, few):
    heard: list = []
    log = EventLog([heard.append])
    assert meta_train(settings_of(studies, tmp_path / "model"), log) == 0
    log.close()
    card = json.loads((tmp_path / "model" / "card.json").read_text(encoding="utf-8"))
    assert (
        card["meta_steps"] == 2
        and card["query_dice"]
        and set(card["query_dice"])
        == {
            "isic2017: skin lesion",
            "busi: breast lesion",
        }
    )
    assert "in other patients' scans" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert {"loss/query", "imaml/residual"} <= {event.name for event in heard if event.event == "metric"}
    assert [event.event for event in heard if event.event in ("started", "finished")] == ["started", "finished"]


def test_a_network_that_imaml_has_learned_stays_smooth_in_training_prediction_bundle_and_going_on(
    studies, tmp_path, few, monkeypatch
):
    monkeypatch.setattr("genseg.metatrain.SCORE_SECONDS", 0.0)
    once = {"iterations": 1}
    assert meta_train(settings_of(studies, tmp_path / "smooth").model_copy(update=once), EventLog()) == 0
    run = run_train(studies[1], tmp_path / "run", method="versemi", init=tmp_path / "smooth", **once).run
    more = settings_of(studies, tmp_path / "more", method="pretrain").model_copy(
        update=once | {"init": tmp_path / "smooth"}
    )
    assert meta_train(more, EventLog()) == 0
    plans = [Plan.load(RunFolder(path).plan) for path in (tmp_path / "smooth", run.path, more.out)]
    assert [plan.activation for plan in plans] == ["swish"] * 3
    config = (run.model / "configs" / "inference.json").read_text(encoding="utf-8")
    assert '"swish"' in config and "leakyrelu" not in config
    image = torch.rand(1, 1, *plans[1].patch)
    networks = [Predictor.load(path, "cpu").network for path in (run.path, run.model)]
    assert torch.equal(*(network(image) for network in networks))
    kinked = build_segmenter(plans[1].model_copy(update={"activation": "leakyrelu"})).eval()
    kinked.load_state_dict(networks[0].state_dict())
    assert not torch.allclose(kinked(image), networks[0](image), atol=1e-3)


def test_a_starting_model_cannot_predict_and_says_what_to_do(model, studies, tmp_path):
    done = genseg("predict", model, studies[0], "--out", tmp_path / "masks")
    assert done.returncode == 1 and "no structures of its own" in done.stderr and "--init" in done.stderr


@pytest.mark.parametrize("method", ["supervised", "versemi"])
def test_every_weight_but_the_last_layers_comes_from_the_starting_model(model, studies, tmp_path, method):
    start, heard = StartingModel.load(model), []
    settings = Settings(dataset=studies[0], out=tmp_path, method=method, device="cpu", iterations=2)
    state = build_state(prepare(settings, EventLog(), start=start), settings)
    start.give(state, EventLog([heard.append]))
    mine = {name.removeprefix("backbone."): p for name, p in state.joint.segmenter.named_parameters()}
    shared = {name for name in start.weights if name in mine}
    assert len(shared) == len(start.weights)
    assert all(torch.equal(mine[name], start.weights[name]) for name in shared) and not heard


def test_a_coloured_models_first_layer_sees_a_grey_scan_as_a_coloured_one_without_colours(model, studies, tmp_path):
    start = StartingModel.load(model)
    settings = Settings(dataset=studies[1], out=tmp_path, method="supervised", device="cpu", iterations=2)
    state = build_state(prepare(settings, EventLog(), start=start), settings)
    assert start.plan.channels == 3 and state.joint.plan.channels == 1
    start.give(state, EventLog())
    grey, coloured = state.joint.segmenter, build_segmenter(start.plan)
    for name, p in coloured.named_parameters():
        own = dict(grey.named_parameters())[name] if name.startswith(OUTPUT) else start.weights[name]
        p.data.copy_(own)
    image = torch.rand(2, 1, *start.plan.patch)
    assert torch.allclose(grey(image), coloured(image.repeat(1, 3, 1, 1)), atol=1e-4)
    assert dict(grey.named_parameters())[INPUT].shape[1] == 1


def test_a_starting_model_of_other_dimensions_is_refused_before_anything_is_written(model, data, tmp_path):
    volumes = tiny_study(data / "hippocampus", tmp_path / "hippocampus", 2, 1)
    done = genseg("train", volumes, "--init", model, "--iterations", 2, "--out", tmp_path / "run")
    assert done.returncode == 2 and "a 2D network for 3 channel(s)" in done.stderr and "3D" in done.stderr
    assert not (tmp_path / "run").exists()


def test_thick_slices_are_planned_as_volumes_where_the_starting_model_is_of_volumes(data, tmp_path, few, monkeypatch):
    """As they were where it was learned from them together with volumes; alone they would be single slices."""
    monkeypatch.setattr("genseg.metatrain.SCORE_SECONDS", 0.0)
    volumes = tiny_study(data / "hippocampus", tmp_path / "hippocampus", 2, 1)
    slices = tiny_study(data / "acdc", tmp_path / "acdc", 2, 1)
    settings = settings_of([volumes, slices], tmp_path / "model", method="pretrain")
    assert meta_train(settings, EventLog()) == 0
    alone = Settings(dataset=slices, out=tmp_path / "run", method="supervised", device="cpu", iterations=2)
    assert prepare(alone, EventLog())[0].plan.dims == 2
    start = StartingModel.load(tmp_path / "model")
    assert prepare(alone, EventLog(), start=start)[0].plan.filters == start.plan.filters and start.plan.dims == 3


def test_a_training_that_starts_from_it_finishes_and_predicts(model, studies, tmp_path):
    done = genseg(
        "train", studies[1], "--init", model, "--iterations", 4, "--out", tmp_path / "run", "--method", "genseg"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    run = RunFolder(tmp_path / "run")
    assert Plan.load(run.plan).filters == Plan.load(RunFolder(model).plan).filters
    assert Predictor.load(run.path, "cpu").plan.channels == 1
    assert [one["name"] for one in json.loads(run.origin.read_text(encoding="utf-8"))] == ["isic2017", "busi"]
    licence = (run.model / "docs" / "license.txt").read_text(encoding="utf-8")
    assert "- isic2017:" in licence and "isic2017" in (run.model / "docs" / "README.md").read_text(encoding="utf-8")


def test_learning_goes_on_from_an_earlier_starting_model(model, studies, tmp_path):
    start = StartingModel.load(model)
    settings = settings_of(studies, tmp_path / "again", method="pretrain", init=model)
    ready = prepare_studies(settings, EventLog(), Start(model))
    again = learner_of(ready, plan_of(ready), settings)
    anew = start.copy_to(again.network, again.tasks.studies[0].plan)
    assert len(anew) == 2 and all(name.startswith(OUTPUT) for name in anew)  # weight and bias of the last layer
    assert all(torch.equal(p, start.weights[name]) for name, p in again.start().items())


def test_going_on_takes_over_the_weights_draws_other_tasks_and_the_card_tells_all_that_was_learned_from(
    model, studies, data, tmp_path, few, monkeypatch
):
    steps, step = [], MetaLearner.step
    monkeypatch.setattr(MetaLearner, "step", lambda self, number: steps.append(number) or step(self, number))
    other = named(tiny_study(data / "isic2017", tmp_path / "third", 2, 1), "third")
    settings = MetaSettings(
        dataset=other, out=tmp_path / "again", device="cpu", iterations=2, method="reptile", init=model
    )
    assert meta_train(settings, EventLog()) == 0
    before, after = StartingModel.load(model), StartingModel.load(tmp_path / "again")
    assert steps == [1, 2] and after.meta_steps == 3  # the model has made one step
    assert all((p - before.weights[name]).abs().max() < 5e-3 for name, p in after.weights.items())
    assert [one.name for one in after.trained_on] == ["isic2017", "busi", "third"]
    assert after.card.began_from == before.card
    assert "going on from 1 steps of pretrain" in (tmp_path / "again" / "README.md").read_text(encoding="utf-8")


def test_a_bundle_hands_on_the_studies_that_its_weights_come_from(model, studies, data, tmp_path):
    run = run_train(studies[0], tmp_path / "run", iterations=1, method="supervised", init=model).run
    bundle = tmp_path / "bundle"
    export_bundle(run, bundle)
    assert [one.name for one in StartingModel.load(bundle).trained_on] == ["isic2017", "busi"]
    text = (bundle / "docs" / "license.txt").read_text(encoding="utf-8")
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    for name in ("isic2017", "busi"):
        assert f"{name}: licence of {name} (paper of {name})" in text
    assert metadata["references"] == ["paper of isic2017", "paper of busi"]
    for wrong in ("null", "[{}]", '{"name": 1}'):
        (bundle / "configs" / "trained_on.json").write_text(wrong)
        with pytest.raises(RunFailed, match=r"trained_on\.json is damaged"):
            StartingModel.load(bundle)
    (bundle / "configs" / "trained_on.json").write_text("[]")
    assert [one.licence for one in StartingModel.load(bundle).trained_on] == ["unknown"]


def test_a_run_whose_weights_are_not_finite_or_another_networks_is_no_start(studies, tmp_path):
    run = run_train(studies[0], tmp_path / "run", iterations=1, method="supervised").run
    weights = load_file(run.best)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] * float("nan")}, run.best)
    with pytest.raises(RunFailed, match="not all finite"):
        StartingModel.load(run.path)
    save_file(weights | {name: weights[name][:1].clone()}, run.best)
    with pytest.raises(RunFailed, match="is damaged"):
        StartingModel.load(run.path)


def test_a_starting_model_brings_no_code_with_it(model, tmp_path, monkeypatch):
    (tmp_path / "foreign.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(model, tmp_path / "copy")
    plan = RunFolder(tmp_path / "copy").plan
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"segmenter": "foreign:network"}))
    with pytest.raises(RunFailed, match="names the network 'foreign:network'"):
        StartingModel.load(tmp_path / "copy")


def test_a_budget_that_ends_before_the_first_step_makes_no_model(studies, tmp_path):
    short = settings_of(studies, tmp_path / "short").model_copy(update={"iterations": None, "budget": 1e-9})
    with pytest.raises(RunFailed, match="before the first meta-step"):
        meta_train(short, EventLog())
    assert not RunFolder(short.out).done.exists() and not RunFolder(short.out).best.exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_where_no_step_was_finite_that_is_said_and_there_is_no_model(studies, tmp_path, monkeypatch, stopped):
    folder = RunFolder(tmp_path / "model")

    def step(self, number):
        if stopped:
            folder.stop.touch()

    monkeypatch.setattr(MetaLearner, "step", step)
    with pytest.raises(RunFailed, match=r"The last \d steps were not finite"):
        meta_train(settings_of(studies, folder.path), EventLog())
    assert not folder.best.exists() and not folder.done.exists()


def test_a_test_on_scans_that_the_starting_model_was_trained_on_is_told(model, studies, data, tmp_path):
    leak = named(tiny_study(data / "busi", tmp_path / "leak", 6, 1), "leak")
    whole = json.loads((leak / "dataset.json").read_text(encoding="utf-8"))
    seen, unseen = whole["training"][:2], whole["training"][4:]
    (leak / "dataset.json").write_text(json.dumps(whole | {"training": unseen, "test": [*whole["test"], *seen]}))
    heard = run_train(leak, tmp_path / "run", iterations=1, method="supervised", init=model).heard
    (told,) = [one for one in heard if one.event == "warning" and one.code == "init_saw_test"]
    assert "2 of the 3 test scans" in told.message and Path(seen[0]["image"]).stem in told.message
    again = run_train(leak, tmp_path / "again", iterations=1, method="supervised", init=tmp_path / "run").heard
    assert [one.message for one in again if one.event == "warning" and one.code == "init_saw_test"]  # handed on
    clean = run_train(studies[1], tmp_path / "clean", iterations=1, method="supervised", init=model).heard
    assert not [one for one in clean if one.event == "warning" and one.code == "init_saw_test"]


def test_scans_of_a_study_that_is_learned_from_again_are_added_to_it():
    one, more = (
        Studied(name="a", labelled_scans=2, structures=["x"], scans=scans) for scans in (["1", "2"], ["2", "3"])
    )
    (both,) = with_studies([one], [more])
    assert both.scans == ["1", "2", "3"] and both.labelled_scans == 3
    assert len(with_studies([one], [more.model_copy(update={"licence": "other"})])) == 2


@pytest.mark.parametrize("command", ["train", "meta-train"])
def test_a_start_that_is_none_is_told_with_its_own_remedy(studies, tmp_path, command):
    for init, words in (
        (tmp_path / "typo", "There is no folder"),
        (studies[1], "is no run folder, bundle or starting model"),
    ):
        done = genseg(command, studies[0], "--init", init, "--iterations", 1, "--out", tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr and "wait" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_of_no_network_is_no_starting_model(model, tmp_path):
    for number, change in enumerate(({"filters": [-8] * 9}, {"kernels": [[0, 0]] * 9}, {"channels": -3})):
        shutil.copytree(model, tmp_path / str(number))
        plan = RunFolder(tmp_path / str(number)).plan
        old = json.loads(plan.read_text(encoding="utf-8"))
        cut = {key: value[: len(old[key])] if isinstance(value, list) else value for key, value in change.items()}
        plan.write_text(json.dumps(old | cut), encoding="utf-8")
        with pytest.raises(RunFailed):
            StartingModel.load(tmp_path / str(number))


def test_a_stop_ends_the_judging(studies, tmp_path, few, monkeypatch):
    score, folder = MetaLearner.score, RunFolder(tmp_path / "model")

    def stopped(self, task):
        folder.stop.touch()
        return score(self, task)

    monkeypatch.setattr(MetaLearner, "score", stopped)
    assert meta_train(settings_of(studies, folder.path, method="pretrain"), EventLog()) == 0
    assert len(json.loads(folder.card.read_text(encoding="utf-8"))["query_dice"]) == 1
    assert folder.done.exists() and not folder.stop.exists()


def test_what_only_runs_have_is_refused_for_a_starting_model(model, tmp_path):
    for arguments in (("export", model, "--out", tmp_path / "x"), ("report", model), ("train", "--resume", model)):
        done = genseg(*arguments)
        assert done.returncode == 2 and "This is a starting model and no run" in done.stderr, done.stderr
    assert not (model / "report.html").exists()


def damaged(model: Path, to: Path, **tensors: torch.Tensor) -> Path:
    """A copy of the model with some weights replaced."""
    shutil.copytree(model, to)
    weights = load_file(RunFolder(to).best)
    save_file(weights | tensors, RunFolder(to).best)
    return to


def test_a_starting_model_whose_weights_are_another_networks_or_not_finite_is_refused(model, tmp_path):
    weight = load_file(RunFolder(model).best)[INPUT]
    for name, wrong, words in (
        ("more", {"unknown": weight}, "another network"),
        ("shape", {INPUT: weight[:8].contiguous()}, "another network"),
        ("nan", {INPUT: weight * float("nan")}, "not learned anything usable"),
    ):
        with pytest.raises(RunFailed, match=words):
            StartingModel.load(damaged(model, tmp_path / name, **wrong))


@pytest.mark.parametrize(
    "change", [{"meta_steps": 0}, {"trained_on": None}, {"trained_on": []}, {"trained_on": [{"name": "x"}]}]
)
def test_a_starting_model_whose_card_says_nothing_usable_is_refused(model, tmp_path, change):
    shutil.copytree(model, tmp_path / "copy")
    card = tmp_path / "copy" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(RunFailed):
        StartingModel.load(tmp_path / "copy")


def test_until_something_was_learned_there_is_no_model(studies, tmp_path, few, monkeypatch):
    def stop(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("genseg.metatrain._fit", stop)
    with pytest.raises(KeyboardInterrupt):
        meta_train(settings_of(studies, tmp_path / "model"), EventLog())
    with pytest.raises(RunFailed, match=r"lacks best\.safetensors"):
        StartingModel.load(tmp_path / "model")


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from genseg.events import EventLog
from genseg.metatrain import learner_of, plan_of, prepare_studies
from genseg.methods import metalearn
from genseg.settings import MetaSettings
torch.set_num_threads(1)
first, second, out = map(Path, sys.argv[1:])
settings = MetaSettings(dataset=first, more=[second], out=out, device="cpu", iterations=1, method="first-order")
ready = prepare_studies(settings, EventLog())
learner, peaks = learner_of(ready, plan_of(ready), settings), []
# Only what the steps keep is measured: the images, a few bytes beside what a network keeps for its way back.
learner._loss = lambda weights, batch, exact=False: sum(p.sum() for p in weights.values()) + batch[0].mean()
for steps in (3, 60):
    metalearn.INNER_STEPS = steps
    learner._task(0, 0)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[1] - peaks[0])
"""


def test_memory_does_not_grow_with_the_number_of_inner_steps(studies, tmp_path):
    """3 steps of a task, then 60, whose batches alone would be 30 MB and more."""
    command = [sys.executable, "-c", MEMORY, *map(str, studies), str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 10_000, "kB"


@pytest.mark.parametrize("gone", ["best.safetensors", "plan.json"])
def test_a_starting_model_that_lacks_a_file_says_which(model, tmp_path, gone):
    shutil.copytree(model, tmp_path / "copy")
    next((tmp_path / "copy").rglob(gone)).unlink()
    with pytest.raises(RunFailed, match=f"lacks {gone}"):
        StartingModel.load(tmp_path / "copy")


@pytest.mark.parametrize("method", ["pretrain", "first-order"])
def test_a_starting_point_is_judged_alike_whatever_it_was_learned_by_and_the_judging_changes_nothing(
    studies, tmp_path, few, method
):
    state = learner(studies, tmp_path, method=method)
    before = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    scores = [state.score(task) for task in state.tasks.single()]
    assert len(scores) == 2 and all(score is not None and 0 <= score <= 1 for score in scores)
    assert scores == [learner(studies, tmp_path, method="imaml").score(task) for task in state.tasks.single()]
    assert all(torch.equal(p, before[name]) for name, p in state.network.named_parameters())


def test_judging_takes_no_more_than_its_share_of_the_time_and_the_card_says_what_was_left_out(
    studies, tmp_path, few, monkeypatch
):
    monkeypatch.setattr("genseg.metatrain.SCORE_SECONDS", 0.0)
    monkeypatch.setattr("genseg.metatrain.SCORE_SHARE", 0.0)
    assert meta_train(settings_of(studies, tmp_path / "model"), EventLog()) == 0
    assert len(json.loads((tmp_path / "model" / "card.json").read_text(encoding="utf-8"))["query_dice"]) == 1
    assert "no time for the other structures" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_a_structure_that_one_patient_alone_shows_has_no_score(studies, tmp_path, few, monkeypatch):
    state = learner(studies, tmp_path)
    study = state.tasks.studies[0].study
    same = [case.model_copy(update={"group": "one patient"}) for case in study.training]
    monkeypatch.setattr(state.tasks.studies[0], "study", study.model_copy(update={"training": same}))
    assert state.score(state.tasks.single()[0]) is None and state.score(state.tasks.single()[1]) is not None


def test_a_step_that_is_not_finite_changes_nothing(studies, tmp_path, few, monkeypatch):
    state = learner(studies, tmp_path, method="first-order")
    before = {name: p.detach().clone() for name, p in state.network.named_parameters()}
    monkeypatch.setattr(MetaLearner, "_dice", lambda *_: float("nan"))
    assert state.step(0) is None
    assert all(torch.equal(p, before[name]) for name, p in state.network.named_parameters())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(RunFailed, match="is no run folder, bundle or starting model"):
        StartingModel.load(tmp_path)


def test_a_new_last_layer_is_that_of_a_new_network():
    """He's spread, bias 0 for the background and rare for the structure."""
    network = build_segmenter(
        Plan.model_construct(
            dims=2, channels=1, classes=2, kernels=[3] * 3, strides=[1, 2, 2], filters=[64, 8, 8], prompts=None
        )
    )
    fresh = fresh_output(network, stream(0, "test", 0))
    weight, bias = (next(p for p in fresh.values() if p.ndim == n) for n in (4, 1))
    assert abs(float(weight.std()) - (2 / 64) ** 0.5) < 0.05 and bias.tolist() == [0.0, -2.0]
