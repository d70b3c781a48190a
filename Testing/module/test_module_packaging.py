"""What a user gets by installing the extension: every file, nothing else, and it works from there alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaged import ROOT, Package, PackagingFailed, backendPython, filesUnder, installExtension, unlisted


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Package:
    return installExtension(ROOT, tmp_path_factory.mktemp("paket mit ü"))


@pytest.fixture
def copied(tmp_path) -> Path:
    """A copy of what is packaged, to be changed."""
    target = tmp_path / "source"
    target.mkdir()
    for name in ("CMakeLists.txt", "LICENSE", "README.md"):
        shutil.copyfile(ROOT / name, target / name)
    for name in ("GenSegSlicer", "backend/src", "Testing/slicer"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("backend/CMakeLists.txt", "Testing/CMakeLists.txt"):
        shutil.copyfile(ROOT / name, target / name)
    return target


def runInstalled(package: Package, folder: Path, *arguments: str, python: str = sys.executable):
    """Run Python in `folder` with nothing but the installed tree on its path, as Slicer would."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(package.modules), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"}
    return subprocess.run(
        [python, *arguments], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
    )


def test_every_file_of_module_and_backend_is_installed(package):
    missing = unlisted(ROOT, package.modules)
    assert not missing, "not named in GenSegSlicer/CMakeLists.txt or backend/CMakeLists.txt: " + ", ".join(missing)


def test_nothing_else_is_installed_and_every_byte_arrives(package):
    source = {name: ROOT / "GenSegSlicer" / name for name in filesUnder(ROOT / "GenSegSlicer")}
    backend = ROOT / "backend/src/genseg"
    source |= {f"genseg/{name}": backend / name for name in filesUnder(backend)}
    assert filesUnder(package.modules) <= set(source)
    changed = [
        name
        for name in filesUnder(package.modules)
        if (package.modules / name).read_bytes() != source[name].read_bytes()
    ]
    assert changed == []


def test_the_top_folder_adds_only_names_that_no_other_extension_uses(package):
    """All extensions share one search path for modules."""
    assert {entry.name for entry in package.modules.iterdir()} == {
        "GenSegSlicer.py",
        "GenSegSlicerLib",
        "Resources",
        "genseg",
    }


def test_a_file_that_is_not_listed_is_noticed(copied, tmp_path):
    (copied / "GenSegSlicer/GenSegSlicerLib/Forgotten.py").write_text("")
    (copied / "GenSegSlicer/Resources/Icons/light/forgotten.svg").write_text("")
    (copied / "backend/src/genseg/forgotten.py").write_text("")
    package = installExtension(copied, tmp_path / "work")
    assert unlisted(copied, package.modules) == [
        "GenSegSlicer/GenSegSlicerLib/Forgotten.py",
        "GenSegSlicer/Resources/Icons/light/forgotten.svg",
        "backend/src/genseg/forgotten.py",
    ]


@pytest.mark.parametrize("name", ["GenSegSlicer/GenSegSlicerLib/Faults.py", "backend/src/genseg/report/template.html"])
def test_a_listed_file_that_is_gone_stops_the_configuration(copied, tmp_path, name):
    (copied / name).unlink()
    with pytest.raises(PackagingFailed, match=Path(name).name):
        installExtension(copied, tmp_path / "work")


def test_the_library_is_imported_from_the_installed_tree_alone(package, tmp_path):
    """Every file of GenSegSlicerLib but those of Gui, which need Qt."""
    names = [path.stem for path in (package.modules / "GenSegSlicerLib").glob("*.py") if path.stem != "__init__"]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    print(importlib.import_module('GenSegSlicerLib.' + name).__file__)\n"
    )
    done = runInstalled(package, tmp_path, "-c", code, *names)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.splitlines()]
    assert len(files) == len(names) > 0
    assert all(path.is_relative_to(package.modules) for path in files)


def test_the_installed_module_finds_the_installed_backend(package, tmp_path):
    code = "import sys; from GenSegSlicerLib.Backend import Backend; print(Backend.locate(sys.argv[1]))"
    done = runInstalled(package, tmp_path, "-c", code, str(package.modules))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == package.modules
    assert (package.modules / "genseg/__main__.py").is_file()


def test_the_program_runs_from_the_installed_tree(package, tmp_path):
    python = backendPython()
    where = runInstalled(package, tmp_path, "-c", "import genseg; print(genseg.__file__)", python=python)
    assert Path(where.stdout.strip()).is_relative_to(package.modules), where.stderr
    done = runInstalled(package, tmp_path, "-m", "genseg", "--version", python=python)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("genseg ")


# Slicer's Python: the extension has no record of its installation there, nor Slicer's own SimpleITK, and no nibabel.
AS_IN_SLICER = """
import importlib.metadata, runpy, sys
told = importlib.metadata.version
def version(name):
    if name in ("genseg", "nibabel", "SimpleITK"):
        raise importlib.metadata.PackageNotFoundError(name)
    return told(name)
importlib.metadata.version = version
sys.modules["nibabel"] = None
runpy.run_module("genseg", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_a_run_gets_to_its_end_in_the_installed_tree_with_what_slicers_python_has(package, tmp_path, data):
    source = data / "hippocampus"
    whole = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    cases = [{key: str(source / case[key]) for key in ("image", "label")} for case in whole["training"][:3]]
    study = {"name": "small", "labels": whole["labels"], "training": cases[:2], "test": cases[2:], "unlabeled": []}
    (tmp_path / "dataset.json").write_text(json.dumps(study), encoding="utf-8")
    python, arguments = (
        backendPython(),
        ("train", str(tmp_path), "--out", "run", "--iterations", "2", "--device", "cpu"),
    )
    done = runInstalled(package, tmp_path, "-c", AS_IN_SLICER, *arguments, "--method", "supervised", python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run/done").exists() and (tmp_path / "run/report.html").exists()
    assert json.loads((tmp_path / "run/settings.json").read_text())["versions"]["SimpleITK"] == "not told"
    doctor = runInstalled(package, tmp_path, "-c", AS_IN_SLICER, "doctor", "--json", python=python)
    assert [f["level"] for f in json.loads(doctor.stdout)["findings"] if f["name"] == "Libraries"] == ["good"]


def test_every_self_test_is_registered_with_ctest(package):
    scripts = {path for path in (ROOT / "Testing/slicer").glob("*.py") if "TestCase" in path.stem}
    assert scripts
    assert set(package.tests) == scripts | {ROOT / "GenSegSlicer/GenSegSlicer.py"}
