"""The module opened in the rig, with real scans and what a user does with it."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from packaged import backendPython

MODULE = Path(__file__).parents[2] / "GenSegSlicer"
NAMES = {1: "Anterior", 2: "Posterior"}


class Opened:
    """`widget`, `ui` and `logic` of the module; results go into `folder`; trains with the backend's Python."""

    def __init__(self, rig, folder: Path, external: bool = True):
        self.rig, self.folder = rig, folder
        rig.app.userSettings().setValue("GenSegSlicer/OutputFolder", str(folder))
        rig.app.userSettings().setValue("GenSegSlicer/Python", backendPython() if external else "")
        self.widget = rig.openModule(MODULE)
        rig.pump(0.1)

    @property
    def ui(self):
        return self.widget.ui

    @property
    def logic(self):
        return self.widget.logic

    def click(self, name: str) -> None:
        self.rig.click(getattr(self.ui, name))

    def wait(self, until, seconds: float = 120.0) -> None:
        self.rig.wait(until, seconds)

    def waitForEnd(self, seconds: float = 240.0) -> None:
        self.wait(lambda: not self.logic.work.controller.active, seconds)
        self.rig.pump(0.3)

    def trainFor(self, seconds: float) -> None:
        """A shorter time than the window offers, for tests."""
        self.widget.conductor.trainPanel.seconds = lambda: seconds

    def select(self, name: str) -> None:
        """Click the row of this scan."""
        rows = {scan.name: row for row, scan in enumerate(self.widget.conductor.scansPanel._rows)}
        self.ui.scansTable.selectRow(rows[name])
        self.rig.pump()

    def rows(self) -> list[tuple]:
        """(name, use, state) as the table of scans shows them."""
        table = self.ui.scansTable
        texts = []
        for row in range(table.rowCount):
            cells = [table.item(row, 0).text(), table.cellWidget(row, 1).currentText, table.item(row, 3).text()]
            texts.append(tuple(cells))
        return texts

    def addScans(self, paths: list[Path]) -> None:
        """Add files with the button."""
        self.rig.answer([str(path) for path in paths])
        self.click("addFilesButton")

    def draw(self, volume, labels: np.ndarray, names: dict[int, str] = NAMES):
        """Draw labels [k, j, i] on a scan, as a user of the Segment Editor would. → segmentation node."""
        import slicer

        segmentation = self.logic.session.segmentationToLabel(volume)
        inside = segmentation.GetSegmentation()
        for value, name in names.items():
            segmentId = inside.GetSegmentIdBySegmentName(name) or inside.AddEmptySegment("", name)
            mask = (labels == value).astype("uint8")
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segmentId, volume)
        self.widget.conductor.scansPanel.refresh()
        return segmentation


def hippocampi(data: Path, count: int) -> list[tuple[Path, np.ndarray]]:
    """(file, expert labels [k, j, i]) of the first scans of the real study."""
    study = data / "hippocampus"
    cases = json.loads((study / "dataset.json").read_text())["training"][:count]
    return [(study / c["image"], sitk.GetArrayFromImage(sitk.ReadImage(str(study / c["label"])))) for c in cases]


def coarseHippocampi(data: Path, count: int, folder: Path) -> list[tuple[Path, np.ndarray]]:
    """The same at half their resolution, written to `folder`: an eighth of the work for a training that matters."""
    coarse = []
    for file, labels in hippocampi(data, count):
        sitk.WriteImage(sitk.ReadImage(str(file))[::2, ::2, ::2], str(folder / file.name))
        coarse.append((folder / file.name, labels[::2, ::2, ::2]))
    return coarse


def slicersPython(folder: Path, monkeypatch) -> Path:
    """A program PythonSlicer on the path: this Python, as Slicer's launcher would start its own."""
    program = folder / "PythonSlicer"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program
