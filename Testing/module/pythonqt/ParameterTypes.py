"""`slicer.parameterNodeWrapper`: annotations, and how values stand in the node (in Slicer's own forms)."""

import dataclasses
import enum
import pathlib
import types
import typing

import slicer

PATHS = (pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePath)


class Default:
    def __init__(self, value=None, *, generator=None):
        self._value, self._generator = value, generator

    @property
    def value(self):
        return self._generator() if self._generator else self._value


class Validator:
    def validate(self, value) -> None:
        raise NotImplementedError


class NotNone(Validator):
    def validate(self, value) -> None:
        if value is None:
            raise ValueError("Value must not be None")


@dataclasses.dataclass
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value) -> None:
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


@dataclasses.dataclass
class Minimum(Validator):
    minimum: float

    def validate(self, value) -> None:
        if value < self.minimum:
            raise ValueError(f"Value must be greater than {self.minimum}, is {value}")


@dataclasses.dataclass
class Maximum(Validator):
    maximum: float

    def validate(self, value) -> None:
        if value > self.maximum:
            raise ValueError(f"Value must be less than {self.maximum}, is {value}")


@dataclasses.dataclass
class Choice(Validator):
    choices: typing.Sequence

    def validate(self, value) -> None:
        if value not in self.choices:
            raise ValueError(f"Value is {value}, but must be in one of the following: {self.choices}")


@dataclasses.dataclass
class Exclude(Validator):
    excludedValues: typing.Sequence

    def validate(self, value) -> None:
        if value in self.excludedValues:
            raise ValueError(f"Value is {value}, but must not be an excluded value: {self.excludedValues}")


@dataclasses.dataclass
class Decimals:
    value: int


@dataclasses.dataclass
class SingleStep:
    value: float


class Kind:
    """One type of parameter: its validity, and its text in the node."""

    def __init__(self, annotation):
        args = typing.get_args(typing.Annotated[annotation, None])
        self.type, self.annotations = args[0], args[1:-1]
        if typing.get_origin(self.type) in (typing.Union, types.UnionType):
            self.nodeTypes = [member for member in typing.get_args(self.type) if member is not types.NoneType]
            if not all(
                isinstance(member, type) and issubclass(member, slicer.vtkMRMLNode) for member in self.nodeTypes
            ):
                raise NotImplementedError(f"the rig's parameter node knows unions of nodes only, not {self.type}")
            self.type = slicer.vtkMRMLNode
        else:
            self.nodeTypes = [self.type]
        if not (self.type in (int, float, bool, str, *PATHS) or self.isNode or self.isEnum):
            raise NotImplementedError(f"the rig's parameter node does not know the type {self.type}")

    @property
    def isNode(self) -> bool:
        return isinstance(self.type, type) and issubclass(self.type, slicer.vtkMRMLNode)

    @property
    def isEnum(self) -> bool:
        return isinstance(self.type, type) and issubclass(self.type, enum.Enum)

    def find(self, kind: type):
        return next((annotation for annotation in self.annotations if isinstance(annotation, kind)), None)

    def default(self):
        given = self.find(Default)
        if given is not None:
            return given.value
        if self.isNode:
            return None
        return next(iter(self.type)) if self.isEnum else self.type()

    def validate(self, value) -> None:
        if value is None and not self.isNode:
            raise ValueError("Value must not be None")
        wanted = (int, float) if self.type is float else tuple(self.nodeTypes)
        if value is not None and not isinstance(value, wanted):
            raise TypeError(f"Value must be of type '{wanted}', is type '{type(value)}' value '{value}'")
        for annotation in self.annotations:
            if isinstance(annotation, Validator):
                annotation.validate(value)
            elif isinstance(annotation, type) and issubclass(annotation, Validator):
                annotation().validate(value)

    def isIn(self, node, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node, name: str, value) -> None:
        self.validate(value)
        if self.isNode:
            node.SetParameter(name, "")
            node.SetNodeReferenceID(name, value.GetID() if value is not None else None)
        else:
            node.SetParameter(name, value.name if self.isEnum else str(value))

    def read(self, node, name: str):
        if self.isNode:
            return node.GetNodeReference(name)
        text = node.GetParameter(name)
        if self.type is bool:
            return text == "True"
        return self.type[text] if self.isEnum else self.type(text)
