"""What a wrapper around a QObject shows besides its class's methods: properties, signals, PythonQt's own additions."""

from PySide6 import QtCore
from shiboken6 import Shiboken

from .Calls import Call, select
from .QtObject import StandIn, plainMember, standInMethod
from .Refused import isRefused
from .Signals import BoundSignal, className, connect, disconnect, signalNamed
from .Values import fromQt, isWrapper, toBytes, toVariant, unwrap


class StandInCall(Call):
    """A stand-in's public slot."""

    def __init__(self, made, method, name: str):
        super().__init__(method, name, className(made))
        self._made = made

    def __call__(self, *arguments, **keywords):
        name = f"{self._owner}.{self.__name__}"
        if not Shiboken.isValid(self._made):
            raise ValueError(f"Trying to call '{name}' on a destroyed object")
        return fromQt(self._function(self._made, *select(self._function._overloads, arguments, keywords, name)))

    def __eq__(self, other) -> bool:
        return isinstance(other, StandInCall) and self._made is other._made and self.__name__ == other.__name__

    def __hash__(self) -> int:
        return hash((id(self._made), self.__name__))


def _typeTest(kind):
    """A predicate for findChild(ren): a wrapper class, a wrapper or a class name."""
    if isinstance(kind, type) and hasattr(kind, "_qtType"):
        return lambda child: isinstance(child, kind._qtType)
    if isWrapper(kind):
        return lambda child: isinstance(child, type(unwrap(kind)))
    name = kind.decode() if isinstance(kind, bytes) else str(kind)
    return lambda child: any((getattr(b, "cppName", None) or b.__name__) == name for b in type(child).__mro__)


def descendants(made) -> list:
    """All children of a QObject, depth first, without those that belong to a stand-in's inside."""
    found = []
    for child in made.children():
        found.append(child)
        found += descendants(child)
    return found


def _connect(made, *arguments):
    if len(arguments) == 2:
        return connect(made, toBytes(arguments[0], False).decode(), arguments[1])
    if len(arguments) == 3:
        receiver, name = arguments[1], toBytes(arguments[2], False).decode().lstrip("12").split("(")[0]
        return connect(made, toBytes(arguments[0], False).decode(), getattr(receiver, name))
    raise ValueError(f"Could not find matching overload of connect for {arguments!r}")


def _disconnect(made, *arguments):
    if len(arguments) in (1, 2):
        return disconnect(made, toBytes(arguments[0], False).decode(), *arguments[1:])
    raise ValueError(f"Could not find matching overload of disconnect for {arguments!r}")


def _findChildren(made, kind, name=None):
    test = _typeTest(kind)
    return tuple(
        fromQt(child) for child in descendants(made) if test(child) and (name is None or child.objectName() == name)
    )


def _findChild(made, kind, name=None):
    return next(iter(_findChildren(made, kind, name)), None)


def _setParent(made, *arguments):
    kinds = [unwrap(a) if isWrapper(a) else a for a in arguments]
    if not kinds or not (kinds[0] is None or isinstance(kinds[0], QtCore.QObject)):
        raise ValueError(f"Called setParent with wrong arguments: {arguments!r}")
    made.setParent(*kinds)


def _setProperty(made, name, value):
    return made.setProperty(toBytes(name, False).decode(), toVariant(value))


_DECORATORS = {
    "connect": _connect,
    "disconnect": _disconnect,
    "findChild": _findChild,
    "findChildren": _findChildren,
    "setParent": _setParent,
    "setProperty": _setProperty,
    "property": lambda made, name: fromQt(made.property(toBytes(name, False).decode())),
    "parent": lambda made: fromQt(made.parent()),
    "children": lambda made: fromQt(made.children()),
    "tr": lambda made, text, *more: text,
}


class Decorator:
    """A method that PythonQt adds to every QObject."""

    def __init__(self, made, name: str):
        self._made = made
        self.__name__ = name

    def __call__(self, *arguments, **keywords):
        if keywords:
            raise ValueError(f"Called {self.__name__} with keyword arguments, but called slot does not support kwargs.")
        if not Shiboken.isValid(self._made):
            raise ValueError(f"Trying to call '{self.__name__}' on a destroyed object")
        try:
            return _DECORATORS[self.__name__](self._made, *arguments)
        except TypeError as error:
            raise ValueError(f"Called {self.__name__} with wrong arguments: {arguments!r}") from error


def objectMember(made, owner: type, name: str):
    """(kind, member) in PythonQt's order: property, method or signal, enum, dynamic property, child by name."""
    wanted = "objectName" if name == "name" else name
    meta = made.metaObject()
    hidden = wanted == "singleShot" and isinstance(made, QtCore.QTimer)
    if not hidden and meta.indexOfProperty(wanted) >= 0 and not isRefused(owner, wanted):
        return "property", wanted
    if issubclass(owner, StandIn):
        method = standInMethod(owner, name)
        if method is not None:
            return "Slot", StandInCall(made, method, name)
        constant = next((b.constants[name] for b in owner.__mro__ if name in vars(b).get("constants", {})), None)
        if constant is not None:
            return "EnumValue", constant
    if name in _DECORATORS:
        return "Slot", Decorator(made, name)
    signature = None if isRefused(owner, name) else signalNamed(made, name)
    if signature is not None:
        return "Signal", BoundSignal(made, signature)
    found = plainMember(made, owner, name)
    if found[0] is not None:
        return found
    if bytes(name, "utf-8") in [bytes(dynamic) for dynamic in made.dynamicPropertyNames()]:
        return "property", name
    child = next((child for child in made.children() if child.objectName() == name), None)
    return ("child", fromQt(child)) if child is not None else (None, None)
