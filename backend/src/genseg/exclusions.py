"""Synthetic pairs that the user does not want: what the wish is, and from which step on it holds."""

from typing import Any

from genseg.events import EventLog
from genseg.runfolder import RunFolder, read_json, write_json

Combination = tuple[str, str]  # (scan whose mask it is, scan whose look it has)


class Exclusions:
    """A shown pair is never trained on itself: every step draws fresh ones. So an excluded pair stands for its
    combination, the mask of one scan in the look of another, of which no more are drawn.

    RUN/excluded.json is the wish, written by whoever shows the pairs. checkpoints/exclusions.json is the run's own
    record of which wish holds from which step on, so that a resumed run does what it did before.
    """

    def __init__(self, run: RunFolder, log: EventLog):
        self.run, self.log = run, log
        self.record: list[dict[str, Any]] = read_json(run.exclusions) if run.exclusions.exists() else []
        self._seen: tuple[int, int] | None = None  # time and size of the wish that was read last

    def at(self, step: int) -> frozenset[Combination]:
        """What is excluded at a step of the segmenter; takes up a new wish first."""
        self._take_up(step)
        return self._held(step)

    def last(self) -> frozenset[Combination]:
        """What is excluded after the last step."""
        return self._held(self.record[-1]["from_step"]) if self.record else frozenset()

    def _held(self, step: int) -> frozenset[Combination]:
        held = [entry for entry in self.record if entry["from_step"] <= step]
        return frozenset((source, style) for source, style in held[-1]["pairs"]) if held else frozenset()

    def _take_up(self, step: int) -> None:
        try:
            found = self.run.excluded.stat()
        except OSError:
            return
        if (found.st_mtime_ns, found.st_size) == self._seen:
            return
        self._seen = found.st_mtime_ns, found.st_size
        try:
            pairs = read_json(self.run.excluded)["pairs"]
            wish = sorted({(str(pair["source"]), str(pair["style"])) for pair in pairs if pair.get("style")})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            text = f"The list of excluded pairs {self.run.excluded} cannot be read ({error})."
            self.log.warn("excluded_unreadable", text, "Exclude the pairs again. Until then nothing changes.")
            return
        if wish == [tuple(pair) for pair in self.record[-1]["pairs"]] if self.record else not wish:
            return
        # Never before a step that an earlier record speaks of: that step has happened and is repeated as it was.
        first = max([step, *(entry["from_step"] for entry in self.record)])
        self.record.append({"from_step": first, "pairs": wish})
        write_json(self.run.exclusions, self.record)
        kinds = "1 kind" if len(wish) == 1 else f"{len(wish) or 'no'} kinds"
        self.log.warn("excluded", f"Left out from step {first} on, as you asked: {kinds} of synthetic pairs.")
