"""What the slice, 3D and plot views show. Without a main window there are no views, and nothing happens."""

import slicer
import vtk

SIDE_BY_SIDE = slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
_before: dict = {}  # "layout" before pairs were looked at, and how each slice view was turned
_turned: set[str] = set()  # ids of slice views that were turned into the plane of a flat scan


def showScan(volumeNode, segmentationNode) -> None:
    """A scan with its segmentation, and no other segmentation, in all views, centered."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    _leavePair(manager)
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


def _leavePair(manager) -> None:
    """Layout and slice views as they were before a pair was looked at."""
    if _before and manager.layout == SIDE_BY_SIDE:
        manager.setLayout(_before["layout"])
    for nodeId, matrix in _before.get("turned", {}).items():
        node = slicer.mrmlScene.GetNodeByID(nodeId)
        if node is not None:
            node.GetSliceToRAS().DeepCopy(matrix)
            node.UpdateMatrices()
    _before.clear()


def showPair(gallery, pair, nodesOfCase) -> None:
    """A synthetic pair in one slice view and the nearest real scan in the other."""
    manager = slicer.app.layoutManager()
    if manager is None:
        gallery.show(pair, slicer.mrmlScene, nodesOfCase)
        return
    if not _before:
        _before.update(layout=manager.layout, turned={})
    if manager.layout != SIDE_BY_SIDE:
        manager.setLayout(SIDE_BY_SIDE)
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
