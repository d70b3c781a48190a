"""Start from what earlier runs taught: a run's own model, a bundle, or a starting model of `genseg meta-train`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from pydantic import BaseModel, Field, RootModel
from torch import Tensor, nn

from genseg.cases import Study
from genseg.errors import Fault, InputFaults, RunFailed
from genseg.events import EventLog
from genseg.inference import Predictor
from genseg.labels import LabelTable
from genseg.methods.metalearn import OUTPUT
from genseg.networks import build_segmenter
from genseg.networks.segmenters.fitting import Fitted
from genseg.plan import DEFAULT_SEGMENTER, Plan
from genseg.runfolder import RunFolder, read_model
from genseg.segnrrd import same_name
from genseg.settings import Settings
from genseg.state import RunState, load_tensors

INPUT = "input_block.conv1.conv.weight"  # [f, C, *kernel]
# How the names of what has a channel for each structure begin; a head's have none for the background.
HEAD, LAST = "head.", ("head.of_prompt", "head.out.", "output_block.")
SUPERVISION = "deep_supervision_heads."  # names of weights that only training uses; no model keeps them
BUNDLED = Path("configs") / "trained_on.json"  # of a bundle: a list of `Studied`
BACKGROUND, ANY = " background", " any"  # no structure's plain name begins with a blank


class Studied(BaseModel):
    """A study that weights come from."""

    name: str
    reference: str = ""
    licence: str = "not given"
    labelled_scans: int = Field(ge=0)
    structures: list[str]
    scans: list[str] = []  # digests of the labelled scans' voxels, by which a test on one of them is found


class Studies(RootModel[list[Studied]]):
    """What origin.json, together.json and a bundle's trained_on.json hold."""


class Card(BaseModel):
    """What card.json says of a starting model."""

    method: str
    genseg: str
    trained_on: list[Studied] = Field(min_length=1)
    meta_steps: int = Field(default=0, ge=0)
    seconds: int = Field(default=0, ge=0)
    query_dice: dict[str, float | None] = {}  # None: one patient alone shows the structure
    began_from: "Card | None" = None  # the card of the starting model that learning went on from


@dataclass
class StartingModel:
    """Weights under the names of an ordinary network, and the plan that the network was made for.

    One of `genseg meta-train` has a card, and no structures of its own: the last layer is anew in any case.
    """

    path: Path
    plan: Plan
    weights: dict[str, Tensor]
    trained_on: list[Studied]
    structures: dict[str, int] = field(default_factory=dict)  # `channels_of`
    card: Card | None = None

    @property
    def general(self) -> bool:
        """Whether it is of `genseg meta-train`."""
        return self.card is not None

    @property
    def meta_steps(self) -> int:
        """All that led to it, with those of the starting models that it goes on from."""
        total, card = 0, self.card
        while card is not None:
            total, card = total + card.meta_steps, card.began_from
        return total

    @classmethod
    def load(cls, path: Path) -> "StartingModel":
        """Raises RunFailed where there is no usable model, or which of several is not said."""
        folder = RunFolder(path)
        folder.need_one_study()
        if folder.card.exists():
            return cls._load_general(folder)
        if folder.best.exists() and not folder.study.exists():
            remedy = "A starting model needs its card.json, a run its study.json: copy the whole folder."
            raise RunFailed("no_model", f"{path} holds weights, but does not say for what.", remedy)
        predictor = Predictor.load(path, "cpu")
        weights = {_plain(name): p for name, p in predictor.network.state_dict().items()}
        if not _finite(weights):
            remedy = "Restore it from a backup, or train it again."
            raise RunFailed("no_model", f"The weights of {path} are not all finite.", remedy)
        return cls(path, predictor.plan, weights, trained_on(folder), channels_of(predictor.plan, predictor.table))

    @classmethod
    def _load_general(cls, folder: RunFolder) -> "StartingModel":
        """One of `genseg meta-train`, whose weights must be all of its network's but the last layer's."""
        remedy = "Restore it from a backup, or learn the model again."
        if missing := [file.name for file in (folder.plan, folder.best) if not file.is_file()]:
            raise RunFailed("no_model", f"The starting model {folder.path} lacks {' and '.join(missing)}.", remedy)
        card, plan, weights = read_model(Card, folder.card), Plan.load(folder.plan), load_tensors(folder.best)[0]
        if plan.segmenter != DEFAULT_SEGMENTER:  # before it is built: a network of somebody's own would be imported
            message = (
                f"{folder.plan} names the network '{plan.segmenter}', but starting models are a '{DEFAULT_SEGMENTER}'."
            )
            raise RunFailed("no_model", message, remedy)
        try:
            with torch.device("meta"):  # names and shapes only
                network = build_segmenter(plan)
        except (ValueError, TypeError, IndexError, AssertionError, RuntimeError) as error:
            raise RunFailed("no_model", f"No network can be made from {folder.plan}: {error}.", remedy) from error
        needed = {name: p.shape for name, p in network.named_parameters() if not name.startswith(OUTPUT)}
        if needed != {name: p.shape for name, p in weights.items()}:
            raise RunFailed("no_model", f"{folder.best} holds weights of another network than plan.json says.", remedy)
        if not card.meta_steps or not _finite(weights):
            raise RunFailed("no_model", f"The starting model {folder.path} has not learned anything usable.", remedy)
        return cls(folder.path, plan, weights, card.trained_on, card=card)

    @property
    def solid(self) -> bool:
        """Whether it is of volumes."""
        return self.plan.dims == 3

    @property
    def segmenter(self) -> str:
        """Its network's name."""
        return self.plan.segmenter

    def shape(self, plan: Plan) -> Plan:
        """The plan with the network of this model. Raises RunFailed where the model cannot serve such scans."""
        mine, needed = self.plan.channels, plan.channels
        if self.plan.segmenter != plan.segmenter:
            message = f"The starting model {self.path} is a '{self.plan.segmenter}', not a '{plan.segmenter}'."
            remedy = (
                "In genseg train leave the network automatic (--segmenter auto; in Slicer under Advanced). meta-train "
                f"goes on from a '{DEFAULT_SEGMENTER}' only (genseg train --segmenter {DEFAULT_SEGMENTER} makes one). "
                "Or leave out --init."
            )
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
        network = state.joint.segmenter
        anew = self.copy_to(network, state.joint.plan, wanted)
        state.average.network.load_state_dict(network.state_dict(), strict=False)
        names = [label.name for part in state.parts for label in part.prepared.study.labels.structures]
        unknown = [] if self.general else [name for name in names if same_name(name) not in self.structures]
        self.tell(network, [] if self.general else anew, unknown, log)
        for part in state.parts:
            self.warn_of_tested(part.prepared.study, part.prepared.log)

    def warn_of_tested(self, study: Study, log: EventLog) -> None:
        """Say which of the study's test scans this model has been trained on."""
        seen = {digest for one in self.trained_on for digest in one.scans}
        if tested := [case.id for case in study.test if case.digest in seen]:
            log.warn(
                "init_saw_test",
                f"The starting model {self.path} was trained on {len(tested)} of the {len(study.test)} test scans "
                f"({', '.join(tested)}), so what these score says nothing of new patients.",
                "Take them out of `test`, or choose another starting model.",
            )

    def tell(self, network: nn.Module, anew: list[str], unknown: list[str], log: EventLog) -> None:
        """Warn of weights that begin anew, and of structures that the model does not know."""
        sizes = {name: p.numel() for name, p in network.named_parameters()}
        share = 1 - sum(sizes[name] for name in anew) / sum(sizes.values())
        message = f"{share:.0%} of the weights come from {self.path}; {len(anew)} tensors start anew."
        if unknown:
            message += f" It does not know {', '.join(unknown)}."
        if anew or unknown:
            log.warn("init_partly", message)

    @torch.no_grad()
    def copy_to(self, network: nn.Module, plan: Plan, wanted: Mapping[str, int] | None = None) -> list[str]:
        """`plan`: the network's, `wanted`: its `channels_of`. → names of its weights that are not all from here."""
        source = dict(self.weights)
        if INPUT in source:
            source[INPUT] = _for_channels(source[INPUT], plan.channels)
        fitted = next((part for part in network.modules() if isinstance(part, Fitted)), None)
        logits = () if fitted is None else tuple(last_layer(fitted, plan))
        last = logits if isinstance(network, Fitted) else LAST
        if (self.plan.prompts is None) != (plan.prompts is None):
            wanted = None  # what is the last layer here makes features there, and the reverse
            source = {name: p for name, p in source.items() if name not in logits}
        anew: list[str] = []
        for name, p in network.named_parameters():
            given = source.get(_plain(name))
            if given is None and _plain(name).startswith(SUPERVISION):
                continue
            if given is None or not self._copied(_plain(name), given, p, last, wanted or {}):
                anew.append(name)
        return anew

    def _copied(self, name: str, given: Tensor, p: Tensor, last: tuple[str, ...], wanted: Mapping[str, int]) -> bool:
        """Copy a weight, of a last layer the channels of structures that both know. → whether that was all of it."""
        if not name.startswith(last):
            if fits := given.shape == p.shape:
                p.copy_(given)
            return fits
        without = 1 if name.startswith(HEAD) else 0
        if given.shape[1:] != p.shape[1:] or len(p) != len(wanted) - without:
            return False
        known = {to: self.structures[key] for key, to in wanted.items() if key in self.structures and to >= without}
        for to, of in known.items():
            p[to - without] = given[of - without]
        return len(known) == len(p)


class Start:
    """A starting model that is looked at only when the first plan is made: faults of the studies come first."""

    def __init__(self, path: Path | None):
        """Raises InputFaults where there is no such folder, before a study is read."""
        if path is not None and not path.is_dir():
            remedy = "Give the folder of a run, of an exported bundle or of a starting model."
            raise InputFaults([Fault("no_model", "--init", f"There is no folder {path}.", remedy)])
        self.path = path

    @cached_property
    def model(self) -> StartingModel | None:
        """Raises InputFaults where it is none."""
        with _of_input():
            return None if self.path is None else StartingModel.load(self.path)

    @property
    def solid(self) -> bool:
        """Whether there is a model of volumes."""
        return self.model is not None and self.model.solid

    @property
    def segmenter(self) -> str:
        """The model's network, or "auto" where there is no model."""
        return "auto" if self.model is None else self.model.segmenter

    def shape(self, plan: Plan) -> Plan:
        """The plan with the model's network, where there is one. Raises InputFaults where it does not fit."""
        with _of_input():
            return plan if self.model is None else self.model.shape(plan)


@contextmanager
def _of_input() -> Iterator[None]:
    """What is wrong with the model that somebody chose is a fault of the input."""
    try:
        yield
    except RunFailed as error:
        raise InputFaults([Fault(error.code, "--init", error.message, error.remedy)]) from error


def channels_of(plan: Plan, table: LabelTable) -> dict[str, int]:
    """Plain name of a structure → its channel where the background has the first one."""
    names = [same_name(label.name) for label in table.structures]
    if plan.prompts is None:
        return {BACKGROUND: 0} | {name: channel for channel, name in enumerate(names, start=1)}
    return {BACKGROUND: 0, ANY: plan.prompts.count} | {
        name: 1 + task for name, task in zip(names, plan.prompts.tasks, strict=True)
    }


def _finite(weights: Mapping[str, Tensor]) -> bool:
    return all(bool(p.isfinite().all()) for p in weights.values())


def _plain(name: str) -> str:
    """The name of a weight without what a prompted network puts before its backbone's."""
    return name.removeprefix("backbone.network.").removeprefix("backbone.")


def described(study: Study) -> Studied:
    """What a model's card says of a study it was trained on."""
    return Studied(
        name=study.name,
        reference=study.reference,
        licence=study.licence or "not given",
        labelled_scans=len(study.training),
        structures=[label.name for label in study.labels.structures],
        scans=[case.digest for case in study.training if case.digest],
    )


def origin_of(folder: RunFolder) -> list[Studied]:
    """The studies that the model was trained on from which a run began."""
    return _listed(folder.origin) if folder.origin.exists() else []


def trained_on(folder: RunFolder) -> list[Studied]:
    """The studies that a run's or a bundle's weights come from: of what it began from, then all trained together.

    Raises DamagedFile where a list does not say it.
    """
    if not folder.study.exists():
        bundled = folder.path / BUNDLED
        return _listed(bundled) if bundled.exists() else [_unknown(folder.path.name)]
    own = [described(Study.load(folder.study))]
    if folder.together.exists():
        own = _listed(folder.together)
    elif folder.settings.exists() and Settings.load(folder.settings).more:
        own.append(_unknown("other studies of the same training"))
    return with_studies(origin_of(folder), own)


def with_studies(earlier: list[Studied], own: Sequence[Studied]) -> list[Studied]:
    """The same list and behind it those that it lacks; of one that it has, scans that are new are added."""
    listed = {_study(one): one for one in earlier}
    for one in own:
        known = listed.get(_study(one), one)
        scans = list(dict.fromkeys([*known.scans, *one.scans]))
        count = max(known.labelled_scans, one.labelled_scans, len(scans))
        listed[_study(one)] = known.model_copy(update={"scans": scans, "labelled_scans": count})
    return list(listed.values())


def _study(one: Studied) -> tuple[str, ...]:
    """What makes two entries of one study, whichever of its scans they name."""
    return one.name, one.reference, one.licence, *one.structures


def _listed(path: Path) -> list[Studied]:
    return read_model(Studies, path).root or [_unknown("not told")]


def _unknown(name: str) -> Studied:
    return Studied(name=name, licence="unknown", labelled_scans=0, structures=[])


@torch.no_grad()
def last_layer(network: Fitted, plan: Plan) -> list[str]:
    """Names of the weights that make the logits: those of the layer that runs last, and the bias behind it."""
    ran: list[nn.Module] = []
    layers = [part for part in network.modules() if any(True for _ in part.parameters(recurse=False))]
    hooks = [part.register_forward_hook(lambda part, *_: ran.append(part)) for part in layers if part is not network]
    was = network.training
    network.eval()(torch.zeros(1, plan.channels, *plan.patch, device=network.bias.device))
    network.train(was)
    for hook in hooks:
        hook.remove()
    made = {id(p) for p in ran[-1].parameters(recurse=False)} if ran else set()
    return ["bias", *(name for name, p in network.named_parameters() if id(p) in made)]


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """The input layer for scans of one channel instead of several alike, or the reverse; the outcome is the same."""
    if weight.shape[1] == channels or 1 not in (weight.shape[1], channels):
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight.repeat(1, channels, *[1] * (weight.ndim - 2)) / channels
