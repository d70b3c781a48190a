"""Shapes of other patients: smooth maps from the labelled scans to the others, labelled or not.

A layout that is bent by such a map, or by a mixture of two, has the anatomy of another patient, and its
labels come along (Zhao et al., CVPR 2019). No random deformation knows how patients differ.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.plan import Plan
from genseg.preprocess import WorkingCase

MAPS = 24  # in all; each is a registration
LATTICE = 8  # control points per axis
RATE = 0.05
SMOOTHNESS = 0.02
ITERATIONS = 30
VOXELS = 30_000  # larger scans are brought to about this size first
SHORTEST = 8  # voxels that an axis keeps on the way
WINDOW = 5  # voxels, of the local correlation
FAR = 0.1  # of the scan's extent: a map that moves everything farther, on the average, has lost its way
ALIKE = 1.7  # scans whose sides differ by a larger factor show different parts of the body


class ShapePool:
    """Maps from labelled scans to other patients' scans, found one by one with `find`.

    Photographs have no anatomy in common that lies in the same place, so for them there is nothing to find.
    """

    def __init__(self, labelled: list[WorkingCase], unlabelled: list[WorkingCase], patients: list[str], plan: Plan):
        """`patients` names the patient of each labelled scan."""
        self.cases = [*labelled, *unlabelled]
        self.dims, self.labelled = plan.dims, len(labelled)
        self.maps: list[Tensor] = []
        self.pairs: list[tuple[int, int]] = []  # (labelled scan, other scan), as indices of `cases`
        for shift in range(1, len(self.cases) if plan.physical else 0):
            for i in range(len(labelled)):
                other = (i + shift) % len(self.cases)
                same = other < len(labelled) and patients[other] == patients[i]
                if not same and _alike(self.cases[i].image, self.cases[other].image):
                    self.pairs.append((i, other))
        # Of many labelled scans, some from everywhere in the list have maps.
        self.pairs = self.pairs[:: max(1, min(len(self.pairs), len(labelled)) // MAPS)][:MAPS]

    @property
    def failed(self) -> int:
        """How many of the maps that were looked for were not found."""
        return sum(not bool(found.any()) for found in self.maps)

    def find(self) -> None:
        """Register the next pair; a map of zeros stands for one that was not found."""
        moving, fixed = (self.cases[index].image for index in self.pairs[len(self.maps)])
        found = register(moving, fixed, self.dims)
        extent = torch.tensor(moving.shape[-self.dims :], dtype=torch.float32).view(-1, 1, 1, 1)
        far = float((found / extent).abs().mean())
        self.maps.append(found if far < FAR else torch.zeros_like(found))  # also where it is not a number

    def draw(
        self, cases: list[int], depths: list[float], rng: torch.Generator, among: Sequence[int] | None = None
    ) -> Tensor:
        """Displacements [n, d, g, g(, g)] in voxels over the whole scan, for labelled scans `cases`; 0: no map yet.

        `depths` tells how deep, 0..1, each sample's slice lies in its scan; only a network of slices needs it. Where
        `among` is given, the other labelled scans are held out, and so are their shapes.
        """
        drawn = []
        for case, depth in zip(cases, depths, strict=True):
            maps = self._usable(case, among)
            choice = torch.randint(max(1, len(maps)), (2,), generator=rng).tolist()
            share = float(torch.rand(1, generator=rng))
            if maps:
                mixed = torch.lerp(maps[choice[0]], maps[choice[1]], share)
            else:
                mixed = torch.zeros(self.dims, *[LATTICE] * 3)
            drawn.append(mixed if self.dims == 3 else _at_depth(mixed, depth))
        return torch.stack(drawn)

    def _usable(self, case: int, among: Sequence[int] | None) -> list[Tensor]:
        """The maps of a labelled scan, without those to scans that are held out and those that were not found."""
        mine = [(found, pair[1]) for found, pair in zip(self.maps, self.pairs, strict=False) if pair[0] == case]
        return [
            found
            for found, other in mine
            if bool(found.any()) and (among is None or other >= self.labelled or other in among)
        ]


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two scans [C, a, y, x] are of similar extent."""
    return all(max(x, y) <= ALIKE * min(x, y) for x, y in zip(a.shape[1:], b.shape[1:], strict=True))


def _at_depth(lattice: Tensor, depth: float) -> Tensor:
    """[d, g, g, g] → [d, g, g] at 0..1 of the first axis."""
    position = min(max(depth, 0.0), 1.0) * (lattice.shape[1] - 1)
    low = min(int(position), lattice.shape[1] - 2)
    return torch.lerp(lattice[:, low], lattice[:, low + 1], position - low)


def register(moving: Tensor, fixed: Tensor, dims: int) -> Tensor:
    """[C, a, y, x] twice → where to look in `moving` to see it in the shape of `fixed`.

    Maximises the local correlation over an affine map and the displacements of a lattice, minus its
    roughness, by gradient ascent, on the processor. → displacements [dims, g, g, g] in voxels of `moving`, array
    order, on a lattice over the extent of `moving`. With dims 2 slices stay slices: only positions within them move.
    """
    sizes = [torch.tensor(x.shape[:0:-1], dtype=torch.float32) for x in (moving, fixed)]  # x first
    small = [_shrunk(x) for x in (moving, fixed)]
    free = torch.tensor([1.0, 1.0, float(dims == 3)])
    lattice = torch.zeros(1, 3, *[LATTICE] * 3, requires_grad=True)
    affine = torch.zeros(1, 3, 4, requires_grad=True)
    shape = list(small[1].shape)
    identity = F.affine_grid(torch.eye(3, 4)[None], shape, align_corners=False)
    optimiser = torch.optim.Adam([lattice, affine], lr=RATE)
    for iteration in range(ITERATIONS):
        optimiser.param_groups[0]["lr"] = RATE * (1 - iteration / ITERATIONS)
        shift = F.affine_grid(affine, shape, align_corners=False)
        if iteration > ITERATIONS // 3:  # first the affine map alone
            shift = shift + _bend(lattice, identity)
        seen = F.grid_sample(small[0], identity + shift * free, padding_mode="border", align_corners=False)
        rough = sum((lattice.diff(dim=axis) ** 2).mean() for axis in (2, 3, 4)) * LATTICE**2
        loss = SMOOTHNESS * rough - _local_correlation(seen, small[1], dims)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return _in_voxels(lattice.detach(), affine.detach(), free, *sizes)[3 - dims :]


def _bend(lattice: Tensor, positions: Tensor) -> Tensor:
    """[1, 3, g, g, g] at positions [1, ..., 3] in -1..1 over the scan, x first → [1, ..., 3]."""
    return F.grid_sample(lattice, positions, padding_mode="border", align_corners=True).movedim(1, -1)


def _shrunk(image: Tensor) -> Tensor:
    """[C, a, y, x] → [1, 1, a', y', x'] of about VOXELS voxels, on the processor."""
    sides, long = list(image.shape[1:]), [side for side in image.shape[1:] if side > SHORTEST]
    factor = max(1.0, (image[0].numel() / VOXELS) ** (1 / max(1, len(long))))
    small = [side if side <= SHORTEST else max(SHORTEST, round(side / factor)) for side in sides]
    return F.interpolate(image[None], small, mode="area").mean(1, keepdim=True).float().cpu()


def _local_correlation(a: Tensor, b: Tensor, dims: int) -> Tensor:
    # Odd, so that it has a middle, and not longer than the axis.
    window = [min(WINDOW, side - 1 + side % 2) for side in a.shape[2:]]
    window[0] = window[0] if dims == 3 else 1

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, window, 1, [side // 2 for side in window], count_include_pad=False)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    return (covariance**2 / (variance_a.clamp_min(1e-3) * variance_b.clamp_min(1e-3))).mean()


def _in_voxels(lattice: Tensor, affine: Tensor, free: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
    """A map in -1..1 over the fixed scan → displacements [3, g, g, g] in voxels of the moving one (sizes x first)."""
    axis = torch.linspace(-1, 1, LATTICE)
    here = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).flip(-1)[None]
    there = here * torch.where(free > 0, moving / fixed, torch.ones_like(moving))
    shift = _bend(lattice, there) + there @ affine[0, :, :3].T + affine[0, :, 3]
    voxels = (there + shift - here) * free * moving / 2
    return voxels[0].flip(-1).movedim(-1, 0).contiguous()
