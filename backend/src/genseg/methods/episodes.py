"""Tasks for learning to learn: a structure, or several as one, in a few scans of a study; other scans ask for it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genseg.methods.synthesis import label_of
from genseg.prepare import Prepared
from genseg.sampling import Sampler

SHOTS = 5  # labelled scans of a task, at most
UNION = 0.3  # of the tasks of a study with several structures ask for some of them as one

Batch = tuple[Tensor, Tensor]  # image [n, C, *patch], label [n, *patch] int64, 1 where the task's structures are


@dataclass(frozen=True)
class Task:
    """What is asked for in which study."""

    study: int
    structures: tuple[int, ...]  # indices of the study's label table


@dataclass
class Episode:
    """A task with its labelled scans and those that ask; of one patient there are never scans in both."""

    task: Task
    support: list[int]
    query: list[int]


class Tasks:
    """Draws tasks and their patches from the labelled scans of several studies."""

    def __init__(self, studies: list[Prepared]):
        self.studies = studies
        self.samplers = [Sampler(one.labelled, one.plan) for one in studies]

    def draw(self, rng: torch.Generator) -> Episode:
        """A study, then its structures, then its scans. Studies count alike, however many scans they have."""
        which = _below(len(self.studies), rng)
        study = self.studies[which].study
        count = len(study.labels.structures)
        chosen = [1 + _below(count, rng)]
        if count > 1 and float(torch.rand(1, generator=rng)) < UNION:
            chosen = sorted(1 + i for i in torch.randperm(count, generator=rng)[: 2 + _below(count - 1, rng)].tolist())
        patients = list(dict.fromkeys(study.patients))
        shots = 1 + _below(max(1, min(SHOTS, len(patients) - 1)), rng)
        order = [patients[i] for i in torch.randperm(len(patients), generator=rng).tolist()]
        given = set(order[:shots])
        support = [i for i, patient in enumerate(study.patients) if patient in given]
        query = [i for i, patient in enumerate(study.patients) if patient not in given]
        return Episode(Task(which, tuple(chosen)), support, query or support)  # with one patient the same scans ask

    def load(self, task: Task, scans: list[int], rng: torch.Generator) -> Batch:
        """A batch of changed patches from some scans of the task's study, as training draws them."""
        sampler, plan = self.samplers[task.study], self.studies[task.study].plan
        image, layout = sampler.load(sampler.draw(max(2, plan.batch // 2), rng, scans))
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
    repeat = [channels] + [1] * 3
    cases = [replace(case, image=case.image.repeat(repeat)) for case in prepared.labelled]
    return replace(prepared, plan=widened, labelled=cases)


def _below(n: int, rng: torch.Generator) -> int:
    return int(torch.randint(n, (1,), generator=rng))
