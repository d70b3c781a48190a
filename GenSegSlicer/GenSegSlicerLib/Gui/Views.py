"""What the slice, 3D and plot views show. Without a main window there are no views, and nothing happens."""

import qt
import slicer
import vtk

from GenSegSlicerLib.Gallery import Gallery

SIDE_BY_SIDE = slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
_before: dict = {}  # before pairs were looked at: "layout", "volume" (id), and how each slice view was "turned"
_beforeCurves: list[int] = []  # the layout before curves were shown
_turned: set[str] = set()  # ids of slice views that were turned into the plane of a flat scan


def showScan(volumeNode, segmentationNode, in3D: bool = False) -> None:
    """A scan with its segmentation, and no other segmentation, in all views, centered.

    `in3D`: where curves took the place of the 3D view, it comes back.
    """
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    _leavePair(manager)
    if in3D and _beforeCurves and manager.threeDViewCount == 0:
        _setLayout(manager, _beforeCurves[0])
    _hideOthers(segmentationNode)
    flat = min(volumeNode.GetImageData().GetDimensions()) == 1 if volumeNode.GetImageData() is not None else False
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        if flat:
            _turned.add(node.GetID())
        elif node.GetID() in _turned:
            node.SetOrientationToDefault()
    if not flat:
        _turned.clear()
    slicer.util.setSliceViewerLayers(
        background=volumeNode, foreground=None, label=None, fit=True, rotateToVolumePlane=flat
    )
    slicer.util.resetThreeDViews()
    # What a saved scene comes back with: else one scan under the mask of another.
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(volumeNode.GetID())


def showCurves(chart) -> None:
    """A chart in a plot view beside the slice views."""
    manager = slicer.app.layoutManager()
    if manager is not None:
        volume = slicer.mrmlScene.GetNodeByID(_before.get("volume") or "none")
        _leavePair(manager)
        if volume is not None:
            slicer.util.setSliceViewerLayers(background=volume, fit=True)
        if manager.threeDViewCount > 0:
            _beforeCurves[:] = [manager.layout]
    slicer.modules.plots.logic().ShowChartInLayout(chart)


def isPairShown() -> bool:
    return bool(_before)


def _leavePair(manager) -> None:
    """Layout and slice views as they were before a pair was looked at; its nodes, far from the scans, go."""
    if not _before:
        return
    Gallery.hide(slicer.mrmlScene)
    if manager.layout == SIDE_BY_SIDE:
        _setLayout(manager, _before["layout"])
    for nodeId, matrix in _before["turned"].items():
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            node.GetSliceToRAS().DeepCopy(matrix)
            node.UpdateMatrices()
    _before.clear()


def _setLayout(manager, layout: int) -> None:
    """The views get their new sizes at once: what is fitted into them afterwards is not cut off."""
    manager.setLayout(layout)
    qt.QCoreApplication.processEvents(qt.QEventLoop.ExcludeUserInputEvents)


def showPair(gallery, pair, nodesOfCase) -> None:
    """A synthetic pair in one slice view and the nearest real scan in the other."""
    manager = slicer.app.layoutManager()
    if manager is None:
        gallery.show(pair, slicer.mrmlScene, nodesOfCase)
        return
    if not _before:
        red = manager.sliceWidget("Red")
        volumeId = red.mrmlSliceCompositeNode().GetBackgroundVolumeID() if red is not None else None
        _before.update(layout=manager.layout, volume=volumeId, turned={})
    if manager.layout != SIDE_BY_SIDE:
        _setLayout(manager, SIDE_BY_SIDE)
    _hideOthers(None)
    left, right = (manager.sliceWidget(name) for name in ("Red", "Yellow"))
    for node in (left.mrmlSliceNode(), right.mrmlSliceNode()):
        if node.GetID() not in _before["turned"]:
            _before["turned"][node.GetID()] = vtk.vtkMatrix4x4()
            _before["turned"][node.GetID()].DeepCopy(node.GetSliceToRAS())
    views = [[widget.mrmlSliceNode().GetID()] for widget in (left, right)]
    shown = gallery.show(pair, slicer.mrmlScene, nodesOfCase, *views)
    pictures = ((left, shown.image, shown.position), (right, shown.nearestImage, shown.nearestPosition))
    for widget, volume, position in pictures:
        composite, node = widget.mrmlSliceCompositeNode(), widget.mrmlSliceNode()
        composite.SetForegroundVolumeID(None)
        composite.SetLabelVolumeID(None)
        composite.SetBackgroundVolumeID(volume.GetID() if volume is not None else None)
        if volume is None:
            continue
        node.SetOrientationToAxial()
        node.RotateToVolumePlane(volume)
        widget.sliceController().fitSliceToBackground()
        if position is not None:
            node.JumpSliceByOffsetting(*position)  # the whole picture stays in sight


def _hideOthers(segmentationNode) -> None:
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(node is segmentationNode)
