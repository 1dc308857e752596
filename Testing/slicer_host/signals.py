"""PythonQt's connections: signals by their C++ signature, slots with fewer arguments, errors in slots printed and kept."""

import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

slot_errors: list[BaseException] = []  # what slots raised: Slicer prints it and goes on
NEWER = {"checkStateChanged"}  # signals of Qt 6, which Slicer's Qt 5 lacks

_connections: dict[int, list[tuple[str, Any, Callable[..., None]]]] = {}


def address(raw: Any) -> int:
    """What tells one Qt object from another, whatever Python wrapper it has just now."""
    return shiboken6.getCppPointer(raw)[0] if isinstance(raw, QtCore.QObject) and shiboken6.isValid(raw) else id(raw)


def connect(raw: QtCore.QObject, signal: str, target: Any, wrap: Callable[[Any], Any]) -> bool:
    """Connect a signal to a callable; an unknown signal prints a line and gives False."""
    found = signature(raw, signal)
    if found is None:
        print(f"PythonQt: {type(raw).__name__}: unknown signal {signal!r}", file=sys.stderr)
        return False
    if not callable(target):
        raise ValueError(f"{signal}: the receiver {target!r} cannot be called")

    def deliver(*arguments: Any) -> None:
        guarded(target, tuple(wrap(a) for a in arguments))

    QtCore.QObject.connect(raw, QtCore.SIGNAL(found), deliver)
    key = address(raw)
    if key not in _connections:
        _connections[key] = []
        raw.destroyed.connect(lambda: _connections.pop(key, None))
    _connections[key].append((found, target, deliver))
    return True


def disconnect(raw: QtCore.QObject, signal: str, target: Any = None) -> bool:
    """Undo `connect` (all receivers without `target`); False when there was no such connection."""
    found, known = signature(raw, signal), _connections.get(address(raw), [])
    matching = [c for c in known if c[0] == found and (target is None or c[1] == target)]
    for connection in matching:
        QtCore.QObject.disconnect(raw, QtCore.SIGNAL(connection[0]), connection[2])
        known.remove(connection)
    return bool(matching)


def forget(raw: QtCore.QObject) -> None:
    """Undo every connection of an object."""
    known = _connections.get(address(raw), [])
    while known:
        found, _, deliver = known.pop()
        QtCore.QObject.disconnect(raw, QtCore.SIGNAL(found), deliver)


def guarded(target: Callable[..., Any], arguments: tuple[Any, ...] = ()) -> Any:
    """Call a slot as Qt does: with as many arguments as it takes; what it raises is printed and kept, and goes no further."""
    code = getattr(target, "__code__", None)
    if isinstance(target, types.FunctionType | types.MethodType) and code is not None and not code.co_flags & 0x04:
        arguments = arguments[: code.co_argcount - isinstance(target, types.MethodType)]
    try:
        return target(*arguments)
    except Exception as error:
        slot_errors.append(error)
        sys.last_value = error
        traceback.print_exc()
    return None


def signature(raw: QtCore.QObject, signal: str) -> str | None:
    """The signature PySide6 knows a C++ signature by; None when there is no such signal."""
    normal = bytes(QtCore.QMetaObject.normalizedSignature(signal).data()).decode()
    normal = getattr(type(raw), "_cpp_signals", {}).get(normal, normal)
    known = raw.metaObject().indexOfSignal(normal) >= 0 and normal.split("(")[0] not in NEWER
    return normal if known else None


def by_name(raw: QtCore.QObject, name: str) -> str:
    """The first signature of a signal."""
    meta = raw.metaObject()
    methods = [meta.method(i) for i in range(meta.methodCount())]
    return next(bytes(m.methodSignature().data()).decode() for m in methods if bytes(m.name().data()).decode() == name)
