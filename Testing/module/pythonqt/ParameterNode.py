"""`slicer.parameterNodeWrapper`: the decorator and its binding to widgets, own implementation over the real node."""

import contextlib
import typing

import vtk

from .Ledger import ledger
from .ParameterTypes import PATHS, Choice, Decimals, Kind, Maximum, Minimum, SingleStep, WithinRange
from .QtObject import Wrapper

PROPERTY = "SlicerParameterName"


def _bounds(kind: Kind, widget, lowest, highest, needed: str = "") -> None:
    within, low, high = kind.find(WithinRange), kind.find(Minimum), kind.find(Maximum)
    if needed and within is None and (low is None or high is None):
        raise RuntimeError(f"Cannot have a connection to {needed} where the type is unbounded.")
    widget.minimum = within.minimum if within else low.minimum if low else lowest
    widget.maximum = within.maximum if within else high.maximum if high else highest
    step, decimals = kind.find(SingleStep), kind.find(Decimals)
    if decimals is not None and kind.type is float:
        widget.decimals = decimals.value
    if step is not None:
        widget.singleStep = step.value


class Connector:
    """A widget and a parameter's type: signal, reading and writing. RuntimeError for a pair that Slicer refuses."""

    def __init__(self, widget: Wrapper, kind: Kind):
        import ctk
        import qt
        import slicer

        self.widget, self.kind = widget, kind
        sort = type(widget)
        if kind.type is bool and sort in (qt.QCheckBox, ctk.ctkCheckBox):
            self.use("stateChanged", "checked")
        elif kind.type is bool and sort is qt.QPushButton:
            widget.checkable = True
            self.use("toggled", "checked")
        elif kind.type is int and sort in (qt.QSpinBox, qt.QSlider):
            _bounds(kind, widget, -(2**31), 2**31 - 1, "QSlider" if sort is qt.QSlider else "")
            self.use("valueChanged", "value")
        elif kind.type in (int, float) and sort in (
            qt.QDoubleSpinBox, ctk.ctkSliderWidget, ctk.ctkDoubleSpinBox, slicer.qMRMLSliderWidget, slicer.qMRMLSpinBox,
        ):  # fmt: skip
            if kind.type is int:
                widget.decimals = 0
            slider = sort in (ctk.ctkSliderWidget, slicer.qMRMLSliderWidget)
            _bounds(kind, widget, float("-inf"), float("inf"), "ctkSliderWidget" if slider else "")
            self.use("valueChanged", "value", kind.type)
        elif sort in (qt.QComboBox, ctk.ctkComboBox) and (kind.isEnum or kind.type in (int, float, str, bool)):
            self.useCombo()
        elif kind.type is str and sort is qt.QLineEdit:
            self.use("textChanged", "text")
        elif kind.type is str and sort is qt.QLabel:
            self.use("", "text")
        elif kind.type is str and sort is qt.QTextEdit:
            self.signal, self.read, self.write = "textChanged", widget.toPlainText, widget.setPlainText
        elif kind.type in PATHS and sort is ctk.ctkPathLineEdit:
            self.use("currentPathChanged", "currentPath", kind.type, str)
        elif kind.type in PATHS and sort is ctk.ctkDirectoryButton:
            self.use("directoryChanged", "directory", kind.type, str)
        elif kind.isNode and sort is slicer.qMRMLNodeComboBox:
            widget.nodeTypes = tuple(member().GetClassName() for member in kind.nodeTypes)
            self.signal, self.read, self.write = "currentNodeChanged", widget.currentNode, widget.setCurrentNode
        else:
            raise RuntimeError(f"Unable to create GUI connector from datatype '{kind.type}' to widget type '{sort}'.")

    def use(self, signal: str, name: str, toValue=lambda value: value, toWidget=lambda value: value) -> None:
        widget = self.widget

        def write(value):
            if not (signal == "textChanged" and getattr(widget, name) == value):
                setattr(widget, name, toWidget(value))

        self.signal, self.read, self.write = signal, lambda: toValue(getattr(widget, name)), write

    def useCombo(self) -> None:
        widget, choice = self.widget, self.kind.find(Choice)
        if not self.kind.isEnum and choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        values = list(self.kind.type) if self.kind.isEnum else list(choice.choices)
        label = getattr(self.kind.type, "label", lambda member: member.name) if self.kind.isEnum else str
        widget.clear()
        for value in values:
            widget.addItem(label(value))

        def write(value):
            if value not in values:
                raise ValueError(f"Unable to find value {value} in choices {values}")
            widget.currentIndex = values.index(value)

        self.signal, self.read, self.write = "currentIndexChanged", lambda: values[widget.currentIndex], write

    def connect(self, function) -> None:
        if self.signal and not getattr(self.widget, self.signal).connect(function):
            ledger.note(f"{self.widget} has no signal {self.signal}")

    def disconnect(self, function) -> None:
        if self.signal and self.widget:
            getattr(self.widget, self.signal).disconnect(function)


@contextlib.contextmanager
def _modify(node):
    state = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(state)


class _Wrapper:
    """What the decorator adds to a class."""

    def __init__(self, parameterNode, prefix: str | None = None):
        self.parameterNode = parameterNode
        self._prefix, self._guis, self._nextTag, self._updating = prefix or "", {}, 0, False
        for name, kind in self.allParameters.items():
            if not kind.isIn(parameterNode, self._prefix + name):
                kind.write(parameterNode, self._prefix + name, self.defaults[name]())

    def _kind(self, name: str) -> Kind:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a param with the given name: {name}\n  Found {list(self.allParameters)}")
        return self.allParameters[name]

    def getValue(self, name):
        return self._kind(name).read(self.parameterNode, self._prefix + name)

    def setValue(self, name, value):
        with _modify(self.parameterNode):
            self._kind(name).write(self.parameterNode, self._prefix + name, value)

    def default(self, name):
        from .ParameterTypes import Default

        self._kind(name)
        return Default(self.defaults[name]())

    def connectGui(self, gui):
        widgets = [gui, *_widgetsIn(gui)] if isinstance(gui, Wrapper) else list(vars(gui).values())
        named = {w.property(PROPERTY): w for w in widgets if isinstance(w, Wrapper) and w.property(PROPERTY)}
        return self.connectParametersToGui(named)

    def connectParametersToGui(self, mapping):
        connectors = {name: Connector(widget, self._kind(name)) for name, widget in mapping.items()}
        self._nextTag += 1
        functions = {}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            functions[name] = self._onWidget(name, connector)
            connector.connect(functions[name])
        observer = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda _caller, _event: self._onNode())
        self._guis[self._nextTag] = (connectors, functions, observer)
        return self._nextTag

    def _onWidget(self, name, connector):
        def changed():
            if not self._updating:
                self.setValue(name, connector.read())

        return changed

    def _onNode(self):
        if self._updating:
            return
        self._updating = True
        try:
            with _modify(self.parameterNode):
                for connectors, _functions, _observer in self._guis.values():
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        except Exception:
            ledger.exception("a parameter's widget")
        finally:
            self._updating = False

    def disconnectGui(self, tag):
        connectors, functions, observer = self._guis.pop(tag, ({}, {}, None))
        for name, connector in connectors.items():
            connector.disconnect(functions[name])
        if observer is not None:
            self.parameterNode.RemoveObserver(observer)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, state):
        return self.parameterNode.EndModify(state)

    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        return self.parameterNode.RemoveObserver(tag)

    def Modified(self):
        return self.parameterNode.Modified()


def _widgetsIn(gui) -> tuple:
    import qt

    return gui.findChildren(qt.QWidget)


def parameterNodeWrapper(classtype=None):
    """@parameterNodeWrapper: typed properties over a parameter node."""

    def wrap(cls):
        hints = typing.get_type_hints(cls, include_extras=True)
        cls.allParameters = {name: Kind(annotation) for name, annotation in hints.items()}
        cls.defaults = {}
        for name, kind in cls.allParameters.items():
            given = hasattr(cls, name)
            value = getattr(cls, name) if given else None
            cls.defaults[name] = (lambda value=value: value) if given else kind.default
            setattr(
                cls, name, property(lambda self, n=name: self.getValue(n), lambda self, v, n=name: self.setValue(n, v))
            )
        for name, function in vars(_Wrapper).items():
            if name == "__init__" or not name.startswith("__"):
                if name in vars(cls):
                    raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
                setattr(cls, name, function)
        return cls

    return wrap if classtype is None else wrap(classtype)


def isParameterNodeWrapper(classOrObj) -> bool:
    return hasattr(classOrObj, "allParameters")
