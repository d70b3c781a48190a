"""Shapes of other scans, on real ones: a map brings the labels nearer, exactly where it says, and never for photos."""

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from method_rig import built, planned, prepared
from torch import Tensor

from genseg.augment import UNCHANGED
from genseg.cases import draw
from genseg.events import EventLog
from genseg.imageio import read_label
from genseg.methods.joint import Joint, Stage
from genseg.methods.shapes import MAPS, ShapePool, register
from genseg.methods.synthesis import SyntheticDraw, implanted, label_of, scattered
from genseg.prepare import load
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.sampling import Sampler
from genseg.schedule import Clock
from genseg.settings import Settings
from genseg.state import RunState
from genseg.study import read_study
from genseg.train import pretrain_step


def scans(data: Path, name: str, count: int) -> list[WorkingCase]:
    """Labelled scans on the grid of a real run, layouts turned into labels."""
    plan = planned(data, name, 2)
    settings = Settings(dataset=data / name, out=Path("run"), method="genseg")
    study = draw(read_study(data / name), count, None, 0)
    (ready,) = load([study], [plan], settings, prepared(data, name, 1, 0).device, [EventLog()])
    return [WorkingCase(c.id, c.image, label_of(c.label.long(), plan.classes)) for c in ready.labelled]


def moved(label: Tensor, map_: Tensor) -> Tensor:
    """`label` [a, y, x] seen through displacements [3, g, g, g] in voxels."""
    where = torch.stack(torch.meshgrid(*[torch.arange(s, dtype=torch.float32) for s in label.shape], indexing="ij"))
    where = where + F.interpolate(map_[None], label.shape, mode="trilinear", align_corners=True)[0]
    index = [w.round().long().clamp(0, s - 1) for w, s in zip(where, label.shape, strict=True)]
    return label[tuple(index)]


def overlap(a: Tensor, b: Tensor) -> float:
    """Mean Dice of two label maps laid centre on centre."""
    side = [max(x, y) for x, y in zip(a.shape, b.shape, strict=True)]
    a, b = (_centred(x, side) for x in (a, b))
    scores = [2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum()) for k in b.unique() if k > 0]
    return float(torch.stack(scores).mean())


def _centred(label: Tensor, shape: list[int]) -> Tensor:
    out = torch.zeros(shape, dtype=label.dtype)
    window = tuple(slice((s - n) // 2, (s - n) // 2 + n) for s, n in zip(shape, label.shape, strict=True))
    out[window] = label
    return out


def test_a_registered_label_overlaps_the_other_scans_label_far_better_than_before(data):
    first, *others = scans(data, "hippocampus", 5)
    before = [overlap(first.label, other.label) for other in others]
    after = [overlap(moved(first.label, register(first.image, other.image, 3)), other.label) for other in others]
    assert sum(after) / 4 > sum(before) / 4 + 0.15, (before, after)
    assert sum(after) / 4 > 0.6


def test_a_scan_registered_to_itself_stays_and_to_its_shifted_self_moves_by_the_shift(data):
    (scan,) = scans(data, "hippocampus", 1)
    assert float(register(scan.image, scan.image, 3).abs().mean()) < 0.2
    shifted = torch.roll(scan.image, 3, dims=2)  # what lay at y lies at y + 3
    inner = register(scan.image, shifted, 3)[:, 2:6, 2:6, 2:6]
    assert inner.flatten(1).mean(1).tolist() == pytest.approx([0.0, -3.0, 0.0], abs=0.7)


def test_slices_stay_slices_and_move_within_their_plane(data):
    (scan,) = scans(data, "acdc", 1)
    shifted = torch.roll(scan.image, 4, dims=3)  # what lay at x lies at x + 4
    found = register(scan.image, shifted, 2)
    assert list(found.shape) == [2, 8, 8, 8]
    inner = found[:, 3:6, 2:6, 2:6].flatten(1).mean(1)
    assert inner.tolist() == pytest.approx([0.0, -4.0], abs=0.7)


@pytest.mark.parametrize("shape", [(3, 20, 24), (1, 30, 30), (20, 4, 16)])
@pytest.mark.parametrize("dims", [2, 3])
def test_short_axes_are_registered_too(shape, dims):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    found = register(image, image.flip(3), dims)
    assert found.shape[0] == dims and bool(torch.isfinite(found).all())


def test_a_map_that_lost_its_way_is_not_used_and_said(data):
    one, other = (WorkingCase(c.id, c.image, None) for c in scans(data, "acdc", 5)[::4])
    pool = ShapePool([one], [other], ["a"], planned(data, "acdc", 2))
    pool.find()
    assert pool.failed == 1 and not pool.draw([0], [0.5], torch.Generator().manual_seed(0)).any()


def test_a_flat_image_bends_nothing():
    assert float(register(torch.zeros(1, 20, 20, 20), torch.ones(1, 20, 20, 20), 3).abs().max()) < 1e-3


@pytest.fixture(scope="module")
def state(request) -> RunState:
    return built(prepared(request.getfixturevalue("data"), "hippocampus", 2, 3))


def test_maps_lead_from_every_labelled_scan_to_others_never_to_itself(state):
    shapes = state.joint.synthesis.sources.shapes
    names = [tuple(shapes.cases[index].id for index in pair) for pair in shapes.pairs]
    labelled = [c.id for c in state.prepared.labelled]
    assert len(set(names)) == len(names) == min(MAPS, 2 * 4) and all(a != b for a, b in names)
    assert {a for a, _ in names} == set(labelled)
    assert {b for _, b in names} >= {c.id for c in state.prepared.unlabelled}


def test_only_synthetic_pairs_have_the_shape_of_others_and_half_way_at_half_strength(state):
    joint, s = state.joint, state.joint.synthesis
    real = joint.sampler.draw(2, stream(0, "real", 1))
    assert not real.spatial.bend.any(), "a draw bends nothing by itself"
    made = SyntheticDraw.make(2, joint.sampler, s.sources, s.generator, stream(0, "synthetic", 1))
    assert made.batch.spatial.bend.any()
    none, half, whole = (made.layout(joint.sampler, {**UNCHANGED, "shape": v}) for v in (0.0, 0.5, 1.0))
    change = [float((layout != none).float().mean()) for layout in (half, whole)]
    assert 0.2 * change[1] < change[0] < change[1]


def test_a_mixed_map_lies_between_those_of_its_own_scan_and_held_out_shapes_are_not_taken(data):
    ready = prepared(data, "hippocampus", 2, 1)
    pool = ShapePool(ready.labelled, ready.unlabelled, ["a", "b"], ready.plan)
    assert pool.pairs == [(0, 1), (1, 2), (0, 2), (1, 0)]
    pool.maps = [torch.full((3, 8, 8, 8), float(v)) for v in (1, -1, 5, -7)]

    def means(among: list[int] | None) -> torch.Tensor:
        drawn = pool.draw([0] * 60 + [1] * 60, [0.0] * 120, torch.Generator().manual_seed(0), among)
        return drawn.flatten(1).mean(1)

    everything = means(None)
    assert 1 <= float(everything[:60].min()) < 2 and 4 < float(everything[:60].max()) <= 5
    assert -7 <= float(everything[60:].min()) < -6 and -2 < float(everything[60:].max()) <= -1
    without_first = means([1])[60:]
    assert set(without_first.tolist()) == {-1.0}, "the second scan is not bent to the held-out first"


def test_scans_of_one_patient_or_of_another_part_of_the_body_are_not_registered(data):
    ready = prepared(data, "hippocampus", 3, 0)
    assert ShapePool(ready.labelled, [], ["a", "a", "b"], ready.plan).pairs == [(1, 2), (2, 0), (0, 2), (2, 1)]
    tall = WorkingCase("tall", ready.labelled[0].image.repeat(1, 3, 1, 1), None)
    assert ShapePool(ready.labelled[:1], [tall], ["a"], ready.plan).pairs == []


def test_a_slice_takes_its_own_depth_of_the_map(data):
    ready = prepared(data, "acdc", 2, 0)
    pool = ShapePool(ready.labelled, [], ["a", "b"], ready.plan)
    pool.maps = [torch.arange(8.0).view(1, 8, 1, 1).expand(2, 8, 8, 8)] * len(pool.pairs)
    drawn = pool.draw([0, 0, 1], [0.0, 0.5, 1.0], torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 2, 8, 8) and drawn.flatten(1).mean(1).tolist() == pytest.approx([0.0, 3.5, 7.0])
    sampler = Sampler(ready.labelled, ready.plan)
    depths = sampler.depths(sampler.draw(30, torch.Generator().manual_seed(0)))
    assert 0 < min(depths) < 0.3 and 0.7 < max(depths) < 1


def test_maps_come_back_with_the_checkpoint(state, tmp_path):
    state.save(tmp_path / "last.safetensors")
    twin = built(state.prepared)
    twin.joint.synthesis.sources.shapes.maps.clear()
    twin.load(tmp_path / "last.safetensors")
    again, first = (s.joint.synthesis.sources.shapes.maps for s in (twin, state))
    twin.load(tmp_path / "last.safetensors")
    assert again is twin.joint.synthesis.sources.shapes.maps, "going back loses no map that was found"
    assert len(again) == len(first) == 2 and all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_photographs_get_a_second_scans_structures_instead(data):
    state = built(prepared(data, "kvasir", 3, 2))
    joint, s = state.joint, state.joint.synthesis
    assert s.sources.implants and not s.sources.shapes.pairs and "shape" not in s.meta.strength()
    draw_ = SyntheticDraw.make(6, joint.sampler, s.sources, s.generator, stream(0, "synthetic", 3))
    first, second = (joint.sampler.load_label(d, UNCHANGED) for d in (draw_.batch, draw_.implant))
    structures = [(x > 0) & (x < joint.plan.classes) for x in (first, second)]
    both = draw_.layout(joint.sampler, UNCHANGED)
    assert torch.equal((both > 0) & (both < joint.plan.classes), structures[0] | structures[1])
    assert torch.equal(both[~structures[1]], first[~structures[1]]), "all else stays"
    shares = draw_.soft_layout(joint.sampler, UNCHANGED, s.layouts)
    assert torch.allclose(shares.sum(1), torch.ones_like(shares[:, 0]), atol=1e-5) and float(shares.min()) > -1e-5
    assert float((shares.argmax(1) == both).float().mean()) > 0.95


def test_half_of_the_real_pairs_are_bent_and_none_where_the_synthetic_weight_is_0(data):
    ready = prepared(data, "hippocampus", 2, 2)
    for weight, low, high in ((None, 0.3, 0.7), (0.0, 0.0, 0.0)):
        joint = built(ready, synthetic_weight=weight).joint
        drawn: list[Tensor] = []
        with patch.object(joint.sampler, "load", side_effect=lambda draw: (draw.spatial.bend, None)):
            for step in range(60):
                drawn.append(joint._real_pairs(2, step, Stage())[0])
        share = float(torch.cat([bend.flatten(1).any(1) for bend in drawn]).float().mean())
        assert low <= share <= high


def test_half_of_the_real_photographs_hold_structures_of_a_second_one_and_none_of_a_held_out_one(data):
    ready = prepared(data, "kvasir", 3, 2)
    joint, plain = built(ready).joint, built(ready, synthetic_weight=0.0).joint
    asked = []
    draw = joint.sampler.draw
    with patch.object(joint.sampler, "draw", lambda n, rng, among: asked.append(among) or draw(n, rng, among)):
        image, layout = joint._real_pairs(4, 7, Stage(train=[0, 2]))
    before, layout_before = plain._real_pairs(4, 7, Stage(train=[0, 2]))
    assert asked == [[0, 2], [0, 2]]
    assert torch.equal(image[:2], before[:2]) and torch.equal(layout[:2], layout_before[:2])
    changed = layout[2:] != layout_before[2:]
    assert bool(changed.any()) and bool((layout[2:][changed] < joint.plan.classes).all())
    assert not torch.equal(image[2:], before[2:])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("name", "lie_anywhere"), [("kvasir", True), ("dsb2018", True), ("isic2017", False)])
def test_polyps_and_nuclei_lie_anywhere_and_lesions_in_the_middle(data, name, lie_anywhere, seed):
    study = draw(read_study(data / name), 5, 0, seed)
    layouts = [torch.from_numpy(read_label(case.label, study.labels)[0].astype("int64")) for case in study.training]
    layouts = [layout.reshape(1, *layout.shape[-2:]) for layout in layouts]
    assert scattered(layouts, 2) == lie_anywhere
    assert not scattered(layouts[:1], 2), "one photograph cannot tell"


def test_an_implanted_structure_has_its_own_texture_and_leaves_the_photograph_around_it_as_it_is():
    image, other = torch.full((1, 3, 40, 40), 0.5), torch.randn(1, 3, 40, 40, generator=stream(0, "other"))
    layout, structure = torch.full((1, 40, 40), 4), torch.zeros(1, 40, 40, dtype=torch.int64)
    structure[:, 10:30, 10:30] = 1
    seen, labels = implanted((image, layout), (other, structure), 2)
    matched = other - other.mean((2, 3), keepdim=True) + 0.5
    assert torch.allclose(seen[..., 15:25, 15:25], matched[..., 15:25, 15:25], atol=1e-5)
    assert torch.equal(seen[..., :6, :], image[..., :6, :])
    assert bool((labels[structure == 1] == 1).all()) and bool((labels[structure == 0] == 4).all())


def test_synthetic_pairs_take_the_place_of_half_of_the_real_ones(data):
    joint = built(prepared(data, "hippocampus", 2)).joint
    joint.agreement.fill_(0.0)
    passed: list[int] = []
    hook = joint.segmenter.register_forward_pre_hook(lambda _, given: passed.append(len(given[0])))
    with patch.object(Joint, "_add_gradient", autospec=True, side_effect=Joint._add_gradient) as spy:
        for step in range(1, 25):
            joint.step(step, Stage(synthetic=True))
    hook.remove()
    sizes = {tuple(len(part.image) for part in call.args[1]) for call in spy.call_args_list}
    assert sizes == {(2,), (1, 1)}, "two real ones, or one of each; never three"
    assert passed == [2] * 24, "at once"


def test_registrations_that_failed_are_told_when_the_search_ends_also_before_the_last_pair(data):
    state = built(prepared(data, "hippocampus", 2))
    shapes = state.joint.synthesis.sources.shapes
    told = []
    state.prepared.log.listeners.append(told.append)
    shapes.maps[0] = torch.zeros_like(shapes.maps[0])
    clock = Clock(state.settings.model_copy(update={"iterations": 24}))
    assert clock.shapes_wanted(2, len(shapes.pairs)) == len(shapes.maps) == 2 < len(shapes.pairs)
    for _ in range(2):
        pretrain_step(state, clock)
    assert [event.code for event in told] == ["not_registered"]
    assert told[0].message.startswith("1 of 2 ")
