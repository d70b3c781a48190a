"""Export a model as a MONAI bundle: what MONAI, MONAI Label and other programs run without our package."""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from genseg import __version__
from genseg.bundle_config import PHOTO_FILES, VOLUME_FILES, inference_config
from genseg.errors import DamagedFile, RunFailed
from genseg.inference import OVERLAP
from genseg.networks import build_segmenter
from genseg.plan import DEFAULT_SEGMENTER, Plan
from genseg.prepare import MOST_UNLABELLED, STYLE_SCANS
from genseg.runfolder import RunFolder, replacing, write_json
from genseg.settings import Settings
from genseg.startingmodel import BUNDLED, Studied, origin_of, trained_on
from genseg.study import Study
from genseg.versions import version_of

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
BUNDLE_VERSION = "1.0.0"
INTENDED_USE = "Research only. Not a medical device: a qualified person must check every result."


def export_bundle(run: RunFolder, out: Path) -> None:
    """Write the run's best model to `out` as a MONAI bundle; each file replaces its older version atomically.

    Raises RunFailed where the run has no usable model yet, or the weights do not fit the plan.
    """
    run.need_one_study()
    if not run.best.exists():
        raise RunFailed(
            "no_model",
            f"The run {run.path} holds no usable model yet.",
            "Train on, or look for errors in events.jsonl.",
        )
    plan, study, settings = Plan.load(run.plan), Study.load(run.study), Settings.load(run.settings)
    sources, seen = trained_on(run), _trained_on(study, settings, origin_of(run))
    network = _network_with_weights(plan, run.best)
    _write(out / "models" / "model.safetensors", lambda path: save_model(network, str(path)))
    weights = network.state_dict()
    _write(out / "models" / "model.pt", lambda path: torch.save(weights, path))  # the name that MONAI's tools look for
    for name, source in _sources(plan).items():
        _write_text(out / "scripts" / name, source)
    write_json(out / "configs" / "inference.json", inference_config(plan, study.labels, OVERLAP))
    write_json(out / "configs" / "label_table.json", study.labels.model_dump(mode="json"))
    write_json(out / "configs" / "plan.json", plan.model_dump(mode="json"))
    write_json(out / BUNDLED, [one.model_dump() for one in sources])
    _write_text(out / "docs" / "README.md", _readme(plan, study, settings, seen))
    _write_text(out / "docs" / "license.txt", _license(sources))
    write_json(
        out / "configs" / "metadata.json", metadata(plan, study, settings, seen, sources)
    )  # last: now the bundle is complete


def _sources(plan: Plan) -> dict[str, str]:
    """Our own files, by their names, that make what MONAI alone does not have."""
    networks = resources.files("genseg.networks")
    files = [networks.joinpath("prompted.py")] if plan.prompts is not None else []
    own = {file.name: file.read_text(encoding="utf-8") for file in files}
    if plan.segmenter != DEFAULT_SEGMENTER:
        folder = [file for file in networks.joinpath("segmenters").iterdir() if file.name.endswith(".py")]
        own |= {f"segmenters/{file.name}": file.read_text(encoding="utf-8") for file in folder}
    return own | {"__init__.py": ""} if own else {}


def _network_with_weights(plan: Plan, weights: Path) -> nn.Module:
    """The network of the plan with the weights of the file, in which a tensor of several names may stand once."""
    network = build_segmenter(plan)
    try:
        state = load_file(weights)
        missing, unexpected = network.load_state_dict(state, strict=False)
    except SafetensorError as error:
        raise DamagedFile(weights, error) from error
    except RuntimeError as error:  # shapes differ
        raise _misfit(weights, str(error)) from error
    own = network.state_dict()
    loaded = {own[name].data_ptr() for name in state if name in own}
    lacking = [name for name in missing if own[name].data_ptr() not in loaded]
    if lacking or unexpected:
        raise _misfit(weights, f"{len(lacking)} tensors are missing and {len(unexpected)} are unknown to it.")
    return network


def _misfit(weights: Path, why: str) -> RunFailed:
    message = f"The weights in {weights} do not fit the network of the plan: {why}"
    return RunFailed("weights_mismatch", message, "Export the run with the version it was trained with.")


def _write(path: Path, save: Callable[[Path], None]) -> None:
    with replacing(path) as temporary:
        save(temporary)


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def metadata(plan: Plan, study: Study, settings: Settings, trained_on: str, sources: list[Studied]) -> dict[str, Any]:
    """configs/metadata.json after MONAI's bundle specification."""
    names = ", ".join(label.name for label in study.labels.structures)
    network = "DynUNet" if plan.segmenter == DEFAULT_SEGMENTER else plan.segmenter
    network += " with prompts" if plan.prompts else ""
    return {
        "schema": SCHEMA,
        "version": BUNDLE_VERSION,
        "changelog": {BUNDLE_VERSION: f"Exported by genseg {__version__}"},
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__.split("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": _required_packages(plan),
        "name": f"Segmentation of {names}",
        "task": f"Segmentation of {names} in {_kind(plan)}",
        "description": f"A {plan.dims}D {network} trained by genseg {__version__} with the method '{settings.method}' "
        f"(seed {settings.seed}) on {trained_on}.",
        "authors": "The person who trained this model with GenSeg",
        "copyright": "The person who trained this model; see docs/license.txt",
        "data_source": study.name,
        "data_type": "image" if plan.photos else "nibabel",
        "image_classes": f"{plan.channels} channel(s), normalised as configs/inference.json says",
        "label_classes": f"one channel, values {', '.join(str(label.value) for label in study.labels.labels)}",
        "pred_classes": f"{plan.classes} channels, one score a class, background first",
        "intended_use": INTENDED_USE,
        "references": list(dict.fromkeys(one.reference for one in sources if one.reference)),
        "network_data_format": _network_data_format(plan, study),
    }


def _trained_on(study: Study, settings: Settings, origin: list[Studied]) -> str:
    """Which scans the model has seen, in words."""
    learns = settings.learn_unlabelled and settings.method != "supervised"
    most = min(len(study.unlabeled), MOST_UNLABELLED if settings.mixes else STYLE_SCANS)
    without = f"up to {most}" if learns and most else "no"  # those that look unlike the labelled ones do not count
    start = f", beginning from a model trained on {', '.join(one.name for one in origin)}" if origin else ""
    together = f", together with other studies ({len(settings.more)})" if settings.more else ""
    return f"{len(study.training)} labelled and {without} unlabelled scans of the study '{study.name}'{together}{start}"


def _required_packages(plan: Plan) -> dict[str, str]:
    """What the bundle needs beside MONAI. Its reader of images need not be installed where the bundle is written."""
    reader, tested = ("pillow", "11.0.0") if plan.photos else ("nibabel", "5.3.0")
    needed = {"safetensors": version_of("safetensors") or "0.5.0", reader: version_of(reader) or tested}
    return needed | ({"einops": version_of("einops") or "0.8.0"} if plan.segmenter == "swin_unetr" else {})


def _kind(plan: Plan) -> str:
    return "photographs" if plan.photos else "CT" if plan.normalisation[0].kind == "ct" else "medical images"


def _network_data_format(plan: Plan, study: Study) -> dict[str, Any]:
    ct = plan.normalisation[0]
    bounds = [(edge - ct.mean) / ct.std for edge in (ct.low, ct.high)] if ct.kind == "ct" else [-10.0, 10.0]
    shared = {"spatial_shape": list(plan.patch), "is_patch_data": True}
    return {
        "inputs": {
            "image": {
                "type": "image",
                "format": "hounsfield" if ct.kind == "ct" else "RGB" if plan.channels == 3 else "magnitude",
                "modality": "CT" if ct.kind == "ct" else "n/a",
                "num_channels": plan.channels,
                "dtype": "float32",
                "value_range": bounds,
                "channel_def": {str(i): f"channel {i}" for i in range(plan.channels)},
                **shared,
            }
        },
        "outputs": {
            "pred": {
                "type": "image",
                "format": "segmentation",
                "num_channels": plan.classes,
                "dtype": "float32",
                "value_range": [0, 1],
                "channel_def": {str(i): label.name for i, label in enumerate(study.labels.labels)},
                **shared,
            }
        },
    }


def _readme(plan: Plan, study: Study, settings: Settings, trained_on: str) -> str:
    labels = "\n".join(f"| {label.value} | {label.name} |" for label in study.labels.labels)
    files = ", ".join(pattern.lstrip("*") for pattern in (PHOTO_FILES if plan.photos else VOLUME_FILES))
    written = ".png" if plan.photos else ".nii.gz"
    packages = " ".join(f"{name}=={number}" for name, number in _required_packages(plan).items())
    notes = "\n".join(f"- {note}" for note in plan.notes)
    return f"""# Segmentation of {", ".join(label.name for label in study.labels.structures)}

{INTENDED_USE}

Trained on {trained_on} with
genseg {__version__}, method {settings.method}, seed {settings.seed}. {study.reference}

## Run it

    pip install "monai=={monai.__version__}" fire {packages}
    cd <this folder>
    python -m monai.bundle run --config_file configs/inference.json --dataset_dir <images> --output_dir <results>

It reads {files} in the folder <images> and writes one label map ({written}) an image, on the image's own grid.
A case of {plan.channels} channel(s) is one file; where the channels lie in several files, name them instead of the
folder: --datalist "[['a_0000.nii.gz', 'a_0001.nii.gz']]". Other formats: convert them, or use genseg itself, which
also reads single sagittal and coronal slices (this configuration takes single slices as axial).

## Check it

    python -m monai.bundle verify_net_in_out network --meta_file configs/metadata.json \\
        --config_file configs/inference.json
    python -m monai.bundle verify_metadata --meta_file configs/metadata.json --filepath schema.json

The second needs the package jsonschema and downloads MONAI's schema; without network, put the schema at schema.json.

## Values

| value | structure |
|---|---|
{labels}

## How the numbers were chosen

{notes}

models/model.safetensors and models/model.pt hold the same weights; inference.json reads the first.
"""


def _license(sources: list[Studied]) -> str:
    terms = "\n".join(
        f"- {one.name}: {one.licence}" + (f" ({one.reference})" if one.reference else "") for one in sources
    )
    return f"""The configuration files and the documentation of this bundle were written by genseg {__version__} and are
licensed under the Apache License, Version 2.0 (https://www.apache.org/licenses/LICENSE-2.0).

The weights were learned from scans of these studies, under the terms that the studies give:

{terms}

Who may use and share the weights depends on these terms; the person who trained the model decides and should write it
here.
"""
