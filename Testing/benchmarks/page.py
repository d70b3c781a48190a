"""A page of synthetic pairs: generators row under row, in each column the same draw of mask and style."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries
from skimage.transform import resize

PAIRS, SIDE, MARGIN = 6, 192, 110  # pairs a row, pixels of a picture, pixels for the names
COLOURS = np.array([[0, 0, 0], [1, 0.75, 0], [0, 0.8, 1], [1, 0.2, 0.6]])


def keep(state: Any, folder: Path, name: str) -> None:
    """Write pictures of the generator's pairs, and of the same scans as they are, to `folder`/`name`.npz."""
    from genseg.methods.synthesis import label_of
    from genseg.synthesize import make_pairs

    joint, pictures, real = state.joint, [], []
    ids = [case.id for case in joint.sampler.cases]
    for image, label, entry in make_pairs(state, PAIRS, seed=7, step=0):
        pictures.append(picture(image.numpy(), label.numpy()))
        case = joint.sampler.cases[ids.index(entry["source"])]
        real.append(picture(case.image.float().cpu().numpy(), label_of(case.label, joint.plan.classes).cpu().numpy()))
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", pairs=np.stack(pictures), real=np.stack(real))


def picture(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """image [C, (a,) y, x], label [(a,) y, x] → [SIDE, SIDE, 3] in 0..1: the slice that shows most, outlined."""
    image, label = (
        x[None] if x.ndim == n else x for x, n in ((image[:, None] if image.ndim == 3 else image, 3), (label, 2))
    )
    slice_ = int((label > 0).sum((1, 2)).argmax())
    grey, mask = image[:, slice_], label[slice_]
    low, high = np.percentile(grey, (1, 99))
    rgb = np.moveaxis(np.broadcast_to(grey, (3, *mask.shape)) if len(grey) == 1 else grey[:3], 0, -1)
    size = [round(SIDE * side / max(mask.shape)) for side in mask.shape]
    rgb = resize(np.clip((rgb - low) / max(high - low, 1e-6), 0, 1), size, order=1)
    mask = resize(mask, size, order=0, preserve_range=True, anti_aliasing=False).astype(int)
    edge = find_boundaries(mask, mode="inner")
    rgb[edge] = COLOURS[np.minimum(mask[edge], 3)]
    canvas = np.zeros((SIDE, SIDE, 3))
    canvas[: size[0], : size[1]] = rgb
    return canvas


def page(folder: Path, set_: str, generators: tuple[str, ...], out: Path) -> None:
    """All that was kept of a set, as one picture."""
    found = [
        (name, np.load(folder / f"{set_}-{name}.npz"))
        for name in generators
        if (folder / f"{set_}-{name}.npz").exists()
    ]
    if not found:
        return
    rows = [("scan of the mask", found[0][1]["real"])] + [(name, kept["pairs"]) for name, kept in found]
    sheet = Image.new("RGB", (MARGIN + PAIRS * SIDE, len(rows) * SIDE))
    for y, (name, pictures) in enumerate(rows):
        ImageDraw.Draw(sheet).text((4, y * SIDE + SIDE // 2), name, fill="white")
        for x, one in enumerate(pictures):
            sheet.paste(Image.fromarray((one * 255).astype(np.uint8)), (MARGIN + x * SIDE, y * SIDE))
    sheet.save(out)
