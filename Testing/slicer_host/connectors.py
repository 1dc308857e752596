"""Which widget can show which parameter, and how: the rules of Slicer's GUI connectors."""

import enum
import logging
import pathlib
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import slicer

from .validators import Choice, Decimals, Maximum, Minimum, SingleStep, WithinRange

logger = logging.getLogger(__name__)


@dataclass
class Connector:
    """One widget's reading, writing and change signal (None: it has none)."""

    widget: Any
    signal: str | None
    read: Callable[[], Any]
    write: Callable[[Any], None]
    _changed: Callable[[], None] | None = field(default=None)

    def start(self, changed: Callable[[], None]) -> None:
        self._changed = lambda: changed()
        if self.signal:
            getattr(self.widget, self.signal).connect(self._changed)

    def stop(self) -> None:
        if self.signal:
            getattr(self.widget, self.signal).disconnect(self._changed)
        self._changed = None


def connector_for(widget: Any, base: Any, annotations: list[Any]) -> Connector:
    """The connector of a widget for a type, or RuntimeError: only these exact widget classes bind."""
    kind = type(widget).__name__
    make = RULES.get(kind)
    connector = make(widget, base, annotations) if make else None
    if connector is None:
        raise RuntimeError(f"Unable to create GUI connector from datatype '{base}' to widget type '{kind}'.")
    return connector


def _attribute(widget: Any, signal: str | None, name: str, convert: Callable[[Any], Any] = lambda v: v) -> Connector:
    return Connector(widget, signal, lambda: convert(getattr(widget, name)), lambda value: setattr(widget, name, value))


def _check_box(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    return _attribute(widget, "stateChanged", "checked") if base is bool else None


def _push_button(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if base is not bool:
        return None
    if not widget.checkable:
        logger.warning("Making push button checkable for conversion to bool: %s", widget.name)
        widget.checkable = True
    return _attribute(widget, "toggled", "checked")


def _first(annotations: list[Any], kind: type) -> Any:
    return next((a for a in annotations if isinstance(a, kind)), None)


def _limits(annotations: list[Any], low: float, high: float) -> tuple[float, float, bool]:
    """Lower and upper limit, and whether both were given."""
    within, least, most = (_first(annotations, k) for k in (WithinRange, Minimum, Maximum))
    if within:
        return within.minimum, within.maximum, True
    return least.minimum if least else low, most.maximum if most else high, bool(least and most)


def _whole(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if base is not int:
        return None
    low, high, bounded = _limits(annotations, -(2**31), 2**31 - 1)
    if type(widget).__name__ == "QSlider" and not bounded:
        raise RuntimeError("Cannot have a connection to QSlider where the int type is unbounded.")
    if step := _first(annotations, SingleStep):
        widget.singleStep = step.value
    widget.setRange(int(low), int(high))
    return _attribute(widget, "valueChanged", "value")


def _real(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if base not in (int, float):
        return None
    low, high, bounded = _limits(annotations, float("-inf"), float("inf"))
    if "Slider" in type(widget).__name__ and not bounded:
        raise RuntimeError("Cannot have a connection to ctkSliderWidget where the float types is unbounded.")
    if base is int:
        widget.decimals = 0
    elif decimals := _first(annotations, Decimals):
        widget.decimals = decimals.value
    if step := _first(annotations, SingleStep):
        widget.singleStep = step.value
    widget.minimum, widget.maximum = float(low), float(high)
    return _attribute(widget, "valueChanged", "value", base)


def _combo_box(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if isinstance(base, type) and issubclass(base, enum.Enum):
        choices: list[Any] = list(base)
        texts = [base.label(c) if hasattr(base, "label") else c.name for c in choices]
    elif base in (int, float, str, bool):
        choice = _first(annotations, Choice)
        if choice is None:
            raise RuntimeError("ComboBoxToStringableConnector requires the Choice annotation to be used.")
        choices, texts = list(choice.choices), [str(c) for c in choice.choices]
    else:
        return None
    widget.clear()
    for text in texts:
        widget.addItem(text)

    def write(value: Any) -> None:
        if value not in choices:
            raise ValueError(f"Unable to find value {value} in choices {choices}")
        widget.currentIndex = choices.index(value)

    return Connector(widget, "currentIndexChanged", lambda: choices[widget.currentIndex], write)


def _line_edit(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    return _attribute(widget, "textChanged", "text") if base is str else None


def _label(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    return _attribute(widget, None, "text") if base is str else None


def _text_edit(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if base is not str:
        return None
    return Connector(widget, "textChanged", lambda: widget.toPlainText(), lambda value: widget.setPlainText(value))


def _is_path(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, pathlib.PurePath)


def _path_edit(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if not _is_path(base):  # an Optional path does not bind
        return None
    return Connector(widget, "currentPathChanged", lambda: base(widget.currentPath), lambda v: setattr(widget, "currentPath", str(v)))


def _directory(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    if not _is_path(base):
        return None
    return Connector(widget, "directoryChanged", lambda: base(widget.directory), lambda v: setattr(widget, "directory", str(v)))


def _node(widget: Any, base: Any, annotations: list[Any]) -> Connector | None:
    union = isinstance(base, types.UnionType) or typing.get_origin(base) is typing.Union
    kinds = [k for k in typing.get_args(base) if k is not type(None)] if union else [base]
    if not all(isinstance(k, type) and issubclass(k, slicer.vtkMRMLNode) for k in kinds):
        return None
    widget.nodeTypes = [k().GetClassName() for k in kinds]
    return Connector(widget, "currentNodeChanged", lambda: widget.currentNode(), lambda node: widget.setCurrentNode(node))


RULES: dict[str, Callable[[Any, Any, list[Any]], Connector | None]] = {
    "QCheckBox": _check_box,
    "ctkCheckBox": _check_box,
    "QPushButton": _push_button,
    "ctkCheckablePushButton": _push_button,
    "QSlider": _whole,
    "QSpinBox": _whole,
    "QDoubleSpinBox": _real,
    "ctkDoubleSpinBox": _real,
    "ctkSliderWidget": _real,
    "qMRMLSliderWidget": _real,
    "QComboBox": _combo_box,
    "ctkComboBox": _combo_box,
    "QLineEdit": _line_edit,
    "QLabel": _label,
    "QTextEdit": _text_edit,
    "ctkPathLineEdit": _path_edit,
    "ctkDirectoryButton": _directory,
    "qMRMLNodeComboBox": _node,
}
