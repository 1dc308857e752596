"""Slice views of a MRML scene drawn off screen: the real nodes, logics and displayable managers of slicer-core, without Qt.

views = SliceViews()          # a scene with colours, a layout node and its logic; nothing is shown yet
layout node -> arrangement    # the layout logic makes the slice nodes, as in Slicer
views.grab("preT1")           # H W 3, rows from the top, as on screen
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer
import vtk
from PIL import Image
from vtk.util.numpy_support import vtk_to_numpy
from vtkmodules.vtkRenderingOpenGL2 import vtkEGLRenderWindow

MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLColorLegendDisplayableManager",
)
INFERNO = ((0, 0, 0.01), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))


class SliceView:
    """One slice node drawn into a window of its own that nobody sees."""

    def __init__(self, application_logic: slicer.vtkMRMLApplicationLogic, node: slicer.vtkMRMLSliceNode, size: tuple[int, int]) -> None:
        self.node = node
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application_logic)
        application_logic.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(node.GetScene())
        self.logic.SetSliceNode(node)
        self.renderer = vtk.vtkRenderer()
        self.renderer.GetActiveCamera().ParallelProjectionOn()
        self.window = vtkEGLRenderWindow()  # needs no display
        self.window.SetOffScreenRendering(1)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkGenericRenderWindowInteractor()  # displayable managers ask it for its size; it runs no loop
        self.interactor.SetRenderWindow(self.window)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(application_logic)
        for name in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = slicer.vtkMRMLDisplayableManagerGroup()
        self.group.Initialize(factory, self.renderer)
        self.group.SetMRMLDisplayableNode(node)
        self.mapper = vtk.vtkImageMapper()
        self.mapper.SetColorWindow(255)
        self.mapper.SetColorLevel(127.5)
        self.actor = vtk.vtkActor2D()
        self.actor.SetMapper(self.mapper)
        self.actor.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(self.actor)
        self.logic.ResizeSliceNode(*size)

    def grab(self) -> np.ndarray:
        """What the view shows, rows from the top."""
        connection = self.logic.GetImageDataConnection()
        self.actor.SetVisibility(connection is not None)
        self.mapper.SetInputConnection(connection)
        self.window.Render()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(self.window)
        reader.ReadFrontBufferOff()
        reader.Update()
        image = reader.GetOutput()
        width, height, _ = image.GetDimensions()
        return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()

    def pixel(self, ras: np.ndarray | tuple[float, ...]) -> tuple[float, float]:
        """Column and row of a point of the patient in `grab`."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), inverse)
        x, y, _, _ = inverse.MultiplyPoint((*ras, 1.0))
        return x, self.node.GetDimensions()[1] - 1 - y

    def close(self) -> None:
        """Give the window back."""
        self.group.SetMRMLDisplayableNode(None)
        self.window.Finalize()


class SliceViews:
    """A scene and its application logic; slice views are made when the layout asks for them."""

    def __init__(self, size: tuple[int, int] = (360, 300)) -> None:
        self.size = size
        self.scene = slicer.vtkMRMLScene()
        self.application_logic = slicer.vtkSlicerApplicationLogic()
        self.application_logic.SetMRMLScene(self.scene)
        self.application_logic.GetColorLogic().SetMRMLScene(self.scene)
        self.application_logic.GetColorLogic().AddDefaultColorNodes()
        self.application_logic.SetSliceLogics(vtk.vtkCollection())
        self.application_logic.SetViewLogics(vtk.vtkCollection())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self.color_logic = slicer.vtkSlicerColorLogic()
        self.markups_logic = slicer.vtkSlicerMarkupsLogic()
        for name, logic in (("Colors", self.color_logic), ("Markups", self.markups_logic)):
            logic.SetMRMLApplicationLogic(self.application_logic)
            logic.SetMRMLScene(self.scene)
            self.application_logic.SetModuleLogic(name, logic)
        self._add_inferno()
        self.layout_logic = slicer.vtkMRMLLayoutLogic()
        self.layout_logic.SetMRMLScene(self.scene)
        self._views: dict[str, SliceView] = {}
        self.layout_logic.GetLayoutNode().AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self.refresh(), -1.0)  # after the logic

    def __getitem__(self, tag: str) -> SliceView:
        self.refresh()
        return self._views[tag]

    def refresh(self) -> None:
        """Make a view for each slice node that has none, as Slicer's layout manager does on a change of layout."""
        nodes = self.scene.GetNodesByClass("vtkMRMLSliceNode")
        nodes.UnRegister(None)
        for node in (nodes.GetItemAsObject(i) for i in range(nodes.GetNumberOfItems())):
            if node.GetLayoutName() not in self._views:
                self._views[node.GetLayoutName()] = SliceView(self.application_logic, node, self.size)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let `slicer.mrmlScene` and `slicer.app` be these, as far as code that needs only MRML asks."""
        app = SimpleNamespace(applicationLogic=lambda: self.application_logic, layoutManager=lambda: None)
        monkeypatch.setattr(slicer, "mrmlScene", self.scene, raising=False)
        monkeypatch.setattr(slicer, "app", app, raising=False)

    def keep_cache(self, folder: Path) -> None:
        """Where a scene bundle (.mrb) is unpacked."""
        cache, self.data_io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
        cache.SetRemoteCacheDirectory(str(folder))
        self.data_io.SetCacheManager(cache)
        self.scene.SetDataIOManager(self.data_io)
        self.scene.SetCacheManager(cache)

    def _add_inferno(self) -> None:
        """Slicer's colour file of that name is not in slicer-core; its hues are."""
        node = slicer.vtkMRMLColorTableNode()
        node.SetName("Inferno")
        node.SetSingletonTag("FileInferno.txt")  # gives the ID it has in Slicer
        node.SetTypeToUser()
        node.SetNumberOfColors(256)
        for i in range(256):
            rgb = (float(np.interp(i / 255, np.linspace(0, 1, len(INFERNO)), column)) for column in zip(*INFERNO, strict=True))
            node.SetColor(i, *rgb, 1.0)  # alpha is 0 otherwise
        self.scene.AddNode(node)

    def grab(self, tag: str) -> np.ndarray:
        return self[tag].grab()

    def picture(self, rows: tuple[tuple[str, ...], ...], path: Path) -> None:
        """Draw views side by side into a PNG."""
        Image.fromarray(np.vstack([np.hstack([self.grab(tag) for tag in row]) for row in rows])).save(path)

    def close(self) -> None:
        """End every view before the scene goes."""
        for view in self._views.values():
            view.close()
        self._views.clear()
        self.application_logic.GetSliceLogics().RemoveAllItems()
