"""GenSeg: train a generator and a segmenter jointly from a handful of labelled scans."""

__version__ = "0.1.0"
