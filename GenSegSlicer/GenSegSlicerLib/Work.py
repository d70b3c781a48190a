"""The processes that work for a session: one training or segmentation at a time. No Qt."""

from collections.abc import Callable
from pathlib import Path

from GenSegSlicerLib.Backend import Backend, TrainSettings
from GenSegSlicerLib.Computer import Computer
from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.RunController import RunController
from GenSegSlicerLib.Runs import Run, RunList
from GenSegSlicerLib.Session import Session


class Work:
    """`controller` watches what runs, `computer` knows the devices. `parameters`: the module's parameter node, or None.

    backendOf(externalPython) returns the training program with that Python, "" for Slicer's own; it may raise
    FileNotFoundError or StudyFaults. environmentOf(backend) returns the environment of its processes.
    """

    def __init__(self, session: Session, backendOf: Callable[[str], Backend], environmentOf: Callable[[Backend], dict]):
        self.session, self._backendOf, self.environmentOf = session, backendOf, environmentOf
        self.parameters = None
        self.computer = Computer()
        self.controller = RunController()
        self._segmenting: tuple[Path, Path] | None = None  # (run, folder of predictions) of `segment`
        self.notes: list[str] = []  # what the user should know of the study that was written

    def close(self) -> None:
        """Leave no process behind; a training keeps its last checkpoint."""
        self.computer.close()
        self.controller.close()

    # --- what is run ---

    def backend(self) -> Backend:
        """The training program with the Python that is chosen."""
        return self._backendOf(self.parameters.externalPython)

    def askComputer(self) -> None:
        """Find out what this computer can train with; the answer comes with `computer.tick`."""
        backend = self.backend()
        self.computer.ask(backend.doctorCommand(), self.environmentOf(backend))

    def train(self, seconds: float, progress: Callable | None = None) -> None:
        """Write the study and start a training. Raises StudyFaults; then nothing was begun or left behind."""
        chosen, backend = self.parameters, self.backend()
        run, study = self.session.newRun(self.folder())
        dataset = self.session.writeStudy(study, chosen.useUnlabeled, progress)
        settings = TrainSettings(
            dataset=dataset,
            out=run,
            method=chosen.method,
            budget=seconds,
            device=chosen.device,
            seed=chosen.seed,
            init=Path(chosen.startingModel).expanduser() if chosen.startingModel else None,
        )
        self._control(backend)
        self.notes = list(self.session.export.warnings)
        if self.controller.start(backend.trainCommand(settings), run):
            chosen.currentRun = str(run)

    def resume(self, runFolder: Path) -> None:
        """Go on with a run that was stopped."""
        self._control(self.backend())
        if self.controller.resume(runFolder):
            self.parameters.currentRun = str(runFolder)

    def segment(self, runFolder: Path, paths: list[Path]) -> None:
        """Segment files with a run's model; scans and masks come into the scene when it is done."""
        backend = self.backend()
        out, _study = self.session.newRun(Path(runFolder).parent / "segmented")
        command = backend.predictCommand(Path(runFolder), paths, out, self.parameters.device)
        self._control(backend)
        if self.controller.start(command, None):
            self._segmenting = Path(runFolder), out

    def _control(self, backend: Backend) -> None:
        self.controller = RunController(backend, self.environmentOf(backend))
        self._segmenting, self.notes = None, []

    # --- what comes back ---

    def bringMasks(self, last: bool) -> list[Fault]:
        """New masks of what runs, or with `last` of what has ended, with surfaces then. → what could not be brought."""
        if self._segmenting is not None:
            model, out = self._segmenting
            return self.session.importPredictions(out, model=model, loadScans=True) if last else []
        run = self.controller.runFolder
        return self.session.importPredictions(run, surface=last) if run is not None else []

    def dropUnbegun(self) -> None:
        """Remove the copies of the scans for a run that ended before its folder was made."""
        run = self.controller.runFolder
        if run is not None and not run.exists():
            self.session.dropStudy(run)

    # --- runs ---

    def folder(self) -> Path:
        """The folder for results."""
        return Path(self.parameters.outputFolder).expanduser()

    def current(self) -> Path | None:
        """The run of this scene, where its folder is still there."""
        run = self.parameters.currentRun if self.parameters is not None else ""
        return Path(run) if run and Path(run).is_dir() else None

    def runs(self) -> list[Run]:
        """The runs in the folder for results, the newest first."""
        if self.parameters is None or not self.parameters.outputFolder:
            return []
        active = self._active()
        idle = [self.controller.runFolder] if self.controller.runFolder is not None and active is None else []
        return RunList(self.folder()).runs(active, idle)

    def removeRun(self, run: Run) -> None:
        """Delete a run that is not at work. Raises StudyFaults."""
        self.session.removeRun(run, self._active())

    def _active(self) -> Path | None:
        return self.controller.runFolder if self.controller.active else None
