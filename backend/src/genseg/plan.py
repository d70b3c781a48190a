"""The plan: every number that is derived from the scans and the device instead of being asked for."""

import math
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from genseg.device import Device
from genseg.imageio import Scan
from genseg.labels import LabelTable
from genseg.runfolder import read_model, write_json
from genseg.structures import LABEL_SURVIVAL, Structure, all_curvilinear, structures_of, survival_of

THICK_SLICES = 3.0  # spacing ratio from which a volume is a stack of slices and not a block of tissue
FEW_SLICES = 8.0  # the same, told by the voxel counts where the header has lost the spacing
CT_DARKEST = (-3100.0, -500.0)  # HU
NARROWEST_WINDOW = 50.0  # HU; where the structures' own values span less, the window is that of soft tissue
SOFT_TISSUE = (-200.0, 300.0)  # HU
SIDES = ("left", "right", "links", "rechts", "l", "r")
MARGIN = 1.2  # the scans still to come may be larger than the few labelled ones
SOLID_SIDE = 32  # voxels of a patch across interpolated thick slices: four at the coarsest of four levels
SMALL = 64.0  # voxels along the longest side, up to which four levels suffice and rounding up to 16 costs most
COARSENING = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
# Voxels that a shrunken patch keeps at the coarsest level. With 2 along the first axis, oneDNN 3.12's bf16 gradient of
# a 3D convolution's weights is wrong (it reads memory that was never written).
COARSEST = 3
HEAD_VALUES = 24  # stored for each voxel and prompt by a dynamic head (measured: 13.5 MB at 48 x 64 x 48)
NOTABLE = 0.2  # share of the estimated memory from which on a part of it is told
LITTLE = 0.03  # share of a scan from which on a patch shows enough of it
COARSE = 8  # voxels along each axis for one of deeplabv3's mask
LARGE = 0.8  # Dice that every structure keeps on that mask's grid and back, where deeplabv3 is the network
COLOURED = 0.02  # of a photograph's range: how far its channels lie apart on average where it shows colours

DEFAULT_SEGMENTER = "dynunet"
NETWORK = ("activation", "filters", "kernels", "strides", "deep_supervision")  # fields that say what weights fit


class Normalisation(BaseModel):
    """One channel: 'zscore' by the scan's own mean and SD, or 'ct' by a window common to the study (HU)."""

    kind: Literal["zscore", "ct"] = "zscore"
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0


class Prompts(BaseModel):
    """Of a network that is asked with prompts, one a structure; the last of them means "any foreground"."""

    count: int  # of all prompts that the network knows
    tasks: list[int]  # the prompt of each of the study's structures
    dynamic: bool = True  # whether a prompt makes a head of its own; else they share one ordinary last layer

    def arguments(self) -> dict[str, Any]:
        """For genseg.networks.prompted.prompted_dynunet."""
        return {"prompts": self.count, "tasks": self.tasks, "dynamic": self.dynamic}


class Plan(BaseModel):
    """Working grid, network and batch of a run. Axes are in array order: (z, y, x), or (y, x) where dims is 2."""

    dims: Literal[2, 3]
    slice_axis: int | None  # axis of a (z, y, x) volume that is cut into slices for a 2D network
    channels: int
    classes: int  # background included
    physical: bool  # false for photographs, whose pixels have no size
    curvilinear: bool = False  # photographs in which every structure is long and thin, as vessels are
    reference_long_side: float | None  # photographs: a pixel's nominal size is this / the image's long side
    spacing: list[float]  # of the working grid, mm (nominal pixels for photographs)
    patch: list[int]
    batch: int
    normalisation: list[Normalisation]
    mirror_axes: list[int]  # network axes along which a mirrored scan is as plausible as the scan
    segmenter: str = DEFAULT_SEGMENTER
    activation: Literal["leakyrelu", "swish"] = "leakyrelu"  # of a dynunet; the smooth one is dearer
    filters: list[int]
    kernels: list[int]
    strides: list[int]
    deep_supervision: bool
    prompts: Prompts | None = None  # None: an ordinary network
    precision: Literal["bf16", "fp32"]
    memory_mb: int  # estimate of what training needs beside the scans
    notes: list[str]  # the reasons, in sentences for the user

    @property
    def scan_dims(self) -> int:
        """Axes of a scan: three also where a 2D network takes it slice by slice."""
        return self.dims if self.slice_axis is None else 3

    @property
    def photos(self) -> bool:
        """Whether the scans are photographs, and no stacks of images without a size in mm."""
        return not self.physical and self.scan_dims == 2

    def asked(self, prompts: Prompts) -> "Plan":
        """The same for a network with prompts: heads of their own take memory, which training needs twice a step."""
        asked = self.model_copy(update={"prompts": prompts})
        more = asked.heads_mb
        note = f"Heads told by prompts, of which there are {prompts.count}, take about {more} MB more."
        notes = [*self.notes, note] if more > NOTABLE * self.memory_mb else self.notes
        return asked.model_copy(update={"memory_mb": self.memory_mb + more, "notes": notes})

    @property
    def heads_mb(self) -> int:
        """The part of `memory_mb` that heads told by prompts take."""
        if self.prompts is None or not self.prompts.dynamic:
            return 0
        values = HEAD_VALUES / COARSE**self.dims + 1 if self.segmenter == "deeplabv3" else HEAD_VALUES
        return round(values * 4 * self.batch * math.prod(self.patch) * self.prompts.count / 2**20)

    def with_network_of(self, other: "Plan", whose: str) -> "Plan":
        """The same with another plan's network, the patch rounded up to what that needs; `whose`, for the user."""
        network = {key: getattr(other, key) for key in NETWORK}
        coarsest = 2 ** (len(other.filters) - 1)
        patch = [max(COARSEST, -(-side // coarsest)) * coarsest for side in self.patch]
        memory = _memory_mb(patch, self.batch, other.filters, self.channels)
        note = (
            f"The network is {whose}: {' / '.join(map(str, other.filters))} filters, patches of "
            f"{' x '.join(map(str, patch))} voxels, about {memory} MB."
        )
        changes = network | {"patch": patch, "memory_mb": memory, "notes": [*self.notes, note]}
        return self.model_copy(update=changes)

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        return read_model(cls, path)


def make_plan(
    scans: list[Scan],
    labels: list[np.ndarray],
    table: LabelTable,
    device: Device,
    solid: bool = False,
    segmenter: str = DEFAULT_SEGMENTER,
) -> Plan:
    """Derive the plan from the labelled scans (`labels[i]`: index map on the grid of `scans[i]`) and the device.

    `solid`: thick slices, too, go through a 3D network, for the sake of other studies in the same training.
    `segmenter`: the network's name, or "auto": what suits the scans.
    """
    notes: list[str] = []
    physical = scans[0].geometry.physical
    reference = None if physical else float(np.median([max(scan.array.shape[1:]) for scan in scans]))
    spacings = np.array([nominal_spacing(scan, reference) for scan in scans])
    spacing, shape = np.median(spacings, axis=0), np.median([scan.array.shape[1:] for scan in scans], axis=0)
    thick = _thick_slice_axis(spacing, shape) if scans[0].dims == 3 else None
    slice_axis = None if solid else thick
    dims: Literal[2, 3] = 2 if scans[0].dims == 2 or slice_axis is not None else 3
    if thick is not None:
        way = "are interpolated for a 3D network" if solid else "go slice by slice through a 2D network"
        notes.append(f"The slices are thick (spacing {_mm(spacing)}, {shape[thick]:.0f} slices), so they {way}.")
    shapes = np.array([np.array(s.array.shape[1:]) * sp for s, sp in zip(scans, spacings, strict=True)])
    kept = [axis for axis in range(len(spacing)) if axis != thick]
    voxels = device.patch_voxels(dims) / (SOLID_SIDE if solid and thick is not None else 1)
    structures = structures_of(labels)
    factor = _coarsening(shapes[:, kept] / spacing[kept], structures, thick, voxels, notes)
    if segmenter == "auto":
        segmenter = _suited(scans, structures, factor, notes)
    working = spacing * factor
    if solid and thick is not None:
        working[thick] = np.median(shapes[:, thick]) * MARGIN / SOLID_SIDE
    elif thick is not None:
        working, shapes = working[kept], shapes[:, kept]
    patch = _patch(shapes / working, device.patch_voxels(dims), MARGIN if physical else 1.0)
    _note_what_is_seen(patch, np.median(shapes, axis=0) / working, notes)
    filters = _filters(patch, dims, device)
    plan = Plan(
        dims=dims,
        slice_axis=slice_axis,
        channels=scans[0].array.shape[0],
        classes=len(table),
        physical=physical,
        curvilinear=scans[0].dims == 2 and not physical and all_curvilinear(structures),
        reference_long_side=reference,
        spacing=[float(v) for v in working],
        patch=patch,
        batch=device.batch(dims),
        normalisation=_normalisation(scans, labels, physical, notes),
        mirror_axes=_mirror_axes(dims, physical, table, notes),
        segmenter=segmenter,
        filters=filters,
        kernels=[3] * len(filters),
        strides=[1] + [2] * (len(filters) - 1),
        deep_supervision=len(filters) >= 6 and segmenter == DEFAULT_SEGMENTER,
        precision=device.precision,
        memory_mb=_memory_mb(patch, device.batch(dims), filters, scans[0].array.shape[0]),
        notes=notes,
    )
    plan.notes.append(
        f"A {dims}D network with {' / '.join(map(str, filters))} filters sees patches of {' x '.join(map(str, patch))} "
        f"voxels at {_mm(working) if physical else _mm(working).replace('mm', 'pixels')}, {plan.batch} at a time, "
        f"in {plan.precision}; about {plan.memory_mb} MB."
    )
    return plan


def nominal_spacing(scan: Scan, reference_long_side: float | None) -> np.ndarray:
    """Spacing in array order; for photographs relative to a long side common to the study."""
    if reference_long_side is None:
        return np.array(scan.spacing, dtype=float)
    return np.full(scan.dims, reference_long_side / max(scan.array.shape[1:]))


def _thick_slice_axis(spacing: np.ndarray, shape: np.ndarray) -> int | None:
    axis = int(np.argmax(spacing))
    if spacing[axis] / spacing.min() >= THICK_SLICES:
        return axis
    if not np.allclose(spacing, spacing[0]):
        return None  # the header knows
    axis = int(np.argmin(shape))
    return axis if np.delete(shape, axis).min() / shape[axis] >= FEW_SLICES else None


def _coarsening(
    shapes: np.ndarray, structures: list[Structure], slice_axis: int | None, voxels: float, notes: list[str]
) -> float:
    """The mildest factor at which a whole scan fits a patch, as long as every structure survives it."""
    chosen = 1.0
    for factor in COARSENING:
        survival = survival_of(structures, slice_axis, factor)
        if survival < LABEL_SURVIVAL:
            notes.append(
                f"The finest structures allow a {chosen:g} x coarser grid, not {factor:g} x (they would keep a Dice "
                f"of only {survival:.2f}), so the network sees parts of a scan at a time."
            )
            break
        chosen = factor
        if np.prod(np.median(shapes, axis=0) / factor) <= voxels * 1.1:
            break
    return chosen


def _suited(scans: list[Scan], structures: list[Structure], factor: float, notes: list[str]) -> str:
    """The usual network; for photographs in colour of structures that are all large, one that sees coarsely."""
    if scans[0].dims == 3 or scans[0].geometry.physical or len(scans[0].array) != 3:
        return DEFAULT_SEGMENTER
    colour = [float(np.ptp(scan.array, axis=0).mean() / max(np.ptp(scan.array), 1e-6)) for scan in scans]
    survival = survival_of(structures, None, COARSE * factor, LARGE)
    if np.median(colour) < COLOURED or survival < LARGE:
        return DEFAULT_SEGMENTER
    notes.append(
        f"These are photographs in colour of large structures (a mask {COARSE} x coarser than the working grid keeps a "
        f"Dice of {survival:.2f}), for which 'deeplabv3' was ahead of the usual '{DEFAULT_SEGMENTER}' or level."
    )
    return "deeplabv3"


def _patch(shapes: np.ndarray, voxels: int, margin: float) -> list[int]:
    """Patch in multiples of 16, of 8 on short axes and for small scans: the largest scan with a margin, or a part."""
    want = shapes.max(axis=0) * margin
    small = want.max() <= SMALL
    while np.prod(want) > voxels * 1.1:
        want = np.where(want == want.max(), want.max() * 0.95, want)
    # At least 16: with three levels that leaves four voxels at the coarsest, and bf16 is wrong below three there.
    return [max(16, _multiple(side, 8 if small or side <= 40 else 16)) for side in want]


def _note_what_is_seen(patch: list[int], shape: np.ndarray, notes: list[str]) -> None:
    seen = math.prod(patch) / float(np.prod(shape))
    if seen < LITTLE:
        notes.append(
            f"A patch shows only {100 * seen:.2g} % of a scan. Where a structure is told by its surroundings, crop the "
            "scans around it before training."
        )


def _multiple(side: float, of: int) -> int:
    """`side` brought to a multiple of `of`: upwards, unless it exceeds the lower one by less than a tenth."""
    lower = max(of, int(side // of) * of)
    return lower if side <= lower * 1.1 else lower + of


def _filters(patch: list[int], dims: int, device: Device) -> list[int]:
    levels = 1
    while min(patch) % 2**levels == 0 and min(patch) // 2**levels >= 4 and all(p % 2**levels == 0 for p in patch):
        levels += 1
    widths = device.filters(dims)
    return widths[: max(3, min(levels, len(widths)))]


def _normalisation(
    scans: list[Scan], labels: list[np.ndarray], physical: bool, notes: list[str]
) -> list[Normalisation]:
    """CT is told by air: one channel whose darkest voxels are those of air or of the padding around a CT."""
    first = scans[0].array
    is_ct = physical and first.shape[0] == 1 and all(_has_air(scan.array) for scan in scans)
    if not is_ct:
        return [Normalisation() for _ in range(first.shape[0])]
    tissue = np.concatenate([scan.array[0][label > 0][::7] for scan, label in zip(scans, labels, strict=True)])
    low, high = (float(v) for v in np.percentile(tissue, [0.5, 99.5]))
    if high - low < NARROWEST_WINDOW:
        low, high = SOFT_TISSUE
    clipped = np.clip(tissue, low, high)
    notes.append(f"The scans are CT; intensities are windowed to {low:.0f} to {high:.0f} HU.")
    return [Normalisation(kind="ct", low=low, high=high, mean=float(clipped.mean()), std=float(clipped.std()) or 1.0)]


def _has_air(array: np.ndarray) -> bool:
    """Whether the darkest half percent lies between the padding that scanners write (-3024) and air."""
    return bool(CT_DARKEST[0] <= np.percentile(array[:, ::2], 0.5) <= CT_DARKEST[1])


def _mirror_axes(dims: int, physical: bool, table: LabelTable, notes: list[str]) -> list[int]:
    """Photographs may be mirrored, unless a label's name tells left from right.

    A body in a volume has sides, and learning mirrored ones costs a short training accuracy.
    """
    if physical:
        return []
    names = " ".join(label.name.lower() for label in table.structures)
    if any(side in re.split(r"[^a-z]+", names) for side in SIDES):
        notes.append("Label names tell left from right, so images are never mirrored.")
        return []
    return list(range(dims))


def _memory_mb(patch: list[int], batch: int, filters: list[int], channels: int) -> int:
    """Weights with optimiser and averages, plus about ten stored activations a level, of segmenter and generator."""
    dims, weights, activations = len(patch), channels * filters[0] * 3 ** len(patch), 0.0
    for level, width in enumerate(filters):
        weights += 4 * width * width * 3**dims
        activations += 10 * width * math.prod(patch) / 2 ** (dims * level)
    return round((weights * 20 + activations * batch * 2 * 4) / 2**20)


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{v:.3g}" for v in spacing) + " mm"
