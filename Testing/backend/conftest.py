"""What the tests share: the real scans, read in place, and small studies copied from them to be damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real_data import data  # noqa: F401

from genseg.errors import Fault, InputFaults
from genseg.study import check_study, read_study


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take minutes begin first: at the end one processor would wait for them."""
    items.sort(key=lambda item: item.path.name not in ("test_kill.py", "test_end_to_end.py"))


class SmallStudy:
    """A copy of a few real cases: change `content` or the files, then `faults()` or `write()`."""

    def __init__(self, source: Path, folder: Path, training: int, test: int):
        self.folder = folder
        content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        self.content: dict[str, Any] = {"name": content["name"], "labels": content["labels"], "unlabeled": []}
        self.content["training"] = content["training"][:training]
        self.content["test"] = content["test"][:test]
        for case in self.content["training"] + self.content["test"]:
            for key in ("image", "label"):
                target = folder / case[key]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / case[key], target)

    @property
    def training(self) -> list[dict[str, Any]]:
        return self.content["training"]

    @property
    def test(self) -> list[dict[str, Any]]:
        return self.content["test"]

    def image(self, case: int = 0) -> Path:
        return self.folder / self.training[case]["image"]

    def label(self, case: int = 0) -> Path:
        return self.folder / self.training[case]["label"]

    def id(self, case: int = 0) -> str:
        return self.image(case).name.split(".")[0]

    def write(self) -> Path:
        (self.folder / "dataset.json").write_text(json.dumps(self.content), encoding="utf-8")
        return self.folder

    def faults(self) -> list[Fault]:
        """What reading and checking finds, in the order the user sees; [] for a sound study."""
        try:
            check_study(read_study(self.write()))
        except InputFaults as error:
            return error.faults
        return []


@pytest.fixture
def small_study(data: Path, tmp_path: Path) -> Callable[..., SmallStudy]:  # noqa: F811
    """small_study(name, training=3, test=2): a copy of the first cases of a real data set under tmp_path."""

    def copy(name: str = "hippocampus", training: int = 3, test: int = 2) -> SmallStudy:
        return SmallStudy(data / name, tmp_path / f"{name} größe", training, test)

    return copy
