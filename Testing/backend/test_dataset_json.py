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
