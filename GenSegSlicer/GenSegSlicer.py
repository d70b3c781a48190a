"""GenSeg: label a few scans, press one button, look at what comes back."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import slicer
import vtk
from GenSegSlicerLib.Backend import Backend
from GenSegSlicerLib.Gallery import Gallery
from GenSegSlicerLib.Gui.Conductor import Conductor
from GenSegSlicerLib.Gui.Pictures import icon
from GenSegSlicerLib.Gui.Samples import registerSampleData
from GenSegSlicerLib.Gui.TrainPanel import chosenPython, defaultFolder, isPossible
from GenSegSlicerLib.RunProgress import RunProgress
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
            "Scans marked 'To segment' are learned from as well, without labels: from how they look, and by finding "
            "the same in them again when they are seen in another way. The check box 'Learn from the scans to segment, "
            "too' turns that off: when they are of another kind than the labeled ones, or to judge the model on scans "
            "it has never seen. They are segmented in any case. "
            'See <a href="https://github.com/GenSegSlicer/SlicerGenSeg">the tutorial</a>.'
        )
        self.parent.acknowledgementText = _(
            "The method follows GenSeg (Zhang et al., Nature Communications 2025). The networks are those of MONAI."
        )
        slicer.app.connect("startupCompleted()", lambda: registerSampleData(FOLDER))


@parameterNodeWrapper
class GenSegSlicerParameterNode:
    """What the user chose for this study; saved with the scene. Paths are text: empty means none.

    The other Python is a choice for the computer: no scene may name a program that is then started.
    """

    budget: str = "quick"
    minutes: Annotated[int, WithinRange(1, 2880)] = 15
    method: str = "auto"
    generator: str = "spade"
    segmenter: str = "auto"
    device: str = "auto"
    useUnlabeled: bool = True
    seed: Annotated[int, WithinRange(0, 99999)] = 0
    outputFolder: str = ""
    startingModel: str = ""
    currentRun: str = ""


class GenSegSlicerWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Puts the four panels together and lets them know of each other."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._told = ""  # what is still to be said when the scene has closed

    # --- life ---

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/GenSegSlicer.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = GenSegSlicerLogic()
        requirements = FOLDER / "Resources" / "requirements.txt"
        self.conductor = Conductor(self.ui, self.logic, requirements, lambda: self.parent.isEntered)
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
        self.conductor.trainPanel.showState()

    def cleanup(self) -> None:
        slicer.app.disconnect("aboutToQuit()", self.onQuit)
        self.conductor.rest()
        self.logic.work.close()
        self.setParameterNode(None)
        self.conductor.scansPanel.cleanup()
        self.removeObservers()

    def enter(self) -> None:
        if self._parameterNode is None:
            self.initializeParameterNode()  # which reads the folder for results
        else:
            self.conductor.settingsChanged()
        self.setIcons()
        self.conductor.scansPanel.editor.enter()
        self.conductor.scansPanel.refresh()

    def exit(self) -> None:
        self.conductor.scansPanel.editor.leave()

    def onQuit(self) -> None:
        self.logic.work.close()

    def onSceneStartClose(self, caller, event) -> None:
        wasActive = self.logic.work.controller.active
        self.conductor.rest()
        self.logic.work.close()
        self.conductor.scansPanel.editor.sceneClosing()
        self.conductor.lookPanel.close()
        self.conductor.resultsPanel.open(None)
        self.setParameterNode(None)
        self._told = _("The training was stopped with its scene. It can be resumed under Results.") if wasActive else ""

    def onSceneEndClose(self, caller, event) -> None:
        self.logic.newScene()
        if self._told:
            self.logic.work.notes = [self._told]
        if self.parent.isEntered:
            self.initializeParameterNode()
        self.conductor.unlock()

    def onSceneEndImport(self, caller, event) -> None:
        Gallery.hide(slicer.mrmlScene)  # what a saved scene kept of a pair that was shown
        running = self.logic.work.controller
        self.initializeParameterNode()
        if running.active and running.runFolder is not None:
            self._parameterNode.currentRun = str(running.runFolder)

    # --- parameters ---

    def initializeParameterNode(self) -> None:
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode) -> None:
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._parameterNode = self.logic.work.parameters = parameterNode
        self.conductor.trainPanel.setParameterNode(parameterNode)
        if parameterNode is None:
            return
        told = parameterNode.outputFolder
        if not isPossible(told):
            parameterNode.outputFolder = defaultFolder()
            text = _("The folder for results {folder} is not on this computer; {other} is used.")
            self.logic.work.notes += [text.format(folder=told, other=parameterNode.outputFolder)] if told else []
            self.conductor.trainPanel.showState()
        self._guiTag = parameterNode.connectGui(self.ui)
        self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParameters)
        self._onParameters()
        self.conductor.settingsChanged()
        run, controller = self.logic.work.current(), self.logic.work.controller
        if run is not None and not controller.active and controller.runFolder != run:
            self.conductor.openRun(run)

    def _onParameters(self, caller=None, event=None) -> None:
        self.conductor.trainPanel.updateFromParameters()


class GenSegSlicerLogic(ScriptedLoadableModuleLogic):
    """The session in Slicer's scene and the processes that work for it. Usable without the widget."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self._begun: set[Path] = set()  # runs that were started here
        self.newScene()

    def newScene(self) -> None:
        """Forget everything about the scene that was closed."""
        self.session = Session(slicer.mrmlScene, self.loadScan)
        self.work = Work(self.session, backendOf, environmentOf, self._begun)

    def getParameterNode(self):
        return GenSegSlicerParameterNode(super().getParameterNode())

    def updateCurves(self, runFolder: Path) -> dict:
        """{group: chart node} of a run's curves so far."""
        controller = self.work.controller
        watched = controller.runFolder == runFolder
        progress = controller.progress if watched else RunProgress.fromFile(runFolder / "events.jsonl")
        return self.session.curves.update(progress.curves)

    def loadScan(self, path: Path):
        """The volume node of a file, or None. Numbered pictures are scans of their own, not slices of one volume."""
        try:
            return slicer.util.loadVolume(str(path), {"singleFile": True, "show": False})
        except RuntimeError:
            return None


def backendOf() -> Backend:
    """The training program with the chosen Python, or Slicer's own. Raises FileNotFoundError or StudyFaults."""
    source, chosen = Backend.locate(FOLDER), chosenPython()
    if chosen:
        return Backend(source, Backend.externalPython(Path(chosen)), external=True)
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
