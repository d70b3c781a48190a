"""The two studies that GenSeg adds to Slicer's Sample Data: hippocampus (downloaded) and phantom (drawn here)."""

import hashlib
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.Scans import Role, ScanList
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import nodesOf, toVtk

CATEGORY = "GenSeg"
HIPPOCAMPUS, PHANTOM = "GenSegHippocampus", "GenSegPhantom"

# The Medical Segmentation Decathlon's own archive of Task04, 27 MB. CC BY-SA 4.0, Antonelli et al. 2022.
URL = "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task04_Hippocampus.tar"
ARCHIVE = "Task04_Hippocampus.tar"
CHECKSUM = "MD5:9d24dba78a72977dbd1d2e110310f31b"
HIPPOCAMPUS_LABELS = {1: "hippocampus anterior", 2: "hippocampus posterior"}

# Enough to train at once and to see how well it went: three scans with masks to learn from, four without, and three
# whose masks are only used for the Dice in the result table.
PARTS = {
    Role.LABELLED: ("001", "004", "007"),
    Role.SEGMENT: ("014", "023", "025", "026"),
    Role.TEST: ("033", "034", "037"),
}
PHANTOM_PARTS = {Role.LABELLED: (1, 2, 3), Role.SEGMENT: (4, 5, 6, 7), Role.TEST: (8, 9, 10)}
COLORS = ((0.902, 0.624, 0.0), (0.337, 0.706, 0.914), (0.0, 0.62, 0.451))  # the first of the backend's palette
SAMPLE = "GenSegSlicer.Sample"  # attribute of a volume: which scan of a sample it is, so that it is not loaded twice


@dataclass(frozen=True)
class SampleScan:
    """One scan of a sample: image [k, j, i], label map [k, j, i] or None, and where the voxels lie (RAS, mm)."""

    name: str
    role: Role
    image: np.ndarray
    label: np.ndarray | None
    ijkToRas: np.ndarray  # 4 × 4


class SampleDataSources:
    """Puts the sample studies into a scene.

    `download(url, fileName, checksum)` returns the path of the downloaded file (Sample Data's own
    `downloadFileIntoCache`), `phantom()` what the backend's generator offers (see `phantomOf`), and `tell(text)` shows
    how far it is. Both loaders return the volume nodes of the study in order and raise StudyFaults with a remedy.
    A scan that is in the scene already is not loaded again.
    """

    def __init__(self, scene, download: Callable, phantom: Callable, tell: Callable = lambda text: None):
        self.scene = scene
        self.scanList = ScanList(scene)
        self.download = download
        self.phantom = phantom
        self.tell = tell

    def loadHippocampus(self) -> list:
        """Download the Decathlon's hippocampus scans (27 MB, kept in Slicer's cache) and load ten of them."""
        self.tell(
            _(
                "Hippocampus in MRI, from the Medical Segmentation Decathlon (Antonelli et al. 2022), published under "
                "CC BY-SA 4.0. Name the source and the license wherever you show results."
            )
        )
        archive = self._archive()
        wanted = [(f"hippocampus_{number}", role) for role, numbers in PARTS.items() for number in numbers]
        try:
            with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(prefix="genseg") as folder:
                scans = [self._fromArchive(tar, name, role, Path(folder)) for name, role in wanted]
        except (tarfile.TarError, KeyError, OSError, RuntimeError) as error:
            raise _badDownload(f"{type(error).__name__}: {error}") from error
        return self._load(scans, _("GenSeg sample: hippocampus"), HIPPOCAMPUS_LABELS)

    def loadPhantom(self) -> list:
        """Draw ten upper abdomens, each about a second: no patient, no network, the same voxels every time."""
        maker = self.phantom()
        wanted = [(number, role) for role, numbers in PHANTOM_PARTS.items() for number in numbers]
        scans = []
        for done, (number, role) in enumerate(wanted):
            self.tell(_("Drawing phantom {number} of {total}").format(number=done + 1, total=len(wanted)))
            body = maker.make_body(number)
            label = None if role == Role.SEGMENT else body.label
            geometry = _centered(body.image.shape, maker.SPACING)
            scans.append(SampleScan(f"phantom_{number:02d}", role, body.image, label, geometry))
        return self._load(scans, _("GenSeg sample: phantom (not a patient)"), maker.LABELS)

    def _archive(self) -> Path:
        """The archive, whole. Slicer's download removes a damaged file without a word and still returns its path."""
        try:
            path = Path(self.download(URL, ARCHIVE, CHECKSUM))
        except (ValueError, OSError) as error:
            raise StudyFaults(
                [
                    Fault(
                        _("Hippocampus sample"),
                        _("The scans could not be downloaded ({reason}).").format(reason=error),
                        _(
                            "Check the connection. Behind a proxy, set HTTPS_PROXY before Slicer starts. The phantom "
                            "needs no network."
                        ),
                    )
                ]
            ) from error
        if not path.is_file():
            raise _badDownload(_("its checksum is not the published one"))
        digest = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != CHECKSUM.split(":")[1]:
            raise _badDownload(_("its checksum is not the published one"))
        return path

    def _fromArchive(self, tar: tarfile.TarFile, name: str, role: Role, folder: Path) -> SampleScan:
        """Read one case out of the archive by way of `folder`; nothing else is unpacked."""
        images = {}
        for part in ("imagesTr",) if role == Role.SEGMENT else ("imagesTr", "labelsTr"):
            member = tar.extractfile(f"{ARCHIVE[:-4]}/{part}/{name}.nii.gz")
            if member is None:
                raise KeyError(name)
            file = folder / f"{part}_{name}.nii.gz"
            file.write_bytes(member.read())
            images[part] = sitk.ReadImage(str(file))
        image, label = images["imagesTr"], images.get("labelsTr")
        mask = None if label is None else sitk.GetArrayFromImage(label)
        return SampleScan(name, role, sitk.GetArrayFromImage(image), mask, _ijkToRas(image))

    def _load(self, scans: list[SampleScan], title: str, labels: dict[int, str]) -> list:
        """Make the nodes of those scans that the scene lacks; return the volume nodes of all, in order."""
        volumes = nodesOf(self.scene, "vtkMRMLScalarVolumeNode")
        present = {node.GetAttribute(SAMPLE): node for node in volumes if node.GetAttribute(SAMPLE)}
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        folder = None
        for scan in scans:
            if scan.name in present:
                continue
            volume = present[scan.name] = self._volume(scan)
            nodes = [volume]
            if scan.label is not None:
                nodes.append(self._segmentation(scan, volume, labels))
            if hierarchy is None:
                continue
            if folder is None:
                folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), title)
            for node in nodes:
                item = hierarchy.GetItemByDataNode(node)
                if item:
                    hierarchy.SetItemParent(item, folder)
                else:
                    hierarchy.CreateItem(folder, node)
        return [present[scan.name] for scan in scans]

    def _volume(self, scan: SampleScan):
        volume = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scan.name)
        volume.SetIJKToRASMatrix(toVtk(scan.ijkToRas))
        volume.SetAndObserveImageData(_imageData(vtk.vtkImageData(), scan.image))
        volume.CreateDefaultDisplayNodes()
        volume.SetAttribute(SAMPLE, scan.name)
        self.scanList.setRole(volume, scan.role)
        return volume

    def _segmentation(self, scan: SampleScan, volume, labels: dict[int, str]):
        """The scan's mask as a segmentation node on the volume's own grid, one segment a structure."""
        name = _("{scan} mask").format(scan=scan.name)
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for (value, structure), color in zip(sorted(labels.items()), COLORS, strict=False):
            mask = slicer.vtkOrientedImageData()
            _imageData(mask, (scan.label == value).astype(np.uint8))
            mask.SetGeometryFromImageToWorldMatrix(toVtk(scan.ijkToRas))
            node.AddSegmentFromBinaryLabelmapRepresentation(mask, structure, list(color))
        self.scanList.setSegmentation(volume, node)
        return node


def registerSamples(sampleDataLogic, icons: Path, loaders: dict[str, Callable]) -> None:
    """List the samples in Slicer's Sample Data module.

    `sampleDataLogic` is the class SampleData.SampleDataLogic, `icons` the folder of the thumbnails, `loaders` the
    function for HIPPOCAMPUS and for PHANTOM; each is called with the source when its button is pressed. After a
    reload of the module the functions are replaced, and nothing is listed twice.
    """
    if hasattr(sampleDataLogic, "registerCustomSampleDataCategory"):  # Slicer 5.12 and later
        sampleDataLogic.registerCustomSampleDataCategory(CATEGORY, title=CATEGORY)
    known = {source.sampleName: source for source in sampleDataLogic.sampleDataSourcesByCategory(CATEGORY)}
    about = {
        HIPPOCAMPUS: {"uris": URL, "fileNames": ARCHIVE, "checksums": CHECKSUM},
        PHANTOM: {"uris": "", "fileNames": ""},  # drawn here; Sample Data wants the fields all the same
    }
    for name, fields in about.items():
        if name in known:
            known[name].customDownloader = loaders[name]
            continue
        sampleDataLogic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=name,
            nodeNames=name,
            thumbnailFileName=str(Path(icons) / f"{name}.png"),
            customDownloader=loaders[name],
            loadFiles=False,
            **fields,
        )


def phantomOf(backendFolder: Path):
    """The backend's own generator: a module with make_body(seed), LABELS and SPACING (mm).

    `backendFolder` holds the package `genseg`. Raises StudyFaults where a package that it needs is not installed.
    """
    if str(backendFolder) not in sys.path:
        sys.path.append(str(backendFolder))
    try:
        from genseg import phantom
    except ImportError as error:
        missing = error.name or str(error)
        raise StudyFaults(
            [
                Fault(
                    _("Phantom sample"),
                    _("The phantom is drawn by GenSeg's training program, which needs the package {missing}.").format(
                        missing=missing
                    ),
                    _("Open the GenSeg module and let it install what it needs, then try again."),
                )
            ]
        ) from error
    return phantom


def _badDownload(reason: str) -> StudyFaults:
    rule = _("The file that came from {url} is not usable: {reason}.").format(url=URL, reason=reason)
    remedy = _("Try again. If it stays so, a proxy may be changing downloads. The phantom needs no network.")
    return StudyFaults([Fault(_("Hippocampus sample"), rule, remedy)])


def _imageData(imageData, array: np.ndarray):
    """Fill `imageData` with a copy of array [k, j, i]."""
    imageData.SetDimensions(*reversed(array.shape))
    imageData.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).ravel(), deep=True))
    return imageData


def _ijkToRas(image: sitk.Image) -> np.ndarray:
    """Image file geometry (LPS) as Slicer's voxel to RAS matrix."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


def _centered(shape: tuple, spacing: float) -> np.ndarray:
    """Geometry of an array [k, j, i] drawn in LPS around the scanner's origin, `spacing` in mm."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = [-(size - 1) / 2 * spacing for size in reversed(shape)]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
