"""Real scans, cropped until a run on them takes seconds: what the tests of whole runs train on."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from safetensors import safe_open

from genseg import events
from genseg.methods.joint import Joint
from genseg.runfolder import RunFolder, read_json
from genseg.settings import Settings
from genseg.train import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
# Size in SimpleITK's order of what is cut out of each scan, around its structures.
SIZES = {"hippocampus": (20, 20, 20), "isic2017": (64, 64), "busi": (64, 64), "acdc": (96, 96, 10)}
SIZES |= {"drive": (256, 256)}  # enough of the vessels that they are long


def tiny_study(source: Path, folder: Path, training: int = 2, test: int = 1, unlabelled: int = 0) -> Path:
    """Cut the first scans of a real study down and write them to `folder` as a study of their own. → `folder`"""
    whole = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    content = {"name": whole["name"], "labels": whole["labels"]}
    size = SIZES[source.name]
    number = training + unlabelled
    cut = [_cut(source, folder, case, size) for case in whole["training"][:number]]
    content["training"], content["unlabeled"] = cut[:training], [case["image"] for case in cut[training:]]
    content["test"] = [_cut(source, folder, case, size) for case in whole["test"][:test]]
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def _cut(source: Path, folder: Path, case: dict[str, str], size: tuple[int, ...]) -> dict[str, str]:
    label = sitk.ReadImage(str(source / case["label"]))
    image = sitk.ReadImage(str(source / case["image"]))
    found = np.argwhere(sitk.GetArrayViewFromImage(label) > 0)
    centre = found.mean(0)[::-1]  # array order → SimpleITK's order
    size = tuple(min(s, n) for s, n in zip(size, label.GetSize(), strict=True))
    start = [int(np.clip(c - s / 2, 0, n - s)) for c, s, n in zip(centre, size, label.GetSize(), strict=True)]
    cut = {}
    for key, whole in (("image", image), ("label", label)):
        cut[key] = case[key].replace(".jpg", ".png")
        (folder / cut[key]).parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(sitk.RegionOfInterest(whole, size, start), str(folder / cut[key]))
    return cut


@dataclass
class Outcome:
    """What `genseg train` left and said."""

    run: RunFolder
    status: int
    heard: list[events.Event]

    def named(self, kind: str) -> list[events.Event]:
        return [event for event in self.heard if event.event == kind]


def run_train(study: Path, out: Path, iterations: int | None = 12, **options) -> Outcome:
    """Train in this process, on the processor, by the function that the command line calls."""
    limit = {"iterations": iterations, "budget": None} if iterations else {}
    settings = Settings(dataset=study, out=out, device="cpu", **limit, **options)
    return listen(RunFolder(out), lambda log: train(settings, log))


def listen(run: RunFolder, work: Callable[[events.EventLog], int]) -> Outcome:
    heard: list[events.Event] = []
    log = events.EventLog([heard.append])
    try:
        return Outcome(run, work(log), heard)
    finally:
        log.close()


def tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def differences(one: Path, other: Path) -> list[str]:
    """Names of the tensors that are not the same bit for bit, or only in one of the files."""
    a, b = tensors(one), tensors(other)
    return sorted(name for name in a.keys() | b.keys() if name not in a or name not in b or not _same(a[name], b[name]))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def is_finite(path: Path) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors(path).values())


def counters(run: RunFolder) -> dict[str, float]:
    return read_json(run.last.with_suffix(".json"))


def leftovers(folder: Path) -> list[Path]:
    """Temporary files, which no finished run may hold, and no fault may leave beside it."""
    return [path for path in folder.rglob("*") if path.name.startswith((".part-", ".tmp"))]


def before_step(monkeypatch, action: Callable[[int], None]) -> None:
    """Call `action(step)` before every joint step of a real run."""
    original = Joint.step

    def step(self, number, stage):
        action(number)
        return original(self, number, stage)

    monkeypatch.setattr(Joint, "step", step)


def before_pretraining(monkeypatch, action: Callable[[int], None]) -> None:
    """Call `action(step)` before every step of the generator's pretraining."""
    original = Joint.pretrain

    def pretrain(self, synthesis, number):
        action(number)
        return original(self, synthesis, number)

    monkeypatch.setattr(Joint, "pretrain", pretrain)
