"""Short words to declare the stand-ins for ctk and qMRML widgets."""

import typing

from PySide6 import QtCore, QtWidgets

from .Calls import Overload
from .Signals import emitDeclared
from .Values import Mismatch

_DEFAULTS = {bool: False, int: 0, float: 0.0, str: "", "QStringList": ()}


def stored(kind, default=None, changed: str = "", writable: bool = True) -> QtCore.Property:
    """A Qt property kept on the object; after a new value the method called `changed` runs."""
    key = object()
    first = _DEFAULTS.get(kind) if default is None else default

    def read(self):
        value = self.__dict__.setdefault("_rigValues", {}).get(key, first)
        return list(value) if kind == "QStringList" else value

    def write(self, value):
        if read(self) == value:
            return
        self.__dict__.setdefault("_rigValues", {})[key] = value
        if changed:
            getattr(self, changed)()

    return QtCore.Property(kind, read, write) if writable else QtCore.Property(kind, read)


def parentOnly() -> list[Overload]:
    """X(QWidget* parent = nullptr): the only constructor that CTK's and Slicer's light wrapping gives to Python."""
    return [Overload([QtWidgets.QWidget | None], 0, "constructor(QWidget* parent = nullptr)")]


class VtkType:
    """An annotation: a pointer to a VTK or MRML class; None passes as a null pointer."""

    def __init__(self, name: str):
        self.name = name
        self.__name__ = f"{name}*"

    def convert(self, value):
        if value is None:
            return None
        if not hasattr(value, "IsA"):
            raise Mismatch
        if not value.IsA(self.name):
            raise TypeError(f"a {self.name} is needed, not a {value.GetClassName()}")
        return value


class Annotated:
    """An annotation that converts by itself, for what PySide has no class for."""

    def __init__(self, name: str, convert: typing.Callable):
        self.__name__ = name
        self.convert = convert


def vtk(name: str) -> VtkType:
    return VtkType(name)


__all__ = ["Annotated", "VtkType", "emitDeclared", "parentOnly", "stored", "vtk"]
