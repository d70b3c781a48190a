"""The synthetic pairs of a run: what there is, thumbnails of them, and which ones the user has excluded."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.JsonFile import writeJson
from GenSegSlicerLib.PairPictures import drawPair
from GenSegSlicerLib.PairView import PairView, ShownPair, removePair
from GenSegSlicerLib.RunAbout import RunAbout
from GenSegSlicerLib.Translate import _

AMBER, RED = (240, 170, 0), (220, 40, 40)
EMPTY = 40  # grey of a picture that cannot be drawn


@dataclass(frozen=True)
class Pair:
    """One synthetic pair. `agreement` 0 to 1, `similarity` -1 to 1; None where the run does not say."""

    image: Path
    mask: Path
    source: str  # training scan whose mask was changed
    implant: str | None  # photograph whose structures were added
    agreement: float | None
    nearest: str  # training scan that looks most like it
    similarity: float | None
    nearCopy: bool
    used: bool
    step: int
    excluded: bool = False
    parameters: dict = field(default_factory=dict, compare=False)
    style: str | None = None  # scan whose look it has, where the run says

    @property
    def name(self) -> str:
        """Its number in the run, as in the names of its files: "0003"."""
        return self.image.name.split("_")[0]

    @property
    def key(self) -> tuple:
        """What tells this pair from every other of the run, also after it was written again: (name, seed, number)."""
        return self.image.name, self.parameters.get("seed"), self.parameters.get("number")


class Gallery:
    """Reads RUN/synthetic/index.json whenever it has changed; keeps thumbnails; writes RUN/excluded.json.

    `problem` is a sentence about what could not be read, or "". Nothing is written but excluded.json.
    """

    def __init__(self, runFolder: Path | str):
        self.runFolder = Path(runFolder)
        self.problem = ""
        self._pairs = []
        self._seen = None
        self._thumbnails = {}
        self.about = RunAbout(self.runFolder)

    # --- what there is ---

    def refresh(self) -> bool:
        """Read the index again if it has changed. → whether the list of pairs is another one now."""
        seen = (_stamp(self._index), _stamp(self.excludedFile))
        if seen == self._seen:
            return False
        before, self.problem = self._pairs, ""
        entries = self._readEntries()
        if entries is None:
            return False  # what was read before stays; the next call tries again
        self._seen = seen
        excluded = {_keyOf(entry) for entry in self._readExcluded(strict=False)}
        pairs = [pair for pair in (self._pair(entry, excluded) for entry in entries) if pair is not None]
        self._pairs = sorted(pairs, key=lambda pair: (-pair.step, pair.image.name))
        return self._pairs != before

    def pairs(self) -> list[Pair]:
        """All pairs, the newest first; those written together by their number."""
        return list(self._pairs)

    def describe(self, pair: Pair) -> str:
        """Sentences about a pair, for a tool tip or beside it."""
        told = [_("Made at step {step} with the mask of {scan}, changed.").format(step=pair.step, scan=pair.source)]
        if pair.implant:
            told.append(_("Structures of {scan} were added.").format(scan=pair.implant))
        if pair.agreement is not None:
            told.append(_agreementWords(pair.agreement))
        if pair.nearCopy:
            told.append(_("It nearly copies the scan {scan}: do not share it.").format(scan=pair.nearest))
        elif pair.nearest and pair.similarity is not None:
            told.append(
                _("It looks most like the scan {scan} (correlation {value:.2f}).").format(
                    scan=pair.nearest, value=pair.similarity
                )
            )
        if not pair.used:
            told.append(_("Pairs like this are left out of training: image and mask do not match well enough."))
        if pair.excluded:
            told.append(_("You have excluded it."))
        return "\n".join(told)

    # --- pictures ---

    def thumbnail(self, pair: Pair, size: int) -> np.ndarray:
        """→ uint8 [h, w, 3]: the image with its mask, `size` pixels along the longer side.

        Near copies and pairs that training leaves out have an amber frame; excluded ones are dark and crossed out.
        """
        key = (pair.key, pair.step, int(size))
        if key not in self._thumbnails:
            self._thumbnails[key] = self._drawn(pair, size)
        picture = self._thumbnails[key]
        picture = np.full((int(size), int(size), 3), EMPTY, dtype=np.uint8) if picture is None else picture.copy()
        if pair.excluded:
            return _crossedOut(picture)
        return _framed(picture, AMBER) if pair.nearCopy or not pair.used else picture

    # --- in the scene ---

    def show(self, pair: Pair, scene, scanOf=None, views=(), nearestViews=()) -> ShownPair:
        """Show a pair beside its nearest real scan, in place of the earlier one. → ShownPair; see `PairView.show`."""
        return PairView(scene, self.about).show(pair, scanOf, views, nearestViews)

    @staticmethod
    def hide(scene) -> None:
        """Take everything that `show` made out of the scene; call it also after a scene was loaded."""
        removePair(scene)

    # --- excluding ---

    @property
    def excludedFile(self) -> Path:
        return self.runFolder / "excluded.json"

    def exclude(self, pair: Pair) -> None:
        """Write down that the user does not want such a pair. Raises StudyFaults or OSError; then nothing changed."""
        entries = self._readExcluded(strict=True)
        if pair.key not in {_keyOf(entry) for entry in entries}:
            entry = {"image": pair.image.name, "source": pair.source, "implant": pair.implant, "style": pair.style}
            entry |= {name: pair.parameters.get(name) for name in ("seed", "number")} | {"step": pair.step}
            self._writeExcluded([*entries, entry])

    def include(self, pair: Pair) -> None:
        """Take an exclusion back. Raises StudyFaults or OSError; then nothing changed."""
        entries = self._readExcluded(strict=True)
        kept = [entry for entry in entries if _keyOf(entry) != pair.key]
        if len(kept) < len(entries):
            self._writeExcluded(kept)

    # --- inside ---

    @property
    def _index(self):
        return self.runFolder / "synthetic" / "index.json"

    def _readEntries(self):
        """Entries of the index; [] where there is none yet; None, with `problem` set, where it cannot be read."""
        if not self._index.exists():
            return []
        try:
            return _pairsIn(self._index)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problem = _("The list of synthetic pairs cannot be read: {error}").format(error=error)
            return None

    def _pair(self, entry, excluded):
        folder = self._index.parent
        names = [entry.get("image"), entry.get("mask")]
        if not all(isinstance(name, str) and (folder / name).is_file() for name in names):
            self.problem = _("The files of a synthetic pair are missing: {names}").format(names=names)
            return None
        return Pair(
            image=folder / names[0],
            mask=folder / names[1],
            source=str(entry.get("source") or ""),
            implant=entry.get("implant"),
            agreement=entry.get("agreement"),
            nearest=str(entry.get("nearest") or ""),
            similarity=entry.get("similarity"),
            nearCopy=bool(entry.get("near_copy")),
            used=bool(entry.get("used", True)),
            step=int(entry.get("step") or 0),
            excluded=_keyOf(entry) in excluded,
            parameters=entry.get("parameters") or {},
            style=entry.get("style"),
        )

    def _readExcluded(self, strict):
        """Entries of excluded.json. `strict`: raise where it cannot be read, so that it is never written over."""
        if not self.excludedFile.exists():
            return []
        try:
            return _pairsIn(self.excludedFile)
        except (OSError, ValueError, KeyError, TypeError) as error:
            rule = _("The list of excluded pairs cannot be read ({error}).").format(error=error)
            if strict:
                remedy = _("Delete the file {file} and exclude the pairs again.").format(file=self.excludedFile)
                raise StudyFaults([Fault("excluded.json", rule, remedy)]) from error
            self.problem = rule
            return []

    def _writeExcluded(self, entries):
        writeJson(self.excludedFile, {"pairs": entries})
        self._seen = None
        self.refresh()

    def _drawn(self, pair, size):
        """The pair's picture; None, with `problem` set, where its files cannot be read."""
        try:
            return drawPair(pair, self.about, size)
        except (OSError, RuntimeError, ValueError) as error:
            self.problem = _("A picture cannot be drawn: {error}").format(error=error)
            return None


def _pairsIn(file):
    """The entries of index.json or excluded.json. Raises OSError, ValueError, KeyError or TypeError."""
    entries = json.loads(file.read_text(encoding="utf-8"))["pairs"]
    return [entry for entry in entries if isinstance(entry, dict)]


def _stamp(path):
    """What changes when a file is written again; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _keyOf(entry):
    """The `Pair.key` of an entry of index.json or of excluded.json."""
    drawn = entry.get("parameters") or entry
    return entry.get("image"), drawn.get("seed"), drawn.get("number")


def _agreementWords(value):
    if value >= 0.8:
        word = _("Good: the model finds in this image what was drawn (agreement {value:.2f} of 1).")
    elif value >= 0.6:
        word = _("Fair: the model finds part of what was drawn (agreement {value:.2f} of 1).")
    else:
        word = _("Low: the model finds little of what was drawn (agreement {value:.2f} of 1).")
    return word.format(value=value)


def _framed(picture, color):
    """`picture` uint8 [h, w, 3] with a frame, changed in place and returned."""
    wide = max(2, max(picture.shape) // 40)
    picture[:wide] = picture[-wide:] = color
    picture[:, :wide] = picture[:, -wide:] = color
    return picture


def _crossedOut(picture):
    """`picture` uint8 [h, w, 3] darkened, with a red cross from corner to corner."""
    height, width = picture.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width]
    rise = rows / max(height - 1, 1) - columns / max(width - 1, 1)
    fall = rows / max(height - 1, 1) + columns / max(width - 1, 1) - 1
    line = np.minimum(abs(rise), abs(fall)) * min(height, width) < max(1.5, max(picture.shape) / 60)
    dark = (picture * 0.35).astype(np.uint8)
    dark[line] = RED
    return dark
