"""Scans to be exported and read back: grids of every kind, voxels, masks, and a study folder as anyone reads it."""

import json

import numpy as np
import SimpleITK as sitk
from mrml import oblique

SHAPE = (7, 9, 11)
RANDOM = np.random.default_rng(0)

GRIDS = {
    "plain": np.eye(4),
    "anisotropic": oblique((0.7, 0.8, 5.0), (-120.5, 33.25, 900.125)),
    "oblique": oblique((0.9, 1.1, 2.5), (10, -20, 30), (25, -40, 65)),
    "flipped i": oblique((1, 1, 2), (5, 6, 7), flip=(-1, 1, 1)),
    "flipped j, left-handed": oblique((1, 1, 2), (5, 6, 7), (10, 0, 5), flip=(1, -1, 1)),
    "flipped k, far away": oblique((0.5, 0.5, 1.25), (1e4, -2e4, 3e4), (0, 15, 0), flip=(1, 1, -1)),
    "LPS": np.diag([-0.7, -0.7, 3, 1.0]),
    "sagittal": np.array([[0, 0, 3, -9], [-0.7, 0, 0, 8], [0, -0.8, 0, 7], [0, 0, 0, 1.0]]),
}


def noise(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    return RANDOM.integers(-1000 if np.issubdtype(dtype, np.signedinteger) else 0, 1000, shape).astype(dtype)


def blob(low=(2, 2, 2), high=(5, 6, 8), shape=SHAPE) -> np.ndarray:
    """A box with a corner missing, so that every flip and swap of axes shows."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    mask[low[0], low[1], low[2] : high[2] - 1] = False
    return mask


class Written:
    """A study folder as anyone reads it: `content` of dataset.json, images and masks of its cases."""

    def __init__(self, file):
        self.folder = file.parent
        self.content = json.loads(file.read_text(encoding="utf-8"))

    def image(self, split="training", case=0) -> sitk.Image:
        return sitk.ReadImage(str(self.folder / self.content[split][case]["image"]))

    def mask(self, split="training", case=0) -> sitk.Image:
        return sitk.ReadImage(str(self.folder / self.content[split][case]["label"]))

    def values(self, split="training", case=0) -> np.ndarray:
        return sitk.GetArrayFromImage(self.mask(split, case))


def written(export, folder) -> Written:
    return Written(export.write(folder / "study"))
