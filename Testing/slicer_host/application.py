"""`slicer.app`: one Qt application for the whole run of tests, given a new scene and new managers by each `install()`."""

import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import slicer
import vtk
from PySide6.QtCore import Property, QObject, QProcessEnvironment, QSettings, Signal
from PySide6.QtWidgets import QApplication, QMainWindow, QStatusBar

from .io_manager import qSlicerCoreIOManager
from .layout_manager import qSlicerLayoutManager
from .modules import ModuleSelector, add_built_in, qSlicerModuleManager

VERSION = 5, 13
RAMPS = {  # every ninth part of the usual maps; slicer-core comes without Slicer's colour files
    "Inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "Magma": "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
    "Plasma": "0d0887 46039f 7201a8 9c179e bd3786 d8576b ed7953 fb9f3a fdca26 f0f921",
    "Viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
    "Cividis": "00224e 123570 3b496c 575d6d 707173 8a8678 a59c74 c3b369 e1cc55 fee838",
}


def write_color_files(folder: Path) -> None:
    """The colour tables Slicer reads from its share folder, so that `vtkMRMLColorTableNodeFileInferno.txt` and its kin exist."""
    folder.mkdir(parents=True)
    for name, ramp in RAMPS.items():
        stops = np.array([list(bytes.fromhex(stop)) for stop in ramp.split()])
        at = np.linspace(0, len(stops) - 1, 256)
        colors = np.stack([np.interp(at, range(len(stops)), stops[:, c]) for c in range(3)], axis=1).round().astype(int)
        lines = [f"{i} {name}{i} {r} {g} {b} 255" for i, (r, g, b) in enumerate(colors)]
        (folder / f"{name}.txt").write_text("\n".join([f"# {name}", *lines, ""]), encoding="utf-8")


class CommandOptions(QObject):
    _exposed = True
    runPythonAndExit = Property(bool, lambda self: False, lambda self, on: None)

    def __init__(self, main_window: bool) -> None:
        super().__init__()
        self._main_window = main_window

    noMainWindow = Property(bool, lambda self: not self._main_window)


class ExtensionsManagerModel(QObject):
    """Knows no extension."""

    _exposed = True

    def isExtensionInstalled(self, name: str) -> bool:
        return name in self.__dict__.get("_installed", ())


class qSlicerMainWindow(QMainWindow):
    _exposed = True

    def __init__(self, selector: ModuleSelector) -> None:
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setStatusBar(QStatusBar())
        self._selector = selector

    def moduleSelector(self) -> ModuleSelector:
        return self._selector


class qSlicerApplication(QApplication):
    _exposed = True
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)
    renderPaused = Signal(bool)
    _cpp_signals: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}
    majorVersion = Property(int, lambda self: VERSION[0])
    minorVersion = Property(int, lambda self: VERSION[1])
    revision = Property(str, lambda self: "31053")
    os = Property(str, lambda self: sys.platform)
    documentationBaseUrl = Property(str, lambda self: "https://slicer.readthedocs.io/en/latest/")
    slicerHome = Property(str, lambda self: self._folder)
    slicerSharePath = Property(str, lambda self: "share/Slicer-5.13")
    temporaryPath = Property(str, lambda self: self._folder)
    applicationLocaleName = Property(str, lambda self: "en_US")

    def __init__(self) -> None:
        super().__init__(["Slicer"])
        self.setApplicationName("Slicer")
        self.setApplicationVersion("5.13.0-2026-08-21")
        self.setOrganizationName("slicer host")
        self.setQuitOnLastWindowClosed(False)
        self._temporary = tempfile.TemporaryDirectory(prefix="slicer_host_")  # removed when Python ends
        self._folder = self._temporary.name
        Path(self._folder, ".slicer-cache").touch()  # VTK's cache manager wants its mark
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, self._folder)
        self._testing, self._window, self._layout = True, None, None
        write_color_files(Path(self._folder) / "share" / "ColorFiles")

    def _begin(self, main_window: bool, testing: bool, render: bool) -> None:
        """A new scene with the managers around it."""
        QSettings().clear()
        self._testing = testing
        self._scene = slicer.vtkMRMLScene()
        slicer.mrmlScene = self._scene
        cache, data = slicer.vtkCacheManager(), slicer.vtkDataIOManager()  # scenes in one .mrb file need both
        cache.SetRemoteCacheDirectory(self._folder)
        data.SetCacheManager(cache)
        self._scene.SetCacheManager(cache)
        self._scene.SetDataIOManager(data)
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self._scene.AddNode(crosshair)
        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetHomeDirectory(self._folder)
        self._logic.SetShareDirectory("share")
        self._logic.SetMRMLScene(self._scene)
        self._logic.SetSliceLogics(vtk.vtkCollection())
        self._logic.SetViewLogics(vtk.vtkCollection())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self._scene, True)
        self._manager = qSlicerModuleManager()
        self._io = qSlicerCoreIOManager(self._scene)
        self._options = CommandOptions(main_window)
        self._extensions = ExtensionsManagerModel()
        add_built_in(self._manager, self._logic, self._scene)
        if main_window:
            self._window = qSlicerMainWindow(ModuleSelector(self._manager))
            self._layout = qSlicerLayoutManager(self._scene, self._logic, render)

    def _end(self) -> None:
        if self._layout is not None:
            self._layout._close()
        if self._window is not None:
            self._window.deleteLater()
        self._window = self._layout = None
        vtk.vtkObject.GlobalWarningDisplayOff()  # logics complain of having no scene any more
        for module in self._manager._modules.values():
            if (logic := module.logic()) is not None:
                logic.SetMRMLScene(None)
        self._logic.SetMRMLScene(None)
        self._scene = self._logic = None
        vtk.vtkObject.GlobalWarningDisplayOn()

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def moduleLogic(self, name: str) -> Any:
        return self._logic.GetModuleLogic(name)

    def layoutManager(self) -> Any:
        return self._layout

    def moduleManager(self) -> qSlicerModuleManager:
        return self._manager

    def coreIOManager(self) -> qSlicerCoreIOManager:
        return self._io

    def ioManager(self) -> qSlicerCoreIOManager:
        return self._io

    def commandOptions(self) -> CommandOptions:
        return self._options

    def extensionsManagerModel(self) -> ExtensionsManagerModel:
        return self._extensions

    def startupEnvironment(self) -> QProcessEnvironment:
        return QProcessEnvironment.systemEnvironment()

    def testingEnabled(self) -> bool:
        return self._testing

    def settings(self) -> QSettings:
        return QSettings()

    userSettings = revisionUserSettings = settings

    def pythonConsole(self) -> None:
        return None

    def pauseRender(self) -> None:
        self.renderPaused.emit(True)

    def resumeRender(self) -> None:
        self.renderPaused.emit(False)

    def setRenderPaused(self, paused: bool) -> None:
        self.renderPaused.emit(paused)

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"https://slicer.readthedocs.io/en/latest/user_guide/modules/{name.lower()}.html"
