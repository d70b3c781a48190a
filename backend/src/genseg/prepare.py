"""From settings to a study in memory: read, check, plan, resample. Nothing is written here."""

import os
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from genseg import __version__
from genseg.cases import Case, Study, draw
from genseg.check import check_study
from genseg.device import Device, find_device
from genseg.errors import Fault, InputFaults
from genseg.events import EventLog, Progress
from genseg.imageio import Scan, UnusableImage, read_label, read_scan
from genseg.likeness import Unlike, unlike
from genseg.methods.synthesis import layout_of
from genseg.plan import Plan
from genseg.preprocess import WorkingCase, colours_of, label_to_working_grid, to_working_grid
from genseg.runfolder import RunFolder
from genseg.settings import DEFAULT_GENERATOR, FEW, GENERATING, Settings
from genseg.study import read_study
from genseg.together import Pairs, differences, make_plans, named_apart, prompts_of
from genseg.trial import missing, tried
from genseg.versions import version_of

NEEDED_MB = 500  # for checkpoints, synthetic pairs, model and report
T = TypeVar("T")
STYLE_SCANS = 64  # unlabelled scans whose looks the generator may borrow
MOST_UNLABELLED = 400  # unlabelled scans that the teacher looks at
# Why the method is another than the usual one, where it was left open.
CHOSEN = {
    "supervised": "All that is labelled is long and thin, as vessels are. There the method 'supervised' was ahead of "
    "all others, so it is this training's: it makes no synthetic scans and learns nothing from scans without labels.",
    "versemi": f"More than {FEW} scans are labelled. There the method 'versemi' learned more in the same time than "
    "'genseg+versemi', whose generator takes a part of it, so it is this training's. It makes no synthetic scans; to "
    "have some, choose 'genseg+versemi'.",
}
NAMED = 5  # scans that are warned about one by one
UNLABELLED_VOXELS = 250_000_000  # of them all, in memory: 1 GB


@dataclass
class Prepared:
    """Everything a run starts from."""

    study: Study
    plan: Plan
    device: Device
    labelled: list[WorkingCase]  # their labels are layouts
    unlabelled: list[WorkingCase]  # those that training learns from
    log: EventLog  # the run's own, or where there are several studies this one's

    @property
    def seen_unlabelled(self) -> list[Case]:
        """The same as cases of the study."""
        ids = {scan.id for scan in self.unlabelled}
        return [case for case in self.study.unlabeled if case.id in ids]


class Shape(Protocol):
    """What new plans are fitted to, as a starting model's network."""

    @property
    def solid(self) -> bool:
        """Whether it is of volumes: then thick slices are planned as volumes, too."""
        ...

    @property
    def segmenter(self) -> str:
        """Its network's name, or "auto" where any will do."""
        ...

    def shape(self, plan: Plan) -> Plan: ...


def prepare(
    settings: Settings, log: EventLog, same_channels: bool = True, start: Shape | None = None
) -> list[Prepared]:
    """For a new run, each study of it. Raises InputFaults with every fault of every study.

    `same_channels`: whether the studies must agree in them. `start`: what the plans are fitted to.
    """
    device = find_device(settings.device)
    studies = _every(_read(settings), lambda one: draw(one, settings.labelled, settings.unlabelled, settings.seed))
    if faults := [*_idle(settings, studies), *missing(settings.segmenter)]:
        raise InputFaults(faults)
    total = sum(len(study.training) for study in studies)
    log.emit(Progress(phase="prepare", step=0, total=total))  # checking and planning may take minutes
    facts = _every(studies, lambda study: check_study(study, settings.out, NEEDED_MB))
    if faults := differences(studies, facts, same_channels):
        raise InputFaults(faults)
    logs = _logs(studies, log)
    for own, fact in zip(logs, facts, strict=True):
        for note in fact.notes:
            own.warn("study_note", note)
    studies = [fact.told_to(study) for study, fact in zip(studies, facts, strict=True)]
    return load(studies, None, settings, device, logs, start)


def _idle(settings: Settings, studies: Sequence[Study]) -> list[Fault]:
    """Faults of what is asked for and the method does not have, also where the method is yet to be chosen.

    What the scans are like has no say in that: who asks for a generator or a part of versemi gets a method that has it.
    """
    faults, settings = [], settings.model_copy()
    settings.resolve(any(study.unlabeled for study in studies))
    if settings.without and not settings.mixes:
        rule = f"Parts of versemi can be left out only where it is at work, and the method is {settings.method}."
        faults.append(Fault("no_such_part", "--without", rule, "Choose versemi or genseg+versemi."))
    if settings.generator != DEFAULT_GENERATOR and not settings.generates:
        rule = f"A generator can be chosen only where there is one, and the method is {settings.method}."
        remedy = f"Leave it out, or choose {', '.join(GENERATING[:-1])} or {GENERATING[-1]}."
        faults.append(Fault("no_generator", "--generator", rule, remedy))
    return faults


def prepare_again(run: RunFolder, settings: Settings, log: EventLog) -> list[Prepared]:
    """For a run that goes on: its studies and plans as they were saved."""
    folders = run.saved_studies()
    studies, plans = [Study.load(one.study) for one in folders], [Plan.load(one.plan) for one in folders]
    return load(studies, plans, settings, find_device(settings.device), _logs(studies, log))


def _logs(studies: Sequence[Study], log: EventLog) -> list[EventLog]:
    return [log.of_study(study.name) for study in studies] if len(studies) > 1 else [log]


def load(
    studies: Sequence[Study],
    plans: Sequence[Plan] | None,
    settings: Settings,
    device: Device,
    logs: Sequence[EventLog],
    start: Shape | None = None,
) -> list[Prepared]:
    """Read the scans and bring them to the working grids; `logs`: each study's; new plans are fitted to `start`.

    Raises InputFaults with every scan that cannot be read.
    """
    pairs = _every(studies, lambda study: _read_all(study.training, lambda case: _read_pair(case, study)))
    if plans is None:
        plans = _new_plans(studies, pairs, settings, device, start)
    of_each = iter(zip(pairs, plans, logs, strict=True))
    return _every(studies, lambda study: _load(study, *next(of_each), settings, device))


def _new_plans(
    studies: Sequence[Study], pairs: Sequence[Pairs], settings: Settings, device: Device, start: Shape | None
) -> list[Plan]:
    """Fitted to `start`; the method, where it was left open, is chosen by them."""
    solid, segmenter = start is not None and start.solid, settings.segmenter
    if start is not None and segmenter == "auto":
        segmenter = start.segmenter
    plans = make_plans(studies, pairs, device, solid, segmenter)
    plans = [plan if start is None else start.shape(plan) for plan in plans]
    left_open = settings.method == "auto"
    settings.resolve(
        any(study.unlabeled for study in studies),
        all(plan.curvilinear for plan in plans),
        min(len(study.training) for study in studies),
    )
    if left_open and settings.method in CHOSEN:
        plans = [plan.model_copy(update={"notes": [*plan.notes, CHOSEN[settings.method]]}) for plan in plans]
    if settings.mixes or len(studies) > 1:
        prompts = prompts_of(studies, dynamic=settings.mixes and "prompts" not in settings.without)
        plans = [plan.asked(one) for plan, one in zip(plans, prompts, strict=True)]
    return [tried(plan) for plan in plans]


def _read(settings: Settings) -> list[Study]:
    """Raises InputFaults where one cannot be read or is named twice."""
    given = [path.resolve() for path in settings.datasets]
    places = Counter(path.parent if path.name == "dataset.json" else path for path in given)
    twice = [path for path, times in places.items() if times > 1]
    if twice:
        rule = "Each study is given once, but this one is given several times."
        raise InputFaults([Fault("study_twice", str(path), rule, "Name it once.") for path in twice])
    studies = _every(settings.datasets, read_study)
    return named_apart(studies) if len(studies) > 1 else studies


def _every(studies: Sequence[Any], work: Callable[[Any], T]) -> list[T]:
    """`work` on each study; the faults of all of them are told at once, of several each with its study."""
    found: list[T] = []
    faults: list[Fault] = []
    for study in studies:
        try:
            found.append(work(study))
        except InputFaults as error:
            faults += error.faults if len(studies) == 1 else [_of_study(study, fault) for fault in error.faults]
    if faults:
        raise InputFaults(faults)
    return found


def _of_study(study: Study | Path, fault: Fault) -> Fault:
    name = study.name if isinstance(study, Study) else str(study)
    inside = fault.case not in ("study", name)
    return replace(fault, case=f"{name}: {fault.case}" if inside else name)


def _load(study: Study, pairs: Pairs, plan: Plan, log: EventLog, settings: Settings, device: Device) -> Prepared:
    labelled = []
    for number, (case, (scan, label)) in enumerate(zip(study.training, pairs, strict=True), start=1):
        image = to_working_grid(scan, plan)
        working = label_to_working_grid(label, scan, plan)
        _warn_of_vanished(case, label, working, study, log)
        layout = layout_of(image, working, plan.classes)
        labelled.append(WorkingCase(case.id, image.to(device.torch), layout.to(device.torch), colours_of(scan, plan)))
        log.emit(Progress(phase="prepare", step=number, total=len(pairs)))
    unlabelled = _load_unlabelled(study, plan, settings, device, labelled, log)
    return Prepared(study, plan, device, labelled, unlabelled, log)


def _load_unlabelled(
    study: Study, plan: Plan, settings: Settings, device: Device, labelled: list[WorkingCase], log: EventLog
) -> list[WorkingCase]:
    """The scans to learn from without labels: those that look like the labelled ones, where that is wished at all."""
    if not settings.learn_unlabelled or settings.method == "supervised":
        return []
    voxels = max(case.image.numel() for case in labelled)
    most = MOST_UNLABELLED if settings.mixes else STYLE_SCANS
    memory = UNLABELLED_VOXELS // len(settings.datasets)
    some = _evenly(study.unlabeled, max(1, min(most, memory // voxels)))
    scans = _read_within(memory, some, lambda case: _unlabelled_scan(case, plan, device))
    if settings.mixes and len(scans) < len(study.unlabeled):
        log.warn(
            "unlabelled_left_out",
            f"Training learns from {len(scans)} of the {len(study.unlabeled)} scans without labels, which "
            "is what the memory holds; all of them are segmented.",
        )
    strange = unlike(labelled, scans, plan)
    _warn_of_unlike(strange, len(scans), log)
    return [scan for scan in scans if scan.id not in {one.case for one in strange}]


def _warn_of_unlike(strange: list[Unlike], looked_at: int, log: EventLog) -> None:
    """Each by its name and reason; of many the worst ones, and how many there are."""
    for one in strange[:NAMED]:
        log.warn(
            "unlike_scan",
            f"{one.case} does not look like the labelled scans ({one.reason}), so nothing is learned from it; it is "
            f"segmented all the same. It is {one.score:.1f} times as far from them as scans of one kind are.",
            "Look whether it is of another modality or body part; if so, its segmentation means little.",
        )
    if len(strange) > NAMED:
        log.warn(
            "unlike_scan",
            f"In all {len(strange)} of {looked_at} scans do not look like the labelled ones, so nothing is learned "
            f"from them; the others are {', '.join(one.case for one in strange[NAMED:])}.",
            "If they are what you want segmented, label one or two of them as well.",
        )


def _evenly(cases: list[Case], most: int) -> list[Case]:
    """At most so many of them, from everywhere in the list."""
    return [cases[i * len(cases) // most] for i in range(most)] if len(cases) > most else cases


def _unlabelled_scan(case: Case, plan: Plan, device: Device) -> WorkingCase:
    scan = read_scan(case.images)
    return WorkingCase(case.id, to_working_grid(scan, plan).to(device.torch), None, colours_of(scan, plan))


def _warn_of_vanished(case: Case, label: np.ndarray, working: Tensor, study: Study, log: EventLog) -> None:
    """Say which structures are too small for the working grid: the network never sees them in this scan."""
    lost = set(np.unique(label).tolist()) - set(working.unique().tolist()) - {0}
    if lost:
        names = ", ".join(study.labels.labels[index].name for index in sorted(lost))
        log.warn(
            "structure_vanished",
            f"{case.id}: on the grid the network works on, nothing is left of {names}.",
            "Label it where it is larger, or leave the scan out.",
        )


def _read_all(cases: list[Case], read: Callable[[Case], T]) -> list[T]:
    """A run that goes on may find scans gone or changed since it began: all of them are told at once."""
    found: list[T] = []
    faults: list[Fault] = []
    for case in cases:
        try:
            found.append(read(case))
        except UnusableImage as error:
            faults.append(Fault(error.code, case.id, error.rule, error.remedy))
    if faults:
        raise InputFaults(faults)
    return found


def _read_within(voxels: int, cases: list[Case], read: Callable[[Case], WorkingCase]) -> list[WorkingCase]:
    """Read the scans one by one until they fill the memory, be they larger than expected."""
    scans: list[WorkingCase] = []

    def one(case: Case) -> None:
        if sum(scan.image.numel() for scan in scans) < voxels:
            scans.append(read(case))

    _read_all(cases, one)
    return scans


def _read_pair(case: Case, study: Study) -> tuple[Scan, np.ndarray]:
    assert case.label is not None
    return read_scan(case.images), read_label(case.label, study.labels)[0]


def versions() -> dict[str, str]:
    """Of everything installed that decides the result."""
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    names = ["torch", "monai", "numpy", "SimpleITK", "scikit-image", "safetensors", "diffusers", "einops"]
    libraries = {name: version_of(name) for name in names}
    told = {name: version or "not told" for name, version in libraries.items() if version is not None}
    return machine | {"genseg": __version__} | told
