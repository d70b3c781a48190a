"""A run folder with a small network of drawn weights, on real studies: enough to predict and export, trained or not."""

from pathlib import Path

import torch
from real_data import DATA
from safetensors.torch import save_model

from genseg.networks import build_segmenter
from genseg.plan import Normalisation, Plan, Prompts
from genseg.runfolder import RunFolder
from genseg.settings import Settings
from genseg.study import Study, read_study

# What differs between a volume, a stack of thick slices and a photo. Spacings differ from those of the files, so
# that every way to the working grid and back is taken: finer in one axis, coarser in others. Only one axis is
# mirrored, so that no flip by mistake hides behind the average over mirrored copies.
PLANS = {
    "hippocampus": {"dims": 3, "spacing": [1.6, 1.2, 0.9], "patch": [24, 32, 32], "mirror_axes": [1]},
    "acdc": {"dims": 2, "slice_axis": 0, "spacing": [2.5, 1.9], "patch": [64, 64], "mirror_axes": [0]},
    "isic2017": {
        "dims": 2,
        "channels": 3,
        "physical": False,
        "reference_long_side": 256.0,
        "spacing": [2.0, 2.0],
        "patch": [64, 64],
        "mirror_axes": [0],
    },
}


def make_plan(name: str, classes: int, normalisation: list[Normalisation] | None = None) -> Plan:
    given = {
        "slice_axis": None,
        "channels": len(normalisation or [1]),
        "physical": True,
        "reference_long_side": None,
        **PLANS[name],
    }
    return Plan(
        **given,
        classes=classes,
        batch=2,
        normalisation=normalisation or [Normalisation()] * given["channels"],
        filters=[4, 8, 8, 8],
        kernels=[3] * 4,
        strides=[1, 2, 2, 2],
        deep_supervision=False,
        precision="fp32",
        memory_mb=10,
        notes=["Made for a test."],
    )


def make_run(
    folder: Path, name: str, normalisation: list[Normalisation] | None = None, prompts: Prompts | None = None
) -> tuple[RunFolder, Study]:
    """Write settings, study, plan and weights; `name` is a study of the data folder."""
    run, study = RunFolder(folder), read_study(DATA / name)
    plan = make_plan(name, len(study.labels), normalisation)
    plan.prompts = prompts
    Settings(dataset=DATA / name, out=folder).save(run.settings)
    study.save(run.study)
    plan.save(run.plan)
    torch.manual_seed(0)
    network = build_segmenter(plan)
    with torch.no_grad():  # strong scores around zero: every class occurs often, and few voxels are near a tie
        if prompts is None:
            last = network.output_block.conv.conv
            last.weight.copy_(20 * (last.weight - last.weight.mean(1, keepdim=True)))
            last.bias.zero_()
        else:
            of_prompt, features = network.head.of_prompt, network.head.sizes[0]
            of_prompt[:, :features] = 20 * (of_prompt[:, :features] - of_prompt[:, :features].mean(1, keepdim=True))
            of_prompt[:, features] = 0
            torch.nn.init.normal_(network.head.of_image.weight, std=5.0)  # the image has its say, too
    run.checkpoints.mkdir(parents=True)
    save_model(network, str(run.best))
    return run, study
