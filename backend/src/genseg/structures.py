"""What the labelled structures are like: what a coarser grid leaves of them, how long and thin they are."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt, find_objects
from scipy.ndimage import label as parts_of

LABEL_SURVIVAL = 0.95  # Dice that every structure must keep when brought to the working grid and back
SURVIVAL_SCANS = {2: 8, 3: 3}  # images and volumes in which that is looked at, for each structure
THIN = 50.0  # times as long as wide, from which on a structure is curvilinear: vessels have 240 and more, others 2 to 5
THIN_SCANS = 3  # in which that is looked at
MOST_PIXELS = 1_000_000  # that are looked at in each, of larger ones evenly

Place = tuple[np.ndarray, int, tuple[slice, ...]]  # index map of a scan, a structure's index, its bounding box
Structure = list[Place]  # where one lies in each of some scans


def structures_of(labels: list[np.ndarray]) -> list[Structure]:
    """Where each structure lies in some of the scans; the smallest structure first, which is lost most easily."""
    places: dict[int, Structure] = {}
    for label in labels:
        for index, box in enumerate(find_objects(label), start=1):
            if box is not None and len(places.setdefault(index, [])) < SURVIVAL_SCANS[label.ndim]:
                places[index].append((label, index, box))
    return sorted(places.values(), key=lambda found: math.prod(part.stop - part.start for part in found[0][2]))


def survival_of(
    structures: list[Structure], slice_axis: int | None, factor: float, least: float = LABEL_SURVIVAL
) -> float:
    """Mean Dice of the worst structure after the way to a `factor` times coarser grid and back.

    The first structure that keeps less than `least` ends the search.
    """
    worst = 1.0
    for places in structures if factor > 1 else []:
        worst = min(worst, float(np.mean([_dice_kept(*place, slice_axis, factor) for place in places])))
        if worst < least:
            break
    return worst


def _dice_kept(label: np.ndarray, index: int, box: tuple[slice, ...], slice_axis: int | None, factor: float) -> float:
    """As if the whole scan took the way, but only the surroundings of the structure are computed."""
    margin = math.ceil(factor)
    box = tuple(
        slice(max(0, part.start - margin), min(size, part.stop + margin))
        for part, size in zip(box, label.shape, strict=True)
    )
    mask = torch.from_numpy(label[box] == index)
    ways = [
        None if axis == slice_axis else _way(size, part, factor)
        for axis, (size, part) in enumerate(zip(label.shape, box, strict=True))
    ]
    soft = mask.float()
    for step in (0, 1):
        for way in ways:  # each contracts the first axis and appends its own, so that in the end all are in order
            soft = soft.movedim(0, -1) if way is None else torch.tensordot(soft, way[step], ([0], [0]))
    back = soft > 0.5
    return float(2 * (back & mask).sum() / (back.sum() + mask.sum()))


def _way(size: int, part: slice, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """One axis there by areas and back linearly, as matrices [part, coarse] and [coarse, part]."""
    there = F.interpolate(torch.eye(size)[part, None], max(1, round(size / factor)), mode="area")[:, 0]
    touched = there.any(0)
    back = F.interpolate(torch.eye(there.shape[1])[touched, None], size, mode="linear")[:, 0, part]
    return there[:, touched], back


def all_curvilinear(structures: list[Structure]) -> bool:
    """Whether every structure of 2D scans is long and thin, as vessels and nerve fibres are."""
    return bool(structures) and all(
        float(np.median([_elongation(*place) for place in structure[:THIN_SCANS]])) > THIN for structure in structures
    )


def _elongation(label: np.ndarray, index: int, box: tuple[slice, ...]) -> float:
    """How many times the largest connected part is as long as it is wide, whatever the pixels' size; a disc has 1.8.

    Gaps narrower than the part is wide are closed first: cells that touch are long in their own widths, too, but what
    lies between them is no wider.
    """
    mask = label[box] == index
    step = max(1, math.ceil((mask.size / MOST_PIXELS) ** 0.5))
    parts, _ = parts_of(mask[::step, ::step], np.ones((3, 3)))
    if not parts.any():  # it fell between the pixels that are looked at
        return 0.0
    largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
    part = parts[find_objects(parts)[largest - 1]] == largest
    reach = math.ceil(_width(part))
    part = np.pad(part, 2 * reach)
    closed = distance_transform_edt(distance_transform_edt(~part) <= reach) > reach
    return float(closed.sum()) / _width(closed) ** 2


def _width(part: np.ndarray) -> float:
    """Pixels. In a strip the distance to the edge, half a pixel less than to the next outside, is a fourth of it."""
    part = np.pad(part, 1)
    return 4 * (float(distance_transform_edt(part)[part].mean()) - 0.5)
