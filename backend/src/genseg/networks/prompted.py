"""A segmenter that is told what to look for: one network, a prompt for each structure (VerSemi's dynamic head).

This file needs torch and MONAI alone: exported bundles carry a copy of it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import Tensor, nn

WIDTH = 8  # channels of a dynamic head's layers
RARE = -2.0  # logit of a structure at first: most of a scan is background, which takes steps to learn otherwise


class DynUNetFeatures(DynUNet):
    """MONAI's DynUNet without its last layer.

    [n, C, *patch] → finest features [n, f, *patch], bottleneck [n, b, *coarsest], and in training with deep
    supervision the coarser heads' logits [n, classes, *their size], finest first.
    """

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        del self.output_block, self.skip_layers  # the latter names the same blocks again

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        skips = [self.input_block(x)]
        for down in self.downsamples:
            skips.append(down(skips[-1]))
        deepest = self.bottleneck(skips[-1])
        ups = [deepest]
        for up, skip in zip(self.upsamples, reversed(skips), strict=True):
            ups.append(up(ups[-1], skip))
        coarser: list[Tensor] = []
        if self.training and self.deep_supervision:
            coarser = [head(x) for head, x in zip(self.deep_supervision_heads, ups[-2::-1], strict=False)]
        return ups[-1], deepest, coarser

    def grown(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """What was told from the features, on the grid of the image: here the same."""
        return logits


class DynamicHead(nn.Module):
    """For each sample and prompt an ordinary last layer plus three 1-wide convolutions, their weights told by both.

    features [n, f, *patch], bottleneck [n, b, *coarsest] → logits [n, len(prompts), *patch].
    A linear controller on (pooled bottleneck ‖ one-hot prompt) is the sum of what it tells from either. At first it
    tells an ordinary last layer for each prompt: a head that has to grow from nothing costs hundreds of steps.
    """

    def __init__(self, dims: int, features: int, bottleneck: int, prompts: int):
        super().__init__()
        self.reduce = (nn.Conv2d if dims == 2 else nn.Conv3d)(features, WIDTH, 1)
        # Weights and bias of the ordinary layer, then of WIDTH → WIDTH → WIDTH → 1.
        self.sizes = (features, 1, WIDTH * WIDTH, WIDTH, WIDTH * WIDTH, WIDTH, WIDTH)
        spread = ((2 / features) ** 0.5, 0.0, (2 / WIDTH) ** 0.5, 0.0, (2 / WIDTH) ** 0.5, 0.0, 0.0)
        self.of_prompt = nn.Parameter(
            torch.cat([torch.randn(prompts, n) * std for n, std in zip(self.sizes, spread, strict=True)], 1)
        )
        self.of_prompt.data[:, features] = RARE
        self.of_image = nn.Linear(bottleneck, sum(self.sizes), bias=False)
        nn.init.zeros_(self.of_image.weight)

    def forward(self, features: Tensor, bottleneck: Tensor, prompts: Sequence[int]) -> Tensor:
        n, count = len(features), len(prompts)
        pooled = bottleneck.flatten(2).mean(2)
        # Centred, and so small that a step of Adam moves what all channels tell together as far as any other weight.
        pooled = (pooled - pooled.mean(1, keepdim=True)) / pooled.shape[1]
        told = self.of_image(pooled)[:, None] + self.of_prompt[list(prompts)]
        w0, b0, w1, b1, w2, b2, w3 = told.flatten(0, 1).split(self.sizes, 1)
        plain = w0.view(n, count, -1) @ features.flatten(2) + b0.view(n, count, 1)
        x = F.leaky_relu(self.reduce(features), 0.01).flatten(2)
        # Every prompt's first layer sees the same features: one product a sample.
        x = w1.reshape(n, count * WIDTH, WIDTH) @ x + b1.reshape(n, -1, 1)
        x = F.leaky_relu(x, 0.01).view(n * count, WIDTH, -1)
        x = F.leaky_relu(w2.reshape(-1, WIDTH, WIDTH) @ x + b2[..., None], 0.01)
        x = (w3[:, None] @ x).view(n, count, -1)
        return (plain + x).view(n, count, *features.shape[2:])


class StaticHead(nn.Module):
    """The same without prompts: one output channel each, as any network has (the ablation)."""

    def __init__(self, dims: int, features: int, prompts: int):
        super().__init__()
        self.out = (nn.Conv2d if dims == 2 else nn.Conv3d)(features, prompts, 1)
        nn.init.constant_(self.out.bias, RARE)  # type: ignore[arg-type]

    def forward(self, features: Tensor, bottleneck: Tensor, prompts: Sequence[int]) -> Tensor:
        logits: Tensor = self.out(features)
        return logits[:, list(prompts)]


class PromptedSegmenter(nn.Module):
    """Backbone and head behind the interface of any segmenter.

    [n, C, *patch] → logits [n, 1 + tasks, *patch], the background's always 0; with deep supervision in training
    [n, heads, 1 + tasks, *patch]. The last prompt means "any foreground".
    """

    def __init__(self, backbone: "DynUNetFeatures | Features", head: nn.Module, prompts: int, tasks: Sequence[int]):
        super().__init__()
        self.backbone, self.head, self.prompts, self.tasks = backbone, head, prompts, list(tasks)

    def forward(self, image: Tensor) -> Tensor:
        (logits,) = self.several(image, [(len(image), None)])
        return logits

    def several(self, image: Tensor, parts: Sequence[tuple[int, Sequence[int] | None]]) -> list[Tensor]:
        """One pass for the first n samples, the next n, and so on, each (n, prompts).

        → for each its logits [n, len(prompts), *patch], without background and coarser heads; what `forward` gives
        where its prompts are None. Several small passes take longer than one, on a processor half as long again.
        """
        features, bottleneck, coarser = self.backbone(image)
        found, start = [], 0
        for n, prompts in parts:
            part = slice(start, start + n)
            logits = self.head(features[part], bottleneck[part], self.tasks if prompts is None else prompts)
            logits = self.backbone.grown(logits, image.shape[2:])
            found.append(self._of_study(logits, [x[part] for x in coarser]) if prompts is None else logits)
            start += n
        return found

    def _of_study(self, logits: Tensor, coarser: list[Tensor]) -> Tensor:
        logits = _with_background(logits)
        if not coarser:
            return logits
        chosen = [0, *(1 + task for task in self.tasks)]
        return torch.stack([logits, *(F.interpolate(x[:, chosen], logits.shape[2:]) for x in coarser)], 1)

    def asked(self, tasks: Sequence[int]) -> "PromptedSegmenter":
        """The same network, weights and all, asked for other structures."""
        return PromptedSegmenter(self.backbone, self.head, self.prompts, tasks)

    @property
    def any_foreground(self) -> int:
        """The prompt of the synthetic task."""
        return self.prompts - 1


class Features(nn.Module):
    """Any network of `segmenters.build` as the backbone: its outputs are features and stand in for a bottleneck."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        features = self.network.coarse(x)
        return features, features, []

    def grown(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        """What was told from the features, on the grid of the image."""
        grown: Tensor = self.network.grown(logits, size)
        return grown


def _with_background(logits: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)


def prompted_dynunet(prompts: int, tasks: Sequence[int], dynamic: bool, **arguments: Any) -> PromptedSegmenter:
    """`arguments` are DynUNet's. `tasks`: the prompts that `forward` asks, in the order of the study's structures."""
    dims, filters = arguments["spatial_dims"], arguments["filters"]
    head = _head(dims, filters[0], filters[-1], prompts, dynamic)
    return PromptedSegmenter(DynUNetFeatures(**arguments), head, prompts, tasks)


def prompted_segmenter(prompts: int, tasks: Sequence[int], dynamic: bool, **arguments: Any) -> PromptedSegmenter:
    """`arguments` are those of `segmenters.build`, whose outputs are the features that the head sees."""
    from .segmenters import build

    dims, width = arguments["dims"], arguments["outputs"]
    return PromptedSegmenter(Features(build(**arguments)), _head(dims, width, width, prompts, dynamic), prompts, tasks)


def _head(dims: int, features: int, bottleneck: int, prompts: int, dynamic: bool) -> nn.Module:
    return DynamicHead(dims, features, bottleneck, prompts) if dynamic else StaticHead(dims, features, prompts)
