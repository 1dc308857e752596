"""How values are kept in a scripted module node, by their type: the serializers of `slicer.parameterNodeWrapper`."""

import enum
import json
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

import slicer

from .validators import IsInstance, NotNone, Validator

PATHS = (pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePath, pathlib.PurePosixPath, pathlib.PureWindowsPath)


class Text:
    """A value kept as one text parameter."""

    def __init__(self, kind: Any, default: Any, encode: Callable[[Any], str], decode: Callable[[str], Any], accepts: Any = None) -> None:
        self.kind, self.default, self.encode, self.decode = kind, default, encode, decode
        self.validators: list[Any] = [NotNone(), IsInstance(accepts or kind)]

    def has(self, node: Any, name: str) -> bool:
        return bool(node.HasParameter(name))

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, self.encode(value))

    def read(self, node: Any, name: str) -> Any:
        return self.decode(node.GetParameter(name))

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)


class Reference(Text):
    """A node of the scene, kept as a node reference beside an empty text."""

    def __init__(self, kind: Any) -> None:
        super().__init__(kind, None, str, str)
        self.validators = [IsInstance(kind)]

    def write(self, node: Any, name: str, value: Any) -> None:
        node.SetParameter(name, "")
        node.SetNodeReferenceID(name, value.GetID() if value is not None else None)

    def read(self, node: Any, name: str) -> Any:
        return node.GetNodeReference(name)

    def remove(self, node: Any, name: str) -> None:
        node.UnsetParameter(name)
        node.RemoveNodeReferenceIDs(name)


class Either:
    """One of several kinds, each under its own numbered name; `Optional` begins as None."""

    def __init__(self, kinds: list[Any]) -> None:
        self.kinds = [kind_of(*split(k)) if k is not type(None) else None for k in kinds]
        self.default = None if len(kinds) == 2 and self.kinds[1] is None else self.kinds[0].default
        self.validators: list[Any] = []

    def has(self, node: Any, name: str) -> bool:
        return any(node.HasParameter(f"{name}.{i}") for i in range(len(self.kinds)))

    def write(self, node: Any, name: str, value: Any) -> None:
        index = next((i for i, k in enumerate(self.kinds) if _fits(k, value)), None)
        if index is None:
            raise TypeError(f"Unable to write value '{value}' of type '{type(value)}'")
        kind = self.kinds[index]
        for validator in kind.validators if kind else ():
            validator.validate(value)
        self.remove(node, name)
        kind.write(node, f"{name}.{index}", value) if kind else node.SetParameter(f"{name}.{index}", "True")

    def read(self, node: Any, name: str) -> Any:
        index = next(i for i in range(len(self.kinds)) if node.HasParameter(f"{name}.{i}"))
        return self.kinds[index].read(node, f"{name}.{index}") if self.kinds[index] else None

    def remove(self, node: Any, name: str) -> None:
        for i, kind in enumerate(self.kinds):
            kind.remove(node, f"{name}.{i}") if kind else node.UnsetParameter(f"{name}.{i}")


def _fits(kind: Any, value: Any) -> bool:
    return (
        value is None
        if kind is None
        else type(value) is kind.kind or (kind.kind in PATHS and isinstance(value, kind.kind)) or _is_node(kind, value)
    )


def _is_node(kind: Any, value: Any) -> bool:
    return isinstance(kind, Reference) and value is not None and isinstance(value, kind.kind)


def split(annotated: Any) -> tuple[Any, list[Any]]:
    if typing.get_origin(annotated) is typing.Annotated:
        base, *annotations = typing.get_args(annotated)
        return base, annotations
    return annotated, []


def kind_of(base: Any, annotations: list[Any]) -> Any:
    """How values of a type are kept; an unknown type is an error when the class is made."""
    validators = [a for a in annotations if isinstance(a, Validator)]
    if isinstance(base, types.UnionType) or typing.get_origin(base) is typing.Union:
        kind: Any = Either(list(typing.get_args(base)))
    elif base is bool:
        kind = Text(bool, False, lambda v: "True" if v else "False", lambda t: t == "True")
    elif base in (int, float):
        kind = Text(base, 0, str, base, accepts=(int, float) if base is float else int)
    elif base is str:
        kind = Text(str, "", str, str)
    elif base in PATHS:
        kind = Text(base, base(), str, base)
    elif isinstance(base, type) and issubclass(base, enum.Enum):
        kind = Text(base, next(iter(base)), lambda v: v.name, lambda t: base[t])
    elif isinstance(base, type) and issubclass(base, slicer.vtkMRMLNode):
        kind = Reference(base)
    elif typing.get_origin(base) in (list, dict):
        kind = Text(typing.get_origin(base), typing.get_origin(base)(), json.dumps, json.loads)
    else:
        raise Exception(f"Unable to create serializer for type: {base}")
    kind.validators = kind.validators + validators
    return kind
