"""The stand-in for slicer.app: one QApplication per process. Names as in qSlicer(Core)Application.h."""

import sys
import tempfile
from pathlib import Path

from PySide6 import QtCore, QtWidgets

from .FileManager import qSlicerIOManager
from .Ledger import ledger
from .QtObject import StandIn, slot
from .StandIns import stored, vtk


class qSlicerCommandOptions(StandIn, QtCore.QObject):
    cppName = "qSlicerCommandOptions"
    testingEnabled = stored(bool, False, "", False)
    runPythonAndExit = stored(bool)
    additionalModulePaths = stored("QStringList", None, "", False)


class qSlicerApplication(StandIn, QtWidgets.QApplication):
    """What modules use of the application object."""

    cppName = "qSlicerApplication"
    signatures = ("aboutToQuit()", "startupCompleted()", "renderPaused(bool)", "mrmlSceneChanged(vtkMRMLScene*)",
                  "urlReceived(QString)")  # fmt: skip

    def __init__(self):
        super().__init__(["GenSegSlicerTests"])
        self.setApplicationName("Slicer")
        self.setOrganizationName("GenSegSlicerTests")
        self._options = qSlicerCommandOptions()
        self.reset()

    def reset(self) -> None:
        """Fresh settings and folders, and nothing of the last test."""
        self._rigConnections = []
        self._testing = False
        self.mrml, self._layoutManager, self._moduleManager, self._ioManager = None, None, None, None
        self._folder = tempfile.TemporaryDirectory(prefix="rig")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.Format.IniFormat)
        QtCore.QSettings.setPath(QtCore.QSettings.Format.IniFormat, QtCore.QSettings.Scope.UserScope, self._folder.name)
        for name in ("home", "temporary", "cache"):
            (Path(self._folder.name) / name).mkdir()
        self._settings = QtCore.QSettings()
        self._settings.clear()
        while self.overrideCursor() is not None:
            self.restoreOverrideCursor()

    def start(self, mrml, layoutManager, moduleManager) -> None:
        self.mrml, self._layoutManager, self._moduleManager = mrml, layoutManager, moduleManager
        self._ioManager = qSlicerIOManager(mrml)

    def _path(self, name: str) -> str:
        return str(Path(self._folder.name) / name)

    slicerHome = QtCore.Property(str, lambda self: self._path("home"))
    temporaryPath = QtCore.Property(str, lambda self: self._path("temporary"))
    cachePath = QtCore.Property(str, lambda self: self._path("cache"))
    extensionsInstallPath = QtCore.Property(str, lambda self: self._path("home"))
    launcherExecutableFilePath = QtCore.Property(str, lambda self: self._path("home/Slicer"))
    isInstalled = QtCore.Property(bool, lambda self: False)
    majorVersion = QtCore.Property(int, lambda self: 5)
    minorVersion = QtCore.Property(int, lambda self: 10)
    revision = QtCore.Property(str, lambda self: "34045")
    repositoryRevision = QtCore.Property(str, lambda self: "34045")
    documentationBaseUrl = QtCore.Property(str, lambda self: "https://slicer.readthedocs.io/en/latest/")
    os = QtCore.Property(str, lambda self: {"linux": "linux", "darwin": "macosx"}.get(sys.platform, "win"))
    defaultScenePath = stored(str)

    @slot()
    def testingEnabled(self):
        return self._testing

    @slot()
    def processEvents(self):
        QtWidgets.QApplication.processEvents()

    @slot(str, str)
    def translate(self, _context, text):
        return text

    @slot()
    def commandOptions(self):
        return self._options

    @slot()
    def mrmlScene(self):
        return self.mrml.scene

    @slot()
    def applicationLogic(self):
        return self.mrml.applicationLogic

    @slot()
    def layoutManager(self):
        return self._layoutManager

    @slot()
    def moduleManager(self):
        return self._moduleManager

    @slot()
    def ioManager(self):
        return self._ioManager

    @slot()
    def coreIOManager(self):
        return self._ioManager

    @slot()
    def settings(self):
        return self._settings

    @slot()
    def userSettings(self):
        return self._settings

    @slot()
    def revisionUserSettings(self):
        return self._settings

    @slot()
    def startupEnvironment(self):
        return QtCore.QProcessEnvironment.systemEnvironment()

    @slot()
    def environment(self):
        return QtCore.QProcessEnvironment.systemEnvironment()

    @slot(str)
    def moduleDocumentationUrl(self, name):
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    @slot(bool)
    def setRenderPaused(self, _pause):
        return None

    @slot()
    def pauseRender(self):
        return None

    @slot()
    def resumeRender(self):
        return None

    @slot(vtk("vtkMRMLNode"), str, str, required=1)
    def openNodeModule(self, node, _role="", _context=""):
        ledger.dialogs.append(("openNodeModule", node))

    @slot()
    def restart(self):
        ledger.dialogs.append(("restart", None))

    @slot(str, required=0)
    def confirmRestart(self, reason=""):
        ledger.dialogs.append(("confirmRestart", reason))


_QUIET = ("propagateSizeHints", "QFontDatabase", "This plugin does not support")


def _onQtMessage(kind, context, text: str) -> None:
    """Qt's warnings (a layout that is already there, a timer in another thread …) are problems of the module."""
    if (
        kind == QtCore.QtMsgType.QtDebugMsg
        or kind == QtCore.QtMsgType.QtInfoMsg
        or any(part in text for part in _QUIET)
    ):
        return
    ledger.note(f"Qt: {text}")


def application() -> qSlicerApplication:
    """The process's application; another QApplication in the same process is an error of the tests."""
    found = QtWidgets.QApplication.instance()
    if found is None:
        QtCore.qInstallMessageHandler(_onQtMessage)
        found = qSlicerApplication()
    if not isinstance(found, qSlicerApplication):
        raise RuntimeError("a test made its own QApplication before the rig")
    return found
