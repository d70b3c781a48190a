"""Start from what earlier runs taught: a run's own model, a bundle, or a starting model of `genseg meta-train`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genseg.cases import Study
from genseg.errors import RunFailed
from genseg.events import EventLog
from genseg.inference import Predictor
from genseg.labels import LabelTable
from genseg.plan import Plan
from genseg.runfolder import RunFolder, read_json
from genseg.segnrrd import same_name
from genseg.state import RunState, load_tensors

INPUT = "input_block.conv1.conv.weight"  # [f, C, *kernel]
# How the names of what has a channel for each structure begin; a head's have none for the background.
HEAD, LAST = "head.", ("head.of_prompt", "head.out.", "output_block.", "deep_supervision_heads.")
BACKGROUND, ANY = " background", " any"  # no structure's plain name begins with a blank


@dataclass
class StartingModel:
    """Weights under the names of an ordinary network, and the plan that the network was made for.

    `general`: it has no structures of its own, so that the last layer is anew in any case.
    """

    path: Path
    plan: Plan
    weights: dict[str, Tensor]
    general: bool
    trained_on: list[dict[str, Any]]  # its studies, as `described`
    structures: dict[str, int] = field(default_factory=dict)  # `channels_of`

    @classmethod
    def load(cls, path: Path) -> "StartingModel":
        """Raises RunFailed where there is no usable model, or which of several is not said."""
        folder = RunFolder(path)
        folder.need_one_study()
        if folder.card.exists():
            if missing := [file.name for file in (folder.plan, folder.best) if not file.exists()]:
                remedy = "Restore it from a backup, or learn the model again."
                raise RunFailed("no_model", f"The starting model {path} lacks {' and '.join(missing)}.", remedy)
            card = read_json(folder.card)
            return cls(path, Plan.load(folder.plan), load_tensors(folder.best)[0], True, card["trained_on"])
        if folder.best.exists() and not folder.study.exists():
            remedy = "A starting model needs its card.json, a run its study.json: copy the whole folder."
            raise RunFailed("no_model", f"{path} holds weights, but does not say for what.", remedy)
        predictor = Predictor.load(path, "cpu")
        weights = {_plain(name): p for name, p in predictor.network.state_dict().items()}
        own = [described(Study.load(folder.study))] if folder.study.exists() else []
        earlier = read_json(folder.origin) if folder.origin.exists() else []
        structures = channels_of(predictor.plan, predictor.table)
        return cls(path, predictor.plan, weights, False, earlier + own, structures)

    def shape(self, plan: Plan) -> Plan:
        """The plan with the network of this model. Raises RunFailed where the model cannot serve such scans."""
        mine, needed = self.plan.channels, plan.channels
        if self.plan.segmenter != plan.segmenter:
            message = f"The starting model {self.path} is a '{self.plan.segmenter}', not a '{plan.segmenter}'."
            remedy = f"Train '{self.plan.segmenter}' (--segmenter; in Slicer under Advanced), or leave out --init."
            raise RunFailed("init_unfit", message, remedy)
        if self.plan.dims != plan.dims or (self.general and mine != needed and 1 not in (mine, needed)):
            theirs, ours = (f"a {one.dims}D network for {one.channels} channel(s)" for one in (self.plan, plan))
            raise RunFailed(
                "init_unfit",
                f"The starting model {self.path} is {theirs}; these scans need {ours}.",
                "Start from a model of the same kind of scans (2D or 3D, same channels), or leave out --init.",
            )
        return plan.with_network_of(self.plan, "the starting model's")

    def give(self, state: RunState, log: EventLog) -> None:
        """Copy every weight that has the same name and shape into the run's segmenter; say what was left.

        Of the last layers a structure gets what belonged to the one of its name. A general model leaves them, and of
        that nothing is said.
        """
        wanted: dict[str, int] = {}
        for part in state.parts:
            wanted |= channels_of(part.joint.plan, part.prepared.study.labels)
        anew = self.copy_to(state.joint.segmenter, state.joint.plan.channels, wanted)
        state.average.network.load_state_dict(state.joint.segmenter.state_dict(), strict=False)
        if anew and not self.general:
            share = 1 - sum(p.numel() for p in anew) / sum(p.numel() for p in state.joint.segmenter.parameters())
            message = f"{share:.0%} of the weights come from {self.path}; {len(anew)} tensors start anew."
            names = [label.name for part in state.parts for label in part.prepared.study.labels.structures]
            if unknown := [name for name in names if same_name(name) not in self.structures]:
                message += f" It does not know {', '.join(unknown)}."
            log.warn("init_partly", message)

    @torch.no_grad()
    def copy_to(self, network: nn.Module, channels: int, wanted: Mapping[str, int] | None = None) -> list[Tensor]:
        """`wanted`: the network's `channels_of`. → its weights for which this model has none, or not all channels."""
        source = dict(self.weights)
        if self.general:
            source[INPUT] = _for_channels(source[INPUT], channels)
        anew: list[Tensor] = []
        for name, p in network.named_parameters():
            given = source.get(_plain(name))
            if given is None or not self._copied(_plain(name), given, p, wanted or {}):
                anew.append(p)
        return anew

    def _copied(self, name: str, given: Tensor, p: Tensor, wanted: Mapping[str, int]) -> bool:
        """Copy a weight, of a last layer the channels of structures that both know. → whether that was all of it."""
        if not name.startswith(LAST):
            if fits := given.shape == p.shape:
                p.copy_(given)
            return fits
        if given.shape[1:] != p.shape[1:]:
            return False
        without = 1 if name.startswith(HEAD) else 0
        known = {to: self.structures[key] for key, to in wanted.items() if key in self.structures and to >= without}
        for to, of in known.items():
            p[to - without] = given[of - without]
        return len(known) == len(p)


class Start:
    """A starting model that is looked at only when the first plan is made: faults of the studies come first."""

    def __init__(self, path: Path | None):
        self.path = path

    @cached_property
    def model(self) -> StartingModel | None:
        return None if self.path is None else StartingModel.load(self.path)

    def shape(self, plan: Plan) -> Plan:
        """The plan with the model's network, where there is one."""
        return plan if self.model is None else self.model.shape(plan)


def channels_of(plan: Plan, table: LabelTable) -> dict[str, int]:
    """Plain name of a structure → its channel where the background has the first one."""
    names = [same_name(label.name) for label in table.structures]
    if plan.prompts is None:
        return {BACKGROUND: 0} | {name: channel for channel, name in enumerate(names, start=1)}
    return {BACKGROUND: 0, ANY: plan.prompts.count} | {
        name: 1 + task for name, task in zip(names, plan.prompts.tasks, strict=True)
    }


def _plain(name: str) -> str:
    """The name of a weight without what a prompted network puts before its backbone's."""
    return name.removeprefix("backbone.network.").removeprefix("backbone.")


def described(study: Study) -> dict[str, Any]:
    """What a model's card says of a study it was trained on."""
    return {
        "name": study.name,
        "reference": study.reference,
        "licence": study.licence or "not given",
        "labelled_scans": len(study.training),
        "structures": [label.name for label in study.labels.structures],
    }


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """The input layer for scans of one channel instead of several alike, or the reverse; the outcome is the same."""
    if weight.shape[1] == channels:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, channels, *[1] * (weight.ndim - 2)) / channels
