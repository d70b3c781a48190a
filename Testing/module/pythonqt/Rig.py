"""The rig: Slicer without its windows, for tests of the module's widget. See `slicerRig` in fixture.py."""

import sys
import time
import traceback
import types
from pathlib import Path
from typing import Any

import slicer
from mrml import Mrml
from PySide6 import QtCore, QtGui, QtTest, QtWidgets
from shiboken6 import Shiboken

from . import (
    CtkButtons,
    CtkInputs,
    MrmlWidgets,
    Observers,
    QtModule,
    ScriptedModules,
    SegmentWidgets,
    Signals,
    UiLoader,
    ViewPictures,
    ViewWidgets,
)
from .Application import application
from .Dialogs import Answer, Shown
from .Ledger import ledger
from .QtObject import wrap, wrapperClass
from .SlicerModules import ctkModule, libraryModules, replaceUtilities, translation
from .Values import isWrapper, unwrap

_LOGICS = {
    "segmentations": "segmentationsLogic", "volumes": "volumesLogic", "terminologies": "terminologiesLogic",
    "colors": "colorLogic",
}  # fmt: skip
_OTHER_LOGICS = {"plots": "vtkSlicerPlotsLogic", "tables": "vtkSlicerTablesLogic"}


class Rig:
    """One Slicer session. `scene` is real; the rest are stand-ins; `problems` must be empty at the end."""

    def __init__(self, monkeypatch):
        self._patch = monkeypatch
        self._modules: list[str] = []
        self._loaded: set[str] = set()
        self._folders: list[str] = []
        self._path = list(sys.path)
        ledger.clear()
        monkeypatch.setattr(sys, "excepthook", _noteUncaught)
        self.qtApp = application()
        self.qtApp.reset()
        self._palette = QtGui.QPalette(self.qtApp.palette())
        self.mrml = Mrml()
        self.scene = self.mrml.scene
        self._installModules()
        manager = ScriptedModules.qSlicerModuleManager()
        self._window = QtWidgets.QMainWindow()
        self._window.setObjectName("qSlicerMainWindow")
        self._window.statusBar()
        self.qtApp.start(self.mrml, ViewWidgets.qSlicerLayoutManager(self.scene, self.mrml.applicationLogic), manager)
        self.app = wrap(self.qtApp)
        self._set(slicer, "app", self.app)
        self._addCoreModules(manager)
        self.manager = manager
        self.pipCalls = replaceUtilities(self._patch)

    # --- what is installed ---------------------------------------------------------------------------------------

    def _set(self, owner, name: str, value) -> None:
        self._patch.setattr(owner, name, value, raising=False)

    def provide(self, name: str, module: Any) -> None:
        """Makes `import name` find `module` (PyTorchUtils, slicer.packaging …) until the test ends."""
        self._patch.setitem(sys.modules, name, module)
        if name.startswith("slicer."):
            self._set(slicer, name.split(".")[1], module)

    def _installModules(self) -> None:
        qt = QtModule.QtModule()
        qt.add(UiLoader.QUiLoader)
        classes = CtkButtons.CLASSES + CtkInputs.CLASSES
        mrmlClasses = MrmlWidgets.CLASSES + SegmentWidgets.CLASSES + ViewWidgets.CLASSES + ScriptedModules.CLASSES
        UiLoader.register(classes + mrmlClasses)
        self.provide("qt", qt)
        self.provide("ctk", ctkModule(classes))
        for made in mrmlClasses:
            self._set(slicer, made.cppName, wrapperClass(made))
        self._set(slicer, "qSlicerApplication", wrapperClass(type(self.qtApp)))
        self._set(slicer, "mrmlScene", self.scene)
        self._set(slicer, "modules", types.SimpleNamespace())
        self._set(slicer, "selfTests", {})
        for name, module in libraryModules().items():
            self.provide(name, module)

    def _addCoreModules(self, manager) -> None:
        logics = {name: getattr(self.mrml, attribute) for name, attribute in _LOGICS.items()}
        logics["subjecthierarchy"] = self.mrml.app.subject_hierarchy_logic
        for name, className in _OTHER_LOGICS.items():
            logic = getattr(slicer, className)()
            logic.SetMRMLApplicationLogic(self.mrml.applicationLogic)
            logic.SetMRMLScene(self.scene)
            logics[name] = logic
        self._coreModules = [ScriptedModules.qSlicerLoadableModule(name, logic) for name, logic in logics.items()]
        for module in self._coreModules:
            manager.add(module.objectName(), module)

    # --- the module ----------------------------------------------------------------------------------------------

    def loadModule(self, path: str | Path):
        """Loads a scripted module's file as Slicer does at its start → the wrapped module object."""
        path = Path(path)
        path = path / f"{path.name}.py" if path.is_dir() else path
        module = ScriptedModules.qSlicerScriptedLoadableModule(path)
        self._modules.append(path.stem)
        self._loaded.add(path.stem)
        self._folders.append(str(path.parent))
        self.manager.add(path.stem, module)
        module.load()
        Signals.emitDeclared(self.qtApp, "startupCompleted()")
        self.pump()
        return wrap(module)

    def openModule(self, path: str | Path, enter: bool = True):
        """Loads the module where needed, builds its widget with setup() and enters it → the Python widget object."""
        path = Path(path)
        name = path.name if path.is_dir() else path.stem
        module = self.manager._modules.get(name) or unwrap(self.loadModule(path))
        panel = module.widgetRepresentation()
        panel.resize(520, 900)
        panel.show()
        self.panel = panel
        if enter:
            panel.enter()
        self.pump()
        return panel._self

    def reload(self, name: str):
        """The Reload button → the new widget object."""
        slicer.util.reloadScriptedModule(name)
        self.pump()
        return self.manager._modules[name].widgetRepresentation()._self

    def leave(self) -> None:
        """The user goes to another module."""
        self.panel.exit()

    def quit(self) -> None:
        """Slicer is closed: aboutToQuit, then each module is unloaded and its widget's cleanup() runs."""
        Signals.emitDeclared(self.qtApp, "aboutToQuit()")
        for name in list(self.manager._modules):
            self.manager.unload(name)
        self._modules.clear()
        self.pump()

    # --- what a user does ----------------------------------------------------------------------------------------

    def click(self, widget, force: bool = False) -> None:
        """A mouse click on a button, refused where a user could not do it (hidden, disabled)."""
        made = unwrap(widget)
        assert force or made.isEnabled(), f"{made.objectName() or made.text()} is disabled"
        hidden = [w for w in _upwards(made) if w.isHidden() and w.parentWidget() is not None]
        assert force or not hidden, (
            f"{made.objectName() or made.text()} is hidden by {[w.objectName() for w in hidden]}"
        )
        made.click()
        self.pump()

    def select(self, widget, text: str) -> None:
        """Picks an entry of a combo box, or a node by its name in a node combo box, as a user does."""
        made = unwrap(widget)
        combo = getattr(made, "_combo", made)
        index = combo.findText(text)
        assert made.isEnabled() and index >= 0, (
            f"{made.objectName()} has no {text!r}: {[combo.itemText(i) for i in range(combo.count())]}"
        )
        combo.setCurrentIndex(index)
        combo.activated.emit(index)
        self.pump()

    def type(self, widget, text: str) -> None:
        """Types into the widget's text field (line edits, path edits, spin boxes)."""
        made = unwrap(widget)
        field = made._combo.lineEdit() if hasattr(made, "_combo") else made
        assert field.isEnabled(), f"{made.objectName()} is disabled"
        field.selectAll()
        QtTest.QTest.keyClicks(field, text)
        QtTest.QTest.keyClick(field, QtCore.Qt.Key.Key_Return)
        self.pump()

    def answer(self, value, contains: str = "") -> None:
        """Queues what the user does in the next dialog: a button's name, a path, or a function of the dialog."""
        ledger.answers.append(Answer(value, contains))

    @property
    def dialogs(self) -> list[Shown]:
        """Every dialog that came up, in order."""
        return ledger.dialogs

    def pump(self, seconds: float = 0.0, until=None) -> bool:
        """Lets Qt work: timers, deferred deletion. With `until`, stops once it is true; returns whether it was."""
        end = time.monotonic() + seconds
        while True:
            QtWidgets.QApplication.processEvents()
            QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete)
            if until is not None and until():
                return True
            if time.monotonic() >= end:
                return until is None
            time.sleep(0.005)

    def wait(self, until, seconds: float = 30.0) -> None:
        """Pumps until the condition holds; fails after `seconds`."""
        assert self.pump(seconds, until), f"not within {seconds} s"

    def screenshot(self, path: str | Path, widget=None, size: tuple[int, int] | None = None) -> Path:
        """A picture of a widget as PNG: by default the module's whole panel, as if its column were that high."""
        made = self.panel if widget is None else unwrap(widget) if isWrapper(widget) else widget
        if size is not None:
            made.resize(*size)
        elif made is self.panel:
            self.pump()
            height = made.heightForWidth(made.width()) if made.hasHeightForWidth() else -1
            made.resize(made.width(), max(height, made.sizeHint().height()))
        self.pump()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        assert made.grab().save(str(path)), f"{path} cannot be written"
        return path

    def picture(self, view: str, path: str | Path, size: tuple[int, int] = (400, 400), fit: bool = False) -> Path:
        """What a view shows, as PNG: a slice view by its name ("Red"), "3D", or "Plot" (the chart on view)."""
        manager, logic = self.qtApp._layoutManager, self.mrml.applicationLogic
        self.pump()
        if view == "3D":
            return ViewPictures.threeDPicture(manager.threeDWidget(0), logic, Path(path), size)
        if view == "Plot":
            return ViewPictures.plotPicture(manager.plotWidget(0)._node.GetPlotChartNode(), Path(path), size)
        return ViewPictures.slicePicture(manager.sliceWidget(view), logic, Path(path), size, fit)

    # --- the scene -----------------------------------------------------------------------------------------------

    def closeScene(self) -> None:
        self.scene.Clear(0)
        self.pump()

    def saveScene(self, folder: Path) -> Path:
        """Writes scene.mrml and its data → the file."""
        self.scene.InvokeEvent(self.scene.StartSaveEvent)
        path = self.mrml.save(Path(folder))
        self.scene.InvokeEvent(self.scene.EndSaveEvent)
        return path

    def openScene(self, path: Path) -> None:
        self.mrml.open(Path(path))
        self.pump()

    # --- state of the session ------------------------------------------------------------------------------------

    def removeMainWindow(self) -> None:
        """Slicer was started with --no-main-window: no window, no layout manager, no message boxes but questions."""
        Shiboken.delete(self._window)
        self.qtApp._layoutManager.close()
        self.qtApp._layoutManager = None

    def setTranslation(self, function) -> None:
        """What `_()` returns for a text from now on, to see that every text goes through it."""
        translation["function"] = function

    def setTesting(self, on: bool = True) -> None:
        """Slicer started with --testing."""
        self.qtApp._testing = on

    def setDark(self, on: bool = True) -> None:
        """A dark palette, as Slicer's dark style has; tells widgets of the change."""
        palette = QtGui.QPalette(QtGui.QColor(53, 53, 53) if on else QtGui.QColor(239, 239, 239))
        self.qtApp.setPalette(palette)
        self.pump()

    @property
    def problems(self) -> list[str]:
        """Errors in slots, refused connections, unexpected dialogs so far. Must be empty at the end of a test."""
        return ledger.problems

    def takeProblem(self, part: str) -> str:
        """Removes the problem that the test expected."""
        return ledger.take(part)

    def close(self) -> list[str]:
        """Takes everything down → the problems left."""
        try:
            if self._modules:
                self.quit()
        except Exception:
            ledger.exception("quitting")
        QtModule.stopSingleShots()
        Observers.forgetAll()
        if self.qtApp._layoutManager is not None:
            self.qtApp._layoutManager.close()
        for widget in QtWidgets.QApplication.topLevelWidgets():
            widget.close()
            widget.deleteLater()
        self.pump()
        Signals.forgetForeign()
        self.scene.Clear(1)
        if ledger.answers:
            ledger.note(f"the test gave answers that no dialog asked for: {ledger.answers}")
        translation["function"] = lambda text: text
        self.qtApp.setPalette(self._palette)
        self._forgetImports()
        sys.path[:] = self._path
        return list(ledger.problems)

    def _forgetImports(self) -> None:
        """Modules that hold this session's `qt` are loaded anew by the next; pure ones stay."""
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None) or ""
            if name.partition(".")[0] == "pythonqt" or not any(file.startswith(folder) for folder in self._folders):
                continue
            if name in self._loaded or ".Gui" in name or "qt" in vars(module) or "ctk" in vars(module):
                sys.modules.pop(name)


def _noteUncaught(kind, error, trace) -> None:
    """Errors that PySide prints and drops: in overridden methods and property setters."""
    ledger.note("uncaught: " + "".join(traceback.format_exception(kind, error, trace)))


def _upwards(widget):
    while widget is not None:
        yield widget
        widget = widget.parentWidget()
