"""The inference configuration of a MONAI bundle: what `preprocess` and `inference` do, said in MONAI's transforms.

Nothing in it needs our package. Lines that begin with $ are Python that MONAI evaluates, @ refers to another entry.
"""

from itertools import chain, combinations
from typing import Any

import numpy as np

from genseg.labels import LabelTable
from genseg.networks.segmenter import dynunet_arguments, segmenter_arguments
from genseg.plan import DEFAULT_SEGMENTER, Normalisation, Plan

VOLUME_FILES = ("*.nii.gz", "*.nii")
PHOTO_FILES = ("*.png", "*.jpg", "*.jpeg", "*.tif", "*.tiff", "*.bmp")


def inference_config(plan: Plan, table: LabelTable, overlap: float) -> dict[str, Any]:
    """configs/inference.json for `python -m monai.bundle run`, started in the bundle's folder."""
    patterns = PHOTO_FILES if plan.photos else VOLUME_FILES
    return {
        "imports": [
            "$import glob",
            "$import itertools",
            "$import os",
            "$import torch",
            "$import numpy",
            "$from safetensors.torch import load_model",
            "$import monai",
        ],
        "bundle_root": ".",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "output_dir": "$os.path.join(@bundle_root, 'predictions')",
        "patterns": list(patterns),
        "datalist": "$sorted(itertools.chain.from_iterable("
        "glob.glob(os.path.join(glob.escape(@dataset_dir), pattern)) for pattern in @patterns))",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "ckpt_path": "$os.path.join(@bundle_root, 'models', 'model.safetensors')",
        "network_def": _network(plan),
        "network": "$(load_model(@network_def, @ckpt_path), @network_def.to(@device).eval())[1]",
        **_resizing(plan),
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(plan)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': image} for image in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(plan, overlap),
        "postprocessing": {"_target_": "Compose", "transforms": _postprocessing(plan, table)},
        **_mirroring(plan),
        "segment": "$torch.no_grad()(lambda case: "
        "@postprocessing({**case, 'pred': @mirrored(case['image'][None].to(@device))[0].cpu()}))",
        "run": [
            "$print('Images to segment:', len(@datalist), 'in', @dataset_dir)",
            "$[@segment(case) and None for case in @dataset]",
        ],
        "evaluator": {  # for programs that drive bundles through MONAI's engines; needs pytorch-ignite
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
    }


def _network(plan: Plan) -> dict[str, Any]:
    """The arguments of genseg.networks.build_segmenter; the export checks that the weights fit."""
    if plan.segmenter != DEFAULT_SEGMENTER:
        own = segmenter_arguments(plan)
        if plan.prompts is None:
            return {"_target_": "scripts.segmenters.build"} | own
        return {"_target_": "scripts.prompted.prompted_segmenter"} | plan.prompts.arguments() | own
    arguments = {name: list(v) if isinstance(v, tuple) else v for name, v in dynunet_arguments(plan).items()}
    arguments["deep_supervision"] = False
    if plan.prompts is None:
        return {"_target_": "DynUNet"} | arguments
    return {"_target_": "scripts.prompted.prompted_dynunet"} | plan.prompts.arguments() | arguments


def _sliced(plan: Plan) -> int | None:
    """Axis of the (z, y, x) array along which a 2D network goes slice by slice; None for 3D networks and photos."""
    if plan.dims == 3 or plan.photos:
        return None
    return 0 if plan.slice_axis is None else plan.slice_axis  # a single slice is a volume one voxel thick


def _resizing(plan: Plan) -> dict[str, Any]:
    """Functions between the scan's grid and the working grid; both scale index space, as `preprocess` does."""
    axis = _sliced(plan)
    steps = list(plan.spacing)
    if axis is not None:
        steps.insert(axis, None)  # type: ignore[arg-type]
    if plan.physical:
        working = (
            "$lambda x: [n if t is None else max(1, round(n * float(s) / t)) "
            "for n, s, t in zip(x.shape[1:], x.pixdim, @spacing)]"
        )
    else:
        working = (
            "$lambda x: [n if t is None else "
            f"max(1, round(n * {plan.reference_long_side!r} / max(x.shape[1:]) / t)) "
            "for n, t in zip(x.shape[1:], @spacing)]"
        )
    into, back, kept = "[None]", "[0]", ""
    if axis is not None:  # slices are the batch of a 2D network; elsewhere the batch is one
        into, back, kept = (
            f".movedim({axis + 1}, 0)",
            f".movedim(0, {axis + 1})",
            f"[:{axis}] + tuple(size)[{axis + 1}:]",
        )
    mode, shrink = ("trilinear", "mode='area'") if plan.dims == 3 else ("bilinear", "mode='bilinear', antialias=True")
    return {
        "spacing": steps,
        "working_size": working,
        "interpolate": "$lambda x, size, **how: "
        f"torch.nn.functional.interpolate(x{into}, tuple(size){kept}, **how){back}",
        "smooth": f"$lambda x, size: @interpolate(x, size, mode='{mode}')",
        "shrink": f"$lambda x, size: @interpolate(x, size, {shrink})",
        "coarser": "$lambda x, size: any(new < 0.75 * old for new, old in zip(size, x.shape[1:]))",
        "resized": "$lambda x, size, soft: x if list(x.shape[1:]) == list(size) else "
        "(@shrink if soft and @coarser(x, size) else @smooth)(x, size)",
        "to_working_grid": "$lambda x: monai.data.MetaTensor(@resized(x.as_tensor(), @working_size(x), True), "
        "meta={**x.meta, 'native_size': list(x.shape[1:])}, applied_operations=x.applied_operations)",
        "to_native_grid": "$lambda case: {**case, 'pred': monai.data.MetaTensor(@resized(torch.as_tensor(case['pred'])"
        ".as_subclass(torch.Tensor), case['image'].meta['native_size'], False), meta=case['image'].meta)}",
        "channels": [_normalise(how) for how in plan.normalisation],
        "normalise": "$lambda x: monai.data.MetaTensor(torch.cat([one(channel[None]) for one, channel in "
        "zip(@channels, x.as_tensor())]), meta=x.meta, applied_operations=x.applied_operations)",
    }


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    backwards = [0, 2, 1] if plan.photos else [0, 3, 2, 1]  # readers give x first
    orientation: dict[str, Any] = {"_target_": "Transposed", "keys": "image", "indices": backwards}
    if plan.physical:  # first axis towards the head, second to the back, third to the left: our (z, y, x) in LPS
        orientation = {"_target_": "Orientationd", "keys": "image", "axcodes": "SPL"}
    without_alpha = {"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: x[:{plan.channels}]"}
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([without_alpha] if plan.photos else []),
        orientation,
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {"_target_": "Lambdad", "keys": "image", "func": "@to_working_grid"},
        {"_target_": "Lambdad", "keys": "image", "func": "@normalise"},
    ]


def _normalise(how: Normalisation) -> dict[str, Any]:
    if how.kind == "zscore":
        return {"_target_": "NormalizeIntensity"}
    low, high = ((edge - how.mean) / how.std for edge in (how.low, how.high))
    window = {"a_min": how.low, "a_max": how.high, "b_min": low, "b_max": high, "clip": True}
    return {"_target_": "ScaleIntensityRange", **window}


def _inferer(plan: Plan, overlap: float) -> dict[str, Any]:
    windows = {"roi_size": plan.patch, "sw_batch_size": plan.batch, "overlap": overlap, "mode": "gaussian"}
    axis = _sliced(plan)
    if axis is None:
        return {"_target_": "SlidingWindowInferer", **windows}
    return {"_target_": "SliceInferer", "spatial_dim": axis, **windows}


def _mirroring(plan: Plan) -> dict[str, Any]:
    """Average over mirrored copies; as logarithm, so that the softmax in the postprocessing gives the average back."""
    spatial = [axis for axis in range(2 if plan.photos else 3) if axis != _sliced(plan)]
    axes = [2 + spatial[axis] for axis in plan.mirror_axes]
    flips = [list(some) for some in chain.from_iterable(combinations(axes, n) for n in range(len(axes) + 1))]
    return {
        "flips": flips,
        "mirrored": "$lambda x: torch.stack([torch.softmax(@inferer(x.flip(flip), @network).float(), 1).flip(flip) "
        "for flip in @flips]).mean(0).clamp_min(1e-12).log()",
    }


def _postprocessing(plan: Plan, table: LabelTable) -> list[dict[str, Any] | str]:
    values = [label.value for label in table.labels]
    dtype = str(table.to_value(np.zeros(1, np.uint8)).dtype)
    dtype = "uint16" if dtype == "int16" and plan.photos else dtype  # PNG has no signed numbers
    original = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "image"}
    return [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        "@to_native_grid",
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {**original, "nearest_interp": True, "to_tensor": True},
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(values))),
            "target_labels": values,
            "dtype": "$numpy.int64",
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_ext": ".png" if plan.photos else ".nii.gz",
            "output_dtype": f"$numpy.{dtype}",
            "separate_folder": False,
            "resample": False,
        },
    ]
