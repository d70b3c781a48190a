"""GenSeg: label a few scans, press one button, look at what comes back."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import qt
import slicer
import vtk
from GenSegSlicerLib.Backend import Backend
from GenSegSlicerLib.Faults import StudyFaults
from GenSegSlicerLib.Gallery import Gallery
from GenSegSlicerLib.Gui.Installing import Installing
from GenSegSlicerLib.Gui.LookPanel import LookPanel
from GenSegSlicerLib.Gui.Pictures import icon, show
from GenSegSlicerLib.Gui.ResultsPanel import ResultsPanel
from GenSegSlicerLib.Gui.Samples import registerSampleData
from GenSegSlicerLib.Gui.ScansPanel import ScansPanel
from GenSegSlicerLib.Gui.TrainPanel import TrainPanel, defaultFolder, tellFaults
from GenSegSlicerLib.RunController import State
from GenSegSlicerLib.Scans import Role
from GenSegSlicerLib.Session import Session
from GenSegSlicerLib.Work import Work
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

FOLDER = Path(__file__).parent
TICK = 250  # ms between two looks at the run
LOOK = 8  # ticks between two looks at its files
ICONS = {
    "addFiles": "add",
    "addFolder": "folder",
    "label": "label",
    "suggest": "suggest",
    "exclude": "exclude",
    "show": "show",
    "accept": "accept",
    "correct": "correct",
    "segmentFolder": "folder",
}


class GenSegSlicer(ScriptedLoadableModule):
    """What the module selector and the help show."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("GenSeg: segment from a few labels")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "SegmentEditor", "Volumes", "Plots", "Tables", "SubjectHierarchy"]
        self.parent.contributors = ["GenSegSlicer contributors"]
        self.parent.helpText = _(
            "Label a few scans, press one button: a generator of synthetic scans and a segmentation network learn "
            "together on this computer, and the other scans come back segmented. Nothing is uploaded. "
            'See <a href="https://github.com/GenSegSlicer/SlicerGenSeg">the tutorial</a>.'
        )
        self.parent.acknowledgementText = _(
            "The method follows GenSeg (Zhang et al., Nature Communications 2025). The networks are those of MONAI."
        )
        slicer.app.connect("startupCompleted()", lambda: registerSampleData(FOLDER))


@parameterNodeWrapper
class GenSegSlicerParameterNode:
    """What the user chose; saved with the scene. Paths are text: empty means none."""

    budget: str = "quick"
    minutes: Annotated[int, WithinRange(1, 2880)] = 15
    method: str = "genseg"
    device: str = "auto"
    useUnlabeled: bool = True
    seed: Annotated[int, WithinRange(0, 99999)] = 0
    outputFolder: str = ""
    startingModel: str = ""
    externalPython: str = ""
    currentRun: str = ""


class GenSegSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Puts the four panels together and lets them know of each other."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._ticks = 0

    # --- life ---

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/GenSegSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = GenSegSlicerLogic()
        self.installing = Installing(FOLDER / "Resources" / "requirements.txt", self._say)
        self.scansPanel = ScansPanel(self.ui, self.logic, self.checkReady)
        self.trainPanel = TrainPanel(self.ui, self.logic, self)
        self.lookPanel = LookPanel(self.ui, self.logic)
        self.resultsPanel = ResultsPanel(self.ui, self.logic, self)
        self.timer = qt.QTimer()
        self.timer.setInterval(TICK)
        self.timer.connect("timeout()", self.onTick)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        slicer.app.connect("aboutToQuit()", self.onQuit)
        self.setIcons()
        self.initializeParameterNode()

    def setIcons(self) -> None:
        """In the variant for the window's colors, which the user may have changed meanwhile."""
        for name, picture in ICONS.items():
            getattr(self.ui, f"{name}Button").icon = icon(picture)
        self.trainPanel.showState()

    def cleanup(self) -> None:
        slicer.app.disconnect("aboutToQuit()", self.onQuit)
        self.timer.stop()
        self.logic.work.close()
        self.setParameterNode(None)
        self.scansPanel.cleanup()
        self.removeObservers()

    def enter(self) -> None:
        self.initializeParameterNode()
        self.setIcons()
        self.scansPanel.editor.enter()
        self.scansPanel.refresh()

    def exit(self) -> None:
        self.scansPanel.editor.leave()

    def onQuit(self) -> None:
        self.logic.work.close()

    def onSceneStartClose(self, caller, event) -> None:
        self.timer.stop()
        self.logic.work.close()
        self.scansPanel.editor.sceneClosing()
        self.lookPanel.close()
        self.resultsPanel.open(None)
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        self.logic.newScene()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event) -> None:
        Gallery.hide(slicer.mrmlScene)  # what a saved scene kept of a pair that was shown
        self.initializeParameterNode()

    # --- parameters ---

    def initializeParameterNode(self) -> None:
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode) -> None:
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._parameterNode = self.logic.work.parameters = parameterNode
        self.trainPanel.setParameterNode(parameterNode)
        if parameterNode is None:
            return
        if not parameterNode.outputFolder:
            parameterNode.outputFolder = defaultFolder()
        self._guiTag = parameterNode.connectGui(self.ui)
        self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._onParameters()
        self.settingsChanged()
        run = self.logic.work.current()
        if run is not None and not self.logic.work.controller.active:
            self.logic.work.controller.show(run)
            self._openRun(run)

    def _onParameters(self, caller=None, event=None) -> None:
        self.trainPanel.updateFromParameters()

    def settingsChanged(self) -> None:
        """Another folder for results, or another Python."""
        if self._parameterNode is None:
            return
        slicer.app.userSettings().setValue("GenSegSlicer/OutputFolder", self._parameterNode.outputFolder)
        self.resultsPanel.refreshRuns()
        self.askComputer()

    def askComputer(self) -> None:
        """Find out what this computer can train with, where the program that knows is installed."""
        if self.logic.work.controller.active or slicer.app.testingEnabled():
            return
        try:
            if not self._parameterNode.externalPython and self.installing.missing():
                advice = _("The training program is not installed yet. You are asked when you press the button below.")
                self.trainPanel.showDevices([], advice)
                return
            self.logic.work.askComputer()
            self.timer.start()
        except (FileNotFoundError, StudyFaults) as error:
            self.trainPanel.showDevices([], str(error))

    # --- what the panels ask for ---

    def checkReady(self) -> None:
        """Say beside the button what is missing before it can be pressed."""
        if not hasattr(self, "trainPanel"):
            return
        scans = self.logic.session.scans.scans()
        labelled = [scan for scan in scans if scan.role == Role.LABELLED and scan.drawn]
        reason = "" if labelled else _("Label at least one scan first.")
        self.trainPanel.setReady(reason)
        if not self.logic.work.controller.active and self.logic.work.controller.state is State.IDLE:
            show(self.ui.phaseLabel, reason or self.logic.session.studyText())

    def refreshScans(self) -> None:
        self.scansPanel.refresh()

    def label(self, volumeNode) -> None:
        self.ui.scansCollapsibleButton.collapsed = False
        self.scansPanel.refresh()
        self.scansPanel.label(volumeNode)

    def train(self) -> None:
        """Check, install what is missing, write the study, start."""
        if self.scansPanel.editor.isOpen:
            self.scansPanel.editor.onDone()
        self._start(lambda: self.logic.work.train(self.trainPanel.seconds(), self._onExport))

    def resume(self, runFolder: Path) -> None:
        self._start(lambda: self.logic.work.resume(runFolder))

    def segment(self, runFolder: Path, paths: list[Path]) -> None:
        self._start(lambda: self.logic.work.segment(runFolder, paths))

    def stop(self) -> None:
        controller = self.logic.work.controller
        if controller.state is State.STOPPING:
            controller.forceStop()
        else:
            controller.stop()
        self.onTick()

    def _start(self, begin) -> None:
        """`begin` starts a process and may raise StudyFaults; nothing is begun where something is missing."""
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
            self._begun()

    def _begun(self) -> None:
        controller = self.logic.work.controller
        if controller.active:
            self._ticks = 0
            self.timer.start()
            self.ui.lookCollapsibleButton.collapsed = False
            if controller.runFolder is not None:
                self.lookPanel.open(controller.runFolder)
                self.resultsPanel.open(controller.runFolder)
        self.resultsPanel.setBusy(controller.active)
        self.trainPanel.showState()
        self.checkReady()

    def _onExport(self, done: int, total: int, name: str) -> None:
        self._say(_("Writing scan {done} of {total}: {name}").format(done=min(done + 1, total), total=total, name=name))

    def _say(self, text: str) -> None:
        self.trainPanel.say(text)

    # --- while it runs ---

    def onTick(self) -> None:
        """A few times a second: take in what the processes said. Never blocks."""
        if self.logic.work.computer.tick():
            self.trainPanel.showDevices(self.logic.work.computer.devices, self.logic.work.computer.advice)
        controller = self.logic.work.controller
        changes = controller.tick()
        if changes:
            self.trainPanel.showState()
            self.trainPanel.showLog()
        self._ticks += 1
        if changes.state and not controller.active:
            self._ended()
        elif controller.active and self._ticks % LOOK == 0:
            self.lookPanel.update()
            if controller.progress.predictions:
                self._bringMasks(last=False)
        if not controller.active and not self.logic.work.computer.asking:
            self.timer.stop()

    def _bringMasks(self, last: bool) -> None:
        faults = self.logic.work.bringMasks(last)
        self.resultsPanel.fillTable()
        if faults and last:
            tellFaults(_("Some masks could not be brought into the scene:"), StudyFaults(faults))

    def _ended(self) -> None:
        """The run is over: its last masks, its curves, what can be done now."""
        self.logic.work.dropUnbegun()
        self.lookPanel.update()
        self._bringMasks(last=True)
        self.resultsPanel.setBusy(False)
        self.resultsPanel.refreshRuns()
        self.scansPanel.refresh()
        self.trainPanel.showState()
        if self.logic.work.controller.state is not State.FAILED:
            self.ui.resultsCollapsibleButton.collapsed = False

    def _openRun(self, run: Path) -> None:
        self.lookPanel.open(run)
        self.resultsPanel.open(run)
        self.trainPanel.showState()
        self.checkReady()


class GenSegSlicerLogic(ScriptedLoadableModuleLogic):
    """The session in Slicer's scene and the processes that work for it. Usable without the widget."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.newScene()

    def newScene(self) -> None:
        """Forget everything about the scene that was closed."""
        self.session = Session(slicer.mrmlScene, self.loadScan)
        self.work = Work(self.session, backendOf, environmentOf)

    def getParameterNode(self):
        return GenSegSlicerParameterNode(super().getParameterNode())

    def updateCurves(self) -> dict:
        """{group: chart node} of the run's curves so far."""
        return self.session.curves.update(self.work.controller.progress.curves)

    def loadScan(self, path: Path):
        """The volume node of a file, or None. Numbered pictures are scans of their own, not slices of one volume."""
        try:
            return slicer.util.loadVolume(str(path), {"singleFile": True, "show": False})
        except RuntimeError:
            return None


def backendOf(externalPython: str) -> Backend:
    """The training program with the chosen Python, or Slicer's own. Raises FileNotFoundError or StudyFaults."""
    source = Backend.locate(FOLDER)
    if externalPython:
        return Backend(source, Backend.externalPython(Path(externalPython)), external=True)
    return Backend(source, Backend.python(Path(slicer.app.slicerHome)))


def environmentOf(backend: Backend) -> dict[str, str]:
    """An external Python gets the environment in which Slicer was started, Slicer's own that of Slicer."""
    base = slicer.util.startupEnvironment() if backend.external else os.environ
    return backend.environment(base, Path(slicer.app.slicerHome))


class GenSegSlicerTest(ScriptedLoadableModuleTest):
    """For Reload and Test; the tests proper are in Testing/slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_aScanIsListedAndGetsItsRole()

    def test_aScanIsListedAndGetsItsRole(self):
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Scan")
        slicer.util.updateVolumeFromArray(volume, np.zeros((4, 5, 6), dtype="int16"))
        scans = GenSegSlicerLogic().session.scans
        self.assertEqual([scan.name for scan in scans.scans()], ["Scan"])
        scans.setRole(volume, Role.TEST)
        self.assertEqual(scans.scan(volume).role, Role.TEST)
