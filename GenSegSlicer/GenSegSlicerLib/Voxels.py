"""Volumes as numpy arrays, and where their voxels lie. Arrays are KJI, matrices 4 x 4 in mm, RAS."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


def nodesOf(scene, className: str) -> Iterator:
    """The scene's nodes of a class and its subclasses, in the order of the scene."""
    for i in range(scene.GetNumberOfNodesByClass(className)):
        yield scene.GetNthNodeByClass(i, className)


def imageArray(image) -> np.ndarray:
    """The voxels of a vtkImageData: KJI, or KJIC with several components. A live view: do not write to it."""
    i, j, k = image.GetDimensions()
    components = image.GetNumberOfScalarComponents()
    shape = (k, j, i) if components == 1 else (k, j, i, components)
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape)


def hasVoxels(image) -> bool:
    """Whether a vtkImageData (or None) holds any voxel."""
    return image is not None and min(image.GetDimensions()) > 0 and image.GetPointData().GetScalars() is not None


def volumeArray(volumeNode) -> np.ndarray:
    """The voxels of a volume node; see imageArray."""
    return imageArray(volumeNode.GetImageData())


def toNumpy(matrix) -> np.ndarray:
    """A vtkMatrix4x4 as a numpy array."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def toVtk(matrix: np.ndarray):
    """A 4 x 4 numpy array as a vtkMatrix4x4."""
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, float).ravel())
    return result


def lookUp(table: np.ndarray, array: np.ndarray, low: int = 0) -> np.ndarray:
    """table[array - low] for KJI integers, slice by slice: numpy's own way takes eight bytes a voxel."""
    result = np.empty(array.shape, table.dtype)
    for there, plane in zip(result, array, strict=True):
        there[...] = table[plane.astype(np.int64) - low]
    return result


def countValues(array: np.ndarray, classes: int) -> np.ndarray:
    """How many voxels of a KJI array have each value 0 … classes - 1; slice by slice, see lookUp."""
    return sum((np.bincount(plane.ravel(), minlength=classes) for plane in array), np.zeros(classes, np.int64))


def ijkToRas(volumeNode) -> np.ndarray:
    """Voxel indices (i, j, k, 1) → the volume's own RAS frame in mm, without parent transforms."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return toNumpy(matrix)


def transformBetween(sourceNode, targetNode) -> np.ndarray | None:
    """From the own frame of one transformable node to that of another, 4 x 4; None where it bends space."""
    source, target = sourceNode.GetParentTransformNode(), targetNode.GetParentTransformNode()
    if source is target:
        return np.eye(4)
    general, linear = vtk.vtkGeneralTransform(), vtk.vtkTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(source, target, general)
    if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(general, linear):
        return None
    return toNumpy(linear.GetMatrix())


def isPhotograph(volumeNode) -> bool:
    """A single grey or color image of 8 or 16 bits whose millimeters mean nothing: PNG, JPEG and the like.

    Files of these formats carry printing sizes at most. Elsewhere a spacing of 1 along the axes of the patient says
    that nobody ever gave the image a size.
    """
    image = volumeNode.GetImageData()
    if not hasVoxels(image) or volumeNode.GetAttribute("DICOM.instanceUIDs"):
        return False
    wide, high, slices = image.GetDimensions()
    types = (vtk.VTK_UNSIGNED_CHAR, vtk.VTK_UNSIGNED_SHORT)
    if slices != 1 or min(wide, high) < 2 or image.GetScalarType() not in types:
        return False
    if image.GetNumberOfScalarComponents() not in (1, 2, 3, 4):
        return False
    storage = volumeNode.GetStorageNode()
    fileName = storage.GetFileName() if storage is not None else None
    if fileName and Path(fileName).suffix.lower() in PHOTO_SUFFIXES:
        return True
    return bool(np.allclose(np.abs(ijkToRas(volumeNode)[:3, :3]), np.eye(3), rtol=0, atol=1e-6))
