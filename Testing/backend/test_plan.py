"""Plans made from real scans: dimensions, working grid, patch, network, normalisation; no special cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_rig import planned, processor

from genseg.cases import draw
from genseg.device import Device
from genseg.imageio import Scan, read_label, read_scan
from genseg.labels import LabelTable
from genseg.networks import build_segmenter
from genseg.plan import Plan, make_plan, nominal_spacing
from genseg.preprocess import _as_stack, from_working_grid, label_to_working_grid, to_working_grid
from genseg.structures import LABEL_SURVIVAL, _dice_kept, all_curvilinear, structures_of, survival_of
from genseg.study import read_study

ALL = ["hippocampus", "acdc", "isic2017", "kvasir", "shenzhen", "drive", "chase_db1", "dsb2018", "busi"]
_plans: dict[str, Plan] = {}


def plan_of(data, name: str) -> Plan:
    """Of the first three labelled scans; made once."""
    if name not in _plans:
        _plans[name] = planned(data, name, 3)
    return _plans[name]


@pytest.fixture(scope="module")
def torso(request) -> tuple[list[Scan], list[np.ndarray], LabelTable]:
    """The CT torsos with the labels that model-made masks hold."""
    folder = request.getfixturevalue("data") / "torso_ct_mr"
    names = ["ct_sm", "ct_torso"]
    scans = [read_scan([folder / f"images/{n}.nii.gz"]) for n in names]
    table = LabelTable.from_names({k: f"organ {k}" for k in range(256)})
    return scans, [read_label(folder / f"labels/{n}.nii.gz", table)[0] for n in names], table


@pytest.mark.parametrize("name", ALL)
def test_patch_network_and_strides_fit_together(data, name):
    plan = plan_of(data, name)
    reduction = math.prod(plan.strides)
    assert len(plan.filters) == len(plan.strides) == len(plan.kernels) >= 3
    assert all(side % reduction == 0 and side >= 2 * reduction for side in plan.patch), (plan.patch, reduction)
    assert len(plan.patch) == len(plan.spacing) == plan.dims and plan.batch >= 1 and plan.memory_mb > 0
    budget = processor().patch_voxels(plan.dims)
    assert math.prod(plan.patch) <= 1.6 * budget
    assert plan.notes and all(note.endswith(".") for note in plan.notes)
    assert len(plan.normalisation) == plan.channels and all(0 <= a < plan.dims for a in plan.mirror_axes)


@pytest.mark.parametrize("name", ["hippocampus", "isic2017", "acdc"])
def test_the_planned_network_runs_on_its_own_patch(data, name):
    plan = plan_of(data, name)
    with torch.no_grad():
        logits = build_segmenter(plan).eval()(torch.zeros(1, plan.channels, *plan.patch))
    assert logits.shape == (1, plan.classes, *plan.patch)


def test_a_block_of_tissue_gets_a_3d_network_on_its_own_grid(data):
    plan = plan_of(data, "hippocampus")
    assert (plan.dims, plan.slice_axis, plan.physical, plan.classes, plan.channels) == (3, None, True, 3, 1)
    assert plan.spacing == pytest.approx([1, 1, 1])
    scan = read_scan(draw(read_study(data / "hippocampus"), 1, None, 0).training[0].images)
    assert all(patch >= 0.9 * side for patch, side in zip(plan.patch, scan.array.shape[1:], strict=True))


def test_thick_slices_are_cut_along_the_slice_axis_although_the_header_lost_the_spacing(data):
    plan = plan_of(data, "acdc")
    case = draw(read_study(data / "acdc"), 1, None, 0).training[0]
    scan = read_scan(case.images)
    assert plan.dims == 2 and plan.slice_axis == int(np.argmin(scan.array.shape[1:]))
    assert set(scan.spacing) == {1.0}, "told by the number of slices, not by the header"
    assert any("slice by slice" in note for note in plan.notes)
    stack = _as_stack(scan.array, plan)
    assert stack.shape[1] == min(scan.array.shape[1:])
    assert to_working_grid(scan, plan).shape[1] == min(scan.array.shape[1:]), "no slice is lost or made up"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thick_slices_are_told_by_the_spacing_along_any_axis(data, axis):
    """A hippocampus that keeps every fourth slice along one axis."""
    case = draw(read_study(data / "hippocampus"), 1, None, 0).training[0]
    study = read_study(data / "hippocampus")
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    keep = tuple(slice(None, None, 4 if a == axis else 1) for a in range(3))
    spacing = tuple(4.0 if a == axis else 1.0 for a in range(3))

    class Thick:
        array, geometry, dims = scan.array[(slice(None), *keep)], scan.geometry, 3

    thick = Thick()
    thick.spacing = spacing
    plan = make_plan([thick], [label[keep]], study.labels, processor())
    assert (plan.dims, plan.slice_axis) == (2, axis)
    assert plan.spacing[0] == plan.spacing[1]


@pytest.mark.parametrize(("spacing", "dims"), [((1.25, 0.7, 0.7), 3), ((0.7, 0.7, 0.7), 2)])
def test_few_slices_are_called_thick_only_where_the_header_lost_the_spacing(data, spacing, dims):
    """A heart scan eight times wider than its stack, whose header once knows the slices and once does not."""
    study = read_study(data / "acdc")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    geometry = replace(scan.geometry, spacing=spacing[::-1])
    plan = make_plan([Scan(scan.array, geometry)], [label], study.labels, processor())
    assert plan.dims == dims
    assert any("slices are thick" in note for note in plan.notes) == (dims == 2)


@pytest.mark.parametrize("name", ["isic2017", "kvasir"])
def test_photographs_with_large_structures_are_coarsened_and_seen_whole(data, name):
    plan = plan_of(data, name)
    assert (plan.dims, plan.physical, plan.channels) == (2, False, 3)
    assert plan.spacing[0] > 1 and plan.spacing[0] == plan.spacing[1]
    scan = read_scan(draw(read_study(data / name), 1, None, 0).training[0].images)
    working = to_working_grid(scan, plan).shape[-2:]
    assert all(patch >= 0.85 * side for patch, side in zip(plan.patch, working, strict=True))


@pytest.mark.parametrize("device", [processor(), Device(torch.device("cpu"), "card", 24.0, "bf16")])
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("isic2017", "deeplabv3"),
        ("kvasir", "deeplabv3"),
        ("busi", "dynunet"),  # grey
        ("shenzhen", "dynunet"),
        ("dsb2018", "dynunet"),  # nuclei of a few pixels
        ("drive", "dynunet"),  # vessels
        ("acdc", "dynunet"),  # slices, but no photographs
        ("hippocampus", "dynunet"),
    ],
)
def test_the_automatic_network_is_deeplabv3_where_all_structures_of_colour_photographs_are_large(
    data, name, network, device
):
    plan = planned(data, name, 5, device, "auto")
    assert plan.segmenter == network and any("'deeplabv3'" in note for note in plan.notes) == (network == "deeplabv3")
    assert planned(data, name, 5, device).segmenter == "dynunet"
    assert plan.deep_supervision == (network == "dynunet" and len(plan.filters) >= 6)


def test_no_colour_or_one_small_structure_beside_a_large_one_keeps_the_usual_network(data):
    study = read_study(data / "isic2017")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    table = LabelTable.from_names({1: "lesion", 2: "hair"})
    assert make_plan([scan], [label], table, processor(), segmenter="auto").segmenter == "deeplabv3"
    grey = Scan(scan.array.mean(0, keepdims=True).repeat(3, 0), scan.geometry)
    assert make_plan([grey], [label], table, processor(), segmenter="auto").segmenter == "dynunet"
    several = make_plan([scan, grey, grey], [label] * 3, table, processor(), segmenter="auto")
    assert several.segmenter == "dynunet", "one coloured image among grey ones"
    two = Scan(scan.array[:2], scan.geometry)
    assert make_plan([two], [label], table, processor(), segmenter="auto").segmenter == "dynunet"
    label = label.copy()
    label[:, ::64] = 2
    assert make_plan([scan], [label], table, processor(), segmenter="auto").segmenter == "dynunet"


@pytest.mark.parametrize("name", ALL)
def test_vessels_in_photographs_are_curvilinear_and_nothing_else_is(data, name):
    assert plan_of(data, name).curvilinear == (name in ("drive", "chase_db1"))


@pytest.mark.parametrize("zoom", [1, 3])
def test_what_is_curvilinear_is_told_by_form_and_not_by_size_and_holds_where_all_structures_are(data, zoom):
    study = read_study(data / "drive")
    case = draw(study, 1, None, 0).training[0]
    vessels = read_label(case.label, study.labels)[0].repeat(zoom, 0).repeat(zoom, 1)
    assert all_curvilinear(structures_of([vessels]))
    broad, pieces = vessels.copy(), vessels.copy()
    broad[:, : 40 * zoom] = 2
    pieces[:: 6 * zoom] = pieces[:, :: 6 * zoom] = 0
    pieces[1 :: 6 * zoom] = pieces[:, 1 :: 6 * zoom] = 0
    assert not all_curvilinear(structures_of([broad])) and not all_curvilinear(structures_of([pieces]))
    assert not all_curvilinear(structures_of([np.zeros_like(vessels)]))


def test_the_length_of_a_thin_line_is_in_its_widths_and_cells_that_touch_are_no_vessels():
    for width in (1, 2, 4, 10):
        line = np.zeros((60, 130 * width), np.uint8)
        line[10 : 10 + width, : 120 * width] = 1
        line[30::3, ::3] = 1  # specks tell nothing of it
        assert all_curvilinear(structures_of([line])) == (width > 1), "one pixel counts as two"
        assert not all_curvilinear(structures_of([line[:, : 40 * width]]))
    y, x = np.mgrid[:400, :400]
    cells = ((y % 20 - 10) ** 2 + (x % 20 - 10) ** 2 <= 121).astype(np.uint8)
    colony = np.where((y > 120) & (y < 280) & (x > 120) & (x < 280), cells, 0).astype(np.uint8)
    assert not all_curvilinear(structures_of([cells])) and not all_curvilinear(structures_of([colony]))
    assert not all_curvilinear(structures_of([np.tile(colony, (4, 4))])), "looked at evenly where it is large"


def _kept_by_whole_scan(mask: np.ndarray, slice_axis: int | None, factor: float) -> float:
    """Dice of a structure when the whole scan goes to the coarser grid and back."""
    stack = mask[None, None] if slice_axis is None else np.moveaxis(mask, slice_axis, 0)[:, None]
    there = torch.from_numpy(stack).float()
    small = [max(1, round(n / factor)) for n in there.shape[2:]]
    coarse = F.interpolate(there, small, mode="area")
    back = F.interpolate(coarse, there.shape[2:], mode="bilinear" if there.ndim == 4 else "trilinear") > 0.5
    return float(2 * (back & (there > 0.5)).sum() / (back.sum() + there.sum()))


@pytest.mark.parametrize(
    ("name", "slice_axis"), [("hippocampus", None), ("acdc", 0), ("isic2017", None), ("drive", None)]
)
def test_what_structures_keep_is_computed_around_them_as_if_for_the_whole_scan(data, name, slice_axis):
    study = read_study(data / name)
    case = draw(study, 1, None, 0).training[0]
    label = read_label(case.label, study.labels)[0]
    for (place,) in structures_of([label]):
        for factor in (1.25, 2.0, 3.0, 6.0):
            wanted = _kept_by_whole_scan(label == place[1], slice_axis, factor)
            assert _dice_kept(*place, slice_axis, factor) == pytest.approx(wanted, abs=2e-3)


def test_planning_ends_at_the_first_structure_that_does_not_survive(monkeypatch):
    """A volume of many structures, in which a thin one is lost at the first factor."""
    label = np.zeros((64, 128, 128), np.uint8)
    for k in range(16):
        label[:, 32 * (k // 4) : 32 * (k // 4) + 30, 32 * (k % 4) : 32 * (k % 4) + 30] = k + 2
    label[10, 10:12, 10:12] = 1
    looked_at = []
    monkeypatch.setattr("genseg.structures._dice_kept", lambda *given: looked_at.append(given[1]) or _dice_kept(*given))
    assert survival_of(structures_of([label] * 8), None, 1.25) < LABEL_SURVIVAL
    assert looked_at == [1, 1, 1], "the smallest structure first, in three volumes"


@pytest.mark.parametrize("times", [4, 8])
def test_a_radiograph_is_seen_whole_at_any_resolution(data, times):
    """The same chest at 1024 and 2048 pixels gets the working image that it has at 256."""
    study = read_study(data / "shenzhen")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    large = Scan(scan.array.repeat(times, 1).repeat(times, 2), scan.geometry)
    usual = make_plan([scan], [label], study.labels, processor())
    plan = make_plan([large], [label.repeat(times, 0).repeat(times, 1)], study.labels, processor())
    assert plan.patch == usual.patch
    assert plan.spacing == pytest.approx([times * s for s in usual.spacing])
    assert not any("only" in note for note in plan.notes)


def test_a_large_ct_is_coarsened_until_it_is_seen_whole(torso):
    """A torso of 366 x 404 x 180 voxels, one large organ, and what the processor's patch shows of it."""
    scans, labels, _ = torso
    times = [round(n / m) for n, m in zip((192, 384, 384), labels[0].shape, strict=True)]
    organ = max(range(1, 256), key=lambda k: np.count_nonzero(labels[0] == k))
    array, label = scans[0].array, (labels[0] == organ).astype(np.uint8)
    for axis, n in enumerate(times):
        array, label = array.repeat(n, axis + 1), label.repeat(n, axis)
    plan = make_plan([Scan(array, scans[0].geometry)], [label], LabelTable.from_names({1: "organ"}), processor())
    seen = math.prod(p * s for p, s in zip(plan.patch, plan.spacing, strict=True))
    whole = math.prod(n * s for n, s in zip(label.shape, scans[0].spacing, strict=True))
    assert plan.spacing[0] / scans[0].spacing[0] > 4 and seen > 0.8 * whole


def test_a_patch_that_shows_little_of_a_scan_is_told_with_a_remedy(data):
    """Four eyes side by side: their vessels allow no coarser grid, and a patch shows about one part in eighty."""
    study = read_study(data / "drive")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    plan = make_plan(
        [Scan(np.tile(scan.array, (1, 2, 2)), scan.geometry)], [np.tile(label, (2, 2))], study.labels, processor()
    )
    (note,) = [note for note in plan.notes if "patch shows only" in note]
    assert "1.2 %" in note and "crop" in note
    assert not any("patch shows" in note for note in plan_of(data, "drive").notes)


@pytest.mark.parametrize("name", ["drive", "chase_db1"])
def test_vessels_keep_their_grid(data, name):
    plan = plan_of(data, name)
    assert plan.spacing == pytest.approx([1, 1])
    assert any("finest structures" in note for note in plan.notes)


def test_a_photographs_spacing_is_relative_to_its_long_side(data):
    """The same photo at twice the pixels gets half the nominal spacing, and so the same working image."""
    plan = plan_of(data, "isic2017")
    scan = read_scan(draw(read_study(data / "isic2017"), 1, None, 0).training[0].images)
    twice = Scan(np.repeat(np.repeat(scan.array, 2, 1), 2, 2), scan.geometry)
    assert nominal_spacing(scan, plan.reference_long_side) == pytest.approx(
        2 * nominal_spacing(twice, plan.reference_long_side)
    )
    small, large = to_working_grid(scan, plan), to_working_grid(twice, plan)
    assert small.shape == large.shape
    assert float(torch.corrcoef(torch.stack([small.flatten(), large.flatten()]))[0, 1]) > 0.995


def test_ct_is_told_by_air_and_gets_one_window_for_the_study(torso):
    scans, labels, table = torso
    plan = make_plan(scans, labels, table, processor())
    (channel,) = plan.normalisation
    assert channel.kind == "ct" and -1100 < channel.low < channel.high < 3500 and channel.std > 1
    assert channel.low < channel.mean < channel.high
    assert any("CT" in note for note in plan.notes)
    image = to_working_grid(scans[0], plan)
    low, high = (channel.low - channel.mean) / channel.std, (channel.high - channel.mean) / channel.std
    assert float(image.min()) == pytest.approx(low, abs=1e-3) and float(image.max()) == pytest.approx(high, abs=1e-3)
    assert plan.dims == 3


def test_mr_is_not_taken_for_ct(data):
    folder = data / "torso_ct_mr"
    table = LabelTable.from_names({k: f"organ {k}" for k in range(256)})
    scan = read_scan([folder / "images/mr_sm.nii.gz"])
    label = read_label(folder / "labels/mr_sm.nii.gz", table)[0]
    plan = make_plan([scan], [label], table, processor())
    assert plan.normalisation[0].kind == "zscore"
    assert to_working_grid(scan, plan).mean() == pytest.approx(0, abs=1e-3)


def test_names_that_tell_left_from_right_forbid_mirroring(data):
    study = read_study(data / "hippocampus")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    sided = LabelTable.from_names({1: "left hippocampus", 2: "right hippocampus"})
    forbidden = make_plan([scan], [label], sided, processor())
    assert forbidden.mirror_axes == []


def test_photographs_whose_labels_name_sides_are_not_mirrored(data):
    study = read_study(data / "shenzhen")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    for name, axes in (("lung", [0, 1]), ("left lung", []), ("lung, right", []), ("bright spot", [0, 1])):
        assert make_plan([scan], [label], LabelTable.from_names({255: name}), processor()).mirror_axes == axes


@pytest.mark.parametrize("shape", [(7, 40, 40), (7, 16, 16), (10, 12, 20)])
def test_small_volumes_keep_four_voxels_at_the_coarsest_level(data, shape):
    """Below three, bf16 weight gradients of 3D convolutions are wrong on processors."""
    study = read_study(data / "hippocampus")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    part = tuple(slice((n - m) // 2, (n - m) // 2 + m) for n, m in zip(label.shape, shape, strict=True))
    small = Scan(scan.array[(slice(None), *part)], scan.geometry)
    plan = make_plan([small], [label[part]], study.labels, processor())
    assert min(plan.patch) // 2 ** (len(plan.filters) - 1) >= 4


def test_phase_images_are_not_taken_for_ct(data):
    study = read_study(data / "hippocampus")
    case = draw(study, 1, None, 0).training[0]
    scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
    span = scan.array.max() - scan.array.min()
    phase = Scan(np.round((scan.array - scan.array.min()) / span * 8190 - 4096).astype(np.float32), scan.geometry)
    assert make_plan([phase], [label], study.labels, processor()).normalisation[0].kind == "zscore"


def test_photographs_are_mirrored_along_both_axes(data):
    assert plan_of(data, "isic2017").mirror_axes == [0, 1]


def test_a_graphics_card_gets_more_voxels_and_a_wider_network(data):
    study = read_study(data / "drive")
    case = draw(study, 1, None, 0).training[0]
    pair = [read_scan(case.images)], [read_label(case.label, study.labels)[0]]
    card = Device(torch.device("cuda"), "card", 16.0, "bf16")
    small, large = make_plan(*pair, study.labels, processor()), make_plan(*pair, study.labels, card)
    assert math.prod(large.patch) > 2 * math.prod(small.patch)
    assert large.filters[0] > small.filters[0] and large.memory_mb > small.memory_mb


def test_a_plan_is_saved_and_read_back_unchanged(data, tmp_path):
    plan = plan_of(data, "acdc")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("name", ["hippocampus", "acdc", "isic2017", "drive"])
def test_no_structure_is_lost_on_the_planned_grid(data, name):
    """What the plan promises: every structure survives the way to the working grid and back."""
    plan, study = plan_of(data, name), draw(read_study(data / name), 3, None, 0)
    for case in study.training:
        scan, label = read_scan(case.images), read_label(case.label, study.labels)[0]
        there = label_to_working_grid(label, scan, plan)
        scores = torch.stack([(there == k).float() for k in range(plan.classes)])
        back = from_working_grid(scores, scan, plan)
        for k in np.unique(label[label > 0]):
            overlap = 2 * ((back == k) & (label == k)).sum() / ((back == k).sum() + (label == k).sum())
            assert overlap > 0.88, (case.id, int(k), overlap)
