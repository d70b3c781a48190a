"""The samples of Sample Data: what is loaded into a real scene, what is checked before, and what a failure says."""

import hashlib
import os
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
from packaged import ROOT, backendPython

slicer = pytest.importorskip("slicer") if not os.environ.get("CI") else __import__("slicer")

from GenSegSlicerLib import SampleDataSources as samples  # noqa: E402
from GenSegSlicerLib.Faults import StudyFaults  # noqa: E402

NAMES = [f"hippocampus_{number}" for part in samples.PARTS.values() for number in part]


@pytest.fixture(scope="module")
def archive(data, tmp_path_factory):
    """The Decathlon's archive in small: its folders and names, ten of its scans."""
    path = tmp_path_factory.mktemp("cache") / samples.ARCHIVE
    with tarfile.open(path, "w") as tar:
        for name in NAMES:
            tar.add(data / "hippocampus/images" / f"{name}.nii.gz", f"Task04_Hippocampus/imagesTr/{name}.nii.gz")
            tar.add(data / "hippocampus/labels" / f"{name}.nii.gz", f"Task04_Hippocampus/labelsTr/{name}.nii.gz")
    return path


@pytest.fixture
def trusted(archive, monkeypatch):
    """The small archive passes for the published one."""
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(samples, "CHECKSUM", f"MD5:{digest}")
    return archive


def sources(mrml, download=None, phantom=None, told=None) -> samples.SampleDataSources:
    told = [] if told is None else told
    return samples.SampleDataSources(mrml.scene, download, phantom, told.append)


def test_the_hippocampus_scans_come_as_volumes_and_masks_voxel_by_voxel(mrml, data, trusted):
    volumes = sources(mrml, lambda *_: str(trusted)).loadHippocampus()
    assert [volume.GetName() for volume in volumes] == NAMES
    for volume in volumes:
        name = volume.GetName()
        expected = mrml.loadVolume(data / "hippocampus/images" / f"{name}.nii.gz", "expected")
        assert np.array_equal(mrml.array(volume), mrml.array(expected))
        assert np.allclose(mrml.ijkToRas(volume), mrml.ijkToRas(expected), atol=1e-5)
        segmentation = volume.GetNodeReference("GenSegSlicer.Segmentation")
        if volume.GetAttribute("GenSegSlicer.Role") == "segment":
            assert segmentation is None
            continue
        label = mrml.array(mrml.loadVolume(data / "hippocampus/labels" / f"{name}.nii.gz", "label"))
        assert [segment.GetName() for segment in mrml.segments(segmentation)] == list(
            samples.HIPPOCAMPUS_LABELS.values()
        )
        for value, structure in samples.HIPPOCAMPUS_LABELS.items():
            assert np.array_equal(mrml.mask(segmentation, structure, volume), label == value)


def test_three_scans_are_labelled_four_wait_and_three_are_kept_for_the_score(mrml, trusted):
    volumes = sources(mrml, lambda *_: trusted).loadHippocampus()
    roles = [volume.GetAttribute("GenSegSlicer.Role") for volume in volumes]
    assert roles == ["labelled"] * 3 + ["segment"] * 4 + ["test"] * 3


def test_the_nodes_lie_in_one_folder_of_the_subject_hierarchy(mrml, trusted):
    volumes = sources(mrml, lambda *_: trusted).loadHippocampus()
    hierarchy = mrml.subjectHierarchy
    folders = {hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume)) for volume in volumes}
    (folder,) = folders
    assert "hippocampus" in hierarchy.GetItemName(folder)
    segmentation = volumes[0].GetNodeReference("GenSegSlicer.Segmentation")
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(segmentation)) == folder


def test_pressing_the_button_twice_loads_nothing_twice(mrml, trusted):
    first = sources(mrml, lambda *_: trusted).loadHippocampus()
    mrml.scene.RemoveNode(first[4])
    again = sources(mrml, lambda *_: trusted).loadHippocampus()
    assert mrml.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 10
    assert mrml.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 6
    assert [volume.GetName() for volume in again] == NAMES


def backend(code: str) -> str:
    """Run `code` in the Python that has the backend's packages, with the backend on its path."""
    code = f"import sys; sys.path.append({str(ROOT / 'backend/src')!r})\n{code}"
    done = subprocess.run([backendPython(), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_address_and_the_checksum_are_the_ones_that_monai_publishes():
    printed = backend(
        "from monai.apps.datasets import DecathlonDataset as d\n"
        "print(d.resource['Task04_Hippocampus'], 'MD5:' + d.md5['Task04_Hippocampus'])"
    )
    assert printed.split() == [samples.URL, samples.CHECKSUM]


def test_the_structures_are_named_as_the_backend_names_them():
    printed = backend(
        "from genseg.sample import split_decathlon as s\n"
        "print(s({'training': [{'image': str(i)} for i in range(99)], 'test': []})['labels'])"
    )
    assert printed.strip() == str({"0": "background", **{str(k): v for k, v in samples.HIPPOCAMPUS_LABELS.items()}})


def test_the_license_is_told_before_the_download(mrml, trusted):
    told = []

    def download(*_):
        assert "CC BY-SA 4.0" in told[0]
        return trusted

    sources(mrml, download, told=told).loadHippocampus()
    assert told


@pytest.mark.parametrize("fault", ["no network", "removed", "other content", "cut short"])
def test_a_download_that_failed_or_is_not_the_published_file_adds_nothing_and_says_what_to_do(
    mrml, archive, tmp_path, monkeypatch, fault
):
    path = tmp_path / "other.tar"

    def download(*_):
        if fault == "no network":
            raise ValueError("Failed to download")
        if fault == "other content":
            path.write_bytes(archive.read_bytes() + b"x")
        if fault == "cut short":
            path.write_bytes(archive.read_bytes()[:5000])
            monkeypatch.setattr(samples, "CHECKSUM", f"MD5:{hashlib.md5(path.read_bytes()).hexdigest()}")
        return str(path)

    with pytest.raises(StudyFaults) as caught:
        sources(mrml, download).loadHippocampus()
    (found,) = caught.value.faults
    assert "phantom" in found.remedy.lower()
    assert mrml.scene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == 0


class Phantom:
    """Has what genseg.phantom has; each voxel tells where it is."""

    LABELS = {1: "liver", 2: "kidneys", 3: "spleen"}  # noqa: RUF012
    SPACING = 4.0

    @staticmethod
    def make_body(seed):
        image = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8) + seed
        return types.SimpleNamespace(image=image, label=(image % 4).astype(np.uint8))


def test_the_phantom_has_the_geometry_that_the_backend_writes_to_files(mrml, tmp_path):
    """Head up, nose to the front: read back by Slicer from a file as genseg.sample writes it."""
    sitk = pytest.importorskip("SimpleITK")
    volumes = sources(mrml, phantom=lambda: Phantom).loadPhantom()
    image = sitk.GetImageFromArray(Phantom.make_body(1).image)
    image.SetSpacing((4.0,) * 3)
    image.SetOrigin([-(n - 1) / 2 * 4.0 for n in (8, 6, 4)])
    sitk.WriteImage(image, str(tmp_path / "body.nii.gz"))
    expected = mrml.loadVolume(tmp_path / "body.nii.gz")
    assert np.allclose(mrml.ijkToRas(volumes[0]), mrml.ijkToRas(expected), atol=1e-5)
    assert np.array_equal(mrml.array(volumes[0]), mrml.array(expected))
    segmentation = volumes[0].GetNodeReference("GenSegSlicer.Segmentation")
    assert np.array_equal(mrml.mask(segmentation, "kidneys", volumes[0]), Phantom.make_body(1).label == 2)


def test_the_phantom_is_called_a_phantom_and_not_a_patient(mrml):
    volumes = sources(mrml, phantom=lambda: Phantom).loadPhantom()
    hierarchy = mrml.subjectHierarchy
    folder = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volumes[0]))
    assert "not a patient" in hierarchy.GetItemName(folder)
    assert all("phantom" in volume.GetName() for volume in volumes)


def test_the_backends_generator_offers_what_the_sample_needs():
    backend(
        "from genseg.phantom import LABELS, SPACING, make_body\n"
        "b = make_body(1)\n"
        "assert b.image.shape == b.label.shape and set(LABELS) <= set(b.label.ravel().tolist()) and SPACING > 0"
    )


def test_a_missing_package_is_named_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "genseg").mkdir()
    (tmp_path / "genseg/__init__.py").write_text("")
    (tmp_path / "genseg/phantom.py").write_text("import a_package_that_nobody_has\n")
    for name in [name for name in sys.modules if name.split(".")[0] == "genseg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(StudyFaults) as caught:
        samples.phantomOf(tmp_path)
    (found,) = caught.value.faults
    assert "a_package_that_nobody_has" in found.rule and "install" in found.remedy
    for name in [name for name in sys.modules if name.split(".")[0] == "genseg"]:
        del sys.modules[name]


class Sources:
    """Slicer's SampleDataLogic as far as registering goes, with its rule that all fields are lists of one length."""

    def __init__(self):
        self.listed = {}
        self.categories = {}

    def sampleDataSourcesByCategory(self, category):
        return self.listed.get(category, [])

    def registerCustomSampleDataSource(self, category, sampleName, uris, fileNames, nodeNames, **fields):
        assert isinstance(uris, str) and isinstance(fileNames, str) and isinstance(nodeNames, str)
        assert set(fields) <= {"customDownloader", "thumbnailFileName", "loadFiles", "checksums"}
        source = types.SimpleNamespace(sampleName=sampleName, uris=[uris], nodeNames=[nodeNames], **fields)
        self.listed.setdefault(category, []).append(source)


class NewSources(Sources):
    """Slicer 5.12."""

    def registerCustomSampleDataCategory(self, category, title):
        self.categories[category] = title


@pytest.mark.parametrize("kind", [Sources, NewSources])
def test_both_samples_are_listed_once_with_a_thumbnail_and_take_the_new_functions_after_a_reload(kind):
    listed = kind()
    icons = ROOT / "GenSegSlicer/Resources/Icons"
    samples.registerSamples(listed, icons, {samples.HIPPOCAMPUS: "old", samples.PHANTOM: "old"})
    samples.registerSamples(listed, icons, {samples.HIPPOCAMPUS: "new", samples.PHANTOM: "new"})
    found = listed.sampleDataSourcesByCategory(samples.CATEGORY)
    assert [source.sampleName for source in found] == [samples.HIPPOCAMPUS, samples.PHANTOM]
    assert all(source.customDownloader == "new" for source in found)
    assert all(os.path.isfile(source.thumbnailFileName) for source in found)
    assert found[0].checksums == samples.CHECKSUM
    assert listed.categories == ({samples.CATEGORY: samples.CATEGORY} if kind is NewSources else {})
