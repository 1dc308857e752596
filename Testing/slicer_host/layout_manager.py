"""The layout manager over slicer-core's layout logic: a slice widget for each slice view of a layout, drawn off screen on demand."""

from typing import Any

import slicer
import vtk
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtWidgets import QVBoxLayout, QWidget

SIZE = 360, 300  # of a slice view, px
FALLBACK_LAYOUT = 2  # what Slicer shows for an id it does not know


class qMRMLSliceControllerWidget(QWidget):
    """The bar above a slice view; unlike calls on the logic, its changes reach the linked views."""

    _exposed = True

    def __init__(self, widget: "qMRMLSliceWidget") -> None:
        super().__init__()
        self._widget = widget

    def fitSliceToBackground(self) -> None:
        logic = self._widget._logic
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.FieldOfViewFlag)
        logic.FitSliceToBackground()
        logic.EndSliceNodeInteraction()

    def setSliceOffsetValue(self, offset: float) -> None:
        logic = self._widget._logic
        logic.StartSliceOffsetInteraction()
        logic.SetSliceOffset(offset)
        logic.EndSliceOffsetInteraction()

    def setSliceOrientation(self, orientation: str) -> None:
        logic = self._widget._logic
        logic.StartSliceNodeInteraction(slicer.vtkMRMLSliceNode.OrientationFlag)
        logic.GetSliceNode().SetOrientation(orientation)
        logic.EndSliceNodeInteraction()

    def setSliceLink(self, linked: bool) -> None:
        """Slicer's chain button: every slice view, whatever its group."""
        scene = self._widget._logic.GetMRMLScene()
        for i in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            scene.GetNthNodeByClass(i, "vtkMRMLSliceCompositeNode").SetLinkedControl(linked)


class qMRMLView(QWidget):
    _exposed = True

    def __init__(self) -> None:
        super().__init__()
        self._node: Any = None

    def forceRender(self) -> None:
        """Nothing to do before somebody looks."""

    def scheduleRender(self) -> None:
        """Nothing to do before somebody looks."""


class qMRMLSliceView(qMRMLView):
    _exposed = True

    def mrmlSliceNode(self) -> Any:
        return self._node


class qMRMLSliceWidget(QWidget):
    _exposed = True

    def __init__(self, application_logic: Any, node: Any, render: bool) -> None:
        super().__init__()
        self._view, self._controller = qMRMLSliceView(), qMRMLSliceControllerWidget(self)
        layout = QVBoxLayout(self)
        layout.addWidget(self._controller)
        layout.addWidget(self._view)
        self._view._node = node
        self._drawn: Any = None
        if render:
            from slice_views import SliceView

            self._drawn = SliceView(application_logic, node, SIZE)
            self._logic = self._drawn.logic
        else:
            self._logic = slicer.vtkMRMLSliceLogic()
            self._logic.SetMRMLApplicationLogic(application_logic)
            application_logic.GetSliceLogics().AddItem(self._logic)
            self._logic.SetMRMLScene(node.GetScene())
            self._logic.SetSliceNode(node)
            self._logic.ResizeSliceNode(*SIZE)

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()

    def sliceLogic(self) -> Any:
        return self._logic

    def sliceController(self) -> QWidget:
        return self._controller

    def sliceView(self) -> QWidget:
        return self._view

    def fitSliceToBackground(self) -> None:
        self._controller.fitSliceToBackground()

    def setSliceOrientation(self, orientation: str) -> None:
        self._controller.setSliceOrientation(orientation)


class OtherView(qMRMLView):
    """The view of a table or a chart: only its node."""

    _exposed = True

    def mrmlTableViewNode(self) -> Any:
        return self._node

    def mrmlPlotViewNode(self) -> Any:
        return self._node

    def fitToContent(self) -> None:
        """Nothing is drawn."""

    def chart(self) -> Any:
        return vtk.vtkChartXY()


class OtherWidget(QWidget):
    _exposed = True

    def __init__(self, node: Any) -> None:
        super().__init__()
        self._view = OtherView()
        self._view._node = node

    def tableView(self) -> QWidget:
        return self._view

    def plotView(self) -> QWidget:
        return self._view

    def mrmlTableViewNode(self) -> Any:
        return self._view._node

    def mrmlPlotViewNode(self) -> Any:
        return self._view._node


class qSlicerLayoutManager(QObject):
    _exposed = True
    layoutChanged = Signal(int)

    def __init__(self, scene: Any, application_logic: Any, render: bool) -> None:
        super().__init__()
        self._scene, self._application, self._render = scene, application_logic, render
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(scene)
        self._slices: dict[str, qMRMLSliceWidget] = {}
        self._others: dict[str, list[OtherWidget]] = {"vtkMRMLTableViewNode": [], "vtkMRMLPlotViewNode": []}
        self._shown: int | None = None
        node = self._logic.GetLayoutNode()
        self._tag = node.AddObserver("ModifiedEvent", lambda *a: self._refresh())
        self._scene_tag = scene.AddObserver(scene.EndImportEvent, lambda *a: self._refresh())

    def _refresh(self) -> None:
        """Make the widgets of views that have none; mark which are shown."""
        node = self._logic.GetLayoutNode()
        if node is None or self._scene.IsBatchProcessing():
            return
        arrangement = node.GetViewArrangement()
        if arrangement and not node.IsLayoutDescription(arrangement):
            node.SetViewArrangement(FALLBACK_LAYOUT)
            return
        views = self._logic.GetViewNodes()
        shown = [views.GetItemAsObject(i) for i in range(views.GetNumberOfItems())]
        for view in shown:
            if view.IsA("vtkMRMLSliceNode") and view.GetLayoutName() not in self._slices:
                self._slices[view.GetLayoutName()] = qMRMLSliceWidget(self._application, view, self._render)
                self._watch(self._slices[view.GetLayoutName()])
            kind = self._others.get(view.GetClassName())
            if kind is not None and all(w._view._node is not view for w in kind):
                kind.append(OtherWidget(view))
        for widget in self._slices.values():
            slice_node = widget.mrmlSliceNode()
            if slice_node is not None:
                slice_node.SetMappedInLayout(slice_node in shown)
        if arrangement != self._shown:
            self._shown = arrangement
            self.layoutChanged.emit(arrangement)

    def _watch(self, widget: qMRMLSliceWidget) -> None:
        """Share a linked view's foreground opacity with its group on any change: in Slicer the controllers' sliders do that."""
        seen = [widget.mrmlSliceCompositeNode().GetForegroundOpacity()]

        def share(composite: Any, event: str) -> None:
            opacity, seen[0] = seen[0], composite.GetForegroundOpacity()
            if opacity == seen[0] or not composite.GetLinkedControl():
                return
            group = widget.mrmlSliceNode().GetViewGroup()
            for other in self._slices.values():
                if other.mrmlSliceNode().GetViewGroup() == group:
                    other.mrmlSliceCompositeNode().SetForegroundOpacity(seen[0])

        widget.mrmlSliceCompositeNode().AddObserver("ModifiedEvent", share)

    def _close(self) -> None:
        self._scene.RemoveObserver(self._scene_tag)
        self._logic.GetLayoutNode().RemoveObserver(self._tag)
        for widget in self._slices.values():
            if widget._drawn is not None:
                widget._drawn.close()
            widget._logic.SetMRMLScene(None)
        self._application.GetSliceLogics().RemoveAllItems()
        self._logic.SetMRMLScene(None)

    def setLayout(self, layout_id: int) -> None:
        self._logic.GetLayoutNode().SetViewArrangement(layout_id)
        self._refresh()

    def _layout(self) -> int:
        return self._logic.GetLayoutNode().GetViewArrangement()

    layout = Property(int, _layout, setLayout)
    threeDViewCount = Property(int, lambda self: 0)
    tableViewCount = Property(int, lambda self: len(self._others["vtkMRMLTableViewNode"]))
    plotViewCount = Property(int, lambda self: len(self._others["vtkMRMLPlotViewNode"]))

    def layoutLogic(self) -> Any:
        return self._logic

    def mrmlScene(self) -> Any:
        return self._scene

    def sliceViewNames(self) -> list[str]:
        return list(self._slices)

    def sliceWidget(self, name: str) -> QWidget | None:
        return self._slices.get(name)

    def tableWidget(self, index: int) -> QWidget | None:
        return next(iter(self._others["vtkMRMLTableViewNode"][index : index + 1]), None)

    def plotWidget(self, index: int) -> QWidget | None:
        return next(iter(self._others["vtkMRMLPlotViewNode"][index : index + 1]), None)

    def mrmlSliceLogics(self) -> Any:
        return self._application.GetSliceLogics()

    def resetSliceViews(self) -> None:
        for widget in self._slices.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        """There are none."""
