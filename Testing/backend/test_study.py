"""A study is read the same from every form it may come in, and drawn from as the data's README says."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from genseg.errors import InputFaults
from genseg.imageio import read_label
from genseg.labels import LabelTable
from genseg.study import Study, check_study, draw, read_study

SETS = {"hippocampus": 3, "acdc": 3, "isic2017": 2, "kvasir": 2, "shenzhen": 2, "drive": 2, "dsb2018": 2, "busi": 2}


@pytest.mark.parametrize("name", SETS)
def test_real_data_sets_are_read_without_a_fault(data: Path, name: str) -> None:
    listed = json.loads((data / name / "dataset.json").read_text())
    study = read_study(data / name / "dataset.json")
    assert [len(cases) for cases in (study.training, study.test, study.unlabeled)] == [
        len(listed.get(split, [])) for split in ("training", "test", "unlabeled")
    ]
    assert study.reference == listed["reference"]
    small = study.model_copy(update={"training": study.training[:4], "test": study.test[:3], "unlabeled": []})
    facts = check_study(small)
    assert facts.dims == SETS[name] and facts.physical == (SETS[name] == 3)
    assert facts.channels == (3 if name in ("isic2017", "kvasir", "drive", "dsb2018") else 1)
    assert [case.id for case in facts.cases] == [case.id for case in small.training + small.test]


def test_the_study_of_the_readme_can_be_trained_and_evaluated(data: Path, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    content = json.loads(
        next(part[5:] for part in readme.split("```") if part.startswith("json") and "training" in part)
    )
    named = {path for case in [*content["training"], *content["test"]] for path in case.values()}
    named |= set(content["unlabeled"])
    scans = sorted(data.glob("hippocampus/images/*.nii.gz"))
    for path in named:
        number = int(path.split("scan")[1][:2])
        source = scans[number] if path.startswith("images") else data / "hippocampus/labels" / scans[number].name
        (tmp_path / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, tmp_path / path)
        assert Path(path).name in readme.split("```json")[0].rsplit("my-study/", 1)[1], "the folder above shows it"
    (tmp_path / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    study = read_study(tmp_path)
    assert len(check_study(study).cases) == len(study.training) + len(study.unlabeled) + len(study.test)
    assert "genseg evaluate my-run my-study" in readme
    assert any(case.label for case in study.test), "evaluate needs a test scan with a label"


def test_five_hundred_small_photos_are_checked_within_seconds(data: Path) -> None:
    study = read_study(data / "isic2017")
    start = time.process_time()
    facts = check_study(study)
    assert len(facts.cases) == 560
    assert time.process_time() - start < 6  # seconds of processor time; well under 3 s by the clock on two cores


def test_case_ids_are_file_names_and_paths_absolute(small_study) -> None:
    study = read_study(small_study().write())
    assert all(path.is_absolute() and path.exists() for case in study.training for path in (*case.images, case.label))
    assert study.training[0].id == study.training[0].images[0].name.removesuffix(".nii.gz")


def test_ids_groups_colours_and_terminology_are_kept_and_saved(small_study, tmp_path: Path) -> None:
    study = small_study()
    study.training[0] |= {"id": "Ärztin 1", "group": 17}
    study.content["labels"] = {
        "0": "background",
        "1": {"name": "vorne", "color": [255, 0, 51], "terminology": "A~SCT^1^x"},
        "2": {"name": "hinten", "color": [0.0, 0.5, 1.0]},
    }
    read = read_study(study.write())
    assert (read.training[0].id, read.training[0].group) == ("Ärztin 1", "17")
    first, second = read.labels.structures
    assert (first.name, first.color, first.terminology) == ("vorne", (255, 0, 51), "A~SCT^1^x")
    assert second.color == (0, 128, 255)
    read.save(tmp_path / "study.json")
    assert Study.load(tmp_path / "study.json") == read


def test_test_entries_may_be_plain_strings_and_images_lists(small_study) -> None:
    study = small_study()
    study.content["test"] = [study.test[0]["image"], {"image": [study.test[1]["image"]]}]
    read = read_study(study.write())
    assert [case.label for case in read.test] == [None, None] and check_study(read).channels == 1


def test_paths_written_on_windows_are_understood(small_study) -> None:
    study = small_study()
    study.training[0]["image"] = study.training[0]["image"].removeprefix("./").replace("/", "\\")
    assert study.faults() == []


def test_a_table_that_names_only_the_background_is_filled_from_the_masks(data: Path) -> None:
    study = read_study(data / "torso_ct_mr")
    assert len(study.labels) > 60 and study.labels.labels[5].name == f"label {study.labels.labels[5].value}"
    for case in study.test:
        indices, _ = read_label(case.label, study.labels)
        assert indices.max() < len(study.labels)


def nnunet_folder(study, folder: Path, channels: int = 2) -> Path:
    """The same cases as an nnU-Net v2 raw folder, the image repeated for each channel."""
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / name).mkdir(parents=True)
    for split, cases in (("Tr", study.training), ("Ts", study.test)):
        for case in cases:
            stem = Path(case["image"]).name.removesuffix(".nii.gz")
            shutil.copyfile(study.folder / case["label"], folder / f"labels{split}" / f"{stem}.nii.gz")
            for channel in range(channels):
                image = sitk.ReadImage(str(study.folder / case["image"])) + channel
                sitk.WriteImage(image, str(folder / f"images{split}" / f"{stem}_{channel:04d}.nii.gz"))
    content = {
        "channel_names": {str(i): f"T{i + 1}" for i in range(channels)},
        "labels": {"background": 0, "anterior": 1, "posterior": 2},
        "numTraining": len(study.training),
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_an_nnunet_raw_folder_is_read_with_its_channels(small_study, tmp_path: Path) -> None:
    folder = nnunet_folder(small_study(), tmp_path / "Dataset004_Größe")
    (folder / "labelsTs" / sorted(p.name for p in (folder / "labelsTs").iterdir())[0]).unlink()
    study = read_study(folder)
    assert study.channels == ["T1", "T2"] and [label.name for label in study.labels.structures] == [
        "anterior",
        "posterior",
    ]
    assert [case.id for case in study.training] == sorted(case.id for case in study.training)
    assert [case.label is None for case in study.test] == [True, False]
    assert all(len(case.images) == 2 for case in study.training)
    assert check_study(study).channels == 2


def test_faults_of_an_nnunet_folder_name_the_file(small_study, tmp_path: Path) -> None:
    folder = nnunet_folder(small_study(), tmp_path / "raw", channels=1)
    first = sorted((folder / "imagesTr").iterdir())[0]
    first.rename(folder / "imagesTr" / "scan.nii.gz")
    with pytest.raises(InputFaults) as caught:
        read_study(folder)
    mask = first.name.replace("_0000", "")
    assert [(f.code, f.case) for f in caught.value.faults] == [
        ("bad_file_name", "scan.nii.gz"),
        ("label_without_image", mask),
    ]


@pytest.mark.parametrize(("masks", "ending"), [("labels", ""), ("Masks", "_mask"), ("masks", "_segmentation")])
def test_a_pair_of_folders_is_matched_by_name(small_study, tmp_path: Path, masks: str, ending: str) -> None:
    source = small_study("isic2017", training=3, test=1)
    folder = tmp_path / "pair"
    for name in ("Images", masks):
        (folder / name).mkdir(parents=True)
    for case in source.training + source.test:
        shutil.copy(source.folder / case["image"], folder / "Images")
    for case in source.training:
        path = source.folder / case["label"]
        shutil.copyfile(path, folder / masks / f"{path.stem}{ending}.png")
    (folder / "Images" / "Thumbs.db").write_bytes(b"x")
    study = read_study(folder)
    assert [case.id for case in study.training] == sorted(source.id(i) for i in range(3))
    assert [case.id for case in study.unlabeled] == [Path(source.test[0]["image"]).stem]
    assert [(label.value, label.name) for label in study.labels.labels] == [(0, "background"), (255, "label 255")]
    assert check_study(study).dims == 2


def test_faults_of_a_pair_of_folders_are_reported(small_study, tmp_path: Path) -> None:
    source = small_study("isic2017", training=2, test=0)
    folder = source.folder
    shutil.copyfile(source.label(0), source.label(0).with_name("nobody.png"))
    shutil.copyfile(source.label(0), source.label(0).with_name(f"{source.id(0)}_mask.png"))
    with pytest.raises(InputFaults) as caught:
        read_study(folder)
    assert {f.code for f in caught.value.faults} == {"label_without_image", "duplicate_label"}


def test_a_pair_of_folders_with_slicer_segmentations_takes_their_names(small_study) -> None:
    source = small_study(training=2, test=0)
    expected = {}
    for i, numbers in enumerate(({1: "anterior", 2: "posterior"}, {2: "anterior", 1: "posterior"})):
        mask = sitk.ReadImage(str(source.label(i)))
        expected[source.id(i)] = read_label(source.label(i), LabelTable.from_names({1: "anterior", 2: "posterior"}))[0]
        source.label(i).unlink()
        mask = mask if i == 0 else sitk.ChangeLabel(mask, {1: 2, 2: 1})  # numbered the other way, the names say so
        for k, (value, name) in enumerate(numbers.items()):
            mask.SetMetaData(f"Segment{k}_Name", name)
            mask.SetMetaData(f"Segment{k}_LabelValue", str(value))
        sitk.WriteImage(mask, str(source.folder / "labels" / f"{source.id(i)}.seg.nrrd"))
    study = read_study(source.folder)
    assert sorted(label.name for label in study.labels.structures) == ["anterior", "posterior"]
    order = [label.name for label in study.labels.structures]
    for case in study.training:
        indices = read_label(case.label, study.labels)[0]
        for k, name in enumerate(("anterior", "posterior")):
            np.testing.assert_array_equal(indices == order.index(name) + 1, expected[case.id] == k + 1)


def test_seed_zero_draws_the_first_and_another_seed_a_fixed_choice(data: Path) -> None:
    study = read_study(data / "hippocampus")
    assert [c.id for c in draw(study, 5, None, 0).training] == [c.id for c in study.training[:5]]
    drawn = draw(study, 5, 10, 3)
    assert drawn == draw(study, 5, 10, 3) and drawn.training != draw(study, 5, 10, 4).training
    assert [c.id for c in draw(study, 3, None, 3).training] == [c.id for c in drawn.training[:3]]  # nested
    assert len(drawn.unlabeled) == 10 and all(case.label is None for case in drawn.unlabeled)
    assert not {c.id for c in drawn.unlabeled} & {c.id for c in drawn.training}
    assert drawn.test == study.test and draw(study, None, None, 0) == study


def test_unlabelled_scans_are_the_spare_training_scans_then_the_listed_ones(data: Path) -> None:
    study = read_study(data / "kvasir")
    drawn = draw(study, 5, 57, 0)
    assert [c.id for c in drawn.unlabeled] == [c.id for c in study.training[5:] + study.unlabeled[:2]]
    assert draw(study, 5, None, 0).unlabeled == study.unlabeled


def test_asking_for_more_scans_than_there_are_is_a_fault(data: Path) -> None:
    with pytest.raises(InputFaults) as caught:
        draw(read_study(data / "acdc"), 17, 1, 0)
    assert [f.code for f in caught.value.faults] == ["too_few_labelled", "too_few_unlabelled"]


def test_a_structure_no_training_mask_shows_is_noted(small_study) -> None:
    study = small_study()
    study.content["labels"]["9"] = "amygdala"
    facts = check_study(read_study(study.write()))
    assert len(facts.notes) == 1 and "amygdala" in facts.notes[0]
