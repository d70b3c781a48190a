"""Slices with outlines: the picture is a PNG or JPEG inside the page, the outlines are vector paths on top.

Arrays are the backend's: 3D [z, y, x] in LPS. Pictures follow radiological convention: the patient's right is on
the viewer's left, the head is up, and a sagittal picture looks from the left with the front on the viewer's left.
"""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.measure import find_contours
from skimage.transform import resize

from genseg.imageio import Scan
from genseg.labels import LabelTable
from genseg.report.html import Html, tag

SIDE, SIDE_COLOUR = 320, 440  # pixels along the longer side of a picture
FLAT = 0.3  # a volume this much thinner along one axis than along the others is a slab
CROP_BELOW = 0.35  # structures smaller than this share of the slice are shown enlarged


@dataclass(frozen=True)
class View:
    """One slice: image uint8 [h, w] or [h, w, 3], index maps [h, w], pixel size in mm (1 for photos)."""

    plane: str  # axial, coronal, sagittal, or "" for a photo
    image: np.ndarray
    labels: np.ndarray
    reference: np.ndarray | None
    pixel: tuple[float, float]  # rows, columns
    edges: tuple[str, str, str, str] | None  # letters left, right, top, bottom
    note: str = ""


EDGES = {"axial": ("R", "L", "A", "P"), "coronal": ("R", "L", "S", "I"), "sagittal": ("A", "P", "S", "I")}


def to_grey(array: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Scan array float [C, *spatial] → uint8 [*spatial] (first channel) or, for RGB photos, [y, x, 3]."""
    if array.ndim == 3 and array.shape[0] == 3:
        low, high = (0.0, 255.0) if array.min() >= 0 and 1.5 < array.max() <= 255 else (array.min(), array.max())
        shown = np.moveaxis(array, 0, -1)
    else:
        shown = array[0]
        low, high = window or np.percentile(shown[:: max(shown.shape[0] // 64, 1)], (0.5, 99.7))
    return np.round(np.clip((shown - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def make_views(
    scan: Scan, labels: np.ndarray, reference: np.ndarray | None, window: tuple[float, float] | None, planes: int = 3
) -> list[View]:
    """The slices that show most, the largest axial one first; one view for a 2D scan.

    labels and reference are index maps [*spatial] like `scan.array[0]`; `window` is (low, high) in scan units.
    """
    grey, spacing = to_grey(scan.array, window), scan.spacing
    if labels.ndim == 2:
        code, thin = scan.geometry.orientation, scan.geometry.thin
        plane = "" if code is None or thin is None else ("sagittal", "coronal", "axial")[thin]
        return [View(plane, grey, labels, reference, (spacing[0], spacing[1]), EDGES.get(plane))]
    content = labels if labels.any() or reference is None else reference
    volumes = [grey, labels] if reference is None else [grey, labels, reference]
    views = [
        _slice(volumes, axis, index, spacing, note) for axis, index, note in sorted(_choose(content, spacing)[:planes])
    ]
    if len({view.plane for view in views}) == 1:  # slices of one stack keep one field of view
        return _enlarge(views)
    return [enlarged for view in views for enlarged in _enlarge([view])]


def _choose(content: np.ndarray, spacing: tuple[float, ...]) -> list[tuple[int, int, str]]:
    """Which slices show a volume best: [(axis, index, note)], the first being the largest axial one.

    A slab that is flat along one axis is shown by three slices across that axis: the other planes would be strips.
    """
    field = [n * mm for n, mm in zip(content.shape, spacing, strict=True)]
    areas = [np.count_nonzero(content, axis=tuple(i for i in range(3) if i != axis)) for axis in range(3)]
    largest = [int(np.argmax(area)) if area.any() else len(area) // 2 for area in areas]
    flat = int(np.argmin(field))
    if field[flat] >= FLAT * sorted(field)[1]:
        return [(axis, largest[axis], "") for axis in range(3)]
    filled = np.flatnonzero(areas[flat]) if areas[flat].any() else np.arange(len(areas[flat]))
    quarters = {int(filled[round(part * (len(filled) - 1))]) for part in (0.2, 0.8)}
    chosen = [largest[flat], *sorted(quarters - {largest[flat]})]
    return [(flat, index, f"slice {index + 1} of {content.shape[flat]}") for index in chosen]


def _slice(volumes: list[np.ndarray], axis: int, index: int, spacing: tuple[float, ...], note: str) -> View:
    """One slice of image, labels and perhaps reference [z, y, x], turned as radiologists look at it."""
    picked = [volume.take(index, axis=axis) for volume in volumes]
    if axis:  # rows run along z, which grows towards the head
        picked = [plane[::-1] for plane in picked]
    rows, columns = (mm for i, mm in enumerate(spacing) if i != axis)
    plane = list(EDGES)[axis]
    reference = picked[2] if len(picked) > 2 else None
    return View(plane, picked[0], picked[1], reference, (rows, columns), EDGES[plane], note)


def _enlarge(views: list[View]) -> list[View]:
    """Crop slices of one stack to twice the size of their structures where these fill little of the slice."""
    pixel = views[0].pixel
    shown = np.any([v.labels > 0 if v.reference is None else (v.labels > 0) | (v.reference > 0) for v in views], axis=0)
    if not shown.any():
        return views
    box = [np.flatnonzero(shown.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    extent = [(last - first + 1) * mm for (first, last), mm in zip(box, pixel, strict=True)]
    field = [n * mm for n, mm in zip(shown.shape, pixel, strict=True)]
    if max(e / f for e, f in zip(extent, field, strict=True)) > CROP_BELOW:
        return views
    half = max(*extent, 0.3 * min(field))
    crop = []
    for (first, last), mm, n in zip(box, pixel, shown.shape, strict=True):
        centre, reach = (first + last) / 2, half / mm
        start = int(np.clip(centre - reach, 0, n))
        crop.append(slice(start, int(np.clip(centre + reach + 1, start + 1, n))))
    return [_cropped(view, (crop[0], crop[1])) for view in views]


def _cropped(view: View, part: tuple[slice, slice]) -> View:
    reference = None if view.reference is None else view.reference[part]
    note = ", ".join(filter(None, [view.note, "enlarged"]))
    return View(view.plane, view.image[part], view.labels[part], reference, view.pixel, view.edges, note)


def figure(view: View, table: LabelTable, what: str) -> Html:
    """The picture with its outlines, edge letters and a caption; `what` begins the alternative text."""
    height, width = view.image.shape[0] * view.pixel[0], view.image.shape[1] * view.pixel[1]
    rows, columns = view.labels.shape
    present = [i for i in np.unique(view.labels) if i > 0]
    paths = [_outline(view.labels == i, f"rgb{table.labels[i].color}", "drawn") for i in present]
    if view.reference is not None:
        drawn = [i for i in np.unique(view.reference) if i > 0]
        paths += [_outline(view.reference == i, "#fff", "reference") for i in drawn]
    overlay = tag(
        "svg", *paths, viewBox=f"0 0 {2 * columns} {2 * rows}", preserveAspectRatio="none", aria_hidden="true",
        class_="outlines",
    )  # fmt: skip
    names = ", ".join(table.labels[i].name for i in present[:8]) or "nothing"
    alt = f"{what}{', ' + view.plane + ' slice' if view.plane else ''}; outlined: {names}"
    letters = [
        tag("span", letter, class_=f"edge {side}") for letter, side in zip(view.edges or (), "lrtb", strict=False)
    ]
    frame = tag(
        "div", tag("img", src=_encode(view, height, width), alt=alt), overlay, *letters,
        class_="picture", style=f"aspect-ratio:{width:.3f}/{height:.3f}",
    )  # fmt: skip
    caption = " · ".join(filter(None, [view.plane, view.note]))
    return tag("figure", frame, tag("figcaption", caption) if caption else None)


def _outline(mask: np.ndarray, color: str, kind: str) -> Html:
    """The border of a mask [h, w] as one path in half pixels, on which the border of a binary mask lies exactly."""
    lines = []
    for contour in find_contours(np.pad(mask.astype(np.float32), 1), 0.5):
        points = np.rint(2 * (contour[:, ::-1] - 0.5)).astype(int)
        steps = np.diff(points, axis=0)
        bends = np.any(steps[1:] != steps[:-1], axis=1)  # points on a straight line say nothing
        kept = points[np.concatenate([[True], bends, [True]])]
        moves = "".join(f"l{x} {y}" for x, y in np.diff(kept, axis=0))
        lines.append(f"M{kept[0, 0]} {kept[0, 1]}{moves}".replace(" -", "-"))
    return tag("path", d="".join(lines), class_=kind, stroke=color)


def _encode(view: View, height: float, width: float) -> str:
    """The slice in its true proportions as a data address: PNG when grey, JPEG when coloured."""
    scale = (SIDE_COLOUR if view.image.ndim == 3 else SIDE) / max(height, width)
    shape = (max(round(height * scale), 1), max(round(width * scale), 1), *view.image.shape[2:])
    smaller = shape[0] < view.image.shape[0]
    resized = resize(
        view.image.astype(np.float32), shape, order=1 if smaller else 3, mode="edge", anti_aliasing=smaller
    )
    picture, buffer = Image.fromarray(np.round(np.clip(resized, 0, 255)).astype(np.uint8)), io.BytesIO()
    if view.image.ndim == 3:
        picture.save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG")  # `optimize` takes five times as long for 4 % of the size
    kind = "jpeg" if view.image.ndim == 3 else "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
