"""A study in memory: its cases, its label table, and how a few labelled scans are drawn from it."""

from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from genseg.errors import Fault, InputFaults
from genseg.labels import LabelTable
from genseg.runfolder import read_model, write_json


class Case(BaseModel):
    """One scan: absolute path(s) of its image (one file per channel, or one in all), perhaps a mask and a patient.

    `digest`: of the voxels, once they were read; finds the same scan in another study.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    images: list[Path]
    label: Path | None = None
    group: str | None = None
    digest: str | None = None


class Study(BaseModel):
    """Labelled training cases, scans without masks, and test cases (never used to choose anything)."""

    model_config = ConfigDict(extra="forbid")

    name: str
    reference: str = ""
    licence: str = ""
    labels: LabelTable
    channels: list[str] = []  # names of the channels, where the study gives them
    training: list[Case] = []
    unlabeled: list[Case] = []
    test: list[Case] = []

    @property
    def patients(self) -> list[str]:
        """The patient of each training case: its group, or the case itself where no group is given."""
        return [case.id if case.group is None else f"group {case.group}" for case in self.training]

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> "Study":
        return read_model(cls, path)


def draw(study: Study, labelled: int | None, unlabelled: int | None, seed: int) -> Study:
    """The study with `labelled` of its training cases and `unlabelled` scans without masks.

    Seed 0 takes the first cases as listed, any other seed the first of a permutation drawn with it. The scans
    without masks are the training cases left over (their masks dropped), then `study.unlabeled`; None for
    `unlabelled` keeps just the latter. Raises InputFaults where the study has fewer.
    """
    order = np.random.default_rng(seed).permutation(len(study.training)) if seed else range(len(study.training))
    shuffled = [study.training[i] for i in order]
    count = len(shuffled) if labelled is None else labelled
    spare = [case.model_copy(update={"label": None}) for case in shuffled[count:]]
    unlabeled = list(study.unlabeled)
    if unlabelled is not None:
        unlabeled = (spare + unlabeled)[:unlabelled]
    faults = [
        Fault(code, "study", f"It has {there} {what}, but {asked} were asked for.", f"Ask for at most {there}.")
        for code, what, asked, there in (
            ("too_few_labelled", "labelled training scans", count, len(shuffled)),
            ("too_few_unlabelled", "scans to use without labels", unlabelled or 0, len(spare) + len(study.unlabeled)),
        )
        if asked > there
    ]
    if faults:
        raise InputFaults(faults)
    return study.model_copy(update={"training": shuffled[:count], "unlabeled": unlabeled})
