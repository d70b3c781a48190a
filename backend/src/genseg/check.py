"""Every fault of a study at once: each file is read, then the cases are compared with one another."""

import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel

from genseg.cases import Case, Study
from genseg.errors import Fault, InputFaults
from genseg.imagefile import UnusableImage, announced_voxels
from genseg.imageio import Scan, grid_difference, not_finite, read_label, read_scan
from genseg.labels import LabelTable
from genseg.wording import times

Split = Literal["training", "unlabeled", "test"]
_SPLITS: tuple[Split, ...] = ("training", "unlabeled", "test")
MOST_VOXELS = 400_000_000  # read at a time, of scans and masks; that takes about 4 GB
_FORBIDDEN = set('<>:"/\\|?*')


class CaseFacts(BaseModel):
    """What is known of one readable scan: `shape` and `spacing` (mm, 1 for photos) in array order."""

    id: str
    split: Split
    shape: list[int]
    spacing: list[float]
    channels: int
    physical: bool
    labels: list[int] | None = None  # indices that occur in its mask; None without a mask
    digest: str | None = None  # of the voxels: finds the same image under another name


class StudyFacts(BaseModel):
    """What the whole study has in common. `physical`: every scan has a size in mm."""

    dims: Literal[2, 3]
    channels: int
    physical: bool
    cases: list[CaseFacts]
    notes: list[str] = []  # not faults, but worth knowing

    def told_to(self, study: Study) -> Study:
        """The study with the digests of its scans."""
        digests = {(case.split, case.id): case.digest for case in self.cases}
        marked: dict[str, list[Case]] = {
            split: [one.model_copy(update={"digest": digests[split, one.id]}) for one in getattr(study, split)]
            for split in _SPLITS
        }
        return study.model_copy(update=marked)


@dataclass
class _Finding:
    """What reading one case brought to light."""

    case: Case
    split: Split
    faults: list[Fault] = field(default_factory=list)
    facts: CaseFacts | None = None
    from_volume: bool = False  # a 2D scan that is one slice of a 3D file

    @property
    def files(self) -> list[Path]:
        return [*self.case.images, *([self.case.label] if self.case.label else [])]

    def fault(self, code: str, rule: str, remedy: str) -> None:
        self.faults.append(Fault(code, self.case.id, rule, remedy))


def check_study(study: Study, out: Path | None = None, needed_mb: float = 0) -> StudyFacts:
    """Read every file of the study once; raises InputFaults with every fault.

    Where `out` is given, `needed_mb` must be free on its disk.
    """
    findings = _read_all(study)
    faults = _all_faults(study, findings, judge_whole=True) + (check_disk(out, needed_mb) if out is not None else [])
    if faults:
        raise InputFaults(faults)
    facts = [finding.facts for finding in findings if finding.facts is not None]
    return StudyFacts(
        dims=3 if len(facts[0].shape) == 3 else 2,
        channels=facts[0].channels,
        physical=all(case.physical for case in facts),
        cases=facts,
        notes=list(_notes(study.labels, facts)),
    )


def find_faults(study: Study, judge_whole: bool = True) -> list[Fault]:
    """Every fault of the study; `judge_whole=False` does not ask for labelled cases (the list may be incomplete)."""
    return _all_faults(study, _read_all(study), judge_whole)


def check_disk(folder: Path, needed_mb: float) -> list[Fault]:
    """A fault where the disk of `folder` (which need not exist yet) has less than `needed_mb` MB free."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free_mb = shutil.disk_usage(existing).free / 1e6
    if free_mb >= needed_mb:
        return []
    return [
        Fault(
            "no_disk",
            str(folder),
            f"The run needs about {needed_mb:.0f} MB of free disk, but there are {free_mb:.0f} MB.",
            "Delete files there that you no longer need, or choose a folder on another disk.",
        )
    ]


def _read_all(study: Study) -> list[_Finding]:
    findings = [_Finding(case, split) for split in _SPLITS for case in getattr(study, split)]
    room = _Room()

    def read(finding: _Finding) -> None:
        with room.taken(sum(announced_voxels(path) for path in finding.files)):
            _read(finding, study)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        list(pool.map(read, findings))
    return findings


class _Room:
    """Room for MOST_VOXELS at a time, whatever the number of threads; what is larger goes alone."""

    def __init__(self) -> None:
        self._changed, self._voxels = threading.Condition(), 0

    @contextmanager
    def taken(self, voxels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._voxels == 0 or self._voxels + voxels <= MOST_VOXELS)
            self._voxels += voxels
        try:
            yield
        finally:
            with self._changed:
                self._voxels -= voxels
                self._changed.notify_all()


def _all_faults(study: Study, findings: list[_Finding], judge_whole: bool) -> list[Fault]:
    faults = [fault for finding in findings for fault in finding.faults]
    faults += [*_name_faults(findings), *_twice(findings), *_leaks(findings), *_unlike_the_others(findings)]
    if judge_whole and not any(case.label for case in study.training):
        faults.append(
            Fault(
                "no_labelled_case",
                "study",
                "At least one training scan must have a mask, but none has.",
                "Segment one scan, for example in Slicer, and add it with its mask to `training`.",
            )
        )
    return faults


# --- one case ----------------------------------------------------------------------------------------------------


def _read(finding: _Finding, study: Study) -> None:
    case, scan = finding.case, None
    missing = [path for path in finding.files if not path.exists()]
    for path in missing:
        finding.fault(
            "missing_file", f"The file {path} does not exist.", "Put it there, or correct its path in the study."
        )
    if not any(path in missing for path in case.images):
        try:
            scan = read_scan(case.images, finite=False)
            _check_scan(finding, scan, study)
        except UnusableImage as error:
            finding.fault(error.code, error.rule, error.remedy)
    if case.label is not None and case.label not in missing:
        _check_label(finding, case.label, scan, study.labels)


def _check_scan(finding: _Finding, scan: Scan, study: Study) -> None:
    geometry = scan.geometry
    finding.facts = CaseFacts(
        id=finding.case.id,
        split=finding.split,
        shape=list(geometry.shape),
        spacing=list(scan.spacing),
        channels=len(scan.array),
        physical=geometry.physical,
        digest=hashlib.blake2b(np.ascontiguousarray(scan.array).data, digest_size=16).hexdigest(),
    )
    finding.from_volume = scan.dims == 2 and len(geometry.size) == 3
    if scan.bad_voxels:
        error = not_finite(scan)
        finding.fault(error.code, error.rule, error.remedy)
    elif all(channel.min() == channel.max() for channel in scan.array):
        finding.fault(
            "constant_image",
            f"A scan must show something, but every voxel has the value {float(scan.array.flat[0]):g}.",
            "Export the scan again, or take the case out of the study.",
        )
    if min(geometry.shape) == 1:
        finding.fault(
            "thin_volume",
            f"A scan must be more than one voxel wide, but it has {times(geometry.shape)} voxels.",
            "Take the case out of the study.",
        )
    if scan.stacked and len(scan.array) != len(study.channels):
        finding.fault(
            "four_dimensional",
            f"A scan must have two or three dimensions, but the file holds {len(scan.array)} volumes (a time series?).",
            "Save the time point you want to segment as a file of its own; if the volumes are channels, name each "
            "in `channel_names` of dataset.json.",
        )


def _check_label(finding: _Finding, path: Path, scan: Scan | None, table: LabelTable) -> None:
    try:
        indices, geometry = read_label(path, table)
    except UnusableImage as error:
        finding.fault(error.code, error.rule, error.remedy)
        return
    present = np.flatnonzero(np.bincount(indices.ravel(), minlength=1))
    if finding.facts is not None:
        finding.facts.labels = present.tolist()
    if finding.split == "training" and not present.any():
        finding.fault(
            "empty_label",
            "The mask of a training scan must hold at least one structure, but it is all background.",
            "Segment the scan, or move it to `unlabeled`.",
        )
    if scan is not None and (difference := grid_difference(geometry, scan.geometry)) is not None:
        finding.fault(
            "geometry_mismatch",
            f"Scan and mask must lie on the same grid, but the mask differs: {difference}.",
            "Export the mask with the scan as its reference, in Slicer: Segmentations, Export, Reference volume.",
        )


# --- the cases among one another -----------------------------------------------------------------------------------


def _name_faults(findings: list[_Finding]) -> Iterator[Fault]:
    """Ids become file names: they must differ, also for disks that do not know upper and lower case."""
    groups: dict[str, list[_Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.case.id.casefold(), []).append(finding)
        name = finding.case.id
        if set(name) & _FORBIDDEN or any(ord(c) < 32 for c in name) or name.strip(" .") != name or not name:
            yield Fault(
                "bad_case_id",
                name or "study",
                f"A case id must be usable as a file name, but '{name}' is not.",
                'Give it a plain `id`, without any of < > : " / \\ | ? * and without dots or spaces at its ends.',
            )
    for same in groups.values():
        if len(same) > 1 and not _transductive(same):
            yield Fault(
                "duplicate_case",
                same[0].case.id,
                f"Every case must have its own id, but {len(same)} have this one ({_where(same)}).",
                "Give each case its own `id`, or remove the one that is there twice.",
            )


def _twice(findings: list[_Finding]) -> Iterator[Fault]:
    """The same image in two cases, as the same file or as a copy; as unlabelled AND test scan it is allowed."""
    groups: dict[str, list[_Finding]] = {}
    for finding in findings:
        paths = "\n".join(os.path.normcase(path) for path in finding.case.images)
        groups.setdefault((finding.facts and finding.facts.digest) or paths, []).append(finding)
    for same in groups.values():
        if len(same) == 1 or _transductive(same):
            continue
        leak = {"training", "test"} <= {finding.split for finding in same}
        yield Fault(
            "same_image",
            same[0].case.id,
            ("A test scan must not be trained on, but" if leak else "Every image must be listed once, but")
            + f" the same image is used {len(same)} times ({_where(same)}).",
            "Remove it from all places but one.",
        )


def _transductive(same: list[_Finding]) -> bool:
    """Test scans may be listed as unlabelled scans too: their masks stay unread."""
    return sorted(f.split for f in same) == ["test", "unlabeled"] and same[0].case.images == same[1].case.images


def _leaks(findings: list[_Finding]) -> Iterator[Fault]:
    trained = {f.case.group: f for f in findings if f.split == "training" and f.case.group is not None}
    tested: dict[str, list[str]] = {}
    for finding in findings:
        if finding.split == "test" and finding.case.group in trained:
            tested.setdefault(str(finding.case.group), []).append(finding.case.id)
    for group, cases in tested.items():
        yield Fault(
            "same_patient",
            trained[group].case.id,
            f"A patient must not be in training and test, but '{group}' is (test: {_some(cases)}).",
            "Move all scans of this patient to one side.",
        )


def _unlike_the_others(findings: list[_Finding]) -> Iterator[Fault]:
    """Scans whose number of channels or dimensions differs from most of the study."""
    readable = [finding for finding in findings if finding.facts is not None]
    counts = Counter(finding.facts.channels for finding in readable if finding.facts)
    usual = counts.most_common(1)[0][0] if counts else 0
    volumes = [finding for finding in readable if finding.facts and len(finding.facts.shape) == 3]
    planes = [finding for finding in readable if finding not in volumes and not finding.from_volume]
    for finding in readable:
        found = finding.facts.channels if finding.facts else usual
        if found != usual:
            yield Fault(
                "channel_count",
                finding.case.id,
                f"All scans must have the same channels: it has {found}, the others have {usual}.",
                "Save it as grey or as colour like the others, or add the missing channels.",
            )
        if volumes and finding.from_volume:
            yield Fault(
                "thin_volume",
                finding.case.id,
                "It has one slice only, but the study holds volumes.",
                "Give the whole volume, or take the case out of the study.",
            )
    if volumes and planes:
        fewer = min(volumes, planes, key=len)
        yield Fault(
            "mixed_dimensions",
            "study",
            f"All scans must be volumes or all must be single images, but there are {len(volumes)} volumes and "
            f"{len(planes)} images ({_some([finding.case.id for finding in fewer])}).",
            "Make two studies of them.",
        )
    else:
        yield from _with_and_without_size(readable)


def _with_and_without_size(readable: list[_Finding]) -> Iterator[Fault]:
    """A model works in mm or in pixels: photos and medical images of the same kind do not go together."""
    sized = [finding.case.id for finding in readable if finding.facts and finding.facts.physical]
    unsized = [finding.case.id for finding in readable if finding.facts and not finding.facts.physical]
    if sized and unsized:
        yield Fault(
            "physical_size",
            "study",
            f"All images must have a physical size or none, but {len(sized)} have one and {len(unsized)} have none "
            f"({_some(min(sized, unsized, key=len))}).",
            "Save all in one kind of format (medical formats carry the size, photos do not), or make two studies.",
        )


def _notes(table: LabelTable, facts: list[CaseFacts]) -> Iterator[str]:
    seen = {index for case in facts if case.split == "training" for index in case.labels or []}
    absent = [label.name for index, label in enumerate(table.labels) if index > 0 and index not in seen]
    if absent:
        yield f"No training mask shows {_some(absent)}: this study cannot teach it."


def _where(findings: list[_Finding]) -> str:
    return _some([f"{finding.case.id} in {finding.split}" for finding in findings])


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
