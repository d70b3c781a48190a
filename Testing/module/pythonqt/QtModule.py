"""The module `qt`: wrapper classes made when asked for; a class PythonQt lacks, or Qt 5 lacks, does not exist."""

import types

from PySide6 import QtCore, QtGui, QtNetwork, QtSvg, QtWidgets

from . import Dialogs
from .Ledger import ledger
from .QtObject import Wrapper, wrapperClass
from .Refused import SUPPORTED
from .Signals import Connection
from .Values import Mismatch, toInteger

_LIBRARIES = (QtCore, QtGui, QtWidgets, QtNetwork, QtSvg)
_timers: set = set()


def singleShot(*arguments, **keywords):
    """QTimer.singleShot(msec, callable): the only form that PythonQt has."""
    if keywords or len(arguments) != 2 or not callable(arguments[1]):
        raise ValueError(f"Called QTimer.singleShot with wrong arguments: {arguments!r}")
    try:
        delay = toInteger(arguments[0], False)
    except Mismatch as error:
        raise ValueError(f"Called QTimer.singleShot with wrong arguments: {arguments!r}") from error
    timer = QtCore.QTimer()
    call = Connection("timeout()", arguments[1])
    _timers.add(timer)

    def fire():
        _timers.discard(timer)
        call()

    timer.setSingleShot(True)
    timer.timeout.connect(fire)
    timer.start(delay)


def stopSingleShots() -> None:
    """Ends the timers that a test left running."""
    for timer in list(_timers):
        timer.stop()
    _timers.clear()


class QtModule(types.ModuleType):
    """`import qt`."""

    def __init__(self):
        super().__init__("qt", "PythonQt's Qt classes, by PySide6")
        self._extra: dict = {}
        Wrapper._statics.update(Dialogs.statics())
        Wrapper._statics["QTimer", "singleShot"] = singleShot

    def add(self, source: type) -> None:
        """A stand-in class that belongs to `qt` (QUiLoader)."""
        made = wrapperClass(source)
        self._extra[made.__name__] = made

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._extra:
            return self._extra[name]
        if name not in SUPPORTED:
            known = any(hasattr(library, name) for library in _LIBRARIES)
            hint = " (the rig does not know whether PythonQt has it: check, then add it to Refused.py)" if known else ""
            raise AttributeError(f"module 'qt' has no attribute '{name}'{hint}")
        for library in _LIBRARIES:
            if hasattr(library, name):
                return wrapperClass(getattr(library, name))
        ledger.note(f"qt.{name} is listed but PySide6 has no such class")
        raise AttributeError(name)
