"""PythonQt's manners over PySide6: properties are values, slots are calls, unknown names are errors.

Every Qt object that leaves the host is a `Proxy`; every argument that enters is unwrapped. The rules are those seen in Slicer,
where a slip (`label.text()`, a misspelt signal) must not pass for working code.
"""

import enum
import os
import types
import weakref
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import signals

_proxies: "weakref.WeakValueDictionary[int, Proxy]" = weakref.WeakValueDictionary()
_classes: dict[type, "ProxyType"] = {}
EXTRAS: dict[str, dict[str, Any]] = {}  # members put into the proxy of a class, by the Qt class's name
STATICS: dict[str, dict[str, Any]] = {}  # static members that replace Qt's, by class name
ABSENT = {"hosted", "startCommand", "colorScheme", "labelDrawingMode", "accessibleIdentifier", *signals.NEWER}  # not in Slicer's Qt 5
VIRTUALS = (
    "event",
    "eventFilter",
    "sizeHint",
    "minimumSizeHint",
    "heightForWidth",
    "hasHeightForWidth",
    "paint",
    "data",
    "accept",
    "reject",
)


class QtEnum(int):
    """An enum value: an int, as in PythonQt, that remembers its Qt type."""

    def __new__(cls, raw: enum.Enum) -> "QtEnum":
        value = super().__new__(cls, raw.value)
        value.raw = raw
        return value

    def _with(self, other: Any, operate: Callable[[Any, Any], Any]) -> Any:
        if isinstance(other, QtEnum) and isinstance(self.raw, enum.Flag) and type(other.raw) is type(self.raw):
            return QtEnum(operate(self.raw, other.raw))
        return operate(int(self), int(other))

    def __or__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a | b)

    def __and__(self, other: Any) -> Any:
        return self._with(other, lambda a, b: a & b)

    def __invert__(self) -> Any:
        return QtEnum(~self.raw) if isinstance(self.raw, enum.Flag) else ~int(self)


class ProxyType(type):
    """The class of Qt classes: static members and enum values by attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if (static := _static(cls._qt, name)) is not None:
            return static
        if not hasattr(cls._qt, name):
            raise AttributeError(f"type object '{cls.__name__}' has no attribute '{name}'")
        raw = getattr(cls._qt, name)
        if isinstance(raw, type) and issubclass(raw, enum.Enum):
            return lambda value: QtEnum(raw(value))  # the type converts; its members are found on the class only
        if isinstance(raw, type):
            return proxy_class(raw)
        return (lambda *arguments: call(raw, arguments)) if callable(raw) else wrap(raw)


class Proxy(metaclass=ProxyType):
    """A Qt object or value as PythonQt shows it."""

    _qt: Any = None
    _generated = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_qt" in cls.__dict__:
            return
        cls._generated = False  # a class of the module: its virtual methods reach Qt through a shell
        overridden = {n: _virtual(n, cls._qt) for n in cls.__dict__ if (n.endswith("Event") or n in VIRTUALS) and hasattr(cls._qt, n)}
        cls._qt = type(cls.__name__, (cls._qt,), overridden)

    def __init__(self, *arguments: Any) -> None:
        _adopt(self, call_raw(self._qt, arguments))
        if not self._generated:
            self._raw.hosted = self  # the Python half lives as long as the Qt half

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raw = self._raw
        if not shiboken6.isValid(raw):
            raise ValueError(f"Trying to read attribute '{name}' of a destroyed {type(self).__name__} object")
        name = {"name": "objectName", "exec_": "exec"}.get(name, name) if isinstance(raw, QtCore.QObject) else name
        if isinstance(raw, QtCore.QObject) and raw.metaObject().indexOfProperty(name) >= 0:
            return wrap(raw.property(name))
        if not hasattr(raw, name) or name in ABSENT:
            raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")
        if (static := _static(type(raw), name)) is not None:
            return static
        member = getattr(raw, name)
        if isinstance(member, QtCore.SignalInstance):
            return Signal(self, name)
        return Slot(self, name) if callable(member) else wrap(member)

    def __setattr__(self, name: str, value: Any) -> None:
        raw = self._raw
        if not shiboken6.isValid(raw):
            raise ValueError(f"Trying to set attribute '{name}' of a destroyed {type(self).__name__} object")
        if isinstance(raw, QtCore.QObject):
            index = raw.metaObject().indexOfProperty({"name": "objectName"}.get(name, name))
            if index >= 0:
                _write(self, raw.metaObject().property(index), name, value)
                return
        if self._generated or hasattr(raw, name):
            raise AttributeError(f"'{type(self).__name__}' object: '{name}': creating new attributes on C++ objects is not allowed")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Proxy) and bool(self._raw == other._raw)

    def __hash__(self) -> int:
        return hash(signals.address(self._raw))

    def __bool__(self) -> bool:
        return not (isinstance(self._raw, QtCore.QObject) and self._raw.inherits("QLayout") and self._raw.count() == 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__} (host, at {id(self):x})"

    def __dir__(self) -> list[str]:
        return [n for n in dir(self._raw) if not n.startswith("_")]

    def className(self) -> str:
        return type(self._raw).__name__ if self._generated else self._raw.metaObject().className()

    def delete(self) -> None:
        shiboken6.delete(self._raw)

    def connect(self, signal: str, receiver: Any, slot: str | None = None) -> bool:
        """Connect a signal to a callable, or to an object's slot given by name."""
        return signals.connect(self._raw, signal, getattr(receiver, slot.split("(")[0]) if slot else receiver, wrap)

    def disconnect(self, signal: str, receiver: Any = None, slot: str | None = None) -> bool:
        """Undo `connect`."""
        return signals.disconnect(self._raw, signal, getattr(receiver, slot.split("(")[0]) if slot else receiver)


class Slot:
    """A bound slot: always true, so that a forgotten `()` shows."""

    def __init__(self, owner: Proxy, name: str) -> None:
        self.owner, self.name = owner, name

    def __call__(self, *arguments: Any) -> Any:
        return call(getattr(self.owner._raw, self.name), arguments)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slot) and other.owner is self.owner and other.name == self.name

    def __hash__(self) -> int:
        return hash((id(self.owner), self.name))


class Signal:
    """A signal by its name (`button.clicked`)."""

    def __init__(self, owner: Proxy, name: str) -> None:
        self.owner, self.signature = owner, signals.by_name(owner._raw, name)

    def connect(self, receiver: Any) -> bool:
        return self.owner.connect(self.signature, receiver)

    def disconnect(self, receiver: Any = None) -> bool:
        return self.owner.disconnect(self.signature, receiver)

    def emit(self, *arguments: Any) -> None:
        getattr(self.owner._raw, self.signature.split("(")[0]).emit(*map(unwrap, arguments))

    __call__ = emit


def wrap(raw: Any) -> Any:
    """A value of PySide6 as PythonQt gives it."""
    if isinstance(raw, enum.Enum):
        return QtEnum(raw)
    if isinstance(raw, list | tuple):
        return tuple(wrap(r) for r in raw)  # lists come back as tuples
    if isinstance(raw, shiboken6.Shiboken.Object):
        if hosted := getattr(raw, "hosted", None):
            return hosted
        known = _proxies.get(signals.address(raw)) if isinstance(raw, QtCore.QObject) else None
        if known is not None and known._raw is raw:
            return known
        cls = proxy_class(next(c for c in type(raw).__mro__ if c.__module__.startswith("PySide6") or "_exposed" in c.__dict__))
        return _adopt(cls.__new__(cls), raw)
    return raw


def unwrap(value: Any) -> Any:
    """A value of the module as PySide6 takes it."""
    if isinstance(value, Proxy):
        return value._raw
    if isinstance(value, QtEnum):
        return value.raw
    if isinstance(value, ProxyType):
        return value._qt
    if isinstance(value, list | tuple):
        return [unwrap(v) for v in value]
    if type(value).__module__ == "numpy" and hasattr(value, "item") and not getattr(value, "shape", ()):
        return value.item()
    return value


def call_raw(function: Any, arguments: tuple[Any, ...]) -> Any:
    """Call into PySide6; wrong arguments are a ValueError, as in PythonQt."""
    if any(isinstance(a, os.PathLike) for a in arguments):
        raise ValueError(f"Called {getattr(function, '__name__', function)} with wrong arguments: a pathlib.Path is not a QString")
    try:
        return function(*map(unwrap, arguments))
    except TypeError as error:
        if isinstance(function, types.FunctionType | types.MethodType):
            raise
        raise ValueError(f"Called {getattr(function, '__name__', function)} with wrong arguments: {error}") from error


def call(function: Any, arguments: tuple[Any, ...]) -> Any:
    return wrap(call_raw(function, arguments))


def proxy_class(raw: type) -> ProxyType:
    """The proxy class of a class of PySide6 or of the host."""
    if raw not in _classes:
        parents = [b for b in raw.__bases__ if b.__module__.startswith("PySide6") or "_exposed" in b.__dict__]
        bases = tuple(proxy_class(b) for b in parents) or (Proxy,)
        members = {n: _base_call(raw, n) for n in raw.__dict__ if n.endswith("Event") or n in VIRTUALS}
        members.update(EXTRAS.get(raw.__name__, {}))
        _classes[raw] = ProxyType(raw.__name__, bases, {"_qt": raw, "_generated": True, **members})
    return _classes[raw]


def _adopt(proxy: Proxy, raw: Any) -> Proxy:
    object.__setattr__(proxy, "_raw", raw)
    if isinstance(raw, QtCore.QObject):
        _proxies[signals.address(raw)] = proxy
    return proxy


def _write(proxy: Proxy, prop: QtCore.QMetaProperty, name: str, value: Any) -> None:
    """Write a property with PythonQt's silent conversions."""
    kind, shown = prop.typeName(), type(proxy).__name__
    if not prop.isWritable():
        raise AttributeError(f"Property '{name}' of type '{kind}' of a {shown} object is not writable")
    try:
        convert: Any = {"QString": str, "bool": bool, "int": int, "uint": int, "double": float}.get(kind, unwrap)
        if convert in (int, float) and isinstance(value, str | bytes | None):
            raise TypeError
        value = convert(value)
    except (TypeError, ValueError) as error:
        raise AttributeError(f"Property '{name}' of type '{kind}' does not accept an object of type {type(value).__name__}") from error
    if name == "toolTip" and value and not value.startswith("<"):
        value = f"<p>{value}</p>"  # Slicer makes every tool tip rich text
    if not prop.write(proxy._raw, value):
        raise AttributeError(f"Property '{name}' of type '{kind}' of a {shown} object does not accept {value!r}")


def _virtual(name: str, base: type) -> Callable[..., Any]:
    """A method of the shell: the module's own, or Qt's while the object is being made."""

    def method(raw: Any, *arguments: Any) -> Any:
        hosted = raw.__dict__.get("hosted")
        if hosted is None:
            return getattr(base, name)(raw, *arguments)
        if "_raw" not in hosted.__dict__:
            return False  # the garbage collector has been at it
        return unwrap(signals.guarded(getattr(hosted, name), tuple(map(wrap, arguments))))

    return method


def _static(raw: type, name: str) -> Any:
    return next((STATICS[c.__name__][name] for c in raw.__mro__ if name in STATICS.get(c.__name__, ())), None)


def _base_call(raw: type, name: str) -> Callable[..., Any]:
    return lambda self, *arguments: call(getattr(raw, name), (self, *arguments))
