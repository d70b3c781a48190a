"""Predict whole scans: a label map a case on the very grid of its file, with volumes and uncertainty."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from genseg.device import is_out_of_memory
from genseg.errors import Fault, InputFaults
from genseg.events import Error, EventLog, Prediction, Progress
from genseg.imagefile import DICOM_SUFFIXES, PHOTO_SUFFIXES, UnusableImage, stem_of, suffix_of
from genseg.imageio import Geometry, Scan, read_label, read_scan, write_label
from genseg.inference import Predictor
from genseg.labels import LabelTable
from genseg.runfolder import read_json, write_json
from genseg.study import Case

Split = Literal["unlabeled", "test", "given"]
KNOWN_FORMATS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".png")
INDEX = "index.json"


def predict_cases(
    predictor: Predictor,
    cases: list[Case],
    out: Path,
    log: EventLog,
    split: Split = "given",
    *,
    formats: Sequence[str] | None = None,
    tta: bool = True,
    step: int | None = None,
    stopped: Callable[[], bool] | None = None,
) -> list[Fault]:
    """Segment every case and write `out`/<case id><suffix> on the grid of its image, with the study's values.

    `formats`: suffixes out of KNOWN_FORMATS (the dot may be left out), the first is the one named in index.json;
    by default .seg.nrrd for volumes and .png for photos. `step`: the training step of the model. Paths in events
    are relative to the run folder where `out` lies in one, else absolute.
    `stopped`: asked before each case; where it says so, the rest is left out.
    A case that cannot be read or written is reported as an error event and returned; the others go on.
    """
    suffixes = _checked(formats)
    faults: list[Fault] = []
    for number, case in enumerate(cases, start=1):
        if stopped is not None and stopped():
            break
        try:
            entry = _predict_within_memory(predictor, case, out, suffixes, tta)
        except UnusableImage as error:
            faults.append(Fault(error.code, case.id, error.rule, error.remedy))
            drop_from_index(out, case.id)
            log.emit(Error(code=error.code, message=error.rule, remedy=error.remedy, case=case.id))
        else:
            entry |= {"split": split, "step": step}
            update_index(out, [entry])
            shared = {key: entry[key] for key in ("case", "volumes_ml", "uncertainty", "step")}
            log.emit(Prediction(path=_shown_path(out / entry["path"]), **shared))
        log.emit(Progress(phase="predict", step=number, total=len(cases)))
    return faults


def _checked(formats: Sequence[str] | None) -> list[str] | None:
    """Suffixes with their dot; raises ValueError for one that cannot hold a label map."""
    if not formats:
        return None
    suffixes = ["." + name.lstrip(".") for name in formats]
    unknown = [suffix for suffix in suffixes if suffix not in KNOWN_FORMATS]
    if unknown:
        raise ValueError(f"unknown formats {unknown}; known are {', '.join(KNOWN_FORMATS)}")
    return suffixes


def _shown_path(path: Path) -> str:
    run = path.parent.parent
    inside = (run / "settings.json").exists()
    return (path.relative_to(run) if inside else path.absolute()).as_posix()


def _predict_within_memory(
    predictor: Predictor, case: Case, out: Path, formats: Sequence[str] | None, tta: bool
) -> dict[str, Any]:
    """As `_predict_case`; where memory runs out it is UnusableImage, so that the other cases go on."""
    try:
        return _predict_case(predictor, case, out, formats, tta)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UnusableImage(
            "out_of_memory",
            "The memory does not suffice to segment this scan.",
            "Close other programs, crop the scan, or predict it on a machine with more memory.",
        ) from error


def _predict_case(
    predictor: Predictor, case: Case, out: Path, formats: Sequence[str] | None, tta: bool
) -> dict[str, Any]:
    """Segment one case, write its files, return its entry for index.json (without split and step)."""
    scan = read_channels(case, predictor)
    formats = formats or _default_formats(scan, predictor.table)
    if ".png" in formats and not _fits_png(scan, predictor.table):
        rule = "PNG holds single images with label values from 0 to 255 only."
        raise UnusableImage("format", rule, "Choose another format, for example seg.nrrd or nii.gz.")
    segmentation = predictor.segment(scan, tta)
    for suffix in formats:
        write_label(segmentation.labels, scan.geometry, predictor.table, out / f"{case.id}{suffix}")
    return {
        "case": case.id,
        "path": f"{case.id}{formats[0]}",
        "images": [str(path) for path in case.images],
        "volumes_ml": volumes_ml(segmentation.labels, scan.geometry, predictor.table),
        "uncertainty": float(segmentation.uncertainty),
    }


def _default_formats(scan: Scan, table: LabelTable) -> Sequence[str]:
    """Photos stay photos where their label values fit; everything else opens in Slicer with names and colours."""
    photo = not scan.geometry.physical and not scan.geometry.turned
    return (".png",) if photo and _fits_png(scan, table) else (".seg.nrrd",)


def _fits_png(scan: Scan, table: LabelTable) -> bool:
    return scan.dims == 2 and all(0 <= label.value <= 255 for label in table.labels)


def read_channels(case: Case, predictor: Predictor) -> Scan:
    """Read the case and make sure that it is what the model was trained on; raises UnusableImage otherwise."""
    scan, plan = read_scan(case.images), predictor.plan
    if scan.array.shape[0] != plan.channels:
        raise UnusableImage(
            "channels",
            f"The model was trained on scans with {plan.channels} channel(s), but this one has {scan.array.shape[0]}.",
            "Give the same kind of image as in training, every channel of it.",
        )
    if scan.dims != plan.scan_dims:
        kinds = {2: "2D images", 3: "volumes"}
        raise UnusableImage(
            "dimensions",
            f"The model was trained on {kinds[plan.scan_dims]}, but this is one of the {kinds[scan.dims]}.",
            "Give the same kind of image as in training.",
        )
    if scan.geometry.physical != plan.physical:
        has = {True: "with", False: "without"}
        raise UnusableImage(
            "physical_size",
            f"The model was trained on images {has[plan.physical]} a physical size, but this one is "
            f"{has[scan.geometry.physical]} it.",
            "Give the same kind of file as in training: medical formats carry the size, photos do not.",
        )
    if not np.isfinite(scan.array).all():
        raise UnusableImage(
            "not_finite",
            f"Every voxel must be a number, but {np.count_nonzero(~np.isfinite(scan.array))} are NaN or infinite.",
            "Export the image again, or replace these voxels.",
        )
    return scan


def volumes_ml(labels: np.ndarray, geometry: Geometry, table: LabelTable) -> dict[str, float | None]:
    """Volume in ml of each structure of an index map [*spatial], by name; None where there is no third dimension."""
    if not geometry.physical or len(geometry.spacing) < 3:
        return {label.name: None for label in table.structures}
    counts = np.bincount(labels.ravel(), minlength=len(table))
    voxel_ml = float(np.prod(geometry.spacing)) / 1000
    return {label.name: float(counts[i] * voxel_ml) for i, label in enumerate(table.structures, start=1)}


def update_index(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Merge entries into `folder`/index.json by case id, atomically; what is there of other cases stays."""
    path = folder / INDEX
    before = read_json(path)["cases"] if path.exists() else []
    merged = {entry["case"]: entry for entry in [*before, *entries]}
    write_json(path, {"cases": list(merged.values())})


def drop_from_index(folder: Path, case: str) -> None:
    """Forget an older prediction of a case that cannot be predicted any more."""
    path = folder / INDEX
    if path.exists():
        write_json(path, {"cases": [entry for entry in read_json(path)["cases"] if entry["case"] != case]})


def by_model(predictor: Predictor, tta: bool = True) -> Callable[[Case], tuple[np.ndarray, Geometry]]:
    """For `evaluate_cases`: segment each case with the model."""

    def segment(case: Case) -> tuple[np.ndarray, Geometry]:
        scan = read_channels(case, predictor)
        return predictor.segment(scan, tta).labels, scan.geometry

    return segment


def by_files(folder: Path, table: LabelTable) -> Callable[[Case], tuple[np.ndarray, Geometry]]:
    """For `evaluate_cases`: take the label maps that `predict_cases` wrote to `folder`."""
    index = {entry["case"]: entry["path"] for entry in read_json(folder / INDEX)["cases"]}

    def segment(case: Case) -> tuple[np.ndarray, Geometry]:
        if case.id not in index:
            raise UnusableImage("no_prediction", f"There is no prediction of it in {folder}.", "Predict it first.")
        return read_label(folder / index[case.id], table)

    return segment


def collect_images(paths: list[Path], channels: int = 1) -> list[Case]:
    """Image files, folders of images and DICOM series → one case each, in order of name, with absolute paths.

    A folder with DICOM files in it is one case; other folders give a case for each image and each folder of DICOM files
    directly inside them, segmentations (.seg.nrrd) left out. For a model with several `channels`, volumes that differ
    only in nnU-Net's channel number (_0000, _0001 …) are one case. The id is the file's (folder's) name without
    suffixes. Raises InputFaults with every path that is missing or holds no image, and every id that occurs twice.
    """
    cases: list[Case] = []
    faults: list[Fault] = []
    for given in paths:
        path = Path(given).absolute()
        found = _found_cases(path)
        if not path.exists():
            faults.append(Fault("missing_file", str(given), "There is no such file or folder.", "Check its spelling."))
        elif not found:
            rule = "An image, a folder of images or a DICOM series is expected, but none was found here."
            faults.append(Fault("no_image", str(given), rule, "Give NIfTI, NRRD, MHA, DICOM, PNG, JPEG or TIFF."))
        cases += found
    cases = _grouped(cases, channels) if channels > 1 else cases
    ids = [case.id for case in cases]
    for twice in sorted({name for name in ids if ids.count(name) > 1}):
        rule = f"Every case needs its own name, but {ids.count(twice)} images are called '{twice}'."
        faults.append(Fault("duplicate_case", twice, rule, "Predict them one after the other, or rename them."))
    if faults:
        raise InputFaults(faults)
    return cases


def _found_cases(path: Path) -> list[Case]:
    """The cases of one file or folder; a file without a known suffix may be DICOM, which the reader finds out."""
    if path.is_file():
        return [Case(id=stem_of(path), images=[path])]
    if not path.is_dir():
        return []
    if _is_series(path):
        return [Case(id=path.name, images=[path])]
    entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    return [
        Case(id=entry.name if entry.is_dir() else stem_of(entry), images=[entry])
        for entry in entries
        if (_is_series(entry) if entry.is_dir() else suffix_of(entry) not in ("", ".seg.nrrd"))
    ]


def _is_series(folder: Path) -> bool:
    files = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return any(suffix_of(file) in DICOM_SUFFIXES or (not suffix_of(file) and _is_dicom(file)) for file in files)


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _grouped(cases: list[Case], channels: int) -> list[Case]:
    """Join the volumes NAME_0000 … NAME_000(channels - 1) of one folder to the case NAME; leave all others alone."""
    present = {case.images[0] for case in cases}
    joined: dict[Path, Case] = {}
    for first in present:
        name, suffix = stem_of(first), suffix_of(first)
        if not name.endswith("_0000") or suffix in PHOTO_SUFFIXES:
            continue
        name = name.removesuffix("_0000")
        files = [first.with_name(f"{name}_{channel:04d}{suffix}") for channel in range(channels)]
        if present.issuperset(files):
            joined[first] = Case(id=name, images=files)
    swallowed = {path for case in joined.values() for path in case.images[1:]}
    return [joined.get(case.images[0], case) for case in cases if case.images[0] not in swallowed]
