"""`slicer.parameterNodeWrapper`: typed members over a scripted module node, cached and bound to widgets as in Slicer."""

import typing
import weakref
from dataclasses import dataclass
from typing import Any

import slicer
from vtkmodules.vtkCommonCore import vtkCommand

from .connectors import Connector, connector_for
from .parameter_kinds import kind_of, split
from .validators import Default

SlicerParameterNamePropertyName = "SlicerParameterName"


@dataclass(frozen=True)
class Parameter:
    """A member of a wrapper class."""

    name: str
    kind: Any
    default: Any
    annotation: Any


class Member:
    """A parameter of one node: its value is read once and again whenever the node is modified, never in between."""

    def __init__(self, parameter: Parameter, node: Any) -> None:
        self.parameter, self.node = parameter, node
        self.writing = False
        self.value = self._read()
        me = weakref.ref(self)
        self.tag = node.AddObserver(vtkCommand.ModifiedEvent, lambda *a: (m := me()) and m.refresh())

    def __del__(self) -> None:
        if hasattr(self, "tag"):
            self.node.RemoveObserver(self.tag)

    def _read(self) -> Any:
        p = self.parameter
        if not p.kind.has(self.node, p.name):
            self._store(p.default)
        return p.kind.read(self.node, p.name)

    def _store(self, value: Any) -> None:
        for validator in self.parameter.kind.validators:
            validator.validate(value)
        self.parameter.kind.write(self.node, self.parameter.name, value)

    def refresh(self) -> None:
        if not self.writing:
            self.value = self._read()

    def write(self, value: Any) -> None:
        self.writing = True
        try:
            with slicer.util.NodeModify(self.node):  # the new value is there before anyone is told
                self._store(value)
                self.value = self._read()
        finally:
            self.writing = False


class Wrapper:
    """What every decorated class can do."""

    allParameters: dict[str, Parameter]

    def __init__(self, node: Any) -> None:
        self.parameterNode = node
        self._guis: dict[int, tuple[dict[str, Connector], int]] = {}
        self._next, self._updating = 0, False
        self._members = {name: Member(p, node) for name, p in self.allParameters.items()}

    def StartModify(self) -> Any:
        return self.parameterNode.StartModify()

    def EndModify(self, was: Any) -> None:
        self.parameterNode.EndModify(was)

    def AddObserver(self, event: Any, callback: Any, priority: float = 0.0) -> int:
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag: int) -> None:
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:
        self.parameterNode.Modified()

    def _known(self, name: str) -> Parameter:
        if name not in self.allParameters:
            found = ", ".join(self.allParameters)
            raise ValueError(f"Cannot find a param with the given name: {name}\n  Found parameters [{found}]")
        return self.allParameters[name]

    def default(self, name: str) -> Default:
        return Default(self._known(name).default)

    def dataType(self, name: str) -> Any:
        return self._known(name).annotation

    def isCached(self, name: str) -> bool:
        return bool(self._known(name))

    def getValue(self, name: str) -> Any:
        self._known(name)
        return self._members[name].value

    def setValue(self, name: str, value: Any) -> None:
        self._known(name)
        self._members[name].write(value)

    def connectGui(self, gui: Any) -> int:
        import qt

        is_widget = getattr(gui, "isWidgetType", lambda: False)()
        widgets = gui.findChildren(qt.QWidget) if is_widget else gui.__dict__.values()
        named = {w.property(SlicerParameterNamePropertyName): w for w in widgets}
        return self.connectParametersToGui({name: w for name, w in named.items() if name})

    def connectParametersToGui(self, mapping: dict[str, Any]) -> int:
        connectors = {name: connector_for(widget, *split(self._known(name).annotation)) for name, widget in mapping.items()}
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.start(lambda name=name, c=connector: self._from_gui(name, c))
        tag = self._next
        self._next += 1
        observer = self.AddObserver(vtkCommand.ModifiedEvent, lambda *a: self._to_gui())
        self._guis[tag] = connectors, observer
        return tag

    def disconnectGui(self, tag: int) -> None:
        if tag in self._guis:
            connectors, observer = self._guis.pop(tag)
            for connector in connectors.values():
                connector.stop()
            self.RemoveObserver(observer)

    def _from_gui(self, name: str, connector: Connector) -> None:
        with slicer.util.NodeModify(self):
            if not self._updating:
                self.setValue(name, connector.read())

    def _to_gui(self) -> None:
        if self._updating:
            return
        self._updating = True
        try:
            with slicer.util.NodeModify(self):
                for connectors, _ in list(self._guis.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            self._updating = False


def _property(name: str) -> property:
    return property(lambda self: self._members[name].value, lambda self, value: self._members[name].write(value))


def parameterNodeWrapper(cls: Any = None) -> Any:
    """Class decorator: the annotated members become parameters of a `vtkMRMLScriptedModuleNode`."""
    if cls is None:
        return parameterNodeWrapper
    parameters: dict[str, Parameter] = {}
    for name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        if hasattr(Wrapper, name):
            raise ValueError(f"Cannot use reserved name '{name}' in a parameterNodeWrapper")
        base, annotations = split(annotation)
        try:
            kind = kind_of(base, annotations)
        except Exception as error:
            raise Exception(f"Unable to create serializer for {cls} member {name}") from error
        given = next((a for a in annotations if isinstance(a, Default)), None)
        default = getattr(cls, name) if hasattr(cls, name) else given.value if given else kind.default
        parameters[name] = Parameter(name, kind, default, annotation)
        setattr(cls, name, _property(name))
    members = {
        n: v for n, v in Wrapper.__dict__.items() if n not in ("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__")
    }
    for name, value in members.items():
        setattr(cls, name, value)
    cls.allParameters, cls._is_parameter_node_wrapper = parameters, True
    return cls


def isParameterNodeWrapper(class_or_object: Any) -> bool:
    return getattr(class_or_object, "_is_parameter_node_wrapper", False)
