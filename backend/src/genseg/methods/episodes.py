"""Tasks for learning to learn: a structure, or several as one, in a few scans of a study; other scans ask for it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genseg.augment import REFERENCE, Strength
from genseg.methods.synthesis import label_of, meta_plan
from genseg.prepare import Prepared
from genseg.sampling import Sampler

SHOTS = 5  # labelled scans of a task, at most
UNION = 0.3  # of the tasks of a study with several structures ask for some of them as one

Batch = tuple[Tensor, Tensor]  # image [n, C, *patch], label [n, *patch] int64, 1 where the task's structures are


@dataclass(frozen=True, order=True)
class Task:
    """What is asked for in which study."""

    study: int
    structures: tuple[int, ...]  # indices of the study's label table


@dataclass
class Episode:
    """A task with its labelled scans and those that ask; of one patient there are never scans in both."""

    task: Task
    support: list[int]
    query: list[int]  # empty where a single patient shows the structures: then the same scans ask


class Tasks:
    """Draws tasks and their patches from the labelled scans of several studies."""

    def __init__(self, studies: list[Prepared]):
        self.studies = studies
        self.samplers = [Sampler(one.labelled, one.plan) for one in studies]
        self.small = [Sampler(one.labelled, meta_plan(one.plan)[0]) for one in studies]

    def draw(self, rng: torch.Generator) -> Episode:
        """A study, then its structures, then scans that show them. Studies count alike, however many scans."""
        which = _below(len(self.studies), rng)
        shown = self.samplers[which].foreground
        structures = sorted({k for one in shown for k in one})
        chosen = {structures[_below(len(structures), rng)]}
        if len(structures) > 1 and float(torch.rand(1, generator=rng)) < UNION:
            order = torch.randperm(len(structures), generator=rng)[: 2 + _below(len(structures) - 1, rng)].tolist()
            chosen = {structures[i] for i in order}
        return self.of(Task(which, tuple(sorted(chosen))), rng)

    def single(self) -> list[Task]:
        """Every structure of every study that a scan shows: the first of each study, then the second of each."""
        shown = [sorted({k for one in sampler.foreground for k in one}) for sampler in self.samplers]
        turns = [(turn, which, k) for which, found in enumerate(shown) for turn, k in enumerate(found)]
        return [Task(which, (k,)) for _, which, k in sorted(turns)]

    def of(self, task: Task, rng: torch.Generator) -> Episode:
        """Scans that show the task's structures: 1 to SHOTS patients' are labelled, the others' ask."""
        of_scan = self.studies[task.study].study.patients
        shown = self.samplers[task.study].foreground
        scans = [i for i, one in enumerate(shown) if {*task.structures} & one.keys()]
        patients = list(dict.fromkeys(of_scan[i] for i in scans))
        shots = 1 + _below(max(1, min(SHOTS, len(patients) - 1)), rng)
        given = {patients[i] for i in torch.randperm(len(patients), generator=rng)[:shots].tolist()}
        support = [i for i in scans if of_scan[i] in given]
        query = [i for i in scans if of_scan[i] not in given]
        return Episode(task, support, query)

    def load(
        self, task: Task, scans: list[int], rng: torch.Generator, strength: Strength = REFERENCE, small: bool = False
    ) -> Batch:
        """A batch of changed patches from some scans of the task's study, as training or (`small`) level 3 draws."""
        sampler, plan = (self.small if small else self.samplers)[task.study], self.studies[task.study].plan
        image, layout = sampler.load(sampler.draw(max(2, plan.batch // 2), rng, scans, task.structures), strength)
        wanted = torch.tensor(task.structures, device=layout.device)
        return image, torch.isin(label_of(layout, plan.classes), wanted).long()

    def name(self, task: Task) -> str:
        """'study: structure + structure'."""
        study = self.studies[task.study].study
        return f"{study.name}: " + " + ".join(study.labels.labels[i].name for i in task.structures)


def with_channels(prepared: Prepared, channels: int) -> Prepared:
    """Grey scans as ones of several channels, all alike, so that one network takes all studies."""
    plan = prepared.plan
    if plan.channels == channels:
        return prepared
    widened = plan.model_copy(update={"channels": channels, "normalisation": plan.normalisation * channels})
    cases = [replace(case, image=case.image.expand(channels, -1, -1, -1)) for case in prepared.labelled]
    return replace(prepared, plan=widened, labelled=cases)


def _below(n: int, rng: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=rng))
