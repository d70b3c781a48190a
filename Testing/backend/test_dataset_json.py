"""What is wrong with a dataset.json is said, and what it says is not passed over."""

from pathlib import Path

import pytest

from genseg.errors import InputFaults
from genseg.study import read_study


def test_a_key_given_twice_in_the_json_is_reported(small_study) -> None:
    study = small_study()
    text = (study.write() / "dataset.json").read_text()
    (study.folder / "dataset.json").write_text(text.replace('"2": ', '"1": "other", "2": '))
    with pytest.raises(InputFaults) as caught:
        read_study(study.folder)
    assert [f.code for f in caught.value.faults] == ["duplicate_key"]


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_broken_dataset_json_is_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputFaults) as caught:
        read_study(tmp_path)
    assert [f.code for f in caught.value.faults] == ["bad_json"]


def test_unlabelled_is_a_spelling_of_unlabeled(small_study) -> None:
    study = small_study()
    study.content["unlabelled"] = [case["image"] for case in study.content.pop("test")]
    del study.content["unlabeled"]
    assert len(read_study(study.write()).unlabeled) == 2


@pytest.mark.parametrize("key", ["testing", "val", "unlabelled", "Training"])
def test_cases_listed_under_another_key_are_not_passed_over(small_study, key: str) -> None:
    study = small_study()
    study.content[key] = [study.test.pop()["image"]] if key == "unlabelled" else [study.test.pop()]
    (fault,) = study.faults()
    assert fault.code == "unknown_list" and f"'{key}'" in fault.rule and "`test`" in fault.rule


def test_lists_of_anything_but_cases_are_passed_over(small_study) -> None:
    study = small_study()
    study.content |= {"numTraining": 3, "modality": ["MRI"], "authors": ["A. B.", "C. D."], "testing": []}
    study.content["test"] = [case["image"] for case in study.test]  # as in MSD
    assert study.faults() == [] and len(read_study(study.folder).test) == 2
