"""The settings of a run: few dials; written to settings.json as this very object."""

import re
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from genseg.runfolder import read_model, write_json

Method = Literal["genseg+versemi", "versemi", "genseg", "separate", "supervised"]
MetaMethod = Literal["imaml", "first-order", "reptile", "pretrain"]
GeneratorName = Literal["spade", "pix2pix", "vae", "diffusion", "joint", "synthseg"]
GENERATING: tuple[Method, ...] = ("genseg+versemi", "genseg", "separate")  # the methods with a generator
DEFAULT_GENERATOR: GeneratorName = "spade"
FEW = 5  # labelled scans up to which a generator was worth its time beside learning from scans without labels
Part = Literal["prompts", "auxiliary", "synthetic-task", "consistency", "teacher"]  # of versemi
PARTS: tuple[Part, ...] = get_args(Part)
GENERATORS: tuple[GeneratorName, ...] = get_args(GeneratorName)
SEGMENTERS = ("dynunet", "unet", "attention_unet", "segresnet", "swin_unetr", "deeplabv3")
BUDGETS = {"quick": 5 * 60.0, "standard": 30 * 60.0, "thorough": 2 * 3600.0}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_budget(text: str) -> float:
    """'quick', 'standard', 'thorough', '90s', '5m', '1.5h' or minutes as a number → seconds > 0."""
    text = text.strip().lower()
    if text in BUDGETS:
        return BUDGETS[text]
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text)
    if not match or float(match[1]) <= 0:
        raise ValueError(f"'{text}' is no budget: give quick, standard, thorough, or a time such as 90s, 5m, 2h")
    return float(match[1]) * _UNITS[match[2] or "m"]


class Settings(BaseModel):
    """Everything a user may choose. All the rest is derived from scans and device (see plan.json)."""

    model_config = ConfigDict(extra="forbid")

    dataset: Path = Field(description="dataset.json, its folder, an nnU-Net raw folder or a pair of folders")
    more: list[Path] = Field(default=[], description="further studies, trained together with it")
    out: Path = Field(description="run folder; must not exist yet, or be empty")
    method: Method | Literal["auto"] = "auto"
    labelled: int | None = Field(default=None, ge=1, description="labelled scans to draw with the seed; all by default")
    unlabelled: int | None = Field(default=None, ge=0, description="of the other scans, so many without their labels")
    seed: int = Field(default=0, ge=0)
    budget: float | None = Field(default=BUDGETS["quick"], gt=0, description="seconds of training")
    iterations: int | None = Field(default=None, ge=1, description="segmenter steps, instead of a budget")
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    init: Path | None = Field(
        default=None, description="run folder, bundle or starting model to start the segmenter from"
    )
    learn_unlabelled: bool = Field(
        default=True, description="learn from the scans without labels; else they are only segmented"
    )
    without: list[Part] = Field(default=[], description="parts of versemi to leave out, for an ablation")
    synthetic_weight: float | None = Field(
        default=None, ge=0, description="fix the weight of the synthetic loss instead of learning it; 0 switches it off"
    )
    generator: GeneratorName = DEFAULT_GENERATOR
    segmenter: str = Field(default="auto", description="auto, one of SEGMENTERS, or package.module:factory")
    versions: dict[str, str] = Field(default_factory=dict, description="of Python and the libraries, filled at start")

    def resolve(self, unlabelled: bool, curvilinear: bool = False, labelled: int = 1) -> None:
        """Choose the method where that was left open.

        `unlabelled`: whether the study has scans without labels. `curvilinear`: whether all that is looked for is as
        thin as vessels; there the plain method wins. `labelled`: how many scans have labels; where they are not so few,
        what a generator adds is not worth its time beside scans without labels. What is asked for and only another
        method has is made all the same.
        """
        if self.method != "auto":
            return
        needs_generator = self.generator != DEFAULT_GENERATOR or self.synthetic_weight is not None
        learns = unlabelled and self.learn_unlabelled
        if curvilinear and not needs_generator and not self.without:
            self.method = "supervised"
        elif learns and labelled > FEW and not needs_generator:
            self.method = "versemi"
        else:
            self.method = "genseg+versemi" if learns else "genseg"

    @property
    def datasets(self) -> list[Path]:
        """Every study of the training."""
        return [self.dataset, *self.more]

    @property
    def generates(self) -> bool:
        """Whether there is a generator."""
        return self.method in GENERATING

    @property
    def closes_the_loop(self) -> bool:
        """Whether the segmenter shapes the generator."""
        return self.method in ("genseg+versemi", "genseg")

    @property
    def mixes(self) -> bool:
        """Whether there are prompts, mixed images and a teacher of the scans without labels."""
        return self.method in ("genseg+versemi", "versemi")

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> "Settings":
        return read_model(cls, path)


class MetaSettings(BaseModel):
    """Of a run that learns a starting model from several studies."""

    model_config = ConfigDict(extra="forbid")

    dataset: Path = Field(description="the first study")
    more: list[Path] = Field(default=[], description="the others")
    out: Path = Field(description="folder of the model; must not exist yet, or be empty")
    method: MetaMethod = "pretrain"
    seed: int = Field(default=0, ge=0)
    budget: float | None = Field(default=BUDGETS["standard"], gt=0, description="seconds of training")
    iterations: int | None = Field(default=None, ge=1, description="meta-steps, instead of a budget")
    device: str = "auto"
    init: Path | None = Field(default=None, description="starting model, run or bundle to go on from")
    versions: dict[str, str] = Field(default_factory=dict)

    def as_training(self) -> Settings:
        """For what reads and prepares the studies of a training."""
        return Settings(
            dataset=self.dataset, more=self.more, out=self.out, method="supervised", segmenter="dynunet",
            seed=self.seed, device=self.device,
        )  # fmt: skip

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))
