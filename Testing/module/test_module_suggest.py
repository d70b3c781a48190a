"""Which scan to label next, on real volume nodes."""

import json
import time

import numpy as np
import pytest
from GenSegSlicerLib.Scans import ScanList
from GenSegSlicerLib.Suggest import Suggest, suggestNext


def anatomy(shift=0.0, seed=0, shape=(24, 30, 36)):
    """A volume [k, j, i] with a bright body whose place depends on `shift`, and a little noise."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = np.exp(-((k / 0.5) ** 2 + (j / 0.4) ** 2 + ((i - shift) / 0.3) ** 2))
    return (1000 * body + np.random.default_rng(seed).normal(0, 20, shape)).astype(np.int16)


@pytest.fixture
def scene(mrml):
    """Five scans: three alike, one somewhat and one very different."""
    for number, shift in enumerate((0.0, 0.02, -0.02, 0.3, 0.8)):
        volume = mrml.volume(anatomy(shift, number), f"scan{number}")
        volume.SetAttribute("GenSegSlicer.Case", f"case{number}")
    return mrml


def suggested(mrml, index=None, labelled=()):
    scans = ScanList(mrml.scene)
    for name in labelled:
        scans.setRole(mrml.node(name), "labelled")
    scan, reason = suggestNext(scans.scans(), index)
    return (scan.name if scan else None), reason


def predictions(**uncertainty):
    return {"cases": [{"case": case, "uncertainty": value} for case, value in uncertainty.items()]}


def test_the_first_scan_to_label_is_the_most_typical_one(scene):
    name, reason = suggested(scene)
    assert name in ("scan0", "scan1", "scan2") and "most like" in reason


def test_then_comes_what_is_farthest_from_everything_labelled(scene):
    name, reason = suggested(scene, labelled=["scan0"])
    assert name == "scan4" and "least like" in reason
    assert suggested(scene, labelled=["scan4"])[0] == "scan3", "the farthest from both, not from one"


def test_grey_values_of_another_scanner_make_no_scan_a_new_one(scene):
    scene.volume((anatomy(0.01, 9) * 3.0 + 500).astype(np.int16), "brighter")
    assert suggested(scene, labelled=["scan0", "scan4"])[0] == "scan3"


def test_a_scan_that_lies_in_the_file_the_other_way_is_recognised(mrml):
    mrml.volume(anatomy(0.3), "drawn")
    turned = np.diag([-1.0, -1.0, 1.0, 1.0])
    mrml.volume(np.ascontiguousarray(anatomy(0.3)[:, ::-1, ::-1]), "the same", turned)
    sagittal = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    mrml.volume(np.ascontiguousarray(anatomy(0.3).transpose(2, 0, 1)), "sagittal", sagittal)
    mrml.volume(anatomy(0.15), "different")
    assert suggested(mrml, labelled=["drawn"])[0] == "different"


def test_with_a_model_the_scan_about_which_it_is_least_sure_comes_next(scene):
    index = predictions(case1=0.1, case3=0.36, case2=0.2)
    name, reason = suggested(scene, index, labelled=["scan0"])
    assert name == "scan3" and "64 %" in reason
    assert suggested(scene, index, labelled=["scan3"])[0] == "scan2", "not one that is labeled meanwhile"


def test_predictions_of_other_scans_or_without_a_number_say_nothing(scene):
    index = predictions(elsewhere=0.9, case1=None)
    assert suggested(scene, index, labelled=["scan0"]) == suggested(scene, labelled=["scan0"])


def test_test_scans_and_ignored_ones_are_never_suggested(scene):
    scans = ScanList(scene.scene)
    for name, role in (("scan4", "test"), ("scan3", "ignore")):
        scans.setRole(scene.node(name), role)
    name, _reason = suggested(scene, predictions(case4=0.9, case3=0.8, case1=0.2), labelled=["scan0"])
    assert name == "scan1"


def test_where_nothing_is_left_the_reason_says_so(scene):
    name, reason = suggested(scene, labelled=[f"scan{i}" for i in range(5)])
    assert name is None and "No scan is left" in reason
    assert suggestNext([]) == (None, reason)


def test_the_only_scan_left_is_suggested_as_such(scene):
    name, reason = suggested(scene, labelled=[f"scan{i}" for i in range(4)])
    assert name == "scan4" and "only scan" in reason


def test_photographs_and_volumes_without_voxels_do_no_harm(mrml):
    rng = np.random.default_rng(0)
    for number in range(3):
        mrml.photo(rng.integers(0, 255, (40, 60 + number, 3), dtype=np.uint8), f"photo{number}")
    mrml.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    mrml.volume(np.zeros((5, 5, 5), np.int16), "black")
    assert suggested(mrml)[0] in ("photo0", "photo1", "photo2", "black")
    assert suggested(mrml, labelled=["photo0"])[0] is not None


def test_a_changed_volume_is_looked_at_again_and_an_unchanged_one_is_not(scene):
    suggest = Suggest()
    scans = ScanList(scene.scene)
    scans.setRole(scene.node("scan0"), "labelled")
    assert suggest.suggestNext(scans.scans())[0].name == "scan4"
    kept = {key: picture for key, (_stamp, picture) in suggest._pictures.items()}
    from mrml import imageData

    scene.node("scan4").SetAndObserveImageData(imageData(anatomy(0.0, 4)))
    assert suggest.suggestNext(scans.scans())[0].name == "scan3"
    same = [key for key, (_stamp, picture) in suggest._pictures.items() if picture is kept[key]]
    assert len(same) == 4


def test_a_large_ct_costs_less_than_looking_at_every_voxel(mrml):
    voxels = np.random.default_rng(0).integers(-1000, 1000, (64, 512, 512), dtype=np.int16)
    for number in range(2):
        mrml.volume(voxels, f"ct{number}")
    scans = ScanList(mrml.scene).scans()
    begin = time.perf_counter()
    suggestNext(scans)
    suggesting = time.perf_counter() - begin
    begin = time.perf_counter()
    np.percentile(voxels, (1, 99))
    assert suggesting < time.perf_counter() - begin


def test_on_real_scans_one_with_a_missing_half_is_the_most_unlike(data, mrml):
    content = json.loads((data / "hippocampus" / "dataset.json").read_text(encoding="utf-8"))
    names = [mrml.loadVolume(data / "hippocampus" / case["image"]).GetName() for case in content["training"][:6]]
    damaged = mrml.node(names[3])
    voxels = mrml.array(damaged)
    voxels[:, : voxels.shape[1] // 2] = 0
    from mrml import imageData

    damaged.SetAndObserveImageData(imageData(voxels))
    assert suggested(mrml)[0] != names[3]
    assert suggested(mrml, labelled=[names[0]])[0] == names[3]
