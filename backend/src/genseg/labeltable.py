"""Label tables: from `labels` of a dataset.json ({"1": name} as in MSD and MONAI, or {name: 1} as in nnU-Net v2),
or, where nothing is named, from the values that occur in the masks."""

from pathlib import Path
from typing import Any

import numpy as np

from genseg.errors import Fault
from genseg.imagefile import UnusableImage, load, suffix_of
from genseg.imageio import read_label_values, value_counts
from genseg.labels import LabelTable
from genseg.segnrrd import same_name, segment_names

_EXAMPLE = 'Write for example "labels": {"0": "background", "1": "tumour"}.'

SMOOTHED_VALUES = 8  # between 0 and 255, from which a mask may be a smoothed one
MOST_LABELS = 250  # background included; a layout adds its grey levels and must fit into 8 bits


def read_table(labels: Any, faults: list[Fault]) -> LabelTable | None:
    """Build the label table; appends a fault for everything wrong and returns None where there is no table."""
    if not isinstance(labels, dict) or not labels:
        faults.append(
            Fault("label_table_missing", "study", "dataset.json must say what the values in the masks mean.", _EXAMPLE)
        )
        return None
    names: dict[int, str] = {}
    colors: dict[int, tuple[int, int, int]] = {}
    terminologies: dict[int, str] = {}
    for key, content in labels.items():
        try:
            value, name, extra = _label(key, content)
            if value in names:
                raise ValueError(f"Value {value} is given to both '{names[value]}' and '{name}'.")
            if name in names.values():
                raise ValueError(f"Two labels have the same name '{name}'.")
            if "color" in extra:
                colors[value] = _color(extra["color"], name)
            if extra.get("terminology"):
                terminologies[value] = str(extra["terminology"])
            names[value] = name
        except ValueError as error:
            faults.append(Fault("bad_label_table", "study", str(error), _EXAMPLE))
    if len(names) > MOST_LABELS:
        rule = f"A study may have at most {MOST_LABELS} labels, but this one has {len(names)}."
        faults.append(Fault("too_many_labels", "study", rule, "Leave out labels, or split the study."))
        return None
    try:
        return LabelTable.from_names(names, colors, terminologies)
    except ValueError:  # a structure that is itself called "background"
        rule = "Value 0 is the background, but another value is called 'background'."
        faults.append(Fault("bad_label_table", "study", rule, _EXAMPLE))
        return None


def _label(key: str, content: Any) -> tuple[int, str, dict[str, Any]]:
    """One entry → file value, name, and what else it says (color, terminology)."""
    if isinstance(content, list):
        raise ValueError(f"Label '{key}' joins several values (a region), which is not possible here.")
    if key == "ignore" and isinstance(content, int):
        raise ValueError("An 'ignore' label is not possible here: every voxel needs its structure.")
    extra = content if isinstance(content, dict) else {}
    name = extra.get("name", content)
    if isinstance(content, dict) and "value" in content:
        key, name = str(content["value"]), content.get("name", key)
    elif isinstance(content, int) and not isinstance(content, bool):
        key, name = str(content), key
    try:
        value = int(key)
    except ValueError:
        raise ValueError(f"Label '{key}' has no whole number as its value.") from None
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"The label with value {value} has no name.")
    return value, name.strip(), extra


def _color(color: Any, name: str) -> tuple[int, int, int]:
    """[r, g, b] as 0..255, or as fractions 0..1 the way Slicer writes them."""
    numbers = isinstance(color, list) and len(color) == 3 and all(isinstance(c, int | float) for c in color)
    if not numbers or min(color) < 0 or max(color) > 255:
        raise ValueError(f"The color of '{name}' must be three numbers from 0 to 255.")
    scale = 255 if max(color) <= 1 and any(isinstance(c, float) for c in color) else 1
    red, green, blue = (round(c * scale) for c in color)
    return red, green, blue


def table_from_masks(masks: list[Path], faults: list[Fault]) -> LabelTable:
    """The values that occur in the masks, named after their segments or "label N".

    Appends a fault for every mask whose values were smoothed (they are no structures) and for too many values.
    Masks that cannot be read are left out: `check_study` reports them with their cases.
    """
    names: dict[int, str] = {}
    for path in masks:
        try:
            counts = _value_counts(path)
            found = segment_names(load(path).volumes[0]) if suffix_of(path) == ".seg.nrrd" else {}
        except UnusableImage:
            continue
        if _smoothed(path, counts):
            faults.append(_smoothed_mask(path, counts))
            continue
        for value in counts:
            name = found.get(value, f"label {value}")
            if name == f"label {value}":
                names.setdefault(value, name)
            elif same_name(name) not in map(same_name, names.values()):
                names[value if value not in names else max(names) + 1] = name
    if len(names) > MOST_LABELS:
        rule = f"The masks hold {len(names)} different values; they look like photos and not like masks."
        remedy = "Save masks as PNG, NRRD or NIfTI with one value a structure, or give the values in a dataset.json."
        faults.append(Fault("too_many_labels", "study", rule, remedy))
        return LabelTable.from_names({})
    return LabelTable.from_names(names)


def _value_counts(path: Path) -> dict[int, int]:
    """{value: voxels} of the values other than 0 in a mask, ascending. Raises UnusableImage."""
    values, counts = value_counts(read_label_values(path)[0])
    return {int(value): int(n) for value, n in zip(values, counts, strict=True) if value != 0}


def _smoothed(path: Path, counts: dict[int, int]) -> bool:
    """Is it a mask of 0 and 255 whose edges were blurred, by JPEG or by resizing?

    Then many values lie between, each of them rare beside 255; structures of a label map are not.
    """
    if suffix_of(path) in (".jpg", ".jpeg"):
        return len(counts) > 1
    between = [n for value, n in counts.items() if 0 < value < 255]
    few = len(between) < SMOOTHED_VALUES or max(counts) != 255
    return not few and counts[255] > 4 * float(np.median(between))


def _smoothed_mask(path: Path, counts: dict[int, int]) -> Fault:
    return Fault(
        "smoothed_mask",
        path.name,
        f"Every value of a mask must be a structure, but {len(counts)} values occur, as where edges are smoothed.",
        "Save masks as PNG, NRRD or NIfTI without smoothing, or name the values in the `labels` of a dataset.json.",
    )
