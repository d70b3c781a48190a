"""Asking for consent and installing what the training program needs, with a window that can be called off."""

import time
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.BackendProcess import BackendProcess
from GenSegSlicerLib.Dependencies import Dependencies, Outcome
from GenSegSlicerLib.PipInstaller import PipInstaller

ANSWER = 30.0  # seconds a Python has to say what it has


class Installing:
    """Checks and installs for Slicer's own Python; an external one is only checked."""

    def __init__(self, requirements: Path):
        self.requirements = requirements

    def ensure(self, backend, environment) -> bool:
        """→ whether everything needed is there now. Asks before anything is installed, and says why not."""
        try:
            dependencies = self._dependencies(backend, environment)
        except (OSError, ValueError) as error:
            slicer.util.errorDisplay(str(error))
            return False
        outcome = dependencies.install(
            self._pip(backend, environment), self._torch(), self._ask, slicer.app.testingEnabled()
        )
        self._tell(outcome)
        return outcome.ok and not outcome.restart

    def missing(self) -> bool:
        """Whether Slicer's own Python lacks something."""
        return bool(Dependencies(self.requirements).missing())

    def _dependencies(self, backend, environment) -> Dependencies:
        if not backend.external:
            return Dependencies(self.requirements)
        asking = Dependencies(self.requirements)
        return Dependencies.ofProbe(self.requirements, _output(asking.probeCommand(backend.interpreter), environment))

    def _ask(self, plan: str) -> bool:
        return slicer.util.confirmOkCancelDisplay(
            plan + "\n\n" + _("Install now? It takes some minutes, and needs the internet."),
            windowTitle=_("Install what training needs"),
        )

    def _pip(self, backend, environment):
        """Runs pip behind a window with its last line and a button that calls it off."""

        def install(requirements, constraints) -> None:
            window = slicer.util.createProgressDialog(
                labelText=_("Installing"), windowTitle=_("Install what training needs"), maximum=0
            )
            window.setAutoClose(False)

            def onLine(text: str) -> None:
                window.labelText = text[:120]

            def wait() -> bool:
                slicer.app.processEvents()
                time.sleep(0.02)
                return not window.wasCanceled

            try:
                PipInstaller(backend.interpreter, environment, onLine=onLine, wait=wait)(requirements, constraints)
            finally:
                window.close()

        return install

    def _torch(self):
        """The installer of the PyTorch extension, None without the extension."""
        try:
            import PyTorchUtils
        except ImportError:
            return None
        logic = PyTorchUtils.PyTorchUtilsLogic()
        return lambda requirement: logic.installTorch(askConfirmation=True, torchVersionRequirement=requirement)

    def _tell(self, outcome: Outcome) -> None:
        text = "\n\n".join(filter(None, [outcome.reason, *outcome.hints]))
        if outcome.restart:
            text = "\n\n".join(
                filter(None, [text, _("Restart Slicer before you train: a package in use has changed.")])
            )
        if text:
            (slicer.util.infoDisplay if outcome.ok else slicer.util.errorDisplay)(text)


def _output(command: list[str], environment) -> str:
    """What a short command prints. Raises OSError where it cannot be started."""
    process, said = BackendProcess(command, environment), []
    process.start()
    end = time.monotonic() + ANSWER
    while not process.finished and time.monotonic() < end:
        said += [line.text for line in process.poll() if not line.isError]
        qt.QCoreApplication.processEvents(qt.QEventLoop.ExcludeUserInputEvents)
        time.sleep(0.01)
    process.kill()
    return "\n".join(said)
