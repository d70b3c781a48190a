"""The joint training step: the method on one screen.

Level 1  the generator learns to make real-looking images that the segmenter reads back,
Level 2  the segmenter learns from real and synthetic pairs,
Level 3  the validation loss of the segmenter shapes the generator and how its pairs are used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from genseg.augment import REFERENCE, UNCHANGED, apply_intensity, draw_intensity
from genseg.device import Device
from genseg.methods.hypergradient import Parameters, adam_rates, call, hypergradient
from genseg.methods.level3 import MetaParameters
from genseg.methods.losses import (
    deep_segmentation_loss,
    dice_agreement,
    discriminator_loss,
    generator_loss,
    hard,
    one_hot,
    segmentation_loss,
    structure_dice,
)
from genseg.methods.synthesis import Sources, SyntheticDraw, label_of, soft_label_of, synthesise
from genseg.methods.versemi import Mixing, Side, asked_of, fitted, labelled_side, mix_loss, mixed_image, taught_side
from genseg.networks.generators import Generator, style_of
from genseg.networks.prompted import PromptedSegmenter
from genseg.plan import Plan
from genseg.randomness import stream
from genseg.sampling import Sampler

L1_WEIGHT = 10.0  # λ of level 1
READ_BACK_WEIGHT = 0.5  # of the segmenter's loss on what the generator makes
GENERATOR_EVERY = 8  # level-2 steps for one level-1 step
META_EVERY = 16  # level-2 steps for one level-3 step
GRADIENT_CLIP = 12.0
META_CLIP = 1.0
GATE = 0.5  # a synthetic pair is left out where the segmenter agrees less than this part of its agreement on real ones


class Averaged(Protocol):
    """Keeps the running average of the segmenter's weights."""

    def update(self, network: nn.Module) -> None: ...


@dataclass
class Synthesis:
    """Everything that only the methods with a generator need."""

    generator: Generator
    discriminator: nn.Module
    meta: MetaParameters
    generator_optimiser: torch.optim.Optimizer
    discriminator_optimiser: torch.optim.Optimizer
    meta_optimiser: torch.optim.Optimizer
    sources: Sources
    meta_sampler: Sampler  # of smaller patches, so that a step of level 3 costs a few steps of level 2
    meta_batch: int
    layouts: int
    closed_loop: bool  # false for `separate`: no level 3, no influence of the segmenter


@dataclass
class Stage:
    """What holds at a step: which parts are at work, and which scans are held out for level 3."""

    balance: float = 0.0  # share of the cross-entropy in which every class counts alike, however small
    synthetic: bool = False
    level1: bool = False
    level3: bool = False
    consistency: float | None = None  # weight of what the teacher says of scans without labels; None: nothing is mixed
    train: list[int] | None = None  # None: all labelled scans
    validation: list[int] = field(default_factory=list)
    others: list[list[int] | None] = field(default_factory=list)  # `train` of each of the other studies


@dataclass
class Part:
    """Of level 2: images, what the segmenter is asked there, and the loss of what it answers."""

    image: Tensor  # [n, C, *patch]
    loss: Callable[[Tensor], tuple[Tensor, dict[str, float]]]  # logits → 0-dim, and what is to be told
    prompts: list[int] | None = None  # None: the study's structures, with the coarser heads of deep supervision


@dataclass
class Joint:
    """The state that a step changes."""

    plan: Plan
    device: Device
    seed: int
    sampler: Sampler  # its labels are layouts
    segmenter: nn.Module
    optimiser: torch.optim.Optimizer
    average: Averaged
    agreement: Tensor  # running Dice of the segmenter on augmented real pairs, 0-dim
    found: Tensor  # the same of each structure [classes - 1]; 1 until it has been seen
    synthesis: Synthesis | None = None
    mixing: Mixing | None = None
    others: list["Joint"] = field(default_factory=list, repr=False)  # of the other studies of this training

    def step(self, step: int, stage: Stage) -> dict[str, float]:
        """One step of level 2, and of levels 1 and 3 when due. → losses and what level 3 learned."""
        synthetic = self._with_synthetic(step, stage)
        mixed = self.mixing is not None and stage.consistency is not None
        # Synthetic pairs and mixed images take the place of real pairs.
        n = max(1, self.plan.batch - self._half) if synthetic or mixed else self.plan.batch
        image, layout = self._real_pairs(n, step, stage)
        parts = [self._real_part(image, layout, stage)]
        seen: dict[str, float] = {}
        if self.mixing is not None and mixed:
            parts.append(self._mixed_part(self.mixing, step, stage, synthetic))
        elif self.synthesis is not None and synthetic:
            parts.append(self._synthetic_part(self.synthesis, step, stage))
        self.optimiser.zero_grad(set_to_none=True)
        if self.synthesis is not None and stage.synthetic and stage.level3 and step % META_EVERY == 0:
            # It unrolls this very step, and what real pairs contribute to it is known beforehand.
            seen |= self._add_gradient(parts[:1]) | self._level3(self.synthesis, step, stage)
            parts = parts[1:]
        seen |= self._add_gradient(parts)
        nn.utils.clip_grad_norm_(self.segmenter.parameters(), GRADIENT_CLIP)
        self.optimiser.step()
        self.average.update(self.segmenter)
        if stage.level1 and self.synthesis is not None and step % GENERATOR_EVERY == 0:
            half = slice(0, self._half)
            seen |= self._level1(self.synthesis, image[half], layout[half], step, self.synthesis.closed_loop)
        return seen

    def _add_gradient(self, parts: Sequence[Part]) -> dict[str, float]:
        """Of all the parts' losses, in one pass through the segmenter. → what is to be told of them

        A batch of 1, to which a run comes down where memory is short, is one image at a time all the same.
        """
        if not parts:
            return {}
        if len(parts) > 1 and self.plan.batch < len(parts):
            return {name: value for part in parts for name, value in self._add_gradient([part]).items()}
        images, sizes = torch.cat([part.image for part in parts]), [len(part.image) for part in parts]
        with self.device.autocast():
            if isinstance(self.segmenter, PromptedSegmenter):
                answers = self.segmenter.several(images, [(len(part.image), part.prompts) for part in parts])
            else:
                answers = self.segmenter(images).split(sizes)
        losses, told = zip(*(part.loss(logits) for part, logits in zip(parts, answers, strict=True)), strict=True)
        torch.stack(losses).sum().backward()
        return {name: value for one in told for name, value in one.items()}

    def _real_part(self, image: Tensor, layout: Tensor, stage: Stage) -> Part:
        """L(S(x), m)."""
        label = label_of(layout, self.plan.classes)

        def loss(logits: Tensor) -> tuple[Tensor, dict[str, float]]:
            found = deep_segmentation_loss(logits, label, stage.balance).mean()
            self._follow_agreement(logits.detach(), label)
            return found, {"loss/real": float(found.detach()), "dice/training": float(self.agreement)}

        return Part(image, loss)

    def _real_pairs(self, n: int, step: int, stage: Stage, name: str = "real") -> tuple[Tensor, Tensor]:
        """n real images [n, C, *patch] and layouts [n, *patch]; with a generator they, too, take from other scans."""
        draw = self.sampler.draw(n, stream(self.seed, name, step), stage.train)
        if self.synthesis is None or self.synthesis.meta.fixed_weight == 0:
            return self.sampler.load(draw)
        return self.synthesis.sources.vary(draw, self.sampler, stream(self.seed, f"{name} shape", step), stage.train)

    @property
    def _half(self) -> int:
        return max(1, self.plan.batch // 2)

    def _with_synthetic(self, step: int, stage: Stage) -> bool:
        """Whether this step sees synthetic pairs: with probability ρ, never where their weight is fixed at 0."""
        if not stage.synthetic or self.synthesis is None or self.synthesis.meta.fixed_weight == 0:
            return False
        rng = stream(self.seed, "share", step)
        return float(torch.rand(1, generator=rng)) < float(self.synthesis.meta.share().detach())

    def pretrain(self, s: Synthesis, step: int) -> dict[str, float]:
        """One step of level 1 on its own, before the segmenter has learned anything."""
        image, layout = self.sampler.load(self.sampler.draw(self._half, stream(self.seed, "pretrain", step)))
        return self._level1(s, image, layout, step, closed_loop=False)

    def _synthetic_part(self, s: Synthesis, step: int, stage: Stage) -> Part:
        """γ L(S(G(m̂)), m̂) over the pairs that the segmenter can read."""
        image, label, wanted = self._synthetic_pairs(s, step, stage)
        weight = s.meta.weight().detach()

        def loss(logits: Tensor) -> tuple[Tensor, dict[str, float]]:
            kept = wanted * self._readable(_finest(logits.detach(), label), label)
            found = (deep_segmentation_loss(logits, label) * kept).mean()
            return weight * found, {"loss/synthetic": float(found.detach()), "synthetic/kept": float(kept.mean())}

        return Part(image, loss)

    def _synthetic_pairs(self, s: Synthesis, step: int, stage: Stage) -> tuple[Tensor, Tensor, Tensor]:
        """→ images [n, C, *patch], labels [n, *patch] int64, and [n] 1 or 0: whether the user wants the pair."""
        rng = stream(self.seed, "synthetic", step)
        draw = SyntheticDraw.make(self._half, self.sampler, s.sources, s.generator, rng, stage.train)
        strength = s.meta.plain_strength()
        layout = draw.layout(self.sampler, strength)
        with torch.no_grad(), self.device.autocast():
            image, shown = synthesise(draw, one_hot(layout, s.layouts), s.generator, None, s.meta, strength)
        return image, hard(soft_label_of(shown, self.plan.classes)), draw.wanted.to(image.device)

    def _readable(self, logits: Tensor, label: Tensor) -> Tensor:
        """[n] 1 where the segmenter agrees with a synthetic pair well enough for it to be learned from, else 0."""
        return (dice_agreement(logits, label) >= GATE * self.agreement).float()

    def _mixed_part(self, m: Mixing, step: int, stage: Stage, synthetic: bool) -> Part:
        """L_mix (methods/versemi.py) on images mixed of something labelled and something else."""
        rng = stream(self.seed, "mix", step)
        a, seen = self._labelled_side(m, step, stage, synthetic, rng)
        if m.unlabelled is not None:
            kappa = 1.0 if self.synthesis is None else float(self.synthesis.meta.consistency().detach())
            weight = 0.0 if stage.consistency is None else stage.consistency * kappa
            with self.device.autocast():
                b = taught_side(m.unlabelled, self._teacher(m), self._half, rng, weight, m.without)
            seen["mix/sure"] = float((b.of_any > 0).float().mean())
        else:
            image, layout = self._real_pairs(self._half, step, stage, "mix other")
            label = label_of(layout, self.plan.classes)
            b = labelled_side(image, label, self.plan, torch.ones_like(image[:, 0]), m.without)
        image, at_a = mixed_image(a, b, rng)
        assert isinstance(self.segmenter, PromptedSegmenter)
        asked = asked_of(a, b, self.segmenter)

        def loss(logits: Tensor) -> tuple[Tensor, dict[str, float]]:
            found = mix_loss(logits, asked, at_a, a, b, "synthetic-task" not in m.without).mean()
            return found, seen | {"loss/mixed": float(found.detach())}

        return Part(image, loss, asked)

    def _teacher(self, m: Mixing) -> nn.Module:
        return self.segmenter if "teacher" in m.without else m.teacher

    def _labelled_side(
        self, m: Mixing, step: int, stage: Stage, synthetic: bool, rng: torch.Generator
    ) -> tuple[Side, dict[str, float]]:
        """Synthetic pairs where it is their step; else real ones, half of the time of another study."""
        if synthetic and self.synthesis is not None:
            image, label, wanted = self._synthetic_pairs(self.synthesis, step, stage)
            with torch.no_grad(), self.device.autocast():
                kept = wanted * self._readable(_finest(self._teacher(m)(image), label), label)
            weight = (
                (kept * self.synthesis.meta.weight().detach()).view(-1, *[1] * (label.ndim - 1)).expand(label.shape)
            )
            side = labelled_side(image.float(), label, self.plan, weight, m.without)
            return side, {"synthetic/kept": float(kept.mean())}
        if self.others and float(torch.rand(1, generator=rng)) < 0.5:
            which = int(torch.randint(len(self.others), (1,), generator=rng))
            sampler, among = self.others[which].sampler, stage.others[which] if stage.others else None
            plan = sampler.plan
            image, layout = sampler.load(sampler.draw(self._half, rng, among))
        else:
            plan = self.plan
            image, layout = self._real_pairs(self._half, step, stage, "mix real")
        label, weight = label_of(layout, plan.classes), torch.ones_like(image[:, 0])
        image, label, weight = (fitted(x, self.plan.patch) for x in (image, label, weight))
        return labelled_side(image, label, plan, weight, m.without), {}

    def _level1(self, s: Synthesis, image: Tensor, layout: Tensor, step: int, closed_loop: bool) -> dict[str, float]:
        """One step of discriminator and generator on a real batch."""
        shares, noise = (
            one_hot(layout, s.layouts),
            s.generator.draw_noise(len(image), self.plan.patch, stream(self.seed, "noise", step)),
        )
        with self.device.autocast():
            learned = s.meta.mixture.detach(), s.meta.noise_log.detach()
            fake, penalty = s.generator(shares, style_of(image), noise, *learned, image)
            score = self._score(s, fake.detach(), shares, step, "fake")
            loss_d = discriminator_loss(self._score(s, image, shares, step, "real"), score)
        s.discriminator_optimiser.zero_grad(set_to_none=True)
        loss_d.backward()
        s.discriminator_optimiser.step()
        with self.device.autocast():
            loss_g = self._level1_loss(s, fake, image, shares, step) + penalty
            if closed_loop:
                loss_g = loss_g + READ_BACK_WEIGHT * self._read_back(fake, layout)
        s.generator_optimiser.zero_grad(set_to_none=True)
        loss_g.backward(inputs=list(s.generator.parameters()))
        s.generator_optimiser.step()
        return {"loss/discriminator": float(loss_d.detach()), "loss/generator": float(loss_g.detach())}

    def _level1_loss(self, s: Synthesis, fake: Tensor, image: Tensor, shares: Tensor, step: int) -> Tensor:
        adversarial = generator_loss(self._score(s, fake, shares, step, "again"))
        return adversarial + L1_WEIGHT * (fake - image).abs().mean()

    def _read_back(self, fake: Tensor, layout: Tensor) -> Tensor:
        """L(S(G(m)), m): the segmenter's gradient at the generator."""
        logits = self.segmenter(fake)
        label = label_of(layout, self.plan.classes)
        return deep_segmentation_loss(logits, label).mean()

    def _score(self, s: Synthesis, image: Tensor, shares: Tensor, step: int, name: str) -> Tensor:
        """The discriminator's map for an image that is augmented differentiably, so that few images last longer."""
        rng = stream(self.seed, f"discriminator/{name}", step)
        draw = draw_intensity(len(image), self.plan.channels, list(image.shape[2:]), rng).to(image.device)
        return s.discriminator(torch.cat([apply_intensity(image, draw, REFERENCE), shares], 1))[-1].float()

    def _level3(self, s: Synthesis, step: int, stage: Stage) -> dict[str, float]:
        """min_A L(S'(A); D_val) with S' one step of level 2 ahead, in float32, on the smaller meta-patch."""
        parameters: Parameters = {name: p for name, p in self.segmenter.named_parameters() if p.requires_grad}
        image, label = self._validation_batch(s, step, stage)
        taught = self._taught(step, stage, s.meta_batch)
        gradient, validation = hypergradient(
            parameters,
            dict(s.generator.named_parameters()),
            lambda weights, ahead: (
                self._expected_synthetic_loss(s, weights, ahead, step, stage)
                + self._expected_consistency(s, weights, taught)
            ),
            lambda ahead: self._virtual_level1_loss(s, ahead, step, stage),
            lambda weights: segmentation_loss(self._segment(weights, image), label).mean(),
            list(s.meta.parameters()),
            adam_rates(self.optimiser, parameters),
            s.generator_optimiser.param_groups[0]["lr"],
            # What this step's real batch contributes does not depend on A and is already computed.
            {name: p.grad for name, p in parameters.items() if p.grad is not None},
        )
        for p, g in zip(s.meta.parameters(), gradient, strict=True):
            p.grad = g
        norm = nn.utils.clip_grad_norm_(s.meta.parameters(), META_CLIP)
        s.meta_optimiser.step()
        with torch.no_grad():
            dice = dice_agreement(self._segment(parameters, image), label).mean()
        readings = {
            "loss/validation": float(validation),
            "dice/validation": float(dice),
            "meta/gradient_norm": float(norm),
        }
        return readings | s.meta.readings()

    def _expected_synthetic_loss(
        self, s: Synthesis, weights: Parameters, ahead: Parameters, step: int, stage: Stage
    ) -> Tensor:
        """ρ γ L(S(G'(m̂; A)), m̂(A)): the expected synthetic part of a step."""
        draw = SyntheticDraw.make(
            s.meta_batch, s.meta_sampler, s.sources, s.generator, stream(self.seed, "meta", step), stage.train
        )
        strength = s.meta.strength()
        layout = draw.soft_layout(s.meta_sampler, strength, s.layouts)
        image, shown = synthesise(draw, layout, s.generator, ahead, s.meta, strength)
        loss = segmentation_loss(self._segment(weights, image), soft_label_of(shown, self.plan.classes))
        loss = (loss * draw.wanted.to(loss.device)).mean()
        return s.meta.share() * s.meta.weight() * loss

    def _taught(self, step: int, stage: Stage, n: int) -> Side | None:
        """What the teacher says of n small patches of scans without labels; None where nobody asks it."""
        m = self.mixing
        if m is None or m.meta_unlabelled is None or not stage.consistency:
            return None
        rng = stream(self.seed, "meta mix", step)
        return taught_side(m.meta_unlabelled, self._teacher(m), n, rng, stage.consistency, m.without)

    def _expected_consistency(self, s: Synthesis, weights: Parameters, taught: Side | None) -> Tensor:
        """κ r L(S(x), T(x)): a step's consistency, without the mixing."""
        if taught is None:
            return torch.zeros((), device=self.device.torch)
        loss = segmentation_loss(self._segment(weights, taught.image), taught.target, taught.of_tasks)
        return s.meta.consistency() * loss.mean()

    def _virtual_level1_loss(self, s: Synthesis, weights: Parameters, step: int, stage: Stage) -> Tensor:
        """L_G(G; A) on a small real batch."""
        rng, rng_noise = (stream(self.seed, name, step) for name in ("virtual", "virtual noise"))
        image, layout = s.meta_sampler.load(s.meta_sampler.draw(s.meta_batch, rng, stage.train))
        noise = s.generator.draw_noise(s.meta_batch, s.meta_sampler.plan.patch, rng_noise)
        shares = one_hot(layout, s.layouts)
        fake, penalty = call(
            s.generator, weights, shares, style_of(image), noise, s.meta.mixture, s.meta.noise_log, image
        )
        return self._level1_loss(s, fake, image, shares, step) + penalty

    def _validation_batch(self, s: Synthesis, step: int, stage: Stage) -> tuple[Tensor, Tensor]:
        """Held-out scans as they are; with one labelled scan that scan, changed as the baseline changes it."""
        draw = s.meta_sampler.draw(2 * s.meta_batch, stream(self.seed, "validation", step), stage.validation)
        image, layout = s.meta_sampler.load(draw, UNCHANGED if stage.train is not None else REFERENCE)
        return image, label_of(layout, self.plan.classes)

    def _segment(self, weights: Parameters, image: Tensor) -> Tensor:
        """The segmenter with other weights; of deep supervision only the finest head."""
        logits = call(self.segmenter, weights, image)
        return logits[:, 0] if logits.ndim > image.ndim else logits

    def _follow_agreement(self, logits: Tensor, label: Tensor) -> None:
        finest = _finest(logits, label)
        self.agreement.lerp_(dice_agreement(finest, label).mean(), 0.05)
        dice = structure_dice(finest, label)
        self.found.lerp_(torch.where(dice.isnan(), self.found, dice), 0.05)


def _finest(logits: Tensor, label: Tensor) -> Tensor:
    """[n, heads, K, *patch] of deep supervision → its finest head [n, K, *patch]; plain logits as they are."""
    return logits[:, 0] if logits.ndim > label.ndim + 1 else logits
