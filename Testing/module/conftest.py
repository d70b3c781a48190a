"""What the module's tests share: the module on the path, the real scans, and a fresh real MRML scene."""

import ctypes
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "GenSegSlicer"))
sys.path.append(str(ROOT / "Testing" / "backend"))

from real_data import data  # noqa: E402, F401

# The MRML wheel gives True, False and None away without counting them. From Python 3.12 on they cannot be used up;
# before, a long session would end with "deallocating True or False".
if sys.version_info < (3, 12):
    for value in (True, False, None):
        ctypes.c_ssize_t.from_address(id(value)).value += 1 << 40

# Without Slicer's own libraries nothing here can run: left out at home, an error in CI.
SLICER = importlib.util.find_spec("slicer") is not None
collect_ignore_glob = [] if SLICER or os.environ.get("CI") else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if SLICER else "The module's tests need Slicer's libraries: pip install \"trame-slicer[standalone]\""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take minutes begin first: at the end one processor would wait for them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture
def mrml():
    """A fresh application with an empty real MRML scene; see mrml.py."""
    from mrml import Mrml

    return Mrml()


@pytest.fixture(scope="session")
def backend() -> Callable[..., str]:
    """backend(code, *arguments): run code in a Python that has the backend → what it printed. Fails on an error."""
    from packaged import backendPython

    python = backendPython()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "backend" / "src"), "PYTHONUTF8": "1"}

    def run(code: str, *arguments: object) -> str:
        command = [python, "-c", code, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
