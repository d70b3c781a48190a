"""Folders of predictions that a run's model has written for more scans, and which run that was."""

import json
import os
import shutil
from pathlib import Path

from GenSegSlicerLib.Faults import Fault, StudyFaults
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
        temporary = note.with_name(f".part-{note.name}")
        content = {"model": Path(os.path.abspath(self.runFolder)).as_posix()}
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, note)

    def all(self) -> list[Path]:
        """The batches that hold predictions, the newest first."""
        return [batch for batch in self._noted() if isBatch(batch)]

    def _noted(self) -> list[Path]:
        notes = sorted(self.folder.glob(f"*{_NOTE}"), reverse=True)
        found = [note.with_name(note.name.removesuffix(_NOTE)) for note in notes if not note.name.startswith(".")]
        return [batch for batch in found if _nameOfModel(batch) == self.runFolder.name]

    def checkRemovable(self) -> None:
        """Raises StudyFaults where a batch holds files that segmenting did not write."""
        faults = []
        for batch in self._noted():
            foreign = sorted(_foreignFiles(batch)) if batch.is_dir() else []
            if foreign:
                rule = _("The folder {folder} holds files that segmenting did not write: {files}.")
                rule = rule.format(folder=batch, files=", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else ""))
                faults.append(Fault(self.runFolder.name, rule, _("Move them to another place first.")))
        if faults:
            raise StudyFaults(faults)

    def remove(self) -> None:
        """Delete the batches with their notes: without the run nobody could read their masks."""
        for batch in self._noted():
            shutil.rmtree(batch, ignore_errors=True)
            if not batch.exists():
                _noteOf(batch).unlink(missing_ok=True)

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


def _noteOf(batch: Path) -> Path:
    return Path(batch).with_name(Path(batch).name + _NOTE)


def _model(batch: Path) -> str:
    try:
        content = json.loads(_noteOf(batch).read_text(encoding="utf-8"))
        return str(content.get("model") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def _nameOfModel(batch: Path) -> str:
    return _model(batch).rpartition("/")[2]


def _foreignFiles(batch: Path) -> list[str]:
    try:
        cases = json.loads((batch / "index.json").read_text(encoding="utf-8"))["cases"]
        known = {str(case["path"]) for case in cases} | _DESKTOP
    except (OSError, ValueError, KeyError, TypeError):
        known = _DESKTOP
    return [entry.name for entry in batch.iterdir() if entry.name not in known and not entry.name.startswith(".part-")]
