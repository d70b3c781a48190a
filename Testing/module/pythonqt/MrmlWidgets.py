"""Stand-ins for the general qMRML widgets, over real nodes. Names as in Slicer's Libs/MRML/Widgets headers."""

from PySide6 import QtCore, QtGui, QtWidgets

from .CtkButtons import ctkCollapsibleButton
from .CtkInputs import ctkDoubleSpinBox, ctkSliderWidget
from .Observers import MODIFIED, SCENE_EVENTS, forget, observe
from .QtObject import StandIn, slot
from .Signals import emitDeclared
from .StandIns import parentOnly, stored, vtk


class SceneHolder:
    """Mixin: a scene, handed on by signal as in qMRMLWidget."""

    signatures = ("mrmlSceneChanged(vtkMRMLScene*)",)
    _scene = None

    def changeScene(self, scene) -> None:
        if scene is self._scene:
            return
        self._scene = scene
        self.sceneChanged()
        emitDeclared(self, "mrmlSceneChanged(vtkMRMLScene*)", scene)

    def sceneChanged(self) -> None:
        """For subclasses."""


class qMRMLWidget(SceneHolder, StandIn, QtWidgets.QWidget):
    cppName = "qMRMLWidget"
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)",)
    constructors = parentOnly()

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)

    @slot()
    def mrmlScene(self):
        return self._scene


class qSlicerWidget(SceneHolder, StandIn, QtWidgets.QWidget):
    """Unlike qMRMLWidget it does not show its scene to Python."""

    cppName = "qSlicerWidget"
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)",)
    constructors = parentOnly()

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)


class qMRMLCollapsibleButton(SceneHolder, ctkCollapsibleButton):
    cppName = "qMRMLCollapsibleButton"
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)",)

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)


class qMRMLSliderWidget(SceneHolder, ctkSliderWidget):
    cppName = "qMRMLSliderWidget"
    signatures = ()
    quantity = stored(str)

    def changeScene(self, scene) -> None:
        self._scene = scene

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)


class qMRMLSpinBox(ctkDoubleSpinBox):
    cppName = "qMRMLSpinBox"
    signatures = ()
    quantity = stored(str)

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self._scene = scene


class qMRMLNodeComboBox(SceneHolder, StandIn, QtWidgets.QWidget):
    """Lists the scene's nodes of some types. Without a scene it holds nothing, as in Slicer."""

    cppName = "qMRMLNodeComboBox"
    signatures = (
        "currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)", "currentNodeIDChanged(QString)",
        "nodeActivated(vtkMRMLNode*)", "nodeAdded(vtkMRMLNode*)", "nodeAddedByUser(vtkMRMLNode*)",
        "nodeAboutToBeRemoved(vtkMRMLNode*)", "currentNodeRenamed(QString)", "nodeAboutToBeEdited(vtkMRMLNode*)",
    )  # fmt: skip
    constructors = parentOnly()

    nodeTypes = stored("QStringList", None, "refresh")
    showHidden = stored(bool, False, "refresh")
    showChildNodeTypes = stored(bool, True, "refresh")
    hideChildNodeTypes = stored("QStringList", None, "refresh")
    noneEnabled = stored(bool, False, "refresh")
    noneDisplay = stored(str, "None", "refresh")
    baseName = stored(str)
    addEnabled = stored(bool, True)
    removeEnabled = stored(bool, True)
    editEnabled = stored(bool, False)
    renameEnabled = stored(bool, False)
    selectNodeUponCreation = stored(bool, True)
    interactionNodeSingletonTag = stored(str)
    sizeAdjustPolicy = stored(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox(self)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._attributes: list[tuple[str, str, str | None]] = []
        self._nodes: list = []
        self._node, self._requested = None, None
        self._tags: list = []
        self._combo.activated.connect(self._onActivated)
        self.setEnabled(False)

    def sceneChanged(self) -> None:
        forget(self._tags)
        self._tags = (
            [] if self._scene is None else observe(self, self._scene, SCENE_EVENTS, lambda _caller: self.refresh())
        )
        self.refresh()
        requested, self._requested = self._requested, None
        if self._scene is not None and requested in self._nodes:
            self._choose(requested)
        elif self._scene is not None and self._node is None and self._nodes and not self.noneEnabled:
            self._choose(self._nodes[0])
        self.setEnabled(self._scene is not None)

    def changeScene(self, scene) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.sceneChanged()

    def _accepts(self, node) -> bool:
        types_ = self.nodeTypes
        if node.GetHideFromEditors() and not self.showHidden:
            return False
        exact = node.GetClassName() in types_
        if not exact and not (self.showChildNodeTypes and any(node.IsA(kind) for kind in types_)):
            return False
        if not exact and any(node.IsA(kind) for kind in self.hideChildNodeTypes):
            return False
        for kind, name, value in self._attributes:
            if node.IsA(kind) and (node.GetAttribute(name) is None or value not in (None, node.GetAttribute(name))):
                return False
        return True

    def refresh(self) -> None:
        """Takes the nodes from the scene; keeps the current one where it still is."""
        if self._scene is not None and self._scene.IsBatchProcessing():
            return
        before, known = self._node, self._nodes
        nodes = (
            [] if self._scene is None else [self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())]
        )
        self._nodes = [node for node in nodes if self._accepts(node)]
        for node in self._nodes:
            if node not in known:
                observe(self, node, MODIFIED, lambda _caller: self._rename())
                emitDeclared(self, "nodeAdded(vtkMRMLNode*)", node)
        if self._node is not None and self._node not in self._nodes:
            self._node = self._successor(known.index(self._node))
        elif self._node is None and not known and self._nodes and not self._hasOtherEntries():
            self._node = self._nodes[0]  # Qt selects the first entry of an empty combo box
        self._rename()
        if self._node is not before:
            self._announce()

    def _hasOtherEntries(self) -> bool:
        return self.noneEnabled or self.addEnabled or self.removeEnabled or self.editEnabled or self.renameEnabled

    def _successor(self, row: int):
        """What Qt selects when the entry in `row` goes: the entry that moves to its place, else the last node."""
        if not self._nodes:
            return None
        return self._nodes[min(row, len(self._nodes) - 1)]

    def _rename(self) -> None:
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay)
        self._combo.addItems([node.GetName() or "" for node in self._nodes])
        index = self._nodes.index(self._node) if self._node in self._nodes else -1
        self._combo.setCurrentIndex(index + 1 if self.noneEnabled else index)
        self._combo.blockSignals(blocked)

    def _announce(self) -> None:
        emitDeclared(self, "currentNodeChanged(vtkMRMLNode*)", self._node)
        emitDeclared(self, "currentNodeChanged(bool)", self._node is not None)
        emitDeclared(self, "currentNodeIDChanged(QString)", self._node.GetID() if self._node is not None else "")

    def _onActivated(self, index: int) -> None:
        index -= 1 if self.noneEnabled else 0
        self._choose(self._nodes[index] if index >= 0 else None)
        emitDeclared(self, "nodeActivated(vtkMRMLNode*)", self._node)

    def _choose(self, node) -> None:
        node = node if node in self._nodes else None
        if node is self._node:
            return
        self._node = node
        self._rename()
        self._announce()

    def _request(self, node) -> None:
        """setCurrentNode before the scene is known: remembered until then."""
        if self._scene is None:
            self._requested = node
        else:
            self._choose(node)

    def _chooseById(self, identifier: str) -> None:
        self._choose(self._scene.GetNodeByID(identifier) if self._scene is not None and identifier else None)

    currentNodeID = QtCore.Property(
        str,
        lambda self: self._node.GetID() if self._node is not None else "",
        lambda self, value: self._chooseById(value),
    )

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)

    @slot()
    def mrmlScene(self):
        return self._scene

    @slot(str)
    @slot(vtk("vtkMRMLNode"))
    def setCurrentNode(self, node):
        self._chooseById(node) if isinstance(node, str) else self._request(node)

    @slot(str)
    def setCurrentNodeID(self, identifier):
        self._chooseById(identifier)

    @slot(int)
    def setCurrentNodeIndex(self, index):
        self._choose(self._nodes[index] if 0 <= index < len(self._nodes) else None)

    @slot()
    def currentNode(self):
        return self._node

    @slot()
    def nodeCount(self):
        return len(self._nodes)

    @slot(int)
    def nodeFromIndex(self, index):
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    @slot(str)
    @slot()
    def addNode(self, kind=None):
        kind = kind or (self.nodeTypes or [None])[0]
        if kind is None or kind not in self.nodeTypes or self._scene is None:
            return None
        node = self._scene.AddNewNodeByClass(kind, self._scene.GenerateUniqueName(self.baseName or kind[7:-4]))
        for _type, name, value in self._attributes:
            node.SetAttribute(name, value or "")
        self.refresh()
        if self.selectNodeUponCreation:
            self._choose(node)
        emitDeclared(self, "nodeAddedByUser(vtkMRMLNode*)", node)
        return node

    @slot()
    def removeCurrentNode(self):
        if self._node is not None:
            emitDeclared(self, "nodeAboutToBeRemoved(vtkMRMLNode*)", self._node)
            self._scene.RemoveNode(self._node)

    @slot(str, str, object, required=2)
    def addAttribute(self, kind, name, value=None):
        self._attributes.append((kind, name, None if value is None else str(value)))
        self.refresh()

    @slot(str, str)
    def removeAttribute(self, kind, name):
        self._attributes = [entry for entry in self._attributes if entry[:2] != (kind, name)]
        self.refresh()


class qMRMLTableView(SceneHolder, StandIn, QtWidgets.QTableView):
    cppName = "qMRMLTableView"
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)", "selectionChanged()")
    constructors = parentOnly()
    transposed = stored(bool, False, "fill")
    firstRowLocked = stored(bool, False, "fill")
    firstColumnLocked = stored(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._table, self._viewNode, self._tags = None, None, []

    def selectionChanged(self, selected, deselected):
        super().selectionChanged(selected, deselected)
        emitDeclared(self, "selectionChanged()")

    def fill(self) -> None:
        table = self._table.GetTable() if self._table is not None else None
        rows, columns = (table.GetNumberOfRows(), table.GetNumberOfColumns()) if table is not None else (0, 0)
        model = QtGui.QStandardItemModel(rows, columns, self)
        for column in range(columns):
            model.setHorizontalHeaderItem(column, QtGui.QStandardItem(table.GetColumnName(column)))
            for row in range(rows):
                model.setItem(row, column, QtGui.QStandardItem(table.GetValue(row, column).ToString()))
        self.setModel(model)

    def _setTable(self, node) -> None:
        forget(self._tags)
        self._table = node
        self._tags = [] if node is None else observe(self, node, MODIFIED, lambda _caller: self.fill())
        self.fill()

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)

    @slot()
    def mrmlScene(self):
        return self._scene

    @slot(vtk("vtkMRMLNode"))
    def setMRMLTableNode(self, node):
        self._setTable(node if node is None or node.IsA("vtkMRMLTableNode") else None)

    @slot()
    def mrmlTableNode(self):
        return self._table

    @slot(vtk("vtkMRMLTableViewNode"))
    def setMRMLTableViewNode(self, node):
        self._viewNode = node
        self._setTable(node.GetTableNode() if node is not None else None)

    @slot()
    def mrmlTableViewNode(self):
        return self._viewNode


CLASSES = (
    qMRMLWidget, qSlicerWidget, qMRMLCollapsibleButton, qMRMLSliderWidget, qMRMLSpinBox, qMRMLNodeComboBox,
    qMRMLTableView,
)  # fmt: skip
