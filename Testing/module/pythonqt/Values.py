"""How Python values become C++ arguments and back: PythonQtConversion's rules, strict and lenient."""

import collections.abc
import enum
import math
import types
import typing

from PySide6 import QtCore, QtGui
from shiboken6 import Shiboken

from .Enums import EnumValue, enumValue, sourceValue

wrapHook = None  # set by QtObject: PySide object → wrapper


class Mismatch(Exception):
    """The value is not accepted for this type."""


def isWrapper(value) -> bool:
    return hasattr(type(value), "_qtType") and "_qt" in getattr(value, "__dict__", {})


def unwrap(wrapper):
    """The PySide object behind a wrapper; ValueError where the C++ object is gone."""
    qtObject = wrapper.__dict__["_qt"]
    if qtObject is None or not Shiboken.isValid(qtObject):
        raise ValueError(f"Trying to use a destroyed {type(wrapper).__name__} object")
    return qtObject


def toText(value, strict: bool) -> str:
    if isinstance(value, str):
        return str(value)
    if strict or isWrapper(value):
        raise Mismatch
    return str(value)


def toBool(value, strict: bool) -> bool:
    if value is True or value is False:
        return value
    if strict or isWrapper(value):
        raise Mismatch
    try:
        return bool(value)
    except (ValueError, TypeError) as error:
        raise Mismatch from error


def toInteger(value, strict: bool, low: int = -(2**31), high: int = 2**31 - 1) -> int:
    if type(value) is int:
        result = value
    elif strict or isWrapper(value):
        raise Mismatch
    elif isinstance(value, int):
        result = int(value)
    elif type(value) is float:
        result = math.floor(value) if math.isfinite(value) else 0
    else:
        try:
            result = value.__index__()
        except (AttributeError, TypeError) as error:
            raise Mismatch from error
    if not low <= result <= high:
        raise Mismatch
    return result


def toFloat(value, strict: bool) -> float:
    if type(value) is float:
        return value
    if strict or isWrapper(value) or isinstance(value, str | bytes):
        raise Mismatch
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise Mismatch from error


def toBytes(value, strict: bool) -> bytes:
    if isWrapper(value) and isinstance(unwrap(value), QtCore.QByteArray):
        return unwrap(value).data()
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and not strict:
        return value.encode("utf-8")
    raise Mismatch


def toList(value, element, strict: bool) -> list:
    if isinstance(value, str | bytes) or isWrapper(value) or not isinstance(value, collections.abc.Sequence):
        raise Mismatch
    return [toQt(item, element, False) for item in value]


def toVariant(value):
    """A QVariant without a wanted type: string keys, lists for tuples; other objects travel as they are."""
    if isWrapper(value):
        return unwrap(value)
    if isinstance(value, EnumValue):
        return int(value)
    if isinstance(value, dict):
        return {str(key): toVariant(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [toVariant(item) for item in value]
    return value


def _autoConverted(value, target: type):
    """Colours and cursors may come as enum values, brushes and pens as colours (lenient calls only)."""
    source = getattr(type(value), "_source", None)
    if source is QtCore.Qt.GlobalColor and target in (QtGui.QColor, QtGui.QBrush, QtGui.QPen):
        return target(QtGui.QColor(sourceValue(source, value)))
    if source is QtCore.Qt.CursorShape and target is QtGui.QCursor:
        return QtGui.QCursor(sourceValue(source, value))
    if target in (QtGui.QBrush, QtGui.QPen) and isWrapper(value) and isinstance(unwrap(value), QtGui.QColor):
        return target(unwrap(value))
    return None


def toEnum(value, target: type[enum.Enum], strict: bool):
    if strict and getattr(type(value), "_source", None) is not target:
        raise Mismatch
    if not isinstance(value, EnumValue):
        value = toInteger(value, False, -(2**31), 2**32 - 1)
    try:
        return sourceValue(target, value)
    except ValueError as error:
        raise Mismatch from error


def toObject(value, target: type, strict: bool):
    """`target` is a PySide class: a wrapper around one of it; None for classes that C++ passes by pointer."""
    if not strict:
        converted = _autoConverted(value, target)
        if converted is not None:
            return converted
    if isWrapper(value):
        if isinstance(unwrap(value), target):
            return unwrap(value)
        raise Mismatch
    if value is None and (issubclass(target, QtCore.QObject) or target.__name__.endswith("Item")):
        return None
    raise Mismatch


_PRIMITIVES = {str: toText, bool: toBool, int: toInteger, float: toFloat, bytes: toBytes}


def _toUnion(value, members: tuple, strict: bool):
    named = [member for member in members if member is not types.NoneType]
    if value is None and len(named) < len(members):
        return None
    if QtCore.QByteArray in named or (bytes in named and str not in named):
        data = toBytes(value, strict)
        # PySide says bytes for a const char* that may be null (a format's name), and wants a string.
        return data.decode() if QtCore.QByteArray not in named and len(named) < len(members) else data
    if str in named and not any(isinstance(m, type) and issubclass(m, Shiboken.Object) for m in named):
        return toText(value, strict)
    if named[0] in (int, float) and len(named) > 1 and all(member in (int, float) for member in named):
        return toFloat(value, strict)
    # PySide lists the C++ type first, then what it converts implicitly. PythonQt does not convert.
    return toQt(value, named[0], strict)


def toQt(value, target, strict: bool):
    """The argument for PySide's annotation `target`. Raises Mismatch where PythonQt would refuse it."""
    if hasattr(target, "convert"):
        return target.convert(value)
    if target in _PRIMITIVES:
        return _PRIMITIVES[target](value, strict)
    if isinstance(target, types.UnionType) or typing.get_origin(target) is typing.Union:
        return _toUnion(value, typing.get_args(target), strict)
    origin = typing.get_origin(target)
    if origin is collections.abc.Callable or target is collections.abc.Callable:
        if not callable(value):
            raise Mismatch
        return value
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        arguments = [argument for argument in typing.get_args(target) if argument is not Ellipsis]
        return toList(value, arguments[0] if arguments else typing.Any, strict)
    if isinstance(target, type) and issubclass(target, enum.Enum):
        return toEnum(value, target, strict)
    if isinstance(target, type) and issubclass(target, Shiboken.Object):
        if target is QtCore.QByteArray:
            return toBytes(value, strict)
        return toObject(value, target, strict)
    if (isinstance(target, type) and issubclass(target, dict)) or origin is dict:
        if not isinstance(value, dict):
            raise Mismatch
        return toVariant(value)
    return toVariant(value)


def fromQt(value):
    """What Python sees of a C++ result: tuples for lists, int enums, wrappers around Qt objects."""
    if value is None or isinstance(value, str | bytes | bool | float):
        return value
    if isinstance(value, enum.Enum):
        return enumValue(value)
    if isinstance(value, Shiboken.Object):
        return wrapHook(value)
    if isinstance(value, list | tuple):
        return tuple(fromQt(item) for item in value)
    if isinstance(value, dict):
        return {key: fromQt(item) for key, item in value.items()}
    return value
