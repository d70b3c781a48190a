"""Synthetic pairs of real scans: copies of a patient are found out, unreadable pairs are not used, files are right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from method_rig import advance, built, next_level3, prepared, searching
from torch import Tensor, nn

from genseg.augment import REFERENCE
from genseg.events import EventLog, Synthetic
from genseg.imageio import read_label, read_scan
from genseg.labels import LabelTable
from genseg.methods import synthesis
from genseg.methods.joint import GATE, Stage
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.state import RunState
from genseg.synthesize import _in_colours, _write_architecture, _write_pair, architecture, make_pairs, write_pairs

SEED = 5


@pytest.fixture(scope="module", params=["isic2017", "hippocampus", "acdc"])
def state(request) -> RunState:
    state = built(prepared(request.getfixturevalue("data"), request.param, 3))
    advance(state.joint, 6)
    return state


class Memoriser(nn.Module):
    """Returns the training image itself, under the very warp of the mask, as if learned by heart."""

    def __init__(self, state: RunState):
        super().__init__()
        self.state, self.real, self.number = state, state.joint.synthesis.generator, 0
        self.levels = self.real.levels

    def draw_noise(self, *given) -> list[Tensor]:
        return self.real.draw_noise(*given)

    def forward(self, layout: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        joint, s = self.state.joint, self.state.joint.synthesis
        rng = stream(SEED, "gallery", self.number)
        self.number += 1
        draw = synthesis.SyntheticDraw.make(1, joint.sampler, s.sources, self.real, rng)
        return joint.sampler.load_image(draw.batch, s.meta.strength()), layout


@torch.no_grad()
def test_a_generator_that_returns_the_warped_training_image_is_found_out(state):
    s = state.joint.synthesis
    honest, s.generator = s.generator, Memoriser(state)
    try:
        copies = [entry for _, _, entry in make_pairs(state, 8, SEED, 10)]
    finally:
        s.generator = honest
    patients = [[entry[key].split("_frame")[0] for entry in copies] for key in ("nearest", "source")]
    assert patients[0] == patients[1]  # two frames of one heart are nearly the same
    assert sum(entry["near_copy"] for entry in copies) >= 7, [round(e["similarity"], 3) for e in copies]
    assert all(-1 <= entry["similarity"] <= 1 for entry in copies)


def test_an_untrained_generator_copies_nobody(state):
    fresh = built(state.prepared)
    assert not any(entry["near_copy"] for _, _, entry in make_pairs(fresh, 6, SEED, 0))


def test_pairs_are_marked_by_the_agreement_that_training_asks_for(state):
    joint = state.joint
    before = joint.agreement.clone()
    pairs = [entry for _, _, entry in make_pairs(state, 6, SEED, 3)]
    scores = sorted(entry["agreement"] for entry in pairs)
    middle = (scores[0] + scores[-1]) / 2
    try:
        joint.agreement.fill_(middle / GATE)
        marked = [entry for _, _, entry in make_pairs(state, 6, SEED, 3)]
        assert [e["used"] for e in marked] == [e["agreement"] >= middle for e in marked]
        assert all(0 <= e["agreement"] <= 1 for e in marked)
        joint.agreement.fill_(2 / GATE)  # nothing is good enough
        assert not any(e["used"] for _, _, e in make_pairs(state, 3, SEED, 3))
        joint.optimiser.zero_grad(set_to_none=True)
        seen = joint._add_gradient([joint._synthetic_part(joint.synthesis, 5, Stage(synthetic=True))])
        assert seen == {"loss/synthetic": 0.0, "synthetic/kept": 0.0}
        assert not any(bool(p.grad.any()) for p in joint.segmenter.parameters() if p.grad is not None)
    finally:
        joint.agreement.copy_(before)


def test_pairs_are_made_again_from_their_seed(state):
    first, again, other = (make_pairs(state, 2, seed, 3) for seed in (1, 1, 2))
    for (image, label, entry), (image2, label2, entry2) in zip(first, again, strict=True):
        assert torch.equal(image, image2) and torch.equal(label, label2) and entry == entry2
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0], first[1][0])


def test_a_pair_is_an_image_of_the_patch_and_the_warped_mask_of_its_source(state):
    plan = state.joint.plan
    for image, label, entry in make_pairs(state, 4, SEED, 3):
        assert image.shape == (plan.channels, *plan.patch) and list(label.shape) == plan.patch
        assert int(label.max()) < plan.classes
        assert entry["source"] in {case.id for case in state.joint.sampler.cases}
        json.dumps(entry)


def test_files_and_index_of_written_pairs_agree(state, tmp_path):
    seen = []
    log = EventLog([seen.append])
    out = tmp_path / "synthetic größe"
    out.mkdir()
    write_pairs(state, 2, out, log, seed=SEED, first=0)
    entries = write_pairs(state, 2, out, log, seed=SEED + 1, first=2)
    index = json.loads((out / "index.json").read_text(encoding="utf-8"))["pairs"]
    assert index == entries and [e["image"][:4] for e in index] == ["0000", "0001", "0002", "0003"]
    assert [(e.path, e.mask) for e in seen if isinstance(e, Synthetic)] == [(e["image"], e["mask"]) for e in index]
    table, plan = state.prepared.study.labels, state.joint.plan
    made = make_pairs(state, 2, SEED, state.counters.step)
    for entry, (image, label, _) in zip(index[:2], made, strict=True):
        scan = read_scan([out / entry["image"]])
        mask = read_label(out / entry["mask"], table)[0]
        assert np.array_equal(mask, label.numpy())
        assert scan.array.shape == tuple(image.shape)
        if plan.physical:
            assert np.allclose(scan.array, image.numpy(), atol=1e-5)
            assert scan.spacing == pytest.approx(plan.spacing)
        else:
            known = [*state.prepared.labelled, *state.prepared.unlabelled]
            shown = _in_colours(image, next(case for case in known if case.id == entry["style"]))
            assert np.abs(scan.array - shown.numpy()).max() < 0.51


@pytest.mark.parametrize(
    ("channels", "shape", "suffix"),
    [(1, (16, 24), ".png"), (3, (16, 24), ".png"), (2, (16, 24), ".nrrd"), (5, (16, 24), ".nrrd"),
     (1, (8, 16, 24), ".nrrd"), (3, (8, 16, 24), ".nrrd")],
)  # fmt: skip
def test_pairs_without_a_size_in_mm_are_whole_on_the_disk(channels, shape, suffix, tmp_path):
    """Only grey and colour photographs fit into a PNG; stacks and other numbers of channels do not."""
    image = torch.rand(channels, *shape, generator=torch.Generator().manual_seed(0)) * 255
    label = (image[0] > 128).long()
    table = LabelTable.from_names({1: "blob"})
    entry = _write_pair(image, label, [1.0] * len(shape), False, table, tmp_path, "0000")
    assert entry == {"image": f"0000_image{suffix}", "mask": f"0000_mask{suffix}"}
    assert np.abs(read_scan([tmp_path / entry["image"]]).array - image.numpy()).max() < 0.51
    assert np.array_equal(read_label(tmp_path / entry["mask"], table)[0], label.numpy())


def test_kernels_are_called_learned_only_once_level3_has_moved_them(data, tmp_path):
    seen = []
    ready = replace(prepared(data, "isic2017", 2), log=EventLog([seen.append]))
    state = built(ready, generator="pix2pix")
    _write_architecture(state, tmp_path)
    assert architecture(tmp_path) == "" and [event.code for event in seen] == ["level3_not_run"]
    state.joint.step(next_level3(advance(state.joint, 2)), searching(2))
    _write_architecture(state, tmp_path)
    assert "Learned kernels" in architecture(tmp_path) and len(seen) == 1
    other = tmp_path / "separate"
    other.mkdir()
    separate = built(ready, "separate", generator="pix2pix")
    _write_architecture(separate, other)
    assert architecture(other) == "" and len(seen) == 1, "nothing was to learn them"


def test_pairs_written_again_under_a_number_replace_the_former(state, tmp_path):
    write_pairs(state, 2, tmp_path, EventLog(), seed=1, first=0)
    entries = write_pairs(state, 2, tmp_path, EventLog(), seed=2, first=1)
    assert [e["image"][:4] for e in entries] == ["0000", "0001", "0002"]


def test_layout_and_image_of_a_draw_lie_on_the_same_voxels(state):
    """The style pool and the layouts come from the same places: a draw warps scan, layout and label alike."""
    joint = state.joint
    draw = joint.sampler.draw(4, stream(1, "any"))
    image, layout = joint.sampler.load_image(draw, REFERENCE).mean(1), joint.sampler.load_label(draw, REFERENCE)
    classes = joint.plan.classes
    darkest, brightest = layout == classes, layout == classes + synthesis.CLUSTERS - 1
    assert float(image[brightest].mean()) > float(image[darkest].mean()) + 0.5
    shifted = replace(draw, cases=[(c + 1) % 3 for c in draw.cases])
    assert not torch.equal(joint.sampler.load_label(shifted, REFERENCE), layout)


def test_a_synthetic_photograph_has_the_colours_of_the_one_whose_style_it_has(data):
    state = built(prepared(data, "kvasir", 2))
    case = state.prepared.unlabelled[0]
    again = _in_colours(case.image[:, 0], case)
    photo = read_scan(next(c for c in state.prepared.study.unlabeled if c.id == case.id).images).array
    assert torch.allclose(again.mean((1, 2)), torch.from_numpy(photo).mean((1, 2)), atol=2.0)
    assert float((again.mean((1, 2)) - again.mean()).abs().max()) > 10, "a colour photograph"
    stack = torch.stack([case.image[:, 0]] * 2, 1)
    assert torch.equal(_in_colours(stack, case)[:, 1], again), "each channel its own colours, in a stack, too"
    deep = WorkingCase("deep", case.image, None, torch.tensor([[20000.0, 5000.0, 65535.0]] * 3))
    assert float(_in_colours(torch.zeros(3, 4, 4), deep).mean()) == pytest.approx(20000 * 255 / 65535, rel=1e-4)
