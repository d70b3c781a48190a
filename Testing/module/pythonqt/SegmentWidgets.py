"""Stand-ins for the segmentation widgets, over real nodes. Names as in Modules/Loadable/Segmentations/Widgets."""

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from .Ledger import ledger
from .MrmlWidgets import qMRMLNodeComboBox, qMRMLWidget
from .Observers import MODIFIED, forget, observe
from .QtObject import StandIn, slot
from .Signals import emitDeclared
from .StandIns import parentOnly, stored, vtk

EFFECTS = ("Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices", "Threshold", "Margin",
           "Hollow", "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume")  # fmt: skip
_SEGMENT_EVENTS = (
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.SegmentModified,
)


class qMRMLSegmentsTableView(qMRMLWidget):
    cppName = "qMRMLSegmentsTableView"
    signatures = ("selectionChanged(QItemSelection,QItemSelection)", "segmentAboutToBeModified(QString)")
    selectionMode = stored(int, 3)
    headerVisible = stored(bool, True)
    visibilityColumnVisible = stored(bool, True)
    colorColumnVisible = stored(bool, True)
    opacityColumnVisible = stored(bool, True)
    statusColumnVisible = stored(bool, False)
    layerColumnVisible = stored(bool, False)
    readOnly = stored(bool)
    filterBarVisible = stored(bool)
    textFilter = stored(str)
    jumpToSelectedSegmentEnabled = stored(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        layout = QtWidgets.QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self._table = QtWidgets.QTableWidget(0, 2, self)
        self._table.setHorizontalHeaderLabels(["Color", "Name"])
        self._table.horizontalHeader().setStretchLastSection(True)
        self._table.setSelectionBehavior(QtWidgets.QTableWidget.SelectionBehavior.SelectRows)
        self._table.verticalHeader().hide()
        layout.addWidget(self._table)
        self._segmentation, self._tags, self._ids = None, [], []
        self._table.selectionModel().selectionChanged.connect(
            lambda one, two: emitDeclared(self, "selectionChanged(QItemSelection,QItemSelection)", one, two)
        )

    segmentCount = QtCore.Property(int, lambda self: len(self._ids))

    def fill(self) -> None:
        inside = self._segmentation.GetSegmentation() if self._segmentation is not None else None
        self._ids = (
            [inside.GetNthSegmentID(i) for i in range(inside.GetNumberOfSegments())] if inside is not None else []
        )
        self._table.setRowCount(len(self._ids))
        for row, identifier in enumerate(self._ids):
            segment = inside.GetSegment(identifier)
            color = QtWidgets.QTableWidgetItem()
            color.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            self._table.setItem(row, 0, color)
            self._table.setItem(row, 1, QtWidgets.QTableWidgetItem(segment.GetName()))

    @slot(vtk("vtkMRMLNode"))
    def setSegmentationNode(self, node):
        node = node if node is not None and node.IsA("vtkMRMLSegmentationNode") else None
        forget(self._tags)
        self._segmentation = node
        self._tags = [] if node is None else observe(self, node, _SEGMENT_EVENTS, lambda _caller: self.fill())
        self.fill()

    @slot()
    def segmentationNode(self):
        return self._segmentation

    @slot()
    def selectedSegmentIDs(self):
        rows = sorted({index.row() for index in self._table.selectedIndexes()})
        return [self._ids[row] for row in rows]

    @slot(list[str])
    def setSelectedSegmentIDs(self, identifiers):
        self._table.clearSelection()
        for row, identifier in enumerate(self._ids):
            if identifier in identifiers:
                self._table.selectRow(row)

    @slot()
    def clearSelection(self):
        self._table.clearSelection()

    @slot(str)
    def rowForSegmentID(self, identifier):
        return self._ids.index(identifier) if identifier in self._ids else -1

    @slot(int)
    def segmentIDForRow(self, row):
        return self._ids[row] if 0 <= row < len(self._ids) else ""

    @slot(bool)
    def setReadOnly(self, value):
        self.readOnly = value


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Keeps its state in the real vtkMRMLSegmentEditorNode; drawing is done by the test in the real segmentation."""

    cppName = "qMRMLSegmentEditorWidget"
    signatures = (
        "currentSegmentIDChanged(QString)", "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)",
        "masterVolumeNodeChanged(vtkMRMLVolumeNode*)", "segmentationNodeChanged(vtkMRMLSegmentationNode*)",
    )  # fmt: skip
    segmentationNodeSelectorVisible = stored(bool, True, "layOut")
    sourceVolumeNodeSelectorVisible = stored(bool, True, "layOut")
    maskingSectionVisible = stored(bool, True)
    specifyGeometryButtonVisible = stored(bool, True)
    show3DButtonVisible = stored(bool, True, "layOut")
    addRemoveSegmentButtonsVisible = stored(bool, True, "layOut")
    switchToSegmentationsButtonVisible = stored(bool, True)
    autoShowSourceVolumeNode = stored(bool, True)
    undoEnabled = stored(bool, True)
    maximumNumberOfUndoStates = stored(int, 10)
    readOnly = stored(bool, False, "layOut")
    effectButtonStyle = stored(int, 3)
    effectColumnCount = stored(int, 2)
    unorderedEffectsVisible = stored(bool, True)
    defaultTerminologyEntrySettingsKey = stored(str)
    defaultTerminologyEntry = stored(str)
    jumpToSelectedSegmentEnabled = stored(bool)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._editorNode, self._tags = None, []
        self._segmentation, self._source, self._segmentId = None, None, ""
        self._order: list[str] = []
        self._segmentationBox, self._sourceBox = qMRMLNodeComboBox(self), qMRMLNodeComboBox(self)
        self._segmentationBox.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._sourceBox.nodeTypes = ["vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode"]
        self._buttons = QtWidgets.QWidget(self)
        row = QtWidgets.QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        self._add, self._remove, self._show3D = (QtWidgets.QPushButton(text) for text in ("Add", "Remove", "Show 3D"))
        for button in (self._add, self._remove, self._show3D):
            row.addWidget(button)
        self._view = qMRMLSegmentsTableView(self)
        self._view._table.selectionModel().selectionChanged.connect(lambda *_: self._onSelection())
        self._effects = QtWidgets.QWidget(self)
        grid = QtWidgets.QGridLayout(self._effects)
        grid.setContentsMargins(0, 0, 0, 0)
        for i, name in enumerate(EFFECTS):
            grid.addWidget(QtWidgets.QToolButton(text=name), i // 4, i % 4)
        layout = QtWidgets.QFormLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addRow("Segmentation:", self._segmentationBox)
        layout.addRow("Source volume:", self._sourceBox)
        for widget in (self._buttons, self._view, self._effects):
            layout.addRow(widget)

    def layOut(self) -> None:
        layout = self.layout()
        for widget, shown in (
            (self._segmentationBox, self.segmentationNodeSelectorVisible),
            (self._sourceBox, self.sourceVolumeNodeSelectorVisible),
        ):
            widget.setVisible(shown)
            layout.labelForField(widget).setVisible(shown)
        self._add.setVisible(self.addRemoveSegmentButtonsVisible)
        self._remove.setVisible(self.addRemoveSegmentButtonsVisible)
        self._show3D.setVisible(self.show3DButtonVisible)
        for widget in (self._buttons, self._effects):
            widget.setEnabled(not self.readOnly)

    def sceneChanged(self) -> None:
        for widget in (self._segmentationBox, self._sourceBox, self._view):
            widget.changeScene(self._scene)
        if self._scene is None:
            self._setEditorNode(None)

    def _setEditorNode(self, node) -> None:
        forget(self._tags)
        self._editorNode = node
        self._tags = [] if node is None else observe(self, node, MODIFIED, lambda _caller: self._follow())
        self._follow()

    def _follow(self) -> None:
        """Takes the state from the editor node and tells what changed."""
        node = self._editorNode
        if node is not None and node.GetScene() is None:
            node = None
        segmentation = node.GetSegmentationNode() if node is not None else None
        if segmentation is not self._segmentation:
            self._segmentation = segmentation
            self._view.setSegmentationNode(segmentation)
            self._segmentationBox._request(segmentation)
            if segmentation is not None:
                segmentation.CreateDefaultDisplayNodes()
                role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
                node.SetAndObserveSourceVolumeNode(segmentation.GetNodeReference(role))
                if segmentation.GetSegmentation().GetNumberOfSegments() > 0 and not node.GetSelectedSegmentID():
                    node.SetSelectedSegmentID(segmentation.GetSegmentation().GetNthSegmentID(0))
            emitDeclared(self, "segmentationNodeChanged(vtkMRMLSegmentationNode*)", segmentation)
        source = node.GetSourceVolumeNode() if node is not None and segmentation is not None else None
        if source is not self._source:
            self._source = source
            self._sourceBox._request(source)
            emitDeclared(self, "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)", source)
            emitDeclared(self, "masterVolumeNodeChanged(vtkMRMLVolumeNode*)", source)
        identifier = (node.GetSelectedSegmentID() or "") if node is not None else ""
        if identifier != self._segmentId:
            self._segmentId = identifier
            self._view.setSelectedSegmentIDs([identifier])
            emitDeclared(self, "currentSegmentIDChanged(QString)", identifier)

    def _onSelection(self) -> None:
        chosen = self._view.selectedSegmentIDs()
        if chosen and self._editorNode is not None:
            self._editorNode.SetSelectedSegmentID(chosen[0])

    def _needsNode(self, what: str, value) -> bool:
        """Without its own node the editor forgets what it is given; taking something away is harmless."""
        if self._editorNode is None and value:
            ledger.note(f"qMRMLSegmentEditorWidget::{what}: Invalid segment editor parameter set node")
        return self._editorNode is None

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self.changeScene(scene)

    @slot(vtk("vtkMRMLSegmentEditorNode"))
    def setMRMLSegmentEditorNode(self, node):
        self._setEditorNode(node)

    @slot()
    def mrmlSegmentEditorNode(self):
        return self._editorNode

    @slot(vtk("vtkMRMLNode"))
    def setSegmentationNode(self, node):
        if (
            not self._needsNode("setSegmentationNode", node is not None)
            and node is not self._editorNode.GetSegmentationNode()
        ):
            self._editorNode.SetAndObserveSegmentationNode(node)
            self._editorNode.SetActiveEffectName("")

    @slot()
    def segmentationNode(self):
        return self._segmentation

    @slot()
    def segmentationNodeID(self):
        return self._segmentation.GetID() if self._segmentation is not None else ""

    @slot(vtk("vtkMRMLNode"))
    def setSourceVolumeNode(self, node):
        if self._needsNode("setSourceVolumeNode", node is not None):
            return
        if self._segmentation is None and node is not None:
            ledger.note("qMRMLSegmentEditorWidget::setSourceVolumeNode: need to set the segmentation node first")
            return
        self._editorNode.SetAndObserveSourceVolumeNode(node)

    @slot()
    def sourceVolumeNode(self):
        return self._source

    @slot()
    def sourceVolumeNodeID(self):
        return self._source.GetID() if self._source is not None else ""

    @slot(str)
    def setCurrentSegmentID(self, identifier):
        if not self._needsNode("setCurrentSegmentID", identifier):
            self._editorNode.SetSelectedSegmentID(identifier)

    @slot()
    def currentSegmentID(self):
        return self._segmentId

    @slot(str)
    def setActiveEffectByName(self, name):
        if name and name not in EFFECTS:
            ledger.note(f"qMRMLSegmentEditorWidget: there is no effect {name!r}")
        elif not self._needsNode("setActiveEffectByName", name):
            self._editorNode.SetActiveEffectName(name)

    @slot(vtk("vtkObject"))
    def setActiveEffect(self, effect):
        if effect is not None:
            ledger.note("the rig has no effect objects: setActiveEffect takes None only")
        elif self._editorNode is not None:
            self._editorNode.SetActiveEffectName("")

    @slot()
    def availableEffectNames(self):
        return list(EFFECTS)

    @slot(list[str])
    def setEffectNameOrder(self, names):
        self._order = names

    @slot()
    def effectNameOrder(self):
        return self._order

    @slot()
    def updateWidgetFromMRML(self):
        self._follow()


def _nothing(name: str, *types_, required: int | None = None):
    """A public slot that has no effect here."""

    def call(self, *_arguments):
        return None

    call.__name__ = name
    return slot(*types_, required=required)(call)


for _name, _types in {
    "setupViewObservations": (), "removeViewObservations": (), "installKeyboardShortcuts": (QtWidgets.QWidget | None,),
    "uninstallKeyboardShortcuts": (), "undo": (), "redo": (), "saveStateForUndo": (), "updateEffectList": (),
    "rotateSliceViewsToSegmentation": (), "hideLabelLayer": (), "selectNextSegment": (), "selectPreviousSegment": (),
    "jumpSlices": (), "turnOffLightboxes": (), "showSourceVolumeInSliceViewers": (bool, bool),
}.items():  # fmt: skip
    setattr(qMRMLSegmentEditorWidget, _name, _nothing(_name, *_types, required=0))
for _name, _type in {
    "segmentationNodeSelectorVisible": bool, "sourceVolumeNodeSelectorVisible": bool, "maskingSectionVisible": bool,
    "specifyGeometryButtonVisible": bool, "show3DButtonVisible": bool, "addRemoveSegmentButtonsVisible": bool,
    "switchToSegmentationsButtonVisible": bool, "autoShowSourceVolumeNode": bool, "undoEnabled": bool,
    "maximumNumberOfUndoStates": int, "readOnly": bool, "effectButtonStyle": int, "effectColumnCount": int,
    "jumpToSelectedSegmentEnabled": bool,
}.items():  # fmt: skip

    def _setter(self, value, _name=_name):
        setattr(self, _name, value)

    _setter.__name__ = f"set{_name[0].upper()}{_name[1:]}"
    setattr(qMRMLSegmentEditorWidget, _setter.__name__, slot(_type)(_setter))


class qMRMLSegmentationShow3DButton(StandIn, QtWidgets.QPushButton):
    cppName = "qMRMLSegmentationShow3DButton"
    constructors = parentOnly()
    locked = stored(bool)
    _segmentation = None

    @slot()
    def segmentationNode(self):
        return self._segmentation

    @slot(vtk("vtkMRMLSegmentationNode"))
    def setSegmentationNode(self, node):
        self._segmentation = node


CLASSES = (qMRMLSegmentsTableView, qMRMLSegmentEditorWidget, qMRMLSegmentationShow3DButton)
