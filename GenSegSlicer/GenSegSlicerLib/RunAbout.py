"""What a run folder says about its training: method, structures with their colors, scans, how greys were scaled."""

from pathlib import Path

from GenSegSlicerLib.JsonFile import readJson


class RunAbout:
    """Reads RUN/study.json, plan.json and settings.json once they are there. Absent or broken files count as empty."""

    def __init__(self, runFolder: Path | str):
        self.runFolder = Path(runFolder)
        self._contents = {}

    @property
    def structures(self) -> list[dict]:
        """[{"value": value in the masks, "name": …, "color": [r, g, b] in 0..255}] without the background."""
        labels = (self._content("study.json").get("labels") or {}).get("labels") or []
        return [label for label in labels if label.get("value") != 0]

    @property
    def colors(self) -> dict[int, tuple]:
        """{value in the masks: (r, g, b)}, 0..255."""
        return {label["value"]: tuple(label.get("color") or (255, 255, 0)) for label in self.structures}

    @property
    def sliceAxis(self) -> int | None:
        """Axis of a volume [z, y, x] that the network cuts into slices, or None."""
        return self._content("plan.json").get("slice_axis")

    @property
    def method(self) -> str:
        """As the training chose it where the user did not; "" where the run does not say."""
        return str(self._content("settings.json").get("method") or "")

    def caseFiles(self, case: str) -> tuple[Path, Path] | None:
        """→ (image, mask) paths of a training scan, of several channels the first; None where it is not known."""
        for known in self._content("study.json").get("training") or []:
            if known.get("id") == case and known.get("images") and known.get("label"):
                return Path(known["images"][0]), Path(known["label"])
        return None

    def window(self, synthetic: bool) -> tuple[float, float] | None:
        """(low, high) of CT in HU, or of synthetic CT in its scaled units; None where every scan has its own range."""
        normalisation = (self._content("plan.json").get("normalisation") or [{}])[0]
        if normalisation.get("kind") != "ct":
            return None
        low, high, mean, std = (float(normalisation[name]) for name in ("low", "high", "mean", "std"))
        return ((low - mean) / std, (high - mean) / std) if synthetic else (low, high)

    def _content(self, name: str) -> dict:
        if not self._contents.get(name):
            self._contents[name] = readJson(self.runFolder / name)
        return self._contents[name]
