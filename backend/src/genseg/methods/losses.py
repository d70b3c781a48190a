"""Losses of segmenter, generator and discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor

SMOOTH = 1e-5


def segmentation_loss(logits: Tensor, target: Tensor, where: Tensor | None = None) -> Tensor:
    """Soft Dice + cross-entropy, one number a sample [n], so that single samples can be weighed or left out.

    logits: [n, K, *patch]. target: int64 indices [n, *patch] or shares [n, K, *patch].
    Dice is taken over the structures, not the background, each sample for itself. `where`: weight of each voxel
    [n, *patch]; one that counts nothing is as if it lay outside the patch, and of one weight for all it is a factor.
    """
    logits = logits.float()
    soft = target if target.ndim == logits.ndim else one_hot(target, logits.shape[1])
    log_p = F.log_softmax(logits, 1)
    cross_entropy = -(soft * log_p).sum(1).flatten(1)
    p, t = log_p.exp()[:, 1:].flatten(2), soft[:, 1:].flatten(2)
    both, either = p * t, p + t
    if where is None:
        cross_entropy = cross_entropy.mean(1)
    else:
        weight = where.flatten(1)
        counted = (weight > 0).sum(1).clamp_min(1)
        cross_entropy = (cross_entropy * weight).sum(1) / counted
        both, either = both * weight[:, None], either * weight[:, None]
    dice = (2 * both.sum(-1) + SMOOTH) / (either.sum(-1) + SMOOTH)
    lacking = (1 - dice).mean(1)
    return cross_entropy + (lacking if where is None else lacking * weight.sum(1) / counted)


def deep_segmentation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """The same for the stacked heads [n, heads, K, *patch] of deep supervision, each coarser head half the weight."""
    if logits.ndim == target.ndim + 1 and target.dtype == torch.int64:
        return segmentation_loss(logits, target)
    heads = logits.unbind(1)
    weights = [0.5**i for i in range(len(heads))]
    losses = [w * segmentation_loss(h, target) for w, h in zip(weights, heads, strict=True)]
    return torch.stack(losses).sum(0) / sum(weights)


def one_hot(indices: Tensor, classes: int) -> Tensor:
    """int64 [n, *patch] → float32 [n, classes, *patch]."""
    return F.one_hot(indices, classes).movedim(-1, 1).float()


def dice_agreement(logits: Tensor, target: Tensor) -> Tensor:
    """[n] Dice between the hard prediction and int64 target, all structures taken together; 1 where both are empty."""
    predicted = logits.argmax(1)
    hit = ((predicted == target) & (target > 0)).flatten(1).sum(1).float()
    total = (predicted > 0).flatten(1).sum(1) + (target > 0).flatten(1).sum(1)
    return torch.where(total > 0, 2 * hit / total.clamp_min(1), torch.ones_like(hit))


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: E max(0, 1 - D(real)) + E max(0, 1 + D(fake))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Hinge: -E D(fake)."""
    return -fake.mean()
