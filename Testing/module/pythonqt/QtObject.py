"""The wrapper around a PySide object: attributes are looked up as PythonQt does, everything else is refused."""

import enum
import types
import weakref
from typing import ClassVar

from PySide6 import QtCore, QtWidgets
from shiboken6 import Shiboken

from . import Values
from .Calls import Call, Overload, UnboundCall, overloadsOf, select
from .Enums import enumType, enumValue
from .Ledger import ledger
from .Refused import isRefused
from .Signals import BoundSignal, className, connect, disconnect, propertyValue, signalNamed
from .Values import fromQt, isWrapper, unwrap

_classes: dict[type, type] = {}
_RESERVED = {"exec_", "raise_", "print_", "del_"}


class StandIn:
    """Mixin of the PySide classes that stand for ctk and qMRML widgets: only what they declare is visible.

    `signatures`: C++ signal signatures. Methods marked with `slot` and PySide properties are visible, no helper is.
    """

    cppName: str | None = None
    signatures: tuple[str, ...] = ()


def slot(*types_, required: int | None = None):
    """Marks a stand-in's method as public slot or Q_INVOKABLE; `types_` are Python types or PySide classes."""

    def mark(function):
        known = getattr(function, "_overloads", [])
        text = f"{function.__name__}({', '.join(getattr(kind, '__name__', str(kind)) for kind in types_)})"
        count = len(types_) if required is None else required
        function._overloads = [*known, Overload(list(types_), count, text)]
        return function

    return mark


def standInMethod(owner: type, name: str):
    """The marked method of a stand-in class that Python may call, None where there is none."""
    for base in owner.__mro__:
        if issubclass(base, StandIn) and hasattr(vars(base).get(name), "_overloads"):
            return vars(base)[name]
    return None


def qtBase(owner: type) -> type:
    """The Qt class that a stand-in or shell builds on; `owner` itself for Qt's own classes."""
    return next(base for base in owner.__mro__ if base.__module__.startswith("PySide6."))


class QtMeta(type):
    """The type of wrapper classes: enums, static methods and unbound methods of the C++ class."""

    def __getattr__(cls, name: str):
        source = cls.__dict__.get("_qtType") or next((b._qtType for b in cls.__mro__ if "_qtType" in b.__dict__), None)
        if source is None or name.startswith("__") or isRefused(source, name):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        if issubclass(source, StandIn) and name in vars(source).get("constants", {}):
            return source.constants[name]
        found = getattr(qtBase(source), name, None)
        if isinstance(found, enum.Enum):
            return enumValue(found)
        if isinstance(found, type) and issubclass(found, enum.Enum):
            return enumType(found)
        if isinstance(found, type) and issubclass(found, Shiboken.Object):
            return wrapperClass(found)
        if isinstance(found, types.BuiltinFunctionType):
            return cls._static(found, name)
        if callable(found):
            return UnboundCall(found, name, cls)
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")

    def _static(cls, function, name: str):
        replaced = cls._statics.get((cls.__name__, name))
        return replaced if replaced is not None else Call(function, name, cls.__name__)


class Wrapper(metaclass=QtMeta):
    """What Python holds of a C++ object: properties, slots, signals, enum values and children as attributes."""

    _qtType: type | None = None
    _statics: ClassVar[dict] = {}  # (class, static method) → replacement: dialogs that the test answers

    def __init__(self, *arguments, **keywords):
        source = type(self)._qtType
        name = source.__name__
        if issubclass(source, StandIn):
            overloads = getattr(source, "constructors", None)
            if overloads is None:
                raise ValueError(f"No constructors available for {name}")
        else:
            overloads = overloadsOf(source, name)
        converted = select(overloads, arguments, keywords, name)
        try:
            made = shellClass(type(self))(*converted)
        except (TypeError, NotImplementedError) as error:
            raise ValueError(f"No constructors available for {name}: {error}") from error
        adopt(self, made)
        if isinstance(made, QtCore.QObject) and made.parent() is not None and isPythonSubclass(type(self)):
            made._rigStrong = self

    def __del__(self):
        # C++ keeps a Python subclass alive while the object has a parent.
        made = self.__dict__.get("_qt")
        living = isinstance(made, QtCore.QObject) and Shiboken.isValid(made)
        if living and isPythonSubclass(type(self)) and made.parent() is not None:
            made._rigStrong = self

    # What every wrapper has.
    def className(self) -> str:
        return getattr(type(self)._qtType, "cppName", None) or qtName(type(self))

    def inherits(self, name: str) -> bool:
        return any((getattr(base, "cppName", None) or base.__name__) == name for base in type(self)._qtType.__mro__)

    def delete(self) -> None:
        Shiboken.delete(unwrap(self))

    def __bool__(self) -> bool:
        made = self.__dict__.get("_qt")
        return made is not None and Shiboken.isValid(made)

    def __eq__(self, other) -> bool:
        if other is None:
            return not self
        if not isWrapper(other):
            return NotImplemented
        if not self or not other:
            return bool(self) == bool(other)
        mine, theirs = unwrap(self), unwrap(other)
        if isinstance(mine, QtCore.QObject) or type(mine).__name__.endswith("Item"):
            return Shiboken.getCppPointer(mine) == Shiboken.getCppPointer(theirs)
        return bool(mine == theirs)

    def __hash__(self) -> int:
        return hash(Shiboken.getCppPointer(self.__dict__["_qt"])[0]) if self else id(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__} (at {id(self.__dict__.get('_qt')):#x})"

    def __getattr__(self, name: str):
        if name.startswith("__") or "_qt" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        made = self.__dict__["_qt"]
        if not Shiboken.isValid(made):
            raise ValueError(f"Trying to read '{name}' from a destroyed {type(self).__name__} object")
        kind, member = lookUp(made, name)
        if kind == "property":
            return fromQt(made.property(member))
        if kind is not None:
            return member
        raise AttributeError(f"{className(made) if isinstance(made, QtCore.QObject) else type(self).__name__} "
                             f"has no attribute named '{name}'")  # fmt: skip

    def __setattr__(self, name: str, value) -> None:
        made = self.__dict__.get("_qt")
        if made is None:
            if isPythonSubclass(type(self)):
                return object.__setattr__(self, name, value)
            raise AttributeError(f"'{name}' set on a {type(self).__name__} that was never constructed")
        if not Shiboken.isValid(made):
            raise AttributeError(f"Trying to set property '{name}' on a destroyed {type(self).__name__} object")
        kind, member = lookUp(made, name)
        if kind == "property":
            return writeProperty(made, member, value, type(self).__name__)
        if kind is not None and kind != "child":
            raise AttributeError(f"{kind} '{name}' can not be overwritten on {type(self).__name__} object")
        if not isPythonSubclass(type(self)):
            raise AttributeError(f"'{name}' does not exist on {type(self).__name__} and creating new attributes on "
                                 "C++ objects is not allowed")  # fmt: skip
        object.__setattr__(self, name, value)


def qtName(wrapperType: type) -> str:
    return wrapperType.__name__ if isPythonSubclass(wrapperType) else wrapperType._qtType.__name__


def isPythonSubclass(wrapperType: type) -> bool:
    return "_qtType" not in vars(wrapperType)


def writeProperty(made, name: str, value, owner: str) -> None:
    meta = made.metaObject()
    index = meta.indexOfProperty(name)
    if index < 0:
        made.setProperty(name, Values.toVariant(value))  # a dynamic one
        return
    found = meta.property(index)
    if not found.isWritable():
        raise AttributeError(f"Property '{name}' of {owner} object is not writable")
    if found.isEnumType():
        stored = int(value) if isinstance(value, int) else value
        current = made.property(name)
        stored = type(current)(stored) if isinstance(current, enum.Enum) and isinstance(stored, int) else stored
    else:
        stored = propertyValue(value, found.metaType(), name)
    if stored is None or not made.setProperty(name, stored):
        raise AttributeError(f"Property '{name}' of type '{found.typeName()}' does not accept an object of type "
                             f"{type(value).__name__} ({value!r})")  # fmt: skip


def adopt(wrapper: Wrapper, made) -> None:
    wrapper.__dict__["_qt"] = made
    made._rigWrapper = weakref.ref(wrapper)


def wrap(made):
    """The wrapper of a PySide object; the same one as long as somebody holds it."""
    if made is None or not Shiboken.isValid(made):
        return None
    known = getattr(made, "_rigWrapper", None)
    wrapper = known() if known is not None else None
    if wrapper is None:
        source = next(b for b in type(made).__mro__ if issubclass(b, StandIn) or b.__module__.startswith("PySide6."))
        wrapper = object.__new__(wrapperClass(source))
        adopt(wrapper, made)
    return wrapper


def wrapperClass(source: type) -> type:
    """The Python class that stands for a PySide or stand-in class. All are siblings: no hierarchy, as in PythonQt."""
    if source not in _classes:
        name = getattr(source, "cppName", None) or source.__name__
        _classes[source] = QtMeta(name, (Wrapper,), {"_qtType": source, "__module__": "qt"})
    return _classes[source]


def _override(name: str):
    def call(self, *arguments):
        wrapper = self._rigWrapper() if hasattr(self, "_rigWrapper") else None
        if wrapper is None:
            return getattr(super(type(self), self), name)(*arguments)
        try:
            result = getattr(wrapper, name)(*(fromQt(argument) for argument in arguments))
        except Exception:
            ledger.exception(f"{type(wrapper).__name__}.{name}")
            return getattr(super(type(self), self), name)(*arguments)
        return unwrap(result) if isWrapper(result) else result

    return call


def shellClass(wrapperType: type) -> type:
    """The PySide class to instantiate: for a Python subclass one whose virtual methods lead to Python."""
    if not isPythonSubclass(wrapperType):
        return wrapperType._qtType
    if "_shell" not in vars(wrapperType):
        source, overrides = wrapperType._qtType, {}
        for base in wrapperType.__mro__:
            if "_qtType" in vars(base):
                break
            for name, value in vars(base).items():
                if isinstance(value, types.FunctionType) and not name.startswith("_") and hasattr(source, name):
                    overrides.setdefault(name, _override(name))
        wrapperType._shell = type(wrapperType.__name__, (source,), overrides)
    return wrapperType._shell


def lookUp(made, name: str):
    """(kind, member) of an attribute, in PythonQt's order; (None, None) where there is none."""
    owner = type(made)
    if isinstance(made, QtCore.QObject):
        from .Members import objectMember

        return objectMember(made, owner, name)
    return plainMember(made, owner, name)


def plainMember(made, owner: type, name: str):
    """A member of a Qt class: enum values, enum types and methods."""
    base = qtBase(owner)
    if isRefused(base, name):
        return None, None
    found = getattr(base, name, None)
    if isinstance(found, enum.Enum):
        return "EnumValue", enumValue(found)
    if isinstance(found, type):
        if issubclass(found, enum.Enum):
            return "Enum", enumType(found)
        return "Nested class", wrapperClass(found)
    if (base.__name__, name) in Wrapper._statics:
        return "Slot", Wrapper._statics[base.__name__, name]
    if name in ("exec", "exec_") and isinstance(made, QtWidgets.QDialog | QtWidgets.QMenu):
        return "Slot", ExecCall(made, found, name, base.__name__)
    if callable(found) and not isinstance(found, QtCore.Signal):
        return "Slot", BoundCall(made, found, name, base.__name__)
    if name.endswith("_") and name not in _RESERVED and hasattr(base, name[:-1]):
        return plainMember(made, owner, name[:-1])
    return None, None


class BoundCall(Call):
    """A method of a living object; holds the wrapper's object and says so when it is destroyed."""

    def __init__(self, made, descriptor, name: str, owner: str):
        super().__init__(descriptor, name, owner)
        self._made = made

    def invoke(self, converted: list):
        if not Shiboken.isValid(self._made):
            raise ValueError(f"Trying to call '{self.__name__}' on a destroyed {self._owner} object")
        # Taken from the object: some names are static and not static at once (QFile.exists).
        return Call.invoke(_Bound(getattr(self._made, self.__name__), self), converted)

    def __eq__(self, other) -> bool:
        return isinstance(other, BoundCall) and self._made is other._made and self.__name__ == other.__name__

    def __hash__(self) -> int:
        return hash((id(self._made), self.__name__))


class ExecCall(BoundCall):
    """exec_() of dialogs and menus: answered by the test, never blocking."""

    def invoke(self, converted: list):
        from .Dialogs import execute

        return execute(self._made)


class _Bound:
    def __init__(self, function, call: BoundCall):
        self._function, self._owner, self.__name__ = function, call._owner, call.__name__


Values.wrapHook = wrap
__all__ = ["BoundSignal", "StandIn", "Wrapper", "connect", "disconnect", "signalNamed", "slot", "wrap", "wrapperClass"]
