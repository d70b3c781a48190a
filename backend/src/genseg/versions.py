"""Versions of what decides a result, also where packages do not say theirs, as some in Slicer's own Python."""

import importlib.metadata
import importlib.util

# Name under which it is installed: name under which it is imported.
LIBRARIES = {
    **{name: name for name in ("torch", "monai", "numpy", "SimpleITK", "safetensors", "einops", "diffusers")},
    **{name: name for name in ("pydantic", "typer", "rich")},
    "scikit-image": "skimage",
}


def version_of(name: str) -> str | None:
    """Installed version of a package; "" where it is there but does not tell, None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None if importlib.util.find_spec(LIBRARIES.get(name, name)) is None else ""


def library_versions() -> dict[str, str | None]:
    """`version_of` everything that is needed."""
    return {name: version_of(name) for name in LIBRARIES}
