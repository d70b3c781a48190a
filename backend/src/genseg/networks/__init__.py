"""The networks, built from a plan."""

from genseg.networks.discriminator import build_discriminator
from genseg.networks.generators import Generator, build_generator
from genseg.networks.segmenter import build_segmenter

__all__ = ["Generator", "build_discriminator", "build_generator", "build_segmenter"]
