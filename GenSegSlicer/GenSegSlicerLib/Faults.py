"""What can go wrong, said in words a clinician can act on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault: which scan (or "study" for the whole), what must hold and what was found, and what to do about it."""

    case: str
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.case}: {self.rule} {self.remedy}"


class StudyFaults(Exception):
    """The input has faults; `faults` holds every one that was found, in the order of the scans."""

    def __init__(self, faults: list[Fault]):
        self.faults = list(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))
