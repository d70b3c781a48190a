"""The generators, each in a file of its own, built from a plan."""

from genseg.networks.generators import pix2pix, spade, vae
from genseg.networks.generators.generator import Generator, style_of
from genseg.plan import Plan

MADE = {"spade": spade.make, "pix2pix": pix2pix.make, "vae": vae.make}

__all__ = ["MADE", "Generator", "build_generator", "style_of"]


def build_generator(plan: Plan, layouts: int, name: str = "spade") -> Generator:
    """`layouts`: channels of a layout."""
    return MADE[name](plan, layouts)
