"""Mixed images and the teacher, on real scans: who teaches whom, what counts where, and what each part does."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from method_rig import advance, built, prepared
from tiny_run import tiny_study
from torch import Tensor, nn

from genseg import schedule
from genseg.augment import UNCHANGED
from genseg.events import EventLog
from genseg.methods.joint import Joint, Part, Stage
from genseg.methods.losses import one_hot, segmentation_loss
from genseg.methods.synthesis import label_of
from genseg.methods.versemi import (
    BOX,
    CUT,
    MIX_WEIGHT,
    Side,
    asked_of,
    fitted,
    mix_loss,
    mixed_image,
    ramp,
    taught_side,
)
from genseg.prepare import prepare
from genseg.randomness import stream
from genseg.schedule import MIX_FROM, TEACHES_FROM, stage_at
from genseg.settings import FEW, PARTS, Settings

MIXING = Stage(consistency=1.0)


def joint_of(data, name: str = "isic2017", method: str = "versemi", labelled: int = 2, **chosen: object) -> Joint:
    return built(prepared(data, name, labelled), method, **chosen).joint


def side(value: float, n: int = 2, tasks: tuple[int, ...] = (0,), weight: float = 1.0) -> Side:
    """An image of one grey value, everywhere its last structure."""
    classes = len(tasks) + 1
    target = one_hot(torch.full((n, 16, 16), classes - 1), classes)
    return Side(
        torch.full((n, 1, 16, 16), value), target, list(tasks), torch.full((n, 16, 16), weight),
        torch.full((n, 16, 16), weight),
    )  # fmt: skip


# --- mixing --------------------------------------------------------------------------------------------------------


def test_a_mixed_image_shows_a_cuboid_of_one_scan_in_the_other_or_the_other_alone():
    a, b, rng = side(1.0, 200), side(2.0, 200), torch.Generator().manual_seed(0)
    image, at_a = mixed_image(a, b, rng)
    assert torch.equal(image[:, 0] == 1.0, at_a) and torch.equal(image[:, 0] == 2.0, ~at_a)
    shares = at_a.flatten(1).float().mean(1)
    whole = shares == 0
    assert float(whole.float().mean()) == pytest.approx(1 - CUT, abs=0.12)
    low, high = BOX[0] ** 2 * 0.8, BOX[1] ** 2 * 1.2  # a side is rounded to voxels
    cut = shares[~whole]
    assert bool((((cut > low) & (cut < high)) | ((1 - cut > low) & (1 - cut < high))).all())
    assert bool((cut > 0.5).any()) and bool((cut < 0.5).any()), "either scan is the one that is cut out"
    box = at_a[int(shares.argmin() if not bool(whole.any()) else (shares + whole).argmin())]
    rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
    assert int(box.sum()) == len(rows) * len(columns), "a cuboid"


def test_where_nothing_of_the_first_side_counts_the_second_is_seen():
    a, b = side(1.0, 40), side(2.0, 40)
    a.of_any[:, :8] = 0
    image, at_a = mixed_image(a, b, torch.Generator().manual_seed(0))
    assert bool(at_a[:, 8:].any()) and not at_a[:, :8].any()
    assert bool((image[:, :, :8] == 2.0).all())


def test_a_scan_of_another_study_is_cut_or_padded_about_its_middle():
    x = torch.arange(1, 37, dtype=torch.float32).view(1, 6, 6)
    assert torch.equal(fitted(x, [4, 8])[0], torch.nn.functional.pad(x[0, 1:5], (1, 1)))
    assert fitted(torch.ones(2, 3, 6, 6, 6), [8, 4, 5]).shape == (2, 3, 8, 4, 5)


# --- losses --------------------------------------------------------------------------------------------------------


def test_a_voxels_weight_is_a_factor_and_0_is_as_if_it_lay_outside():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 3, 8, 8), one_hot(torch.randint(3, (3, 8, 8)), 3)
    plain, everywhere = segmentation_loss(logits, target), torch.ones(3, 8, 8)
    assert torch.allclose(segmentation_loss(logits, target, everywhere), plain, atol=1e-5)
    assert torch.allclose(segmentation_loss(logits, target, 0.25 * everywhere), 0.25 * plain, atol=1e-4)
    left = everywhere.clone()
    left[:, :, 4:] = 0
    assert torch.allclose(
        segmentation_loss(logits, target, left), segmentation_loss(logits[..., :4], target[..., :4]), atol=1e-5
    )
    assert not segmentation_loss(logits, target, 0 * everywhere).any()


class Asked(nn.Module):
    """Answers prompts with given logits, which take gradients."""

    any_foreground = 3

    def __init__(self, n: int = 2):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(1)))


def loss_of(network: Asked, at_a: Tensor, a: Side, b: Side, synthetic_task: bool) -> Tensor:
    asked = asked_of(a, b, network)
    return mix_loss(network.logits[:, asked], asked, at_a, a, b, synthetic_task)


def gradient_of(a: Side, b: Side, at_a: Tensor, synthetic_task: bool = True) -> Tensor:
    """[prompt, y, x]: where the loss of a mix reaches each prompt's logits."""
    network = Asked()
    loss_of(network, at_a, a, b, synthetic_task).sum().backward()
    return network.logits.grad.abs().sum(0) > 0


def test_studies_are_asked_for_their_own_structures_where_their_own_scan_is_seen():
    at_a = torch.zeros(2, 16, 16, dtype=torch.bool)
    at_a[:, :6] = True
    reached = gradient_of(side(1.0, tasks=(0,)), side(2.0, tasks=(1, 2)), at_a)
    assert torch.equal(reached[0], at_a[0]) and torch.equal(reached[1], ~at_a[0]) and torch.equal(reached[2], ~at_a[0])
    assert bool(reached[3].all()), "any foreground is asked for everywhere"


def test_of_one_study_everything_counts_but_what_weighs_nothing():
    at_a = torch.zeros(2, 16, 16, dtype=torch.bool)
    at_a[:, :6] = True
    b = side(2.0)
    b.of_tasks[:, 10:], b.of_any[:, 10:] = 0, 0
    reached = gradient_of(side(1.0), b, at_a)
    assert bool(reached[0, :10].all()) and not reached[0, 10:].any()
    assert bool(reached[3, :10].all()) and not reached[3, 10:].any()
    assert not gradient_of(side(1.0), b, at_a, synthetic_task=False)[3].any()


def test_any_foreground_is_taught_the_strongest_structure():
    a = side(1.0, tasks=(0, 1))
    a.target = torch.tensor([0.2, 0.5, 0.3]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    network, everywhere = Asked(), torch.ones(2, 16, 16, dtype=torch.bool)
    found = loss_of(network, everywhere, a, a, True) - loss_of(network, everywhere, a, a, False)
    logits = torch.stack([torch.zeros(2, 16, 16), network.logits[:, 3]], 1)
    half = torch.full((2, 2, 16, 16), 0.5)
    assert torch.allclose(found, MIX_WEIGHT * segmentation_loss(logits, half), atol=1e-4)


# --- the teacher ---------------------------------------------------------------------------------------------------


class Threshold(nn.Module):
    """A teacher that calls bright what is above the mean, and is unsure about it; remembers what it saw."""

    def __init__(self, sharpness: float):
        super().__init__()
        self.sharpness, self.seen = nn.Parameter(torch.tensor(sharpness)), []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        bright = self.sharpness * image.mean(1)
        return torch.stack([torch.zeros_like(bright), bright], 1)


def test_the_teacher_sees_the_scan_as_it_is_and_gets_no_gradient(data):
    sampler = joint_of(data).mixing.unlabelled
    teacher = Threshold(5.0)
    rng = stream(0, "t")
    found = taught_side(sampler, teacher, 3, rng, 1.0, frozenset())
    draw = sampler.draw(3, stream(0, "t"))
    (seen,) = teacher.seen
    assert torch.equal(seen, sampler.load_image(replace(draw, spatial=draw.spatial.unmoved()), UNCHANGED))
    assert not torch.equal(found.image, seen), "the segmenter sees it changed"
    assert not found.target.requires_grad and teacher.sharpness.grad is None


def test_the_teachers_answer_is_warped_with_the_scan(data):
    sampler = joint_of(data, "hippocampus").mixing.unlabelled
    with patch("genseg.sampling.apply_intensity", lambda image, draw, strength: image):  # the warp alone
        found = taught_side(sampler, Threshold(50.0), 4, stream(0, "t"), 1.0, frozenset())
    assert bool(found.of_any.any())
    again = (found.image.mean(1) > 0) == (found.target[:, 1] > 0)
    inside = found.image[:, 0] != 0  # zero beyond the patch
    assert float(again[inside & (found.of_any > 0)].float().mean()) > 0.9


def test_what_the_teacher_is_not_sure_of_teaches_nothing(data):
    sampler = joint_of(data).mixing.unlabelled
    sure = [float((taught_side(sampler, Threshold(s), 3, stream(0, "t"), 0.5, frozenset()).of_tasks > 0).float().mean())
            for s in (0.0, 1.0, 50.0)]  # fmt: skip
    assert sure[0] == 0 and 0 < sure[1] < sure[2]
    found = taught_side(sampler, Threshold(50.0), 3, stream(0, "t"), 0.5, frozenset())
    assert set(found.of_tasks.unique().tolist()) <= {0.0, 0.5}


def test_the_teacher_is_the_model_that_is_used_in_the_end(data):
    state = built(prepared(data, "isic2017"), "versemi")
    assert state.joint.mixing.teacher is state.turn.model
    mine, average = dict(state.turn.model.named_parameters()), dict(state.average.network.named_parameters())
    assert all(mine[name] is average[name] for name in mine)


# --- the step ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["versemi", "genseg+versemi"])
@pytest.mark.parametrize("name", ["isic2017", "hippocampus", "acdc"])
def test_a_step_learns_from_mixed_images_and_depends_on_seed_and_step_alone(data, name, method):
    ends = []
    for seed in (0, 0, 1):
        joint = joint_of(data, name, method, seed=seed)
        advance(joint, 2)
        stage = replace(MIXING, synthetic=method != "versemi")
        seen = [joint.step(step, stage) for step in range(3, 6)]
        assert all("loss/mixed" in one and "mix/sure" in one for one in seen)
        ends.append(torch.cat([p.detach().flatten() for p in joint.segmenter.parameters()]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_scans_that_are_held_out_are_not_in_the_mixes(data):
    joint = joint_of(data, labelled=3)
    drawn: list[int] = []
    draw = joint.sampler.draw

    def spy(n, rng, among=None):
        found = draw(n, rng, among)
        drawn.extend(found.cases)
        return found

    with patch.object(joint.sampler, "draw", spy):
        for step in range(8):
            joint.step(step, replace(MIXING, train=[0, 2], validation=[1]))
    assert set(drawn) == {0, 2}


def test_without_scans_to_learn_from_two_labelled_pairs_are_mixed(data):
    joint = built(prepared(data, "isic2017", 2, 0), "versemi").joint
    assert joint.mixing.unlabelled is None
    seen = joint.step(1, MIXING)
    assert seen["loss/mixed"] > 0 and "mix/sure" not in seen


@pytest.mark.parametrize(("method", "stage"), [("genseg+versemi", MIXING), ("genseg", Stage(synthetic=True))])
def test_one_pass_of_several_parts_adds_the_gradients_of_each(method, stage, data):
    joint = built(prepared(data, "isic2017", 2, 2), method).joint
    joint.agreement.fill_(0.0)
    real = joint._real_part(*joint._real_pairs(2, 1, stage), stage)
    if method == "genseg":
        parts = [real, joint._synthetic_part(joint.synthesis, 1, stage)]
    else:
        parts = [real, joint._mixed_part(joint.mixing, 1, stage, False)]

    def gradient(of: list[Part]) -> Tensor:
        joint.optimiser.zero_grad(set_to_none=True)
        joint._add_gradient(of)
        named = joint.segmenter.named_parameters()
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for _, p in named])

    together, alone = gradient(parts), [gradient([part]) for part in parts]
    assert torch.allclose(together, sum(alone), rtol=1e-3, atol=1e-3 * float(together.abs().max()))
    assert all(float(one.norm()) > 0.05 * float(together.norm()) for one in alone)
    assert not gradient([]).any()


@pytest.mark.parametrize(("batch", "passes"), [(4, [4]), (2, [2]), (1, [1, 1])])
def test_a_step_passes_its_batch_at_once_and_never_more_than_that(batch, passes, data):
    joint = joint_of(data)
    joint.plan.batch = batch
    seen = []
    joint.segmenter.backbone.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    joint.step(1, MIXING)
    assert seen == passes


def sides_of(joint: Joint, stage: Stage = MIXING) -> tuple[Side, Side, bool]:
    """What a step mixes, and whether it asks for any foreground."""
    with patch("genseg.methods.joint.mix_loss", wraps=mix_loss) as spy:
        joint.step(1, stage)
    *_, a, b, synthetic_task = spy.call_args.args
    return a, b, synthetic_task


def test_each_part_that_is_left_out_takes_its_own_term_away(data):
    whole = sides_of(joint_of(data))
    assert bool(whole[0].of_tasks.all()) and bool(whole[0].of_any.all()) and whole[2]
    a, b, asked = sides_of(joint_of(data, without=["auxiliary"]))
    assert not a.of_tasks.any() and bool(a.of_any.all()) and asked
    assert bool(sides_of(joint_of(data, without=["synthetic-task"]))[2]) is False
    a, b, asked = sides_of(joint_of(data, without=["consistency"]))
    assert not b.of_tasks.any() and not b.of_any.any() and bool(a.of_tasks.all())
    joint = joint_of(data, without=["teacher"])
    assert joint._teacher(joint.mixing) is joint.segmenter
    joint = joint_of(data, without=["prompts"])
    assert not hasattr(joint.segmenter.head, "of_image") and joint.step(1, MIXING)["loss/mixed"] > 0


def test_a_synthetic_pair_that_the_teacher_cannot_read_is_not_shown(data):
    joint = joint_of(data, method="genseg+versemi")
    joint.agreement.fill_(1e6)
    with patch("genseg.methods.joint.Joint._with_synthetic", lambda *given: True):
        a, b, _ = sides_of(joint, replace(MIXING, synthetic=True))
        assert not a.of_any.any()
        _, at_a = mixed_image(a, b, torch.Generator().manual_seed(0))
        assert not at_a.any()
        joint.agreement.zero_()
        a, _, _ = sides_of(joint, replace(MIXING, synthetic=True))
    assert a.of_any.unique().tolist() == pytest.approx([float(joint.synthesis.meta.weight().detach())])


# --- the schedule --------------------------------------------------------------------------------------------------


def test_the_ramp_rises_from_almost_nothing_to_1():
    values = [ramp(MIX_FROM + share, MIX_FROM) for share in torch.linspace(0, 0.5, 20).tolist()]
    assert values[0] < 0.01 and values[-1] == 1 and values == sorted(values)


@pytest.mark.parametrize("method", ["versemi", "genseg+versemi", "genseg", "supervised"])
def test_only_the_methods_with_a_teacher_mix_and_only_when_it_knows_something(method):
    settings = Settings(dataset=Path("d"), out=Path("o"), method=method, iterations=1000)
    stages = [stage_at(step / 1000, step, ["a", "b", "c"], settings) for step in range(1000)]
    mixes = [step for step, stage in enumerate(stages) if stage.consistency is not None]
    assert mixes == (list(range(round(MIX_FROM * 1000), 1000)) if settings.mixes else [])
    if method == "genseg+versemi":
        assert any(stage.level3 and stage.consistency for stage in stages)
    few = [stage_at(step / 100, step, ["a", "b"], settings) for step in range(100)]
    assert schedule.TEACHES_FROM == TEACHES_FROM >= 100 and all(stage.consistency is None for stage in few)


@pytest.mark.parametrize("steps", [150, 300, 600, 2000])
def test_however_short_the_training_the_teachers_weight_begins_with_almost_nothing(steps):
    settings = Settings(dataset=Path("d"), out=Path("o"), method="versemi", iterations=steps)
    weights = [stage_at(step / steps, step, ["a", "b"], settings).consistency for step in range(steps)]
    taught = [weight for weight in weights if weight is not None]
    assert weights.index(taught[0]) == max(TEACHES_FROM, round(MIX_FROM * steps))
    assert taught[0] < 0.01 and taught == sorted(taught) and taught[-1] > 0.9


def test_the_method_follows_from_the_study_where_it_is_left_open():
    def chosen(unlabelled: bool, curvilinear: bool = False, labelled: int = FEW, **given: object) -> str:
        settings = Settings(dataset=Path("d"), out=Path("o"), **given)
        settings.resolve(unlabelled, curvilinear, labelled)
        return settings.method

    assert chosen(True) == "genseg+versemi" and chosen(False) == "genseg"
    assert chosen(True, learn_unlabelled=False) == "genseg" and chosen(True, method="supervised") == "supervised"
    assert chosen(True, curvilinear=True) == chosen(False, curvilinear=True) == "supervised"
    for wish in ({"without": ["teacher"]}, {"generator": "vae"}, {"synthetic_weight": 0.5}):
        assert chosen(True, curvilinear=True, **wish) == "genseg+versemi", "what is asked for is made"
        has_it = "versemi" if "without" in wish else "genseg+versemi"
        assert chosen(True, labelled=FEW + 1, **wish) == has_it, "what is asked for is made, and no generator besides"
    assert chosen(True, labelled=FEW + 1) == "versemi" and chosen(False, labelled=FEW + 1) == "genseg"
    assert chosen(True, labelled=FEW + 1, learn_unlabelled=False) == "genseg"
    assert chosen(True, True, FEW + 1) == "supervised" and chosen(True, labelled=99, method="genseg") == "genseg"
    assert chosen(True, curvilinear=True, method="genseg") == "genseg"
    assert set(PARTS) == {"prompts", "auxiliary", "synthetic-task", "consistency", "teacher"}


@pytest.mark.parametrize(
    ("labelled", "method"), [([6], "versemi"), ([5], "genseg+versemi"), ([6, 2], "genseg+versemi")]
)
def test_the_generator_is_left_out_with_more_than_five_labelled_scans_and_the_plan_says_so(
    labelled, method, data, tmp_path
):
    """Of several studies the one with the fewest counts."""
    first, *more = [tiny_study(data / "hippocampus", tmp_path / f"{n} scans", n, 1, 2) for n in labelled]
    settings = Settings(dataset=first, more=more, out=tmp_path / "run", method="auto", device="cpu")
    ready = prepare(settings, EventLog())
    assert settings.method == method
    told = [any("More than 5 scans" in note for note in one.plan.notes) for one in ready]
    assert told == [method == "versemi"] * len(labelled)


def test_labels_of_a_mix_are_labels_and_not_layouts(data):
    joint = joint_of(data)
    a, b, _ = sides_of(joint)
    assert a.target.shape[1] == b.target.shape[1] == joint.plan.classes
    layout = joint.sampler.cases[0].label.long()
    assert int(layout.max()) >= joint.plan.classes > int(label_of(layout, joint.plan.classes).max())
