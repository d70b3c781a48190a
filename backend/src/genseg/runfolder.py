"""The run folder: the contract between the backend and whoever reads its results, without torch.

Every file is written under a temporary name and then renamed, so a reader never sees half a file.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path with the same suffixes; rename it to `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented UTF-8 JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


class RunFolder:
    """Names of everything in a run folder (see docs/run-folder.md). Creates nothing by itself."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.settings = self.path / "settings.json"
        self.plan = self.path / "plan.json"
        self.study = self.path / "study.json"  # the study as it was read: cases, label table
        self.events = self.path / "events.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.last = self.checkpoints / "last.safetensors"  # everything needed to go on
        self.best = self.checkpoints / "best.safetensors"  # the usable model: EMA weights of the segmenter
        self.generator = self.checkpoints / "generator.safetensors"
        self.synthetic = self.path / "synthetic"
        self.synthetic_index = self.synthetic / "index.json"
        self.predictions = self.path / "predictions"
        self.predictions_index = self.predictions / "index.json"
        self.metrics = self.path / "metrics.json"
        self.model = self.path / "model"
        self.report = self.path / "report.html"
        self.done = self.path / "done"
        self.stop = self.path / "stop"

    def __fspath__(self) -> str:
        return str(self.path)
