"""Inside Slicer: from drawn scans to predicted segmentations, with the real training program as a process of its own.

Runs where the environment variable GENSEG_PYTHON names a Python with the backend's packages, as the workflow provides.
"""

import os
import tempfile
import time
import unittest
from pathlib import Path

import GenSegSlicerLib
import numpy as np
import slicer
from GenSegSlicerLib.Backend import Backend, TrainSettings
from GenSegSlicerLib.LabelTable import LabelTable
from GenSegSlicerLib.PredictionImport import PredictionImport
from GenSegSlicerLib.RunController import RunController, State
from GenSegSlicerLib.Scans import ScanList
from GenSegSlicerLib.StudyExport import StudyExport

MOST_SECONDS = 900
SHAPE = (24, 28, 32)


@unittest.skipUnless(os.environ.get("GENSEG_PYTHON"), "GENSEG_PYTHON names no Python with the backend's packages")
class GenSegSlicerTrainingTestCase(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.folder = tempfile.TemporaryDirectory(prefix="genseg ü ")
        self.addCleanup(self.folder.cleanup)
        self.scans = ScanList(slicer.mrmlScene)
        self.runs = RunController()
        self.addCleanup(self.runs.close)

    def scan(self, seed: int, drawn: bool):
        """A bright ball in noise, somewhere else in each scan → the volume and where the ball is [k, j, i]."""
        random = np.random.default_rng(seed)
        center = random.uniform(0.35, 0.65, 3) * SHAPE
        grid = np.indices(SHAPE).transpose(1, 2, 3, 0)
        ball = np.linalg.norm(grid - center, axis=-1) < random.uniform(5, 7)
        image = (random.normal(100, 20, SHAPE) + 150 * ball).astype(np.int16)
        volume = slicer.util.addVolumeFromArray(image, name=f"Kugel {seed}")
        if drawn:
            segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"Kugel {seed} mask")
            segmentation.CreateDefaultDisplayNodes()
            segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
            segmentId = segmentation.GetSegmentation().AddEmptySegment("", "ball")
            slicer.util.updateSegmentBinaryLabelmapFromArray(ball.astype(np.uint8), segmentation, segmentId, volume)
        return volume, ball

    def train(self) -> Path:
        """Export the scene, train a little, and wait. → the run folder"""
        folder = Path(self.folder.name)
        study = StudyExport(slicer.mrmlScene, self.scans).write(folder / "study")
        source = Backend.locate(Path(GenSegSlicerLib.__file__).parents[1])
        backend = Backend(source, Path(os.environ["GENSEG_PYTHON"]), external=True)
        settings = TrainSettings(dataset=study, out=folder / "run", method="supervised", iterations=80, device="cpu")
        self.runs.environment = backend.environment(slicer.util.startupEnvironment(), Path(slicer.app.slicerHome))
        self.assertTrue(self.runs.start(backend.trainCommand(settings), settings.out), self.runs.explanation)
        end = time.monotonic() + MOST_SECONDS
        while self.runs.active and time.monotonic() < end:
            self.runs.tick()
            slicer.app.processEvents()
            time.sleep(0.1)
        self.assertIs(self.runs.state, State.DONE, self.runs.explanation)
        return settings.out

    def test_scans_are_exported_trained_on_and_segmented_in_place(self):
        for seed in range(3):
            self.scan(seed, drawn=True)
        waiting, ball = self.scan(9, drawn=False)
        run = self.train()
        file = run / "predictions" / f"{self.scans.caseId(waiting)}.seg.nrrd"
        prediction = PredictionImport(slicer.mrmlScene, self.scans).load(
            file, waiting, LabelTable.ofRun(run), run, self.scans.caseId(waiting)
        )
        segmentId = prediction.GetSegmentation().GetSegmentIdBySegmentName("ball")
        found = slicer.util.arrayFromSegmentBinaryLabelmap(prediction, segmentId, waiting) != 0
        dice = 2 * (found & ball).sum() / (found.sum() + ball.sum())
        self.assertGreater(dice, 0.7)
        self.assertIn("dice/training", self.runs.progress.curves)


if __name__ == "__main__":
    unittest.main()
