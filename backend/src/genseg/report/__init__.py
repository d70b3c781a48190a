"""The report: one self-contained page about a run, for people who were not there."""

from genseg.report.build import build_report, build_reports

__all__ = ["build_report", "build_reports"]
