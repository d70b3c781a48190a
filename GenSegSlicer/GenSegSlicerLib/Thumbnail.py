"""Small pictures of a scan with its mask over it."""

import numpy as np

SLAB = 0.3  # a volume this much thinner along one axis than along the others is looked at across that axis
FILL = 0.12  # how much of a structure's color lies over the image
CUBIC = -0.5  # Catmull and Rom's cubic


class Thumbnail:
    """Draws slices with masks. `colors` maps the value in a mask to (red, green, blue), 0 to 255 each.

    Arrays are upright, as `ImageFile.upright` gives them: [z, y, x] in LPS or [y, x], image channels last. Pictures
    follow radiological convention: the patient's right is on the viewer's left, front or head up.
    """

    def __init__(self, colors: dict[int, tuple]):
        self.colors = {int(value): tuple(color) for value, color in colors.items()}

    def draw(self, image: np.ndarray, mask: np.ndarray | None, pixel: tuple, window: tuple, size: int) -> np.ndarray:
        """→ uint8 [h, w, 3], in true proportions, `size` pixels along the longer side.

        image: one slice [y, x] or [y, x, 3]; mask: [y, x] with the values of the file, or None; pixel: mm per row
        and column; window: (low, high) in image units, shown black and white.
        """
        size = int(size)
        height, width = image.shape[0] * pixel[0], image.shape[1] * pixel[1]
        scale = size / max(height, width)
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        low, high = window
        grey = (resized(image.astype(np.float32), shape) - low) / max(high - low, 1e-6) * 255
        grey = np.clip(grey, 0, 255)
        picture = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
        if mask is not None:
            self._overlay(picture, _resizedMask(mask, shape), thick=max(1, round(size / 120)))
        return np.round(picture).astype(np.uint8)

    def _overlay(self, picture, labels, thick):
        """A light fill and a clear border of every structure, into `picture` float [h, w, 3]; labels [h, w]."""
        for value in np.unique(labels[labels != 0]):
            color = np.array(self.colors.get(int(value), (255, 255, 0)), dtype=np.float32)
            inside = labels == value
            core = inside
            for _ in range(thick):
                core = _eroded(core)
            picture[inside] = (1 - FILL) * picture[inside] + FILL * color
            picture[inside & ~core] = color


def planeOf(shape: tuple, spacing: tuple, sliceAxis: int | None = None) -> int:
    """The axis (0 z, 1 y, 2 x) across which a volume [z, y, x] is looked at: `sliceAxis` where the network has one.

    Else axial, or for a slab the axis along which it is thin, because the other planes would be strips.
    """
    if sliceAxis is not None:
        return int(sliceAxis)
    field = [count * step for count, step in zip(shape, spacing, strict=True)]
    thin = int(np.argmin([f if n > 1 else 0 for f, n in zip(field, shape, strict=True)]))
    return thin if field[thin] < SLAB * sorted(field)[1] or shape[thin] == 1 else 0


def tellingSlice(mask: np.ndarray, axis: int) -> int:
    """The slice of mask [z, y, x] across `axis` that shows most; every structure counts alike. Middle if empty."""
    others = tuple(i for i in range(3) if i != axis)
    score = np.zeros(mask.shape[axis])
    for value in np.unique(mask[mask != 0]):
        area = np.count_nonzero(mask == value, axis=others)
        score += area / area.max()
    return int(np.argmax(score)) if score.any() else mask.shape[axis] // 2


def sliceAt(array: np.ndarray, axis: int, index: int) -> np.ndarray:
    """One slice of an upright volume [z, y, x(, c)], turned as radiologists look at it."""
    plane = np.take(array, index, axis=axis)
    return plane if axis == 0 else plane[::-1]  # rows run along z, which grows towards the head


def greyWindow(array: np.ndarray) -> tuple[float, float]:
    """(low, high) between which nearly all grey values of an image lie; 0 to 255 for photographs that use them."""
    if array.dtype == np.uint8 and array.ndim >= 3 and array.shape[-1] == 3:
        return 0.0, 255.0
    sample = array.ravel()[:: max(1, array.size // 200_000)].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return 0.0, 1.0
    low, high = np.percentile(sample, (0.5, 99.7))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def resized(array: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[h, w] or [h, w, c] float → the same at `shape` (rows, columns): cubic when larger, averaged when smaller."""
    rows, columns = (_weights(old, new, _cubic, 2) for old, new in zip(array.shape[:2], shape, strict=True))
    return np.einsum("ij,jk...,lk->il...", rows, array, columns, optimize=True)


def _resizedMask(mask, shape):
    """Label map [h, w] → [h, w] at `shape`: every pixel gets the structure that fills most of it."""
    rows, columns = (_weights(old, new, _linear, 1) for old, new in zip(mask.shape, shape, strict=True))
    best, winner = np.full(shape, -1.0, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    for value in np.unique(mask):
        share = rows @ (mask == value).astype(np.float32) @ columns.T
        better = share > best
        best[better], winner[better] = share[better], int(value)
    return winner


def _weights(old, new, kernel, reach):
    """float32 [new, old]: what every old pixel of a line adds to every new one; the kernel widens when shrinking."""
    step = old / new
    width = max(1.0, step)
    centers = (np.arange(new) + 0.5) * step - 0.5
    positions = np.arange(-int(np.ceil(reach * width)), old + int(np.ceil(reach * width)))
    weights = kernel((positions[None] - centers[:, None]) / width)
    folded = np.zeros((new, old))
    np.add.at(folded.T, np.clip(positions, 0, old - 1), weights.T)  # the border goes on as it ends
    return (folded / folded.sum(axis=1, keepdims=True)).astype(np.float32)


def _linear(x):
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x):
    x = np.abs(x)
    near = (CUBIC + 2) * x**3 - (CUBIC + 3) * x**2 + 1
    far = CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _eroded(mask):
    """A mask [h, w] without its outermost pixels; what touches the border of the picture stays."""
    padded = np.pad(mask, 1, mode="edge")
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
