"""Asking for consent and installing what the training program needs, with a window that can be called off."""

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Dependencies import Dependencies, Outcome
from GenSegSlicerLib.PipInstaller import PipInstaller


class Installing:
    """Checks and installs for Slicer's own Python; an external one is only checked."""

    def __init__(self, requirements: Path, say):
        """`say(text)` shows what is being done."""
        self.requirements, self.say = requirements, say

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
        def wait() -> bool:
            slicer.app.processEvents()
            return True

        return PipInstaller(backend.interpreter, environment, onLine=self.say, wait=wait)

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
    from GenSegSlicerLib.BackendProcess import BackendProcess

    process, said = BackendProcess(command, environment), []
    process.start()
    while not process.finished:
        said += [line.text for line in process.poll() if not line.isError]
        slicer.app.processEvents()
    return "\n".join(said)
