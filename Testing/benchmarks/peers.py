"""The peers that the methods are measured against, on the same scans, in the same time, scored by the same code.

`nnunet` is nnU-Net v2 itself, from `pip install nnunetv2`: its planner, preprocessing, network, augmentation, loss,
optimiser and predictor with mirroring. A scan is given to it turned as `read_scan` turns it, each channel a file, which
is for colours what its reader of photographs makes of them; in 2D where this project's plan is 2D, thick slices too,
else 3d_fullres; fold "all". It departs from its defaults in what a short time asks for:

- On a processor its planner fills MEMORY_GB, not 8. Few scans make batches of two at any target, so a lower one cuts
  the patch. In 2D it leaves 256 x 256 whole, 3 to 5 s of a core a step; thrice as many steps with 0.1 gain nothing
  (kvasir-5, 120 s, scans held back: Dice 0.461 after 96 steps, 0.462 after 35). In 3D whole scans of hippocampus take
  5 s, and 69 steps find nothing even in the scan they are made with; with 0.05 it is 171 in 150 s, and Dice 0.32 there.
- The learning rate falls by its own polynomial, but over the time that is used, step by step, not over 1000 epochs.
- No pseudo-validation: with the fold "all" nothing is left to validate on. The last weights are used, as by default.

`monai-unet` is the plain recipe of MONAI's tutorials (spleen_segmentation_3d; 2d_segmentation/unet_training_dict): a
residual U-Net with Dice loss and Adam, two scans a step (one where there is but one) with four crops each, half of them
around a structure; in 2D they are turned by right angles at times. A crop has 96 voxels a side, or it is the whole
scan, padded to multiples of 16, and then it is taken once, as four would be the same.
"""

import io
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import monai.transforms as mt
import numpy as np
import SimpleITK as sitk
import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from runs import Run, code, machine
from training import METRICS, ProcessorClock, mean_text, peak_mb, score

from genseg.cases import Case, Study
from genseg.device import Device, find_device
from genseg.evaluate import Segment
from genseg.imageio import Geometry, Scan, read_label, read_scan
from genseg.plan import Plan, make_plan
from genseg.schedule import Clock

MEMORY_GB = {"2d": 0.5, "3d_fullres": 0.05}
INTENSITIES = 10**6  # sampled from all scans, of use for CT alone; nnU-Net's hundred times more take gigabytes
CROP, CROPS, BATCH, COARSEST = 96, 4, 2, 16
RATES = {2: 1e-3, 3: 1e-4}  # each of the two tutorials has its own


@dataclass
class Peer:
    """A method prepared for a study: `train` until the clock says so → steps; `segment` by what it is then."""

    train: Callable[[Clock], int]
    segment: Segment
    code: str


def go(run: Run, jobs: int, device: str = "cpu") -> dict[str, Any]:
    """Train and test a peer. → the row, times in seconds of the processor (its helpers' too) where that trains."""
    if run.seconds is None or run.start or "+" in run.set:
        raise ValueError(f"A peer trains for seconds such as 180s, on one study, without a starting model: {run}")
    torch.set_num_threads(1)
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(run.seed)
    target, study, other = find_device(device), run.studies()[0], run.other_source()
    now, clock = (_processor_seconds, ProcessorClock) if target.is_cpu else (time.monotonic, Clock)
    times = [now()]
    with _METHODS[run.arm](study, target) as peer:
        times.append(now())
        steps = peer.train(clock(replace(run, arm="supervised").settings()))
        times.append(now())
        memory, scores = peak_mb(target), score(peer.segment, study)
        times.append(now())
        other_dice = None if other is None else score(peer.segment, other)["dice"]
    prepare_s, train_s, predict_s = (after - before for before, after in pairwise(times))
    row = run.row() | {name: mean_text([scores[metric]], digits) for name, metric, digits in METRICS}
    return row | {
        "dices": row["dice"], "other_dice": mean_text([other_dice], 4), "steps": steps,
        "prepare_s": f"{prepare_s:.1f}", "train_s": f"{train_s:.1f}", "predict_s": f"{predict_s / len(study.test):.3f}",
        "memory_mb": memory, "device": machine(target), "jobs": jobs, "code": f"{code()} {peer.code}",
    }  # fmt: skip


def _processor_seconds() -> float:
    """Of this process and of the helpers that have ended."""
    return sum(os.times()[:4])


def _labelled(study: Study) -> tuple[list[Scan], list[np.ndarray]]:
    """The labelled scans and their index maps, both turned as everywhere in this project."""
    cases = [(case, case.label) for case in study.training if case.label is not None]
    return [read_scan(case.images) for case, _ in cases], [read_label(path, study.labels)[0] for _, path in cases]


@contextmanager
def _nnunet(study: Study, target: Device) -> Iterator[Peer]:
    """In a temporary folder, with one helper at a time to prepare and none to train."""
    with tempfile.TemporaryDirectory(prefix="nnunet") as folder, redirect_stdout(io.StringIO()):
        environment = {name: f"{folder}/{name}" for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        # Some are read on import. Compiling, which is for graphics cards, takes longer than it saves in minutes.
        once = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1", "nnUNet_compile": "false", "OMP_NUM_THREADS": "1"}
        with patch.dict(os.environ, environment | once):
            try:
                import nnunetv2  # noqa: F401
            except ImportError as error:
                raise RuntimeError("The peer nnunet is nnU-Net itself: pip install nnunetv2") from error
            scans, labels = _labelled(study)
            plan = make_plan(scans, labels, study.labels, target)
            raw = Path(folder, "nnUNet_raw", "Dataset001_Drawn")
            content = _write_raw(raw, scans, labels, study, plan)
            trainer = _trainer("3d_fullres" if plan.dims == 3 else "2d", content, target)
            segment = _nnunet_segment(trainer, target)
            yield Peer(lambda clock: _train_nnunet(trainer, clock), segment, f"nnunetv2 {version('nnunetv2')}")


def _write_raw(folder: Path, scans: list[Scan], labels: list[np.ndarray], study: Study, plan: Plan) -> dict[str, Any]:
    """A data set as nnU-Net reads it. → its dataset.json, files listed: others it looks for with 12 processes."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    listed: dict[str, Any] = {}
    for i, (scan, label) in enumerate(zip(scans, labels, strict=True)):
        names = [f"imagesTr/{i:03d}_{c:04d}.nrrd" for c in range(len(scan.array))]
        listed[f"{i:03d}"] = {"images": names, "label": f"labelsTr/{i:03d}.nrrd"}
        for name, array in zip([*names, f"labelsTr/{i:03d}.nrrd"], [*scan.array, label.astype(np.uint8)], strict=True):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(scan.spacing[::-1])
            sitk.WriteImage(image, str(folder / name))
    content = {
        "channel_names": {str(c): "CT" if n.kind == "ct" else "zscore" for c, n in enumerate(plan.normalisation)},
        "labels": {label.name: i for i, label in enumerate(study.labels.labels)},
        "numTraining": len(scans), "file_ending": ".nrrd", "dataset": listed,
    }  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    return content


def _trainer(configuration: str, content: dict[str, Any], target: Device) -> Any:
    """nnU-Net's, of the data set 1, planned and preprocessed, with its network and its batches at hand."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    fingerprint = api.DatasetFingerprintExtractor(1, num_processes=1)
    fingerprint.num_foreground_voxels_for_intensitystats = INTENSITIES
    fingerprint.show_progress_bar = False
    fingerprint.run()
    memory = MEMORY_GB[configuration] if target.is_cpu else None
    plans, name = api.plan_experiment_dataset(1, gpu_memory_target_in_gb=memory)
    api.preprocess_dataset(1, name, (configuration,), (1,), show_progress_bar=False)
    trainer = nnUNetTrainer(plans | {"continue_training": False}, configuration, "all", content, target.torch)
    with patch.dict(os.environ, {"nnUNet_n_proc_DA": "0"}):  # the planner cannot bear 0, as it takes as many threads
        trainer.on_train_start()
    return trainer


def _train_nnunet(trainer: Any, clock: Clock) -> int:
    """nnU-Net's steps. Its schedule is asked for the fraction of an epoch that the time corresponds to."""
    steps = 0
    trainer.network.train()
    while (progress := clock.progress(steps)) < 1:
        trainer.lr_scheduler.step(progress * trainer.num_epochs)
        trainer.train_step(next(trainer.dataloader_train))
        steps += 1
        clock.tick()
    return steps


def _nnunet_segment(trainer: Any, target: Device) -> Segment:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=target.torch, allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()],
        trainer.dataset_json, type(trainer).__name__, trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip

    def segment(case: Case) -> tuple[np.ndarray, Geometry]:
        trainer.set_deep_supervision_enabled(False)
        scan = read_scan(case.images)
        if scan.dims == 3:
            return predictor.predict_single_npy_array(scan.array, {"spacing": scan.spacing}), scan.geometry
        spacing = [999 * max(scan.spacing), *scan.spacing]  # nnU-Net's readers make one very thick slice of an image
        return predictor.predict_single_npy_array(scan.array[:, None], {"spacing": spacing})[0], scan.geometry

    return segment


@contextmanager
def _monai(study: Study, target: Device) -> Iterator[Peer]:
    scans, labels = _labelled(study)
    sides = np.max([label.shape for label in labels], axis=0)
    crop = [int(min(CROP, -(-side // COARSEST) * COARSEST)) for side in sides]
    channels = (len(scans[0].array), len(study.labels))
    network = UNet(len(crop), *channels, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    network.to(target.torch)
    masks = [torch.from_numpy(label[None].astype(np.int64)) for label in labels]
    items = [{"image": _scaled(scan), "label": mask} for scan, mask in zip(scans, masks, strict=True)]
    draw = _draw(crop, 1 if (sides <= crop).all() else CROPS)
    loader = DataLoader(Dataset(items, draw), batch_size=BATCH, shuffle=True, collate_fn=list_data_collate)

    def segment(case: Case) -> tuple[np.ndarray, Geometry]:
        scan = read_scan(case.images)
        network.eval()
        with torch.inference_mode():
            found = sliding_window_inference(_scaled(scan)[None].to(target.torch), crop, CROPS, network)
        return found[0].argmax(0).cpu().numpy().astype(np.uint8), scan.geometry

    yield Peer(lambda clock: _train_monai(network, loader, clock), segment, f"monai {version('monai')}")


def _scaled(scan: Scan) -> torch.Tensor:
    """Intensities in 0..1: of a photograph by its range, of a volume by percentiles, as a few voxels may be far off."""
    scale = mt.ScaleIntensity() if scan.dims == 2 else mt.ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)
    return torch.as_tensor(np.asarray(scale(scan.array)))


def _draw(crop: list[int], crops: int) -> mt.Compose:
    keys = ["image", "label"]
    cut = mt.RandCropByPosNegLabeld(keys, "label", crop, pos=1, neg=1, num_samples=crops, image_key="image")
    turn = [mt.RandRotate90d(keys, prob=0.5)] if len(crop) == 2 else []
    return mt.Compose([mt.SpatialPadd(keys, crop), cut, *turn]).set_random_state(int(np.random.randint(2**31)))


def _train_monai(network: UNet, loader: DataLoader, clock: Clock) -> int:
    device = next(network.parameters()).device
    loss_of = DiceLoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.Adam(network.parameters(), RATES[network.dimensions])
    steps = 0
    network.train()
    while True:
        for batch in loader:
            if clock.progress(steps) >= 1:
                return steps
            optimizer.zero_grad()
            loss_of(network(batch["image"].to(device)), batch["label"].to(device)).backward()
            optimizer.step()
            steps += 1
            clock.tick()


_METHODS = {"nnunet": _nnunet, "monai-unet": _monai}
