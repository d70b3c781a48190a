"""Calls from Python into Qt: overloads tried strictly, then leniently; no keyword arguments; ValueError otherwise."""

import inspect

from shibokensupport.signature import get_signature

from .Refused import ARITY
from .Values import Mismatch, fromQt, isWrapper, toQt

_signatures: dict = {}
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Overload:
    """One C++ signature: the types of its positional arguments and how many of them must be given."""

    def __init__(self, types: list, required: int, text: str):
        self.types = types
        self.required = required
        self.text = text
        self.allowed: set[int] | None = None

    @classmethod
    def fromSignature(cls, signature: inspect.Signature, text: str) -> "Overload":
        given = [p for p in signature.parameters.values() if p.kind in _POSITIONAL and p.name != "self"]
        required = sum(1 for p in given if p.default is inspect.Parameter.empty)
        return cls([p.annotation for p in given], required, text)

    def fits(self, count: int) -> bool:
        return self.required <= count <= len(self.types) and (self.allowed is None or count in self.allowed)

    def convert(self, arguments: tuple, strict: bool) -> list:
        return [toQt(value, kind, strict) for value, kind in zip(arguments, self.types, strict=False)]


def overloadsOf(function, name: str) -> list[Overload]:
    """The overloads of a PySide method, static method or class (its constructors)."""
    key = function if isinstance(function, type) else getattr(function, "__qualname__", None) or function
    if key not in _signatures:
        found = get_signature(function)
        found = found if isinstance(found, list) else [found]
        allowed = ARITY.get(f"{key.__name__}.__init__" if isinstance(key, type) else str(key))
        _signatures[key] = [Overload.fromSignature(s, f"{name}{s}") for s in found if s is not None]
        for overload in _signatures[key]:
            overload.allowed = allowed
    return _signatures[key]


def select(overloads: list[Overload], arguments: tuple, keywords: dict, name: str) -> list:
    """The converted arguments of the first overload that takes them. Raises ValueError as PythonQt does."""
    if keywords:
        raise ValueError(f"Called {name} with keyword arguments, but called slot does not support kwargs.")
    fitting = [overload for overload in overloads if overload.fits(len(arguments))]
    for strict in (True, False):
        for overload in fitting:
            try:
                return overload.convert(arguments, strict)
            except Mismatch:
                continue
    known = "\n".join(overload.text for overload in overloads)
    raise ValueError(f"Could not find matching overload of {name} for given arguments: {arguments!r}\n{known}")


class Call:
    """A bound, static or unbound method as seen from Python."""

    def __init__(self, function, name: str, owner: str):
        self.__name__ = name
        self._function = function
        self._owner = owner

    def __call__(self, *arguments, **keywords):
        name = f"{self._owner}.{self.__name__}"
        converted = select(overloadsOf(self._function, name), arguments, keywords, name)
        return self.invoke(converted)

    def invoke(self, converted: list):
        try:
            return fromQt(self._function(*converted))
        except (TypeError, OverflowError) as error:
            raise ValueError(f"Called {self._owner}.{self.__name__} with wrong arguments: {error}") from error

    def __repr__(self) -> str:
        return f"<qt slot {self.__name__} of {self._owner}>"


class UnboundCall:
    """`qt.QWidget.show(widget)`: the first argument is the object."""

    def __init__(self, descriptor, name: str, owner: type):
        self.__name__ = name
        self._descriptor = descriptor
        self._owner = owner

    def __call__(self, *arguments, **keywords):
        name = f"{self._owner.__name__}.{self.__name__}"
        if not arguments or not isWrapper(arguments[0]):
            raise ValueError(f"slot {name} requires {self._owner.__name__} instance as first argument")
        target = arguments[0].__dict__["_qt"]
        converted = select(overloadsOf(self._descriptor, name), arguments[1:], keywords, name)
        return fromQt(self._descriptor(target, *converted))
