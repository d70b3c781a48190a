"""JSON files that others may have removed or broken, and that are written whole or not at all."""

import json
import os
from pathlib import Path


def readJson(file: Path) -> dict:
    """The object in a file; {} where there is none or it cannot be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def writeJson(file: Path, content: dict) -> None:
    """Write under a temporary name, then rename. Raises OSError; then nothing changed."""
    temporary = file.with_name(f".part-{os.getpid()}-{file.name}")
    try:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
