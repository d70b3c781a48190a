"""PythonQt's enums: subclasses of int, one a C++ enum; `|` gives a plain int; values stand flat on the class."""

import enum

_types: dict[type, type] = {}
_names: dict[type, dict[int, str]] = {}


class EnumValue(int):
    """The base of every enum type: `qt.Qt.AlignmentFlag(4)` works, `qt.Qt.AlignmentFlag.AlignTop` does not."""

    def __repr__(self) -> str:
        name = _names[type(self)].get(int(self), "unknown")
        return f"{name} ({int(self)})"

    def __str__(self) -> str:
        return repr(self)


def enumType(source: type[enum.Enum]) -> type[EnumValue]:
    """The int subclass that stands for PySide's enum class `source`."""
    if source not in _types:
        made = type(source.__name__, (EnumValue,), {"_source": source})
        _types[source] = made
        _names[made] = {number(member): name for name, member in source.__members__.items()}
    return _types[source]


def number(member: enum.Enum) -> int:
    return int(member.value)


def enumValue(member: enum.Enum) -> EnumValue:
    """The value that PythonQt would show for PySide's enum member or flag combination."""
    return enumType(type(member))(number(member))


def sourceValue(target: type[enum.Enum], value: int) -> enum.Enum:
    """PySide's member of `target` for an integer. Raises ValueError where there is none."""
    return target(int(value) & 0xFFFFFFFF if issubclass(target, enum.Flag) else int(value))
