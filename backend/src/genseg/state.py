"""The state of a run: networks, optimisers, averages, counters; built from a plan, saved and restored whole."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from genseg.augment import UNCHANGED
from genseg.device import Device
from genseg.errors import RunFailed
from genseg.methods.joint import Joint, Synthesis
from genseg.methods.level3 import MetaParameters
from genseg.methods.losses import one_hot
from genseg.methods.synthesis import CLUSTERS, Sources, meta_plan
from genseg.methods.versemi import Mixing
from genseg.networks import build_discriminator, build_generator, build_segmenter
from genseg.networks.prompted import PromptedSegmenter
from genseg.plan import Plan
from genseg.prepare import Prepared
from genseg.randomness import stream
from genseg.runfolder import replacing
from genseg.sampling import Sampler
from genseg.settings import Settings

Network = TypeVar("Network", bound=nn.Module)
EMA = 0.99
WEIGHT_DECAY = 1e-2
GENERATOR_RATE, DISCRIMINATOR_RATE, META_RATE = 1e-3, 4e-4, 1e-1


class Average:
    """Exponential moving average of the segmenter's weights: the model that is used."""

    def __init__(self, network: nn.Module, plan: Plan, device: Device):
        self.network = device.place(build_segmenter(plan))
        self.network.load_state_dict(network.state_dict(), strict=False)  # the heads of deep supervision stay behind
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        decay = min(EMA, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        source = dict(network.named_parameters())
        mine = dict(self.network.named_parameters())
        torch._foreach_lerp_(list(mine.values()), [source[name] for name in mine], 1 - decay)
        theirs = dict(network.named_buffers())
        for name, buffer in self.network.named_buffers():
            buffer.copy_(theirs[name])


@dataclass
class Counters:
    """How far the run is; saved with the weights."""

    step: int = 0  # of the segmenter
    pretrain_step: int = 0
    elapsed: float = 0.0
    pretrain_seconds: float = 0.0
    rate_scale: float = 1.0  # halved when the run has diverged
    diverged: int = 0
    average_updates: int = 0
    checks: int = 0  # how many of the regular checks are done
    synthetic: int = 0  # pairs written


@dataclass
class Part:
    """What a study of the run has of its own. Segmenter, its optimiser and its averaged weights are shared by all."""

    joint: Joint
    prepared: Prepared
    model: nn.Module  # the averaged segmenter, asked for this study's structures
    prefix: str = ""  # of its tensors in a checkpoint


@dataclass
class RunState:
    """The studies of a run, which take turns in training, and what they share."""

    parts: list[Part]
    average: Average
    settings: Settings
    counters: Counters = field(default_factory=Counters)

    @property
    def turn(self) -> Part:
        """The study whose step it is."""
        return self.parts[(self.counters.pretrain_step + self.counters.step) % len(self.parts)]

    @property
    def joint(self) -> Joint:
        return self.turn.joint

    @property
    def prepared(self) -> Prepared:
        return self.turn.prepared

    def alone(self, part: Part) -> "RunState":
        """The same run seen from one of its studies."""
        return replace(self, parts=[part])

    def modules(self) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {"segmenter": self.joint.segmenter, "average": self.average.network}
        for part in self.parts:
            if (s := part.joint.synthesis) is not None:
                own = {"generator": s.generator, "discriminator": s.discriminator, "meta": s.meta}
                found |= {part.prefix + name: module for name, module in own.items()}
        return found

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        found = {"segmenter": self.joint.optimiser}
        for part in self.parts:
            if (s := part.joint.synthesis) is not None:
                own = {
                    "generator": s.generator_optimiser,
                    "discriminator": s.discriminator_optimiser,
                    "meta": s.meta_optimiser,
                }
                found |= {part.prefix + name: optimiser for name, optimiser in own.items()}
        return found

    def is_finite(self) -> bool:
        """Whether every weight and every running mean is a number."""
        weights = [p for module in self.modules().values() for p in module.parameters()]
        return all(bool(torch.isfinite(p).all()) for p in [*weights, *(part.joint.agreement for part in self.parts)])

    def apply_rate_scale(self) -> None:
        """Bring the rates of level 1 and 3 to `rate_scale`; the segmenter's follow its schedule step by step."""
        rates = {"generator": GENERATOR_RATE, "discriminator": DISCRIMINATOR_RATE, "meta": META_RATE}
        for name, optimiser in self.optimisers().items():
            rate = rates.get(name.split("/")[-1])
            if rate is not None:
                for group in optimiser.param_groups:
                    group["lr"] = rate * self.counters.rate_scale

    def save(self, path: Path) -> None:
        """Everything needed to go on, in one file that is replaced at once, with the counters beside it to read."""
        tensors: dict[str, Tensor] = {}
        for part in self.parts:
            tensors |= {f"{part.prefix}agreement": part.joint.agreement, f"{part.prefix}found": part.joint.found}
            if (s := part.joint.synthesis) is not None:
                tensors |= {f"{part.prefix}shapes/{n}": found for n, found in enumerate(s.sources.shapes.maps)}
        for name, module in self.modules().items():
            tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
        for name, optimiser in self.optimisers().items():
            for index, entries in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser/{name}/{index}/{key}": value for key, value in entries.items()}
        self.counters.average_updates = self.average.updates
        save_tensors(path, tensors, {"counters": json.dumps(vars(self.counters))})
        with replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(vars(self.counters), indent=2) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; raises where the file and the networks do not fit."""
        tensors, metadata = load_tensors(path)
        for part in self.parts:
            part.joint.agreement.copy_(tensors[f"{part.prefix}agreement"])
            if (found := tensors.get(f"{part.prefix}found")) is not None:  # older runs did not follow it
                part.joint.found.copy_(found)
            if (s := part.joint.synthesis) is not None:
                saved, shapes = _part(tensors, f"{part.prefix}shapes/"), s.sources.shapes
                if len(saved) > len(shapes.maps):  # maps depend on the scans alone: those found since stay
                    shapes.maps = [saved[str(n)] for n in range(len(saved))]
        for name, module in self.modules().items():
            module.load_state_dict(_part(tensors, f"{name}/"))
        for name, optimiser in self.optimisers().items():
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(tensors, f"optimiser/{name}/").items():
                index, entry = key.split("/")
                state.setdefault(int(index), {})[entry] = value
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
            _lay_out(optimiser)
        vars(self.counters).update(json.loads(metadata["counters"]))  # in place: views of single studies share them
        self.average.updates = self.counters.average_updates
        self.apply_rate_scale()

    def save_model(self, path: Path) -> None:
        """The usable segmenter: its averaged weights."""
        save_tensors(path, _once(self.average.network.state_dict()), {"step": str(self.counters.step)})


def _lay_out(optimiser: torch.optim.Optimizer) -> None:
    """Bring moments into their weights' order in memory, which the fused step takes for granted."""
    for p, entries in optimiser.state.items():
        for name, moment in entries.items():
            if name != "step":
                entries[name] = torch.empty_like(p).copy_(moment)


def _once(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor under the first of its names, as safetensors' own reader of models wants it."""
    first: dict[int, str] = {}
    return {name: value for name, value in tensors.items() if first.setdefault(value.data_ptr(), name) == name}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Safetensors, atomically, on the disk when this returns. Tensors that share memory are stored twice."""
    content = save({k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}, metadata)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a power cut could leave the new name with the content not yet written


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `save_tensors` wrote. Raises RunFailed where the file is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        remedy = "Restore the file from a backup, or train again."
        if path.stem == "last":
            remedy += " A model in checkpoints/best.safetensors can be used."
        raise RunFailed("damaged_checkpoint", f"The file {path} is damaged: {error}.", remedy) from error


def build_state(prepared: Sequence[Prepared], settings: Settings) -> RunState:
    """Networks with weights drawn from the seed, each from its own stream, and their optimisers."""
    plan, device, seed = prepared[0].plan, prepared[0].device, settings.seed
    segmenter = device.place(seeded(seed, "segmenter", lambda: build_segmenter(plan, plan.deep_supervision)))
    optimiser = torch.optim.AdamW(segmenter.parameters(), weight_decay=WEIGHT_DECAY, fused=True)
    average = Average(segmenter, plan, device)
    parts = [
        Part(
            joint=Joint(
                plan=one.plan,
                device=one.device,
                seed=seed,
                sampler=Sampler(one.labelled, one.plan),
                segmenter=_asked(segmenter, one.plan),
                optimiser=optimiser,
                average=average,
                agreement=torch.zeros((), device=device.torch),
                found=torch.ones(one.plan.classes - 1, device=device.torch),
                synthesis=_build_synthesis(one, settings) if settings.generates else None,
            ),
            prepared=one,
            model=_asked(average.network, one.plan),
            prefix=f"{one.study.name}/" if len(prepared) > 1 else "",
        )
        for one in prepared
    ]
    for part in parts if settings.mixes else []:
        part.joint.others = [other.joint for other in parts if other is not part]
        part.joint.mixing = _build_mixing(part, settings)
    return RunState(parts, average, settings)


def _asked(network: nn.Module, plan: Plan) -> nn.Module:
    """The network, asked for the plan's structures where it takes prompts."""
    if plan.prompts is None:
        return network
    assert isinstance(network, PromptedSegmenter)
    return network.asked(plan.prompts.tasks)


def _build_synthesis(prepared: Prepared, settings: Settings) -> Synthesis:
    plan, device, seed = prepared.plan, prepared.device, settings.seed
    layouts = plan.classes + CLUSTERS
    generator = device.place(seeded(seed, "generator", lambda: build_generator(plan, layouts, settings.generator)))
    discriminator = device.place(seeded(seed, "discriminator", lambda: build_discriminator(plan, layouts)))
    sources = Sources.of(prepared.labelled, prepared.unlabelled, prepared.study.patients, plan, seed)
    rng = stream(seed, "meta parameters")
    consistent = settings.mixes and bool(prepared.unlabelled)
    meta = MetaParameters(generator, rng, settings.synthetic_weight, sources.operations, consistent)
    generator.begin(lambda n: _real_pairs(n, prepared, layouts, seed))
    smaller, batch = meta_plan(plan)
    return Synthesis(
        generator=generator,
        discriminator=discriminator,
        meta=meta.to(device.torch),
        generator_optimiser=torch.optim.Adam(generator.parameters(), GENERATOR_RATE, betas=(0.5, 0.999), fused=True),
        discriminator_optimiser=torch.optim.Adam(
            discriminator.parameters(), DISCRIMINATOR_RATE, betas=(0.5, 0.999), fused=True
        ),
        meta_optimiser=torch.optim.Adam(meta.parameters(), META_RATE),
        sources=sources,
        meta_sampler=Sampler(prepared.labelled, smaller),
        meta_batch=batch,
        layouts=layouts,
        closed_loop=settings.closes_the_loop,
    )


def _real_pairs(n: int, prepared: Prepared, layouts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Labelled scans with their grey values as they are: images [n, C, *patch], layouts [n, layouts, *patch]."""
    sampler = Sampler(prepared.labelled, prepared.plan)
    image, layout = sampler.load(sampler.draw(n, stream(seed, "begin")), UNCHANGED)
    return image, one_hot(layout, layouts)


def _build_mixing(part: Part, settings: Settings) -> Mixing:
    scans, plan = part.prepared.unlabelled, part.prepared.plan
    sampler, small = (Sampler(scans, p) if scans else None for p in (plan, meta_plan(plan)[0]))
    return Mixing(sampler, small, part.model, frozenset(settings.without))


def seeded(seed: int, name: str, build: Callable[[], Network]) -> Network:
    """Build a network from its own random stream, so that no network's start depends on another's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream(seed, f"start of {name}").initial_seed())
        return build()
