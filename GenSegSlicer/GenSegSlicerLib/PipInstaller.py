"""Runs pip as a process whose output is seen while it works, and that can be called off."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from GenSegSlicerLib.BackendProcess import BackendProcess
from GenSegSlicerLib.Translate import _


class InstallFailed(Exception):
    """pip failed or was called off; `output` is all it has said."""

    def __init__(self, message: str, output: str):
        super().__init__(message)
        self.output = output


class PipInstaller:
    """An installer for Dependencies.install. Only wheels are taken: nothing is compiled on the user's computer."""

    def __init__(
        self,
        interpreter: Path,
        environment: Mapping[str, str] | None = None,
        onLine: Callable[[str], object] = lambda text: None,
        wait: Callable[[], bool | None] = lambda: time.sleep(0.05),
    ):
        """`wait`: called again and again, to keep the window alive; False calls the installation off."""
        self.interpreter, self.environment = Path(interpreter), environment
        self._onLine, self._wait = onLine, wait

    def command(self, requirements: list[str], constraints: Path) -> list[str]:
        """The command that is run."""
        options = ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        return [str(self.interpreter), "-m", "pip", "install", *options, "-c", str(constraints), *requirements]

    def __call__(self, requirements: list[str], constraints: Path) -> None:
        """Install. Raises InstallFailed, or OSError where Python cannot be started."""
        process = BackendProcess(self.command(requirements, constraints), self.environment)
        process.start()
        said = []
        try:
            while not process.finished:
                for line in process.poll():
                    said.append(line.text)
                    self._onLine(line.text)
                if self._wait() is False:
                    raise InstallFailed(_("called off by you."), "\n".join(said))
        finally:
            process.kill()
        if process.status != 0:
            raise InstallFailed(_("pip ended with status {status}.").format(status=process.status), "\n".join(said))
