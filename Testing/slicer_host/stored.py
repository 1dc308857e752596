"""Qt properties of the stand-in widgets."""

from typing import Any

from PySide6.QtCore import Property


def stored(kind: Any, name: str, default: Any, changed: str | None = None) -> Any:
    """A Qt property that only keeps its value and tells the widget with the method `changed`."""

    def read(self: Any) -> Any:
        return self.__dict__.get("_" + name, default)

    def write(self: Any, value: Any) -> None:
        self.__dict__["_" + name] = value
        if changed:
            getattr(self, changed)()

    return Property(kind, read, write)
