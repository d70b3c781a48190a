"""Synthetic pairs to look at: made, scored against the segmenter and the training scans, and written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.augment import UNCHANGED, Strength
from genseg.errors import RunFailed
from genseg.events import EventLog, Progress, Synthetic
from genseg.exclusions import Exclusions
from genseg.imageio import Geometry, write_image, write_label
from genseg.labels import LabelTable
from genseg.methods.joint import GATE
from genseg.methods.losses import dice_agreement, hard, one_hot
from genseg.methods.synthesis import SyntheticDraw, soft_label_of, synthesise
from genseg.prepare import prepare_again
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.runfolder import RunFolder, read_json, write_json
from genseg.settings import Settings
from genseg.state import Part, RunState, build_state

ARCHITECTURE = "architecture.json"
NEAR_COPY = 0.95  # correlation with a training image from which a synthetic one counts as its copy


@torch.no_grad()
def make_pairs(state: RunState, count: int, seed: int, step: int) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """`count` pairs with their scores: (image [C, *patch], label [*patch] int64, entry of the index)."""
    joint, s = state.joint, state.joint.synthesis
    assert s is not None
    pairs = []
    for number in range(count):
        draw = SyntheticDraw.make(1, joint.sampler, s.sources, s.generator, stream(seed, "gallery", number))
        strength = s.meta.strength()
        layout = one_hot(draw.layout(joint.sampler, strength), s.layouts)
        with joint.device.autocast():
            image, shown = synthesise(draw, layout, s.generator, None, s.meta, strength)
            label = hard(soft_label_of(shown, joint.plan.classes))
            agreement = float(dice_agreement(state.turn.model(image), label))
        image = image.float()
        # A mask that was made new has left the warp of the scan it came from.
        nearest, similarity = _nearest(state, draw, image, [strength] if shown is layout else [strength, UNCHANGED])
        entry = {
            "source": joint.sampler.cases[draw.batch.cases[0]].id,
            "style": draw.styled_as[0],
            "implant": None if draw.implant is None else joint.sampler.cases[draw.implant.cases[0]].id,
            "parameters": _parameters(draw, number, seed),
            "agreement": agreement,
            "nearest": nearest,
            "similarity": similarity,
            "near_copy": similarity >= NEAR_COPY,
            "used": bool(draw.wanted[0]) and agreement >= GATE * float(joint.agreement),
            "step": step,
        }
        pairs.append((image[0].cpu(), label[0].cpu(), entry))
    return pairs


def _nearest(state: RunState, draw: SyntheticDraw, image: Tensor, strengths: list[Strength]) -> tuple[str, float]:
    """The training scan most like the image, and their correlation, at half resolution.

    Every training scan is looked at through the very warp of the synthetic mask, at each of the
    strengths, so that a copied patient is recognised although it was moved and bent.
    """
    sampler, s = state.joint.sampler, state.joint.synthesis
    assert s is not None
    pool = F.avg_pool2d if state.joint.plan.dims == 2 else F.avg_pool3d
    mine, best = pool(image, 2).flatten(), ("", -1.0)
    for index, case in enumerate(sampler.cases):
        last = case.image.shape[1] - 1 if state.joint.plan.dims == 2 else 0
        there = replace(draw.batch, cases=[index], slices=[min(draw.batch.slices[0], last)])
        for strength in strengths:
            theirs = pool(sampler.load_image(there, strength), 2).flatten()
            similarity = float(torch.corrcoef(torch.stack([mine, theirs]))[0, 1].nan_to_num(0.0))
            best = max(best, (case.id, similarity), key=lambda pair: pair[1])
    return best


def _parameters(draw: SyntheticDraw, number: int, seed: int) -> dict[str, Any]:
    """What was drawn, for the record; with the generator's weights (seed, number) makes the pair again."""
    spatial, intensity = draw.batch.spatial, draw.batch.intensity
    return {
        "seed": seed,
        "number": number,
        "rotate": spatial.rotate[0].tolist(),
        "scale": spatial.scale[0].tolist(),
        "mirror": spatial.mirror[0].tolist(),
        "brightness": intensity.brightness[0].tolist(),
        "contrast": intensity.contrast[0].tolist(),
        "gamma": float(intensity.gamma[0]),
        "noise": float(intensity.noise[0]),
        "blur": float(intensity.blur[0]),
    }


def write_pairs(
    state: RunState, count: int, out: Path, log: EventLog, seed: int, first: int, prefix: str = ""
) -> list[dict[str, Any]]:
    """Make `count` pairs, write them as `out`/0007_image.* and `out`/0007_mask.* from number `first`, and list them."""
    table, plan = state.prepared.study.labels, state.joint.plan
    index_file = out / "index.json"
    entries = read_json(index_file)["pairs"] if index_file.exists() else []
    made = make_pairs(state, count, seed, state.counters.step)
    for number, (image, label, entry) in enumerate(made, start=first):
        if not plan.physical:
            known = [*state.prepared.labelled, *state.prepared.unlabelled]
            image = _in_colours(image, next(case for case in known if case.id == entry["style"]))
        entry |= _write_pair(image, label, plan.spacing, plan.physical, table, out, f"{number:04d}")
        entries = [other for other in entries if other["image"] != entry["image"]] + [entry]
        write_json(index_file, {"pairs": entries})
        log.emit(
            Synthetic(
                path=prefix + entry["image"],
                mask=prefix + entry["mask"],
                step=entry["step"],
                agreement=entry["agreement"],
                near_copy=entry["near_copy"],
            )
        )
    return entries


def _in_colours(image: Tensor, case: WorkingCase) -> Tensor:
    """Normalised photo [C, *spatial] → 0..255 in the colours of the one whose style it has, as people know them."""
    assert case.colours is not None
    mean, std, most = (column.view(-1, *[1] * (image.ndim - 1)) for column in case.colours.unbind(1))
    white = max(255.0, float(most.max()))  # more than eight bits
    return ((image * std + mean) * 255 / white).clamp(0, 255)


def _write_pair(
    image: Tensor, label: Tensor, spacing: list[float], physical: bool, table: LabelTable, out: Path, name: str
) -> dict[str, str]:
    """Grey and RGB photos as 8-bit PNG where their masks fit into one; everything else as float NRRD."""
    dims = label.ndim
    geometry = Geometry(
        size=tuple(reversed(label.shape)),
        spacing=tuple(reversed(spacing)),
        origin=(0.0,) * dims,
        direction=tuple(np.eye(dims).flatten().tolist()),
        physical=physical,
    )
    array = image.float().numpy()
    photo = not physical and dims == 2 and len(image) in (1, 3) and max(entry.value for entry in table.labels) <= 255
    suffix = ".png" if photo else ".nrrd"
    write_image(array, geometry, out / f"{name}_image{suffix}")
    write_label(label.numpy().astype(np.uint8), geometry, table, out / f"{name}_mask{suffix}")
    return {"image": f"{name}_image{suffix}", "mask": f"{name}_mask{suffix}"}


def synthesize(run: Path, count: int, out: Path, device: str, seed: int, log: EventLog) -> int:
    """Write `count` new pairs of a run's generator to `out`. → their number. Raises RunFailed where it has none."""
    folder = RunFolder(run)
    settings = Settings.load(folder.settings).model_copy(update={"device": device})
    if not settings.generates or not folder.last.exists():
        raise RunFailed(
            "no_generator",
            f"The run {run} has no generator.",
            "Give a run trained with a generator (--method genseg+versemi, genseg or separate); of several studies the "
            "run itself, not the folder of one of them.",
        )
    state = build_state(prepare_again(folder, settings, log), settings)
    state.load(folder.last)
    folders = folder.studies([part.prepared.study.name for part in state.parts])
    for number in range(count):  # of several studies' generators in turn
        part, own = state.parts[number % len(folders)], folders[number % len(folders)]
        assert part.joint.synthesis is not None
        part.joint.synthesis.sources.styles.excluded = Exclusions(own, log).last()
        write_pairs(state.alone(part), 1, out, log, seed=seed * 100_003 + number, first=number)
        log.emit(Progress(phase="predict", step=number + 1, total=count))
    _write_architecture(state, out)
    return count


def _write_architecture(state: RunState, out: Path) -> None:
    """The kernels of the generators that level 3 has shaped; where it was to and never ran, that is said."""
    learned = {}
    for part in state.parts:
        assert part.joint.synthesis is not None
        layers = _architecture(part) if part.joint.synthesis.closed_loop else {}
        if layers and part.joint.synthesis.meta_optimiser.state:
            learned[part.prepared.study.name] = layers
        elif layers:
            part.prepared.log.warn("level3_not_run", "Level 3 has not run: the kernels are as they began.")
    if learned:
        write_json(out / ARCHITECTURE, learned)


def architecture(out: Path) -> str:
    """What `synthesize` wrote to `out` of the generators' kernels, for people; "" where nothing learned them."""
    if not (out / ARCHITECTURE).exists():
        return ""
    lines = []
    for study, layers in read_json(out / ARCHITECTURE).items():
        lines.append(f"Learned kernels of the generator for {study} (size: share of a layer's mixture)")
        for layer, shares in layers.items():
            lines.append(f"  {layer}: " + ", ".join(f"{size}: {share:.0%}" for size, share in shares.items()))
    return "\n".join(lines)


def _architecture(part: Part) -> dict[str, dict[str, float]]:
    """What level 3 made of each layer whose kernel is searched: {layer: {kernel size: share}}."""
    assert part.joint.synthesis is not None
    layers: dict[str, dict[str, float]] = {}
    for layer, size, share in part.joint.synthesis.meta.architecture():
        layers.setdefault(layer, {})[str(size)] = round(share, 4)
    return layers
