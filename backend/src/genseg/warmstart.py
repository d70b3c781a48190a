"""Start from what an earlier run taught."""

from pathlib import Path

import torch

from genseg.errors import RunFailed
from genseg.events import EventLog
from genseg.inference import Predictor
from genseg.state import RunState


def start_from(model: Path, state: RunState, log: EventLog) -> None:
    """Copy every weight of `model` (run folder or bundle) that has the same name and shape; say what was left.

    Raises RunFailed where less than half of the network's weights fit.
    """
    source = {_plain(name): p for name, p in Predictor.load(model, "cpu").network.state_dict().items()}
    target = {_plain(name): p for name, p in state.joint.segmenter.named_parameters()}
    fitting = [name for name, p in target.items() if name in source and source[name].shape == p.shape]
    share = sum(target[name].numel() for name in fitting) / sum(p.numel() for p in target.values())
    if share < 0.5:
        raise RunFailed(
            "init_unfit",
            f"Only {share:.0%} of the network's weights fit the model in {model}.",
            "Start from a model of the same kind of scans (2D or 3D, same channels), or leave out --init.",
        )
    with torch.no_grad():
        for name in fitting:
            target[name].copy_(source[name])
    state.average.network.load_state_dict(state.joint.segmenter.state_dict(), strict=False)
    if len(fitting) < len(target):
        left = len(target) - len(fitting)
        log.warn("init_partly", f"{share:.0%} of the weights come from {model}; {left} tensors start anew.")


def _plain(name: str) -> str:
    """A weight's name in an ordinary network: what lies before a prompted head has the same weights as one."""
    return name.removeprefix("backbone.")
