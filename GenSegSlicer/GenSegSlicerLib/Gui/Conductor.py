"""What the panels ask for and what happens while something runs: starting, watching, stopping, bringing back."""

import time
from collections.abc import Callable
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gui.Installing import Installing
from GenSegSlicerLib.Gui.LookPanel import LookPanel
from GenSegSlicerLib.Gui.Pictures import show
from GenSegSlicerLib.Gui.ResultsPanel import ResultsPanel
from GenSegSlicerLib.Gui.ScansPanel import ScansPanel
from GenSegSlicerLib.Gui.TrainPanel import TrainPanel, chosenPython, mayCopyTo, tellFaults
from GenSegSlicerLib.RunController import State
from GenSegSlicerLib.Scans import Role

TICK = 250  # ms between two looks at the run
LOOK = 8  # ticks between two looks at its files
DOUBLE_CLICK = 1.0  # seconds after a start in which Stop is not meant
PATIENCE = 2.0  # seconds after which a second Stop means at once


class Conductor:
    """Owns the four panels and the one timer. It never blocks: a tick takes in what was said, and one mask."""

    def __init__(self, ui, logic, requirements: Path, isEntered: Callable[[], bool]):
        """`requirements`: the file with the packages that training needs. `isEntered`: whether the user is here."""
        self.ui, self.logic, self._isEntered = ui, logic, isEntered
        self._ticks = 0
        self._starting = False
        self._startedAt = 0.0  # seconds
        self._allowed: set[str] = set()  # folders for results to which scans may be copied
        self._bringing = None  # masks that come into the scene, one a tick
        self._came = 0  # of those masks
        self._faults: list = []  # of the others
        self._askedFor: str | None = None  # the Python that was asked what this computer can train with
        self._knownFor: str | None = None  # the Python that has answered
        self.installing = Installing(requirements)
        self.timer = qt.QTimer()
        self.timer.setInterval(TICK)
        self.timer.connect("timeout()", self.onTick)
        self.resultsPanel = None
        self.scansPanel = ScansPanel(ui, logic, self.checkReady)
        self.trainPanel = TrainPanel(ui, logic, self)
        self.lookPanel = LookPanel(ui, logic, self)
        self.resultsPanel = ResultsPanel(ui, logic, self)

    def rest(self) -> None:
        """The scene or the module closes: nothing more comes in."""
        self.timer.stop()
        self._bringing, self._faults = None, []

    def settingsChanged(self) -> None:
        """Another folder for results, or another Python."""
        if self.logic.work.parameters is None:
            return
        self.resultsPanel.refreshRuns()
        self.askComputer()

    def askComputer(self) -> None:
        """Find out what this computer can train with, where that is not known and the program that knows is there."""
        work = self.logic.work
        python = chosenPython()
        if self._knownFor == python or work.controller.active or slicer.app.testingEnabled():
            return
        if work.computer.asking and self._askedFor == python:
            return
        self._askedFor = python
        try:
            if not python and self.installing.missing():
                advice = _("The training program is not installed yet. You are asked when you press the button below.")
                self.trainPanel.showDevices([], advice)
                return
            work.askComputer()
            self.timer.start()
            if not work.computer.asking:
                self.trainPanel.showDevices([], work.computer.advice)
        except (FileNotFoundError, StudyFaults) as error:
            self.trainPanel.showDevices([], str(error))

    # --- what the panels ask for ---

    def checkReady(self) -> None:
        """Say beside the button what is missing before it can be pressed."""
        if self.resultsPanel is None:
            return
        scans = self.logic.session.scans.scans()
        labeled = any(scan.role == Role.LABELLED and scan.drawn for scan in scans)
        reason = "" if labeled or self.scansPanel.editor.isOpen else _("Label at least one scan first.")
        self.trainPanel.setReady(reason)
        if self.logic.work.controller.state is State.IDLE:
            show(self.ui.phaseLabel, reason or self.logic.session.studyText())

    def refreshScans(self) -> None:
        self.scansPanel.refresh()

    def label(self, volumeNode) -> None:
        self.ui.scansCollapsibleButton.collapsed = False
        self.scansPanel.refresh()
        self.scansPanel.label(volumeNode)

    def stopLabeling(self) -> None:
        """Before something else is shown: what was drawn is kept."""
        if self.scansPanel.editor.isOpen:
            self.scansPanel.editor.onDone()

    def train(self) -> None:
        """Check, install what is missing, write the study, start."""
        self.stopLabeling()
        folder = self.logic.work.parameters.outputFolder
        if folder not in self._allowed and not mayCopyTo(folder):
            return
        self._allowed.add(folder)
        self._start(lambda: self.logic.work.train(self.trainPanel.seconds(), self._onExport))

    def resume(self, runFolder: Path) -> None:
        self._start(lambda: self.logic.work.resume(runFolder))

    def segment(self, runFolder: Path, paths: list[Path]) -> None:
        self._start(lambda: self.logic.work.segment(runFolder, paths))

    def stop(self) -> None:
        """Gracefully; a second time, but not by a double click, at once."""
        controller = self.logic.work.controller
        if time.monotonic() - self._startedAt < DOUBLE_CLICK:
            return
        if controller.state is not State.STOPPING:
            controller.stop()
        elif controller.secondsStopping > PATIENCE:
            controller.forceStop()
        self.trainPanel.showState()
        if not controller.active:
            self._ended()

    def _start(self, begin) -> None:
        """`begin` starts a process and may raise StudyFaults; nothing is begun where something is missing."""
        if self._starting or self.logic.work.controller.active:
            return
        self._starting, self.ui.trainButton.enabled = True, False
        try:
            backend = self.logic.work.backend()
            self._say(_("Checking what is installed"))
            if self.installing.ensure(backend, self.logic.work.environmentOf(backend)):
                self.logic.work.computer.close()
                begin()
        except StudyFaults as error:
            tellFaults(_("This has to be mended first:"), error)
        except Exception as error:
            slicer.util.errorDisplay(_("It could not be started: {reason}").format(reason=error))
            raise
        finally:
            self._starting = False
            self._begun()
            self.askComputer()

    def _begun(self) -> None:
        controller = self.logic.work.controller
        if controller.active:
            self._ticks, self._bringing, self._faults = 0, None, []
            self._startedAt = time.monotonic()
            self.timer.start()
            if controller.runFolder is not None:
                self.ui.lookCollapsibleButton.collapsed = False
                self.lookPanel.open(controller.runFolder)
                self.resultsPanel.open(controller.runFolder)
        self.unlock()

    def _onExport(self, done: int, total: int, name: str) -> None:
        self._say(_("Writing scan {done} of {total}: {name}").format(done=min(done + 1, total), total=total, name=name))

    def _say(self, text: str) -> None:
        self.trainPanel.say(text)

    # --- while it runs ---

    def onTick(self) -> None:
        """A few times a second: take in what the processes said, and one mask. Never blocks."""
        work = self.logic.work
        if work.computer.tick():
            self._knownFor = self._askedFor
            self.trainPanel.showDevices(work.computer.devices, work.computer.advice)
        changes = work.controller.tick()
        if changes:
            self.trainPanel.showState()
            self.trainPanel.showLog()
        self._ticks += 1
        if changes.state and not work.controller.active:
            self._ended()
        elif self._bringing is not None:
            self._bringOne()
        elif work.controller.active and self._ticks % LOOK == 0:
            self.lookPanel.update()
            if work.controller.progress.predictions:
                self.bring(work.bringMasks(last=False))
        if not (work.controller.active or work.computer.asking or self._bringing or self.lookPanel.drawing):
            self.timer.stop()
        elif self.lookPanel.drawing:
            self.lookPanel.drawSome()

    def bring(self, masks) -> None:
        """Take masks into the scene from now on, one a tick."""
        self._bringing, self._came, self._faults = masks, 0, []
        self.timer.start()

    def _bringOne(self) -> None:
        try:
            fault = next(self._bringing)
        except StopIteration:
            self._brought()
            return
        if fault is None:
            self._came += 1
        else:
            self._faults.append(fault)

    def _brought(self) -> None:
        """All new masks are in the scene."""
        self._bringing, faults = None, self._faults
        self.resultsPanel.fillTable()
        if self._came:
            self.scansPanel.refresh()
        if self.logic.work.controller.active:
            return
        self.logic.work.notes += [str(fault) for fault in faults]
        self.trainPanel.showState()
        if self._isEntered() and not self.scansPanel.editor.isOpen:  # else the views are the user's
            self.resultsPanel.showFirst()

    def unlock(self) -> None:
        """What can be pressed, as things stand."""
        self.resultsPanel.setBusy(self.logic.work.controller.active)
        self.trainPanel.showState()
        self.checkReady()

    def _ended(self) -> None:
        """The run is over: first everything can be pressed again, then its last masks and curves come."""
        self.unlock()
        self.logic.work.dropUnbegun()
        self.ui.resultsCollapsibleButton.collapsed = self.logic.work.controller.progress.predictions == {}
        folder, model = self.logic.work.shown
        self.resultsPanel.open(folder, model)
        self.bring(self.logic.work.bringMasks(last=True))
        self.lookPanel.update()
        self.askComputer()

    def closeRun(self) -> None:
        """The run that was shown is gone."""
        self.lookPanel.close()
        self.logic.work.forget()
        self.unlock()

    def openRun(self, folder: Path, model: Path | None = None) -> None:
        """Show a run of the disk: its curves, pairs and table; or a batch of the run `model`."""
        self.logic.work.show(folder, model)
        self.lookPanel.open(model or folder)
        self.resultsPanel.open(folder, model)
        self.timer.start()
        self.unlock()
