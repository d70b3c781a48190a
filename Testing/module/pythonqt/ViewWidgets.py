"""Stand-ins for the views and the layout manager, over the real layout logic and real view nodes."""

import slicer
from PySide6 import QtCore, QtWidgets

from .MrmlWidgets import qMRMLTableView, qMRMLWidget
from .Observers import MODIFIED, forget, observe
from .QtObject import StandIn, slot
from .Signals import emitDeclared
from .StandIns import parentOnly, stored, vtk


class ctkVTKAbstractView(StandIn, QtWidgets.QWidget):
    """A view that counts renderings. What it would show is rendered by Slicer's own displayable managers elsewhere."""

    cppName = "ctkVTKAbstractView"
    cornerAnnotationText = stored(str)
    renderEnabled = stored(bool, True)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self.renderings = None, 0

    @slot()
    def scheduleRender(self):
        self.renderings += 1

    @slot()
    def forceRender(self):
        self.renderings += 1


class qMRMLSliceView(ctkVTKAbstractView):
    cppName = "qMRMLSliceView"

    @slot()
    def mrmlSliceNode(self):
        return self._node


class qMRMLThreeDView(ctkVTKAbstractView):
    cppName = "qMRMLThreeDView"

    @slot()
    def mrmlViewNode(self):
        return self._node

    @slot()
    def resetFocalPoint(self):
        self.renderings += 1

    @slot(bool, bool, bool, required=0)
    def resetCamera(self, *_which):
        self.renderings += 1

    @slot(int)
    @slot(str)
    def rotateToViewAxis(self, _axis):
        self.renderings += 1


class qMRMLPlotView(StandIn, QtWidgets.QWidget):
    cppName = "qMRMLPlotView"
    signatures = ("mrmlSceneChanged(vtkMRMLScene*)", "dataSelected(vtkStringArray*,vtkCollection*)")
    constructors = parentOnly()
    title = stored(str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene, self._node, self.fits = None, None, 0

    @slot(vtk("vtkMRMLScene"))
    def setMRMLScene(self, scene):
        self._scene = scene

    @slot(vtk("vtkMRMLPlotViewNode"))
    def setMRMLPlotViewNode(self, node):
        self._node = node

    @slot()
    def fitToContent(self):
        self.fits += 1


class qMRMLAbstractViewWidget(qMRMLWidget):
    cppName = "qMRMLAbstractViewWidget"
    viewLabel = stored(str)
    view: type = ctkVTKAbstractView

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._logic, self._view = None, None, self.view(self)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self._view)

    def setNode(self, node) -> None:
        self._node = node
        if hasattr(self._view, "_node"):
            self._view._node = node

    @slot()
    def mrmlAbstractViewNode(self):
        return self._node

    @slot()
    def viewWidget(self):
        return self._view


class qMRMLSliceControllerWidget(qMRMLWidget):
    cppName = "qMRMLSliceControllerWidget"
    _logic = None

    @slot()
    def fitSliceToBackground(self):
        self._logic.FitSliceToBackground()

    @slot(float)
    def setSliceOffsetValue(self, offset):
        self._logic.SetSliceOffset(offset)

    @slot(bool)
    def setSliceVisible(self, visible):
        self._logic.GetSliceNode().SetSliceVisible(visible)

    @slot(bool)
    def setSliceLink(self, linked):
        self._logic.GetSliceCompositeNode().SetLinkedControl(linked)


class qMRMLSliceWidget(qMRMLAbstractViewWidget):
    cppName = "qMRMLSliceWidget"
    signatures = ("nodeAboutToBeEdited(vtkMRMLNode*)",)
    view = qMRMLSliceView
    sliceViewName = QtCore.Property(str, lambda self: self._node.GetLayoutName() if self._node is not None else "")

    def setLogic(self, logic) -> None:
        self._logic = logic
        self._controller = qMRMLSliceControllerWidget(self)
        self._controller._logic = logic
        self.setNode(logic.GetSliceNode())

    @slot()
    def sliceLogic(self):
        return self._logic

    @slot()
    def mrmlSliceNode(self):
        return self._node

    @slot()
    def mrmlSliceCompositeNode(self):
        return self._logic.GetSliceCompositeNode()

    @slot()
    def sliceView(self):
        return self._view

    @slot()
    def sliceController(self):
        return self._controller

    @slot()
    def fitSliceToBackground(self):
        self._logic.FitSliceToBackground()

    @slot(str)
    def setSliceOrientation(self, orientation):
        self._node.SetOrientation(orientation)


class qMRMLThreeDWidget(qMRMLAbstractViewWidget):
    cppName = "qMRMLThreeDWidget"
    view = qMRMLThreeDView

    @slot()
    def threeDView(self):
        return self._view

    @slot()
    def mrmlViewNode(self):
        return self._node


class qMRMLPlotWidget(qMRMLAbstractViewWidget):
    cppName = "qMRMLPlotWidget"
    constructors = parentOnly()
    view = qMRMLPlotView

    @slot()
    def plotView(self):
        return self._view

    @slot()
    def mrmlPlotViewNode(self):
        return self._node

    @slot(vtk("vtkMRMLPlotViewNode"))
    def setMRMLPlotViewNode(self, node):
        self.setNode(node)


class qMRMLTableWidget(qMRMLAbstractViewWidget):
    cppName = "qMRMLTableWidget"
    constructors = parentOnly()
    view = qMRMLTableView

    @slot()
    def tableView(self):
        return self._view

    @slot()
    def mrmlTableViewNode(self):
        return self._node

    @slot(vtk("vtkMRMLTableViewNode"))
    def setMRMLTableViewNode(self, node):
        self.setNode(node)
        self._view.setMRMLTableViewNode(node)


_WIDGETS = {
    "vtkMRMLSliceNode": qMRMLSliceWidget,
    "vtkMRMLViewNode": qMRMLThreeDWidget,
    "vtkMRMLPlotViewNode": qMRMLPlotWidget,
    "vtkMRMLTableViewNode": qMRMLTableWidget,
}


class qSlicerLayoutManager(StandIn, QtCore.QObject):
    """Widgets for the views of the current layout; the layout itself is the scene's real layout node."""

    cppName = "qSlicerLayoutManager"
    signatures = ("layoutChanged(int)", "layoutChanged()", "nodeAboutToBeEdited(vtkMRMLNode*)", "selectModule(QString)",
                  "activeMRMLThreeDViewNodeChanged(vtkMRMLViewNode*)",
                  "activeMRMLPlotViewNodeChanged(vtkMRMLPlotViewNode*)")  # fmt: skip
    enabled = stored(bool, True)

    def __init__(self, scene, applicationLogic):
        super().__init__()
        self._scene, self._applicationLogic = scene, applicationLogic
        self._widgets: dict[str, QtWidgets.QWidget] = {}
        self._layoutLogic = slicer.vtkMRMLLayoutLogic()
        self._layoutLogic.SetMRMLApplicationLogic(applicationLogic)
        self._layoutLogic.SetMRMLScene(scene)
        node = self._layoutLogic.GetLayoutNode()
        if node.GetViewArrangement() in (node.SlicerLayoutNone, node.SlicerLayoutInitialView):
            node.SetViewArrangement(node.SlicerLayoutFourUpView)
        self._tags = observe(self, node, MODIFIED, lambda _caller: self._follow())
        self._arrangement = node.GetViewArrangement()
        self._update()

    def close(self) -> None:
        forget(self._tags)
        self._layoutLogic.SetMRMLScene(None)

    def _node(self):
        return self._layoutLogic.GetLayoutNode()

    def _follow(self) -> None:
        arrangement = self._node().GetViewArrangement()
        self._update()
        if arrangement != self._arrangement:
            self._arrangement = arrangement
            emitDeclared(self, "layoutChanged(int)", arrangement)

    def _update(self) -> None:
        """A widget for each view node of the scene, as the view factories make them."""
        for kind, widgetType in _WIDGETS.items():
            for i in range(self._scene.GetNumberOfNodesByClass(kind)):
                node = self._scene.GetNthNodeByClass(i, kind)
                if node.GetID() not in self._widgets or self._widgets[node.GetID()]._node is not node:
                    self._widgets[node.GetID()] = self._make(widgetType, node)

    def _make(self, widgetType: type, node):
        widget = widgetType()
        widget.changeScene(self._scene)
        if widgetType is qMRMLSliceWidget:
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(self._applicationLogic)
            logic.SetMRMLScene(self._scene)
            logic.SetSliceNode(node)
            self._applicationLogic.GetSliceLogics().AddItem(logic)
            widget.setLogic(logic)
        elif widgetType is qMRMLTableWidget:
            widget.setMRMLTableViewNode(node)
        else:
            widget.setNode(node)
        return widget

    def _shown(self, kind: str) -> list:
        """The widgets of a kind that the current layout shows, in its order."""
        self._update()
        nodes = self._layoutLogic.GetViewNodes()
        found = [nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())]
        return [self._widgets[node.GetID()] for node in found if node.IsA(kind)]

    def _nth(self, kind: str, index: int):
        shown = self._shown(kind)
        return shown[index] if 0 <= index < len(shown) else None

    def _setLayout(self, layout: int) -> None:
        self._node().SetViewArrangement(layout)

    layout = QtCore.Property(int, lambda self: self._node().GetViewArrangement(), _setLayout)
    threeDViewCount = QtCore.Property(int, lambda self: len(self._shown("vtkMRMLViewNode")))
    plotViewCount = QtCore.Property(int, lambda self: len(self._shown("vtkMRMLPlotViewNode")))
    tableViewCount = QtCore.Property(int, lambda self: len(self._shown("vtkMRMLTableViewNode")))

    @slot(int)
    def setLayout(self, layout):
        self._setLayout(layout)

    @slot()
    def mrmlScene(self):
        return self._scene

    @slot()
    def layoutLogic(self):
        return self._layoutLogic

    @slot()
    def mrmlSliceLogics(self):
        return self._applicationLogic.GetSliceLogics()

    @slot()
    def sliceViewNames(self):
        return [widget._node.GetLayoutName() for widget in self._shown("vtkMRMLSliceNode")]

    @slot(str)
    def sliceWidget(self, name):
        self._update()
        for widget in self._widgets.values():
            if isinstance(widget, qMRMLSliceWidget) and widget._node.GetLayoutName() == name:
                return widget
        return None

    @slot(int)
    def threeDWidget(self, index):
        return self._nth("vtkMRMLViewNode", index)

    @slot(int)
    def plotWidget(self, index):
        return self._nth("vtkMRMLPlotViewNode", index)

    @slot(int)
    def tableWidget(self, index):
        return self._nth("vtkMRMLTableViewNode", index)

    @slot()
    def resetThreeDViews(self):
        for widget in self._shown("vtkMRMLViewNode"):
            widget._view.renderings += 1

    @slot()
    def resetSliceViews(self):
        for widget in self._shown("vtkMRMLSliceNode"):
            widget.fitSliceToBackground()

    @slot(bool)
    def setRenderPaused(self, _pause):
        return None

    @slot()
    def pauseRender(self):
        return None

    @slot()
    def resumeRender(self):
        return None


CLASSES = (qMRMLSliceView, qMRMLThreeDView, qMRMLPlotView, qMRMLSliceWidget, qMRMLThreeDWidget, qMRMLPlotWidget,
           qMRMLTableWidget, qSlicerLayoutManager)  # fmt: skip
