"""slicer.app.ioManager(): files loaded by Slicer's own logics. Names as in qSlicerCoreIOManager.h."""

from pathlib import Path

from PySide6 import QtCore

from .Ledger import ledger
from .QtObject import StandIn, slot
from .Signals import emitDeclared
from .StandIns import stored, vtk

_SEGMENTATIONS = (".seg.nrrd", ".seg.nhdr", ".seg.vtm")
_VOLUMES = (
    ".nrrd",
    ".nhdr",
    ".nii",
    ".nii.gz",
    ".mha",
    ".mhd",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".bmp",
    ".dcm",
)


def _endsWith(path: str, endings: tuple) -> bool:
    return path.lower().endswith(endings)


class qSlicerIOManager(StandIn, QtCore.QObject):
    cppName = "qSlicerIOManager"
    signatures = ("newFileLoaded(qSlicerIO::IOProperties)", "fileSaved(qSlicerIO::IOProperties)")
    defaultSceneFileType = stored(str, "MRML Scene (.mrml)")

    def __init__(self, mrml):
        super().__init__()
        self._mrml = mrml

    @slot(str)
    def fileType(self, path):
        if _endsWith(path, _SEGMENTATIONS):
            return "SegmentationFile"
        if _endsWith(path, (".mrml", ".mrb")):
            return "SceneFile"
        return "VolumeFile" if _endsWith(path, _VOLUMES) else "NoFile"

    @slot(str, dict, vtk("vtkCollection"), vtk("vtkMRMLMessageCollection"), required=2)
    def loadNodes(self, kind, properties, loaded=None, _messages=None):
        path = properties.get("fileName", "")
        name = properties.get("name") or Path(path).name.split(".")[0]
        if not Path(path).exists():
            return False
        if kind == "SceneFile":
            self._mrml.open(Path(path))
            return True
        try:
            node = self._load(kind, Path(path), name, properties)
        except AssertionError:
            return False
        if loaded is not None:
            loaded.AddItem(node)
        emitDeclared(self, "newFileLoaded(qSlicerIO::IOProperties)", {"fileType": kind, "fileName": path})
        return True

    def _load(self, kind: str, path: Path, name: str, properties: dict):
        if kind == "SegmentationFile":
            return self._mrml.loadSegmentation(path, name)
        assert kind == "VolumeFile", f"the rig cannot load {kind}"
        labelmap, single = properties.get("labelmap", False), properties.get("singleFile", False)
        node = self._mrml.volumesLogic.AddArchetypeVolume(str(path), name, int(bool(labelmap)) + 4 * int(bool(single)))
        assert node is not None
        self._mrml.place(node)
        if properties.get("show", True):
            selection = self._mrml.applicationLogic.GetSelectionNode()
            selection.SetActiveVolumeID(node.GetID())
            self._mrml.applicationLogic.PropagateVolumeSelection()
        return node

    @slot(str, bool, vtk("vtkMRMLMessageCollection"), required=1)
    def loadScene(self, path, clear=True, _messages=None):
        if not Path(path).exists():
            return False
        (self._mrml.open if clear else self._mrml.add)(Path(path))
        return True

    @slot(str, dict, vtk("vtkMRMLMessageCollection"), vtk("vtkMRMLScene"), required=2)
    def saveNodes(self, _kind, properties, _messages=None, _scene=None):
        node = self._mrml.scene.GetNodeByID(properties.get("nodeID", ""))
        if node is None or not hasattr(node, "AddDefaultStorageNode"):
            return False
        node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(properties["fileName"])
        return bool(node.GetStorageNode().WriteData(node))

    @slot()
    def openAddDataDialog(self):
        ledger.dialogs.append(("openAddDataDialog", None))
        return True

    @slot()
    def addDefaultStorageNodes(self):
        return None
