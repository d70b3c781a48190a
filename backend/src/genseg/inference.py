"""From a scan to its segmentation: sliding window, mirrored test-time augmentation, back to the scan's own grid."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from safetensors import SafetensorError
from safetensors.torch import load_model
from torch import Tensor, nn

from genseg.cases import Study
from genseg.device import Device, find_device
from genseg.errors import DamagedFile, RunFailed
from genseg.imageio import Scan
from genseg.labels import LabelTable
from genseg.networks import build_segmenter
from genseg.plan import Plan
from genseg.preprocess import from_working_grid, to_working_grid
from genseg.runfolder import RunFolder, read_model

OVERLAP = 0.5  # of neighbouring windows
WINDOWS = 4  # at a time


@dataclass
class Segmentation:
    """`labels`: indices [*spatial] on the scan's grid. `uncertainty`: 0 (sure) .. 1, one minus the expected Dice."""

    labels: np.ndarray
    uncertainty: float


class Predictor:
    """A trained segmenter with its plan and label table."""

    def __init__(self, network: nn.Module, plan: Plan, table: LabelTable, device: Device):
        self.network = device.place(network).eval()
        self.plan, self.table, self.device = plan, table, device

    @classmethod
    def load(cls, run: Path, device: str = "auto") -> "Predictor":
        """From a run folder or a bundle. Raises RunFailed where there is no usable model yet."""
        folder = RunFolder(run)
        folder.need_one_study()
        if folder.card.exists():
            remedy = f'Train with a few labelled scans first: genseg train STUDY --init "{run}" --out RUN'
            raise RunFailed("starting_model", f"{run} is a starting model and has no structures of its own.", remedy)
        if folder.best.exists():
            weights, plan, table = folder.best, Plan.load(folder.plan), Study.load(folder.study).labels
        else:
            weights = folder.path / "models" / "model.safetensors"
            configs = folder.path / "configs"
            if not weights.exists():
                message, remedy = f"{run} is no run folder, bundle or starting model.", "Give the folder of one."
                if folder.settings.exists():
                    message = f"{run} holds no usable model."
                    remedy = "A run has one after a fifth of its budget; wait, resume it, or give another run folder."
                raise RunFailed("no_model", message, remedy)
            plan = Plan.load(configs / "plan.json")
            table = read_model(LabelTable, configs / "label_table.json")
        network = build_segmenter(plan)
        try:
            load_model(network, weights)
        except (SafetensorError, RuntimeError) as error:  # the latter: of another network than the plan's
            raise DamagedFile(weights, error) from error
        return cls(network, plan, table, find_device(device))

    def segment(self, scan: Scan, tta: bool = True) -> Segmentation:
        """Label map on the grid of `scan`, whatever its size; `tta` averages over mirrored copies."""
        probabilities = self.probabilities(to_working_grid(scan, self.plan), tta)
        labels = from_working_grid(probabilities, scan, self.plan)
        return Segmentation(labels, _uncertainty(probabilities))

    @torch.no_grad()
    def probabilities(self, image: Tensor, tta: bool) -> Tensor:
        """Working image [C, z, y, x] or [C, slice, y, x] → probabilities [K, ...], on the CPU, summing to 1."""
        batch = image[None] if self.plan.dims == 3 else image.transpose(0, 1)
        total: Tensor | None = None
        count = 0
        for axes in _mirrorings(self.plan.mirror_axes if tta else []):
            flipped = batch.flip(axes) if axes else batch
            with self.device.autocast():
                logits = sliding_window_inference(
                    flipped, self.plan.patch, WINDOWS, self.network, overlap=OVERLAP, mode="gaussian",
                    sw_device=self.device.torch, device=torch.device("cpu"),
                )  # fmt: skip
            assert isinstance(logits, Tensor)
            one = torch.softmax(logits, 1, dtype=torch.float32)
            del logits  # a stack of all classes is the largest thing in memory
            one = one.flip(axes) if axes else one
            total, count = one if total is None else total.add_(one), count + 1
        assert total is not None
        mean = total.div_(count)
        return mean[0] if self.plan.dims == 3 else mean.transpose(0, 1)


def _mirrorings(axes: list[int]) -> Iterator[list[int]]:
    """Every combination of the mirror axes, as axes of [n, C, *spatial]; first none."""
    for n in range(len(axes) + 1):
        for chosen in combinations(axes, n):
            yield [2 + axis for axis in chosen]


def _uncertainty(probabilities: Tensor) -> float:
    """1 - expected Dice of the structures found: 2 Σ p·y / (Σ p + Σ y), y the hard prediction.

    Where nothing is found it is the highest foreground probability: how near the model came to finding something.
    """
    winner = probabilities.argmax(0)
    expected = []
    for index in range(1, probabilities.shape[0]):
        mask = winner == index
        if bool(mask.any()):
            p = probabilities[index]
            expected.append(2 * float(p[mask].sum()) / float(p.sum() + mask.sum()))
    if not expected:
        return float(1 - probabilities[0].min())
    return 1 - float(np.mean(expected))
