"""The module `qt`: the classes of PySide6 behind proxies, with PythonQt's own statics and no dialog that waits."""

import types
from collections import deque
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtNetwork, QtWidgets

from .pythonqt import EXTRAS, STATICS, call_raw, proxy_class, unwrap, wrap
from .signals import guarded

dialogs: list[tuple[str, str]] = []  # every dialog a module asked for: (what, text)
answers: dict[str, deque[Any]] = {}  # what the user will say, by dialog
opened_urls: list[str] = []


def answer(what: str, default: Any, text: str = "") -> Any:
    """Note a dialog and give the answer queued for it, else `default` (the user closed it)."""
    dialogs.append((what, text))
    return answers[what].popleft() if answers.get(what) else default


def single_shot(milliseconds: int, receiver: Any, slot: str | None = None) -> None:
    """`QTimer.singleShot` with a callable, or an object and a slot."""
    target = getattr(receiver, slot.split("(")[0]) if slot else receiver
    if not callable(target):
        raise ValueError(f"Called singleShot with wrong arguments: {target!r}")
    QtCore.QTimer.singleShot(int(milliseconds), lambda: guarded(target))


def _exec(self: Any, *arguments: Any) -> Any:
    """A modal dialog: shown, noted and answered at once."""
    raw = self._raw
    text = raw.text() if isinstance(raw, QtWidgets.QMessageBox) else raw.windowTitle()
    said = answer(type(self).__name__, 0, text)
    return said(self) if callable(said) else said


def _question(kind: str) -> Callable[..., int]:
    def ask(parent: Any, title: str, text: str, *buttons: Any) -> int:
        return answer(f"QMessageBox.{kind}", proxy_class(QtWidgets.QMessageBox).Cancel, text)

    return ask


def _file(kind: str) -> Callable[..., Any]:
    return lambda *arguments: answer(kind, () if kind.endswith("Names") else "", str(*arguments[1:2]))


def _open_url(url: Any) -> bool:
    opened_urls.append(url._raw.toString())
    return True  # also for a missing file


def _write(self: Any, data: Any) -> Any:
    data = data.encode() if isinstance(data, str) else unwrap(data)
    return self._raw.write(data)


FILE_DIALOGS = ("getOpenFileName", "getOpenFileNames", "getSaveFileName", "getExistingDirectory")
STATICS.update(
    {
        "QTimer": {"singleShot": single_shot},
        "QMessageBox": {k: _question(k) for k in ("question", "information", "warning", "critical")},
        "QFileDialog": {k: _file(f"QFileDialog.{k}") for k in FILE_DIALOGS},
        "QInputDialog": {k: _file(f"QInputDialog.{k}") for k in ("getText", "getItem")},
        "QDesktopServices": {"openUrl": _open_url},
    }
)
EXTRAS.update({"QDialog": {"exec_": _exec, "exec": _exec}, "QMenu": {"exec_": _exec, "exec": _exec}, "QIODevice": {"write": _write}})


class QtModule(types.ModuleType):
    """Looks a class up when it is first named; an unknown name is an AttributeError."""

    def __getattr__(self, name: str) -> Any:
        if name == "QUiLoader":
            from .ui_loader import QUiLoader

            return QUiLoader
        for module in (QtCore, QtGui, QtWidgets, QtNetwork):
            raw = getattr(module, name, None)
            if name.startswith("Q") and isinstance(raw, type):
                return proxy_class(raw)
            if name.startswith("q") and callable(raw):
                return lambda *arguments, raw=raw: wrap(call_raw(raw, arguments))
        raise AttributeError(f"module 'qt' has no attribute '{name}'")
