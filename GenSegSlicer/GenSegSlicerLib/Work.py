"""The processes that work for a session: one training or segmentation at a time. No Qt."""

from collections.abc import Callable, Iterator
from pathlib import Path

from GenSegSlicerLib.Backend import Backend, TrainSettings
from GenSegSlicerLib.Batches import SEGMENTED, Batches
from GenSegSlicerLib.CaseVolumes import STUDIES
from GenSegSlicerLib.Computer import Computer
from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.RunController import RunController
from GenSegSlicerLib.Runs import Run, RunList
from GenSegSlicerLib.Session import Session
from GenSegSlicerLib.Translate import _

AT_ONCE = 1_000_000_000  # bytes of files that are loaded without being asked for one by one


class Work:
    """`controller` watches what runs, `computer` knows the devices. `parameters`: the module's parameter node, or None.

    backendOf() returns the training program with the Python that the user has chosen for this computer; it may raise
    FileNotFoundError or StudyFaults. environmentOf(backend) returns the environment of its processes. `begun`: runs
    that were started here before, in another scene; those that are not at work are known to have ended.
    """

    def __init__(
        self,
        session: Session,
        backendOf: Callable[[], Backend],
        environmentOf: Callable[[Backend], dict],
        begun: set[Path] | None = None,
    ):
        self.session, self._backendOf, self.environmentOf = session, backendOf, environmentOf
        self._ours: set[Path] = set() if begun is None else begun
        self.parameters = None
        self.computer = Computer()
        self.controller = RunController()
        self._batch: tuple[Path, Path] | None = None  # (folder of predictions, run) of `segment`
        self._begun: Path | None = None  # the run of the last `train`, until it is known to have a folder
        self._preparing, self._closings = False, 0
        self.notes: list[str] = []  # what the user should know of the study that was written

    def close(self) -> None:
        """Leave no process behind, nor copies of scans that nothing was learned from; a training keeps its checkpoint.

        A training whose scans are just being written is not begun.
        """
        self._closings += 1
        self.computer.close()
        self.controller.close()
        self.dropUnbegun()

    # --- what is run ---

    def backend(self) -> Backend:
        """The training program with the Python that is chosen."""
        return self._backendOf()

    def askComputer(self) -> None:
        """Find out what this computer can train with; the answer comes with `computer.tick`."""
        backend = self.backend()
        self.computer.ask(backend.doctorCommand(), self.environmentOf(backend))

    def train(self, seconds: float, progress: Callable | None = None) -> None:
        """Write the study and start a training.

        Raises StudyFaults, or RuntimeError while another run is active or begun. Whenever nothing was begun, nothing
        is left behind.
        """
        self._refuseWhileBusy()
        self._checkFolder()
        chosen, backend, closings = self.parameters, self.backend(), self._closings
        run, study = self.session.newRun(self.folder())
        begun, self._preparing = False, True
        try:
            dataset = self.session.export.write(study, progress)
            if self._closings != closings:
                raise RuntimeError(_("The scene was closed while its scans were written."))
            notes = [*self.session.export.warnings, *self._stranded()]
            command = backend.trainCommand(self._settings(dataset, run, seconds))
            self._preparing = False
            self._control(backend)
            self.notes = notes
            begun = self.controller.start(command, run)
        finally:
            self._preparing = False
            if not begun:
                self.session.dropStudy(run)
        if begun:
            self._ours.add(run)
            self._begun, chosen.currentRun = run, str(run)

    def _checkFolder(self) -> None:
        if not self.folder().is_absolute():
            rule = _("'{folder}' is not the whole path of a folder.").format(folder=self.parameters.outputFolder)
            raise StudyFaults([Fault(_("Results go to"), rule, _("Choose the folder with the button beside it."))])

    def _stranded(self) -> list[str]:
        """A sentence where copies of patients' scans lie in the folder for results without a training."""
        names = [path.name for path in self.session.strandedStudies(self.folder())]
        text = _("Copies of scans without a training lie in {folder}: {names}. Delete them if they are not needed.")
        return [text.format(folder=self.folder() / STUDIES, names=", ".join(names))] if names else []

    def _settings(self, dataset: Path, run: Path, seconds: float) -> TrainSettings:
        chosen = self.parameters
        return TrainSettings(
            dataset=dataset,
            out=run,
            method=chosen.method,
            generator=chosen.generator,
            segmenter=chosen.segmenter,
            budget=seconds,
            device=chosen.device,
            seed=chosen.seed,
            init=Path(chosen.startingModel).expanduser() if chosen.startingModel else None,
            learnUnlabelled=chosen.useUnlabeled,
        )

    def resume(self, runFolder: Path) -> None:
        """Go on with a run that was stopped. Raises RuntimeError while another is active."""
        self._control(self.backend())
        if self.controller.resume(runFolder):
            self._ours.add(Path(runFolder))
            self.parameters.currentRun = str(runFolder)

    def segment(self, runFolder: Path, paths: list[Path]) -> None:
        """Segment files with a run's model; scans and masks come into the scene when it is done.

        Raises StudyFaults, or RuntimeError while a run is active.
        """
        self._refuseWhileBusy()
        backend, runFolder = self.backend(), Path(runFolder)
        out, _study = self.session.newRun(runFolder.parent / SEGMENTED)
        command = backend.predictCommand(runFolder, paths, out, self.parameters.device)
        self._control(backend)
        Batches(runFolder).remember(out)
        begun = False
        try:
            begun = self.controller.start(command, None)
        finally:
            if not begun:
                Batches.dropEmpty(out)
        if begun:
            self._batch = out, runFolder

    def _refuseWhileBusy(self) -> None:
        if self.controller.active or self._preparing:
            raise RuntimeError(_("Another training or segmentation is running."))

    def _control(self, backend: Backend) -> None:
        """A fresh controller. Raises RuntimeError while a run is active: it would go on unwatched."""
        self._refuseWhileBusy()
        self.dropUnbegun()
        self.controller = RunController(backend, self.environmentOf(backend))
        self._batch, self.notes = None, []

    # --- what comes back ---

    @property
    def shown(self) -> tuple[Path | None, Path | None]:
        """(folder, model) of what is running or was shown last; of a run the model is None."""
        if self.controller.runFolder is not None:
            return self.controller.runFolder, None
        if self._batch is not None and (self.controller.active or self._batch[0].is_dir()):
            return self._batch
        return None, None

    def show(self, folder: Path, model: Path | None = None) -> None:
        """Take up what a run on the disk has told, or, with its `model`, a batch. Raises RuntimeError if active."""
        if model is None:
            self.controller.show(Path(folder))
            self._batch = None
            return
        self.forget()
        self._batch = Path(folder), Path(model)

    def forget(self) -> None:
        """Nothing is shown any more. Raises RuntimeError while a run is active."""
        self._refuseWhileBusy()
        self.controller = RunController()
        self._batch, self.notes = None, []

    def bringMasks(self, last: bool) -> Iterator[Fault | None]:
        """New masks of what runs, or with `last` of what has ended, one case a step: see Session.importPredictions.

        Before the end no fault is told twice; with `last` all that are left are told.
        """
        folder, model = self.shown
        if folder is None or (model is not None and not last):
            return iter(())
        if model is not None:
            return self.bringAll(folder, model)
        return self.session.importPredictions(folder, repeat=last)

    def bringAll(self, folder: Path, model: Path | None = None, again: bool = False) -> Iterator[Fault | None]:
        """All masks of a run or a batch, with their scans; where these are large, masks of scans in the scene only."""
        leave = self.session.sizeOfAbsent(folder) > AT_ONCE
        if leave:
            text = _("The scans are too large to be loaded all at once: select one under Results and press 'Show'.")
            self.notes.append(text)
        return self.session.importPredictions(folder, model=model, loadScans=not leave, leaveAbsent=leave, again=again)

    def dropUnbegun(self) -> None:
        """Remove what was written for a run or a batch of this session that ended before it had a folder."""
        if self.controller.active:
            return
        run, self._begun = self._begun, None
        if run is not None and _isEmpty(run):
            self.session.dropStudy(run)
        if self._batch is not None and _isEmpty(self._batch[0]):
            Batches.dropEmpty(self._batch[0])

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
        return RunList(self.folder()).runs(active, self._ours - {active})

    def batches(self) -> dict[Path, list[Path]]:
        """{run: folders with masks of more scans that its model has segmented, the newest first}."""
        return Batches.inFolder(self.folder())

    def removeRun(self, run: Run) -> None:
        """Delete a run that is not at work. Raises StudyFaults."""
        self.session.removeRun(run, self._active())

    def removeBatch(self, batch: Path) -> None:
        """Delete masks of more scans; their model stays. Raises StudyFaults."""
        Batches.removeOne(batch)

    def _active(self) -> Path | None:
        return self.controller.runFolder if self.controller.active else None


def _isEmpty(folder: Path) -> bool:
    """Whether a folder was never made, or holds nothing."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        return True
    except OSError:  # a disk that is gone says nothing
        return False
