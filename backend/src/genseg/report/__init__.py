"""The report: one self-contained page about a run, for people who were not there."""

from genseg.report.build import build_overview, build_report

__all__ = ["build_overview", "build_report"]
