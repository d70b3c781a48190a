"""Folders of predictions that a run's model has written for more scans, and which run that was."""

import os
import shutil
from pathlib import Path

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import readJson, writeJson
from GenSegSlicerLib.Translate import _

SEGMENTED = "segmented"  # beside the runs: a folder for each time that more scans were segmented
_NOTE = ".model.json"  # beside each, behind its name, since `genseg predict` wants the folder itself empty
_DESKTOP = {"index.json", ".DS_Store", "Thumbs.db", "desktop.ini"}


def isBatch(folder: Path) -> bool:
    """Whether a folder holds predictions alone, as `genseg predict` writes them, and is no run."""
    folder = Path(folder)
    return (folder / "index.json").exists() and not (folder / "predictions" / "index.json").exists()


class Batches:
    """The batches beside one run. Which model made them is kept in a note beside each: FOLDER.model.json."""

    def __init__(self, runFolder: Path):
        self.runFolder = Path(runFolder)
        self.folder = self.runFolder.parent / SEGMENTED

    def remember(self, batch: Path) -> None:
        """Note that this run's model is about to fill `batch`. Raises OSError."""
        note = _noteOf(batch)
        note.parent.mkdir(parents=True, exist_ok=True)
        writeJson(note, {"model": Path(os.path.abspath(self.runFolder)).as_posix()})

    @staticmethod
    def inFolder(folder: Path) -> dict[Path, list[Path]]:
        """{run: batches that hold masks, the newest first} of a folder for results."""
        found: dict[Path, list[Path]] = {}
        for batch in _noted(Path(folder) / SEGMENTED):
            if isBatch(batch):
                found.setdefault(Path(folder) / _nameOfModel(batch), []).append(batch)
        return found

    def _own(self) -> list[Path]:
        return [batch for batch in _noted(self.folder) if _nameOfModel(batch) == self.runFolder.name]

    def checkRemovable(self) -> None:
        """Raises StudyFaults where a batch holds files that segmenting did not write."""
        _checkForeign(self._own())

    def remove(self) -> None:
        """Delete the batches with their notes: without the run nobody could read their masks."""
        for batch in self._own():
            _delete(batch)

    @staticmethod
    def removeOne(batch: Path) -> None:
        """Delete one batch. Raises StudyFaults where it holds other files; then nothing was deleted."""
        _checkForeign([batch])
        _delete(batch)

    @staticmethod
    def describe(batch: Path) -> str:
        """A batch in a sentence for its user."""
        cases = readJson(Path(batch) / "index.json").get("cases")
        text = _("Masks of {count} more scans, made with the model of {run}.")
        return text.format(count=len(cases) if isinstance(cases, list) else 0, run=_nameOfModel(batch))

    @staticmethod
    def modelOf(batch: Path) -> Path | None:
        """The run whose model made a batch; also where both were moved together. None where it is not known."""
        name, told = _nameOfModel(batch), _model(batch)
        places = [Path(told), Path(batch).parent.parent / name] if told else []
        return next((place for place in places if place.is_dir()), None)

    @staticmethod
    def dropEmpty(batch: Path) -> None:
        """Forget a batch that ended before anything was segmented."""
        try:
            if batch.is_dir():
                for part in batch.glob(".part-*"):
                    part.unlink()
                batch.rmdir()  # refused where something is in it
            _noteOf(batch).unlink(missing_ok=True)
        except OSError:
            return


def _noted(folder: Path) -> list[Path]:
    """The batches in a folder that have a note, the newest first."""
    notes = sorted(folder.glob(f"*{_NOTE}"), reverse=True)
    return [note.with_name(note.name.removesuffix(_NOTE)) for note in notes if not note.name.startswith(".")]


def _noteOf(batch: Path) -> Path:
    return Path(batch).with_name(Path(batch).name + _NOTE)


def _model(batch: Path) -> str:
    return str(readJson(_noteOf(batch)).get("model") or "")


def _nameOfModel(batch: Path) -> str:
    return _model(batch).rpartition("/")[2]


def _delete(batch: Path) -> None:
    shutil.rmtree(batch, ignore_errors=True)
    if not batch.exists():
        _noteOf(batch).unlink(missing_ok=True)


def _checkForeign(batches: list[Path]) -> None:
    """Raises StudyFaults with every batch that holds files that segmenting did not write."""
    faults = []
    for batch in batches:
        foreign = sorted(_foreignFiles(batch)) if batch.is_dir() else []
        if foreign:
            rule = _("The folder {folder} holds files that segmenting did not write: {files}.")
            rule = rule.format(folder=batch, files=", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else ""))
            faults.append(Fault(_nameOfModel(batch), rule, _("Move them to another place first.")))
    if faults:
        raise StudyFaults(faults)


def _foreignFiles(batch: Path) -> list[str]:
    try:
        known = {str(case["path"]) for case in readJson(batch / "index.json")["cases"]} | _DESKTOP
    except (KeyError, TypeError):
        known = _DESKTOP
    return [entry.name for entry in batch.iterdir() if entry.name not in known and not entry.name.startswith(".part-")]
