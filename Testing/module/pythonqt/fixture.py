"""The pytest fixture. In a test file: `from pythonqt.fixture import slicerRig  # noqa: F401`."""

import importlib.util
import os

import pytest


@pytest.fixture
def slicerRig(monkeypatch):
    """A Slicer session without windows (see Rig.py). The test fails when it leaves a problem behind."""
    for name in ("slicer", "PySide6"):
        if importlib.util.find_spec(name) is None:
            refuse = pytest.fail if os.environ.get("CI") else pytest.skip
            refuse(f'{name} is needed: pip install "trame-slicer[standalone]" PySide6')
    from .Rig import Rig

    rig = Rig(monkeypatch)
    yield rig
    problems = rig.close()
    if problems:
        pytest.fail("the test left problems behind:\n" + "\n".join(problems), pytrace=False)
