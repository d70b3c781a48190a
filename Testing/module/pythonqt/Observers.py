"""VTK observers of Qt stand-ins: gone with the Qt object, exceptions noted."""

import slicer
import vtk
from shiboken6 import Shiboken

from .Ledger import ledger

SCENE_EVENTS = (
    slicer.vtkMRMLScene.NodeAddedEvent,
    slicer.vtkMRMLScene.NodeRemovedEvent,
    slicer.vtkMRMLScene.EndCloseEvent,
    slicer.vtkMRMLScene.EndImportEvent,
    slicer.vtkMRMLScene.EndBatchProcessEvent,
)
_observed: list = []


def observe(qtObject, target, events, function) -> list:
    """`function(caller)` on each event while `qtObject` lives → tags for `forget`."""
    tags = []
    for event in events:

        def call(caller, _name, function=function):
            if not Shiboken.isValid(qtObject):
                return
            try:
                function(caller)
            except Exception:
                ledger.exception(f"an observer of {type(qtObject).__name__}")

        tags.append((target, target.AddObserver(event, call)))
    _observed.extend(tags)
    return tags


def forget(tags: list) -> None:
    for target, tag in tags:
        target.RemoveObserver(tag)
        if (target, tag) in _observed:
            _observed.remove((target, tag))


def forgetAll() -> None:
    """At the end of a test."""
    forget(list(_observed))


MODIFIED = (vtk.vtkCommand.ModifiedEvent,)
