"""What can go wrong, said in words a clinician can act on.

Two kinds: faults of the input, collected and reported all at once (exit status 2), and failures
of a run (exit status 1). A stop on request is not an error but has its own exit status (3).
"""

from dataclasses import dataclass
from pathlib import Path

EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_STOPPED = 0, 1, 2, 3


@dataclass(frozen=True)
class Fault:
    """One fault of the input: which case, which rule it breaks, and what to do about it."""

    code: str  # short and stable, e.g. "geometry_mismatch"; programs may rely on it
    case: str  # case id, file, or "study" where the fault concerns the whole
    rule: str  # what must hold and what was found instead
    remedy: str  # what the user can do

    def __str__(self) -> str:
        return f"{self.case}: {self.rule} {self.remedy}"


class InputFaults(Exception):
    """The input has faults; `faults` holds every one that was found, in reading order."""

    def __init__(self, faults: list[Fault]):
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class RunFailed(Exception):
    """A run cannot go on: a stable code, what happened, and the remedy."""

    def __init__(self, code: str, message: str, remedy: str):
        self.code, self.message, self.remedy = code, message, remedy
        super().__init__(f"{message} {remedy}")


class DamagedFile(RunFailed, ValueError):
    """A file of a run folder or bundle does not hold what was written to it."""

    def __init__(self, path: Path, why: object):
        remedy = "Restore it from a backup; where there is none, train again."
        super().__init__("damaged_file", f"The file {path} is damaged: {why}.", remedy)
