"""What this computer can train with, asked of the training program itself while Slicer stays usable."""

import json
from collections.abc import Callable, Mapping, Sequence

from GenSegSlicerLib.BackendProcess import BackendProcess
from GenSegSlicerLib.Runs import sizeText
from GenSegSlicerLib.Translate import _


class Computer:
    """Starts `genseg doctor --json` and reads its answer. `devices`: [(id, words)], `advice`: a sentence, or ""."""

    def __init__(self, makeProcess: Callable[..., BackendProcess] = BackendProcess):
        self._makeProcess = makeProcess
        self._process: BackendProcess | None = None
        self._said: list[str] = []
        self.devices: list[tuple[str, str]] = []
        self.advice = ""

    @property
    def asking(self) -> bool:
        return self._process is not None

    def ask(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Ask again; the answer comes with `tick`. A program that cannot be started gives an advice at once."""
        self.close()
        self._said, process = [], self._makeProcess(command, environment)
        try:
            process.start()
        except (OSError, ValueError) as refused:
            self.advice = _("The training program could not be started: {reason}").format(reason=refused)
            return
        self._process = process

    def tick(self) -> bool:
        """Take in what was said. → whether the answer is complete now."""
        if self._process is None:
            return False
        self._said += [line.text for line in self._process.poll() if not line.isError]
        if not self._process.finished:
            return False
        self._process = None
        self._understand("\n".join(self._said))
        return True

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _understand(self, text: str) -> None:
        try:
            answer = json.loads(text)
            self.devices = [(str(device["id"]), _words(device)) for device in answer["devices"]]
            problems = [f for f in answer["findings"] if f["level"] == "problem"]
        except (ValueError, KeyError, TypeError):
            self.devices, self.advice = [], _("What this computer can do could not be found out.")
            return
        if problems:
            self.advice = " ".join(f"{f['name']}: {f['value']}. {f['meaning']}".strip() for f in problems)
        elif all(device == "cpu" for device, _words_ in self.devices):
            self.advice = _(
                "There is no graphics card that can be used, so the processor trains: small scans work well, "
                "large ones take hours. Choose a longer time for better masks."
            )
        else:
            self.advice = ""


def _words(device: dict) -> str:
    name = _("{name} (processor)") if device["id"] == "cpu" else "{name}"
    name = name.format(name=device.get("name") or device["id"])
    if not device.get("free_memory"):
        return name
    return _("{name}, {memory} free").format(name=name, memory=sizeText(device["free_memory"]))
