"""Reading a study: dataset.json (Medical Segmentation Decathlon, MONAI), nnU-Net v2 raw, or a pair of folders."""

import json
import os
from pathlib import Path
from typing import Any

from genseg.cases import Case, Study, draw
from genseg.check import StudyFacts, check_disk, check_study, find_faults
from genseg.errors import Fault, InputFaults
from genseg.imagefile import SUFFIXES, stem_of, suffix_of
from genseg.labels import LabelTable
from genseg.labeltable import read_table, table_from_masks

__all__ = ["Case", "Study", "StudyFacts", "check_disk", "check_study", "draw", "read_study"]

_SPLITS = ("training", "validation", "unlabeled", "test")
_LISTS = "`training`, `unlabeled` and `test`"
_MASK_FOLDERS = ("labels", "masks", "label", "mask", "segmentations")
_MASK_ENDINGS = ("_mask", "-mask", "_segmentation", "_seg", "-seg", "_label", "-label")
_OF_THE_TABLE = ("label_table_missing", "bad_label_table", "too_many_labels", "smoothed_mask")
_EXAMPLE = '{"labels": {"0": "background", "1": "tumour"}, "training": [{"image": "a.nii.gz", "label": "a_m.nii.gz"}]}'


def read_study(path: Path) -> Study:
    """Read a dataset.json, a folder that holds one, an nnU-Net v2 raw folder, or `images` + `labels` or `masks`.

    Raises InputFaults with every fault of the study's form; where the form has faults the files are
    checked too, so that the user sees all at once. A study whose form is right is checked by `check_study`.
    """
    path = Path(os.path.abspath(path))
    faults: list[Fault] = []
    study = _Reader(path, faults).read()
    if not faults and study is not None:
        return study
    of_files = find_faults(study, judge_whole=False) if study is not None else []
    if any(fault.code in _OF_THE_TABLE for fault in faults):
        of_files = [fault for fault in of_files if fault.code != "unknown_label_value"]  # only its consequence
    raise InputFaults(faults + of_files)


class _Reader:
    """Reads one study and appends to `faults` whatever is wrong with its form."""

    def __init__(self, path: Path, faults: list[Fault]):
        self.path, self.faults = path, faults
        self.root = path if path.is_dir() else path.parent

    def fault(self, code: str, case: str, rule: str, remedy: str) -> None:
        self.faults.append(Fault(code, case, rule, remedy))

    def read(self) -> Study | None:
        file = self.root / "dataset.json" if self.path.is_dir() else self.path
        if not self.path.exists():
            self.fault("no_study", str(self.path), "There is no such file or folder.", "Correct the path of the study.")
            return None
        if file.exists():
            content = self._json(file)
            if content is None:
                return None
            if "unlabelled" in content and "unlabeled" not in content:
                content["unlabeled"] = content.pop("unlabelled")
            listed = any(isinstance(content.get(split), list) for split in _SPLITS)
            nnunet = not listed and ("channel_names" in content or (self.root / "imagesTr").is_dir())
            return self._nnunet(content) if nnunet else self._datalist(content)
        return self._pair_of_folders()

    def _json(self, file: Path) -> dict[str, Any] | None:
        doubled: list[str] = []

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            keys = [key for key, _ in pairs]
            doubled.extend(sorted({key for key in keys if keys.count(key) > 1}))
            return dict(pairs)

        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=unique)
        except (ValueError, OSError) as error:
            self.fault("bad_json", file.name, f"It is no readable JSON ({error}).", f"Write it as {_EXAMPLE}.")
            return None
        for key in doubled:
            self.fault(
                "duplicate_key", file.name, f"'{key}' is given twice in one place.", "Keep one of them, or rename one."
            )
        if not isinstance(content, dict):
            self.fault("bad_json", file.name, "It must hold one JSON object.", f"Write it as {_EXAMPLE}.")
            return None
        return content

    def _study(self, content: dict[str, Any], training: list[Case], unlabeled: list[Case], test: list[Case]) -> Study:
        table = read_table(content.get("labels"), self.faults)
        if table is not None and not table.structures:  # only the background is named: the masks decide
            table = table_from_masks([case.label for case in training + test if case.label is not None], self.faults)
        channels = content.get("channel_names") or content.get("modality") or {}
        names = (
            list(channels.values()) if isinstance(channels, dict) else channels if isinstance(channels, list) else []
        )
        return Study(
            name=str(content.get("name") or self.root.name),
            reference=str(content.get("reference") or ""),
            licence=str(content.get("licence") or content.get("license") or ""),
            labels=table or LabelTable.from_names({}),
            channels=[str(name) for name in names],
            training=training,
            unlabeled=unlabeled,
            test=test,
        )

    # --- dataset.json with lists -------------------------------------------------------------------------------

    def _datalist(self, content: dict[str, Any]) -> Study:
        """`validation` cases, where a MONAI list has them, count as training: the backend rotates its own folds."""
        for key in sorted(key for key in content if key not in _SPLITS and _holds_cases(content[key])):
            self.fault(
                "unknown_list",
                "study",
                f"Cases stand under {_LISTS}, but dataset.json lists some under '{key}'.",
                f"Rename '{key}' to what these cases are for, or take it out.",
            )
        lists = {}
        for split in _SPLITS:
            entries = content.get(split, [])
            if not isinstance(entries, list):
                self.fault("bad_entry", "study", f"'{split}' must be a list of cases.", f"Write it as {_EXAMPLE}.")
                entries = []
            cases = [self._entry(entry, f"{split}[{i}]") for i, entry in enumerate(entries)]
            lists[split] = [case for case in cases if case is not None]
        for case in lists["training"] + lists["validation"]:
            if case.label is None:
                self.fault(
                    "no_label",
                    case.id,
                    "Every training case needs a mask, but none is named.",
                    "Name its mask as `label`, or move the case to `unlabeled`.",
                )
        return self._study(content, lists["training"] + lists["validation"], lists["unlabeled"], lists["test"])

    def _entry(self, entry: Any, where: str) -> Case | None:
        entry = {"image": entry} if isinstance(entry, str) else entry
        image = entry.get("image") if isinstance(entry, dict) else None
        images = [image] if isinstance(image, str) else image
        label = entry.get("label") if isinstance(entry, dict) else None
        if isinstance(label, list) and len(label) == 1:
            label = label[0]
        images = images if isinstance(images, list) else []
        texts = all(isinstance(item, str) and item for item in images)
        if not images or not texts or not isinstance(label, str | None):
            self.fault(
                "bad_entry",
                where,
                "A case must name its image file (or a list of files, one per channel) and at most one mask.",
                'Write it as {"image": "scan.nii.gz", "label": "mask.nii.gz"}.',
            )
            return None
        paths = [self._absolute(item) for item in images]
        group = entry.get("group")
        return Case(
            id=str(entry.get("id") or stem_of(paths[0])),
            images=paths,
            label=self._absolute(label) if label else None,
            group=None if group is None else str(group),
        )

    def _absolute(self, text: str) -> Path:
        """Paths count from the folder of dataset.json; backslashes of a list written on Windows are understood."""
        path = self.root / text
        if "\\" in text and not path.exists():
            path = self.root / text.replace("\\", "/")
        return Path(os.path.abspath(path))

    # --- nnU-Net v2 raw folder ---------------------------------------------------------------------------------

    def _nnunet(self, content: dict[str, Any]) -> Study:
        ending = content.get("file_ending")
        if not isinstance(ending, str):
            self.fault(
                "bad_json",
                "dataset.json",
                "An nnU-Net study must give its `file_ending`.",
                'Add for example "file_ending": ".nii.gz" to dataset.json.',
            )
            return self._study(content, [], [], [])
        training = self._nnunet_cases("imagesTr", "labelsTr", ending)
        listed = content.get("dataset")
        if isinstance(listed, dict):
            training = [
                case
                for key, entry in listed.items()
                if (case := self._entry({"id": key, "image": entry.get("images"), "label": entry.get("label")}, key))
            ]
        test = self._nnunet_cases("imagesTs", "labelsTs", ending)
        labelled = [case for case in training if case.label is not None]
        return self._study(content, labelled, [case for case in training if case.label is None], test)

    def _nnunet_cases(self, images: str, labels: str, ending: str) -> list[Case]:
        """Cases of `images`/ID_0000ENDING (one file per channel) with `labels`/IDENDING where that exists."""
        channels: dict[str, list[Path]] = {}
        folder = self.root / images
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            name = path.name[: -len(ending)]
            number = name[-5:]
            if path.name.startswith(".") or not path.name.endswith(ending):
                continue
            if len(name) < 6 or number[0] != "_" or not number[1:].isdigit():
                self.fault(
                    "bad_file_name",
                    path.name,
                    "In an nnU-Net study image names end in the number of their channel.",
                    f"Rename it, for example to {name}_0000{ending}.",
                )
                continue
            channels.setdefault(name[:-5], []).append(path)
        for path in sorted((self.root / labels).glob(f"*{ending}")):
            if path.name[: -len(ending)] not in channels and not path.name.startswith("."):
                self._label_without_image(path, images)
        found = {case: self.root / labels / f"{case}{ending}" for case in channels}
        return [
            Case(id=case, images=paths, label=found[case] if found[case].exists() else None)
            for case, paths in channels.items()
        ]

    # --- a plain pair of folders -------------------------------------------------------------------------------

    def _pair_of_folders(self) -> Study | None:
        folders = {entry.name.lower(): entry for entry in self.root.iterdir() if entry.is_dir()}
        images = folders.get("images") or folders.get("image")
        masks = next((folders[name] for name in _MASK_FOLDERS if name in folders), None)
        if images is None or masks is None:
            self.fault(
                "no_study",
                str(self.root),
                "The folder holds neither a dataset.json nor the folders `images` and `labels` (or `masks`).",
                "Put scans into `images` and their masks under the same names into `labels`.",
            )
            return None
        labels = self._masks_by_stem(masks)
        cases = [Case(id=stem_of(p), images=[p], label=labels.pop(stem_of(p).lower(), None)) for p in _scans(images)]
        for path in labels.values():
            self._label_without_image(path, images.name)
        table = table_from_masks([case.label for case in cases if case.label is not None], self.faults)
        return Study(
            name=self.root.name,
            labels=table,
            training=[case for case in cases if case.label is not None],
            unlabeled=[case for case in cases if case.label is None],
        )

    def _masks_by_stem(self, folder: Path) -> dict[str, Path]:
        """{stem in lower case: mask}; endings such as _mask or _segmentation do not count."""
        masks: dict[str, Path] = {}
        for path in _scans(folder):
            stem = stem_of(path).lower()
            stem = next((stem.removesuffix(end) for end in _MASK_ENDINGS if stem.endswith(end)), stem)
            if stem in masks:
                self.fault(
                    "duplicate_label",
                    stem,
                    f"A case must have one mask, but {masks[stem].name} and {path.name} both fit.",
                    "Keep one of them in the folder.",
                )
            masks[stem] = path
        return masks

    def _label_without_image(self, path: Path, images: str) -> None:
        self.fault(
            "label_without_image",
            path.name,
            f"Every mask needs its scan, but none in `{images}` has its name.",
            "Add the scan under the same name, or take the mask away.",
        )


def _holds_cases(content: Any) -> bool:
    """A list of entries with an image, or of the names of image files."""
    entries = content if isinstance(content, list) else []
    return any(
        "image" in entry if isinstance(entry, dict) else isinstance(entry, str) and suffix_of(Path(entry)) != ""
        for entry in entries
    )


def _scans(folder: Path) -> list[Path]:
    """Image files and folders (DICOM series) in `folder`, by name; hidden and other files do not count."""
    entries = [p for p in folder.iterdir() if not p.name.startswith(".") and (p.is_dir() or suffix_of(p) in SUFFIXES)]
    return sorted(entries, key=lambda p: p.name)
