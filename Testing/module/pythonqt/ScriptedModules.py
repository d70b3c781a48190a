"""Modules as Slicer keeps them: module objects, their manager, and how a scripted module is loaded from its file."""

import importlib.util
import sys
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .MrmlWidgets import qSlicerWidget
from .QtObject import StandIn, slot, wrap
from .Signals import emitDeclared
from .StandIns import stored


class qSlicerLoadableModule(StandIn, QtCore.QObject):
    """A module written in C++: a name and its real logic."""

    cppName = "qSlicerLoadableModule"
    name = stored(str, None, "", False)
    title = stored(str, None, "", False)

    def __init__(self, name: str, logic):
        super().__init__()
        self.setObjectName(name)
        self._logic = logic

    @slot()
    def logic(self):
        return self._logic

    @slot()
    def widgetRepresentation(self):
        raise NotImplementedError(f"the rig has no widget of the module {self.objectName()}")


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    cppName = "qSlicerScriptedLoadableModuleWidget"

    def __init__(self, module):
        super().__init__()
        QtWidgets.QVBoxLayout(self)
        self._module, self._self = module, None
        self.setPythonSource()

    moduleName = QtCore.Property(str, lambda self: self._module.moduleName())
    isEntered = stored(bool, False)

    def setPythonSource(self) -> None:
        name = f"{self._module.moduleName()}Widget"
        self._self = getattr(sys.modules[self._module.moduleName()], name)(wrap(self))
        setattr(slicer.modules, name, self._self)

    @slot()
    def self(self):
        return self._self

    @slot()
    def reload(self):
        self.setPythonSource()
        self._self.setup()

    @slot()
    def enter(self):
        self.isEntered = True
        if hasattr(self._self, "enter"):
            self._self.enter()

    @slot()
    def exit(self):
        self.isEntered = False
        if hasattr(self._self, "exit"):
            self._self.exit()


class qSlicerScriptedLoadableModule(StandIn, QtCore.QObject):
    cppName = "qSlicerScriptedLoadableModule"
    title = stored(str)
    categories = stored("QStringList")
    contributors = stored("QStringList")
    dependencies = stored("QStringList")
    associatedNodeTypes = stored("QStringList")
    helpText = stored(str)
    acknowledgementText = stored(str)
    icon = stored(QtGui.QIcon, QtGui.QIcon())
    hidden = stored(bool)
    index = stored(int, -1)
    widgetRepresentationCreationEnabled = stored(bool, True)

    def __init__(self, path: Path):
        super().__init__()
        self._path, self._widget, self._python = Path(path), None, None
        self.setObjectName(self._path.stem)

    path = QtCore.Property(str, lambda self: self._path.as_posix())
    name = QtCore.Property(str, lambda self: self._path.stem)

    def moduleName(self) -> str:
        return self._path.stem

    def load(self) -> None:
        """Runs the module's file and makes its module object, as at Slicer's start."""
        folder = str(self._path.parent)
        if folder not in sys.path:
            sys.path.insert(0, folder)
        spec = importlib.util.spec_from_file_location(self.moduleName(), self._path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.moduleName()] = module
        spec.loader.exec_module(module)
        self._python = getattr(module, self.moduleName())(wrap(self))
        setattr(slicer.modules, f"{self.moduleName()}Instance", self._python)

    @slot()
    def logic(self):
        return None

    @slot()
    def widgetRepresentation(self):
        if self._widget is None:
            self._widget = qSlicerScriptedLoadableModuleWidget(self)
            self._widget._self.setup()
            self._widget.changeScene(slicer.mrmlScene)
        return self._widget


class qSlicerModuleFactoryManager(StandIn, QtCore.QObject):
    cppName = "qSlicerModuleFactoryManager"

    def __init__(self, manager):
        super().__init__()
        self._manager = manager

    @slot()
    def loadedModuleNames(self):
        return list(self._manager._modules)

    @slot(str)
    def isLoaded(self, name):
        return name in self._manager._modules

    @slot(str)
    def loadedModule(self, name):
        return self._manager._modules.get(name)


class qSlicerModuleManager(StandIn, QtCore.QObject):
    cppName = "qSlicerModuleManager"
    signatures = ("moduleLoaded(QString)", "moduleAboutToBeUnloaded(QString)")

    def __init__(self):
        super().__init__()
        self._modules: dict[str, QtCore.QObject] = {}
        self._factory = qSlicerModuleFactoryManager(self)

    def add(self, name: str, module) -> None:
        self._modules[name] = module
        setattr(slicer.modules, name.lower(), wrap(module))
        emitDeclared(self, "moduleLoaded(QString)", name)

    def unload(self, name: str) -> None:
        emitDeclared(self, "moduleAboutToBeUnloaded(QString)", name)
        self._modules.pop(name)

    @slot()
    def factoryManager(self):
        return self._factory

    @slot()
    def modulesNames(self):
        return list(self._modules)

    @slot(str)
    def module(self, name):
        return self._modules.get(name)


CLASSES = (
    qSlicerLoadableModule,
    qSlicerScriptedLoadableModule,
    qSlicerScriptedLoadableModuleWidget,
    qSlicerModuleManager,
)
