"""From settings to a study in memory: read, check, plan, resample. Nothing is written here."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from genseg import __version__
from genseg.cases import Case, Study, draw
from genseg.check import check_study
from genseg.device import Device, find_device
from genseg.errors import Fault, InputFaults
from genseg.events import EventLog, Progress
from genseg.imageio import Scan, UnusableImage, read_label, read_scan
from genseg.methods.synthesis import layout_of
from genseg.plan import Plan, Prompts, make_plan
from genseg.preprocess import WorkingCase, colours_of, label_to_working_grid, to_working_grid
from genseg.runfolder import RunFolder
from genseg.settings import Settings
from genseg.study import read_study
from genseg.versions import version_of

NEEDED_MB = 500  # for checkpoints, synthetic pairs, model and report
T = TypeVar("T")
STYLE_SCANS = 64  # unlabelled scans whose looks the generator may borrow
MOST_UNLABELLED = 400  # unlabelled scans that the teacher looks at


@dataclass
class Prepared:
    """Everything a run starts from."""

    study: Study
    plan: Plan
    device: Device
    labelled: list[WorkingCase]  # their labels are layouts
    unlabelled: list[WorkingCase]


def prepare(settings: Settings, log: EventLog) -> Prepared:
    """For a new run. Raises InputFaults with every fault of the study."""
    device = find_device(settings.device)
    study = draw(read_study(settings.dataset), settings.labelled, settings.unlabelled, settings.seed)
    settings.resolve(bool(study.unlabeled))
    log.emit(Progress(phase="prepare", step=0, total=len(study.training)))  # checking and planning may take minutes
    for note in check_study(study, settings.out, NEEDED_MB).notes:
        log.warn("study_note", note)
    return load(study, None, settings, device, log)


def prepare_again(run: RunFolder, settings: Settings, log: EventLog) -> Prepared:
    """For a run that goes on: its study and plan as they were saved."""
    return load(Study.load(run.study), Plan.load(run.plan), settings, find_device(settings.device), log)


def load(study: Study, plan: Plan | None, settings: Settings, device: Device, log: EventLog) -> Prepared:
    """Read the scans and bring them to the working grid. Raises InputFaults with every scan that cannot be read."""
    pairs = _read_all(study.training, lambda case: _read(case, study))
    if plan is None:
        plan = make_plan([scan for scan, _ in pairs], [label for _, label in pairs], study.labels, device)
        if settings.mixes:
            tasks = list(range(plan.classes - 1))
            plan.prompts = Prompts(count=plan.classes, tasks=tasks, dynamic="prompts" not in settings.without)
    labelled = []
    for number, (case, (scan, label)) in enumerate(zip(study.training, pairs, strict=True), start=1):
        image = to_working_grid(scan, plan)
        working = label_to_working_grid(label, scan, plan)
        _warn_of_vanished(case, label, working, study, log)
        layout = layout_of(image, working, plan.classes)
        labelled.append(WorkingCase(case.id, image.to(device.torch), layout.to(device.torch), colours_of(scan, plan)))
        log.emit(Progress(phase="prepare", step=number, total=len(pairs)))
    some = _evenly(study.unlabeled, MOST_UNLABELLED if settings.mixes else STYLE_SCANS) if settings.learn_unlabelled else []
    unlabelled = _read_all(some, lambda case: _unlabelled_scan(case, plan, device))
    return Prepared(study, plan, device, labelled, unlabelled)


def _evenly(cases: list[Case], most: int) -> list[Case]:
    """At most so many of them, from everywhere in the list."""
    return cases[:: max(1, len(cases) // most)][:most]


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


def _read(case: Case, study: Study) -> tuple[Scan, np.ndarray]:
    assert case.label is not None
    return read_scan(case.images), read_label(case.label, study.labels)[0]


def versions() -> dict[str, str]:
    """Of everything that decides the result."""
    machine = {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    names = ["torch", "monai", "numpy", "SimpleITK", "scikit-image", "safetensors"]
    return machine | {"genseg": __version__} | {name: version_of(name) or "not told" for name in names}
