"""Every fault of the input, each on real files damaged for it: case, code, rule and remedy must be right."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.check import check_disk, check_study
from genseg.errors import Fault, InputFaults
from genseg.study import read_study

MakeStudy = Callable[..., "SmallStudy"]  # noqa: F821 (the fixture of conftest.py)


def only_fault(study) -> Fault:
    faults = study.faults()
    assert len(faults) == 1, faults
    assert faults[0].rule.endswith(".") and faults[0].remedy.endswith(".")
    return faults[0]


def change(path: Path, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    """Rewrite a file with edited voxels on the same grid."""
    image = sitk.ReadImage(str(path))
    edited = sitk.GetImageFromArray(edit(sitk.GetArrayFromImage(image)))
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(path))


def cut_off(path: Path, part: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


def test_a_sound_study_has_no_faults(small_study: MakeStudy) -> None:
    assert small_study().faults() == []


def test_a_missing_image_and_a_missing_mask_are_named_with_their_paths(small_study: MakeStudy) -> None:
    study = small_study()
    study.image(0).unlink()
    study.label(1).unlink()
    first, second = study.faults()
    assert (first.code, first.case) == ("missing_file", study.id(0)) and str(study.image(0)) in first.rule
    assert (second.code, second.case) == ("missing_file", study.id(1)) and str(study.label(1)) in second.rule


def as_format(study, suffix: str) -> Path:
    """Save the first image in another format and name it in the study."""
    target = study.image(0).parent / f"first{suffix}"
    image = sitk.ReadImage(str(study.image(0)))
    sitk.WriteImage(image, str(target), useCompression=suffix != ".nii")
    study.training[0]["image"] = f"images/first{suffix}"
    return target


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_volume_cut_off_is_corrupt_and_nothing_is_printed(small_study: MakeStudy, suffix: str, capfd) -> None:
    study = small_study()
    cut_off(as_format(study, suffix))
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("corrupt_file", "first")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_photo_cut_off_is_corrupt_and_nothing_is_printed(small_study: MakeStudy, suffix: str, capfd) -> None:
    study = small_study("isic2017")
    cut_off(as_format(study, suffix), 0.9)
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("corrupt_file", "first")
    assert capfd.readouterr() == ("", "")


def test_reading_damaged_files_prints_nothing_until_the_process_ends(small_study: MakeStudy) -> None:
    """The C++ libraries keep what they print back until the end, so only a process of its own shows it."""
    study, photos = small_study(), small_study("isic2017")
    damaged = [as_format(study, suffix) for suffix in (".nii.gz", ".nii", ".nrrd", ".mha")]
    damaged += [as_format(photos, suffix) for suffix in (".jpg", ".png", ".tif")]
    for path in damaged:
        cut_off(path)
    code = """
import sys
from pathlib import Path
from genseg.imageio import UnusableImage, read_scan
for name in sys.argv[1:]:
    try:
        read_scan([Path(name)])
    except UnusableImage as error:
        assert error.code == "corrupt_file", error.code
    else:
        raise SystemExit(f"{name} was read")
"""
    done = subprocess.run([sys.executable, "-c", code, *map(str, damaged)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_file_of_another_kind_or_empty_is_corrupt(small_study: MakeStudy) -> None:
    study = small_study()
    study.image(0).write_bytes(b"this is no scan")
    study.label(1).write_bytes(b"")
    assert [(f.code, f.case) for f in study.faults()] == [("corrupt_file", study.id(0)), ("corrupt_file", study.id(1))]


def set_spacing(image: sitk.Image) -> None:
    image.SetSpacing([1, 1, 1.01])


def set_origin(image: sitk.Image) -> None:
    image.SetOrigin([1.0, 0.5, 1.0])


def set_direction(image: sitk.Image) -> None:
    image.SetDirection([0.99995, -0.01, 0, 0.01, 0.99995, 0, 0, 0, 1])


@pytest.mark.parametrize(
    ("edit", "words"), [(set_spacing, "spacing"), (set_origin, "shifted"), (set_direction, "directions")]
)
def test_a_mask_on_another_grid_is_a_geometry_mismatch(small_study: MakeStudy, edit, words: str) -> None:
    study = small_study()
    mask = sitk.ReadImage(str(study.label()))
    edit(mask)
    sitk.WriteImage(mask, str(study.label()))
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("geometry_mismatch", study.id()) and words in fault.rule


def test_a_mask_of_another_size_is_a_geometry_mismatch(small_study: MakeStudy) -> None:
    study = small_study()
    mask = sitk.ReadImage(str(study.label()))
    sitk.WriteImage(mask[:, :, 1:], str(study.label()))
    fault = only_fault(study)
    assert fault.code == "geometry_mismatch" and "voxels" in fault.rule


def test_rounding_of_the_grid_and_another_axis_order_are_no_mismatch(small_study: MakeStudy) -> None:
    study = small_study()
    mask = sitk.DICOMOrient(sitk.ReadImage(str(study.label())), "PSR")
    mask.SetSpacing([s * 1.0002 for s in mask.GetSpacing()])
    mask.SetOrigin([o + 0.001 for o in mask.GetOrigin()])
    sitk.WriteImage(mask, str(study.label()))
    assert study.faults() == []


def test_a_value_outside_the_label_table_is_named(small_study: MakeStudy) -> None:
    study = small_study()
    change(study.label(), lambda a: np.where(a == 2, 7, a))
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("unknown_label_value", study.id()) and "7" in fault.rule


def test_a_jpeg_mask_is_reported_with_the_remedy_to_use_png(small_study: MakeStudy) -> None:
    study = small_study("isic2017")
    target = study.label().with_suffix(".jpg")
    sitk.WriteImage(sitk.ReadImage(str(study.label())), str(target))
    study.training[0]["label"] = str(target)
    fault = only_fault(study)
    assert fault.code == "unknown_label_value" and "JPEG" in fault.remedy


def test_a_coloured_mask_and_a_mask_with_fractions_are_reported(small_study: MakeStudy) -> None:
    study = small_study("isic2017")
    study.training[0]["label"] = study.training[1]["image"]
    assert "label_not_single" in {f.code for f in study.faults()}
    volumes = small_study()
    change(volumes.label(), lambda a: a * np.float32(0.5))
    assert only_fault(volumes).code == "label_not_integer"


def test_an_empty_training_mask_is_reported_but_an_empty_test_mask_is_not(small_study: MakeStudy) -> None:
    study = small_study()
    change(study.label(), np.zeros_like)
    change(study.folder / study.test[0]["label"], np.zeros_like)
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("empty_label", study.id())


def test_a_case_id_used_twice_is_reported_also_in_another_case_of_letters(small_study: MakeStudy) -> None:
    study = small_study()
    study.training[0]["id"], study.training[1]["id"] = "Patient", "patient"
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("duplicate_case", "Patient")


def test_a_case_id_that_cannot_be_a_file_name_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    study.training[0]["id"] = "../patient:1"
    assert only_fault(study).code == "bad_case_id"


def test_the_same_image_twice_is_found_even_as_a_copy_under_another_name(small_study: MakeStudy) -> None:
    study = small_study()
    shutil.copyfile(study.image(0), study.image(0).with_name("copy.nii.gz"))
    study.training.append({"image": "images/copy.nii.gz", "label": study.training[0]["label"]})
    fault = only_fault(study)
    assert fault.code == "same_image" and study.id(0) in fault.rule and "copy" in fault.rule


def test_the_same_image_in_training_and_test_is_a_leak(small_study: MakeStudy) -> None:
    study = small_study()
    study.test.append({**study.training[0], "id": "again"})
    fault = only_fault(study)
    assert fault.code == "same_image" and "must not be trained on" in fault.rule


def test_test_scans_may_also_serve_as_unlabelled_scans(small_study: MakeStudy) -> None:
    study = small_study()
    study.content["unlabeled"] = [study.test[0]["image"]]
    assert study.faults() == []
    study.content["unlabeled"] = [study.training[0]["image"]]
    assert {f.code for f in study.faults()} == {"duplicate_case", "same_image"}


def test_the_same_patient_in_training_and_test_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    study.training[1]["group"] = study.test[1]["group"] = "patient 7"
    study.test[0]["group"] = "patient 8"
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("same_patient", study.id(1)) and "patient 7" in fault.rule


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_without_a_number_are_counted(small_study: MakeStudy, value: float) -> None:
    def damage(a: np.ndarray) -> np.ndarray:
        a = a.astype(np.float32)
        a[3, 4, 5:8] = value
        return a

    study = small_study()
    change(study.image(), damage)
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("nan_voxels", study.id()) and " 3 " in fault.rule


def test_a_volume_one_voxel_thin_among_volumes_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    for path in (study.image(), study.label()):
        middle = sitk.ReadImage(str(path))[:, :, 15:16]
        sitk.WriteImage(middle, str(path))
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("thin_volume", study.id())


def test_a_study_of_single_slices_is_a_2d_study(small_study: MakeStudy) -> None:
    study = small_study()
    for case in study.training + study.test:
        for key in ("image", "label"):
            path = study.folder / case[key]
            sitk.WriteImage(sitk.ReadImage(str(path))[:, 22:23, :], str(path))
    facts = check_study(read_study(study.write()))
    assert facts.dims == 2 and len(facts.cases[0].shape) == 2 and facts.physical


def test_another_number_of_channels_than_the_others_is_reported(small_study: MakeStudy) -> None:
    study = small_study("isic2017")
    grey = study.image().with_suffix(".png")
    sitk.WriteImage(sitk.VectorIndexSelectionCast(sitk.ReadImage(str(study.image())), 1), str(grey))
    study.training[0]["image"] = str(grey)
    fault = only_fault(study)
    assert (fault.code, fault.case) == ("channel_count", study.id())


def test_volumes_and_photos_in_one_study_are_reported(small_study: MakeStudy) -> None:
    study, photos = small_study(), small_study("busi", training=1, test=0)
    study.training.append({"image": str(photos.image()), "label": str(photos.label())})
    study.content["labels"]["255"] = "lesion"
    fault = only_fault(study)
    assert fault.code == "mixed_dimensions" and photos.id() in fault.rule


def test_photos_and_images_with_a_physical_size_in_one_study_are_reported(small_study: MakeStudy) -> None:
    study = small_study("busi")
    as_format(study, ".nrrd")
    fault = only_fault(study)
    assert fault.code == "physical_size" and "first" in fault.rule


def test_a_constant_image_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    change(study.image(), lambda a: np.full_like(a, 17))
    fault = only_fault(study)
    assert fault.code == "constant_image" and "17" in fault.rule


def test_a_study_without_a_labelled_case_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    study.content["unlabeled"] = [case["image"] for case in study.training]
    study.content["training"] = []
    assert (only_fault(study).code, only_fault(study).case) == ("no_labelled_case", "study")


def test_a_training_case_without_a_mask_is_reported(small_study: MakeStudy) -> None:
    study = small_study()
    del study.training[1]["label"]
    assert (only_fault(study).code, only_fault(study).case) == ("no_label", study.id(1))


def test_a_time_series_is_reported_unless_its_volumes_are_named_as_channels(small_study: MakeStudy) -> None:
    study = small_study(training=2, test=0)
    for case in (0, 1):
        image = sitk.ReadImage(str(study.image(case)))
        sitk.WriteImage(sitk.JoinSeries([image, image + 1, image * 2]), str(study.image(case)))
    assert [f.code for f in study.faults()] == ["four_dimensional"] * 2
    study.content["modality"] = {"0": "T1", "1": "T2", "2": "FLAIR"}
    assert check_study(read_study(study.write())).channels == 3


def test_a_long_time_series_is_reported_and_a_single_time_point_is_not(small_study: MakeStudy) -> None:
    study = small_study(training=2, test=0)
    frames = [sitk.ReadImage(str(study.image(case))) for case in (0, 1)]
    sitk.WriteImage(sitk.JoinSeries(frames[:1]), str(study.image(0)))
    assert study.faults() == []
    sitk.WriteImage(sitk.JoinSeries([frames[1]] * 20), str(study.image(1)))
    assert (only_fault(study).code, only_fault(study).case) == ("four_dimensional", study.id(1))


def test_channels_on_different_grids_are_reported(small_study: MakeStudy) -> None:
    study = small_study(training=2, test=0)
    study.training[0]["image"] = [study.training[0]["image"], study.training[1]["image"]]
    study.training.pop(1)
    assert only_fault(study).code == "channel_geometry"


@pytest.mark.parametrize(
    ("labels", "code", "words"),
    [
        (None, "label_table_missing", "dataset.json"),
        ({}, "label_table_missing", "dataset.json"),
        ({"0": "background", "1": "same", "2": "same"}, "bad_label_table", "same name 'same'"),
        ({"background": 0, "a": 1, "b": 1, "c": 2}, "bad_label_table", "'a' and 'b'"),
        ({"0": "background", "1": "", "2": "b"}, "bad_label_table", "value 1 has no name"),
        ({"background": 0, "both": [1, 2], "a": 1, "b": 2}, "bad_label_table", "'both'"),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, "bad_label_table", "ignore"),
        ({"0": "background", "one": "a", "1": "b", "2": "c"}, "bad_label_table", "'one'"),
        ({"1": "background", "2": "b"}, "bad_label_table", "Value 0 is the background"),
        ({"1": {"name": "a", "color": [1, 2]}, "2": "b"}, "bad_label_table", "color of 'a'"),
    ],
)
def test_a_missing_or_ambiguous_label_table_is_reported(small_study: MakeStudy, labels, code: str, words: str) -> None:
    study = small_study()
    study.content["labels"] = labels
    fault = only_fault(study)
    assert (fault.code, fault.case) == (code, "study") and words in fault.rule


@pytest.mark.parametrize("entry", [7, {}, {"image": []}, {"image": 3}, {"image": "a.png", "label": ["b", "c"]}])
def test_an_entry_that_names_no_image_is_reported_with_its_place(small_study: MakeStudy, entry) -> None:
    study = small_study()
    study.training.append(entry)
    assert (only_fault(study).code, only_fault(study).case) == ("bad_entry", "training[3]")


def test_a_folder_without_a_study_and_a_wrong_path_are_reported(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputFaults) as caught:
            read_study(path)
        assert [f.code for f in caught.value.faults] == ["no_study"]


def test_a_full_disk_is_reported_before_the_run_folder_exists(tmp_path: Path) -> None:
    out = tmp_path / "new" / "run"
    (fault,) = check_disk(out, needed_mb=10**9)
    assert fault.code == "no_disk" and "1000000000 MB" in fault.rule
    assert check_disk(out, needed_mb=0.001) == [] and not out.parent.exists()


def test_scans_without_labels_are_checked_like_the_labelled_ones(small_study: MakeStudy) -> None:
    study = small_study(training=2, test=5)
    paths = [study.folder / case["image"] for case in study.test]
    study.content["unlabeled"], study.content["test"] = [str(path) for path in paths], []
    nan, constant, coloured, damaged, sound = (path.name.split(".")[0] for path in paths)
    change(paths[0], lambda a: np.where(a == a.max(), np.nan, a.astype(np.float32)))
    change(paths[1], np.zeros_like)
    study.content["unlabeled"][2] = {"image": [str(paths[2])] * 2, "id": coloured}
    cut_off(paths[3])
    found = {(f.code, f.case) for f in study.faults()}
    wanted = {("nan_voxels", nan), ("constant_image", constant), ("channel_count", coloured), ("corrupt_file", damaged)}
    assert found == wanted, f"and none of {sound}"


def test_all_faults_come_at_once_in_the_order_of_the_study(small_study: MakeStudy, tmp_path: Path) -> None:
    study = small_study()
    study.image(0).unlink()
    cut_off(study.image(1))
    change(study.label(2), np.zeros_like)
    study.test[1]["id"] = study.id(2)
    study.training.append("images/x.nii.gz")  # no mask: a fault of form, found together with those of the files
    codes = [f.code for f in study.faults()]
    assert codes == ["no_label", "missing_file", "corrupt_file", "empty_label", "missing_file", "duplicate_case"]
    study.training.pop()
    with pytest.raises(InputFaults) as caught:
        check_study(read_study(study.write()), out=tmp_path / "run", needed_mb=10**9)
    assert [f.code for f in caught.value.faults] == [*codes[1:4], "duplicate_case", "no_disk"]
