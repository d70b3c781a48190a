"""The bundle is judged by MONAI itself, in a process where our package cannot be imported, on real scans."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from made_run import make_run
from real_data import DATA, needs_data
from safetensors.torch import load_file

from genseg.errors import RunFailed
from genseg.export import export_bundle
from genseg.imageio import read_label, read_scan
from genseg.inference import Predictor
from genseg.plan import Normalisation, Plan, Prompts
from genseg.runfolder import RunFolder

WITHOUT_GENSEG = """
import runpy, sys
sys.modules["genseg"] = None  # importing it raises
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


def monai_bundle(bundle: Path, *arguments: str) -> str:
    """`python -m monai.bundle` in the bundle's folder, with our package out of reach."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_GENSEG, *arguments],
        cwd=bundle,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def in_float32(run: RunFolder) -> Predictor:
    """The predictor in the bundle's precision: random weights leave near ties that bfloat16 decides otherwise."""
    predictor = Predictor.load(run.path, "cpu")
    predictor.device = replace(predictor.device, precision="fp32")
    return predictor


def exported(tmp_path: Path, name: str, normalisation: list[Normalisation] | None = None) -> tuple[RunFolder, Path]:
    run, _ = make_run(tmp_path / "run", name, normalisation)
    bundle = tmp_path / "Bündel mit Leerzeichen"
    export_bundle(run, bundle)
    return run, bundle


def flipped(source: Path, target: Path) -> Path:
    """A volume stored in another orientation, with an oblique direction and an origin far away."""
    image = sitk.DICOMOrient(sitk.ReadImage(str(source)), "PIR")
    turn = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1.0]])
    image.SetDirection((turn @ np.array(image.GetDirection()).reshape(3, 3)).ravel().tolist())
    image.SetOrigin((-71.5, 33.25, 812.0))
    sitk.WriteImage(image, str(target))
    return target


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    return float((a == b).mean())


def run_and_compare(run: RunFolder, bundle: Path, images: Path, suffix: str) -> None:
    """Run the bundle on `images` and compare each label map with the predictor's: voxels, grid and values."""
    results = bundle.parent / "results"
    monai_bundle(
        bundle,
        *("run", "--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json"),
        *("--dataset_dir", str(images), "--output_dir", str(results)),
    )
    predictor = in_float32(run)
    for image in images.iterdir():
        scan = read_scan([image])
        ours = predictor.segment(scan).labels
        theirs, geometry = read_label(results / (image.name.split(".")[0] + suffix), predictor.table)
        assert geometry.size == scan.geometry.size
        assert np.allclose(geometry.spacing, scan.geometry.spacing, atol=1e-5)
        assert np.allclose(geometry.origin, scan.geometry.origin, atol=1e-3)
        assert np.allclose(geometry.direction, scan.geometry.direction, atol=1e-5)
        assert len(np.unique(ours)) > 1, "the comparison is empty where only one class occurs"
        assert agreement(ours, theirs) > 0.99


@needs_data
@pytest.mark.slow
def test_a_volume_is_segmented_by_monai_alone_as_by_the_predictor_in_any_orientation(tmp_path):
    run, bundle = exported(tmp_path, "hippocampus")
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(DATA / "hippocampus/images/hippocampus_334.nii.gz", images)
    flipped(DATA / "hippocampus/images/hippocampus_386.nii.gz", images / "turned.nii.gz")
    run_and_compare(run, bundle, images, ".nii.gz")


@needs_data
@pytest.mark.slow
def test_a_model_with_prompts_brings_its_network_along(tmp_path):
    """Trained together with another study, whose structures have the other prompts."""
    run, _ = make_run(tmp_path / "run", "hippocampus", prompts=Prompts(count=5, tasks=[2, 1]))
    bundle, images = tmp_path / "bundle", tmp_path / "images"
    export_bundle(run, bundle)
    images.mkdir()
    shutil.copy(DATA / "hippocampus/images/hippocampus_334.nii.gz", images)
    run_and_compare(run, bundle, images, ".nii.gz")


@needs_data
@pytest.mark.slow
def test_thick_slices_are_segmented_by_monai_alone_as_by_the_predictor(tmp_path):
    run, bundle = exported(tmp_path, "acdc")
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(DATA / "acdc/images/patient018_frame01.nii.gz", images)
    run_and_compare(run, bundle, images, ".nii.gz")


@needs_data
@pytest.mark.slow
def test_photos_are_segmented_by_monai_alone_as_by_the_predictor_with_the_values_of_the_study(tmp_path):
    run, bundle = exported(tmp_path, "isic2017")
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((DATA / "isic2017/images").iterdir())[:2]:  # as PNG: two JPEG decoders differ in a few greys
        sitk.WriteImage(sitk.ReadImage(str(path)), str(images / f"{path.stem}.png"))
    run_and_compare(run, bundle, images, ".png")
    for path in (tmp_path / "results").iterdir():
        assert set(np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(path))))) <= {0, 255}


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), [("hippocampus", "hippocampus_334"), ("acdc", "patient018_frame01")])
def test_a_tiff_stack_saved_as_nifti_is_segmented_by_monai_alone_as_by_the_predictor(tmp_path, name, case):
    """Stacks have no size in mm, as photos, but three axes; MONAI's readers take one image of a TIFF only."""
    run, study = make_run(tmp_path / "run", name)
    Plan.load(run.plan).model_copy(update={"physical": False, "reference_long_side": 50.0}).save(run.plan)
    export_bundle(run, tmp_path / "bundle")
    image = sitk.Cast(sitk.ReadImage(str(DATA / f"{name}/images/{case}.nii.gz")), sitk.sitkUInt16)
    stack = sitk.GetImageFromArray(sitk.GetArrayFromImage(image))
    for path in (tmp_path / "stack.tif", tmp_path / "images/stack.nii.gz"):
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(stack, str(path))
    results = ("--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "results"))
    monai_bundle(tmp_path / "bundle", "run", "--config_file", "configs/inference.json", *results)
    ours = in_float32(run).segment(read_scan([tmp_path / "stack.tif"])).labels
    theirs, _ = read_label(tmp_path / "results/stack.nii.gz", study.labels)
    assert len(np.unique(ours)) > 1 and agreement(ours, theirs) > 0.99


@needs_data
@pytest.mark.slow
def test_channels_with_different_normalisation_in_separate_files_are_segmented_alike(tmp_path):
    window = Normalisation(kind="ct", low=20, high=90, mean=50, std=18)
    run, study = make_run(tmp_path / "run", "hippocampus", [Normalisation(), window])
    bundle = tmp_path / "bundle"
    export_bundle(run, bundle)
    files = [DATA / f"hippocampus/images/{name}.nii.gz" for name in ("hippocampus_334", "hippocampus_334")]
    monai_bundle(
        bundle, "run", "--config_file", "configs/inference.json", "--datalist", str([[str(file) for file in files]])
    )
    predictor = in_float32(run)
    theirs, _ = read_label(bundle / "predictions/hippocampus_334.nii.gz", study.labels)
    assert agreement(predictor.segment(read_scan(files)).labels, theirs) > 0.99


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["hippocampus", "isic2017"])
def test_monai_verifies_the_network_and_the_metadata_offline(tmp_path, name):
    pytest.importorskip("jsonschema", reason="MONAI verifies metadata with the package jsonschema")
    _, bundle = exported(tmp_path, name)
    schema = tmp_path / "schema.json"  # in the place where MONAI would download its own
    schema.write_text(json.dumps(SPECIFICATION), encoding="utf-8")
    meta = ("--meta_file", "configs/metadata.json")
    assert "no error" in monai_bundle(
        bundle, "verify_net_in_out", "network", *meta, "--config_file", "configs/inference.json"
    )
    assert "no error" in monai_bundle(bundle, "verify_metadata", *meta, "--filepath", str(schema))


# What MONAI's bundle specification asks of metadata.json, written down as a schema.
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
    "properties": {
        "type": {"const": "image"},
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 2, "maxItems": 3},
        "dtype": {"const": "float32"},
        "value_range": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {"^[0-9]+$": {"type": "string"}}},
    },
}
TEXTS = ["task", "description", "authors", "copyright", "intended_use", "schema", "name"]
NUMBERED = ["version", "monai_version", "pytorch_version", "numpy_version"]
SPECIFICATION = {
    "type": "object",
    "required": [*TEXTS, *NUMBERED, "changelog", "required_packages_version", "network_data_format", "references"],
    "properties": {
        **{key: {"type": "string", "minLength": 1} for key in TEXTS},
        **{key: {"type": "string", "pattern": r"^\d+\.\d+\.\d+"} for key in NUMBERED},
        "changelog": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "string"}},
        "required_packages_version": {"type": "object", "additionalProperties": {"type": "string"}},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "properties": {
                "inputs": {"type": "object", "required": ["image"], "properties": {"image": TENSOR}},
                "outputs": {"type": "object", "required": ["pred"], "properties": {"pred": TENSOR}},
            },
            "required": ["inputs", "outputs"],
        },
    },
}


@needs_data
def test_both_weight_files_hold_the_weights_of_the_run_and_need_no_pickle(tmp_path):
    run, bundle = exported(tmp_path, "hippocampus")
    best = load_file(run.best)
    plain = load_file(bundle / "models/model.safetensors")
    pickled = torch.load(bundle / "models/model.pt", weights_only=True)
    assert best.keys() == plain.keys()
    for name, tensor in best.items():
        assert torch.equal(tensor, plain[name])
        assert torch.equal(tensor, pickled[name])


@needs_data
def test_the_label_table_and_the_classes_stand_in_the_bundle(tmp_path):
    _, bundle = exported(tmp_path, "isic2017")
    table = json.loads((bundle / "configs/label_table.json").read_text(encoding="utf-8"))
    meta = json.loads((bundle / "configs/metadata.json").read_text(encoding="utf-8"))
    assert [label["value"] for label in table["labels"]] == [0, 255]
    names = [label["name"] for label in table["labels"]]
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == dict(zip("01", names, strict=True))
    assert (bundle / "docs/README.md").read_text(encoding="utf-8").count("255")
    assert "Apache" in (bundle / "docs/license.txt").read_text(encoding="utf-8")


@needs_data
def test_a_run_without_a_model_is_refused_with_a_remedy_and_nothing_is_written(tmp_path):
    run, _ = make_run(tmp_path / "run", "hippocampus")
    run.best.unlink()
    with pytest.raises(RunFailed) as failed:
        export_bundle(run, tmp_path / "bundle")
    assert failed.value.code == "no_model"
    assert failed.value.remedy
    assert not (tmp_path / "bundle").exists()


@needs_data
def test_weights_of_another_network_are_refused(tmp_path):
    run, _ = make_run(tmp_path / "run", "hippocampus")
    other, _ = make_run(tmp_path / "other", "isic2017")
    shutil.copy(other.best, run.best)
    with pytest.raises(RunFailed) as failed:
        export_bundle(run, tmp_path / "bundle")
    assert failed.value.code == "weights_mismatch"
