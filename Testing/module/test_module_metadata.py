"""What the extensions catalog reads and checks, and the icons: facts of Slicer's ExtensionsIndex in our own words."""

import json
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from packaged import ROOT, installExtension

CMAKE = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
CATALOG = ROOT / "docs/GenSegSlicer.json"
ICONS = ROOT / "GenSegSlicer/Resources/Icons"
BUTTONS = {"train", "stop", "label", "suggest", "exclude", "accept", "correct", "show", "folder", "add"}
SCHEMA = "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0."
CATALOG_KEYS = {
    "$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "dicom_support_rule",
    "build_subdirectory", "enabled", "tier",
}  # fmt: skip


@pytest.fixture(scope="module")
def metadata(tmp_path_factory) -> dict[str, str]:
    """The EXTENSION_* values as CMake sees them."""
    return installExtension(ROOT, tmp_path_factory.mktemp("metadata")).metadata


def plain(variable: str) -> str:
    """The value of a `set(NAME "...")`, read without CMake as the catalog's check does."""
    (value,) = re.findall(rf'set\s*\({variable}\s*"([^"]+)"\)', CMAKE)
    return value


def local(url: str) -> Path:
    """Where the file of a raw.githubusercontent.com address lies in this tree."""
    owner, repository, branch, *path = urlsplit(url).path.strip("/").split("/")
    assert (f"https://github.com/{owner}/{repository}", branch) == (plain("EXTENSION_HOMEPAGE"), "main")
    return ROOT.joinpath(*path)


def pngSize(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", f"{path} is no PNG"
    return struct.unpack(">II", header[16:24])


def test_the_name_is_the_same_for_project_catalog_and_module(metadata):
    assert re.findall(r"project\s*\(\s*([^\s)]+)", CMAKE)[0] == CATALOG.stem == metadata["PROJECT_NAME"]
    assert not CATALOG.stem.lower().startswith("slicer")


@pytest.mark.parametrize("key", ["HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"])
def test_each_value_reads_the_same_with_and_without_cmake(metadata, key):
    assert metadata[f"EXTENSION_{key}"] == plain(f"EXTENSION_{key}")
    assert ";" not in metadata[f"EXTENSION_{key}"], "CMake would take it for a list"


def test_the_description_says_what_it_does_where_the_data_stay_and_the_license():
    text = plain("EXTENSION_DESCRIPTION")
    for words in ("Nothing leaves your computer", "research only", "Apache 2.0"):
        assert words in text


def test_the_extensions_icon_is_a_png_of_128_pixels():
    assert pngSize(local(plain("EXTENSION_ICONURL"))) == (128, 128)


def test_the_screenshots_of_the_catalog_exist():
    urls = plain("EXTENSION_SCREENSHOTURLS").split()
    assert urls
    for url in urls:
        assert local(url).is_file(), f"{local(url)} is named in CMakeLists.txt"
        pngSize(local(url))


def test_the_catalog_entry_has_the_needed_keys_no_others_and_plain_line_ends():
    raw = CATALOG.read_bytes()
    assert b"\r" not in raw
    entry = json.loads(raw)
    assert {"$schema", "category", "scm_url"} <= set(entry) <= CATALOG_KEYS
    assert re.fullmatch(re.escape(SCHEMA) + r"\d\.json#?", entry["$schema"])
    assert entry["category"] == "Segmentation"
    assert entry["tier"] in range(1, 6)


def test_the_repository_is_one_place_and_its_name_begins_with_slicer():
    entry = json.loads(CATALOG.read_text(encoding="utf-8"))
    url = urlsplit(entry["scm_url"])
    assert url.scheme == "https"
    assert Path(url.path).stem.startswith("Slicer")
    assert entry["scm_url"].removesuffix(".git") == plain("EXTENSION_HOMEPAGE")


def test_the_dependencies_of_catalog_and_package_are_the_same():
    entry = json.loads(CATALOG.read_text(encoding="utf-8"))
    assert entry["build_dependencies"] == plain("EXTENSION_DEPENDS").split()


def test_a_license_lies_at_the_root():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_modules_requirements_are_the_backends_without_what_slicer_brings():
    """torch comes by the PyTorch extension; numpy and SimpleITK are Slicer's own."""
    text = (ROOT / "backend/pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    wanted = {name for name in re.findall(r'"([^"]+)"', block) if not re.match(r"(torch|numpy|SimpleITK)\b", name)}
    lines = (ROOT / "GenSegSlicer/Resources/requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert set(listed) == wanted
    assert not [line for line in listed if line.startswith("-")], "Slicer skips lines that begin with -"


def test_each_button_has_a_light_and_a_dark_icon():
    for theme in ("light", "dark"):
        assert {path.stem for path in (ICONS / theme).iterdir()} == BUTTONS


@pytest.mark.parametrize("name", sorted(BUTTONS))
def test_the_dark_icon_has_the_light_ones_shapes_in_other_colors(name):
    light, dark = ((ICONS / theme / f"{name}.svg").read_text(encoding="utf-8") for theme in ("light", "dark"))
    assert light != dark
    color = re.compile(r"#[0-9a-f]{6}")
    assert color.sub("", light) == color.sub("", dark)


@pytest.mark.parametrize("path", sorted(ICONS.rglob("*.svg")), ids=lambda path: path.relative_to(ICONS).as_posix())
def test_an_icon_uses_only_what_qt_draws(path):
    """Qt draws SVG Tiny: no style sheets, filters, masks, clip paths, scripts or links."""
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    width, height = (float(root.get(side)) for side in ("width", "height"))
    assert root.get("viewBox") == f"0 0 {width:g} {height:g}" and width == height
    tags = {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in root.iter()}
    assert tags <= {"svg", "path", "rect", "circle", "ellipse"}
    assert not any(name in element.attrib for element in root.iter() for name in ("style", "class", "href"))


@pytest.mark.parametrize("name", ["GenSegHippocampus", "GenSegPhantom"])
def test_a_samples_thumbnail_has_the_size_that_sample_data_shows(name):
    assert pngSize(ICONS / f"{name}.png") == (260, 280)


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb (WCAG)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("theme", "ground"), [("light", "#efefef"), ("dark", "#353535")])
@pytest.mark.parametrize("name", sorted(BUTTONS))
def test_an_icon_stands_out_from_the_button_it_lies_on(theme, ground, name):
    """At least one color with a contrast of 3 : 1, as asked of graphics by WCAG."""
    colors = re.findall(r"#[0-9a-f]{6}", (ICONS / theme / f"{name}.svg").read_text(encoding="utf-8"))
    best = 0.0
    for color in colors:
        a, b = sorted((luminance(color), luminance(ground)))
        best = max(best, (b + 0.05) / (a + 0.05))
    assert best >= 3
