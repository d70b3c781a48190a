"""The runs in a folder: what each is, how well it did, and how to get rid of it."""

import enum
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import readJson
from GenSegSlicerLib.RunProgress import durationText
from GenSegSlicerLib.Translate import _

SILENCE = 120.0  # seconds without an event after which a run without end counts as interrupted
_TAIL = 1 << 16  # bytes of events.jsonl in which its end is looked for
_REMOVING = ".part-removing-"
_METHODS = ("genseg+versemi", "versemi", "genseg", "separate", "supervised")
_META_METHODS = ("imaml", "first-order", "reptile", "pretrain")  # of starting models, learned from several studies

# Everything a run writes (docs/run-folder.md), the module's own list of excluded pairs, and what desktops leave.
_OWN = {
    *("settings.json", "study.json", "plan.json", "events.jsonl", "metrics.json", "report.html", "traceback.txt"),
    *("checkpoints", "synthetic", "predictions", "model", "generator", "stop", "done", "excluded.json", "origin.json"),
    "together.json",
    *(".DS_Store", "Thumbs.db", "desktop.ini"),
}


class RunKind(enum.StrEnum):
    """How far a run is."""

    FINISHED = "finished"
    STOPPED = "stopped"
    RUNNING = "running"
    INTERRUPTED = "interrupted"  # killed or failed; it can be gone on with
    BROKEN = "broken"  # neither usable nor to be gone on with


@dataclass(frozen=True)
class Run:
    """One run folder as it was when it was looked at.

    date: seconds since 1970 of its first start. dice: mean of the test scans, 0..1, None where there is none.
    labels: names of the structures. labelled, unlabelled, tested: numbers of scans. learnsUnlabelled: whether the
    scans without labels were learned from as well. size: bytes.
    seconds: of training, None before an end. usable: it has a model that segments. resumable: it can be gone on with.
    learnedFrom: of a starting model the names of the studies; it segments nothing by itself.
    """

    path: Path
    kind: RunKind
    method: str = ""
    date: float = 0.0
    dice: float | None = None
    labels: list[str] = field(default_factory=list)
    labelled: int = 0
    unlabelled: int = 0
    tested: int = 0
    learnsUnlabelled: bool = True
    size: int = 0
    seconds: float | None = None
    usable: bool = False
    resumable: bool = False
    learnedFrom: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its folder; of one study of several also that of the run they were trained in."""
        together = _runOfSeveral(self.path)
        return self.path.name if together is None else f"{together.name}: {self.path.name}"


class RunList:
    """The run folders directly inside one folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def runs(self, active: Path | None = None, idle: Iterable[Path] = ()) -> list[Run]:
        """Every run, the newest first; a folder that cannot be read gives none.

        Of a run of several studies each study is one, with a model of its own; none of them can be resumed alone.

        `active`: the run that is known to be running; `idle`: those known not to. Of others a run without an end
        counts as running while its events are younger than SILENCE.
        """
        known = {Path(path): False for path in idle} | ({Path(active): True} if active is not None else {})
        try:
            folders = [path for path in self.folder.iterdir() if isRunFolder(path)]
        except OSError:
            return []
        found = [readRun(study, known.get(path)) for path in folders for study in _studies(path)]
        return sorted(found, key=lambda run: (-run.date, run.name))

    def remove(self, run: Run, active: Path | None = None) -> None:
        """Delete a run from the disk for good.

        Raises StudyFaults, and then nothing was deleted: where the folder is no run of this list, is still running,
        or holds files that no run writes.
        """
        path = Path(run.path)
        self._checkRemovable(path, active)
        for leftover in self.folder.glob(_REMOVING + "*"):  # of a removal that did not get through
            shutil.rmtree(leftover, ignore_errors=True)
        doomed = path.with_name(_REMOVING + path.name)
        try:
            os.replace(path, doomed)  # at one stroke: no half-deleted run is ever listed
        except OSError as refused:
            rule = _("The folder cannot be removed: {reason}").format(reason=refused.strerror or refused)
            remedy = _("Close programs that use its files, and try again.")
            raise StudyFaults([Fault(path.name, rule, remedy)]) from refused
        shutil.rmtree(doomed, ignore_errors=True)

    def _checkRemovable(self, path: Path, active: Path | None) -> None:
        together = _runOfSeveral(path)
        if together is not None:
            rule = _("This is one study of several that were trained together.")
            remedy = _("To remove all of them, delete the folder {folder} by hand.").format(folder=together)
            raise StudyFaults([Fault(path.name, rule, remedy)])
        if path.parent != self.folder or path.is_symlink() or not isRunFolder(path):
            rule = _("Only a run in {folder} can be removed, and this is none.").format(folder=self.folder)
            raise StudyFaults([Fault(path.name, rule, _("Remove other folders by hand."))])
        if readRun(path, True if active is not None and Path(active) == path else None).kind is RunKind.RUNNING:
            remedy = _("Stop it first. If it was broken off just now, wait two minutes.")
            raise StudyFaults([Fault(path.name, _("The run is still running."), remedy)])
        foreign = sorted(_foreignFiles(path))
        if foreign:
            named = ", ".join(foreign[:5]) + (" …" if len(foreign) > 5 else "")
            rule = _("The folder holds files that no run writes: {files}.").format(files=named)
            raise StudyFaults([Fault(path.name, rule, _("Move them to another place first."))])


def isRunFolder(path: Path) -> bool:
    """Whether a folder was made by a training: it has settings that name a method and a study.

    A starting model that was passed on has none, but a card that names what it was learned from.
    """
    path = Path(path)
    if path.name.startswith(".") or not path.is_dir():
        return False
    settings = readJson(path / "settings.json")
    if settings.get("method") in _METHODS + _META_METHODS and "dataset" in settings and "out" in settings:
        return True
    return _isPassedOn(path)


def _isPassedOn(path: Path) -> bool:
    """Whether a folder holds a starting model without the files that name folders of another computer."""
    known = readJson(path / "card.json").get("trained_on") and (path / "plan.json").is_file()
    return bool(known) and not (path / "settings.json").exists()


def _studies(path: Path) -> list[Path]:
    """The run itself, or the folders of its studies where it has several."""
    if not (path / "studies").is_dir():
        return [path]
    return [study for study in sorted((path / "studies").iterdir()) if isRunFolder(study)]


def _runOfSeveral(path: Path) -> Path | None:
    """The run to which a study's folder belongs; None for a run of its own."""
    run = path.parent.parent
    return run if path.parent.name == "studies" and isRunFolder(run) else None


def readRun(path: Path, running: bool | None = None) -> Run:
    """What a run folder tells. `running`: whether it is known to run. Missing or broken files count as empty."""
    path = Path(path)
    study, settings = readJson(path / "study.json"), readJson(path / "settings.json")
    ended = _lastEnd(path / "events.jsonl")
    usable = (path / "checkpoints" / "best.safetensors").is_file()
    begun = (path / "checkpoints" / "last.safetensors").is_file()
    kind = RunKind.FINISHED if usable and _isPassedOn(path) else _kind(path, ended, usable or begun, running)
    table = study.get("labels")
    labels = _entries(table.get("labels") if isinstance(table, dict) else None)
    card = readJson(path / "card.json")
    return Run(
        path=path,
        kind=kind,
        method=str(settings.get("method") or card.get("method") or ""),
        date=_date(path),
        dice=_dice(readJson(path / "metrics.json")),
        labels=[str(label.get("name")) for label in labels if label.get("value") != 0],
        labelled=len(_entries(study.get("training"))),
        unlabelled=len(_entries(study.get("unlabeled"))),
        tested=len(_entries(study.get("test"))),
        learnsUnlabelled=settings.get("learn_unlabelled") is not False,
        size=_size(path),
        seconds=None if ended is None else ended.get("seconds"),
        usable=usable and not (path / "card.json").exists(),
        resumable=begun and kind in (RunKind.STOPPED, RunKind.INTERRUPTED),
        learnedFrom=[str(one.get("name")) for one in _entries(card.get("trained_on"))],
    )


def _entries(found: object) -> list[dict]:
    """What a list in a file holds that is as it should be."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def describe(run: Run) -> str:
    """A run in a few sentences for its user."""
    kinds = {
        RunKind.FINISHED: _("Finished."),
        RunKind.STOPPED: _("Stopped on request."),
        RunKind.RUNNING: _("Running."),
        RunKind.INTERRUPTED: _("Interrupted before its end."),
        RunKind.BROKEN: _("Broken: files are missing or cannot be read."),
    }
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.date))
    parts = [kinds[run.kind], _("Begun on {date}, method {method}.").format(date=when, method=run.method)]
    if run.learnedFrom and run.kind is not RunKind.BROKEN:
        said = _("A starting model, learned from {studies}: choose its folder as Starting model of a training.")
        parts.append(said.format(studies=", ".join(run.learnedFrom)))
        return " ".join([*parts, _("Size: {size}.").format(size=sizeText(run.size))])
    counts = _("Labeled scans: {labelled}; to segment: {unlabelled}; test: {tested}.")
    parts.append(counts.format(labelled=run.labelled, unlabelled=run.unlabelled, tested=run.tested))
    if run.unlabelled and not run.learnsUnlabelled:
        parts.append(_("Nothing was learned from the scans to segment."))
    if run.labels:
        parts.append(_("Structures: {names}.").format(names=", ".join(run.labels)))
    if run.dice is not None:
        parts.append(_("Dice on the test scans: {dice}.").format(dice=f"{run.dice:.2f}"))
    if run.seconds is not None:
        parts.append(_("Trained for {time}.").format(time=durationText(run.seconds)))
    if run.resumable:
        parts.append(_("It can be resumed."))
    if not run.usable:
        parts.append(_("It has no model yet."))
    return " ".join([*parts, _("Size: {size}.").format(size=sizeText(run.size))])


def sizeText(size: int) -> str:
    """Bytes in words: '41 MB'."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB")):
        if size >= limit:
            return f"{size / limit:.1f} {unit}" if size < 10 * limit else f"{size / limit:.0f} {unit}"
    return f"{max(1, round(size / 1e3))} kB"


def _lastEnd(events: Path) -> dict | None:
    """The event `finished`, where no start came behind it."""
    try:
        with events.open("rb") as file:
            file.seek(max(0, events.stat().st_size - _TAIL))
            tail = file.read()
    except OSError:
        return None
    for line in reversed(tail.splitlines()):
        if b'"finished"' in line or b'"started"' in line:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") in ("finished", "started"):
                return event if event["event"] == "finished" else None
    return None


def _kind(path: Path, ended: dict | None, hasWeights: bool, running: bool | None) -> RunKind:
    if running:
        return RunKind.RUNNING
    if (path / "done").exists():
        return RunKind.FINISHED if hasWeights else RunKind.BROKEN
    if running is None and ended is None and _age(path / "events.jsonl") < SILENCE:
        return RunKind.RUNNING
    if not hasWeights:
        return RunKind.BROKEN
    return RunKind.STOPPED if ended is not None and ended.get("status") == 3 else RunKind.INTERRUPTED


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _date(path: Path) -> float:
    try:
        with (path / "events.jsonl").open("rb") as file:
            return float(json.loads(file.readline(_TAIL))["time"])
    except (OSError, ValueError, KeyError, TypeError):
        passedOn = path / "card.json"
        return (passedOn if passedOn.exists() else path / "settings.json").stat().st_mtime


def _dice(metrics: dict) -> float | None:
    try:
        dice = metrics["test"]["mean"]["dice"]
    except (KeyError, TypeError):
        return None
    return float(dice) if isinstance(dice, (int, float)) else None


def _size(path: Path) -> int:
    total = 0
    for folder, _folders, files in os.walk(path):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # gone meanwhile: the run lives
                continue
    return total


def _foreignFiles(path: Path) -> Iterator[str]:
    """Names in a run folder that no run writes: a user may have saved something of his own there."""
    own = _OWN | ({"card.json", "README.md"} if readJson(path / "card.json").get("trained_on") else set())
    for entry in path.iterdir():
        if entry.name not in own and not entry.name.startswith(".part-"):
            yield entry.name
    study = readJson(path / "study.json")
    cases = {str(case.get("id")) for split in ("unlabeled", "test") for case in study.get(split) or []}
    for folder in ("predictions", "synthetic"):
        for entry in (path / folder).iterdir() if (path / folder).is_dir() else ():
            pair = folder == "synthetic" and re.fullmatch(r"\d+_(image|mask)\.[\w.]+", entry.name)
            prediction = folder == "predictions" and any(
                entry.name.startswith(case + ".") and _SUFFIX.fullmatch(entry.name[len(case) :]) for case in cases
            )
            known = entry.name == "index.json" or entry.name in _OWN or entry.name.startswith(".part-")
            if not (known or pair or prediction):
                yield f"{folder}/{entry.name}"


_SUFFIX = re.compile(r"(\.seg)?\.(nrrd|nii|nii\.gz|mha|png)")
