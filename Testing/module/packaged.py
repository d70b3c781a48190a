"""Configures the extension's real CMakeLists with stand-ins for Slicer's macros, and installs it into a folder.

`installExtension(source, work)` gives the folder that Slicer would have on its module path: what a user gets.
Other tests may run the module from there.
"""

import functools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUBS = Path(__file__).parent / "packaging"


@dataclass(frozen=True)
class Package:
    """What came out: the installed module folder, the build folder, the EXTENSION_* values, the ctest scripts."""

    modules: Path
    build: Path
    metadata: dict[str, str]
    tests: list[Path]


class PackagingFailed(Exception):
    """CMake refused; the message is what it wrote."""


def cmake() -> str:
    """The cmake program: on the path, or beside this Python, where pip puts it. Never skipped in CI."""
    found = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if found is None:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("cmake 3.16.3 or later is needed: apt-get install cmake, or pip install cmake")
    return found


_HAS_PACKAGES = "import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ('typer', 'monai'))))"


@functools.cache
def backendPython() -> str:
    """A Python with the backend's packages: this one in CI, GENSEG_PYTHON where there are two. Never skipped in CI."""
    python = os.environ.get("GENSEG_PYTHON") or sys.executable
    if subprocess.run([python, "-c", _HAS_PACKAGES], capture_output=True, check=False).returncode:
        refuse = pytest.fail if os.environ.get("CI") else pytest.skip
        refuse("this Python lacks the backend's packages: set GENSEG_PYTHON to one that has them")
    return python


def installExtension(source: Path, work: Path) -> Package:
    """Configure the extension in `source` and install it under `work` (new). Raises PackagingFailed."""
    build, prefix = work / "build", work / "installed"
    _run([cmake(), "-S", STUBS, "-B", build, f"-DEXTENSION_SOURCE={source.as_posix()}"])
    _run([cmake(), "--install", build, "--prefix", prefix])
    lines = (build / "metadata.txt").read_text(encoding="utf-8").splitlines()
    scripts = (build / "tests.txt").read_text(encoding="utf-8").splitlines() if (build / "tests.txt").exists() else []
    modules = next(prefix.glob("lib/Slicer-*/qt-scripted-modules"))
    return Package(modules, build, dict(line.split("=", 1) for line in lines), [Path(script) for script in scripts])


def _run(command: list) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    if done.returncode:
        raise PackagingFailed((done.stdout + done.stderr).decode("utf-8", "replace"))


def filesUnder(folder: Path) -> set[str]:
    """Relative paths, with /, of the files that belong to a package; no caches, no hidden files, no CMakeLists."""
    found = set()
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            found.add("/".join(parts))
    return found - {"CMakeLists.txt"}


def unlisted(source: Path, modules: Path) -> list[str]:
    """Files of module and backend that did not arrive in `modules`, by their path in the source tree."""
    missing = filesUnder(source / "GenSegSlicer") - filesUnder(modules)
    backend = filesUnder(source / "backend/src/genseg") - filesUnder(modules / "genseg")
    return sorted(f"GenSegSlicer/{name}" for name in missing) + sorted(f"backend/src/genseg/{name}" for name in backend)
