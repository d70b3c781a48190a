"""The run folder: the contract between the backend and whoever reads its results, without torch.

Every file is written under a temporary name and then renamed, so a reader never sees half a file.
"""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from genseg.errors import DamagedFile, Fault, InputFaults, RunFailed

Model = TypeVar("Model", bound=BaseModel)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; rename it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def building_folder(path: Path) -> Iterator[Path]:
    """Give a temporary name for a folder; when the block succeeds, what it made there is renamed to `path`.

    By then `path` must be new or empty. Where the block makes no folder, nothing changes.
    """
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        if temporary.exists():
            if path.is_dir():
                path.rmdir()  # empty, or this refuses; Windows renames onto no folder at all
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises DamagedFile where the file is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(path, error) from error


def read_model(kind: type[Model], path: Path) -> Model:
    """Read what a pydantic model of this kind was written to. Raises DamagedFile where the content does not fit."""
    content = read_json(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DamagedFile(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def need_free(out: Path) -> None:
    """A folder for results must be new or empty: nothing of the user's is overwritten or mixed."""
    remedy = "Give another folder with --out, or move this one away first."
    if out.is_dir() and any(out.iterdir()):
        raise InputFaults([Fault("out_in_use", str(out), "The folder for the results is not empty.", remedy)])
    if out.exists() and not out.is_dir():
        raise InputFaults([Fault("out_in_use", str(out), "A file has the name of the folder for the results.", remedy)])


@contextmanager
def building(run: Path) -> Iterator["RunFolder"]:
    """Give a run folder under a temporary name; rename it to `run`, which is new or empty, when the block succeeds."""
    with building_folder(run) as temporary:
        yield RunFolder(temporary)


class RunFolder:
    """Names of everything in a run folder (see docs/run-folder.md). Creates nothing by itself."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.plan = self.path / "plan.json"
        self.study = self.path / "study.json"  # the study as it was read: cases, label table
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.safetensors"  # everything needed to go on
        self.best = self.checkpoints / "best.safetensors"  # the usable model: EMA weights of the segmenter
        self.synthetic = self.path / "synthetic"
        self.synthetic_index = self.synthetic / "index.json"
        self.predictions = self.path / "predictions"
        self.predictions_index = self.predictions / "index.json"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model"
        self.generator = self.path / "generator"  # for other programs, where the generator is made for that
        self.report = self.path / "report.html"
        self.card = self.path / "card.json"  # of a starting model: what it was trained on
        self.origin = self.path / "origin.json"  # what the model from which the run began was trained on
        self.together = self.path / "together.json"  # of several studies trained together: all of them
        self.done = self.path / "done"
        self.stop = self.path / "stop"
        self.of_studies = self.path / "studies"  # a folder for each, where there are several
        self.order = self.of_studies / "order.json"  # their names
        self.excluded = self.path / "excluded.json"  # synthetic pairs that the user does not want
        self.exclusions = self.checkpoints / "exclusions.json"  # from which step on which of them are left out

    def studies(self, names: Sequence[str]) -> list["RunFolder"]:
        """The folder of each study: the run itself where it has one, else studies/NAME, each like a run's."""
        return [self] if len(names) == 1 else [RunFolder(self.of_studies / name) for name in names]

    @property
    def several(self) -> bool:
        """Whether this is a run of several studies, whose models lie in their own folders."""
        return self.of_studies.is_dir()

    def need_one_study(self) -> None:
        """Raises RunFailed for a run of several studies: which of its models is meant?"""
        if self.several:
            own = ", ".join(str(study.path) for study in self.saved_studies())
            message = f"{self.path} was trained on several studies, each with a model for its own structures."
            raise RunFailed("several_studies", message, f"Give the folder of one of them: {own}.")

    def saved_studies(self) -> list["RunFolder"]:
        """The same for a run that exists, in the order of training. Raises DamagedFile where the order is lost."""
        if not self.several:
            return [self]
        if not self.order.exists():
            raise DamagedFile(self.order, "it is missing")
        return self.studies(read_json(self.order))

    def mark_done(self, step: int) -> None:
        """The last thing that a finished run writes."""
        with replacing(self.done) as temporary:
            temporary.write_text(f"step {step}\n", encoding="utf-8")

    def found_model(self) -> str | None:
        """What a run that ends tells its user: the usable model, of several studies the folder of their models."""
        return None if not self.best.exists() else str(self.of_studies if self.several else self.best)

    def __fspath__(self) -> str:
        return str(self.path)
