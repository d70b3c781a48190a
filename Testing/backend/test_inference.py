"""Whole scans through the sliding window: any size, mirrored copies averaged, an uncertainty that means something."""

import numpy as np
import pytest
import torch
from method_rig import advance, built, prepared, processor
from torch import Tensor, nn

from genseg.cases import draw
from genseg.imageio import Scan, read_label, read_scan
from genseg.inference import Predictor, _uncertainty
from genseg.labels import LabelTable
from genseg.study import read_study

NAMES = ["hippocampus", "acdc", "isic2017"]


@pytest.fixture(scope="module", params=NAMES)
def predictor(request) -> tuple[Predictor, Scan]:
    """A segmenter that has seen a few steps, and a real scan."""
    folder = request.getfixturevalue("data")
    ready = prepared(folder, request.param, 1)
    joint = built(ready, "supervised").joint
    advance(joint, 15, rate=1e-2)
    case = draw(read_study(folder / request.param), 2, None, 0).training[1]
    return Predictor(joint.segmenter, ready.plan, ready.study.labels, processor()), read_scan(case.images)


def cut(scan: Scan, *sizes: int) -> Scan:
    return Scan(scan.array[(slice(None), *(slice(0, n) for n in sizes))].copy(), scan.geometry)


def test_the_label_map_lies_on_the_scans_voxels(predictor):
    model, scan = predictor
    found = model.segment(scan)
    assert found.labels.shape == scan.array.shape[1:]
    assert found.labels.dtype.kind in "iu" and set(np.unique(found.labels)) <= set(range(model.plan.classes))
    assert 0 <= found.uncertainty <= 1


def test_mirrored_copies_are_averaged(predictor):
    """tta equals the mean over scans that were mirrored by hand, and brought back."""
    model, scan = predictor
    plan = model.plan.model_copy(update={"mirror_axes": list(range(model.plan.dims))})
    mirrored = Predictor(model.network, plan, model.table, processor())
    image = torch.from_numpy(np.ascontiguousarray(scan.array[:, :9, :40, :40] if scan.dims == 3 else scan.array))
    image = image if plan.dims == 3 or scan.dims == 3 else image[:, None]
    image = (image - image.mean()) / image.std()
    first = 3 - plan.dims + 1
    total, flips = torch.zeros(()), [()]
    for axis in range(plan.dims):
        flips += [(*f, first + axis) for f in flips]
    for flip in flips:
        total = total + mirrored.probabilities(image.flip(flip), tta=False).flip(flip)
    with_tta, without = mirrored.probabilities(image, tta=True), mirrored.probabilities(image, tta=False)
    assert len(flips) == 2**plan.dims
    assert torch.allclose(with_tta, total / len(flips), atol=1e-5)
    assert not torch.allclose(with_tta, without, atol=1e-3)


def test_probabilities_add_up_to_one_for_any_size(predictor):
    model, _ = predictor
    for size in ([3, 5, 7], [20, 70, 33], [1, 32, 32]):
        probabilities = model.probabilities(torch.randn(model.plan.channels, *size), tta=True)
        assert probabilities.shape == (model.plan.classes, *size)
        assert torch.allclose(probabilities.sum(0), torch.ones(size), atol=1e-4)


def test_a_scan_smaller_than_the_patch_is_segmented(predictor):
    model, scan = predictor
    tiny = cut(scan, *[5] * scan.dims)
    assert model.segment(tiny).labels.shape == tuple([5] * scan.dims)


def test_a_scan_of_one_slice_is_segmented(predictor):
    model, scan = predictor
    if scan.dims == 2:
        pytest.skip("a photo has no slices")
    for axis in range(3):
        sizes = [1 if a == axis else n for a, n in enumerate(scan.array.shape[1:])]
        assert list(model.segment(cut(scan, *sizes)).labels.shape) == sizes


def test_windows_are_joined_without_seams():
    """A network that says what it sees at each voxel gives the same map whether it sees all at once or parts."""

    class PerVoxel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([-x[:, :1], x[:, :1]], 1) * 5

    from test_networks import small_plan

    plan = small_plan(2, [32, 32], channels=1, classes=2)
    model = Predictor(PerVoxel(), plan, LabelTable.from_names({1: "a"}), processor())
    image = torch.randn(1, 2, 75, 53)
    expected = PerVoxel()(image.transpose(0, 1)).softmax(1).transpose(0, 1)
    assert torch.allclose(model.probabilities(image, tta=False), expected, atol=1e-5)


def test_slices_are_segmented_each_for_itself(data):
    ready = prepared(data, "acdc", 1)
    joint = built(ready, "supervised").joint
    model = Predictor(joint.segmenter, ready.plan, ready.study.labels, processor())
    image = ready.labelled[0].image
    whole = model.probabilities(image, tta=False)
    one = model.probabilities(image[:, 3:4], tta=False)
    assert torch.allclose(whole[:, 3:4], one, atol=1e-5)


def test_a_little_training_on_a_scan_segments_it_better_than_chance(data):
    """The whole way, from file to label map: overlap with the real mask grows well beyond that of an untrained one."""
    ready = prepared(data, "isic2017", 1)
    ready.plan = ready.plan.model_copy(update={"patch": [64, 64], "filters": [8, 16, 32]})
    state = built(ready, "supervised")
    case = ready.study.training[0]
    scan, label = read_scan(case.images), read_label(case.label, ready.study.labels)[0]

    def overlap() -> float:
        found = Predictor(state.joint.segmenter, ready.plan, ready.study.labels, processor()).segment(scan).labels
        return float(2 * ((found == 1) & (label == 1)).sum() / ((found == 1).sum() + (label == 1).sum()))

    before = overlap()
    state.joint.segmenter.train()
    advance(state.joint, 60, rate=5e-3)
    assert overlap() > max(0.7, before + 0.2)


def test_uncertainty_is_0_for_a_sure_map_grows_with_doubt_and_stays_below_1():
    def score(p: float) -> float:
        probabilities = torch.zeros(2, 4, 10, 10)
        probabilities[1, :, :5] = p
        probabilities[0] = 1 - probabilities[1]
        return _uncertainty(probabilities)

    assert score(1.0) == pytest.approx(0)
    values = [score(p) for p in (1.0, 0.9, 0.7, 0.55)]
    assert values == sorted(values) and values[-1] < 1
    # nothing found: how near it came
    assert score(0.3) == pytest.approx(0.3) and score(0.0) == 0
    for seed in range(5):
        noisy = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)).softmax(0)
        assert 0 <= _uncertainty(noisy) <= 1
