"""Which scan to label next: the one that teaches the model most."""

from itertools import pairwise

import numpy as np

from GenSegSlicerLib.Scans import CASE, Role, Scan
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import hasVoxels, ijkToRas, imageArray

GRID = 12  # voxels along every axis of the small picture by which scans are compared
SAMPLES = 4  # voxels of the scan along every axis for one of the picture, at most


class Suggest:
    """Suggests scans; remembers the small pictures of volumes that have not changed."""

    def __init__(self):
        self._pictures = {}

    def suggestNext(self, scans: list[Scan], predictionsIndex: dict | None = None) -> tuple[Scan | None, str]:
        """→ (scan, reason in a sentence); (None, reason) where no scan is left to label.

        scans: `Scan`s with volumeNode and role; only those with role "segment" are suggested, never a test scan.
        predictionsIndex: content of RUN/predictions/index.json, where a model exists. Then the scan whose prediction is
        least certain; before, the most typical scan first and afterwards the one least like those labeled.
        """
        waiting = [scan for scan in scans if scan.role == Role.SEGMENT and hasVoxels(scan.volumeNode.GetImageData())]
        if not waiting:
            return None, _("No scan is left to label: every scan is labeled, a test scan, or ignored.")
        known = [(_uncertainty(scan, predictionsIndex), scan) for scan in waiting]
        known = [(value, scan) for value, scan in known if value is not None]
        if known:
            value, scan = max(known, key=lambda pair: pair[0])
            text = _("The model is least sure about this scan (confidence {percent} %), so labeling it teaches most.")
            return scan, text.format(percent=round(100 * (1 - value)))
        labelled = [s for s in scans if s.role == Role.LABELLED and hasVoxels(s.volumeNode.GetImageData())]
        if len(waiting) == 1:
            return waiting[0], _("This is the only scan that is not labeled yet.")
        return self._byLooks(waiting, labelled)

    def _byLooks(self, waiting, labelled):
        """Without a model: farthest from all labeled scans, or, where there are none, nearest to all others."""
        pictures = np.array([self._picture(scan.volumeNode) for scan in waiting])
        others = np.array([self._picture(scan.volumeNode) for scan in labelled]) if labelled else pictures
        apart = np.linalg.norm(pictures[:, None] - others[None], axis=2)
        if labelled:
            return waiting[int(apart.min(axis=1).argmax())], _(
                "This scan looks least like those that are labeled, so it shows the model something new."
            )
        return waiting[int(apart.mean(axis=1).argmin())], _(
            "This scan looks most like all the others, so it is a good first one to label."
        )

    def _picture(self, volumeNode):
        """float32 [GRID**3]: the scan, small, right to left, back to front and feet to head, mean 0 and SD 1."""
        image = volumeNode.GetImageData()
        key, stamp = volumeNode.GetID(), (image.GetMTime(), volumeNode.GetMTime())
        if key not in self._pictures or self._pictures[key][0] != stamp:
            self._pictures[key] = (stamp, _small(imageArray(image), ijkToRas(volumeNode)[:3, :3]))
        return self._pictures[key][1]


def suggestNext(scans: list[Scan], predictionsIndex: dict | None = None) -> tuple[Scan | None, str]:
    """`Suggest.suggestNext` for a single question."""
    return Suggest().suggestNext(scans, predictionsIndex)


def _uncertainty(scan, index):
    """0 (sure) to 1 (unsure) of the latest prediction of a scan; None where there is none."""
    case = scan.volumeNode.GetAttribute(CASE)
    for entry in (index or {}).get("cases") or []:
        if case and entry.get("case") == case:
            return entry.get("uncertainty")
    return None


def _small(voxels, axes):
    """Array [k, j, i(, c)] and the directions [3, 3] of i, j, k in RAS → float32 [GRID**3]."""
    steps = [max(1, n // (GRID * SAMPLES)) for n in voxels.shape[:3]]
    voxels = voxels[:: steps[0], :: steps[1], :: steps[2]].astype(np.float32)
    voxels = voxels.mean(axis=3) if voxels.ndim == 4 else voxels
    voxels = np.nan_to_num(_towardsRas(voxels.transpose(2, 1, 0), axes))
    voxels = np.clip(voxels, *np.percentile(voxels, (1, 99)))
    for axis in range(3):
        voxels = _meanTo(voxels, axis, GRID)
    voxels = voxels.ravel()
    return ((voxels - voxels.mean()) / max(float(voxels.std()), 1e-6)).astype(np.float32)


def _towardsRas(voxels, axes):
    """[i, j, k] → axes swapped and turned so that they run about to the right, to the front and to the head."""
    order, left = [0, 0, 0], [0, 1, 2]
    for ras in range(3):
        order[ras] = max(left, key=lambda axis: abs(axes[ras, axis]))
        left.remove(order[ras])
    turned = voxels.transpose(order)
    flips = [ras for ras in range(3) if axes[ras, order[ras]] < 0]
    return np.flip(turned, flips) if flips else turned


def _meanTo(voxels, axis, count):
    """Means over equal parts of one axis; a shorter axis repeats its voxels."""
    edges = np.linspace(0, voxels.shape[axis], count + 1)
    parts = [
        voxels.take(range(int(a), max(int(a) + 1, int(np.ceil(b)))), axis=axis).mean(axis=axis)
        for a, b in pairwise(edges)
    ]
    return np.stack(parts, axis=axis)
