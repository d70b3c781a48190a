"""Synthetic pairs: a layout from a labelled scan, bent to another patient's shape and warped, perhaps with a second
scan's structures implanted; a style from any scan; an image from the generator."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from genseg.augment import OPERATIONS, IntensityDraw, Strength, apply_intensity, blur
from genseg.methods.hypergradient import Parameters, call
from genseg.methods.level3 import MetaParameters
from genseg.methods.shapes import ShapePool
from genseg.networks.generators import Generator, style_of
from genseg.plan import Plan
from genseg.preprocess import WorkingCase
from genseg.randomness import stream
from genseg.sampling import BatchDraw, Sampler

CLUSTERS = 4  # grey levels into which the background of a layout is divided
VARIED = 0.5  # share of the real pairs that take from another scan, too
EDGE = 1.5  # voxels: how softly an implanted structure passes into the photograph around it
SCATTERED = 2.5  # times the overlap of structures placed at random: what lies together more has its place


def layout_of(image: Tensor, label: Tensor, classes: int) -> Tensor:
    """uint8 layout: the label's structures, and the background in four grey levels of the smoothed image.

    image [C, a, y, x], label [a, y, x] → [a, y, x]: 0 outside the scan (padding), 1..classes-1 the
    structures, then `CLUSTERS` background levels, each a quarter of the background's voxels.
    """
    grey = blur(image.mean(0)[None, None], torch.full((1,), 1.0))[0, 0]
    background = grey[label == 0]
    if len(background) == 0:
        return label.clone()
    sample = background[:: max(1, len(background) // 100_000)]
    edges = torch.quantile(sample, torch.linspace(0, 1, CLUSTERS + 1)[1:-1])
    levels = torch.bucketize(grey, edges).to(torch.uint8) + classes
    return torch.where(label == 0, levels, label)


def label_of(layout: Tensor, classes: int) -> Tensor:
    """int64 layout → int64 label: background levels become background."""
    return torch.where(layout < classes, layout, torch.zeros_like(layout))


def soft_label_of(layout: Tensor, classes: int) -> Tensor:
    """Layout shares [n, L, *patch] → label shares [n, classes, *patch]."""
    structures = layout[:, 1:classes]
    return torch.cat([1 - structures.sum(1, keepdim=True), structures], 1)


def implanted(pair: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """The structures of `other`, image and layout, put into `pair`, in its mean colours and with soft edges."""
    image, layout = pair
    axes = tuple(range(2, image.ndim))
    matched = other[0] + image.mean(axes, keepdim=True) - other[0].mean(axes, keepdim=True)
    structure = (other[1] > 0) & (other[1] < classes)
    share = blur(structure[:, None].to(image.dtype), torch.full((len(image),), EDGE, device=image.device))
    return torch.lerp(image, matched, share), torch.where(structure, other[1], layout)


def scattered(layouts: list[Tensor], classes: int) -> bool:
    """Whether structures lie anywhere in their photographs, as polyps do, and not in a place of their own.

    layouts [1, y, x] of any size. Two masks of shares a and b of their images overlap at random with a Dice of
    2 a b / (a + b) on average; pairs that overlap `SCATTERED` times as much have their place. A single one cannot tell.
    """
    masks = [((layout > 0) & (layout < classes)).float()[None] for layout in layouts]
    small = torch.cat([F.interpolate(mask, (64, 64), mode="area")[:, 0] for mask in masks]).flatten(1)
    i, j = torch.triu_indices(len(small), len(small), 1)
    share = small.mean(1)
    total = (share[i] + share[j]).clamp_min(1e-6)
    overlap = 2 * torch.minimum(small[i], small[j]).mean(1) / total
    return len(i) > 0 and bool(overlap.mean() < SCATTERED * (2 * share[i] * share[j] / total).mean())


class StylePool:
    """Styles of real scans, labelled or not: what a synthetic image may look like."""

    def __init__(self, cases: list[WorkingCase], plan: Plan, seed: int):
        sampler = Sampler(cases, plan)
        # On the CPU, where the random numbers are drawn; `synthesise` brings a batch to the device.
        self.styles = torch.stack([self._style(sampler, i, seed) for i in range(len(cases))]).cpu()
        spread = self.styles.std(0, unbiased=False) if len(cases) > 1 else torch.zeros_like(self.styles[0])
        self.spread = spread.clamp_min(0.1)
        self.ids = [case.id for case in cases]
        self.excluded: frozenset[tuple[str, str]] = frozenset()  # (scan of the mask, scan of the style): not wanted

    @staticmethod
    def _style(sampler: Sampler, index: int, seed: int) -> Tensor:
        """Style of one unchanged patch of the scan."""
        draw = sampler.draw(1, stream(seed, "style", index), among=[index])
        return style_of(sampler.load_image(draw))[0]

    def draw(self, cases: list[int], rng: torch.Generator) -> tuple[Tensor, Tensor, list[str], Tensor]:
        """For masks of labelled scans → styles [n, s] of n scans, n deviations [n, s] in SDs of styles, ids of the n
        scans, and [n] 1 or 0: whether the pair is wanted. Where it is not, the next scan's style is taken, if one is.
        """
        drawn = torch.randint(len(self.styles), (len(cases),), generator=rng).tolist()
        chosen = [self._wanted(case, style) for case, style in zip(cases, drawn, strict=True)]
        deviation = torch.randn(len(cases), self.styles.shape[1], generator=rng) * self.spread
        pairs = [(self.ids[case], self.ids[style]) for case, style in zip(cases, chosen, strict=True)]
        wanted = torch.tensor([float(pair not in self.excluded) for pair in pairs])
        return self.styles[chosen], deviation, [style for _, style in pairs], wanted

    def _wanted(self, case: int, style: int) -> int:
        others = [(style + shift) % len(self.ids) for shift in range(len(self.ids))]
        return next((k for k in others if (self.ids[case], self.ids[k]) not in self.excluded), style)


@dataclass
class Sources:
    """Where synthetic pairs take from what a labelled scan alone does not have."""

    styles: StylePool
    shapes: ShapePool
    implants: bool  # whether a second photograph's structures can be added, because they may lie anywhere

    @property
    def operations(self) -> list[str]:
        """What level 3 can learn the strength of: other scans' shapes only where there are any to learn them from."""
        return [name for name in OPERATIONS if name != "shape" or self.shapes.pairs]

    @classmethod
    def of(
        cls, labelled: list[WorkingCase], unlabelled: list[WorkingCase], patients: list[str], plan: Plan, seed: int
    ) -> "Sources":
        styles = StylePool(labelled + unlabelled, plan, seed)
        implants = not plan.physical and scattered([c.label for c in labelled if c.label is not None], plan.classes)
        return cls(styles, ShapePool(labelled, unlabelled, patients, plan), implants)

    def vary(
        self, batch: BatchDraw, sampler: Sampler, rng: torch.Generator, among: list[int] | None
    ) -> tuple[Tensor, Tensor]:
        """Real images and layouts of a draw, half of them in another patient's shape or with another's structures.

        → image [n, C, *patch], layout [n, *patch].
        """
        image, layout = sampler.load(self.bend(batch, sampler, rng, among, VARIED))
        if not self.implants:
            return image, layout
        count = max(1, int(len(batch) * VARIED))
        other = sampler.load(sampler.draw(count, rng, among))
        varied = implanted((image[-count:], layout[-count:]), other, sampler.plan.classes)
        return torch.cat([image[:-count], varied[0]]), torch.cat([layout[:-count], varied[1]])

    def bend(
        self, batch: BatchDraw, sampler: Sampler, rng: torch.Generator, among: list[int] | None, share: float = 1.0
    ) -> BatchDraw:
        """The same draw with a share of its samples in the shapes of other scans."""
        bend = self.shapes.draw(batch.cases, sampler.depths(batch), rng, among)
        chosen = (torch.rand(len(batch), generator=rng) < share).view(-1, *[1] * (bend.ndim - 1))
        return replace(batch, spatial=replace(batch.spatial, bend=bend * chosen))


@dataclass
class SyntheticDraw:
    """Everything random about a synthetic batch; with the weights it makes the batch again."""

    batch: BatchDraw
    implant: BatchDraw | None  # whose structures are put over the layout
    style: Tensor
    deviation: Tensor
    styled_as: list[str]  # id of the scan whose style it is
    wanted: Tensor  # [n] 1, or 0 where the user has excluded every style for this mask
    noise: list[Tensor]

    @classmethod
    def make(
        cls, n: int, sampler: Sampler, sources: Sources, generator: Generator, rng: torch.Generator,
        among: list[int] | None = None,
    ) -> "SyntheticDraw":  # fmt: skip
        batch = sampler.draw(n, rng, among)
        styles = sources.styles.draw(batch.cases, rng)
        batch = sources.bend(batch, sampler, rng, among)
        implant = sampler.draw(n, rng, among) if sources.implants else None
        # The noise comes last, so that every generator is given the same layouts and styles.
        return cls(batch, implant, *styles, generator.draw_noise(n, sampler.plan.patch, rng))

    def layout(self, sampler: Sampler, strength: Strength) -> Tensor:
        """→ layout [n, *patch] int64."""
        layout = sampler.load_label(self.batch, strength)
        if self.implant is None:
            return layout
        other = sampler.load_label(self.implant, strength)
        return torch.where((other > 0) & (other < sampler.plan.classes), other, layout)

    def soft_layout(self, sampler: Sampler, strength: Strength, layouts: int) -> Tensor:
        """→ the same as shares [n, layouts, *patch], differentiable in the spatial strengths."""
        shares = sampler.load_soft_label(self.batch, strength, layouts)
        if self.implant is None:
            return shares
        structures = torch.zeros(layouts, device=shares.device)
        structures[1 : sampler.plan.classes] = 1.0
        structures = structures.view(-1, *[1] * (shares.ndim - 2))
        other = sampler.load_soft_label(self.implant, strength, layouts) * structures
        return shares * (1 - other.sum(1, keepdim=True)) + other


def synthesise(
    draw: SyntheticDraw, layout: Tensor, generator: Generator, weights: Parameters | None, meta: MetaParameters,
    strength: Strength,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Layout shares [n, L, *patch] → image [n, C, *patch], intensities changed as drawn, and the shares that it shows.

    No detach on this path.
    """
    device = layout.device
    style = draw.style.to(device) + draw.deviation.to(device) * meta.style_log.exp()
    arguments = (layout, style, draw.noise, meta.mixture, meta.noise_log)
    image, shown = generator(*arguments) if weights is None else call(generator, weights, *arguments)
    intensity: IntensityDraw = draw.batch.intensity.to(device)
    return apply_intensity(image, intensity, strength), shown


def meta_plan(plan: Plan) -> tuple[Plan, int]:
    """The plan with the smaller patch of level 3, and its batch: about a quarter of a step's voxels in all.

    Two samples at least: for a single small one, torch's processor code leaves its fast convolutions.
    """
    batch = max(2, plan.batch // 8)
    shrink = min(1.0, (plan.batch / 4 / batch) ** (1 / plan.dims))
    coarsest = 2 ** (len(plan.filters) - 1)
    patch = [max(2 * coarsest, round(side * shrink / coarsest) * coarsest) for side in plan.patch]
    return plan.model_copy(update={"patch": patch}), batch
