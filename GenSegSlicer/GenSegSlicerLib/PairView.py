"""A synthetic pair in the scene, beside the real scan that it resembles, for the slice views."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import get_vtk_array_type, numpy_to_vtk

from GenSegSlicerLib.ImageFile import ImageFile
from GenSegSlicerLib.Scans import GALLERY
from GenSegSlicerLib.Thumbnail import greyWindow, planeOf, tellingSlice
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import nodesOf, toVtk

FILL = 0.15  # opacity of a structure's area in the slice views


@dataclass(frozen=True)
class ShownPair:
    """Nodes that show a pair. The last three are None, and `problem` says why, where the real scan cannot be shown."""

    image: object  # vtkMRMLScalarVolumeNode or vtkMRMLVectorVolumeNode
    mask: object  # vtkMRMLSegmentationNode
    position: tuple  # RAS in mm: where to look
    nearestImage: object = None
    nearestMask: object = None
    nearestPosition: tuple | None = None
    problem: str = ""


class PairView:
    """Puts one pair at a time into `scene`. `about` is the `RunAbout` of the run.

    The nodes are not saved with the scene, lie in one folder of the subject hierarchy, and carry the attribute
    GenSegSlicer.Gallery, so that nobody takes them for scans of the study.
    """

    def __init__(self, scene, about):
        self.scene = scene
        self.about = about

    def show(self, pair, scanOf=None, views=(), nearestViews=()) -> ShownPair:
        """Show a pair in place of the earlier one. → ShownPair.

        scanOf(case) may give (volume node, segmentation node) of a scan that is in the scene: the volume is then used
        as it is, and of the mask a copy, since the user's own may not be bound to some views. views, nearestViews: ids
        of the slice nodes in which each mask may appear, by default all.
        Raises OSError or RuntimeError where the pair itself cannot be read; the scene is then as before.
        """
        loaded = ImageFile(pair.image), ImageFile(pair.mask)
        inScene = scanOf(pair.nearest) if scanOf is not None else None
        real, problem = (None, "") if inScene else self._readNearest(pair.nearest)
        removePair(self.scene)
        folder = self._folder()
        parts = self._make(*loaded, _("Synthetic pair {name}").format(name=pair.name), "pair", views, folder)
        if inScene:
            volume, mask = inScene
            parts += (volume, self._copy(mask, nearestViews, folder), _middle(*inScene))
        elif real is not None:
            name = _("Nearest real scan {name}").format(name=pair.nearest)
            parts += self._make(*real, name, "nearest", nearestViews, folder)
        return ShownPair(*parts, problem=problem)

    def _readNearest(self, case):
        """→ ((image, mask) of a training scan, "") or (None, why not)."""
        files = self.about.caseFiles(case)
        if files is None:
            return None, _("The scan {name} is not in the study any more.").format(name=case)
        try:
            return tuple(ImageFile(file) for file in files), ""
        except (OSError, RuntimeError) as error:
            return None, _("The scan {name} cannot be read: {error}").format(name=case, error=error)

    def _make(self, image, mask, name, kind, viewIds, folder):
        """→ (volume node, segmentation node, RAS position where the mask shows most)."""
        matrix = self._matrix(image, synthetic=kind == "pair")
        volume = self._volume(image, matrix, name, kind)
        labels = _kji(mask)
        labels = labels.max(axis=-1) if labels.ndim == 4 else labels
        segmentation = self._segmentation(labels, matrix, _("{name}, mask").format(name=name), kind, volume)
        self._restrict(segmentation, viewIds)
        self._file(volume, folder)
        self._file(segmentation, folder)
        return volume, segmentation, _position(labels, matrix, self.about.sliceAxis)

    def _copy(self, mask, viewIds, folder):
        """The mask of a scan in the scene once more, for some views only; None where there is none."""
        if mask is None:
            return None
        node = self._add("vtkMRMLSegmentationNode", _("{name}, mask").format(name=mask.GetName()), "nearest mask")
        node.GetSegmentation().DeepCopy(mask.GetSegmentation())
        node.SetAndObserveTransformNodeID(mask.GetTransformNodeID())
        node.CreateDefaultDisplayNodes()
        self._restrict(node, viewIds)
        self._file(node, folder)
        return node

    @staticmethod
    def _restrict(segmentation, viewIds):
        display = segmentation.GetDisplayNode()
        display.SetSaveWithScene(False)
        display.SetVisibility3D(False)
        display.SetOpacity2DFill(FILL)
        for viewId in viewIds:
            display.AddViewNodeID(viewId)

    def _file(self, node, folder):
        """Put a node into the folder of the subject hierarchy, where there is one."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        item = hierarchy.GetItemByDataNode(node) if hierarchy else 0
        if item:
            hierarchy.SetItemParent(item, folder)
        elif hierarchy:
            hierarchy.CreateItem(folder, node)

    def _matrix(self, image, synthetic):
        """IJK to RAS [4, 4] in mm; slices of a volume that have the feet first are turned head up."""
        space = image.image.GetDimension()
        direction, spacing, origin = np.eye(3), np.ones(3), np.zeros(3)
        direction[:space, :space] = np.reshape(image.image.GetDirection(), (space, space))
        spacing[:space], origin[:space] = image.image.GetSpacing(), image.image.GetOrigin()
        if synthetic and space == 2 and self.about.sliceAxis in (1, 2):
            direction[1, 1] = -1
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = direction * spacing, origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix  # files are LPS, the scene is RAS

    def _volume(self, image, matrix, name, kind):
        array = _kji(image)
        window = self.about.window(synthetic=kind == "pair") or greyWindow(array)
        colored = array.ndim == 4 and array.shape[-1] == 3
        if colored and array.dtype != np.uint8:  # the views take the values of colored images as they are
            array = np.clip((array - window[0]) / max(window[1] - window[0], 1e-6) * 255, 0, 255).astype(np.uint8)
        elif array.ndim == 4 and not colored:
            array = array[..., 0]
        className = "vtkMRMLVectorVolumeNode" if colored else "vtkMRMLScalarVolumeNode"
        node = self._add(className, name, kind)
        node.SetAndObserveImageData(_imageData(array, vtk.vtkImageData()))
        node.SetIJKToRASMatrix(toVtk(matrix))
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        if not colored:
            display.SetAutoWindowLevel(False)
            display.SetWindowLevelMinMax(*window)
        return node

    def _segmentation(self, labels, matrix, name, kind, volume):
        node = self._add("vtkMRMLSegmentationNode", name, f"{kind} mask")
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for structure in self.about.structures:
            inside = labels == structure["value"]
            if inside.any():
                data = _imageData(inside.astype(np.uint8), slicer.vtkOrientedImageData())
                data.SetGeometryFromImageToWorldMatrix(toVtk(matrix))
                color = [part / 255 for part in self.about.colors[structure["value"]]]
                node.AddSegmentFromBinaryLabelmapRepresentation(data, structure["name"], color)
        return node

    def _add(self, className, name, kind):
        node = getattr(slicer, className)()
        node.SetName(name)
        node.SetAttribute(GALLERY, kind)  # before the node is in the scene, so that no observer sees it without
        node.SetSaveWithScene(False)
        return self.scene.AddNode(node)

    def _folder(self):
        """The item of the folder in the subject hierarchy; 0 without a hierarchy."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        if hierarchy is None:
            return 0
        folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), _("Synthetic pairs"))
        hierarchy.SetItemAttribute(folder, GALLERY, "folder")
        hierarchy.SetItemExpanded(folder, False)
        return folder


def removePair(scene) -> None:
    """Take what a PairView showed out of `scene`, with its folder; also what of it came back with a loaded scene."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    for node in [node for node in nodesOf(scene, "vtkMRMLDisplayableNode") if node.GetAttribute(GALLERY)]:
        item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
        if item:  # before the node, which it points at
            hierarchy.RemoveItem(item, False, False)
        scene.RemoveNode(node)  # Slicer removes its display node with it
    if hierarchy is None:
        return
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), children, False)
    for item in [children.GetId(i) for i in range(children.GetNumberOfIds())]:
        if hierarchy.GetItemAttribute(item, GALLERY):
            hierarchy.RemoveItem(item)


def _kji(image):
    """Voxels of an `ImageFile` [k, j, i(, c)] on the file's own grid, without alpha channel."""
    array = sitk.GetArrayFromImage(image.image)
    array = array[None] if image.image.GetDimension() == 2 else array
    if array.ndim == 4:
        array = array[..., 0] if image.channels == 1 else array[..., : image.channels]
    return array


def _imageData(array, data):
    """Array [k, j, i(, c)] into vtkImageData `data`, which is returned; the voxels are copied."""
    components = array.shape[3] if array.ndim == 4 else 1
    array = array.astype(np.int32) if array.dtype in (np.int64, np.uint64, np.uint32) else array
    data.SetDimensions(array.shape[2], array.shape[1], array.shape[0])
    flat = np.ascontiguousarray(array).reshape((-1, components) if components > 1 else -1)
    data.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=get_vtk_array_type(array.dtype)))
    return data


def _position(labels, matrix, sliceAxis):
    """RAS in mm: the middle of the mask [k, j, i] in its most telling slice, or of the grid if it is empty."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)[::-1]
    axis = planeOf(labels.shape, spacing, sliceAxis if 1 not in labels.shape else None)
    index = tellingSlice(labels, axis)
    found = np.argwhere(np.take(labels, [index], axis=axis))
    middle = found.mean(axis=0) if len(found) else (np.array(labels.shape) - 1) / 2
    middle[axis] = index
    return tuple(float(x) for x in (matrix @ [*middle[::-1], 1.0])[:3])


def _middle(volumeNode, segmentationNode):
    """RAS in mm of the middle of the first structure that is drawn, else of the volume."""
    inside = segmentationNode.GetSegmentation() if segmentationNode is not None else None
    for i in range(inside.GetNumberOfSegments() if inside is not None else 0):
        center = segmentationNode.GetSegmentCenterRAS(inside.GetNthSegmentID(i))
        if center is not None:
            return tuple(center)
    bounds = [0.0] * 6
    volumeNode.GetRASBounds(bounds)
    return tuple((bounds[i] + bounds[i + 1]) / 2 for i in (0, 2, 4))
