"""Predictions of a small network on real scans: the files, their grid and values, the index, the events, the faults."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from made_run import make_run
from method_rig import built, prepared
from real_data import DATA, needs_data

from genseg.errors import InputFaults
from genseg.evaluate import evaluate_run
from genseg.events import Error, EventLog, Prediction, Progress
from genseg.finish import _predict
from genseg.imageio import read_label, read_scan
from genseg.inference import Predictor
from genseg.outputs import Output
from genseg.predict import collect_images, predict_cases
from genseg.runfolder import RunFolder, read_json
from genseg.study import Case

pytestmark = needs_data
SCANS = ["hippocampus_334", "hippocampus_386"]


@pytest.fixture(scope="module")
def hippocampus(tmp_path_factory):
    run, _ = make_run(tmp_path_factory.mktemp("run"), "hippocampus")
    return run, Predictor.load(run.path, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    run, _ = make_run(tmp_path_factory.mktemp("photos"), "isic2017")
    return Predictor.load(run.path, "cpu")


def case(name: str, path: Path | None = None) -> Case:
    return Case(id=name, images=[path or DATA / f"hippocampus/images/{name}.nii.gz"])


def events_of(*arguments, **options) -> tuple[list, list]:
    events: list = []
    predictor, cases, out, *rest = arguments
    faults = predict_cases(predictor, cases, out, EventLog([events.append]), *rest, **options)
    return events, faults


def test_a_label_map_lies_on_the_very_grid_of_its_image_and_holds_the_predicted_labels(tmp_path, hippocampus):
    _, predictor = hippocampus
    image = sitk.DICOMOrient(sitk.ReadImage(str(case(SCANS[0]).images[0])), "PIR")
    image.SetOrigin((-71.5, 33.25, 812.125))
    turned = tmp_path / "größer 1.nrrd"
    sitk.WriteImage(image, str(turned))
    out = tmp_path / "Ergebnis 1"
    _, faults = events_of(predictor, [case("größer 1", turned)], out, formats=["seg.nrrd", ".nii.gz", "nrrd", "mha"])
    assert not faults
    expected = predictor.segment(read_scan([turned])).labels
    assert len(np.unique(expected)) == 3
    for suffix in (".seg.nrrd", ".nii.gz", ".nrrd", ".mha"):
        written = sitk.ReadImage(str(out / f"größer 1{suffix}"))
        exact = suffix != ".nii.gz"  # NIfTI keeps its header in single precision
        for get in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            ours, theirs = getattr(written, get)(), getattr(image, get)()
            assert ours == (theirs if exact else pytest.approx(theirs, abs=1e-4)), (suffix, get)
        assert np.array_equal(read_label(out / f"größer 1{suffix}", predictor.table)[0], expected)


def test_volumes_are_counted_voxels_times_their_size_and_stand_in_event_and_index(tmp_path, hippocampus):
    _, predictor = hippocampus
    image = sitk.ReadImage(str(case(SCANS[0]).images[0]))
    image.SetSpacing((2.0, 1.0, 0.5))
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(image, str(path))
    events, _ = events_of(predictor, [case("a", path)], tmp_path / "out", "test", step=7)
    labels, _ = read_label(tmp_path / "out/a.seg.nrrd", predictor.table)
    expected = {"hippocampus anterior": (labels == 1).sum() / 1000, "hippocampus posterior": (labels == 2).sum() / 1000}
    (prediction,) = [event for event in events if isinstance(event, Prediction)]
    (entry,) = read_json(tmp_path / "out/index.json")["cases"]
    assert prediction.volumes_ml == pytest.approx(expected)
    assert entry["volumes_ml"] == pytest.approx(expected)
    assert (entry["case"], entry["path"], entry["images"], entry["split"]) == ("a", "a.seg.nrrd", [str(path)], "test")
    assert (prediction.step, entry["step"]) == (7, 7)
    assert 0 < prediction.uncertainty == entry["uncertainty"] < 1


def test_a_case_that_cannot_be_read_is_reported_with_rule_and_remedy_and_the_others_go_on(tmp_path, hippocampus):
    _, predictor = hippocampus
    cut = tmp_path / "cut.nii.gz"
    cut.write_bytes(case(SCANS[0]).images[0].read_bytes()[:2000])
    cases = [case("absent", tmp_path / "absent.nii.gz"), case("cut", cut), case(SCANS[1])]
    events, faults = events_of(predictor, cases, tmp_path / "out")
    assert [fault.case for fault in faults] == ["absent", "cut"]
    assert all(fault.code and fault.rule and fault.remedy for fault in faults)
    assert [(e.case, e.code) for e in events if isinstance(e, Error)] == [(f.case, f.code) for f in faults]
    assert [event.case for event in events if isinstance(event, Prediction)] == [SCANS[1]]
    assert [event.step for event in events if isinstance(event, Progress)] == [1, 2, 3]
    assert [entry["case"] for entry in read_json(tmp_path / "out/index.json")["cases"]] == [SCANS[1]]


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory", "CUDA out of memory."])
def test_a_scan_too_large_for_the_memory_is_a_fault_of_its_own_and_its_older_prediction_is_forgotten(
    tmp_path, hippocampus, monkeypatch, said
):
    _, predictor = hippocampus
    predict_cases(predictor, [case(SCANS[0])], tmp_path, EventLog())
    segment = Predictor.segment

    def short_of_memory(self, scan, tta=True):
        if scan.array.shape[1:] == read_scan(case(SCANS[0]).images).array.shape[1:]:
            raise RuntimeError(said)
        return segment(self, scan, tta)

    monkeypatch.setattr(Predictor, "segment", short_of_memory)
    faults = predict_cases(predictor, [case(name) for name in SCANS], tmp_path, EventLog())
    assert [(fault.code, fault.case) for fault in faults] == [("out_of_memory", SCANS[0])]
    assert [entry["case"] for entry in read_json(tmp_path / "index.json")["cases"]] == [SCANS[1]]


def test_a_second_prediction_replaces_the_entry_of_its_case_and_keeps_the_others(tmp_path, hippocampus):
    _, predictor = hippocampus
    events_of(predictor, [case(name) for name in SCANS], tmp_path, "unlabeled", step=1)
    events_of(predictor, [case(SCANS[0])], tmp_path, "unlabeled", step=2, tta=False)
    entries = read_json(tmp_path / "index.json")["cases"]
    assert [(entry["case"], entry["step"]) for entry in entries] == [(SCANS[0], 2), (SCANS[1], 1)]


def test_paths_in_events_are_relative_to_the_run_folder(hippocampus):
    run, predictor = hippocampus
    events, _ = events_of(predictor, [case(SCANS[0])], run.predictions)
    (prediction,) = [event for event in events if isinstance(event, Prediction)]
    assert prediction.path == f"predictions/{SCANS[0]}.seg.nrrd"
    assert (run.path / prediction.path).exists()


def test_a_photo_becomes_a_png_of_its_size_with_the_values_of_the_study_and_no_volume(tmp_path, photos):
    photo = next((DATA / "isic2017/images").iterdir())
    events, faults = events_of(photos, [case("lesion", photo)], tmp_path)
    written = sitk.ReadImage(str(tmp_path / "lesion.png"))
    assert not faults
    assert written.GetSize() == sitk.ReadImage(str(photo)).GetSize()
    assert set(np.unique(sitk.GetArrayFromImage(written))) == {0, 255}
    (prediction,) = [event for event in events if isinstance(event, Prediction)]
    assert list(prediction.volumes_ml.values()) == [None]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers_are_refused(tmp_path, hippocampus, value):
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(case(SCANS[0]).images[0]))).astype(np.float32)
    array[3, 4, 5] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "bad.nrrd"))
    _, faults = events_of(hippocampus[1], [case("bad", tmp_path / "bad.nrrd")], tmp_path / "out")
    assert len(faults) == 1
    assert not list((tmp_path / "out").glob("bad*"))


def test_images_of_another_kind_than_in_training_are_refused_each_for_its_reason(tmp_path, hippocampus, photos):
    photo, volume = next((DATA / "isic2017/images").iterdir()), case(SCANS[0]).images[0]
    grey = tmp_path / "grey.png"
    sitk.WriteImage(sitk.VectorIndexSelectionCast(sitk.ReadImage(str(photo)), 0), str(grey))
    shutil.copy(volume, tmp_path / "second.nii.gz")
    two = Case(id="two", images=[volume, tmp_path / "second.nii.gz"])
    rgb_volume = tmp_path / "rgb.nrrd"
    sitk.WriteImage(sitk.Compose([sitk.ReadImage(str(volume))] * 3), str(rgb_volume))
    _, of_volumes = events_of(hippocampus[1], [two, case("grey", grey)], tmp_path / "out")
    _, of_photos = events_of(photos, [case("grey", grey), case("rgb", rgb_volume)], tmp_path / "out")
    assert [(fault.case, fault.code) for fault in of_volumes] == [("two", "channels"), ("grey", "dimensions")]
    assert [(fault.case, fault.code) for fault in of_photos] == [("grey", "channels"), ("rgb", "dimensions")]


def test_formats_that_cannot_hold_the_result_are_refused(tmp_path, hippocampus):
    with pytest.raises(ValueError, match="jpg"):
        predict_cases(hippocampus[1], [case(SCANS[0])], tmp_path, EventLog(), formats=["jpg"])
    _, faults = events_of(hippocampus[1], [case(SCANS[0])], tmp_path / "out", formats=["png"])
    assert [(fault.code, bool(fault.remedy)) for fault in faults] == [("format", True)]


def test_files_and_folders_are_collected_in_order_with_ids_from_their_names(tmp_path):
    folder = tmp_path / "Bilder für später"
    folder.mkdir()
    for name in ("b.nii.gz", "a.NII.GZ", "c.mha", "a.seg.nrrd", "notes.txt", ".hidden.nrrd"):
        (folder / name).touch()
    single = tmp_path / "z.png"
    single.touch()
    cases = collect_images([folder, single])
    assert [found.id for found in cases] == ["a", "b", "c", "z"]
    assert all(path.is_absolute() for found in cases for path in found.images)


def test_a_dicom_series_is_one_case_and_is_read_whole(tmp_path, hippocampus):
    series = dicom_series(tmp_path / "series 7", case(SCANS[0]).images[0])
    (found,) = collect_images([series])
    assert (found.id, found.images) == ("series 7", [series])
    _, faults = events_of(hippocampus[1], [found], tmp_path / "out")
    assert not faults
    assert sitk.ReadImage(str(tmp_path / "out/series 7.seg.nrrd")).GetSize() == volume_size(SCANS[0])


def test_a_folder_of_series_gives_a_case_for_each_beside_its_images(tmp_path):
    for name in ("patient 1", "patient 2"):
        dicom_series(tmp_path / name, case(SCANS[0]).images[0])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "old.nii.gz").touch()
    (tmp_path / "scan.nii.gz").touch()
    assert [found.id for found in collect_images([tmp_path])] == ["patient 1", "patient 2", "scan"]


def volume_size(name: str) -> tuple[int, ...]:
    return sitk.ReadImage(str(case(name).images[0])).GetSize()


def dicom_series(folder: Path, volume: Path) -> Path:
    """Write a volume as DICOM files without suffix, as scanners name them."""
    folder.mkdir()
    image = sitk.Cast(sitk.ReadImage(str(volume)), sitk.sitkInt16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(image.GetDepth()):
        part = image[:, :, z]
        position = "\\".join(str(v) for v in image.TransformIndexToPhysicalPoint((0, 0, z)))
        tags = {"0008|0060": "MR", "0020|000e": "1.2.826.1.7", "0020|000d": "1.2.826.1", "0020|0032": position}
        tags |= {"0020|0013": str(z), "0008|0018": f"1.2.826.1.7.{z}", "0020|0037": "1\\0\\0\\0\\1\\0"}
        for key, value in tags.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(part)
        (folder / f"{z:03d}.dcm").rename(folder / f"I{z:03d}")
    return folder


def test_numbered_channels_are_one_case_for_a_model_with_as_many_channels_only(tmp_path):
    for name in ("x_0000.nii.gz", "x_0001.nii.gz", "y_0000.nii.gz", "photo_0000.png", "photo_0001.png"):
        (tmp_path / name).touch()
    ids = ["photo_0000", "photo_0001", "x_0000", "x_0001", "y_0000"]
    assert [found.id for found in collect_images([tmp_path])] == ids
    cases = collect_images([tmp_path], channels=2)
    assert [found.id for found in cases] == ["photo_0000", "photo_0001", "x", "y_0000"]
    assert [path.name for path in cases[2].images] == ["x_0000.nii.gz", "x_0001.nii.gz"]


def test_every_wrong_path_and_every_name_given_twice_is_reported_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.png").touch()
    with pytest.raises(InputFaults) as caught:
        collect_images([tmp_path / name for name in ("absent.png", "empty", "one", "two")])
    assert [fault.code for fault in caught.value.faults] == ["missing_file", "no_image", "duplicate_case"]
    assert all(fault.rule and fault.remedy for fault in caught.value.faults)


def study_of(folder: Path, labels: dict[str, str], references: dict[str, Path]) -> Path:
    test = [{"image": str(case(name).images[0]), "label": str(path)} for name, path in references.items()]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": test, "test": test}))
    return folder


def test_a_run_scores_one_against_its_own_predictions_also_where_the_files_number_the_labels_otherwise(
    tmp_path, hippocampus
):
    run, predictor = hippocampus
    events_of(predictor, [case(name) for name in SCANS], tmp_path / "out", formats=["nii.gz"])
    references = {}
    for name in SCANS:
        image = sitk.ReadImage(str(tmp_path / f"out/{name}.nii.gz"))
        references[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(sitk.ChangeLabel(image, {1: 40, 2: 7}), str(references[name]))
    names = {"0": "background", "40": "hippocampus anterior", "7": "hippocampus posterior"}
    result = evaluate_run(run.path, study_of(tmp_path, names, references), "test", "cpu", EventLog())
    assert result["mean"] == pytest.approx({"dice": 1, "iou": 1, "hd95_mm": 0, "nsd": 1})
    assert [scored["case"] for scored in result["cases"]] == SCANS
    assert result["failed"] == []
    json.dumps(result, allow_nan=False)


def test_a_study_with_other_structures_or_without_references_is_refused(tmp_path, hippocampus):
    run, _ = hippocampus
    references = {name: DATA / f"hippocampus/labels/{name}.nii.gz" for name in SCANS}
    study = study_of(tmp_path, {"0": "background", "1": "liver", "2": "spleen"}, references)
    with pytest.raises(InputFaults) as caught:
        evaluate_run(run.path, study, "test", "cpu", EventLog())
    assert [fault.code for fault in caught.value.faults] == ["label_table_mismatch"]
    content = json.loads((study / "dataset.json").read_text())
    content["test"] = [entry["image"] for entry in content["test"]]
    (study / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputFaults) as caught:
        evaluate_run(run.path, study, "test", "cpu", EventLog())
    assert [fault.code for fault in caught.value.faults] == ["no_reference"]


def test_looks_in_the_middle_of_a_run_go_round_all_scans(data, tmp_path):
    """What a look has no time for comes first in the next one, test scans as well as scans without labels."""
    state, run = built(prepared(data, "hippocampus", 1, 3)), RunFolder(tmp_path / "run")
    study = state.prepared.study
    study.test = study.test[:2]
    looks: list[list[str]] = []
    for step in (1, 2, 3):
        state.counters.step, seen = step, []
        log = EventLog([lambda event, seen=seen: seen.append(event.case) if isinstance(event, Prediction) else None])
        _predict(Output(run, state, log), lambda seen=seen: len(seen) == 2, tta=False)
        looks.append(seen)
    every = [scan.id for scan in (*study.unlabeled, *study.test)]
    assert looks == [every[:2], every[2:4], [every[4], every[0]]]
