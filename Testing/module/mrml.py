"""The shared rig: a real MRML scene with Slicer's own logics, and short words to fill it.

Arrays are KJI ([slices, rows, columns]), photos KJIC; matrices are 4 x 4 numpy arrays, IJK to RAS in mm.
Nothing here uses the module under test, so what it reads back is Slicer's own answer.
"""

import types
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from trame_slicer.core.slicer_app import SlicerApp
from vtk.util.numpy_support import get_vtk_array_type, numpy_to_vtk, vtk_to_numpy

BINARY_LABELMAP = "Binary labelmap"
CLOSED_SURFACE = "Closed surface"
PHOTO = np.diag([-1.0, -1.0, 1.0, 1.0])  # how Slicer places a PNG or JPEG


def oblique(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), degrees=(0.0, 0.0, 0.0), flip=(1, 1, 1)) -> np.ndarray:
    """An IJK to RAS matrix: turned about x, y and z, axes flipped where `flip` is -1 (left-handed is allowed)."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        turn = np.eye(3)
        a, b = [i for i in range(3) if i != axis]
        turn[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        matrix = turn @ matrix
    result = np.eye(4)
    result[:3, :3] = matrix * np.array(spacing) * np.array(flip)
    result[:3, 3] = origin
    return result


def vtkMatrix(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, float).ravel())
    return result


def numpyMatrix(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def imageData(array: np.ndarray, image=None, offset=(0, 0, 0)):
    """KJI or KJIC array → vtkImageData whose extent begins at `offset` (i, j, k)."""
    image = vtk.vtkImageData() if image is None else image
    shape = array.shape[:3]
    components = array.shape[3] if array.ndim == 4 else 1
    extent = [value for start, n in zip(offset, shape[::-1], strict=True) for value in (start, start + n - 1)]
    image.SetExtent(extent)
    flat = (
        np.ascontiguousarray(array).reshape(-1, components) if components > 1 else np.ascontiguousarray(array).ravel()
    )
    image.GetPointData().SetScalars(numpy_to_vtk(flat, deep=True, array_type=get_vtk_array_type(array.dtype)))
    return image


class Mrml:
    """One application without windows: `scene`, logics, and makers of nodes."""

    def __init__(self):
        self.app = SlicerApp()
        self.scene = self.app.scene
        self.segmentationsLogic = self.app.segmentations_logic
        self.volumesLogic = self.app.volumes_logic
        self.terminologiesLogic = self.app.terminologies_logic
        self.colorLogic = self.app.color_logic
        self.applicationLogic = self.app.app_logic

    @property
    def subjectHierarchy(self) -> slicer.vtkMRMLSubjectHierarchyNode:
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)

    def installGlobals(self, monkeypatch) -> None:
        """slicer.mrmlScene and slicer.modules for code that needs them (slicer.util); the library must not."""
        logics = {"segmentations": self.segmentationsLogic, "volumes": self.volumesLogic}
        modules = types.SimpleNamespace(
            **{name: types.SimpleNamespace(logic=lambda logic=logic: logic) for name, logic in logics.items()}
        )
        monkeypatch.setattr(slicer, "mrmlScene", self.scene, raising=False)
        monkeypatch.setattr(slicer, "modules", modules, raising=False)

    # --- making nodes ----------------------------------------------------------------------------------------------

    def volume(self, array: np.ndarray, name: str = "scan", ijkToRas: np.ndarray | None = None, parent: int = 0):
        """A scalar volume of a KJI array (any numeric type), a vector volume of KJIC."""
        kind = "vtkMRMLVectorVolumeNode" if array.ndim == 4 else "vtkMRMLScalarVolumeNode"
        node = self.scene.AddNewNodeByClass(kind, name)
        node.SetAndObserveImageData(imageData(array))
        node.SetIJKToRASMatrix(vtkMatrix(np.eye(4) if ijkToRas is None else ijkToRas))
        node.CreateDefaultDisplayNodes()
        self.place(node, parent)
        return node

    def photo(self, array: np.ndarray, name: str = "photo"):
        """A photograph [rows, columns, 3] or [rows, columns], uint8, as Slicer loads it from a PNG."""
        return self.volume(array[None], name, PHOTO)

    def segmentation(
        self,
        masks: dict[str, np.ndarray],
        volume=None,
        name: str = "Segmentation",
        ijkToRas: np.ndarray | None = None,
        offset=(0, 0, 0),
        layers: bool = True,
    ):
        """A segmentation with one segment a mask (bool KJI), each in a layer of its own, or all in one.

        The grid is `ijkToRas`, by default the volume's; masks begin at voxel `offset` (i, j, k) of it. With a volume
        the reference geometry, the parent transform and the place in the subject hierarchy are the volume's.
        """
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        if volume is not None:
            node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            if ijkToRas is None:
                ijkToRas = self.ijkToRas(volume)
        item = 0 if volume is None else self.subjectHierarchy.GetItemByDataNode(volume)
        self.place(node, self.subjectHierarchy.GetItemParent(item) if item else 0)
        matrix = np.eye(4) if ijkToRas is None else ijkToRas
        shared = sum(np.asarray(mask, np.uint8) * (i + 1) for i, mask in enumerate(masks.values()))
        if not layers:
            shared = self._oriented(shared.astype(np.uint8), matrix, offset)
        for i, (segmentName, mask) in enumerate(masks.items()):
            segment = slicer.vtkSegment()
            segment.SetName(segmentName)
            segment.SetColor(0.1 + 0.8 * ((i * 3) % 7) / 7, 0.5, 0.2 + 0.1 * (i % 5))
            segment.SetLabelValue(1 if layers else i + 1)
            image = self._oriented(np.asarray(mask, np.uint8), matrix, offset) if layers else shared
            segment.AddRepresentation(BINARY_LABELMAP, image)
            assert node.GetSegmentation().AddSegment(segment, f"id {i} of {segmentName}")
        return node

    def _oriented(self, array: np.ndarray, matrix: np.ndarray, offset) -> slicer.vtkOrientedImageData:
        image = imageData(array, slicer.vtkOrientedImageData(), offset)
        image.SetGeometryFromImageToWorldMatrix(vtkMatrix(matrix))
        return image

    def transform(self, matrix: np.ndarray, name: str = "moved"):
        """A linear transform node, to parent in RAS."""
        node = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        node.SetMatrixTransformToParent(vtkMatrix(matrix))
        return node

    def warp(self, name: str = "warp"):
        """A transform that bends (thin-plate spline)."""
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for point in ((-50, -50, -50), (50, -50, -50), (-50, 50, -50), (-50, -50, 50), (10, 10, 10)):
            source.InsertNextPoint(point)
            target.InsertNextPoint(point if point != (10, 10, 10) else (14, 13, 9))
        spline = vtk.vtkThinPlateSplineTransform()
        spline.SetBasisToR()
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        node = self.scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
        node.SetAndObserveTransformToParent(spline)
        return node

    def patient(self, name: str = "Patient", study: str = "Study") -> int:
        """A patient with one study in the subject hierarchy → the study's item."""
        hierarchy = self.subjectHierarchy
        patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), name)
        return hierarchy.CreateStudyItem(patient, study)

    def place(self, node, parent: int = 0) -> int:
        """The node's item in the subject hierarchy, under `parent` (the scene by default)."""
        hierarchy = self.subjectHierarchy
        parent = parent or hierarchy.GetSceneItemID()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, parent)
            return item
        return hierarchy.CreateItem(parent, node)

    # --- files -----------------------------------------------------------------------------------------------------

    def loadVolume(self, path: Path, name: str | None = None):
        """A volume as Slicer's Add Data loads it (NIfTI, NRRD, MHA, PNG …)."""
        node = self.volumesLogic.AddArchetypeVolume(str(path), name or Path(path).name.split(".")[0])
        assert node is not None, f"Slicer cannot load {path}"
        self.place(node)
        return node

    def loadPhoto(self, path: Path, name: str | None = None):
        """A PNG, JPEG or TIFF as Slicer loads it; the readers of slicer-core lack these formats, SimpleITK has them."""
        image = sitk.ReadImage(str(path))
        matrix = PHOTO @ np.diag([*image.GetSpacing()[:2], 1.0, 1.0])
        array = sitk.GetArrayFromImage(image)
        node = self.volume(array.reshape(1, *array.shape[-3:]), name or Path(path).name.split(".")[0], matrix)
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(path))
        return node

    def loadSegmentation(self, path: Path, name: str = "loaded"):
        """A .seg.nrrd, or a label map with one segment a value, as Slicer loads it."""
        node = self.segmentationsLogic.LoadSegmentationFromFile(str(path), True, name)
        assert node is not None, f"Slicer cannot load {path}"
        self.place(node)
        return node

    def save(self, folder: Path) -> Path:
        """Write scene.mrml and the data of every storable node into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.scene.SetRootDirectory(str(folder))
        self.scene.SetURL(str(folder / "scene.mrml"))
        suffixes = {"vtkMRMLVolumeNode": ".nrrd", "vtkMRMLSegmentationNode": ".seg.nrrd", "vtkMRMLTransformNode": ".h5"}
        for kind, suffix in suffixes.items():
            for i in range(self.scene.GetNumberOfNodesByClass(kind)):
                node = self.scene.GetNthNodeByClass(i, kind)
                node.AddDefaultStorageNode()
                node.GetStorageNode().SetFileName(str(folder / f"{node.GetID()}{suffix}"))
                assert node.GetStorageNode().WriteData(node), f"{node.GetName()} cannot be saved"
        assert self.scene.Commit(), "the scene cannot be saved"
        return folder / "scene.mrml"

    def open(self, path: Path) -> None:
        """Close the scene and load another in its place."""
        self.scene.Clear(0)
        self.add(path)

    def add(self, path: Path) -> None:
        """Load a scene into what is there (nodes get new ids where theirs are taken)."""
        self.scene.SetRootDirectory(str(path.parent))
        self.scene.SetURL(str(path))
        assert self.scene.Import(), f"{path} cannot be loaded"

    # --- what Slicer itself says -----------------------------------------------------------------------------------

    def node(self, name: str):
        """The first node of this name; fails where there is none."""
        node = self.scene.GetFirstNodeByName(name)
        assert node is not None, f"no node is called {name}"
        return node

    def ijkToRas(self, volume) -> np.ndarray:
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        return numpyMatrix(matrix)

    def array(self, volume) -> np.ndarray:
        """A copy of the voxels, KJI or KJIC."""
        image = volume.GetImageData()
        i, j, k = image.GetDimensions()
        components = image.GetNumberOfScalarComponents()
        shape = (k, j, i) if components == 1 else (k, j, i, components)
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape).copy()

    def segments(self, segmentation) -> list[slicer.vtkSegment]:
        inside = segmentation.GetSegmentation()
        return [inside.GetNthSegment(i) for i in range(inside.GetNumberOfSegments())]

    def mask(self, segmentation, segmentName: str, volume) -> np.ndarray:
        """Bool KJI on the volume's grid, by the export of Slicer's Segmentations module (heeds transforms)."""
        inside = segmentation.GetSegmentation()
        ids = vtk.vtkStringArray()
        ids.InsertNextValue(inside.GetSegmentIdBySegmentName(segmentName))
        assert ids.GetValue(0), f"{segmentation.GetName()} has no segment {segmentName}"
        labelmap = self.scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "exported for a test")
        try:
            exported = self.segmentationsLogic.ExportSegmentsToLabelmapNode(
                segmentation, ids, labelmap, volume, slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
            )
            assert exported, "Slicer could not export the segment"
            return self.array(labelmap) != 0
        finally:
            display = labelmap.GetDisplayNode()
            colors = display.GetColorNode() if display is not None else None
            for node in (labelmap, display, colors):
                if node is not None and self.scene.IsNodePresent(node):
                    self.scene.RemoveNode(node)
