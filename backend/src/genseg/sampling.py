"""Batches from scans in memory: one interpolation from the whole scan straight into the patch."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genseg.augment import (
    REFERENCE,
    UNCHANGED,
    IntensityDraw,
    SpatialDraw,
    Strength,
    apply_intensity,
    draw_intensity,
    draw_spatial,
    sample_image,
    sample_label,
    sample_label_soft,
    sampling_grid,
)
from genseg.plan import Plan
from genseg.preprocess import WorkingCase

FOREGROUND_SHARE = 0.5  # of the patches are centred on a labelled voxel
JITTER = 0.1  # of the patch: how far a scan that fits the patch is moved


@dataclass
class BatchDraw:
    """Which scans, which slices, which patches, and how they are changed."""

    cases: list[int]
    slices: list[int]
    spatial: SpatialDraw
    intensity: IntensityDraw

    def __len__(self) -> int:
        return len(self.cases)


class Sampler:
    """Draws patches from labelled scans and loads them."""

    def __init__(self, cases: list[WorkingCase], plan: Plan):
        self.cases, self.plan = cases, plan
        self.foreground = [_foreground(case, plan.classes) for case in cases]

    def draw(
        self, n: int, rng: torch.Generator, among: list[int] | None = None, wanted: Collection[int] | None = None
    ) -> BatchDraw:
        """n patches from the scans `among` (all by default), half of them centred on a structure drawn first.

        `wanted`: indices of the structures that are drawn from, all by default.
        """
        among = list(range(len(self.cases))) if among is None else among
        chosen = [among[int(k)] for k in torch.randint(len(among), (n,), generator=rng)]
        slices, centres = zip(*(self._place(c, rng, wanted) for c in chosen), strict=True)
        return BatchDraw(
            cases=chosen,
            slices=list(slices),
            spatial=draw_spatial(torch.stack(centres), self.plan.mirror_axes, rng),
            intensity=draw_intensity(n, self.plan.channels, self.plan.patch, rng),
        )

    def _place(self, index: int, rng: torch.Generator, wanted: Collection[int] | None) -> tuple[int, Tensor]:
        """Slice (0 in 3D) and centre of one patch; the patch stays in the scan but for a little jitter."""
        shape = self.cases[index].image.shape[1:]
        position = [int(torch.randint(side, (1,), generator=rng)) for side in shape]
        structures = [voxels for k, voxels in self.foreground[index].items() if wanted is None or k in wanted]
        if structures and float(torch.rand(1, generator=rng)) < FOREGROUND_SHARE:
            voxels = structures[int(torch.randint(len(structures), (1,), generator=rng))]
            position = voxels[int(torch.randint(len(voxels), (1,), generator=rng))].tolist()
        in_plane = torch.tensor(position[-self.plan.dims :], dtype=torch.float32)
        size, patch = torch.tensor(shape[-self.plan.dims :]), torch.tensor(self.plan.patch)
        low = torch.minimum(patch, size) / 2 - 0.5
        centre = torch.maximum(torch.minimum(in_plane, size - 1 - low), low)
        jitter = (torch.rand(self.plan.dims, generator=rng) * 2 - 1) * JITTER * patch
        return (position[0] if self.plan.dims == 2 else 0), centre + jitter

    def depths(self, draw: BatchDraw) -> list[float]:
        """How deep in its scan, 0..1, the middle of each sample's slice lies."""
        slices = (self.cases[index].image.shape[1] for index in draw.cases)
        return [(slice_ + 0.5) / number for slice_, number in zip(draw.slices, slices, strict=True)]

    def load(self, draw: BatchDraw, strength: Strength = REFERENCE) -> tuple[Tensor, Tensor]:
        """→ image [n, C, *patch] with intensities changed, label [n, *patch] int64."""
        images, labels = [], []
        for image, label, grid in self._grids(draw, strength):
            images.append(sample_image(image, grid))
            labels.append(sample_label(label, grid))
        return apply_intensity(torch.stack(images), draw.intensity.to(images[0].device), strength), torch.stack(labels)

    def load_image(self, draw: BatchDraw, strength: Strength = UNCHANGED) -> Tensor:
        """→ image [n, C, *patch] at the drawn places, grey values unchanged. Works for scans without labels."""
        return torch.stack([sample_image(image, grid) for image, _, grid in self._grids(draw, strength)])

    def load_label(self, draw: BatchDraw, strength: Strength) -> Tensor:
        """→ label [n, *patch] int64."""
        return torch.stack([sample_label(label, grid) for _, label, grid in self._grids(draw, strength)])

    def load_soft_label(self, draw: BatchDraw, strength: Strength, classes: int) -> Tensor:
        """→ label shares [n, classes, *patch], differentiable in the spatial strengths."""
        return torch.stack([sample_label_soft(label, classes, grid) for _, label, grid in self._grids(draw, strength)])

    def _grids(self, draw: BatchDraw, strength: Strength) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each sample its scan (or slice), its label, and where to look in them.

        Where the strengths are plain numbers the grid is reckoned on the processor: a graphics card would spend more
        time on starting these many small steps than on a training step.
        """
        learned = [value.device for value in strength.values() if isinstance(value, Tensor)]
        spatial = draw.spatial.to(learned[0]) if learned else draw.spatial
        for i, (index, slice_) in enumerate(zip(draw.cases, draw.slices, strict=True)):
            image, label = self._arrays(index, slice_)
            grid = sampling_grid(spatial, i, image.shape[1:], self.plan.patch, self.plan.spacing, strength)
            window, grid = crop_to_grid(image.shape[1:], grid)
            yield image[(slice(None), *window)], label[window], grid.to(image.device)

    def _arrays(self, index: int, slice_: int) -> tuple[Tensor, Tensor]:
        case = self.cases[index]
        image, label = case.image, case.label if case.label is not None else case.image[0]
        return (image[:, slice_], label[slice_]) if self.plan.dims == 2 else (image, label)


def changed(image: Tensor, label: Tensor, draw: BatchDraw, plan: Plan) -> tuple[Tensor, Tensor]:
    """Patches at hand, image [n, C, *patch] and label [n, *patch] int64, changed as `draw` says, about their middle."""
    middle = (torch.tensor(plan.patch, dtype=torch.float32) - 1) / 2
    spatial = replace(draw.spatial, centre=middle.expand(len(draw), -1))
    images, labels = [], []
    for i in range(len(draw)):
        grid = sampling_grid(spatial, i, tuple(plan.patch), plan.patch, plan.spacing, REFERENCE).to(image.device)
        images.append(sample_image(image[i], grid))
        labels.append(sample_label(label[i], grid))
    return apply_intensity(torch.stack(images), draw.intensity.to(image.device), REFERENCE), torch.stack(labels)


def crop_to_grid(shape: Sequence[int], grid: Tensor) -> tuple[tuple[slice, ...], Tensor]:
    """The part of a scan of `shape` that a sampling grid [1, *patch, d] looks at, and the grid within that part.

    So that sampling costs what the patch costs, however large the scan is. One voxel is left around
    for interpolation; what lies outside the scan stays outside.
    """
    size = torch.tensor(list(shape), device=grid.device)
    position = (grid.flip(-1) + 1) * size / 2 - 0.5  # voxels, array order
    flat = position.detach().flatten(0, -2)
    low = (flat.amin(0).floor().long() - 1).clamp_min(0).minimum(size - 1)
    high = (flat.amax(0).ceil().long() + 2).clamp_min(1).minimum(size).maximum(low + 1)
    window = tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist(), strict=True))
    return window, ((position - low + 0.5) * 2 / (high - low) - 1).flip(-1)


def _foreground(case: WorkingCase, classes: int) -> dict[int, Tensor]:
    """For each structure in the scan (indices 1..classes-1) about 2000 of its voxels [m, 3], evenly taken."""
    if case.label is None:
        return {}
    voxels = {k: (case.label == k).nonzero() for k in case.label.unique().tolist() if 0 < k < classes}
    return {k: v[:: max(1, len(v) // 2000)].cpu() for k, v in voxels.items()}
