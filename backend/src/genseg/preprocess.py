"""From a scan to the working grid of the network, and back.

Both ways scale index space between the scan's own grid and the working grid, so that what comes
back lies on the very voxels of the scan.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.imageio import Scan
from genseg.plan import Normalisation, Plan, nominal_spacing


@dataclass
class WorkingCase:
    """A scan in memory. Axes: [C, z, y, x] for a 3D network, [C, slice, y, x] for a 2D one (one slice for a photo)."""

    id: str
    image: Tensor  # float32, normalised
    label: Tensor | None  # uint8 indices, without the channel axis
    colours: Tensor | None = None  # of a photograph: [C, 3] mean, SD and maximum of each channel as it was


def colours_of(scan: Scan, plan: Plan) -> Tensor | None:
    """[C, 3] mean, SD and maximum of each channel of a photograph; nobody needs those of a volume."""
    if plan.physical:
        return None
    flat = torch.from_numpy(scan.array).flatten(1).double()
    return torch.stack([flat.mean(1), flat.std(1), flat.amax(1)], 1).float()


def to_working_grid(scan: Scan, plan: Plan) -> Tensor:
    """Scan → normalised float32 tensor [C, z, y, x] or [C, slice, y, x] on the working grid."""
    stack = torch.from_numpy(_as_stack(scan.array, plan))
    image = _resize(stack, _working_shape(scan, plan), plan.dims)
    return torch.stack([_normalise(c, how) for c, how in zip(image, plan.normalisation, strict=True)])


def label_to_working_grid(indices: np.ndarray, scan: Scan, plan: Plan) -> Tensor:
    """Index map on the scan's grid → uint8 indices on the working grid: resampled as one-hot, then argmax."""
    stack, shape = _as_stack(indices[None], plan), _working_shape(scan, plan)
    best = torch.full((stack.shape[1] if plan.dims == 2 else shape[0], *shape[-2:]), -1.0)
    winner = torch.zeros_like(best, dtype=torch.uint8)
    for index in np.unique(indices):
        share = _resize(torch.from_numpy((stack == index).astype(np.float32)), shape, plan.dims)[0]
        better = share > best
        best[better], winner[better] = share[better], int(index)
    return winner


def from_working_grid(scores: Tensor, scan: Scan, plan: Plan) -> np.ndarray:
    """Class scores [K, z|slice, y, x] on the working grid → index map on the scan's grid, class by class."""
    target = _as_stack(scan.array[:1], plan).shape[1:]
    best = winner = None
    for index in range(scores.shape[0]):
        resized = _interpolate(scores[index : index + 1].float(), list(target), plan.dims, downsampling=False)[0]
        if best is None or winner is None:
            best, winner = resized, torch.zeros(resized.shape, dtype=torch.int16)
            continue
        better = resized > best
        best, winner = torch.where(better, resized, best), winner.masked_fill_(better.cpu(), index)
    assert winner is not None
    array = winner.numpy()
    if plan.dims == 2:
        array = array[0] if plan.slice_axis is None else np.moveaxis(array, 0, plan.slice_axis)
    return array


def _as_stack(array: np.ndarray, plan: Plan) -> np.ndarray:
    """[C, *spatial] → [C, slice, y, x] for a 2D network, unchanged for a 3D one."""
    if plan.dims == 2:
        array = array[:, None] if plan.slice_axis is None else np.moveaxis(array, plan.slice_axis + 1, 1)
    return np.ascontiguousarray(array)


def _working_shape(scan: Scan, plan: Plan) -> list[int]:
    """Shape of the resampled axes: all three for a 3D network, the two in-plane axes for a 2D one."""
    spacing = nominal_spacing(scan, plan.reference_long_side)
    axes = [axis for axis in range(scan.dims) if axis != plan.slice_axis]
    sizes = [scan.array.shape[1 + axis] * spacing[axis] for axis in axes]
    return [max(1, round(size / step)) for size, step in zip(sizes, plan.spacing, strict=True)]


def _resize(stack: Tensor, shape: list[int], dims: int) -> Tensor:
    """[C, a, b, c] to `shape` (3 axes) or, in 2D, every slice to `shape` (2 axes)."""
    target = shape if dims == 3 else [stack.shape[1], *shape]
    downsampling = any(new < 0.75 * old for new, old in zip(target, stack.shape[1:], strict=True))
    return _interpolate(stack, target, dims, downsampling)


def _interpolate(stack: Tensor, target: list[int], dims: int, downsampling: bool) -> Tensor:
    if list(stack.shape[1:]) == list(target):
        return stack
    if dims == 2:  # slices are the batch; the filter widens when the grid gets coarser
        slices = stack.transpose(0, 1)
        return F.interpolate(slices, target[1:], mode="bilinear", antialias=downsampling).transpose(0, 1)
    if downsampling:
        return F.interpolate(stack[None], target, mode="area")[0]
    return F.interpolate(stack[None], target, mode="trilinear")[0]


def _normalise(channel: Tensor, how: Normalisation) -> Tensor:
    if how.kind == "ct":
        return (channel.clamp(how.low, how.high) - how.mean) / how.std
    return (channel - channel.mean()) / channel.std().clamp_min(1e-6)
