"""Dialogs never block a test: each takes the next answer that the test gave; an unexpected one is a problem."""

import dataclasses
from typing import Any

from PySide6 import QtGui, QtWidgets

from .Calls import overloadsOf, select
from .Enums import enumValue
from .Ledger import ledger
from .Values import fromQt

FILE_STATICS = ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory")
INPUT_STATICS = ("getText", "getItem", "getInt", "getDouble", "getMultiLineText")
MESSAGE_STATICS = ("question", "information", "warning", "critical", "about")


@dataclasses.dataclass
class Shown:
    """A dialog that came up: what the user saw, and what was answered."""

    kind: str
    title: str
    text: str
    buttons: list[str]
    answer: Any = None
    widget: Any = None


@dataclasses.dataclass
class Answer:
    """What the test lets the user do: a button's name, a path, a list, or a function of the wrapped dialog."""

    value: Any
    contains: str = ""


def _next(shown: Shown, default):
    """The test's answer to this dialog; `default` and a problem where there is none or it is for another dialog."""
    ledger.dialogs.append(shown)
    if not ledger.answers:
        ledger.note(f"unexpected dialog: {shown.kind} {shown.title!r}: {shown.text!r} {shown.buttons}")
        shown.answer = default
        return default
    answer = ledger.answers.pop(0)
    if answer.contains and answer.contains not in f"{shown.title}\n{shown.text}":
        ledger.note(f"the dialog {shown.title!r}: {shown.text!r} does not contain {answer.contains!r}")
    shown.answer = answer.value
    return answer.value


def _buttonNames(buttons) -> list[str]:
    kinds = QtWidgets.QMessageBox.StandardButton
    return [kind.name for kind in kinds if int(kind.value) and kind & buttons == kind and kind.name != "NoButton"]


def _messageResult(shown: Shown, box):
    """The value of exec_ for a message box: the standard button, or the index of an own one."""
    kinds = QtWidgets.QMessageBox.StandardButton
    answer = _next(shown, "Cancel" if "Cancel" in shown.buttons else shown.buttons[-1] if shown.buttons else "Ok")
    if callable(answer):
        answer = answer(fromQt(box))
    for button in box.buttons() if box is not None else ():
        if button.text().replace("&", "") == answer and box.standardButton(button) == kinds.NoButton:
            button.click()
            return box.buttons().index(button)
    if answer not in shown.buttons:
        ledger.note(f"the dialog {shown.title!r} has no button {answer!r}, only {shown.buttons}")
        return enumValue(kinds.NoButton)
    chosen = getattr(kinds, answer)
    if box is not None and box.button(chosen) is not None:
        box.button(chosen).click()
    return enumValue(chosen)


def execute(dialog):
    """What exec_() does for a dialog, a message box or a menu."""
    if isinstance(dialog, QtWidgets.QMenu):
        return _executeMenu(dialog)
    if isinstance(dialog, QtWidgets.QMessageBox):
        own = [b.text() for b in dialog.buttons() if dialog.standardButton(b) == dialog.StandardButton.NoButton]
        names = _buttonNames(dialog.standardButtons()) or ([] if own else ["Ok"])
        text = "\n".join(part for part in (dialog.text(), dialog.informativeText(), dialog.detailedText()) if part)
        return _messageResult(Shown("message", dialog.windowTitle().strip(), text, names + own), dialog)
    texts = [label.text() for label in dialog.findChildren(QtWidgets.QLabel)]
    shown = Shown("dialog", dialog.windowTitle(), "\n".join(texts), [], widget=dialog)
    answer = _next(shown, 0)
    if callable(answer):
        answer = answer(fromQt(dialog))
    dialog.setResult(int(answer or 0))
    (dialog.accept if answer else dialog.reject)()
    return int(answer or 0)


def _executeMenu(menu):
    actions = [action for action in menu.actions() if not action.isSeparator() and action.isVisible()]
    names = [action.text().replace("&", "") for action in actions]
    menu.aboutToShow.emit()
    answer = _next(Shown("menu", menu.title(), "", names), None)
    if answer is None:
        return None
    if answer not in names:
        ledger.note(f"the menu has no action {answer!r}, only {names}")
        return None
    action = actions[names.index(answer)]
    if not action.isEnabled():
        ledger.note(f"the menu's action {answer!r} is disabled")
        return None
    action.trigger()
    return fromQt(action)


def _messageStatic(name: str):
    def ask(*arguments, **keywords):
        overloads = overloadsOf(getattr(QtWidgets.QMessageBox, name), f"QMessageBox.{name}")
        converted = select(overloads, arguments, keywords, f"QMessageBox.{name}")
        usual = "Yes No" if name == "question" else "Ok"
        names = _buttonNames(converted[3]) if len(converted) > 3 else usual.split()
        return _messageResult(Shown("message", converted[1], converted[2], names), None)

    return ask


def _fileStatic(name: str):
    def ask(*arguments, **keywords):
        overloads = overloadsOf(getattr(QtWidgets.QFileDialog, name), f"QFileDialog.{name}")
        converted = select(overloads, arguments, keywords, f"QFileDialog.{name}")
        many = name == "getOpenFileNames"
        shown = Shown("file", converted[1] if len(converted) > 1 else "", name, [])
        answer = _next(shown, () if many else "")
        # PythonQt returns the path itself, not Qt's pair of path and filter as PySide does.
        return tuple(str(path) for path in answer) if many else str(answer or "")

    return ask


def _inputStatic(name: str):
    def ask(*arguments, **keywords):
        raise NotImplementedError(
            f"QInputDialog.{name}: PythonQt's out-parameter differs by version; use a dialog of your own"
        )

    return ask


def openUrl(*arguments, **keywords):
    overloads = overloadsOf(QtGui.QDesktopServices.openUrl, "QDesktopServices.openUrl")
    converted = select(overloads, arguments, keywords, "QDesktopServices.openUrl")
    ledger.dialogs.append(Shown("url", "", converted[0].toString(), []))
    return True


def statics() -> dict:
    """Static methods that must not show a window, by (class name, method name)."""
    found = {("QMessageBox", name): _messageStatic(name) for name in MESSAGE_STATICS}
    found |= {("QFileDialog", name): _fileStatic(name) for name in FILE_STATICS}
    found |= {("QInputDialog", name): _inputStatic(name) for name in INPUT_STATICS}
    found["QDesktopServices", "openUrl"] = openUrl
    return found
