"""Scores are checked against numbers worked out by hand or by a brute-force definition, on real label maps."""

import io
import json

import numpy as np
import pytest
from real_data import DATA, needs_data
from rich.console import Console

from genseg.evaluate import CaseScores, evaluate_cases, print_table, score_case, summarise, surface_tolerance
from genseg.events import Error, EventLog
from genseg.imageio import Geometry, read_label, read_scan
from genseg.labels import LabelTable
from genseg.study import Case

TABLE = LabelTable.from_names({1: "anterior", 2: "posterior"})
LESION = LabelTable.from_names({255: "lesion"})


def hippocampus(name: str = "hippocampus_334") -> Case:
    folder = DATA / "hippocampus"
    return Case(id=name, images=[folder / f"images/{name}.nii.gz"], label=folder / f"labels/{name}.nii.gz")


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((20, 20), np.uint8)
    mask[rows, columns] = 1
    return mask


def test_dice_iou_and_surface_distance_of_two_squares_are_those_worked_out_by_hand():
    reference, prediction = square(slice(5, 15), slice(5, 15)), square(slice(5, 15), slice(7, 17))
    scores = score_case(prediction, reference, (3.0, 0.5), LESION)["lesion"]
    assert scores.dice == pytest.approx(2 * 80 / 200)
    assert scores.iou == pytest.approx(80 / 120)
    assert scores.hd95_mm == pytest.approx(2 * 0.5)  # two columns of 0.5 mm, not of 3 mm


@needs_data
def test_scores_of_a_shifted_real_label_equal_the_brute_force_definition():
    reference, _ = read_label(hippocampus().label, TABLE)
    prediction = np.roll(reference, 2, axis=1)
    spacing = (1.0, 1.5, 0.7)
    scores = score_case(prediction, reference, spacing, TABLE)
    for index, label in enumerate(TABLE.structures, start=1):
        p, r = prediction == index, reference == index
        near, far = distances(p, r, spacing), distances(r, p, spacing)
        tolerance = 1.0
        expected = ((near <= tolerance).sum() + (far <= tolerance).sum()) / (near.size + far.size)
        got = scores[label.name]
        assert got.dice == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()), abs=1e-5)
        assert got.iou == pytest.approx((p & r).sum() / (p | r).sum(), abs=1e-5)
        assert got.hd95_mm == pytest.approx(max(np.percentile(near, 95), np.percentile(far, 95)), abs=1e-4)
        assert got.nsd == pytest.approx(expected, abs=1e-5)


def distances(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """From each edge voxel of `a` to the nearest of `b`, by comparing all pairs."""
    points = [np.argwhere(mask & ~eroded(mask)) * np.array(spacing) for mask in (a, b)]
    return np.sqrt(((points[0][:, None] - points[1][None]) ** 2).sum(-1)).min(1)


def eroded(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(mask.ndim):
        inner &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    return inner[(slice(1, -1),) * mask.ndim]


def test_a_perfect_prediction_scores_one_with_distance_zero():
    mask = square(slice(0, 20), slice(3, 9))
    assert score_case(mask, mask, (1.0, 1.0), LESION)["lesion"].__dict__ == pytest.approx(
        {"dice": 1.0, "iou": 1.0, "hd95_mm": 0.0, "nsd": 1.0}
    )


def test_a_label_absent_from_both_masks_is_left_out_of_the_mean():
    found = CaseScores("a", score_case(*two(1, 1), (1.0, 1.0), TABLE), 1.0)
    evaluation = summarise([found])
    assert evaluation["labels"]["posterior"] == {"dice": None, "iou": None, "hd95_mm": None, "nsd": None}
    assert evaluation["mean"]["dice"] == pytest.approx(1.0)


@pytest.mark.parametrize("values", [(1, 0), (0, 1)])
def test_a_label_absent_from_exactly_one_mask_counts_as_zero_and_has_no_distance(values):
    missed = CaseScores("a", score_case(*two(*values), (1.0, 1.0), LESION), 1.0)
    found = CaseScores("b", score_case(*two(1, 1), (1.0, 1.0), LESION), 1.0)
    mean = summarise([missed, found])["mean"]
    assert mean == pytest.approx({"dice": 0.5, "iou": 0.5, "hd95_mm": 0.0, "nsd": 0.5})


def two(*values: int) -> list[np.ndarray]:
    return [square(slice(4, 9), slice(4, 9)) * np.uint8(value) for value in values]


def test_the_mean_is_taken_over_cases_first_so_that_a_rare_label_counts_as_much_as_a_frequent_one():
    good, bad = score_case(*two(1, 1), (1.0, 1.0), LESION), score_case(*two(1, 0), (1.0, 1.0), LESION)
    cases = [CaseScores(str(i), {"often": good["lesion"]}, 1.0) for i in range(3)]
    cases.append(CaseScores("3", {"often": good["lesion"], "rare": bad["lesion"]}, 1.0))
    assert summarise(cases)["mean"]["dice"] == pytest.approx(0.5)


def test_the_evaluation_is_strict_json_even_where_nothing_could_be_scored():
    nothing = CaseScores("a", score_case(*two(0, 0), (1.0, 1.0), LESION), 1.0)
    for cases in ([], [nothing]):
        evaluation = json.loads(json.dumps(summarise(cases), allow_nan=False))
        assert evaluation["mean"] == {"dice": None, "iou": None, "hd95_mm": None, "nsd": None}
    assert set(evaluation) == {"mean", "labels", "cases", "unit", "nsd_tolerance"}


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="20"):
        score_case(np.zeros((20, 20), np.uint8), np.zeros((20, 10), np.uint8), (1.0, 1.0), LESION)


def test_the_tolerance_is_the_median_spacing_and_one_percent_of_a_photo():
    assert surface_tolerance((10, 256, 256), (10.0, 1.4, 1.4)) == 1.4
    assert surface_tolerance((600, 450), (1.0, 1.0), physical=False) == 6.0
    assert surface_tolerance((60, 45), (1.0, 1.0), physical=False) == 1.0


@needs_data
def test_a_reference_in_another_grid_is_reported_with_case_rule_and_remedy_and_the_others_are_scored():
    events: list = []
    first, second = hippocampus(), hippocampus("hippocampus_386")
    wrong = first.model_copy(update={"label": second.label})
    scores, faults = evaluate_cases([wrong, second], TABLE, nothing, log(events))
    assert [score.case for score in scores] == [second.id]
    assert [(fault.code, fault.case) for fault in faults] == [("geometry_mismatch", first.id)]
    assert faults[0].rule and faults[0].remedy
    assert [event.case for event in events if isinstance(event, Error)] == [first.id]


def nothing(case: Case) -> tuple[np.ndarray, Geometry]:
    """A segmenter that finds no structure anywhere."""
    scan = read_scan(case.images)
    return np.zeros(scan.array.shape[1:], np.uint8), scan.geometry


def log(events: list) -> EventLog:
    return EventLog([events.append])


@needs_data
def test_photos_are_evaluated_in_pixels_with_the_reference_as_its_own_perfect_prediction():
    folder = DATA / "isic2017"
    entry = json.loads((folder / "dataset.json").read_text())["test"][0]
    case = Case(id="lesion", images=[folder / entry["image"]], label=folder / entry["label"])
    scores, faults = evaluate_cases([case], LESION, lambda c: read_label(c.label, LESION))
    evaluation = summarise(scores)
    assert not faults
    assert evaluation["unit"] == "pixel"
    assert evaluation["mean"]["dice"] == pytest.approx(1.0)


def test_the_table_shows_every_case_and_label_and_the_means():
    cases = [CaseScores(name, score_case(*two(1, 1), (1.0, 1.0), TABLE), 1.0) for name in ("Fall Ä 1", "case 2")]
    console = Console(record=True, width=120, file=io.StringIO())
    print_table(summarise(cases), console)
    text = console.export_text()
    for expected in ("Fall Ä 1", "case 2", "anterior", "posterior", "all labels", "1.000", "HD95 (mm)"):
        assert expected in text


@needs_data
def test_a_missing_reference_file_is_a_fault_not_a_crash(tmp_path):
    case = hippocampus().model_copy(update={"label": tmp_path / "absent.nii.gz"})
    scores, faults = evaluate_cases([case], TABLE, nothing)
    assert not scores
    assert [(fault.case, bool(fault.rule), bool(fault.remedy)) for fault in faults] == [(case.id, True, True)]
