"""Inside Slicer: what goes out to files and comes back is voxel for voxel the same, also after saving the scene."""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from GenSegSlicerLib.Scans import Role, ScanList
from GenSegSlicerLib.StudyExport import StudyExport

# Turned by 30 degrees about the head-foot axis, three spacings in mm, two axes flipped (Slicer reads a left-handed file
# with its slices in reverse order).
OBLIQUE = [[-0.6928, -0.45, 0, 12], [-0.4, 0.7794, 0, -30], [0, 0, -2.2, 7], [0, 0, 0, 1]]


def toVtk(matrix) -> vtk.vtkMatrix4x4:
    result = vtk.vtkMatrix4x4()
    result.DeepCopy([value for row in matrix for value in row])
    return result


class GenSegSlicerSceneTestCase(unittest.TestCase):
    """Needs no package that Slicer does not bring, and no network."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.scans = ScanList(slicer.mrmlScene)

    def scan(self, name: str, drawn: bool, seed: int):
        """An oblique volume [k, j, i] = [9, 12, 15] under a linear transform, with two drawn segments or none."""
        random = np.random.default_rng(seed)
        volume = slicer.util.addVolumeFromArray(random.integers(0, 999, (9, 12, 15)).astype(np.int16), name=name)
        volume.SetIJKToRASMatrix(toVtk(OBLIQUE))
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        transform.SetMatrixTransformToParent(toVtk([[0, -1, 0, 5], [1, 0, 0, 0], [0, 0, 1, 9], [0, 0, 0, 1]]))
        volume.SetAndObserveTransformNodeID(transform.GetID())
        if not drawn:
            return volume, None
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} mask")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.SetAndObserveTransformNodeID(transform.GetID())
        for number, structure in enumerate(("Leber", "Milz 脾")):
            mask = np.zeros((9, 12, 15), np.uint8)
            mask[2 + 3 * number : 5 + 3 * number, 1:7, 3 + number : 12] = 1
            segmentId = segmentation.GetSegmentation().AddEmptySegment("", structure)
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segmentId, volume)
        return volume, segmentation

    def test_images_and_masks_go_out_voxel_by_voxel(self):
        for number, name in enumerate(("Müller 1", "scan 2", "scan 3")):
            self.scan(name, drawn=True, seed=number)
        self.scan("waits", drawn=False, seed=9)
        study = StudyExport(slicer.mrmlScene, self.scans).write(Path(self.folder.name) / "study")
        content = json.loads(study.read_text(encoding="utf-8"))
        self.assertEqual((len(content["training"]), len(content["unlabeled"])), (3, 1))
        for entry in content["training"]:
            volume = self.scans.byCaseId(entry["id"])
            image = sitk.ReadImage(str(study.parent / entry["image"]))
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), slicer.util.arrayFromVolume(volume))
            label = sitk.GetArrayFromImage(sitk.ReadImage(str(study.parent / entry["label"])))
            segmentation = self.scans.segmentationOf(volume)
            for value, structure in ((1, "Leber"), (2, "Milz 脾")):
                segmentId = segmentation.GetSegmentation().GetSegmentIdBySegmentName(structure)
                drawn = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segmentId, volume)
                np.testing.assert_array_equal(label == value, drawn != 0)
            again = slicer.util.loadVolume(str(study.parent / entry["image"]))
            matrix = slicer.util.arrayFromVTKMatrix(toVtk(OBLIQUE))
            found = vtk.vtkMatrix4x4()
            again.GetIJKToRASMatrix(found)
            np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(found), matrix, atol=1e-5)
            slicer.mrmlScene.RemoveNode(again)

    def test_roles_ids_and_segmentations_survive_an_mrb_file(self):
        volume, segmentation = self.scan("kept", drawn=True, seed=1)
        self.scans.setRole(volume, Role.TEST)
        self.scans.setSegmentation(volume, segmentation)
        caseId = self.scans.caseId(volume)
        file = str(Path(self.folder.name) / "scene.mrb")
        self.assertTrue(slicer.util.saveScene(file))
        slicer.mrmlScene.Clear(0)
        self.assertTrue(slicer.util.loadScene(file))
        (scan,) = ScanList(slicer.mrmlScene).scans()
        self.assertEqual((scan.name, scan.role, scan.drawn), ("kept", Role.TEST, 2))
        self.assertEqual(ScanList(slicer.mrmlScene).caseId(scan.volumeNode), caseId)
        self.assertEqual(scan.segmentationNode.GetName(), "kept mask")

    def test_a_scan_loaded_while_the_scene_is_open_appears_and_a_label_map_does_not(self):
        self.scan("one", drawn=False, seed=1)
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "no scan")
        self.assertEqual([scan.name for scan in self.scans.scans()], ["one"])


if __name__ == "__main__":
    unittest.main()
