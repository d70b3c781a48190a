"""What the slice, 3D and plot views show. Without a main window there are no views, and nothing happens."""

import slicer

SIDE_BY_SIDE = slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView
_before: list[int] = []  # the layout before pairs were looked at


def showScan(volumeNode, segmentationNode) -> None:
    """A scan with its segmentation, and no other segmentation, in all views, centered."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return
    if _before and manager.layout == SIDE_BY_SIDE:
        manager.setLayout(_before[0])
    _before.clear()
    _hideOthers(segmentationNode)
    flat = min(volumeNode.GetImageData().GetDimensions()) == 1 if volumeNode.GetImageData() is not None else False
    slicer.util.setSliceViewerLayers(
        background=volumeNode, foreground=None, label=None, fit=True, rotateToVolumePlane=flat
    )
    slicer.util.resetThreeDViews()


def showPair(gallery, pair, nodesOfCase) -> None:
    """A synthetic pair in one slice view and the nearest real scan in the other."""
    manager = slicer.app.layoutManager()
    if manager is None:
        gallery.show(pair, slicer.mrmlScene, nodesOfCase)
        return
    if manager.layout != SIDE_BY_SIDE:
        _before[:] = [manager.layout]
        manager.setLayout(SIDE_BY_SIDE)
    _hideOthers(None)
    left, right = (manager.sliceWidget(name) for name in ("Red", "Yellow"))
    views = [[widget.mrmlSliceNode().GetID()] for widget in (left, right)]
    shown = gallery.show(pair, slicer.mrmlScene, nodesOfCase, *views)
    if shown.nearestMask is not None and shown.nearestMask.GetDisplayNode() is not None:
        shown.nearestMask.GetDisplayNode().SetVisibility(True)
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
            node.JumpSliceByCentering(*position)


def _hideOthers(segmentationNode) -> None:
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(node is segmentationNode)
