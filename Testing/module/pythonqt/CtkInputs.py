"""Stand-ins for ctk's inputs: paths, numbers, combo and search boxes. Names as in CTK's Libs/Widgets headers."""

import fnmatch
import re
from typing import ClassVar

from PySide6 import QtCore, QtGui, QtWidgets

from .Dialogs import statics
from .QtObject import StandIn, slot
from .Signals import emitDeclared
from .StandIns import parentOnly, stored

_FILTERS = {
    "Dirs": 0x1, "Files": 0x2, "Drives": 0x4, "NoSymLinks": 0x8, "AllEntries": 0x7, "TypeMask": 0xF, "Readable": 0x10,
    "Writable": 0x20, "Executable": 0x40, "PermissionMask": 0x70, "Modified": 0x80, "Hidden": 0x100, "System": 0x200,
    "AccessMask": 0x3F0, "AllDirs": 0x400, "CaseSensitive": 0x800, "NoDotAndDotDot": 0x1000, "NoDot": 0x2000,
    "NoDotDot": 0x4000, "NoFilter": -1,
}  # fmt: skip
_OPTIONS = {
    "ShowDirsOnly": 0x1, "DontResolveSymlinks": 0x2, "DontConfirmOverwrite": 0x4, "DontUseSheet": 0x8,
    "DontUseNativeDialog": 0x10, "ReadOnly": 0x20, "HideNameFilterDetails": 0x40,
}  # fmt: skip
_POLICIES = {"AdjustToContents": 0, "AdjustToContentsOnFirstShow": 1, "AdjustToMinimumContentsLength": 2}


def _row(widget: QtWidgets.QWidget, *children: QtWidgets.QWidget) -> None:
    layout = QtWidgets.QHBoxLayout(widget)
    layout.setContentsMargins(0, 0, 0, 0)
    for child in children:
        layout.addWidget(child)


class ctkPathLineEdit(StandIn, QtWidgets.QWidget):
    cppName = "ctkPathLineEdit"
    signatures = ("validInputChanged(bool)", "currentPathChanged(QString)")
    constants: ClassVar[dict] = {**_FILTERS, **_OPTIONS, **_POLICIES}
    constructors = parentOnly()
    label = stored(str)
    filters = stored(int, _FILTERS["AllEntries"] | _FILTERS["NoDotAndDotDot"] | _FILTERS["Readable"])
    options = stored(int)
    settingKey = stored(str, None, "_fillHistory")
    showBrowseButton = stored(bool, True, "_showButton")
    showHistoryButton = stored(bool, True)
    sizeAdjustPolicy = stored(int, 2)
    minimumContentsLength = stored(int)
    nameFilters = stored("QStringList")

    def __init__(self, parent=None):
        super().__init__(parent)
        self._combo = QtWidgets.QComboBox(self, editable=True)
        self._combo.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._combo.setInsertPolicy(QtWidgets.QComboBox.InsertPolicy.NoInsert)
        self._button = QtWidgets.QToolButton(self, text="…")
        self._valid = False
        _row(self, self._combo, self._button)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed)
        self._combo.editTextChanged.connect(self._onText)
        self._button.clicked.connect(lambda _checked: self.browse())

    def _showButton(self) -> None:
        self._button.setVisible(self.showBrowseButton)

    def _accepts(self, text: str) -> bool:
        """Whether the name filters allow the text; files need not exist."""
        patterns = re.findall(r"\*[.\w*]*", " ".join(self.nameFilters))
        return not patterns or any(fnmatch.fnmatch(text, pattern) for pattern in patterns)

    def _onText(self, text: str) -> None:
        before, self._valid = self._valid, self._accepts(text)
        if self._valid:
            emitDeclared(self, "currentPathChanged(QString)", text)
        if self._valid != before:
            emitDeclared(self, "validInputChanged(bool)", self._valid)

    def _setPath(self, path: str) -> None:
        if path != self._combo.currentText():
            self._combo.setEditText(path)

    currentPath = QtCore.Property(str, lambda self: self._combo.currentText(), _setPath)

    @slot(str)
    def setCurrentPath(self, path):
        self._setPath(path)

    @slot()
    def browse(self):
        name = "getExistingDirectory"
        if self.filters & _FILTERS["Files"]:
            name = "getSaveFileName" if self.filters & _FILTERS["Writable"] else "getOpenFileName"
        titles = {"getSaveFileName": "Select a file to save ", "getOpenFileName": "Open a file"}
        path = statics()["QFileDialog", name](None, titles.get(name, "Select a directory..."))
        if path:
            self._setPath(path)

    def _history(self) -> list[str]:
        known = QtCore.QSettings().value(f"ctkPathLineEdit/{self.settingKey or self.objectName()}", [])
        return [known] if isinstance(known, str) else list(known or [])

    def _fillHistory(self) -> None:
        path, history = self.currentPath, self._history()[:10]
        blocked = self._combo.blockSignals(True)
        self._combo.clear()
        self._combo.addItems(history)
        self._combo.setEditText(path)
        self._combo.blockSignals(blocked)
        if not path and history:
            self._combo.setEditText(history[0])

    @slot()
    def retrieveHistory(self):
        self._fillHistory()

    @slot()
    def addCurrentPathToHistory(self):
        path = self.currentPath
        if path:
            history = [path, *(known for known in self._history() if known != path)]
            QtCore.QSettings().setValue(f"ctkPathLineEdit/{self.settingKey or self.objectName()}", history)
            self._fillHistory()

    @slot()
    def comboBox(self):
        return self._combo


class ctkDirectoryButton(StandIn, QtWidgets.QWidget):
    cppName = "ctkDirectoryButton"
    signatures = ("directoryChanged(QString)", "directorySelected(QString)")
    constants: ClassVar[dict] = _OPTIONS
    constructors = parentOnly()
    caption = stored(str)
    elideMode = stored(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._directory = QtCore.QDir(".")
        self._button = QtWidgets.QPushButton(self._directory.absolutePath(), self)
        _row(self, self._button)
        self._button.clicked.connect(lambda _checked: self.browse())

    def _setDirectory(self, path: str) -> None:
        new = QtCore.QDir(path)
        changed = new != self._directory
        if changed:
            self._directory = QtCore.QDir(new.absolutePath())
            self._button.setText(new.absolutePath())
        emitDeclared(self, "directorySelected(QString)", new.absolutePath())
        if changed:
            emitDeclared(self, "directoryChanged(QString)", new.absolutePath())

    directory = QtCore.Property(str, lambda self: self._directory.path(), _setDirectory)
    text = QtCore.Property(str, lambda self: self._button.text(), lambda self, text: self._button.setText(text))

    @slot()
    def browse(self):
        path = statics()["QFileDialog", "getExistingDirectory"](None, self.caption)
        if path:
            self._setDirectory(path)
        return path


class ctkComboBox(StandIn, QtWidgets.QComboBox):
    cppName = "ctkComboBox"
    signatures = ("returnRelease()",)
    constants: ClassVar[dict] = {"NeverScroll": 0, "AlwaysScroll": 1, "ScrollWithFocus": 2, "ScrollWithNoVScrollBar": 3}
    constructors = parentOnly()
    defaultText = stored(str)
    forceDefault = stored(bool)
    elideMode = stored(int)
    scrollWheelEffect = stored(int, 1)

    def _select(self, text: str) -> None:
        index = self.findData(text)
        if index >= 0:
            self.setCurrentIndex(index)

    currentUserDataAsString = QtCore.Property(str, lambda self: str(self.currentData() or ""), _select)

    @slot(str)
    def setCurrentUserDataAsString(self, text):
        self._select(text)


class ctkDoubleSpinBox(StandIn, QtWidgets.QWidget):
    cppName = "ctkDoubleSpinBox"
    signatures = ("valueChanged(double)", "valueChanged(QString)", "editingFinished()", "decimalsChanged(int)")
    constants: ClassVar[dict] = {"SetAlways": 0, "SetIfDifferent": 1, "FixedDecimals": 0}
    constructors = parentOnly()
    decimalsOption = stored(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._box = QtWidgets.QDoubleSpinBox(self)
        _row(self, self._box)
        self._box.valueChanged.connect(self._onValue)
        self._box.editingFinished.connect(lambda: emitDeclared(self, "editingFinished()"))

    def _onValue(self, value: float) -> None:
        emitDeclared(self, "valueChanged(double)", value)
        emitDeclared(self, "valueChanged(QString)", self._box.text())

    def _onDecimals(self, decimals: int) -> None:
        self._box.setDecimals(decimals)
        emitDeclared(self, "decimalsChanged(int)", decimals)

    value = QtCore.Property(float, lambda self: self._box.value(), lambda self, value: self._box.setValue(value))
    minimum = QtCore.Property(float, lambda self: self._box.minimum(), lambda self, v: self._box.setMinimum(v))
    maximum = QtCore.Property(float, lambda self: self._box.maximum(), lambda self, v: self._box.setMaximum(v))
    singleStep = QtCore.Property(float, lambda self: self._box.singleStep(), lambda self, v: self._box.setSingleStep(v))
    decimals = QtCore.Property(int, lambda self: self._box.decimals(), _onDecimals)
    prefix = QtCore.Property(str, lambda self: self._box.prefix(), lambda self, v: self._box.setPrefix(v))
    suffix = QtCore.Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))
    readOnly = QtCore.Property(bool, lambda self: self._box.isReadOnly(), lambda self, v: self._box.setReadOnly(v))

    @slot(float)
    def setValue(self, value):
        self._box.setValue(value)

    @slot(int)
    def setDecimals(self, decimals):
        self._onDecimals(decimals)

    @slot(bool)
    def setReadOnly(self, value):
        self._box.setReadOnly(value)

    @slot()
    def stepUp(self):
        self._box.stepUp()

    @slot()
    def stepDown(self):
        self._box.stepDown()


class ctkSliderWidget(StandIn, QtWidgets.QWidget):
    cppName = "ctkSliderWidget"
    signatures = ("valueChanged(double)", "valueIsChanging(double)", "decimalsChanged(int)")
    constants: ClassVar[dict] = {"NoSynchronize": 0, "SynchronizeWidth": 1, "SynchronizeDecimals": 2}
    constructors = parentOnly()
    pageStep = stored(float, 10.0)
    tickInterval = stored(float)
    tracking = stored(bool, True)
    spinBoxVisible = stored(bool, True)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, self)
        self._box = QtWidgets.QDoubleSpinBox(self)
        _row(self, self._slider, self._box)
        self._range()
        self._slider.valueChanged.connect(
            lambda step: self._box.setValue(self._box.minimum() + step * self._box.singleStep())
        )
        self._box.valueChanged.connect(self._onValue)

    def _range(self) -> None:
        steps = (self._box.maximum() - self._box.minimum()) / (self._box.singleStep() or 1.0)
        self._slider.setRange(0, round(min(max(steps, 0.0), 1e9)))

    def _onValue(self, value: float) -> None:
        blocked = self._slider.blockSignals(True)
        self._slider.setValue(round((value - self._box.minimum()) / (self._box.singleStep() or 1.0)))
        self._slider.blockSignals(blocked)
        emitDeclared(self, "valueChanged(double)", value)

    def _set(self, name: str, value) -> None:
        getattr(self._box, name)(value)
        self._range()

    value = QtCore.Property(float, lambda self: self._box.value(), lambda self, v: self._box.setValue(v))
    minimum = QtCore.Property(float, lambda self: self._box.minimum(), lambda self, v: self._set("setMinimum", v))
    maximum = QtCore.Property(float, lambda self: self._box.maximum(), lambda self, v: self._set("setMaximum", v))
    singleStep = QtCore.Property(
        float, lambda self: self._box.singleStep(), lambda self, v: self._set("setSingleStep", v)
    )
    decimals = QtCore.Property(int, lambda self: self._box.decimals(), lambda self, v: self._set("setDecimals", v))
    prefix = QtCore.Property(str, lambda self: self._box.prefix(), lambda self, v: self._box.setPrefix(v))
    suffix = QtCore.Property(str, lambda self: self._box.suffix(), lambda self, v: self._box.setSuffix(v))

    @slot(float)
    def setValue(self, value):
        self._box.setValue(value)

    @slot(int)
    def setDecimals(self, decimals):
        self._set("setDecimals", decimals)

    @slot()
    def reset(self):
        self._box.setValue(0.0)


class ctkSearchBox(StandIn, QtWidgets.QLineEdit):
    cppName = "ctkSearchBox"
    constructors = parentOnly()
    showSearchIcon = stored(bool)


class ctkFittedTextBrowser(StandIn, QtWidgets.QTextBrowser):
    cppName = "ctkFittedTextBrowser"
    constructors = parentOnly()
    disableMouseScroll = stored(bool)
    collapsed = stored(bool, True)


class ctkColorPickerButton(StandIn, QtWidgets.QPushButton):
    cppName = "ctkColorPickerButton"
    signatures = ("colorChanged(QColor)", "colorNameChanged(QString)")
    constructors = parentOnly()
    displayColorName = stored(bool, True)

    def _setColor(self, color) -> None:
        if color != getattr(self, "_color", QtGui.QColor("black")):
            self._color = QtGui.QColor(color)
            emitDeclared(self, "colorChanged(QColor)", self._color)

    color = QtCore.Property(QtGui.QColor, lambda self: getattr(self, "_color", QtGui.QColor("black")), _setColor)

    @slot(QtGui.QColor)
    def setColor(self, color):
        self._setColor(color)


CLASSES = (
    ctkPathLineEdit, ctkDirectoryButton, ctkComboBox, ctkDoubleSpinBox, ctkSliderWidget, ctkSearchBox,
    ctkFittedTextBrowser, ctkColorPickerButton,
)  # fmt: skip
