"""A synthetic upper abdomen that looks like T1-weighted MR: sample data where there is no network.

Nothing here comes from a patient. Every body is drawn from ellipsoids, tubes and shells in millimetres
(x to the left, y to the back, z to the head, as in ITK), deformed and shaded individually, on a grid twice as fine
as the result, so that voxels at a border hold a mixture of tissues as they do in a scanner. Several unlabelled
organs share the intensities of the labelled ones: a threshold cannot solve it, position and shape can.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from skimage.filters import gaussian

SIZE = (36, 48, 64)  # voxels (z, y, x)
SPACING = 4.0  # mm, all axes
FINE = 2  # the body is drawn on a grid this many times finer
LABELS = {1: "liver", 2: "kidneys", 3: "spleen"}

# tissue: (mean signal, its relative spread between bodies, texture, label)
TISSUES: dict[str, tuple[float, float, float, int]] = {
    "air": (0.01, 0.0, 0.0, 0),
    "fat": (0.96, 0.04, 0.05, 0),
    "muscle": (0.43, 0.06, 0.10, 0),
    "organ fat": (0.88, 0.05, 0.08, 0),
    "lung": (0.07, 0.2, 0.5, 0),
    "heart": (0.47, 0.08, 0.08, 0),
    "cortical bone": (0.14, 0.1, 0.1, 0),
    "marrow": (0.70, 0.08, 0.08, 0),
    "disc": (0.38, 0.1, 0.05, 0),
    "cord": (0.46, 0.05, 0.03, 0),
    "spinal fluid": (0.17, 0.1, 0.02, 0),
    "aorta": (0.22, 0.5, 0.1, 0),
    "vein": (0.30, 0.4, 0.1, 0),
    "bowel wall": (0.45, 0.08, 0.06, 0),
    "bowel": (0.56, 0.15, 0.25, 0),
    "bowel gas": (0.05, 0.2, 0.1, 0),
    "stomach wall": (0.46, 0.06, 0.05, 0),
    "stomach": (0.36, 0.25, 0.20, 0),
    "gallbladder": (0.26, 0.3, 0.03, 0),
    "pancreas": (0.60, 0.07, 0.12, 0),
    "liver": (0.60, 0.06, 0.04, 1),
    "liver vessel": (0.38, 0.12, 0.03, 1),
    "kidney cortex": (0.52, 0.06, 0.04, 2),
    "kidney medulla": (0.39, 0.06, 0.04, 2),
    "spleen": (0.45, 0.07, 0.04, 3),
}
_INDEX = {name: i for i, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class Body:
    """One phantom: image int16 [z, y, x] and its label map uint8 [z, y, x] (values of LABELS)."""

    image: np.ndarray
    label: np.ndarray


Point = Sequence[float]  # mm, (x, y, z)


def make_body(seed: int) -> Body:
    """Draw the body that belongs to `seed`; the same seed gives the same voxels."""
    rng = np.random.default_rng([20250, seed])
    canvas = _Canvas(rng)
    for draw in (_trunk, _chest, _spine, _muscles, _bowel, _stomach, _spleen, _liver, _pancreas, _kidneys, _vessels):
        draw(canvas)
    return Body(image=_scan(canvas), label=_label_map(canvas))


class _Canvas:
    """Tissue index on the fine grid, painted over in order; coordinates in mm are those of the undeformed body."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        shape = tuple(n * FINE for n in SIZE)
        axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * (SPACING / FINE) for n in shape]
        z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
        scale = 1 + 0.05 * rng.uniform(-1, 1, 3)  # stature and girth
        shift = rng.normal(0, 3.0, 3)  # position in the scanner
        self.z = (z - shift[0]) / scale[0] + smooth(rng, shape, 45, 3.0)
        self.y = (y - shift[1] - 2) / scale[1] + smooth(rng, shape, 45, 2.8)
        self.x = (x - shift[2]) / scale[2] + smooth(rng, shape, 45, 3.0)
        self.tissue = np.zeros(shape, np.uint8)
        self.inner = np.zeros(shape, np.float32)  # distance to the abdominal wall in mm, negative inside
        self.dome = np.zeros(shape, np.float32)  # mm below the diaphragm, negative in the chest

    def near(self, mm: float) -> np.ndarray:
        """Three offsets drawn for one structure, standard deviation `mm`."""
        return self.rng.normal(0, mm, 3)

    def ellipsoid(
        self,
        centre: Point,
        radii: Point,
        turn: float = 0.0,
        tilt: float = 0.0,
    ) -> np.ndarray:
        """About the distance in mm to an ellipsoid (x, y, z), negative inside; turn about z, tilt about y."""
        x, y, z = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        if turn:
            x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
        if tilt:
            x, z = np.cos(tilt) * x + np.sin(tilt) * z, np.cos(tilt) * z - np.sin(tilt) * x
        norm = np.sqrt((x / radii[0]) ** 2 + (y / radii[1]) ** 2 + (z / radii[2]) ** 2)
        return (norm - 1) * np.float32(min(radii))

    def column(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """About the distance in mm to an upright elliptic cylinder."""
        return (np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2) - 1) * np.float32(min(rx, ry))

    def tube(self, points: Sequence[Point], radius: float, end: float | None = None) -> np.ndarray:
        """Distance in mm to a chain of rounded segments that narrows from `radius` to `end`."""
        end = radius if end is None else end
        result = np.full(self.tissue.shape, np.inf, np.float32)
        for i, (a, b) in enumerate(pairwise(points)):
            box = self._box(a, b, radius + end)
            d = np.subtract(b, a).astype(np.float32)
            x, y, z = (axis[box] - np.float32(start) for axis, start in zip((self.x, self.y, self.z), a, strict=True))
            t = np.clip((x * d[0] + y * d[1] + z * d[2]) / max(float(d @ d), 1e-6), 0, 1)
            distance = np.sqrt((x - t * d[0]) ** 2 + (y - t * d[1]) ** 2 + (z - t * d[2]) ** 2)
            distance -= np.float32(radius) + np.float32((end - radius) / (len(points) - 1)) * (i + t)
            np.minimum(result[box], distance, out=result[box])
        return result

    def _box(self, a: Point, b: Point, reach: float) -> tuple[slice, ...]:
        """The part of the grid where the segment a–b (x, y, z) can lie, whatever the deformation."""
        low, high = np.minimum(a, b)[::-1] - reach - 30, np.maximum(a, b)[::-1] + reach + 30
        step = SPACING / FINE
        centre = (np.array(self.tissue.shape) - 1) / 2
        start = np.clip(low / step + centre, 0, self.tissue.shape).astype(int)
        stop = np.clip(high / step + centre + 1, 0, self.tissue.shape).astype(int)
        return tuple(slice(i, j) for i, j in zip(start, stop, strict=True))

    def paint(self, where: np.ndarray, tissue: str) -> None:
        self.tissue[where] = _INDEX[tissue]

    def is_(self, *tissues: str) -> np.ndarray:
        return np.isin(self.tissue, [_INDEX[t] for t in tissues])


def smooth(rng: np.random.Generator, shape: tuple[int, ...], mm: float, amplitude: float) -> np.ndarray:
    """A smooth random field float32 [*shape] with details of about `mm` and standard deviation `amplitude`."""
    step = mm / (SPACING / FINE)
    field = rng.standard_normal([int(np.ceil(n / step)) + 4 for n in shape]).astype(np.float32)
    for n in shape:  # cubic B-spline along one axis after the other; the axes come round to their places
        knots = np.arange(field.shape[0], dtype=np.float32)
        t = np.abs(np.arange(n, dtype=np.float32)[:, None] / step + 1.5 - knots)
        weights = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)
        field = np.tensordot(field, weights, axes=(0, 1))
    return (field * (amplitude / max(float(field.std()), 1e-6))).astype(np.float32)


def _blend(a: np.ndarray, b: np.ndarray, mm: float) -> np.ndarray:
    """Smooth union of two distances: the seam is rounded over `mm`."""
    h = np.clip(0.5 + 0.5 * (b - a) / mm, 0, 1)
    return b + (a - b) * h - mm * h * (1 - h)


def _trunk(c: _Canvas) -> None:
    """Skin, subcutaneous fat (thicker at the flanks and the back), abdominal wall with ribs, fat between the organs."""
    girth, depth = 110 + c.rng.normal(0, 2.5), 79 + c.rng.normal(0, 2.5)
    power = 2.25
    norm = (np.abs(c.x / girth) ** power + np.abs(c.y / depth) ** power) ** (1 / power)
    angle = np.arctan2(c.y / depth, c.x / girth)
    back = np.clip(c.y / depth, -1, 1)
    skin = (norm - 1) * depth + 5 * np.exp(-((c.x / 16) ** 2)) * (back > 0)  # the furrow over the spine
    fat = c.rng.uniform(6, 15) * (1 + 0.35 * back + 0.25 * np.cos(2 * angle)) + smooth(c.rng, c.tissue.shape, 40, 0.8)
    c.inner = skin + fat + 9 + 2.5 * np.cos(2 * angle)
    c.paint(skin < 0, "fat")
    c.paint(skin < -fat, "muscle")
    c.paint((skin < -fat - 2.5) & (c.inner > 3.2) & (smooth(c.rng, c.tissue.shape, 14, 1) > 1.1), "fat")  # layers
    c.paint(c.inner < 0, "organ fat")
    rib = np.abs(((c.z + 0.55 * c.y + 12 * np.cos(angle)) / 25 + c.rng.uniform()) % 1 - 0.5) * 25
    thorax = (c.z > -28 - 0.35 * c.y) & (np.abs(c.x) > 28)
    shell = np.sqrt((rib / 1.3) ** 2 + (c.inner - 4.5) ** 2)
    c.paint(thorax & (shell < 4.3), "cortical bone")
    c.paint(thorax & (shell < 2.4), "marrow")


def _chest(c: _Canvas) -> None:
    """Lung bases behind and above the diaphragm, the heart's lower wall in the middle."""
    radius2 = (c.x / 95) ** 2 + ((c.y + 8) / 62) ** 2
    right = 6 * np.exp(-(((c.x + 45) / 40) ** 2))
    c.dome = 66 + right - 58 * radius2**1.4 - (c.z + c.near(2)[0])  # distance below the diaphragm, mm along z
    c.paint((c.inner < 0) & (c.dome < 0), "lung")
    c.paint((c.inner < 0) & (np.abs(c.dome - 1.2) < 1.4), "muscle")
    c.paint((c.ellipsoid((22, -28, 78), (46, 34, 22)) < 0) & (c.dome < 0), "heart")


def _spine(c: _Canvas) -> None:
    """Vertebrae with discs, arches and processes, canal with cord."""
    x, y = c.near(0.8)[:2]
    body = c.column(x, 36 + y, 19, 14.5)
    phase = np.abs(((c.z / 33 + c.rng.uniform()) % 1) - 0.5) * 33
    c.paint(body < 0, "cortical bone")
    c.paint((body < -1.6) & (phase > 4.8), "marrow")
    c.paint((body < 0) & (phase < 3.6), "disc")
    arch = np.minimum(c.column(x, 55 + y, 17, 11), c.column(x, 68 + y, 4.5, 13))
    transverse = c.ellipsoid((x, 56 + y, 0), (34, 5, 1e4))
    c.paint((c.inner < 12) & ((arch < 0) | ((transverse < 0) & (phase > 11))), "cortical bone")
    c.paint((c.inner < 12) & ((arch < -2.6) | ((transverse < -2) & (phase > 12))), "marrow")
    canal = c.column(x, 56 + y, 9.5, 7.5)
    c.paint(canal < 0, "spinal fluid")
    c.paint(c.column(x, 56.5 + y, 5, 4) < 0, "cord")


def _muscles(c: _Canvas) -> None:
    """Erector spinae, quadratus, psoas (growing downwards) and the diaphragm's crura."""
    free = ~c.is_("cortical bone", "marrow", "disc", "spinal fluid", "cord", "air", "lung")
    for side in (-1, 1):
        groups = [
            c.column(side * 28, 64, 22, 14),
            c.column(side * 62, 52, 16, 9) + np.clip(c.z / 6, 0, 30),
            c.column(side * 31, 34, 12, 15) + np.clip((c.z + 18) / 4, -3, 30),
            c.column(side * 17, 22, 5, 12) + np.clip(-(c.z + 5) / 4, 0, 30),
        ]
        fibres = smooth(c.rng, c.tissue.shape, 10, 1) > 1.7
        where = np.minimum.reduce(groups) < 0
        c.paint(free & where, "muscle")
        c.paint(free & where & fibres, "fat")


def _bowel(c: _Canvas) -> None:
    """Loops of small bowel in front and below, colon along both flanks; their signal imitates spleen and kidney."""
    rng = c.rng
    room = (c.inner < -2) & (c.dome > 3) & c.is_("organ fat")
    for _ in range(16):
        x, y, z = rng.uniform(-62, 62), rng.uniform(-54, 0), rng.uniform(-80, -12)
        step = rng.normal(0, [17, 8, 8], (2, 3))
        chain = [(x, y, z), tuple(step[0] + (x, y, z)), tuple(step[0] + step[1] + (x, y, z))]
        _loop(c, c.tube(chain, rng.uniform(8, 11.5)), room)
    for side in (-1, 1):
        x, y, z = np.add((side * 82, 12, 0), c.near(4))
        chain = [(x, y, z - 85), (x + side * 2, y, z - 45), (x - side * 8, y - 18, z - 28 + 14 * (side > 0))]
        _loop(c, c.tube(chain, rng.uniform(13, 16)), room)


def _loop(c: _Canvas, distance: np.ndarray, room: np.ndarray) -> None:
    """One loop: wall, contents, gas in front of a fluid level in some."""
    c.paint(room & (distance < 0), "bowel wall")
    filled = room & (distance < -2.6)
    c.paint(filled, "bowel" if c.rng.uniform() < 0.7 else "stomach")
    if filled.any() and c.rng.uniform() < 0.35:
        level = np.quantile(np.broadcast_to(c.y, filled.shape)[filled], 0.35)
        c.paint(filled & (c.y < level), "bowel gas")


def _stomach(c: _Canvas) -> None:
    """A bent bag from the left dome to the midline, with food and an air bubble in front."""
    dx, dy, dz = c.near(3)
    size = c.rng.uniform(0.8, 1.2)
    chain = [(40 + dx, -4 + dy, 46 + dz), (46 + dx, -22 + dy, 20 + dz), (24 + dx, -38 + dy, -2), (-4 + dx, -30, -4)]
    bag = c.tube(chain, 21 * size, 11)
    room = (c.inner < -2) & (c.dome > 3) & ~c.is_("cortical bone", "marrow", "muscle", "air")
    c.paint(room & (bag < 0), "stomach wall")
    c.paint(room & (bag < -4), "stomach")
    c.paint(room & (bag < -4) & (c.y < c.rng.uniform(-48, -30)), "bowel gas")


def _spleen(c: _Canvas) -> None:
    """A crescent between stomach, diaphragm and left kidney."""
    dx, dy, dz = c.near(3)
    size = c.rng.uniform(0.88, 1.14)
    outer = c.ellipsoid((62 + dx, 22 + dy, 22 + dz), (36 * size, 42 * size, 44 * size), turn=0.35, tilt=-0.15)
    hollow = c.ellipsoid((30 + dx, -6 + dy, 18 + dz), (27, 38, 54), turn=0.3)
    where = (outer < 0) & (hollow > 0) & (c.inner < -1.5) & (c.dome > 2)
    c.paint(where & ~c.is_("cortical bone", "marrow", "muscle"), "spleen")


def _liver(c: _Canvas) -> None:
    """Right and left lobe under the diaphragm, lower edge slanting to the left; gallbladder and vessel tree."""
    dx, dy, dz = c.near(3)
    size = c.rng.uniform(0.93, 1.1)
    right = c.ellipsoid((-58 + dx, 0 + dy, 22 + dz), (50 * size, 64 * size, 62 * size), turn=0.1)
    left = c.ellipsoid((-4 + dx, -36 + dy, 34 + dz), (56 * c.rng.uniform(0.8, 1.15), 27, 27 * size), tilt=0.25)
    whole = _blend(right, left, 16)
    under = (c.z + 34 * size - dz) * 0.75 + 0.35 * (-c.x - 60) + 0.25 * (c.y + 10)  # below the lower edge: negative
    groove = c.ellipsoid((-22 + dx, 22, 4), (24, 26, 60))  # room for the vena cava, the caudate's neighbours
    where = (whole < 0) & (under > -12) & (groove > 0) & (c.inner < -1.5) & (c.dome > 2)
    where &= ~c.is_("cortical bone", "marrow", "muscle", "disc")
    c.paint(where, "liver")
    for chain, radius in _vessel_tree(c.rng, (dx, dy, dz)):
        c.paint(where & (c.tube(chain, radius, 1.4) < 0), "liver vessel")
    bag = c.tube([(-36 + dx, -14 + dy, -2 + dz), (-42 + dx, -36 + dy, -16 + dz)], 6, c.rng.uniform(9, 14))
    c.paint((bag < 0) & (c.inner < -3), "gallbladder")


def _vessel_tree(rng: np.random.Generator, shift: Point) -> list[tuple[list, float]]:
    """Portal branches from the hilum and three hepatic veins to the dome: [(points, radius mm)]."""
    hilum, cava = np.add((-22, -8, 8), shift), np.add((-18, 12, 58), shift)
    ends = [(-85, 10, 30), (-80, -30, 18), (-66, 28, 2), (8, -40, 36), (-50, -46, 34)]
    veins = [(-84, 18, 22), (-56, -28, 12), (-2, -40, 28)]
    tree = []
    for start, targets, radius in ((hilum, ends, 4.2), (cava, veins, 4.4)):
        for target in targets:
            end = np.add(target, rng.normal(0, 6, 3))
            middle = 0.5 * (start + end) + rng.normal(0, 5, 3)
            tree.append(([tuple(start), tuple(middle), tuple(end)], radius))
            tree.append(([tuple(middle), tuple(end + rng.normal(0, 16, 3))], radius * 0.6))
    return tree


def _pancreas(c: _Canvas) -> None:
    """Head at the duodenum, body over the aorta, tail to the spleen; its signal is the liver's."""
    dx, dy, dz = c.near(3)
    chain = [(-26 + dx, -4 + dy, -22 + dz), (-6 + dx, -10 + dy, -8 + dz), (22 + dx, 0 + dy, 4 + dz), (50, 16, 12 + dz)]
    room = c.is_("organ fat", "bowel", "bowel wall", "stomach", "stomach wall", "bowel gas")
    lobules = smooth(c.rng, c.tissue.shape, 9, 1.3)
    c.paint(room & (c.tube(chain, 12, 7) + lobules < 0), "pancreas")


def _kidneys(c: _Canvas) -> None:
    """Cortex, medullary pyramids and the fat of the sinus, tilted along the psoas; the right one stands lower."""
    for side, height in ((-1, -30.0), (1, -20.0)):
        dx, dy, dz = c.near(2.5)
        size = c.rng.uniform(0.9, 1.1)
        centre = (side * 48 + dx, 33 + dy, height + dz)
        where = c.ellipsoid(centre, (22 * size, 20 * size, 41 * size), turn=side * 0.5, tilt=side * 0.18)
        sinus = c.ellipsoid((centre[0] - side * 15, centre[1] - 6, centre[2]), (15, 8, 20), turn=side * 0.5)
        parenchyma = (where < 0) & (sinus > 0) & (c.inner < -1)
        capsule = (where < 3.5) & (c.inner < -1) & c.is_("bowel", "bowel wall", "stomach", "stomach wall", "bowel gas")
        c.paint(capsule, "organ fat")
        angle = np.arctan2(c.y - centre[1] + 6, c.x - centre[0] + side * 15)
        pyramids = np.cos(7 * angle) * np.cos((c.z - centre[2]) / 5.5) > -0.15
        c.paint(parenchyma, "kidney cortex")
        c.paint(parenchyma & (where < -6.5) & pyramids, "kidney medulla")
        c.paint((where < 0) & (sinus <= 0), "organ fat")
        pelvis = [
            (centre[0] - side * 8, centre[1] - 4, centre[2]),
            (centre[0] - side * 22, centre[1] - 8, centre[2] - 8),
        ]
        c.paint((c.tube(pelvis, 3.2) < 0) & ~parenchyma, "gallbladder")


def _vessels(c: _Canvas) -> None:
    """Aorta, vena cava, renal and splenic veins, portal trunk, mesenteric dots in the fat."""
    room = ~c.is_("cortical bone", "marrow", "disc", "kidney cortex", "kidney medulla", "lung", "air")
    dx, dy = c.near(2)[:2]
    kidneys = [(s * 44.0, 24.0, -24.0 + 5 * s) for s in (-1, 1)]
    c.paint(
        room & (c.tube([(12 + dx, 17 + dy, 90), (5 + dx, 13 + dy, 0), (3 + dx, 14 + dy, -90)], 9, 7.5) < 0), "aorta"
    )
    cava = [(-18 + dx, 8 + dy, 90), (-19 + dx, 12 + dy, 0), (-15 + dx, 15 + dy, -90)]
    c.paint(room & (c.tube(cava, 10.5, 9) < 0), "vein")
    for end in kidneys:
        c.paint(room & (c.tube([(-14 + dx, 10 + dy, end[2] + 4), end], 4) < 0), "vein")
    portal = [(60, 16, 16), (24, 6, 6), (-8, -2, 0), (-22, -8, 8)]
    c.paint(room & ~c.is_("spleen") & (c.tube(portal, 4, 5.5) < 0), "vein")
    dots = smooth(c.rng, c.tissue.shape, 11, 1) > 2.1
    c.paint(c.is_("organ fat") & dots & (c.inner < -4), "vein")


def _scan(c: _Canvas) -> np.ndarray:
    """Tissue → signal with texture, breathing ghosts, coil shading and Rician noise: int16 [z, y, x], air near 0."""
    rng = c.rng
    mean, spread, grain, _ = (np.array(column, np.float32) for column in zip(*TISSUES.values(), strict=True))
    signal = mean * np.exp(spread * rng.standard_normal(len(mean)))
    texture = smooth(rng, c.tissue.shape, 7, 0.6) + smooth(rng, c.tissue.shape, 22, 0.6)
    fine = (signal.astype(np.float32)[c.tissue]) * (1 + grain[c.tissue] * texture)
    image = _coarsen(gaussian(fine, (0.5, 0.8, 0.8)))
    ghost = np.roll(gaussian(image, (0.6, 1.0, 0.6)), int(rng.integers(9, 15)), axis=1)
    image = image + rng.uniform(0.01, 0.035) * ghost
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    a = rng.normal(0, 0.12, 6)
    shading = np.exp(a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * y * z - 0.18 * (x**2 + y**2) + a[5] * x**2)
    sigma = rng.uniform(0.015, 0.03)
    real = image * shading + sigma * rng.standard_normal(SIZE)
    noisy = np.hypot(real, sigma * rng.standard_normal(SIZE))
    return np.round(noisy * rng.uniform(500, 900)).astype(np.int16)


def _label_map(c: _Canvas) -> np.ndarray:
    """A voxel gets the label (or background) that fills most of it: uint8 [z, y, x]."""
    of_tissue = np.array([label for *_, label in TISSUES.values()], np.uint8)[c.tissue]
    fractions = [_coarsen((of_tissue == value).astype(np.float32)) for value in (0, *LABELS)]
    return np.argmax(fractions, axis=0).astype(np.uint8)


def _coarsen(fine: np.ndarray) -> np.ndarray:
    """Mean over blocks of FINE³ voxels."""
    z, y, x = SIZE
    return fine.reshape(z, FINE, y, FINE, x, FINE).mean(axis=(1, 3, 5))
