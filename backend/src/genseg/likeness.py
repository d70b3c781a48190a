"""Scans without labels that do not look like the labelled ones: another modality, another part of the body."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.plan import Plan
from genseg.preprocess import WorkingCase

# About how far two scans of one kind are from each other (volumes, photographs): root mean square of the differences of
# the numbers in `_look`, median over pairs, averaged over the data sets here. Extents differ less (0.11), but how much
# of a body is scanned is no matter of kind. Volumes have no colours.
USUAL = {
    "extent": (0.15, 0.15),
    "grey": (0.087, 0.16),
    "texture": (0.2, 0.2),
    "rings": (0.3, 0.3),
    "brightness": (1.0, 0.073),
    "contrast": (1.0, 0.22),
    "hue": (1.0, 0.025),
}
# The 99th percentile of dermoscopies and ultrasounds, the most varied of the sets of one kind here, lies just below it.
LIMIT = 4.6
FEWER_FAR = 0.15  # k labelled scans: the nearest is nearer by k to the power of this (measured for 1 to 5)
USUAL_GAP = (1.0, 3.0)  # bounds of the usual gap: few scans overrate it, and copies of one another make it nothing
SAMPLED = 2**15  # voxels that are enough for quantiles
SIDES = (32, 16, 8, 4, 2)  # of the coarser and coarser images that tell texture
RINGS = 5


@dataclass(frozen=True)
class Unlike:
    """A scan without a label that is unlike the labelled ones."""

    case: str  # id
    score: float  # above 1; 2 means twice as far off as the farthest scans of one kind are
    reason: str  # in words, without a full stop


_Look = dict[str, Tensor]  # some numbers about each aspect of a scan, float32, in units of its USUAL


def unlike(labelled: list[WorkingCase], unlabelled: list[WorkingCase], plan: Plan) -> list[Unlike]:
    """The scans of `unlabelled` that are unlike all of `labelled`, the most different first.

    Scans as `prepare.load` makes them, on any device: image [C, a, y, x], normalised, and of photographs `colours`.
    Takes milliseconds a scan. Two distances are multiplied: that to the nearest labelled scan, and the widest gap on
    the way there from scan to scan, compared with the usual gap. A varied kind has no gaps, another kind is behind one.
    """
    if not labelled or not unlabelled:
        return []
    looks, k = [_look(case, plan) for case in (*labelled, *unlabelled)], len(labelled)
    table = torch.stack([torch.cat(list(look.values())) for look in looks]).double()
    apart = torch.cdist(table, table, compute_mode="donot_use_mm_for_euclid_dist")
    distance, nearest = apart[:k].min(0)
    neighbour = apart.clone().fill_diagonal_(math.inf).amin(1)
    gap = _widest_gap(apart, k) / neighbour.median().clamp(*USUAL_GAP)
    score = (distance * k**FEWER_FAR * gap).sqrt() / LIMIT
    return [
        Unlike(unlabelled[i - k].id, float(score[i]), _reason(looks[i], looks[int(nearest[i])]))
        for i in score.argsort(descending=True).tolist()
        if score[i] > 1
    ]


def _look(case: WorkingCase, plan: Plan) -> _Look:
    """What a scan looks like; slices of a stack are looked at one by one, and their number has no say.

    Computed on the CPU, so that a run that goes on elsewhere leaves the same scans out.
    """
    image, kind = case.image.cpu(), int(plan.photos)
    variance = image.flatten(1).var(1, correction=0).clamp_min(1e-12)
    flat = image.flatten(1)[:, :: image[0].numel() // SAMPLED | 1]  # an odd step does not follow a row or column
    look = {
        "extent": torch.tensor(image.shape[-plan.dims :]).log(),
        "grey": flat.quantile(torch.linspace(0.5, 31.5, 32) / 32, dim=1).mean(1),
    }
    coarse, shares = image, []
    for side in SIDES:
        deep, high, wide = image.shape[1:]
        shape = (min(side, deep) if plan.dims == 3 else deep, min(side, high), min(side, wide))
        coarse = F.adaptive_avg_pool3d(coarse, shape)
        shares.append((coarse.flatten(1).var(1, correction=0) / variance).mean())
        if side == SIDES[0]:
            look["rings"] = _rings(coarse, plan.dims)
    look["texture"] = (torch.stack(shares) + 0.05).log()
    if case.colours is not None:
        mean, spread, most = case.colours.cpu().unbind(1)
        peak = most.amax().clamp_min(1e-6)
        look["brightness"] = mean / peak
        look["contrast"] = ((spread / peak + 0.02) / (mean / peak + 0.02)).log()
        look["hue"] = mean / mean.sum().clamp_min(1e-6)
    return {name: value / USUAL[name][kind] / math.sqrt(len(value)) for name, value in look.items()}


def _rings(image: Tensor, dims: int) -> Tensor:
    """[RINGS] mean grey value from the middle of [C, a, y, x] to its border, in SDs of the image."""
    axes = [torch.linspace(-1, 1, n).abs() for n in image.shape[-dims:]]
    ring = (torch.stack(torch.meshgrid(*axes, indexing="ij")).amax(0) * RINGS).long().clamp_max(RINGS - 1)
    flat, which = image.flatten(1), ring.expand(image.shape[1:]).flatten()
    scaled = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True).clamp_min(1e-6)).mean(0)
    count = torch.bincount(which, minlength=RINGS).clamp_min(1)
    return torch.zeros(RINGS).index_add_(0, which, scaled) / count


def _widest_gap(apart: Tensor, labelled: int) -> Tensor:
    """[N] the widest step on the best way from scan to scan, from any of the first `labelled` ones."""
    widest = apart[:labelled].amin(0)
    todo = torch.ones(len(apart), dtype=torch.bool)
    for _ in range(len(apart)):
        here = int(widest.masked_fill(~todo, math.inf).argmin())
        todo[here] = False
        widest = torch.where(todo, torch.minimum(widest, apart[here].clamp_min(float(widest[here]))), widest)
    return widest


def _reason(look: _Look, other: _Look) -> str:
    """The aspects that make up most of the distance to the nearest labelled scan, the largest first."""
    off = {name: look[name] - other[name] for name in look}
    parts = {name: float(value.square().sum()) for name, value in off.items()}
    ratio = off["extent"] * USUAL["extent"][0] * math.sqrt(len(off["extent"]))
    words = {
        "extent": f"its extent is {math.exp(float(ratio[ratio.abs().argmax()])):.2g} x theirs",
        "grey": "its grey values are distributed differently",
        "texture": f"it shows {'coarser' if float(off['texture'].sum()) > 0 else 'finer'} detail",
        "rings": "light and dark lie elsewhere in it",
        "brightness": f"it is {'brighter' if float(off.get('brightness', ratio).sum()) > 0 else 'darker'}",
        "contrast": f"its contrast is {'higher' if float(off.get('contrast', ratio).sum()) > 0 else 'lower'}",
        "hue": "its colours are others",
    }
    told = [name for name in sorted(parts, key=lambda n: -parts[n]) if parts[name] > 0.2 * sum(parts.values())]
    return "; ".join(words[name] for name in told)
