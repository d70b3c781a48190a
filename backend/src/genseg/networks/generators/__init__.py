"""The generators, each in a file of its own, built from a plan."""

from importlib import import_module

from genseg.networks.generators.generator import Generator, style_of
from genseg.plan import Plan

__all__ = ["Generator", "build_generator", "style_of"]


def build_generator(plan: Plan, layouts: int, name: str = "spade") -> Generator:
    """`layouts`: channels of a layout. Loads the file of that name alone: what some need takes seconds to load."""
    made: Generator = import_module(f"{__name__}.{name}").make(plan, layouts)
    return made
