"""QUiLoader for .ui files with promoted ctk and qMRML widgets; what Qt would ignore in silence is an error here."""

import functools
import re
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from .Ledger import ledger
from .QtObject import StandIn, slot, standInMethod
from .Signals import connect, declaredSignals, metaSignals, normalized
from .StandIns import parentOnly

_known: dict[str, type] = {}


def register(classes) -> None:
    """Stand-in classes that .ui files may name."""
    for made in classes:
        _known[made.cppName] = made


class _Loader(QtUiTools.QUiLoader):
    """Makes the stand-ins where the file names them."""

    def createWidget(self, className, parent=None, name=""):
        if className not in _known:
            return super().createWidget(className, parent, name)
        made = _known[className](parent) if parent is not None else _known[className]()
        made.setObjectName(name)
        self.made.append(made)
        return made


def _constant(owner: type, name: str) -> int:
    name = name.split("::")[-1]
    for base in owner.__mro__:
        if name in vars(base).get("constants", {}):
            return base.constants[name]
    for scope in (QtCore.Qt, QtWidgets.QFrame, QtWidgets.QSlider, QtWidgets.QComboBox, QtWidgets.QSizePolicy):
        if hasattr(scope, name):
            return int(getattr(scope, name).value)
    raise RuntimeError(f"{owner.__name__} has no enum value {name}")


@functools.cache
def _properties(owner: type) -> dict[str, str]:
    """Name → C++ type of all properties of a widget class."""
    made = owner()  # an instance: PySide drops the static meta-objects of Python classes
    meta = made.metaObject()
    return {meta.property(i).name(): meta.property(i).typeName() for i in range(meta.propertyCount())}


def _checkWidget(element) -> None:
    """Unknown classes and properties fail; enum values of stand-ins become numbers."""
    className, name = element.get("class"), element.get("name")
    owner = _known.get(className) or getattr(QtWidgets, className, None)
    if owner is None:
        raise RuntimeError(f"{name}: the widget class {className} is unknown to the rig and perhaps to Slicer")
    properties = _properties(owner)
    for found in element.findall("property"):
        known = found.get("name") in properties
        if not known and found.get("stdset") != "0":
            raise RuntimeError(f"{className} {name} has no property {found.get('name')}")
        if known and className in _known:
            for value in found:
                if value.tag in ("enum", "set") and properties[found.get("name")] == "int":
                    number = 0
                    for part in (value.text or "").split("|"):
                        number |= _constant(owner, part)
                    value.tag, value.text = "number", str(number)


def _checkCustom(root) -> None:
    declared = {entry.findtext("class"): entry for entry in root.iter("customwidget")}
    for element in root.iter("widget"):
        if element.get("class") in _known and element.get("class") not in declared:
            raise RuntimeError(
                f"{element.get('class')} is used but not declared in <customwidgets>: Designer cannot open it"
            )
    for className, entry in declared.items():
        if className not in _known:
            raise RuntimeError(f"the custom widget {className} is unknown to the rig and perhaps to Slicer")
        bases = {base.__name__ for base in _known[className].__mro__}
        if entry.findtext("extends") not in bases:
            raise RuntimeError(f"{className} does not extend {entry.findtext('extends')}")


def _signalOf(made, signature: str) -> bool:
    return normalized(signature) in declaredSignals(made) + metaSignals(made)


def _slotOf(made, signature: str):
    name = signature.split("(")[0]
    method = standInMethod(type(made), name) if isinstance(made, StandIn) else None
    if method is not None:
        return lambda *arguments: method(made, *arguments)
    if made.metaObject().indexOfMethod(normalized(signature)) >= 0:
        return getattr(made, name)
    return None


def _connectAll(root, top) -> None:
    """The <connections> of the file; each end must exist."""
    for entry in root.iter("connection"):
        ends = []
        for key in ("sender", "receiver"):
            name = entry.findtext(key)
            found = top if top.objectName() == name else top.findChild(QtCore.QObject, name)
            if found is None:
                raise RuntimeError(f"connection in the .ui file: there is no {name}")
            ends.append(found)
        signal, target = entry.findtext("signal"), entry.findtext("slot")
        function = _slotOf(ends[1], target)
        if not _signalOf(ends[0], signal) or function is None:
            raise RuntimeError(f"connection in the .ui file: {entry.findtext('sender')}.{signal} to "
                               f"{entry.findtext('receiver')}.{target} does not exist")  # fmt: skip
        connect(ends[0], signal, function)


class QUiLoader(StandIn, QtCore.QObject):
    cppName = "QUiLoader"
    constructors = parentOnly()

    @slot(QtCore.QIODevice, QtWidgets.QWidget | None, required=1)
    def load(self, device, parent=None):
        content = device.readAll().data()
        try:
            root = ElementTree.fromstring(content)
            _checkCustom(root)
            for element in root.iter("widget"):
                _checkWidget(element)
        except (ElementTree.ParseError, RuntimeError) as error:
            ledger.note(f"the .ui file: {error}")
            return None
        self._checkNames(root)
        cleaned = ElementTree.fromstring(ElementTree.tostring(root))
        for section in cleaned.findall("connections"):
            cleaned.remove(section)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(cleaned))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        loader = _Loader()
        loader.made = []
        top = loader.load(buffer, parent)
        if top is None:
            ledger.note(f"the .ui file: {loader.errorString()}")
            return None
        top._rigLoaded = loader.made  # their Python halves live as long as the widget
        _connectAll(root, top)
        return top

    def _checkNames(self, root) -> None:
        """Names must be unique, and usable as attributes for childWidgetVariables."""
        names = [element.get("name") for element in root.iter("widget")]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                ledger.note(f"the .ui file: the name {name} is given {names.count(name)} times")
            if not re.fullmatch(r"[A-Za-z_]\w*", name or ""):
                ledger.note(f"the .ui file: {name!r} cannot be an attribute")
