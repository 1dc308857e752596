"""Qt Designer's `.ui` files: PySide6's loader, the host's own widgets, and a check of every property and connection."""

import xml.etree.ElementTree as ET
from typing import Any, ClassVar

from PySide6 import QtCore, QtUiTools, QtWidgets

from .pythonqt import Proxy, wrap


class UiError(RuntimeError):
    """The file names a widget, property, signal or slot that does not exist; Qt would only print a line."""


class _Loader(QtUiTools.QUiLoader):
    def __init__(self, classes: dict[str, type]) -> None:
        super().__init__()
        self.classes = classes

    def createWidget(self, name: str, parent: QtWidgets.QWidget | None = None, object_name: str = "") -> QtWidgets.QWidget:
        if name in self.classes:
            widget = self.classes[name](parent)
            widget.setObjectName(object_name)
            return widget
        if name not in self.availableWidgets():
            raise UiError(f"The .ui file wants a {name!r}, which Slicer's loader does not know.")
        return super().createWidget(name, parent, object_name)


class QUiLoader:
    """`qt.QUiLoader` as `slicer.util.loadUI` uses it."""

    classes: ClassVar[dict[str, type]] = {}

    def load(self, file: Proxy) -> Proxy:
        file.reset()
        tree = ET.fromstring(bytes(file._raw.readAll().data()))
        enums = _take_enums(tree, self.classes)
        connections = tree.find("connections")
        if connections is not None:
            tree.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ET.tostring(tree))
        loader = _Loader(self.classes)
        raw = loader.load(buffer)
        if raw is None:
            raise UiError(loader.errorString())
        root = wrap(raw)
        for name, prop, value in enums:
            _named(root, name)._raw.setProperty(prop, value)
        _check_properties(tree, root)
        for connection in connections if connections is not None else ():
            _connect(root, *(connection.findtext(tag, "") for tag in ("sender", "signal", "receiver", "slot")))
        return root


def _take_enums(tree: ET.Element, classes: dict[str, type]) -> list[tuple[str, str, int]]:
    """Take the enum properties of the host's own widgets out of the tree: PySide6 cannot set them."""
    found = []
    for widget in tree.iter("widget"):
        cls = classes.get(widget.get("class", ""))
        for prop in widget.findall("property"):
            text = prop.findtext("set") or prop.findtext("enum")
            if cls is None or text is None or not text.startswith(cls.__name__ + "::"):
                continue
            value = 0
            for name in text.split("|"):
                member = getattr(cls, name.rsplit("::", 1)[-1].strip(), None)
                if not isinstance(member, int):
                    raise UiError(f"{widget.get('class')} {widget.get('name')!r} knows no {name.strip()!r}.")
                value |= member
            found.append((widget.get("name", ""), prop.get("name", ""), value))
            widget.remove(prop)
    return found


def _check_properties(tree: ET.Element, root: Proxy) -> None:
    for widget in tree.iter("widget"):
        target = _named(root, widget.get("name", ""))._raw
        for prop in widget.findall("property"):
            name = prop.get("name", "")
            if prop.get("stdset") != "0" and target.metaObject().indexOfProperty(name) < 0:
                raise UiError(f"{widget.get('class')} {widget.get('name')!r} has no property {name!r}.")


def _named(root: Proxy, name: str) -> Any:
    raw = root._raw if root._raw.objectName() == name else root._raw.findChild(QtCore.QObject, name)
    if raw is None:
        raise UiError(f"The .ui file has no object named {name!r}.")
    return wrap(raw)


def _connect(root: Proxy, sender: str, signal: str, receiver: str, slot: str) -> None:
    target = _named(root, receiver)
    if not hasattr(target, slot.split("(")[0]):
        raise UiError(f"{receiver!r} has no slot {slot!r}.")
    if not _named(root, sender).connect(signal, target, slot):
        raise UiError(f"{sender!r} has no signal {signal!r}.")
