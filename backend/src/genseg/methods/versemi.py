"""VerSemi: every structure is a task with a prompt, and scans without labels teach by consistency.

Half of a step's batch are mixed images (CutMix): a cuboid of a labelled or synthetic pair in a scan without a label,
or the other way round. On them

    L_mix = L(P_1..K(x_mix), m)             on what is labelled: each task's head finds its visible structure (auxiliary)
          + L(P_K+1(x_mix), any m)          on what is labelled: prompt K+1 finds any foreground (the synthetic task)
          + κ r L(P_1..K(x_mix), T_1..K)    elsewhere: agrees with the teacher (consistency)
          + κ r L(P_K+1(x_mix), max_k T_k)  elsewhere: max-consistency

L is soft Dice + cross-entropy; T are the probabilities that the teacher, the running average of the segmenter's
weights, gives for the scan before its intensities are changed; no gradient goes to it. r ramps up, κ is 1 or learned
by level 3. VerSemi (Zeng et al., IEEE TMI 2025) has no teacher, ramp or κ, and mixes labelled data sets.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genseg.augment import REFERENCE, apply_intensity
from genseg.methods.losses import one_hot, segmentation_loss
from genseg.networks.prompted import PromptedSegmenter
from genseg.sampling import Sampler
from genseg.settings import Part

BOX = (0.3, 0.7)  # sides of the cuboid, as shares of the patch's
SURE = 0.6  # probability of the teacher's winning class from which a voxel teaches
TEMPERATURE = 1.0
RAMP = 0.2  # of the training, until consistency has its full weight


@dataclass
class Mixing:
    """Everything that only the methods with mixed images need."""

    unlabelled: Sampler | None  # None where there are no scans to learn from: then two labelled pairs are mixed
    teacher: nn.Module
    without: frozenset[Part] = frozenset()


@dataclass
class Side:
    """One of the two sides of a mix, and what is known of it."""

    image: Tensor  # [n, C, *patch]
    target: Tensor  # [n, K, *patch] shares of the classes, background first
    weight: Tensor  # [n, *patch] of each voxel in the loss


def labelled_side(image: Tensor, label: Tensor, classes: int, weight: Tensor | float = 1.0) -> Side:
    """label int64 [n, *patch]; `weight` one number for all, or one a sample [n]."""
    whole = torch.ones(label.shape, device=image.device)
    if isinstance(weight, Tensor):
        weight = weight.view(-1, *[1] * (label.ndim - 1))
    return Side(image, one_hot(label, classes), whole * weight)


@torch.no_grad()
def taught_side(sampler: Sampler, teacher: nn.Module, n: int, rng: torch.Generator, weight: float) -> Side:
    """n patches of scans without labels; the teacher sees them with their own grey values, the segmenter changed."""
    draw = sampler.draw(n, rng)
    clean = sampler.load_image(draw, REFERENCE)
    logits = teacher(clean)
    logits = logits[:, 0] if logits.ndim > clean.ndim else logits  # the segmenter itself may be the teacher
    taught = torch.softmax(logits.float() / TEMPERATURE, 1)
    sure = (taught.amax(1) > SURE).float()
    image = apply_intensity(clean, draw.intensity.to(clean.device), REFERENCE)
    return Side(image, taught, sure * weight)


def mixed_image(a: Side, b: Side, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """→ image [n, C, *patch], and [n, *patch] bool: where `a` is seen. A cuboid is cut from one of the two."""
    boxes = torch.stack([_cuboid(list(a.image.shape[2:]), rng) for _ in range(len(a.image))])
    seen = boxes.to(a.image.device)
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


def mix_loss(
    network: PromptedSegmenter, image: Tensor, target: Tensor, of_tasks: Tensor, of_any: Tensor | None
) -> Tensor:
    """L_mix [n] for a mixed image; `target` shares [n, K, *patch], and the weights [n, *patch] of each voxel in the
    tasks' losses and in that of prompt K+1 (None: without).

    What is labelled and what the teacher says make one target, so that a structure that the edge cuts in two is
    judged as a whole.
    """
    logits = network.ask(image, [*network.tasks, network.any_foreground]).float()
    background = torch.zeros_like(logits[:, :1])
    loss = segmentation_loss(torch.cat([background, logits[:, :-1]], 1), target, of_tasks)
    if of_any is not None:
        strongest = target[:, 1:].amax(1, keepdim=True)
        any_foreground = torch.cat([1 - strongest, strongest], 1)
        loss = loss + segmentation_loss(torch.cat([background, logits[:, -1:]], 1), any_foreground, of_any)
    return loss


def ramp(progress: float, start: float) -> float:
    """Weight of the consistency, 0..1: a Gaussian slope over RAMP of the training from `start` on."""
    share = min(1.0, max(0.0, (progress - start) / RAMP))
    return math.exp(-5 * (1 - share) ** 2)
