"""Shapes of other patients: smooth maps from the labelled scans to the others, labelled or not.

A layout that is bent by such a map, or by a mixture of two, has the anatomy of another patient, and its
labels come along (Zhao et al., CVPR 2019). No random deformation knows how patients differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.plan import Plan
from genseg.preprocess import WorkingCase

MAPS = 24  # in all; each is a registration
LATTICE = 8  # control points per axis
ITERATIONS = 30
RATE = 0.05
SMOOTHNESS = 0.02
VOXELS = 30_000  # larger scans are brought to about this size first
WINDOW = 5  # voxels, of the local correlation


class ShapePool:
    """Maps from labelled scans to other scans, found one by one with `find`.

    Photographs have no anatomy in common that lies in the same place, so for them there is nothing to find.
    """

    def __init__(self, labelled: list[WorkingCase], unlabelled: list[WorkingCase], plan: Plan):
        everyone = [*labelled, *unlabelled]
        self.dims = plan.dims
        self.maps: list[Tensor] = []
        self.pairs = [
            (everyone[i], everyone[(i + 1 + shift) % len(everyone)])
            for shift in range(len(everyone) - 1 if plan.physical else 0)
            for i in range(len(labelled))
        ][:MAPS]
        self.labelled = len(labelled)

    @property
    def missing(self) -> int:
        return len(self.pairs) - len(self.maps)

    def find(self) -> None:
        """Register the next pair."""
        moving, fixed = self.pairs[len(self.maps)]
        self.maps.append(register(moving.image, fixed.image, self.dims).cpu())

    def draw(self, cases: list[int], depths: list[float], rng: torch.Generator) -> Tensor:
        """Displacements [n, d, g, g(, g)] in voxels over the whole scan, for labelled scans `cases`; 0: no map yet.

        `depths` tells how deep, 0..1, each sample's slice lies in its scan; only a network of slices needs it.
        """
        drawn = []
        for case, depth in zip(cases, depths, strict=True):
            maps = self.maps[case :: self.labelled]
            choice = torch.randint(max(1, len(maps)), (2,), generator=rng).tolist()
            share = float(torch.rand(1, generator=rng))
            if maps:
                mixed = torch.lerp(maps[choice[0]], maps[choice[1]], share)
            else:
                mixed = torch.zeros(self.dims, *[LATTICE] * 3)
            drawn.append(mixed if self.dims == 3 else _at_depth(mixed, depth))
        return torch.stack(drawn)


def _at_depth(lattice: Tensor, depth: float) -> Tensor:
    """[d, g, g, g] → [d, g, g] at 0..1 of the first axis."""
    position = min(max(depth, 0.0), 1.0) * (lattice.shape[1] - 1)
    low = min(int(position), lattice.shape[1] - 2)
    return torch.lerp(lattice[:, low], lattice[:, low + 1], position - low)


def register(moving: Tensor, fixed: Tensor, dims: int) -> Tensor:
    """[C, a, y, x] twice → where to look in `moving` to see it in the shape of `fixed`.

    Maximises the local correlation over an affine map and the displacements of a lattice, minus its
    roughness, by gradient ascent. → displacements [dims, g, g, g] in voxels of `moving`, array order, on a
    lattice over the extent of `moving`. With dims 2 slices stay slices: only positions within them move.
    """
    sizes = [torch.tensor(x.shape[:0:-1], dtype=torch.float32, device=x.device) for x in (moving, fixed)]  # x first
    small = [_shrunk(x) for x in (moving, fixed)]
    free = torch.tensor([1.0, 1.0, float(dims == 3)], device=moving.device)
    lattice = torch.zeros(1, 3, *[LATTICE] * 3, device=moving.device, requires_grad=True)
    affine = torch.zeros(1, 3, 4, device=moving.device, requires_grad=True)
    shape = list(small[1].shape)
    identity = F.affine_grid(torch.eye(3, 4, device=moving.device)[None], shape, align_corners=False)
    optimiser = torch.optim.Adam([lattice, affine], lr=RATE)
    for iteration in range(ITERATIONS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - iteration / ITERATIONS)
        shift = F.affine_grid(affine, shape, align_corners=False)
        if iteration > ITERATIONS // 3:  # first the affine map alone
            shift = shift + F.interpolate(lattice, shape[2:], mode="trilinear", align_corners=True).movedim(1, -1)
        seen = F.grid_sample(small[0], identity + shift * free, padding_mode="border", align_corners=False)
        rough = sum((lattice.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) * LATTICE**2
        loss = SMOOTHNESS * rough - _local_correlation(seen, small[1], dims)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return _in_voxels(lattice.detach(), affine.detach(), free, *sizes)[3 - dims :]


def _shrunk(image: Tensor) -> Tensor:
    """[C, a, y, x] → [1, 1, a', y', x'] of about VOXELS voxels."""
    grey = image.float().mean(0)[None, None]
    factor = max(1.0, (grey.numel() / VOXELS) ** (1 / 3))
    return F.interpolate(grey, [max(min(side, 8), round(side / factor)) for side in grey.shape[2:]], mode="area")


def _local_correlation(a: Tensor, b: Tensor, dims: int) -> Tensor:
    window = [WINDOW if dims == 3 else 1, WINDOW, WINDOW]

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, window, 1, [side // 2 for side in window], count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    return (covariance**2 / (variance_a.clamp_min(1e-3) * variance_b.clamp_min(1e-3))).mean()


def _in_voxels(lattice: Tensor, affine: Tensor, free: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    """A map in -1..1 over the fixed scan → displacements [3, g, g, g] in voxels of the moving one (sizes x first)."""
    axis = torch.linspace(-1, 1, LATTICE, device=lattice.device)
    here = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flip(-1)[None]
    there = here * torch.where(free > 0, moving / fixed, torch.ones_like(moving))
    shift = F.grid_sample(lattice, there, padding_mode="border", align_corners=True).movedim(1, -1)
    shift = shift + there @ affine[0, :, :3].T + affine[0, :, 3]
    voxels = (there + shift - here) * free * moving / 2
    return voxels[0].flip(-1).movedim(-1, 0).contiguous()
