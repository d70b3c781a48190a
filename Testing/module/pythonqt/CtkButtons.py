"""Stand-ins for ctk's buttons, boxes and message box. Names and signatures as in CTK's Libs/Widgets headers."""

from PySide6 import QtCore, QtGui, QtWidgets

from .QtObject import StandIn
from .StandIns import emitDeclared, parentOnly, stored

_HEADER = 10  # pixels around the header's text


class _Collapsing:
    """Hides the children of a collapsed box, and shows again those that are meant to be seen."""

    def collapseChildren(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        children = [child for child in self.children() if isinstance(child, QtWidgets.QWidget)]
        if collapsed:
            self._meant = [child for child in children if not child.isHidden()]
            for child in self._meant:
                child.hide()
        else:
            for child in getattr(self, "_meant", []):
                child.show()
        self.updateGeometry()

    def childEvent(self, event):
        super().childEvent(event)
        if event.type() == QtCore.QEvent.Type.ChildPolished and isinstance(event.child(), QtWidgets.QWidget):
            event.child().installEventFilter(self)
            if getattr(self, "_collapsed", False):
                self._meant.append(event.child())
                event.child().hide()

    def eventFilter(self, watched, event):
        if event.type() == QtCore.QEvent.Type.ShowToParent and getattr(self, "_collapsed", False):
            if watched.parent() is self and watched not in self._meant:
                self._meant.append(watched)
            watched.hide()
        return False


class ctkCollapsibleButton(_Collapsing, StandIn, QtWidgets.QAbstractButton):
    cppName = "ctkCollapsibleButton"
    signatures = ("contentsCollapsed(bool)",)
    constructors = parentOnly()

    flat = stored(bool)
    collapsedHeight = stored(int, 10)
    contentsFrameShape = stored(int)
    contentsFrameShadow = stored(int)
    contentsLineWidth = stored(int, 1)
    contentsMidLineWidth = stored(int)
    buttonTextAlignment = stored(int, 0x81)
    indicatorAlignment = stored(int, 0x81)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setCheckable(True)
        self.setChecked(True)
        self.setContentsMargins(0, self.headerHeight(), 0, 0)
        self.setSizePolicy(QtWidgets.QSizePolicy.Policy.Preferred, QtWidgets.QSizePolicy.Policy.Preferred)
        self.toggled.connect(self._onToggled)

    def headerHeight(self) -> int:
        return self.fontMetrics().height() + _HEADER

    def _onToggled(self, checked: bool) -> None:
        self.collapseChildren(not checked)
        emitDeclared(self, "contentsCollapsed(bool)", not checked)

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))

    def hitButton(self, position) -> bool:
        return 0 <= position.y() <= self.headerHeight()

    def sizeHint(self) -> QtCore.QSize:
        header = QtCore.QSize(self.fontMetrics().horizontalAdvance(self.text()) + 4 * _HEADER, self.headerHeight())
        if self.collapsed or self.layout() is None:
            return header
        return self.layout().sizeHint().expandedTo(header)

    def minimumSizeHint(self) -> QtCore.QSize:
        header = QtCore.QSize(0, self.headerHeight())
        return header if self.collapsed or self.layout() is None else self.layout().minimumSize().expandedTo(header)

    def paintEvent(self, _event) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, self.width(), self.headerHeight())
        painter.fillRect(header, self.palette().button().color().darker(106))
        painter.setPen(self.palette().buttonText().color())
        arrow = "▸" if self.collapsed else "▾"
        left = QtCore.Qt.AlignmentFlag.AlignVCenter | QtCore.Qt.AlignmentFlag.AlignLeft
        painter.drawText(header.adjusted(_HEADER, 0, 0, 0), left, f"{arrow}  {self.text()}")


class ctkCollapsibleGroupBox(_Collapsing, StandIn, QtWidgets.QGroupBox):
    cppName = "ctkCollapsibleGroupBox"
    constructors = parentOnly()
    collapsedHeight = stored(int, 14)

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setCheckable(True)
        self.toggled.connect(lambda checked: self.collapseChildren(not checked))

    collapsed = QtCore.Property(bool, lambda self: not self.isChecked(), lambda self, value: self.setChecked(not value))


class ctkMessageBox(StandIn, QtWidgets.QMessageBox):
    cppName = "ctkMessageBox"
    constructors = parentOnly()
    dontShowAgain = stored(bool)
    dontShowAgainVisible = stored(bool)
    dontShowAgainSettingsKey = stored(str)


class ctkPushButton(StandIn, QtWidgets.QPushButton):
    cppName = "ctkPushButton"
    constructors = parentOnly()
    buttonTextAlignment = stored(int, 0x84)
    iconAlignment = stored(int, 0x81)
    elideMode = stored(int, 3)


class ctkMenuButton(StandIn, QtWidgets.QPushButton):
    cppName = "ctkMenuButton"
    constructors = parentOnly()


class ctkCheckBox(StandIn, QtWidgets.QCheckBox):
    cppName = "ctkCheckBox"
    constructors = parentOnly()


class ctkExpandableWidget(StandIn, QtWidgets.QFrame):
    cppName = "ctkExpandableWidget"
    constructors = parentOnly()
    orientations = stored(int, 2)
    sizeGripInside = stored(bool, True)


CLASSES = (
    ctkCollapsibleButton, ctkCollapsibleGroupBox, ctkMessageBox, ctkPushButton, ctkMenuButton, ctkCheckBox,
    ctkExpandableWidget,
)  # fmt: skip
