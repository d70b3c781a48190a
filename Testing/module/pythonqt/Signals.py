"""Signals as PythonQt connects them: by C++ signature, the callable gets at most as many arguments as it takes."""

import inspect
import types

from PySide6 import QtCore
from shiboken6 import Shiboken

from .Ledger import ledger
from .Values import Mismatch, fromQt, isWrapper, toQt, toVariant, unwrap

_foreign: dict[int, object] = {}  # wrappers of objects made in C++ that carry connections


def normalized(signature: str) -> str:
    text = QtCore.QMetaObject.normalizedSignature(signature)
    return text.data().decode() if hasattr(text, "data") else str(text)


def declaredSignals(qtObject) -> list[str]:
    """The normalized signatures that a stand-in declares, most derived class first."""
    found: list[str] = []
    for base in type(qtObject).__mro__:
        found += [normalized(signature) for signature in vars(base).get("signatures", ())]
    return found


def metaSignals(qtObject) -> list[str]:
    """All C++ signal signatures of the object, the most derived class's first."""
    meta, found = qtObject.metaObject(), []
    while meta is not None:
        for index in range(meta.methodOffset(), meta.methodCount()):
            method = meta.method(index)
            if method.methodType() == QtCore.QMetaMethod.MethodType.Signal:
                found.append(method.methodSignature().data().decode())
        meta = meta.superClass()
    return found


def signalNamed(qtObject, name: str) -> str | None:
    """The signature that `object.name` means: the first one of that name."""
    for signature in declaredSignals(qtObject) + metaSignals(qtObject):
        if signature.split("(")[0] == name:
            return signature
    return None


def argumentLimit(function) -> int | None:
    """How many arguments a Python function takes, None for any number or an unknown callable (PythonQt's rule)."""
    bound = isinstance(function, types.MethodType)
    plain = function.__func__ if bound else function
    if not isinstance(plain, types.FunctionType) or plain.__code__.co_flags & inspect.CO_VARARGS:
        return None
    return plain.__code__.co_argcount - (1 if bound else 0)


class Connection:
    """One connected callable; keeps it alive, notes its exceptions and goes on."""

    def __init__(self, signature: str, function):
        self.signature = signature
        self.function = function

    def __call__(self, *arguments):
        limit = argumentLimit(self.function)
        given = tuple(fromQt(argument) for argument in arguments)
        try:
            self.function(*(given if limit is None else given[:limit]))
        except Exception:
            ledger.exception(f"a slot of {self.signature}")


def connectionsOf(qtObject) -> list[Connection]:
    """The connections made from Python, kept on the object itself."""
    if not hasattr(qtObject, "_rigConnections"):
        qtObject._rigConnections = []
        if not Shiboken.createdByPython(qtObject):
            _foreign[Shiboken.getCppPointer(qtObject)[0]] = qtObject
    return qtObject._rigConnections


def forgetForeign() -> None:
    _foreign.clear()


def _resolve(qtObject, signature: str) -> str | None:
    wanted = normalized(signature[1:] if signature[:1] == "2" else signature)
    known = declaredSignals(qtObject) + metaSignals(qtObject)
    return wanted if wanted in known else None


def connect(qtObject, signature: str, function) -> bool:
    if not callable(function):
        raise ValueError(f"connect: {function!r} cannot be called")
    found = _resolve(qtObject, signature)
    if found is None:
        ledger.note(f"PythonQt: QObject::connect() signal '{signature}' does not exist on {className(qtObject)}")
        return False
    connection = Connection(found, function)
    if found not in declaredSignals(qtObject):
        relay = lambda *arguments: connection(*arguments)  # noqa: E731 - PySide counts the arguments of functions
        connection.relay = relay
        QtCore.QObject.connect(qtObject, QtCore.SIGNAL(found), relay)
    connectionsOf(qtObject).append(connection)
    return True


def disconnect(qtObject, signature: str, function=None) -> bool:
    found = _resolve(qtObject, signature)
    if found is None:
        ledger.note(f"PythonQt: QObject::disconnect() signal '{signature}' does not exist on {className(qtObject)}")
        return False
    known = connectionsOf(qtObject)
    matching = [c for c in known if c.signature == found and (function is None or c.function == function)]
    for connection in matching if function is None else matching[:1]:
        known.remove(connection)
        if hasattr(connection, "relay"):
            QtCore.QObject.disconnect(qtObject, QtCore.SIGNAL(found), connection.relay)
    return bool(matching)


def emitDeclared(qtObject, signature: str, *arguments) -> None:
    """A stand-in emits one of its own signals; nothing where signals are blocked."""
    if qtObject.signalsBlocked():
        return
    wanted = normalized(signature)
    if wanted not in declaredSignals(qtObject):
        raise AssertionError(f"{type(qtObject).__name__} does not declare {signature}")
    for connection in list(connectionsOf(qtObject)):
        if connection.signature == wanted:
            connection(*arguments)


def className(qtObject) -> str:
    return getattr(type(qtObject), "cppName", None) or qtObject.metaObject().className()


class BoundSignal:
    """`object.signal`: connect, disconnect, emit, and call to emit."""

    def __init__(self, qtObject, signature: str):
        self._qtObject = qtObject
        self._signature = signature

    def connect(self, function) -> bool:
        return connect(self._qtObject, self._signature, function)

    def disconnect(self, function=None) -> bool:
        return disconnect(self._qtObject, self._signature, function)

    def emit(self, *arguments):
        if self._signature in declaredSignals(self._qtObject):
            emitDeclared(self._qtObject, self._signature, *arguments)
            return
        meta = self._qtObject.metaObject()
        method = meta.method(meta.indexOfMethod(self._signature))
        if method.parameterCount() != len(arguments):
            raise ValueError(f"Called {self._signature} with wrong number of arguments: {arguments!r}")
        values = [unwrap(argument) if isWrapper(argument) else argument for argument in arguments]
        getattr(self._qtObject, self._signature.split("(")[0]).emit(*values)

    __call__ = emit

    def __repr__(self) -> str:
        return f"<qt signal {self._signature}>"


def propertyValue(value, kind: QtCore.QMetaType, name: str):
    """What writing `value` to a property of that type stores. Raises AttributeError where PythonQt refuses it."""
    types_ = QtCore.QMetaType.Type
    known = {
        types_.Bool: bool, types_.Int: int, types_.UInt: int, types_.Double: float, types_.Float: float,
        types_.QString: str, types_.QStringList: list[str], types_.QByteArray: bytes, types_.LongLong: int,
    }  # fmt: skip
    try:
        wanted = known.get(types_(kind.id())) if kind.id() < 65536 else None
        if wanted is not None:
            return toQt(value, wanted, False)
    except (Mismatch, ValueError) as error:
        raise AttributeError(
            f"Property '{name}' of type '{kind.name()}' does not accept an object of type {type(value).__name__}"
        ) from error
    return toVariant(value)
