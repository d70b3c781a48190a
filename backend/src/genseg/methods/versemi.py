"""VerSemi: every structure is a task with a prompt, and scans without labels teach by consistency.

Half of a step's batch are mixed images (CutMix): a cuboid of a labelled or synthetic pair in a scan without a label,
or the other way round. On them

    L_mix = L(P_1..K(x_mix), m)             where labelled: each task's head finds its visible structure (auxiliary)
          + L(P_K+1(x_mix), any m)          where labelled: prompt K+1 finds any foreground (the synthetic task)
          + κ r L(P_1..K(x_mix), T_1..K)    elsewhere: agrees with the teacher (consistency)
          + κ r L(P_K+1(x_mix), max_k T_k)  elsewhere: max-consistency

L is soft Dice + cross-entropy; T are the probabilities that the teacher, the running average of the segmenter's
weights, gives for the scan before its intensities are changed; no gradient goes to it. r ramps up, κ is 1 or learned
by level 3. VerSemi (Zeng et al., IEEE TMI 2025) has no teacher, ramp or κ, and mixes labelled data sets.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genseg.augment import UNCHANGED
from genseg.methods.losses import one_hot, segmentation_loss
from genseg.networks.prompted import PromptedSegmenter
from genseg.plan import Plan
from genseg.sampling import Sampler, changed
from genseg.settings import Part

BOX = (0.3, 0.7)  # sides of the cuboid, as shares of the patch's
MIX_WEIGHT = 0.5  # of L_mix beside the loss on real pairs
CUT = 0.5  # of the images are mixed; in the others the scan without a label is seen whole
SURE = 0.8  # probability of the teacher's winning class from which a voxel teaches
RAMP = 0.2  # of the training, until consistency has its full weight


@dataclass
class Mixing:
    """Everything that only the methods with mixed images need."""

    unlabelled: Sampler | None  # None where there are no scans to learn from: then two labelled pairs are mixed
    meta_unlabelled: Sampler | None  # of the smaller patches of level 3
    teacher: nn.Module
    without: frozenset[Part] = frozenset()


@dataclass
class Side:
    """One of the two sides of a mix, and what is known of it."""

    image: Tensor  # [n, C, *patch]
    target: Tensor  # [n, K, *patch] shares of the classes of its study, background first
    tasks: list[int]  # the prompts of these classes, without the background
    of_tasks: Tensor  # [n, *patch] weight of each voxel in the tasks' losses
    of_any: Tensor  # the same in the loss of prompt K+1


def labelled_side(
    image: Tensor, label: Tensor, plan: Plan, weight: Tensor, without: frozenset[Part] = frozenset()
) -> Side:
    """label int64 [n, *patch]; `weight` [n, *patch]."""
    assert plan.prompts is not None
    of_tasks = torch.zeros_like(weight) if "auxiliary" in without else weight
    return Side(image, one_hot(label, plan.classes), plan.prompts.tasks, of_tasks, weight)


@torch.no_grad()
def taught_side(
    sampler: Sampler, teacher: nn.Module, n: int, rng: torch.Generator, weight: float, without: frozenset[Part]
) -> Side:
    """n patches of scans without labels, as the teacher labels them; then both are changed like any labelled pair.

    So the teacher sees the scans as they are, the segmenter as augmented as it can be. On the way its answers are one
    higher, and 0 is what it is not sure of, as it is what comes from outside the patch.
    """
    plan, draw = sampler.plan, sampler.draw(n, rng)
    assert plan.prompts is not None
    clean = sampler.load_image(replace(draw, spatial=draw.spatial.unmoved()), UNCHANGED)
    logits = teacher(clean)
    logits = logits[:, 0] if logits.ndim > clean.ndim else logits  # the segmenter itself may be the teacher
    sure, label = torch.softmax(logits.float(), 1).max(1)
    image, label = changed(clean, (label + 1).masked_fill(sure < SURE, 0), draw, plan)
    counts = (label > 0).float() * (0.0 if "consistency" in without else weight)
    return Side(image, one_hot((label - 1).clamp_min(0), plan.classes), plan.prompts.tasks, counts, counts)


def fitted(x: Tensor, patch: list[int]) -> Tensor:
    """[n, ..., *other patch] → [n, ..., *patch]: the middle of it, with zeros around what is too small."""
    for axis, (there, here) in enumerate(zip(x.shape[-len(patch) :], patch, strict=True), start=x.ndim - len(patch)):
        x = x.narrow(axis, max(0, (there - here) // 2), min(there, here))
        before = max(0, (here - there) // 2)
        x = F.pad(x, [0, 0] * (x.ndim - 1 - axis) + [before, max(0, here - there - before)])
    return x


def mixed_image(a: Side, b: Side, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """→ image [n, C, *patch], and [n, *patch] bool: where `a` is seen. A cuboid is cut from one of the two.

    Where nothing of `a` counts, as beside a scan of another study or of a synthetic pair left out, `b` is seen.
    """
    boxes = torch.stack([_cuboid(list(a.image.shape[2:]), rng) for _ in range(len(a.image))])
    whole = torch.rand(len(a.image), generator=rng) >= CUT
    boxes[whole] = False
    seen = boxes.to(a.image.device) & (a.of_any > 0)
    return torch.where(seen[:, None], a.image, b.image), seen


def _cuboid(patch: list[int], rng: torch.Generator) -> Tensor:
    """[*patch] bool: a cuboid somewhere, or everything around it."""
    sides = [max(1, round(p * _uniform(*BOX, rng))) for p in patch]
    low = [int(torch.randint(p - side + 1, (1,), generator=rng)) for p, side in zip(patch, sides, strict=True)]
    box = torch.zeros(patch, dtype=torch.bool)
    box[tuple(slice(start, start + side) for start, side in zip(low, sides, strict=True))] = True
    return box if _uniform(0, 1, rng) < 0.5 else ~box


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=rng))


def asked_of(a: Side, b: Side, network: PromptedSegmenter) -> list[int]:
    """The prompts that a mix of both is asked with; the last is "any foreground"."""
    return [*sorted({*a.tasks, *b.tasks}), network.any_foreground]


def mix_loss(logits: Tensor, asked: list[int], at_a: Tensor, a: Side, b: Side, synthetic_task: bool) -> Tensor:
    """L_mix [n] of what was answered to `asked` for images that show `a` where `at_a` [n, *patch] says so, else `b`."""
    logits = logits.float()
    background = torch.zeros_like(logits[:, :1])

    def of(tasks: list[int]) -> Tensor:
        return torch.cat([background, logits[:, [asked.index(task) for task in tasks]]], 1)

    if a.tasks == b.tasks:  # one target, so that a structure that the edge cuts in two is judged as a whole
        target = torch.where(at_a[:, None], a.target, b.target)
        loss = segmentation_loss(of(a.tasks), target, torch.where(at_a, a.of_tasks, b.of_tasks))
    else:  # each study's structures are judged where its own scan is seen: elsewhere they may be there unlabelled
        loss = segmentation_loss(of(a.tasks), a.target, a.of_tasks * at_a)
        loss = loss + segmentation_loss(of(b.tasks), b.target, b.of_tasks * ~at_a)
    if synthetic_task:
        of_a, of_b = (side.target[:, 1:].amax(1, keepdim=True) for side in (a, b))
        strongest = torch.where(at_a[:, None], of_a, of_b)
        target, weight = torch.cat([1 - strongest, strongest], 1), torch.where(at_a, a.of_any, b.of_any)
        loss = loss + segmentation_loss(torch.cat([background, logits[:, -1:]], 1), target, weight)
    return MIX_WEIGHT * loss


def ramp(progress: float, start: float) -> float:
    """Weight of the consistency, 0..1: a Gaussian slope over RAMP of the training from `start` on."""
    share = min(1.0, max(0.0, (progress - start) / RAMP))
    return math.exp(-5 * (1 - share) ** 2)
