"""Augmentation on the device, batched and differentiable, in 2D and 3D: draw, then apply.

A draw holds unit numbers in which 0 means "leave as it is"; the magnitude is
`strength[operation] * LIMIT[operation] * draw`. So every operation is differentiable in its
strength, and a sample can be made again from its draw.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Largest magnitude at strength 1, and the share of samples each operation touches.
LIMIT = {
    "rotate": math.radians(30),  # angle, per axis in 3D two thirds of it
    "scale": 0.3,  # log of the common zoom; a third of it per axis on its own
    "elastic": 0.24,  # displacement as a part of the patch
    "brightness": 0.6,  # added, in SDs of the scan
    "contrast": 0.45,  # log of the factor about the sample's mean
    "gamma": 0.5,  # log of the exponent
    "noise": 0.25,  # SD of the Gaussian noise
    "blur": 1.2,  # sigma in voxels
    "low_resolution": 1.0,  # how far towards the sample at half resolution
    "shape": 1.0,  # how far towards the shape of another patient; only where there are maps to others
}
SHARE = {
    "rotate": 0.6, "scale": 0.6, "elastic": 0.5, "brightness": 0.5, "contrast": 0.5,
    "gamma": 0.4, "noise": 0.25, "blur": 0.2, "low_resolution": 0.15,
}  # fmt: skip
OPERATIONS = tuple(LIMIT)
Strength = Mapping[str, Tensor | float]
REFERENCE: Strength = dict.fromkeys(OPERATIONS, 1.0)
UNCHANGED: Strength = dict.fromkeys(OPERATIONS, 0.0)


class Draw:
    """Base of the draws: dataclasses of CPU tensors whose first axis is the sample."""

    def to(self, device: torch.device) -> Any:
        return type(self)(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})  # type: ignore[arg-type]


@dataclass
class SpatialDraw(Draw):
    """Where the patch lies and how it is bent. d: number of axes; g: control points per axis."""

    centre: Tensor  # [n, d] voxel of the scan at the middle of the patch
    rotate: Tensor  # [n, 1 or 3] -1..1
    scale: Tensor  # [n, 1 + d] -1..1: common, then each axis
    elastic: Tensor  # [n, d, g, ...] about N(0, 1)
    mirror: Tensor  # [n, d] +1 or -1
    bend: Tensor  # [n, d, g, ...] towards another scan's shape: voxels, over the whole scan; 0 leaves it

    def unmoved(self) -> "SpatialDraw":
        """The same places, neither mirrored nor bent; with UNCHANGED they show the scan as it is."""
        return replace(self, mirror=torch.ones_like(self.mirror), bend=torch.zeros_like(self.bend))


@dataclass
class IntensityDraw(Draw):
    """How the grey values or colours change. C: channels."""

    brightness: Tensor  # [n, C] -1..1
    contrast: Tensor  # [n, C]
    gamma: Tensor  # [n]
    invert: Tensor  # [n] 1 where gamma acts on the negative
    noise: Tensor  # [n] 0..1
    field: Tensor  # [n, C, *patch] N(0, 1)
    blur: Tensor  # [n] 0..1
    low_resolution: Tensor  # [n] 0..1


def draw_spatial(centre: Tensor, mirror_axes: list[int], rng: torch.Generator) -> SpatialDraw:
    n, d = centre.shape
    mirror = torch.ones(n, d)
    for axis in mirror_axes:
        mirror[:, axis] -= 2.0 * (torch.rand(n, generator=rng) < 0.5)
    elastic = torch.randn(n, d, *[6] * d, generator=rng) / 2
    return SpatialDraw(
        centre=centre,
        rotate=_touched("rotate", n, 3 if d == 3 else 1, rng),
        scale=_touched("scale", n, 1 + d, rng),
        elastic=elastic * _chosen("elastic", n, rng).view(n, *[1] * (d + 1)),
        mirror=mirror,
        bend=torch.zeros(n, d, *[1] * d),
    )


def draw_intensity(n: int, channels: int, patch: list[int], rng: torch.Generator) -> IntensityDraw:
    def per_channel(name: str) -> Tensor:
        """One number for all channels, and half as much for each on its own (tint)."""
        common, own = _touched(name, n, 1, rng), _touched(name, n, channels, rng)
        return common if channels == 1 else (common + own / 2).clamp(-1, 1)

    return IntensityDraw(
        brightness=per_channel("brightness"),
        contrast=per_channel("contrast"),
        gamma=_touched("gamma", n, 1, rng)[:, 0],
        invert=(torch.rand(n, generator=rng) < 0.3).float(),
        noise=_touched("noise", n, 1, rng)[:, 0].abs(),
        field=torch.randn(n, channels, *patch, generator=rng),
        blur=_touched("blur", n, 1, rng)[:, 0].abs(),
        low_resolution=_touched("low_resolution", n, 1, rng)[:, 0].abs(),
    )


def _chosen(name: str, n: int, rng: torch.Generator) -> Tensor:
    return (torch.rand(n, generator=rng) < SHARE[name]).float()


def _touched(name: str, n: int, numbers: int, rng: torch.Generator) -> Tensor:
    """[n, numbers] uniform in -1..1, all zero for the samples that the operation leaves alone."""
    return (torch.rand(n, numbers, generator=rng) * 2 - 1) * _chosen(name, n, rng)[:, None]


def sampling_grid(
    draw: SpatialDraw, i: int, shape: tuple[int, ...], patch: list[int], spacing: list[float], strength: Strength
) -> Tensor:
    """Where sample i looks in a scan of `shape`: [1, *patch, d] in grid_sample's -1..1, x first.

    Always in float32: in bfloat16 a coordinate would be off by voxels.
    """
    with torch.autocast(draw.centre.device.type, enabled=False):
        return _sampling_grid(draw, i, shape, patch, spacing, strength)


def _sampling_grid(
    draw: SpatialDraw, i: int, shape: tuple[int, ...], patch: list[int], spacing: list[float], strength: Strength
) -> Tensor:
    d, device = len(patch), draw.centre.device
    axes = [torch.arange(p, device=device) - (p - 1) / 2 for p in patch]
    offset = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    step = torch.tensor(spacing, device=device)
    turn = _rotation(draw.rotate[i] * LIMIT["rotate"] * strength["rotate"] * (1.0 if d == 2 else 0.67))
    zoom = torch.exp((draw.scale[i, 0] + draw.scale[i, 1:] / 3) * LIMIT["scale"] * strength["scale"])
    # voxel -> mm, turn, zoom and mirror about the centre, mm -> voxel
    matrix = (turn * (zoom * draw.mirror[i] * step)[None, :]) / step[:, None]
    position = offset @ matrix.T + draw.centre[i]
    if bool(draw.elastic[i].any()):
        mode = "bilinear" if d == 2 else "trilinear"
        bend = F.interpolate(draw.elastic[i][None], patch, mode=mode, align_corners=True)[0].movedim(0, -1)
        position = position + bend * torch.tensor(patch, device=device) * LIMIT["elastic"] * strength["elastic"] / 2
    size = torch.tensor(shape, device=device)
    if bool(draw.bend[i].any()):
        there = ((position + 0.5) * 2 / size - 1).flip(-1)[None]
        other = F.grid_sample(draw.bend[i][None], there, padding_mode="border", align_corners=True)[0].movedim(0, -1)
        position = position + other * LIMIT["shape"] * strength["shape"]
    return ((position + 0.5) * 2 / size - 1).flip(-1)[None]


def sample_image(image: Tensor, grid: Tensor) -> Tensor:
    """[C, *scan] at `grid` → [C, *patch], linear, zero (the scan's mean) outside."""
    return F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]


def sample_label(label: Tensor, grid: Tensor) -> Tensor:
    """[*scan] indices at `grid` → [*patch] int64, nearest, background outside."""
    found = F.grid_sample(label[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return found[0, 0].round().long()


def sample_label_soft(label: Tensor, classes: int, grid: Tensor) -> Tensor:
    """[*scan] indices at `grid` → [classes, *patch] shares that add up to 1, differentiable in the grid."""
    shares = torch.stack([sample_image((label == k).float()[None], grid)[0] for k in range(1, classes)])
    return torch.cat([1 - shares.sum(0, keepdim=True), shares])


def _rotation(angles: Tensor) -> Tensor:
    """[1] → 2 x 2, [3] → 3 x 3: one turn about each axis, radians."""
    turn = torch.eye(2 if len(angles) == 1 else 3, device=angles.device)
    planes = [(0, 1)] if len(angles) == 1 else [(0, 1), (0, 2), (1, 2)]
    for angle, (a, b) in zip(angles, planes, strict=True):
        generator = torch.zeros_like(turn)
        generator[a, b], generator[b, a] = -1.0, 1.0
        turn = turn @ torch.linalg.matrix_exp(generator * angle)
    return turn


def apply_intensity(image: Tensor, draw: IntensityDraw, strength: Strength) -> Tensor:
    """[n, C, *patch] → the same shape, float32. Order: blur, noise, brightness, contrast, low resolution, gamma.

    Never in bfloat16: eight bits are fewer than the grey values of a scan.
    """
    with torch.autocast(image.device.type, enabled=False):
        return _apply_intensity(image.to(draw.field.dtype), draw, strength)


def _apply_intensity(image: Tensor, draw: IntensityDraw, strength: Strength) -> Tensor:
    d = image.ndim - 2

    def wide(numbers: Tensor, name: str) -> Tensor:
        return (numbers * LIMIT[name] * strength[name]).view(*numbers.shape, *[1] * (image.ndim - numbers.ndim))

    image = _for_touched(draw.blur, image, lambda x, on: blur(x, wide(draw.blur[on], "blur").flatten()))
    image = image + wide(draw.noise, "noise") * draw.field
    image = image + wide(draw.brightness, "brightness")
    mean = image.mean(tuple(range(2, 2 + d)), keepdim=True)
    image = (image - mean) * wide(draw.contrast, "contrast").exp() + mean
    image = _for_touched(
        draw.low_resolution,
        image,
        lambda x, on: x + wide(draw.low_resolution[on], "low_resolution").clamp(max=1) * (_half_resolution(x) - x),
    )
    sign = (1 - 2 * draw.invert).view(-1, *[1] * (d + 1))
    return _for_touched(
        draw.gamma, image, lambda x, on: sign[on] * _gamma(sign[on] * x, wide(draw.gamma[on], "gamma").exp())
    )


def _for_touched(numbers: Tensor, image: Tensor, operation: Any) -> Tensor:
    """Apply `operation(samples, indices)` to the samples whose number is not 0."""
    on = numbers.nonzero()[:, 0]
    return image if len(on) == 0 else image.index_copy(0, on, operation(image[on], on))


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of [n, C, *patch] with sigma [n] in voxels (0 leaves the sample), separable, radius 3."""
    n, channels, *patch = image.shape
    d = len(patch)
    reach = torch.arange(-3, 4, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-(reach**2) / (2 * sigma.to(image.dtype).clamp_min(0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    out = image.reshape(1, n * channels, *patch)
    conv = F.conv2d if d == 2 else F.conv3d
    for axis in range(d):
        shape, pad = [1] * d, [0, 0] * d
        shape[axis], pad[2 * (d - 1 - axis) : 2 * (d - axis)] = 7, [3, 3]
        out = conv(F.pad(out, pad, mode="replicate"), kernel.view(-1, 1, *shape), groups=n * channels)
    return out.view_as(image)


def _half_resolution(image: Tensor) -> Tensor:
    small = F.interpolate(image, scale_factor=0.5, mode="nearest")
    return F.interpolate(small, image.shape[2:], mode="bilinear" if image.ndim == 4 else "trilinear")


def _gamma(image: Tensor, exponent: Tensor) -> Tensor:
    """Power law on each sample's own range, which it keeps."""
    low = image.flatten(1).amin(1).view(-1, *[1] * (image.ndim - 1))
    span = image.flatten(1).amax(1).view_as(low) - low
    unit = ((image - low) / span.clamp_min(1e-6)).clamp(1e-4, 1)  # the slope of x**a has no bound at 0
    return unit**exponent * span + low
