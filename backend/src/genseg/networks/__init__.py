"""The networks, built from a plan."""

from genseg.networks.discriminator import build_discriminator
from genseg.networks.generator import SpadeGenerator, build_generator
from genseg.networks.segmenter import build_segmenter

__all__ = ["SpadeGenerator", "build_discriminator", "build_generator", "build_segmenter"]
