"""What the slice, 3D and plot views show. Without a main window there are no views, and nothing happens."""

import slicer


def showScan(volumeNode, segmentationNode) -> None:
    """A scan with its segmentation, and no other segmentation, in all views, centered."""
    if slicer.app.layoutManager() is None:
        return
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if display is not None:
            display.SetVisibility(node is segmentationNode)
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
    slicer.util.resetThreeDViews()


def showPair(gallery, pair, nodesOfCase) -> None:
    """A synthetic pair in one slice view and the nearest real scan in the other."""
    manager = slicer.app.layoutManager()
    if manager is None:
        gallery.show(pair, slicer.mrmlScene, nodesOfCase)
        return
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    left, right = (manager.sliceWidget(name) for name in ("Red", "Yellow"))
    views = [[widget.mrmlSliceNode().GetID()] for widget in (left, right)]
    shown = gallery.show(pair, slicer.mrmlScene, nodesOfCase, *views)
    pictures = ((left, shown.image, shown.position), (right, shown.nearestImage, shown.nearestPosition))
    for widget, volume, position in pictures:
        composite, node = widget.mrmlSliceCompositeNode(), widget.mrmlSliceNode()
        composite.SetBackgroundVolumeID(volume.GetID() if volume is not None else None)
        if volume is None:
            continue
        node.SetOrientationToAxial()
        node.RotateToVolumePlane(volume)
        widget.sliceController().fitSliceToBackground()
        if position is not None:
            node.JumpSliceByCentering(*position)
