"""What the parts of the panel share."""

from __future__ import annotations

import logging
from collections.abc import Callable
from html import escape
from typing import Any

from HARM3Logic.errors import HARM3Error
from HARM3SlicerLib.jobs import outcomeOf
from HARM3SlicerLib.parameters import setIfChanged

WANTED = "HARM3.shown"  # property of a widget: whether the panel wants it shown, which `visible` says of open sections only


class Part:
    """One section of the panel: connects its widgets, shows the state, lets go of everything.

    Args:
        ui: the named widgets.
        panel: gives parameters, work, runner and wanted.
    """

    def __init__(self, ui: Any, panel: Any) -> None:
        self.ui = ui
        self.panel = panel
        self._connections: list[tuple[Any, str, Callable[..., None]]] = []
        self.setup()

    def setup(self) -> None:
        """Connect and fill the widgets, once."""

    def update(self) -> None:
        """Show the state; called after every change, so it must be quick."""

    def close(self) -> None:
        """Undo the connections: a connection would keep this object alive and at work."""
        for widget, signal, slot in self._connections:
            widget.disconnect(signal, slot)
        self._connections.clear()

    @property
    def parameters(self) -> Any:
        return self.panel.parameters

    def connect(self, widget: Any, signal: str, slot: Callable[..., None]) -> None:
        """Connect a signal given by its C++ signature.

        Raises:
            RuntimeError: there is no such signal; Qt itself would only print a line.
        """
        if not widget.connect(signal, slot):
            raise RuntimeError(f"{widget.name} has no signal {signal}")
        self._connections.append((widget, signal, slot))

    def bindPath(self, edit: Any, member: str) -> None:
        """Keep a path edit and a text member alike, the emptied edit included, which tells nobody that its path changed."""

        def onPath(path: str) -> None:
            if self.parameters is not None:
                setIfChanged(self.parameters, member, path)

        def onValid(valid: bool) -> None:
            if not valid and self.parameters is not None and not edit.currentPath:
                setIfChanged(self.parameters, member, "")

        self.connect(edit, "currentPathChanged(QString)", onPath)
        self.connect(edit, "validInputChanged(bool)", onValid)

    def set(self, member: str, value: Any) -> None:
        """Set a member of the parameter node; nothing while a scene is being closed."""
        if self.parameters is not None:
            setIfChanged(self.parameters, member, value)

    def attempt(self, work: Callable[[], Any]) -> bool:
        """Do what the user asked for; what goes wrong is said in the panel, never in a traceback dialog."""
        try:
            work()
        except HARM3Error as error:
            self.panel.runner.fail(outcomeOf(error, ""))
            return False
        except Exception as error:
            logging.exception("HARM3Slicer")
            self.panel.runner.fail(outcomeOf(error, ""))
            return False
        return True


def showPath(edit: Any, path: str) -> None:
    if edit.currentPath != path:
        edit.currentPath = path


def showName(widget: Any, name: str, tips: dict[str, tuple[str, str]]) -> None:
    """Put the full text of what a narrow widget shows before its own tool tip.

    Args:
        tips: name of the widget to the text shown now and its own tool tip; begins empty.
    """
    shown, own = tips.setdefault(widget.name, ("", widget.toolTip))
    if name != shown:
        tips[widget.name] = name, own
        widget.toolTip = f"<p><b>{escape(name)}</b></p>{own}" if name else own


def showText(widget: Any, text: str) -> None:
    """Set a text only when it changed: a label lays itself out anew each time."""
    if widget.text != text:
        widget.text = text


def showIf(widget: Any, wanted: bool) -> None:
    """Show or hide a widget, once for each change of mind: a section that is folded up hides its contents again each time."""
    if widget.property(WANTED) != wanted:
        widget.setProperty(WANTED, wanted)
        widget.visible = wanted
