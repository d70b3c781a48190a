"""Level 3: what the validation loss shapes.

A = (kernel mixture and noise of the generator, spread of styles, augmentation strengths,
     weight γ of the synthetic loss, share ρ of steps that see synthetic pairs, weight κ of the consistency)
min_A  L(S*(A); D_val)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genseg.augment import OPERATIONS
from genseg.networks.generators import Generator
from genseg.networks.generators.generator import NOISE_START

STRENGTH_RANGE = (0.1, 2.5)
SHAPE_RANGE = (0.1, 1.2)  # of the way to another patient's shape; much beyond it nobody looks so
WEIGHT_RANGE = (0.0, 2.0)
SHARE_RANGE = (0.1, 0.9)


class MetaParameters(nn.Module):
    """The parameters A. Bounded quantities are stored as logits and read through the properties."""

    def __init__(
        self, generator: Generator, rng: torch.Generator, fixed_weight: float | None = None,
        operations: Sequence[str] = OPERATIONS, consistent: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.operations = tuple(operations)
        self.fixed_weight = fixed_weight
        self.mixed, self.kernel_sizes = generator.mixed, generator.kernel_sizes
        shape = len(self.mixed), len(self.kernel_sizes)
        self.mixture = nn.Parameter(1e-3 * torch.randn(shape, generator=rng))
        self.noise_log = nn.Parameter(torch.full((generator.levels + 1,), NOISE_START))
        self.style_log = nn.Parameter(torch.full((1,), math.log(0.2)))  # spread about a real style, in SDs of styles
        ranges = [self._range(name) for name in self.operations]
        self.strength_logit = nn.Parameter(torch.tensor([_logit(1.0, bounds) for bounds in ranges]))
        self.weight_logit = nn.Parameter(torch.full((1,), _logit(0.7, WEIGHT_RANGE)))
        # κ, only where there is a teacher whose advice it weighs.
        self.consistency_logit = nn.Parameter(torch.full((1,), _logit(1.0, WEIGHT_RANGE))) if consistent else None
        self.share_logit = nn.Parameter(torch.full((1,), _logit(0.6, SHARE_RANGE)))

    def strength(self) -> dict[str, Tensor]:
        """Strength of each augmentation of the synthetic pairs (mask warp and intensities)."""
        logits = zip(self.operations, self.strength_logit, strict=True)
        return {name: _bounded(logit, self._range(name)) for name, logit in logits}

    def plain_strength(self) -> dict[str, float]:
        """The same as numbers, brought to the processor at once."""
        strength = self.strength()
        return dict(zip(strength, torch.stack(list(strength.values())).tolist(), strict=True))

    @staticmethod
    def _range(operation: str) -> tuple[float, float]:
        return SHAPE_RANGE if operation == "shape" else STRENGTH_RANGE

    def weight(self) -> Tensor:
        """γ, a scalar; a constant where the user fixed it."""
        if self.fixed_weight is not None:
            return torch.tensor(self.fixed_weight, device=self.weight_logit.device)
        return _bounded(self.weight_logit, WEIGHT_RANGE)[0]

    def consistency(self) -> Tensor:
        """κ, a scalar: weight of what the teacher says of scans without labels."""
        if self.consistency_logit is None:
            return torch.ones((), device=self.weight_logit.device)
        return _bounded(self.consistency_logit, WEIGHT_RANGE)[0]

    def share(self) -> Tensor:
        """ρ, a scalar: share of the segmenter's steps that give half of their batch to synthetic pairs."""
        return _bounded(self.share_logit, SHARE_RANGE)[0]

    def readings(self) -> dict[str, float]:
        """Every quantity by its event name, for the curves."""
        values = {f"meta/strength/{name}": float(v.detach()) for name, v in self.strength().items()}
        values["meta/synthetic_weight"] = float(self.weight().detach())
        if self.consistency_logit is not None:
            values["meta/consistency"] = float(self.consistency().detach())
        values["meta/synthetic_share"] = float(self.share().detach())
        values["meta/style_spread"] = float(self.style_log.detach().exp())
        values["meta/noise"] = float(self.noise_log.detach().exp().mean())
        return values | {f"meta/kernel/{size}/{layer}": share for layer, size, share in self.architecture()}

    def architecture(self) -> list[tuple[str, int, float]]:
        """(layer, kernel size, share of the mixture) of every layer whose kernel is searched."""
        shares = self.mixture.detach().softmax(1).tolist()
        return [
            (layer, size, share)
            for layer, row in zip(self.mixed, shares, strict=True)
            for size, share in zip(self.kernel_sizes, row, strict=True)
        ]


def _bounded(logit: Tensor, bounds: tuple[float, float]) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.sigmoid(logit)


def _logit(value: float, bounds: tuple[float, float]) -> float:
    share = (value - bounds[0]) / (bounds[1] - bounds[0])
    return math.log(share / (1 - share))
