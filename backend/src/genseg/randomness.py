"""Random numbers that depend on (seed, stream, step) alone.

No generator is carried from step to step, so a resumed run draws what the uninterrupted one would
have drawn, and switching one consumer off leaves every other's numbers untouched.
"""

import hashlib

import torch


def stream(seed: int, name: str, step: int = 0) -> torch.Generator:
    """A fresh CPU generator for one consumer (`name`) at one step."""
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
