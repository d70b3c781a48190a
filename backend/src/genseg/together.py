"""Several studies in one training: what they must share, their prompts, and plans that one network can serve."""

from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

from genseg.cases import Study
from genseg.check import StudyFacts
from genseg.device import Device
from genseg.errors import Fault
from genseg.imageio import Scan
from genseg.plan import DEFAULT_SEGMENTER, Plan, Prompts, make_plan
from genseg.segnrrd import same_name

Pairs = list[tuple[Scan, np.ndarray]]  # labelled scans and index maps on their grids
LONGEST_NAME = 60  # characters: Windows takes 260 for a whole path
# What checkpoints call what all studies share, and what Windows takes for devices.
TAKEN = {"segmenter", "average", "optimiser", "con", "prn", "aux", "nul"}


def named_apart(studies: list[Study]) -> list[Study]:
    """The same studies, each with a name that can be a folder's and that no other of them has."""
    plain = ["".join(c if c.isalnum() or c in "-_ " else "_" for c in study.name) for study in studies]
    plain = [name.strip()[:LONGEST_NAME].strip() or "study" for name in plain]
    counts = Counter(name.casefold() for name in plain)
    taken = TAKEN | {name for name, times in counts.items() if times == 1}
    named = []
    for number, (study, name) in enumerate(zip(studies, plain, strict=True), start=1):
        if counts[name.casefold()] > 1 or name.casefold() in TAKEN:
            name = next(new for i in count(number) if (new := f"{name}-{i}").casefold() not in taken)
            taken.add(name.casefold())
        named.append(study.model_copy(update={"name": name}))
    return named


def differences(studies: list[Study], facts: list[StudyFacts], same_channels: bool = True) -> list[Fault]:
    """What keeps studies from being trained together: they go through one network, and one scan belongs to one side."""
    faults = []
    of_studies = {"dimensions": ["volumes" if fact.dims == 3 else "single images" for fact in facts]}
    if same_channels:
        of_studies["channels"] = [f"{fact.channels} channel(s)" for fact in facts]
    for what, found in of_studies.items():
        if len(set(found)) > 1:
            listed = ", ".join(f"{study.name}: {one}" for study, one in zip(studies, found, strict=True))
            rule = f"Studies that are trained together must have the same {what}, but they differ ({listed})."
            faults.append(Fault("studies_differ", "study", rule, "Take only those of one kind together."))
    trained: dict[Path | str, str] = {}
    for study, fact in zip(studies, facts, strict=True):
        trained |= dict.fromkeys([path for case in study.training for path in case.images], study.name)
        trained |= {case.digest: study.name for case in fact.cases if case.split == "training" and case.digest}
    for study, fact in zip(studies, facts, strict=True):
        digests = {case.id: case.digest for case in fact.cases if case.split == "test"}
        for case in study.test:
            other = trained.get(case.images[0]) or trained.get(digests.get(case.id) or "")
            if other is not None and other != study.name:
                rule = f"A test scan of {study.name} must not be trained on, but {other} trains on it."
                faults.append(Fault("same_image", case.id, rule, "Remove it from one of the two."))
    return faults


def prompts_of(studies: Sequence[Study], dynamic: bool) -> list[Prompts]:
    """One prompt for each structure, shared by structures of the same name, and one for "any foreground"."""
    names: list[str] = []
    tasks = []
    for study in studies:
        mine = []
        for label in study.labels.structures:
            known = next((i for i, name in enumerate(names) if same_name(name) == same_name(label.name)), None)
            mine.append(len(names) if known is None or known in mine else known)
            if mine[-1] == len(names):
                names.append(label.name)
        tasks.append(mine)
    return [Prompts(count=len(names) + 1, tasks=mine, dynamic=dynamic) for mine in tasks]


def make_plans(
    studies: Sequence[Study],
    pairs: Sequence[Pairs],
    device: Device,
    solid: bool = False,
    segmenter: str = DEFAULT_SEGMENTER,
) -> list[Plan]:
    """A plan for each study. Working grid, patch and intensities are its own; the network is that of the shallowest.

    Where `solid` is asked for or one is a study of volumes, those of thick slices become volumes, too. `segmenter`:
    "auto" is what suits all of them, or the usual network.
    """

    def plan(study: Study, mine: Pairs, solid: bool) -> Plan:
        scans, labels = [scan for scan, _ in mine], [label for _, label in mine]
        return make_plan(scans, labels, study.labels, device, solid, segmenter)

    plans = [plan(study, mine, solid) for study, mine in zip(studies, pairs, strict=True)]
    if len({one.segmenter for one in plans}) > 1:
        return make_plans(studies, pairs, device, solid, DEFAULT_SEGMENTER)
    if len({one.dims for one in plans}) > 1:
        plans = [
            plan(study, mine, True) if one.dims == 2 else one
            for study, mine, one in zip(studies, pairs, plans, strict=True)
        ]
    shallowest, study = min(zip(plans, studies, strict=True), key=lambda one: len(one[0].filters))
    whose = f"that of {study.name}, as all studies share one"
    return [one if one.filters == shallowest.filters else one.with_network_of(shallowest, whose) for one in plans]
