"""The rooms of GenSegSlicerLib stay free of Qt and of the running application: scene and logics are passed in."""

import ast
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "GenSegSlicer" / "GenSegSlicerLib"
FILES = sorted(LIBRARY.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_qt_no_global_scene_no_torch_and_no_long_file(path):
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        imported = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in imported} & {"qt", "ctk", "torch", "monai", "scipy"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "slicer":
            assert node.attr not in ("app", "mrmlScene", "modules"), f"line {node.lineno}"
    assert len(text.splitlines()) < 400
