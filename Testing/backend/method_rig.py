"""The method on real scans at a size that a test can afford: whole states with small networks and small patches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from genseg.cases import draw
from genseg.device import Device
from genseg.events import EventLog
from genseg.imageio import read_label, read_scan
from genseg.methods.joint import META_EVERY, Joint, Stage
from genseg.plan import Plan, make_plan
from genseg.prepare import Prepared, load
from genseg.settings import Settings
from genseg.state import RunState, build_state
from genseg.study import read_study
from genseg.together import prompts_of

PATCHES = {"hippocampus": [16, 16, 16], "isic2017": [32, 32], "kvasir": [32, 32], "acdc": [32, 32]}
CPU = Device(torch.device("cpu"), "processor", None, "fp32")


def processor(precision: str = "fp32") -> Device:
    return Device(torch.device("cpu"), "processor", None, precision)


def planned(data: Path, name: str, cases: int = 3, device: Device = CPU, segmenter: str = "dynunet") -> Plan:
    """The very plan that a run of the first `cases` labelled scans would get."""
    study = draw(read_study(data / name), cases, None, 0)
    scans = [read_scan(case.images) for case in study.training]
    labels = [read_label(case.label, study.labels)[0] for case in study.training]
    return make_plan(scans, labels, study.labels, device, segmenter=segmenter)


def with_segmenter(plan: Plan, name: str) -> Plan:
    """The same with another network; only the default one has deep supervision."""
    return plan.model_copy(update={"segmenter": name, "deep_supervision": False})


def prepared(data: Path, name: str, labelled: int = 2, unlabelled: int = 2, precision: str = "fp32") -> Prepared:
    """Real scans with the plan made for them, but a small network and patches on a coarse grid."""
    study = draw(read_study(data / name), labelled, unlabelled, 0)
    plan = planned(data, name, labelled)
    small = plan.model_copy(
        update={
            "spacing": [s * (2.0 if plan.dims == 2 else 1.5) for s in plan.spacing],
            "patch": PATCHES[name],
            "batch": 2,
            "filters": [4, 8, 16],
            "kernels": [3, 3, 3],
            "strides": [1, 2, 2],
            "deep_supervision": False,
            "precision": precision,
        }
    )
    settings = Settings(dataset=data / name, out=Path("run"), method="genseg")
    return load([study], [small], settings, processor(precision), [EventLog()])[0]


def built(ready: Prepared, method: str = "genseg", seed: int = 0, **chosen: object) -> RunState:
    settings = Settings(dataset=Path("study"), out=Path("run"), method=method, seed=seed, iterations=100, **chosen)
    if settings.mixes:
        dynamic = "prompts" not in settings.without
        prompted = ready.plan.model_copy(update={"prompts": prompts_of([ready.study], dynamic)[0]})
        ready = replace(ready, plan=prompted)
    state = build_state([ready], settings)
    if state.joint.synthesis is not None:
        shapes = state.joint.synthesis.sources.shapes
        for _ in range(min(2, len(shapes.pairs))):
            shapes.find()
    return state


def searching(labelled: int, consistency: float | None = None) -> Stage:
    """Everything at work, the first scan held out (with a single one, nothing can be)."""
    held_out = {} if labelled == 1 else {"train": list(range(1, labelled))}
    return Stage(synthetic=True, level1=True, level3=True, consistency=consistency, validation=[0], **held_out)


def advance(joint: Joint, steps: int, stage: Stage | None = None, first: int = 1, rate: float = 2e-3) -> int:
    """Take `steps` steps; → the next one. Without a stage: real pairs, and the generator on its own before."""
    for group in joint.optimiser.param_groups:
        group["lr"] = rate
    for step in range(first, first + steps):
        if stage is None and joint.synthesis is not None:
            joint.pretrain(joint.synthesis, step)
        joint.step(step, stage or Stage())
    return first + steps


def next_level3(step: int) -> int:
    """The first step from `step` on at which level 3 is due."""
    return -(-step // META_EVERY) * META_EVERY


@contextmanager
def in_double() -> Iterator[None]:
    """float64 throughout, with the very random numbers of float32."""
    random = {name: getattr(torch, name) for name in ("rand", "randn")}

    def widened(name: str):
        return lambda *shape, **how: random[name](*shape, **how, dtype=torch.float32).double()

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(torch.Tensor, "float", torch.Tensor.double),
            patch.object(torch, "rand", widened("rand")),
            patch.object(torch, "randn", widened("randn")),
        ):
            yield
    finally:
        torch.set_default_dtype(before)


def widen(joint: Joint) -> Joint:
    """Turn every network, optimiser, scan and style of `joint` into float64, in place."""
    s = joint.synthesis
    assert s is not None
    for module in (joint.segmenter, joint.average.network, s.generator, s.discriminator, s.meta):
        module.double()
    for optimiser in (joint.optimiser, s.generator_optimiser, s.discriminator_optimiser, s.meta_optimiser):
        for entries in optimiser.state.values():
            entries.update({k: v.double() for k, v in entries.items() if k != "step"})
    unlabelled = [] if joint.mixing is None else joint.mixing.unlabelled.cases + joint.mixing.meta_unlabelled.cases
    for case in {id(c): c for c in joint.sampler.cases + s.meta_sampler.cases + unlabelled}.values():
        case.image = case.image.double()
    styles, shapes = s.sources.styles, s.sources.shapes
    styles.styles, styles.spread = styles.styles.double(), styles.spread.double()
    shapes.maps = [found.double() for found in shapes.maps]
    joint.agreement, joint.found = joint.agreement.double(), joint.found.double()
    return joint
