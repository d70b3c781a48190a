"""What a test must know although the program went on: errors in slots, refused connections, unexpected dialogs."""

import sys
import traceback


class Ledger:
    """Collects problems. The rig fails a test that leaves any behind; a test that expects one takes it with `take`."""

    def __init__(self):
        self.problems: list[str] = []
        self.dialogs: list = []
        self.answers: list = []

    def note(self, problem: str) -> None:
        print(f"rig: {problem}", file=sys.stderr)
        self.problems.append(problem)

    def exception(self, where: str) -> None:
        """To be called while an exception is handled: PythonQt prints it and goes on."""
        self.note(f"exception in {where}:\n{traceback.format_exc()}")

    def take(self, part: str) -> str:
        """Removes and returns the first problem that contains `part`; AssertionError where there is none."""
        for index, problem in enumerate(self.problems):
            if part in problem:
                return self.problems.pop(index)
        raise AssertionError(f"no problem with {part!r} was noted, only {self.problems}")

    def clear(self) -> None:
        self.problems.clear()
        self.dialogs.clear()
        self.answers.clear()


ledger = Ledger()
