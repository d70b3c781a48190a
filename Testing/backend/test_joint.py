"""The joint step on real scans: who influences whom, what stays untouched, and what is held out when."""

import copy
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from method_rig import advance, built, next_level3, prepared, processor, searching
from torch import Tensor, nn

from genseg.methods import joint as joint_module
from genseg.methods.joint import GATE, META_EVERY, READ_BACK_WEIGHT, Joint, Stage
from genseg.methods.losses import dice_agreement, one_hot, segmentation_loss
from genseg.methods.synthesis import label_of, meta_plan, soft_label_of, synthesise
from genseg.networks import build_discriminator
from genseg.networks.generators import style_of
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.schedule import BALANCE, FOLDS, LEVEL3_UNTIL, SYNTHETIC_FROM, Clock, learning_rate, stage_at
from genseg.settings import Settings
from genseg.state import RunState, load_tensors, save_tensors
from genseg.train import pretrain_step, train_step


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(state: RunState, iterations: int) -> list[Stage]:
    """A whole short training, as train.fit steps it: → the stage of every step."""
    settings, stages = state.settings, []
    clock = Clock(settings)
    if state.joint.synthesis is not None:
        while state.counters.pretrain_step < 2:
            pretrain_step(state, clock)
    for step in range(iterations):
        stages.append(stage_at(step / iterations, step, state.prepared.study.patients, settings))
        train_step(state, step / iterations)
    return stages


@pytest.mark.parametrize(("name", "labelled"), [("isic2017", 3), ("hippocampus", 1)])
def test_every_entry_of_every_meta_parameter_moves(data, name, labelled):
    joint = built(prepared(data, name, labelled)).joint
    meta = joint.synthesis.meta
    advance(joint, 4)
    before = copied(meta)
    still = {n: torch.ones_like(p, dtype=torch.bool) for n, p in meta.named_parameters()}
    for round_ in range(1, 41):
        step = round_ * META_EVERY
        joint.step(step, searching(labelled))
        for n, p in meta.named_parameters():
            still[n] &= p.detach() == before[n]
        if not any(bool(s.any()) for s in still.values()):
            break
    assert not {n: s.nonzero().tolist() for n, s in still.items() if s.any()}
    assert all(bool(torch.isfinite(p).all()) for p in meta.parameters())


def test_a_synthetic_weight_fixed_by_the_user_stays_and_all_else_is_learned(data):
    state = built(prepared(data, "isic2017"), synthetic_weight=0.4)
    before = copied(state.joint.synthesis.meta)
    advance(state.joint, 2)
    seen = [state.joint.step(k * META_EVERY, searching(2)) for k in range(1, 4)][-1]
    after = copied(state.joint.synthesis.meta)
    assert seen["meta/synthetic_weight"] == pytest.approx(0.4)
    assert torch.equal(before["weight_logit"], after["weight_logit"])
    assert not torch.equal(before["share_logit"], after["share_logit"])
    assert not torch.equal(before["mixture"], after["mixture"])


def level1_gradients(joint: Joint, closed_loop: bool) -> dict[str, Tensor]:
    """What the generator's parameters get in one step of level 1, on a copy."""
    twin = copy.deepcopy(joint)
    image, layout = twin.sampler.load(twin.sampler.draw(2, torch.Generator().manual_seed(1)))
    twin._level1(twin.synthesis, image, layout, 7, closed_loop)
    return {n: p.grad.clone() for n, p in twin.synthesis.generator.named_parameters()}


@pytest.mark.parametrize("name", ["isic2017", "hippocampus"])
def test_level1_differs_from_separate_by_exactly_the_segmenters_gradient(data, name):
    joint = built(prepared(data, name)).joint
    advance(joint, 5)
    alone, closed = level1_gradients(joint, False), level1_gradients(joint, True)

    twin = copy.deepcopy(joint)
    s = twin.synthesis
    image, layout = twin.sampler.load(twin.sampler.draw(2, torch.Generator().manual_seed(1)))
    noise = s.generator.draw_noise(2, twin.plan.patch, stream(twin.seed, "noise", 7))
    fake, _ = s.generator(one_hot(layout, s.layouts), style_of(image), noise, s.meta.mixture, s.meta.noise_log, image)
    logits = twin.segmenter(fake)
    loss = READ_BACK_WEIGHT * segmentation_loss(logits, label_of(layout, twin.plan.classes)).mean()
    names = list(alone)
    expected = dict(zip(names, torch.autograd.grad(loss, list(s.generator.parameters())), strict=True))

    assert all(float(g.norm()) > 0 for n, g in expected.items() if "kernels" in n), "the segmenter's gradient arrives"
    difference = torch.cat([(closed[n] - alone[n]).flatten() for n in names])
    wanted = torch.cat([expected[n].flatten() for n in names])
    assert float((difference - wanted).norm() / wanted.norm()) < 1e-3


def test_level1_leaves_segmenter_and_meta_parameters_alone(data):
    joint = built(prepared(data, "isic2017")).joint
    advance(joint, 3)
    s = joint.synthesis
    held = copied(joint.segmenter), copied(s.meta)
    gradients = {n: p.grad.clone() for n, p in joint.segmenter.named_parameters()}
    image, layout = joint.sampler.load(joint.sampler.draw(2, torch.Generator().manual_seed(1)))
    generator, discriminator = copied(s.generator), copied(s.discriminator)
    joint._level1(s, image, layout, 4, closed_loop=True)
    assert same(held[0], copied(joint.segmenter)) and same(held[1], copied(s.meta))
    assert all(torch.equal(p.grad, gradients[n]) for n, p in joint.segmenter.named_parameters())
    assert not same(generator, copied(s.generator)) and not same(discriminator, copied(s.discriminator))


@pytest.mark.parametrize("name", ["isic2017", "hippocampus"])
def test_level3_leaves_the_segmenters_own_parameters_in_place(data, name):
    joint = built(prepared(data, name)).joint
    first = advance(joint, 3)
    before = [(n, id(p)) for n, p in joint.segmenter.named_parameters(remove_duplicate=False)]
    generator = [(n, id(p)) for n, p in joint.synthesis.generator.named_parameters(remove_duplicate=False)]
    values = copied(joint.segmenter)
    joint._level3(joint.synthesis, next_level3(first), searching(2))
    assert same(values, copied(joint.segmenter)), "looking ahead is not stepping"
    assert [(n, id(p)) for n, p in joint.segmenter.named_parameters(remove_duplicate=False)] == before
    assert [(n, id(p)) for n, p in joint.synthesis.generator.named_parameters(remove_duplicate=False)] == generator
    owned = {id(p) for group in joint.optimiser.param_groups for p in group["params"]}
    assert owned == {id(p) for p in joint.segmenter.parameters()}

    joint.step(next_level3(first) + 1, Stage())
    moved = [n for n, v in copied(joint.segmenter).items() if not torch.equal(v, values[n])]
    assert set(moved) == set(values), "every tensor of the network goes on learning"


@pytest.mark.parametrize(("name", "labelled"), [("isic2017", 2), ("hippocampus", 1)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["genseg", "separate"])
def test_with_synthetic_weight_0_the_weights_equal_supervised_bit_for_bit(data, name, labelled, precision, method):
    ready = prepared(data, name, labelled, precision=precision)
    steps = 24
    plain, off = built(ready, "supervised"), built(ready, method, synthetic_weight=0.0)
    on = built(ready, method)
    trained(plain, steps)
    stages = trained(off, steps)
    trained(on, steps)
    assert {(s.synthetic, s.level1) for s in stages} == {(False, False), (True, True), (True, False)}
    assert not any(s.level3 for s in stages)
    assert same(copied(plain.joint.segmenter), copied(off.joint.segmenter))
    assert same(copied(plain.average.network), copied(off.average.network))
    assert not same(copied(plain.joint.segmenter), copied(on.joint.segmenter)), "the pairs do count otherwise"


def test_bf16_is_really_used_where_the_plan_says_so(data):
    ready = {p: prepared(data, "isic2017", precision=p) for p in ("fp32", "bf16")}
    states = {p: built(r, "supervised") for p, r in ready.items()}
    for state in states.values():
        advance(state.joint, 2)
    assert not same(copied(states["fp32"].joint.segmenter), copied(states["bf16"].joint.segmenter))
    assert processor("bf16").autocast().fast_dtype is torch.bfloat16


def test_separate_never_moves_a_meta_parameter_and_never_holds_a_scan_out(data):
    state = built(prepared(data, "isic2017", 3), "separate")
    before, generator = copied(state.joint.synthesis.meta), copied(state.joint.synthesis.generator)
    stages = trained(state, 3 * META_EVERY + 2)
    assert same(before, copied(state.joint.synthesis.meta))
    assert not same(generator, copied(state.joint.synthesis.generator))
    assert all(s.train is None and not s.validation and not s.level3 for s in stages)
    assert not state.joint.synthesis.closed_loop


def test_genseg_moves_its_meta_parameters_and_freezes_them_at_the_end(data):
    state = built(prepared(data, "isic2017", 3), "genseg")
    steps, settled = 4 * META_EVERY, None
    for step in range(steps):
        if settled is None and step / steps >= LEVEL3_UNTIL:
            settled = copied(state.joint.synthesis.meta)
        train_step(state, step / steps)
    assert same(settled, copied(state.joint.synthesis.meta))
    fresh = built(state.prepared, "genseg")
    assert not same(copied(fresh.joint.synthesis.meta), settled)


def stages_of(labelled: int, method: str = "genseg", steps: int = 4000, **chosen: object) -> list[Stage]:
    settings = Settings(dataset=Path("d"), out=Path("o"), method=method, iterations=steps, **chosen)
    patients = [f"patient {number}" for number in range(labelled)]
    return [stage_at(step / steps, step, patients, settings) for step in range(steps)]


def test_the_scans_of_one_patient_are_held_out_together():
    settings = Settings(dataset=Path("d"), out=Path("o"), method="genseg", iterations=1000)
    patients = ["a", "a", "b", "c", "c", "c"]
    stages = [stage_at(step / 1000, step, patients, settings) for step in range(1000)]
    held_out = {tuple(stage.validation) for stage in stages if stage.level3}
    assert held_out == {(0, 1), (2,), (3, 4, 5)}
    alone = [stage_at(step / 1000, step, ["a", "a"], settings) for step in range(1000)]
    assert all(stage.train is None and stage.validation == [0, 1] for stage in alone if stage.level3)


@pytest.mark.parametrize("labelled", [2, 5, 40, 200])
def test_the_held_out_fold_is_disjoint_from_what_is_trained_on_and_every_scan_has_its_turn(labelled):
    steps = 4000
    stages = stages_of(labelled, steps=steps)
    held_out, at_work = set(), set()
    for step, stage in enumerate(stages):
        if not stage.level3:
            assert stage.train is None and stage.validation == []
            continue
        assert stage.train and stage.validation
        assert not set(stage.train) & set(stage.validation)
        assert sorted(stage.train + stage.validation) == list(range(labelled))
        assert len(stage.validation) <= math.ceil(labelled / min(FOLDS, labelled))
        held_out |= set(stage.validation)
        if step % META_EVERY == 0:  # a scan that is held out but never asked would have no turn
            at_work |= set(stage.validation)
    assert held_out == at_work == set(range(labelled))


def test_a_single_labelled_scan_validates_itself_and_is_trained_on():
    stages = [s for s in stages_of(1) if s.level3]
    assert stages and all(s.validation == [0] and s.train is None for s in stages)


@pytest.mark.parametrize("labelled", [1, 2, 40])
def test_nothing_is_held_out_before_the_search_and_after_it(labelled):
    stages = stages_of(labelled, steps=1000)
    first = next(i for i, s in enumerate(stages) if s.synthetic)
    last = max(i for i, s in enumerate(stages) if s.level3)
    assert first == pytest.approx(SYNTHETIC_FROM * 1000, abs=1) and last == pytest.approx(LEVEL3_UNTIL * 1000, abs=1)
    assert all(s == Stage(balance=BALANCE) for s in stages[:first])
    assert all(s == Stage(synthetic=True) for s in stages[last + 1 :])


@pytest.mark.parametrize("method", ["supervised", "genseg"])
def test_classes_are_balanced_in_the_first_fifth_only(method):
    settings = Settings(dataset=Path("d"), out=Path("o"), method=method)
    shares = [stage_at(i / 100, 200, ["a", "b"], settings).balance for i in range(100)]
    assert shares == [BALANCE] * 20 + [0.0] * 80


def test_a_step_learns_by_the_balanced_loss_while_the_stage_says_so(data):
    ready = prepared(data, "hippocampus")
    plain, balanced = (built(ready, "supervised").joint.step(0, Stage(balance=b))["loss/real"] for b in (0.0, BALANCE))
    assert balanced > 1.2 * plain > 0, "at first structures are rarer in the prediction than in a mean over classes"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["hippocampus", "isic2017"])
def test_steps_after_a_checkpoint_are_those_without_it_bit_for_bit_however_weights_lie_in_memory(
    name, precision, data, tmp_path
):
    """In float32 a processor's 3D weights lie with their channels last, and a checkpoint's tensors never do."""
    ready, ends = prepared(data, name, precision=precision), []
    for stops in (False, True):
        state = built(ready)
        step = advance(state.joint, 4)
        if stops:
            state.save(tmp_path / "last.safetensors")
            state = built(ready)
            state.load(tmp_path / "last.safetensors")
        advance(state.joint, 3, first=step)
        ends.append({key: copied(module) for key, module in state.modules().items()})
    assert ends[0].keys() == ends[1].keys()
    for key, whole in ends[0].items():
        assert all(torch.equal(whole[n], ends[1][key][n]) for n in whole), key


def test_a_checkpoint_of_an_older_run_that_did_not_follow_single_structures_can_be_loaded(data, tmp_path):
    state = built(prepared(data, "hippocampus"), "supervised")
    state.save(tmp_path / "last.safetensors")
    tensors, metadata = load_tensors(tmp_path / "last.safetensors")
    del tensors["found"]
    save_tensors(tmp_path / "old.safetensors", tensors, metadata)
    state.load(tmp_path / "old.safetensors")
    assert state.joint.found.tolist() == [1.0, 1.0], "nothing is said of what was not followed"


def test_supervised_knows_no_stage_and_a_weight_of_0_searches_nothing():
    assert all(s in (Stage(), Stage(balance=BALANCE)) for s in stages_of(5, "supervised"))
    assert not any(s.level3 or s.validation or s.train for s in stages_of(5, synthetic_weight=0.0))


def test_the_fold_is_what_the_steps_draw_from(data):
    """The training scans of a stage are the only ones that a synthetic pair, and the step itself, are made of."""
    joint = built(prepared(data, "isic2017", 3)).joint
    drawn = []
    for sampler in (joint.sampler, joint.synthesis.meta_sampler):
        original = sampler.draw

        def recording(n, rng, among=None, original=original, sampler=sampler):
            draw = original(n, rng, among)
            drawn.append((sampler is joint.sampler, set(draw.cases)))
            return draw

        sampler.draw = recording
    advance(joint, 1)
    drawn.clear()
    for k in range(1, 9):
        joint.step(k * META_EVERY, searching(3))
    steps, metas = {c for real, cases in drawn if real for c in cases}, [c for real, c in drawn if not real]
    assert steps == {1, 2}
    assert {0} in metas, "validation draws the held-out scan"
    assert all(cases == {0} or 0 not in cases for cases in metas)


def test_a_pair_that_the_segmenter_cannot_read_gets_no_weight(data):
    joint = built(prepared(data, "isic2017")).joint
    advance(joint, 3)
    stage = Stage(synthetic=True)

    def gradient() -> dict[str, float]:
        joint.optimiser.zero_grad(set_to_none=True)
        seen = joint._add_gradient([joint._synthetic_part(joint.synthesis, 5, stage)])
        return seen | {"norm": sum(float(p.grad.norm()) for p in joint.segmenter.parameters() if p.grad is not None)}

    joint.agreement.fill_(0.0)  # no demand
    everything = gradient()
    joint.agreement.fill_(2 / GATE)  # a demand that no pair can meet
    nothing = gradient()
    assert everything["synthetic/kept"] == 1 and everything["norm"] > 0 and everything["loss/synthetic"] > 0
    assert nothing == {"loss/synthetic": 0.0, "synthetic/kept": 0.0, "norm": 0.0}


def test_only_the_unreadable_pairs_of_a_batch_are_left_out(data):
    """Some samples are read well, some not: the loss is that of the former alone, over the whole batch."""
    joint = built(prepared(data, "isic2017")).joint
    joint.plan.batch = 8
    advance(joint, 20, rate=1e-2)
    made = []

    def recorded(draw, layout, *others):
        image, shown = synthesise(draw, layout, *others)
        made.append((layout, image))
        return image, shown

    with patch.object(joint_module, "synthesise", recorded):
        joint._add_gradient([joint._synthetic_part(joint.synthesis, 5, Stage(synthetic=True))])
    ((layout, image),) = made
    label = label_of(layout.argmax(1), joint.plan.classes)
    logits = joint.segmenter(image).detach()
    scores = dice_agreement(logits, label)
    assert len(scores.unique()) > 1
    middle = float((scores.min() + scores.max()) / 2)
    kept = scores >= middle
    assert 0 < int(kept.sum()) < len(kept)
    joint.agreement.fill_(middle / GATE)
    seen = joint._add_gradient([joint._synthetic_part(joint.synthesis, 5, Stage(synthetic=True))])
    assert seen["loss/synthetic"] == pytest.approx(float((segmentation_loss(logits, label) * kept).mean()), rel=1e-4)
    assert seen["synthetic/kept"] == pytest.approx(float(kept.float().mean()))


def test_steps_depend_on_seed_and_step_alone(data):
    ready = prepared(data, "isic2017")
    ends = []
    for seed in (0, 0, 1):
        state = built(ready, seed=seed)
        trained(state, 12)
        ends.append(copied(state.joint.segmenter))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def test_averaged_weights_follow_the_network_and_are_not_it(data):
    state = built(prepared(data, "isic2017"), "supervised")
    start = copied(state.average.network)
    advance(state.joint, 8)
    network, average = copied(state.joint.segmenter), copied(state.average.network)
    assert same(start, copied(built(state.prepared, "supervised").joint.segmenter))
    for name in average:
        moved = (network[name] - start[name]).norm()
        assert float((average[name] - start[name]).norm()) > 0
        assert float((average[name] - network[name]).norm()) < float(moved) or float(moved) < 1e-6


def test_the_learning_rate_warms_up_decays_to_nothing_and_is_scaled_after_a_divergence():
    rates = [learning_rate(step / 500, step, 1.0) for step in range(501)]
    top = rates.index(max(rates))
    assert rates[0] < rates[top] / 5 and rates[-1] == 0
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert learning_rate(0.3, 100, 0.5) == pytest.approx(learning_rate(0.3, 100, 1.0) / 2)


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("patch", [[32, 32], [96, 128], [16, 40, 24], [8, 48, 48], [48, 64, 48]])
def test_the_smaller_patch_of_level3_suits_generator_discriminator_and_segmenter(data, patch, batch):
    name = "isic2017" if len(patch) == 2 else "hippocampus"
    plan = prepared(data, name, 1).plan.model_copy(update={"patch": patch, "batch": batch})
    smaller, n = meta_plan(plan)
    assert n >= 1 and n * math.prod(smaller.patch) <= max(1, batch) * math.prod(patch)
    assert all(side % 2 ** (len(plan.filters) - 1) == 0 for side in smaller.patch)
    scores = build_discriminator(plan, 6)(torch.zeros(1, plan.channels + 6, *smaller.patch))[-1]
    assert bool(torch.isfinite(scores).all()) and scores.numel() >= 1


def test_background_levels_of_a_layout_are_background_of_the_label(data):
    ready = prepared(data, "hippocampus")
    classes = ready.plan.classes
    for case in ready.labelled:
        assert isinstance(case, WorkingCase) and set(case.label.unique().tolist()) > {1, 2}
        levels = [int((case.label == k).sum()) for k in range(classes, classes + 4)]
        assert min(levels) > 0.2 * sum(levels), "quarters of the background"
        layout = case.label.long()[None]
        label = label_of(layout, classes)
        assert set(label.unique().tolist()) == {0, 1, 2}
        soft = soft_label_of(one_hot(layout, classes + 4), classes)
        assert torch.equal(soft, one_hot(label, classes))
