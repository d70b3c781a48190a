"""Sample data: the hippocampus of the Medical Segmentation Decathlon, downloaded, or a phantom, made on the spot."""

import logging
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from genseg.errors import Fault, InputFaults, RunFailed
from genseg.events import EventLog, Progress
from genseg.phantom import LABELS, SIZE, SPACING, make_body
from genseg.runfolder import building_folder, need_free, read_json, write_json

SAMPLES = ("hippocampus", "phantom")
TASK = "Task04_Hippocampus"
REFERENCE = "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 2022"
LICENCE = "CC BY-SA 4.0"
TEST_CASES = 20  # of the labelled cases: kept away from training so that a Dice can be shown
UNLABELLED_CASES = 20  # of the 130 without a label; the others stay on disk, unlisted
SPLIT_SEED = 4
PHANTOM_CASES = {"training": 9, "test": 6, "unlabeled": 3}
SILENCE = 30.0  # seconds without an answer after which a server counts as unreachable


def sample(name: str, out: Path, log: EventLog) -> Path:
    """Put a sample study into the folder `out` (new or empty) and return the path of its dataset.json.

    A failure leaves nothing behind. Raises InputFaults where the name is unknown or `out` is in use, RunFailed
    ("no_network") where a download fails, ("bad_download") where the file that came is not the published one.
    """
    if name not in SAMPLES:
        remedy = f"Choose one of: {', '.join(SAMPLES)}."
        raise InputFaults([Fault("unknown_sample", name, "There is no sample of this name.", remedy)])
    need_free(out)
    with building_folder(out) as folder:
        folder.mkdir(parents=True)
        if name == "phantom":
            _phantom(folder, log)
        else:
            _hippocampus(folder, log, remedy=f'The phantom needs no network: genseg sample phantom --out "{out}".')
    return out / "dataset.json"


def _hippocampus(folder: Path, log: EventLog, remedy: str) -> None:
    log.warn(
        "licence",
        f"Downloading hippocampus scans (27 MB), published under {LICENCE} by {REFERENCE}.",
        "Name the source and the licence wherever you show results.",
    )
    _download(folder, remedy)
    content = split_decathlon(read_json(folder / "dataset.json"))
    os.replace(folder / "dataset.json", folder / "dataset.original.json")
    write_json(folder / "dataset.json", content)


def _download(folder: Path, phantom: str) -> None:
    """Fetch MSD Task04 from the address and with the checksum that MONAI holds; put its content into `folder`."""
    from monai.apps.datasets import DecathlonDataset  # takes seconds to import
    from monai.apps.utils import HashCheckError, download_url, extractall

    url, md5 = DecathlonDataset.resource[TASK], DecathlonDataset.md5[TASK]
    archive = folder / f"{TASK}.tar"
    try:
        with _quiet_and_impatient():
            download_url(url, archive, hash_val=md5, hash_type="md5", progress=False)
            extractall(archive, folder)
    except HashCheckError as error:
        remedy = f"Try again; if it stays so, a proxy may be changing downloads. {phantom}"
        raise RunFailed("bad_download", f"What came from {url} is not the published file.", remedy) from error
    except OSError as error:  # URLError, HTTPError and timeouts among them
        if isinstance(error, PermissionError) or error.errno == 28:
            raise
        reason = getattr(error, "reason", None) or error
        remedy = f"Check the connection (a proxy is taken from HTTPS_PROXY) and try again. {phantom}"
        raise RunFailed("no_network", f"The sample could not be downloaded from {url}: {reason}.", remedy) from error
    archive.unlink()
    for entry in (folder / TASK).iterdir():
        os.replace(entry, folder / entry.name)
    (folder / TASK).rmdir()
    for leftover in folder.rglob("._*"):  # written by the archive's Mac; they look like images by their suffix
        leftover.unlink()


@contextmanager
def _quiet_and_impatient() -> Iterator[None]:
    """MONAI logs to stdout and waits for ever: hold its tongue, and give up after SILENCE seconds without an answer."""
    logger, timeout = logging.getLogger("monai.apps"), socket.getdefaulttimeout()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        logger.setLevel(level)


def split_decathlon(original: dict[str, Any]) -> dict[str, Any]:
    """MSD's dataset.json → ours. The Decathlon keeps the labels of its test scans to itself, so some labelled ones
    are set aside: the training entries, sorted by image and shuffled with SPLIT_SEED, give their last TEST_CASES to
    `test`, the rest in that order to `training`; the first UNLABELLED_CASES of MSD's own test become `unlabeled`.
    """
    cases = sorted(original["training"], key=lambda case: case["image"])
    random.Random(SPLIT_SEED).shuffle(cases)
    unlabelled = sorted(case if isinstance(case, str) else case["image"] for case in original["test"])
    return {
        "name": "hippocampus",
        "description": "T1-weighted MRI, anterior and posterior hippocampus (Medical Segmentation Decathlon, Task04). "
        f"The last {TEST_CASES} of its labelled scans (sorted, then shuffled with seed {SPLIT_SEED}) are the test set.",
        "reference": REFERENCE,
        "licence": LICENCE,
        "labels": {"0": "background", "1": "hippocampus anterior", "2": "hippocampus posterior"},
        "training": cases[:-TEST_CASES],
        "test": cases[-TEST_CASES:],
        "unlabeled": unlabelled[:UNLABELLED_CASES],
    }


def _phantom(folder: Path, log: EventLog, seed: int = 0) -> None:
    """Write PHANTOM_CASES bodies and their dataset.json into `folder`."""
    content: dict[str, Any] = {
        "name": "PHANTOM abdomen (not a patient)",
        "description": "PHANTOM, not a patient: synthetic upper abdomens that imitate T1-weighted MR, drawn by GenSeg "
        f"from geometric shapes with seed {seed}. For trying the software only; it says nothing about people.",
        "reference": "made by genseg sample phantom",
        "licence": "CC0-1.0",
        "labels": {"0": "background", **{str(value): name for value, name in LABELS.items()}},
    }
    total, number = sum(PHANTOM_CASES.values()), 0
    for part, count in PHANTOM_CASES.items():
        content[part] = []
        for _ in range(count):
            number += 1
            content[part].append(_write_body(folder, number, seed, labelled=part != "unlabeled"))
            log.emit(Progress(phase="prepare", step=number, total=total))
    write_json(folder / "dataset.json", content)
    log.warn("phantom", "These scans are a phantom, drawn by this program: no patient was ever in them.")


def _write_body(folder: Path, number: int, seed: int, labelled: bool) -> dict[str, str]:
    """Write one body as NIfTI; return its entry of the datalist."""
    name = f"phantom_{number:02d}"
    body = make_body(1000 * seed + number)
    entry = {"id": name, "image": f"./images/{name}.nii.gz"}
    _write(body.image, folder / entry["image"])
    if labelled:
        entry["label"] = f"./labels/{name}.nii.gz"
        _write(body.label, folder / entry["label"])
    return entry


def _write(array: np.ndarray, path: Path) -> None:
    """Write an array [z, y, x] as a volume centred on the scanner's origin."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((SPACING,) * 3)
    image.SetOrigin([-(n - 1) / 2 * SPACING for n in reversed(SIZE)])
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(image, str(path), useCompression=True)
