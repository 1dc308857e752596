"""Slicer's modules: the scripted ones it loads, the built-in logics, and the manager that announces their end."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QVBoxLayout, QWidget

from .mrml_widgets import qSlicerWidget
from .pythonqt import wrap
from .stored import stored


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The Qt side of a module's panel; `self()` is the Python side."""

    _exposed = True

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._owner: Any = None
        self._python: Any = None
        QVBoxLayout(self)

    def reload(self) -> None:
        """Make the Python side anew from the module that is in `sys.modules` and set it up."""
        name = self._owner._name
        self._python = getattr(sys.modules[name], f"{name}Widget")(wrap(self))
        setattr(slicer.modules, f"{name}Widget", self._python)
        self._python.setup()

    def self(self) -> Any:
        return self._python

    def enter(self) -> None:
        getattr(self._python, "enter", lambda: None)()

    def exit(self) -> None:
        getattr(self._python, "exit", lambda: None)()


class qSlicerScriptedLoadableModule(QObject):
    _exposed = True
    title = stored(str, "title", "")
    helpText = stored(str, "helpText", "")
    acknowledgementText = stored(str, "acknowledgementText", "")
    categories = stored("QStringList", "categories", [])
    dependencies = stored("QStringList", "dependencies", [])
    contributors = stored("QStringList", "contributors", [])
    associatedNodeTypes = stored("QStringList", "associatedNodeTypes", [])
    icon = stored(QIcon, "icon", QIcon())
    hidden = stored(bool, "hidden", False)
    index = stored(int, "index", -1)

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file, self._name, self._widget = path, path.stem, None

    name = Property(str, lambda self: self._name)
    path = Property(str, lambda self: str(self._file))

    def widgetRepresentation(self) -> QWidget:
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self) -> QWidget:
        widget = qSlicerScriptedLoadableModuleWidget()
        widget._owner = self
        widget.setMRMLScene(slicer.mrmlScene)
        widget.reload()
        return widget

    def logic(self) -> Any:
        return None  # scripted modules have theirs in the widget: slicer.util.getModuleLogic

    def isWidgetRepresentationCreationEnabled(self) -> bool:
        return True


class BuiltIn(QObject):
    """A module of Slicer itself: only its logic."""

    _exposed = True

    def __init__(self, name: str, logic: Any) -> None:
        super().__init__()
        self._name, self._logic = name, logic

    name = Property(str, lambda self: self._name)

    def logic(self) -> Any:
        return self._logic


class FactoryManager(QObject):
    _exposed = True

    def __init__(self, names: Callable[[], list[str]]) -> None:
        super().__init__()
        self._names = names

    def loadedModuleNames(self) -> list[str]:
        return self._names()

    def isLoaded(self, name: str) -> bool:
        return name in self._names()


class qSlicerModuleManager(QObject):
    _exposed = True
    moduleAboutToBeUnloaded = Signal(str)
    moduleLoaded = Signal(str)

    def __init__(self) -> None:
        super().__init__()
        self._modules: dict[str, QObject] = {}
        self._entered = ""
        self._factory = FactoryManager(lambda: list(self._modules))

    def module(self, name: str) -> QObject | None:
        return self._modules.get(name)

    def _enter(self, name: str) -> None:
        """Leave the module that is shown and show another; "" shows none."""
        if self._entered:
            self._modules[self._entered].widgetRepresentation().exit()
        self._entered = name if name in self._modules else ""
        if self._entered:
            self._modules[name].widgetRepresentation().enter()

    def factoryManager(self) -> FactoryManager:
        return self._factory

    def modulesNames(self) -> list[str]:
        return list(self._modules)


class ModuleSelector(QObject):
    """The menu of modules; only the main window has one."""

    _exposed = True

    def __init__(self, manager: qSlicerModuleManager) -> None:
        super().__init__()
        self._manager = manager

    selectedModule = Property(str, lambda self: self._manager._entered)

    def selectModule(self, name: str) -> None:
        self._manager._enter(name)


LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Plots": "vtkSlicerPlotsLogic",
}


def add_built_in(manager: qSlicerModuleManager, application_logic: Any, scene: Any) -> None:
    """Register the logics slicer-core has, as `slicer.modules.<name>.logic()`."""
    for name, kind in LOGICS.items():
        logic = getattr(slicer, kind)()
        logic.SetMRMLApplicationLogic(application_logic)
        logic.SetMRMLScene(scene)
        application_logic.SetModuleLogic(name, logic)
        if name == "Colors":
            application_logic.SetColorLogic(logic)
        manager._modules[name] = BuiltIn(name, logic)
        setattr(slicer.modules, name.lower(), wrap(manager._modules[name]))


def import_scripted(path: Path) -> ModuleType:
    """Import a module file under its plain name, with its folder and the folder above on `sys.path`, as Slicer does."""
    for folder in (str(path.parent), str(path.parent.parent)):
        if folder not in sys.path:
            sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
