"""The study's structures: one table of numbers, names, colors and terminology for all scans."""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import slicer
import vtk

from GenSegSlicerLib.Faults import Fault, StudyFaults
from GenSegSlicerLib.Scans import Role, Scan
from GenSegSlicerLib.Translate import _

MOST_STRUCTURES = 249  # what the backend can hold besides the background
_TERMINOLOGY = slicer.vtkSegment.GetTerminologyEntryTagName()
_GENERIC = {("SCT", "85756007"), ("SRT", "T-D0050"), ("", "")}  # tissue, in both codings, or nothing
_PALETTE = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0)]


@dataclass(frozen=True)
class Structure:
    """One structure: its number in every file, its name, RGB color (0 to 1) and Slicer's terminology entry or ''."""

    value: int
    name: str
    color: tuple[float, float, float]
    terminology: str = ""


class LabelTable:
    """Structures by ascending value; `warnings` says in sentences what was taken as the same although it differs.

    Segments are the same structure where they share a terminology or a name (spaces, upper and lower case do not
    count). "Tissue", which Slicer gives to every new segment, says nothing, nor does a terminology that one
    segmentation uses twice (two kidneys). One terminology under several names: the first name stays, with a warning.
    One name with several terminologies: the name wins, with a warning. Several of both that cross (a segment named
    liver and classified as spleen): fault.
    """

    def __init__(self, structures: list[Structure], warnings: list[str] | None = None):
        self.structures = sorted(structures, key=lambda structure: structure.value)
        self.warnings = list(warnings or [])
        self._names = {nameKey(s.name): s.value for s in self.structures}
        self._terms: dict[tuple, int] = {}
        keys = [termKey(s.terminology) for s in self.structures]
        for structure, key in zip(self.structures, keys, strict=True):
            if key is not None and keys.count(key) == 1:
                self._terms[key] = structure.value

    def __len__(self) -> int:
        return len(self.structures)

    def structure(self, value: int) -> Structure | None:
        return next((s for s in self.structures if s.value == value), None)

    # --- from segmentations ----------------------------------------------------------------------

    @classmethod
    def ofScans(cls, scans: list[Scan]) -> "LabelTable":
        """The table of labelled and test scans, and of segmentations begun but still empty. Raises StudyFaults."""
        used = [
            scan.segmentationNode
            for scan in scans
            if scan.segmentationNode is not None
            and (scan.role in (Role.LABELLED, Role.TEST) or (scan.role == Role.SEGMENT and not scan.drawn))
        ]
        return cls.ofSegmentations(list(dict.fromkeys(used)))

    @classmethod
    def ofSegmentations(cls, nodes: list) -> "LabelTable":
        """One table for all segmentation nodes, values 1, 2 … by first appearance. Raises StudyFaults."""
        builder = _Builder(nodes)
        builder.build()
        table = cls(builder.structures, builder.warnings)
        table._names, table._terms = builder.names, builder.terms
        return table

    def values(self, segmentationNode) -> dict[str, int]:
        """{segment id: value} for every segment that the table knows."""
        found = {i: self._value(segment) for i, segment in segmentsOf(segmentationNode)}
        return {i: value for i, value in found.items() if value is not None}

    def _value(self, segment) -> int | None:
        value = self._names.get(nameKey(segment.GetName()))
        return value if value is not None else self._terms.get(termKey(terminologyOf(segment)))

    # --- into segmentations ----------------------------------------------------------------------

    def newSegmentation(self, scene, volumeNode):
        """An empty segmentation with the study's structures: grid, transform and subject hierarchy as the volume's."""
        name = _("{scan} segmentation").format(scan=volumeNode.GetName())
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
        node.CreateDefaultDisplayNodes()
        lieOn(node, volumeNode)
        self.addMissing(node)
        placeBeside(scene, node, volumeNode)
        return node

    def addMissing(self, segmentationNode) -> list[str]:
        """Add an empty segment for every structure that the segmentation lacks; returns their names."""
        present = set(self.values(segmentationNode).values())
        missing = [structure for structure in self.structures if structure.value not in present]
        segmentation = segmentationNode.GetSegmentation()
        for structure in missing:
            segmentId = segmentation.AddEmptySegment("", structure.name, structure.color)
            describe(segmentation.GetSegment(segmentId), structure)
        return [structure.name for structure in missing]

    # --- files -----------------------------------------------------------------------------------

    def toDataset(self) -> dict[str, object]:
        """`labels` of a dataset.json: {"0": "background", "1": {"name", "color" (0 to 255), "terminology"}}."""
        labels: dict[str, object] = {"0": "background"}
        for s in self.structures:
            entry: dict[str, object] = {"name": s.name, "color": [round(255 * channel) for channel in s.color]}
            if s.terminology:
                entry["terminology"] = s.terminology
            labels[str(s.value)] = entry
        return labels

    @classmethod
    def ofRun(cls, runFolder: Path) -> "LabelTable":
        """The table a run was trained with, from its study.json. Raises OSError, ValueError or KeyError."""
        study = json.loads((Path(runFolder) / "study.json").read_text(encoding="utf-8"))
        structures = []
        for label in sorted(study["labels"]["labels"], key=lambda label: int(label["value"])):
            if int(label["value"]) == 0:
                continue
            color = label.get("color") or _PALETTE[len(structures) % len(_PALETTE)]
            rgb = tuple(channel / 255 for channel in color)
            structures.append(Structure(int(label["value"]), str(label["name"]), rgb, label.get("terminology") or ""))
        return cls(structures)


class _Builder:
    """Joins segments that share a name or a terminology into structures; see LabelTable for the rules.

    The order of the scans decides numbers and which name is shown, never what belongs together.
    """

    def __init__(self, nodes: list):
        self.segments = [(node, segment) for node in nodes for _id, segment in segmentsOf(node)]
        self.unclear = _usedTwice(nodes)
        self.structures: list[Structure] = []
        self.names: dict[str, int] = {}
        self.terms: dict[tuple, int] = {}
        self.warnings: list[str] = []
        self.faults: list[Fault] = []

    def build(self) -> None:
        usable = [pair for pair in self.segments if self._named(*pair)]
        for members in self._joined(usable):
            self._structure(members)
        self._judgeTwice(usable)
        if len(self.structures) > MOST_STRUCTURES:
            rule = _("A study may have at most {most} structures, but the segmentations hold {count}.")
            self._fault(
                _("study"),
                rule.format(most=MOST_STRUCTURES, count=len(self.structures)),
                _("Remove segments that shall not be learned, or set the use of their scans to Ignore."),
            )
        if self.faults:
            raise StudyFaults(self.faults)

    def _named(self, node, segment) -> bool:
        name = nameKey(segment.GetName())
        if name and name != "background":
            return True
        rule = _("One of its segments has no name.")
        if name:
            rule = _("One of its segments is called 'background', but all that is not drawn is background anyway.")
        self._fault(node.GetName(), rule, _("Give the segment the name of its structure, or remove it."))
        return False

    def _key(self, segment) -> tuple | None:
        key = termKey(terminologyOf(segment))
        return None if key in self.unclear else key

    def _joined(self, usable: list[tuple]) -> list[list[tuple]]:
        """Groups of (node, segment) that share a name or a terminology, directly or through others, by appearance."""
        groups: list[tuple[list, set]] = []  # members, their names and terminologies
        for node, segment in usable:
            marks = {nameKey(segment.GetName()), self._key(segment)} - {None}
            hit = [group for group in groups if group[1] & marks]
            groups = [group for group in groups if not any(group is other for other in hit[1:])]
            target = hit[0] if hit else ([], set())
            if not hit:
                groups.append(target)
            for members, others in hit[1:]:
                target[0].extend(members)
                target[1].update(others)
            target[0].append((node, segment))
            target[1].update(marks)
        return [members for members, _marks in groups]

    def _structure(self, members: list[tuple]) -> None:
        """One structure of all members; several names are fine, or several terminologies, but not both."""
        byName: dict[str, tuple] = {}  # the first of each
        byTerm: dict[tuple, tuple] = {}
        for pair in members:
            byName.setdefault(nameKey(pair[1].GetName()), pair)
            if (key := self._key(pair[1])) is not None:
                byTerm.setdefault(key, pair)
        value, first = len(self.structures) + 1, members[0][1]
        terminology = terminologyOf(next(iter(byTerm.values()), members[0])[1])
        name = " ".join(first.GetName().split())
        self.structures.append(Structure(value, name, tuple(first.GetColor()), terminology))
        self.names.update(dict.fromkeys(byName, value))
        self.terms.update(dict.fromkeys(byTerm, value))
        if len(byName) > 1 and len(byTerm) > 1:
            self._contradiction(list(byName.values()), list(byTerm.values()))
        elif len(byName) > 1:
            text = _("'{name}' in {where} is taken as '{structure}', because both are classified as {term}.")
            for node, segment in list(byName.values())[1:]:
                where, term = node.GetName(), termText(terminology)
                self.warnings.append(text.format(name=segment.GetName(), where=where, structure=name, term=term))
        elif len(byTerm) > 1:
            text = _("'{name}' is classified as {other} in {where} and as {term} elsewhere. The name decides.")
            for node, segment in list(byTerm.values())[1:]:
                other, term = termText(terminologyOf(segment)), termText(terminology)
                self.warnings.append(text.format(name=name, other=other, where=node.GetName(), term=term))

    def _contradiction(self, byName: list[tuple], byTerm: list[tuple]) -> None:
        """Names and terminologies cross: liver as Liver, liver as Spleen, spleen as Spleen."""
        seen = dict.fromkeys(
            (node.GetName(), segment.GetName(), terminologyOf(segment)) for node, segment in byName + byTerm
        )
        text = _("'{name}' as {term} in {where}")
        found = [text.format(name=n, term=termText(t), where=where) for where, n, t in seen]
        rule = _("Names and terminology of segments contradict each other: {found}.")
        self._fault(
            _("study"),
            rule.format(found="; ".join(found)),
            _("Double-click the color of the wrong segment and choose the same terminology as in the other scans."),
        )

    def _judgeTwice(self, usable: list[tuple]) -> None:
        """Two segments of one segmentation for one structure."""
        seen: dict[tuple[str, int], str] = {}
        for node, segment in usable:
            place, name = (node.GetID(), self.names[nameKey(segment.GetName())]), segment.GetName()
            if place in seen:
                rule = _("Its segments '{first}' and '{second}' are the same structure by name or terminology.")
                self._fault(
                    node.GetName(),
                    rule.format(first=seen[place], second=name),
                    _("Give them different names and terminology, or join them with the effect Logical operators."),
                )
            seen[place] = name

    def _fault(self, where: str, rule: str, remedy: str) -> None:
        self.faults.append(Fault(where, rule, remedy))


def _usedTwice(nodes: list) -> set[tuple]:
    """Terminologies that some segmentation gives to two of its segments: they do not tell structures apart."""
    result = set()
    for node in nodes:
        keys = [termKey(terminologyOf(segment)) for _id, segment in segmentsOf(node)]
        result.update(key for key in keys if key is not None and keys.count(key) > 1)
    return result


# --- segments -----------------------------------------------------------------------------------


def segmentsOf(segmentationNode) -> list[tuple[str, object]]:
    """(id, segment) in the order the user sees."""
    segmentation = segmentationNode.GetSegmentation()
    if segmentation is None:
        return []
    return [
        (segmentation.GetNthSegmentID(i), segmentation.GetNthSegment(i))
        for i in range(segmentation.GetNumberOfSegments())
    ]


def terminologyOf(segment) -> str:
    """The segment's terminology entry, '' where it has none."""
    text = vtk.reference("")
    return str(text) if segment.GetTag(_TERMINOLOGY, text) else ""


def describe(segment, structure: Structure) -> None:
    """Give a segment the structure's name, color and terminology, as if the user had chosen them."""
    segment.SetName(structure.name)
    segment.SetColor(structure.color)
    if structure.terminology:
        segment.SetTag(_TERMINOLOGY, structure.terminology)
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)


def nameKey(name: str | None) -> str:
    """Names that differ in spaces, upper and lower case or the way umlauts are stored are the same."""
    return unicodedata.normalize("NFC", " ".join((name or "").split())).casefold()


def termKey(terminology: str) -> tuple | None:
    """The codes of type, modifier, region and region's modifier; None where they say nothing. Contexts do not count."""
    parts = [*terminology.split("~"), *[""] * 7][:7]
    codes = tuple(tuple([*part.split("^"), "", ""][:2]) for part in (parts[2], parts[3], parts[5], parts[6]))
    typeCode, region = codes[0], codes[2]
    return None if typeCode in _GENERIC and region == ("", "") else codes


def termText(terminology: str) -> str:
    """What a terminology entry means, e.g. "Kidney, Left"."""
    parts = [*terminology.split("~"), *[""] * 7][:7]
    return ", ".join(text for i in (2, 3, 5, 6) if (text := [*parts[i].split("^"), "", "", ""][2]))


# --- places -------------------------------------------------------------------------------------


def lieOn(segmentationNode, volumeNode) -> None:
    """Same parent transform and voxel grid as the volume."""
    segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)


def placeBeside(scene, segmentationNode, volumeNode) -> None:
    """In the subject hierarchy under the same study, patient or folder as the volume."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    if hierarchy is None:
        return
    volumeItem = hierarchy.GetItemByDataNode(volumeNode)
    parent = hierarchy.GetItemParent(volumeItem) if volumeItem else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(segmentationNode)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, segmentationNode)
