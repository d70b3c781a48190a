"""What must hold for scans before anything can be learned from them. Every fault is found before one is told."""

import hashlib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import slicer

from GenSegSlicerLib.Faults import Fault
from GenSegSlicerLib.Scans import Role, Scan
from GenSegSlicerLib.SegmentMasks import SegmentMasks
from GenSegSlicerLib.Translate import _
from GenSegSlicerLib.Voxels import hasVoxels, ijkToRas, isPhotograph, volumeArray


def imageFaults(scan: Scan) -> list[Fault]:
    """Faults of one scan's image."""
    image = scan.volumeNode.GetImageData()
    if not hasVoxels(image):
        rule, remedy = _("There is no image in it."), _("Load it again, or set its use to Ignore.")
        return [Fault(scan.name, rule, remedy)]
    return [Fault(scan.name, rule, remedy) for rule, remedy in _imageFaults(scan, image)]


def _imageFaults(scan: Scan, image) -> Iterator[tuple[str, str]]:
    axes = ijkToRas(scan.volumeNode)[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.min() <= 0 or not np.isfinite(lengths).all():
        yield _("Its voxels have no size."), _("Correct its spacing in the module Volumes.")
    elif np.abs((axes / lengths).T @ (axes / lengths) - np.eye(3)).max() > 1e-3:
        yield (
            _("Its axes are not perpendicular (tilted gantry)."),
            _("Resample it, for example with the module Resample Scalar/Vector/DWI Volume, and use the result."),
        )
    if sorted(image.GetDimensions())[1] == 1:
        yield _("It is only one voxel wide."), _("Set its use to Ignore.")
    array = volumeArray(scan.volumeNode)
    if np.issubdtype(array.dtype, np.floating) and (bad := int(np.count_nonzero(~np.isfinite(array)))):
        rule = _("{count} of its voxels hold no number.").format(count=bad)
        yield rule, _("Load it again from its source, or replace these voxels by the value of the background.")
    elif array.min() == array.max():
        yield _("It shows nothing: all its voxels are the same."), _("Load it again, or set its use to Ignore.")


def maskFaults(scan: Scan, masks: SegmentMasks) -> Iterator[Fault]:
    """Faults of one scan's segmentation on the scan's grid."""
    segmentation = scan.segmentationNode.GetSegmentation()
    names = {i: segmentation.GetSegment(i).GetName() for i in masks.segmentIds}
    for (first, second), count in masks.overlaps.items():
        rule = _("'{first}' and '{second}' overlap in {count} voxels, but a voxel can belong to one structure only.")
        yield Fault(
            scan.name,
            rule.format(first=names[first], second=names[second], count=count),
            _("In the Segment Editor subtract one from the other with the effect Logical operators."),
        )
    for segmentId, count in masks.outside.items():
        if count:
            rule = _("{count} of the {all} voxels of '{name}' are drawn outside the scan and would be lost.")
            yield Fault(
                scan.name,
                rule.format(count=count, all=masks.drawn[segmentId], name=names[segmentId]),
                _("If it belongs to another scan, choose that one. Else use 'Specify geometry' in the Segment Editor."),
            )
        elif masks.drawn[segmentId] and not masks.kept[segmentId]:
            rule = _("'{name}' is finer than the voxels of the scan: nothing of it is left.")
            yield Fault(scan.name, rule.format(name=names[segmentId]), _("Draw it larger, or remove the segment."))


def studyFaults(scans: list[Scan], patients: dict[str, str]) -> Iterator[Fault]:
    """Faults of the scans among one another. patients: {volume's id: its patient in the subject hierarchy}."""
    if not any(scan.role == Role.LABELLED for scan in scans):
        yield Fault(
            _("study"),
            _("At least one scan must be labeled, but none is."),
            _("Choose a scan, press 'Label this scan' and draw the structures."),
        )
    readable = [scan for scan in scans if hasVoxels(scan.volumeNode.GetImageData())]
    yield from _unlikeTheOthers(readable)
    yield from _sameTwice(readable)
    tested = {
        patients[s.volumeNode.GetID()]: s for s in scans if s.role == Role.TEST and s.volumeNode.GetID() in patients
    }
    for scan in scans:
        other = tested.get(patients.get(scan.volumeNode.GetID(), ""))
        if scan.role == Role.LABELLED and other is not None:
            rule = _(
                "The model must not learn from a patient it is tested on, but the test scan '{other}' shows the same."
            )
            remedy = _("Give both scans the same use.")
            yield Fault(scan.name, rule.format(other=other.name), remedy)


def _unlikeTheOthers(scans: list[Scan]) -> Iterator[Fault]:
    """Scans with another number of dimensions or channels than most."""
    usualDims = _usual([scan.dims for scan in scans])
    usualChannels = _usual([channels(scan) for scan in scans])
    kinds = {2: _("a single image"), 3: _("a volume")}
    for scan in scans:
        if scan.dims != usualDims:
            rule = _("It is {kind}, but most scans of the study are not.").format(kind=kinds[scan.dims])
            yield Fault(scan.name, rule, _("Set its use to Ignore, or make a study of its own for it."))
        elif channels(scan) != usualChannels:
            rule = _("It has {found} channels, but most scans have {usual}.")
            rule = rule.format(found=channels(scan), usual=usualChannels)
            remedy = _("Use color images only or gray images only; set the use of the others to Ignore.")
            yield Fault(scan.name, rule, remedy)


def _usual(values: list[int]) -> int | None:
    return Counter(values).most_common(1)[0][0] if values else None


def channels(scan: Scan) -> int:
    """Channels of the image; the opacity of a photograph is none."""
    components = scan.volumeNode.GetImageData().GetNumberOfScalarComponents()
    return components - 1 if scan.isPhotograph and components in (2, 4) else components


def _sameTwice(scans: list[Scan]) -> Iterator[Fault]:
    seen: dict[tuple, Scan] = {}
    for scan in scans:
        array = volumeArray(scan.volumeNode)
        digest = hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).digest()
        first = seen.setdefault((array.shape, digest), scan)
        if first is not scan:
            rule = _("It is the same image as '{first}', and a study must hold an image once.").format(first=first.name)
            yield Fault(scan.name, rule, _("Set the use of one of them to Ignore."))


def scanToken(volumeNode, flips: tuple[bool, ...] = ()) -> str:
    """Tells a scan from all others: a digest of its voxels, their type and number along each axis.

    Where the voxels lie is left out, as saving may round it; the grid is compared when a prediction comes. So is the
    opacity of photographs, which is not exported. flips: for each axis KJI, whether it is read from its end.
    """
    if not hasVoxels(volumeNode.GetImageData()):
        return ""
    array = withoutOpacity(volumeNode)
    array = np.flip(array, [axis for axis, flipped in enumerate(flips) if flipped])
    digest = hashlib.blake2b(f"{array.dtype.str} {array.shape}".encode(), digest_size=16)
    for plane in array:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.hexdigest()


def withoutOpacity(volumeNode) -> np.ndarray:
    """The voxels KJI or KJIC; the opacity of photographs is left out."""
    array = volumeArray(volumeNode)
    if array.ndim == 3 or array.shape[-1] not in (2, 4) or not isPhotograph(volumeNode):
        return array
    array = array[..., : array.shape[-1] - 1]
    return array[..., 0] if array.shape[-1] == 1 else array


def patientsOf(scene, scans: list[Scan]) -> dict[str, str]:
    """{volume's id: a number for its patient}: patients of the subject hierarchy, numbered so that no name gets out."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    numbers: dict[int, str] = {}
    patients = {}
    for scan in scans:
        item = hierarchy.GetItemByDataNode(scan.volumeNode) if hierarchy is not None else 0
        level = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMLevelPatient()
        patient = hierarchy.GetItemAncestorAtLevel(item, level) if item else 0
        if patient:
            patients[scan.volumeNode.GetID()] = numbers.setdefault(patient, f"patient-{len(numbers) + 1}")
    return patients
