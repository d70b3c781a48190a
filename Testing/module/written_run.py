"""A small run folder in the documented format (docs/run-folder.md), written by the test itself."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ORANGE, BLUE = (230, 159, 0), (86, 180, 233)
CT = {"kind": "ct", "low": -100.0, "high": 300.0, "mean": 50.0, "std": 100.0}
ZSCORE = {"kind": "zscore", "low": 0.0, "high": 0.0, "mean": 0.0, "std": 1.0}


def writeImage(path: Path, array: np.ndarray, spacing=None, direction=None, origin=None) -> Path:
    """Array [z, y, x], [y, x] or [y, x, 3] → file; spacing, direction and origin in the order x, y, z, LPS."""
    image = sitk.GetImageFromArray(array, isVector=array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8)
    if spacing is not None:
        image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(np.asarray(direction, dtype=float).ravel().tolist())
    if origin is not None:
        image.SetOrigin(origin)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


class WrittenRun:
    """A run folder that grows: `pair`, `predict`, `metrics`. Labels: 1 = head (orange), 2 = tail (blue)."""

    def __init__(self, folder: Path, normalisation: dict | None = None, sliceAxis: int | None = None):
        self.folder = folder
        self.training: list[dict] = []
        self.pairs: list[dict] = []
        self.cases: list[dict] = []
        self.write("plan.json", {"slice_axis": sliceAxis, "normalisation": [normalisation or ZSCORE]})
        self.study()

    def write(self, name: str, content) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    def study(self) -> None:
        labels = [("background", 0, (0, 0, 0)), ("head", 1, ORANGE), ("tail", 2, BLUE)]
        table = [{"name": name, "value": value, "color": list(color)} for name, value, color in labels]
        self.write("study.json", {"labels": {"labels": table}, "training": self.training})

    def scan(self, case: str, image: np.ndarray, mask: np.ndarray, suffix: str = ".nrrd", **geometry) -> None:
        """A training scan of the study."""
        files = self.folder.parent / "scans"
        written = writeImage(files / f"{case}{suffix}", image, **geometry)
        label = writeImage(files / f"{case}_mask{suffix}", mask.astype(np.uint8), **geometry)
        self.training.append({"id": case, "images": [str(written)], "label": str(label), "group": None})
        self.study()

    def pair(self, image: np.ndarray, mask: np.ndarray, suffix=".nrrd", spacing=None, direction=None, **about) -> dict:
        """A synthetic pair; `about` changes its entry in the index."""
        number = len(self.pairs)
        entry = {"image": f"{number:04d}_image{suffix}", "mask": f"{number:04d}_mask{suffix}", "source": "a"}
        entry |= {"implant": None, "parameters": {"seed": 1, "number": number}, "agreement": 0.9, "nearest": "a"}
        entry |= {"similarity": 0.6, "near_copy": False, "used": True, "step": 100} | about
        writeImage(self.folder / "synthetic" / entry["image"], image, spacing, direction)
        writeImage(self.folder / "synthetic" / entry["mask"], mask.astype(np.uint8), spacing, direction)
        self.pairs.append(entry)
        self.write("synthetic/index.json", {"pairs": self.pairs})
        return entry

    def predict(self, case: str, volumes: dict, uncertainty: float | None, path: str | None = None) -> None:
        """A prediction, as the index tells of it."""
        entry = {"case": case, "path": path or f"{case}.seg.nrrd", "images": [], "split": "unlabeled"}
        self.cases.append(entry | {"volumes_ml": volumes, "uncertainty": uncertainty, "step": 100})
        self.write("predictions/index.json", {"cases": self.cases})

    def metrics(self, dice: dict[str, dict]) -> None:
        """{case: {structure: Dice}} of the test scans."""
        cases = [
            {"case": case, "labels": {name: {"dice": value, "iou": None} for name, value in found.items()}}
            for case, found in dice.items()
        ]
        self.write("metrics.json", {"test": {"mean": {"dice": 0.5}, "labels": {}, "cases": cases}})


def ball(shape: tuple, center: tuple, radius: float) -> np.ndarray:
    """Bool array with everything within `radius` voxels of `center`."""
    grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) <= radius**2


def head(shape=(12, 20, 16)):
    """A volume [z, y, x] with a bright ball, and its mask."""
    inside = ball(shape, (8, 6, 4), 3)
    return inside * 2.0 + np.linspace(0, 1, inside.size).reshape(shape), inside.astype(np.uint8)
