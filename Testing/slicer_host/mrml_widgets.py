"""Stand-ins for Slicer's MRML widgets over the real scene."""

from functools import partial
from typing import Any, ClassVar

from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtWidgets import QComboBox, QHBoxLayout, QStyledItemDelegate, QTableView, QWidget
from vtkmodules.util.misc import calldata_type
from vtkmodules.vtkCommonCore import VTK_OBJECT

from .ctk_inputs import ctkSliderWidget
from .ctk_widgets import ctkComboBox
from .stored import stored


def _unobserve(observed: list[tuple[Any, int]], *unused: Any) -> None:
    while observed:
        scene, tag = observed.pop()
        scene.RemoveObserver(tag)


class qMRMLWidget(QWidget):
    _exposed = True
    mrmlSceneChanged = Signal(object)
    _cpp_signals: ClassVar = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"}

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self._scene


class qSlicerWidget(qMRMLWidget):
    _exposed = True


class qMRMLNodeComboBox(QWidget):
    """Lists the scene's nodes; when the chosen one is deleted it chooses another, also with `noneEnabled`."""

    _exposed = True
    currentNodeChanged = Signal(object)
    currentNodeValid = Signal(bool)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    _cpp_signals: ClassVar = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged(PyObject)",
        "currentNodeChanged(bool)": "currentNodeValid(bool)",
        "nodeActivated(vtkMRMLNode*)": "nodeActivated(PyObject)",
        "nodeAdded(vtkMRMLNode*)": "nodeAdded(PyObject)",
        "nodeAddedByUser(vtkMRMLNode*)": "nodeAddedByUser(PyObject)",
        "nodeAboutToBeRemoved(vtkMRMLNode*)": "nodeAboutToBeRemoved(PyObject)",
    }
    nodeTypes = stored("QStringList", "nodeTypes", [], "_refill")
    noneEnabled = stored(bool, "noneEnabled", False, "_refill")
    noneDisplay = stored(str, "noneDisplay", "None", "_refill")
    showHidden = stored(bool, "showHidden", False, "_refill")
    showChildNodeTypes = stored(bool, "showChildNodeTypes", True, "_refill")
    hideChildNodeTypes = stored("QStringList", "hideChildNodeTypes", [], "_refill")
    addEnabled = stored(bool, "addEnabled", True)
    removeEnabled = stored(bool, "removeEnabled", True)
    editEnabled = stored(bool, "editEnabled", False)
    renameEnabled = stored(bool, "renameEnabled", False)
    selectNodeUponCreation = stored(bool, "selectNodeUponCreation", True)
    baseName = stored(str, "baseName", "")
    interactionNodeSingletonTag = stored(str, "interactionNodeSingletonTag", "")

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._observed: list[tuple[Any, int]] = []
        self.destroyed.connect(partial(_unobserve, self._observed))
        self._current: Any = None
        self._attributes: dict[str, dict[str, Any]] = {}
        self._combo = ctkComboBox()
        self._combo.setProperty("elideMode", int(Qt.TextElideMode.ElideMiddle.value))
        self._combo.setItemDelegate(QStyledItemDelegate(self._combo))
        self._combo.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self._combo.activated.connect(lambda row: self._choose(self._row_node(row), activated=True))
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._combo.setEnabled(False)

    def setMRMLScene(self, scene: Any) -> None:
        _unobserve(self._observed)
        self._scene = scene
        if scene is not None:
            events = scene.NodeAddedEvent, scene.EndCloseEvent, scene.EndImportEvent, scene.EndBatchProcessEvent
            pairs = [*((e, lambda *a: self._refill()) for e in events), (scene.NodeAddedEvent, self._added)]
            pairs.append((scene.NodeAboutToBeRemovedEvent, self._removed))
            self._observed += [(scene, scene.AddObserver(event, call)) for event, call in pairs]
        self._combo.setEnabled(scene is not None)
        self._refill()

    def mrmlScene(self) -> Any:
        return self._scene

    @calldata_type(VTK_OBJECT)
    def _added(self, caller: Any, event: str, node: Any) -> None:
        if self._fits(node):
            self.nodeAdded.emit(node)

    @calldata_type(VTK_OBJECT)
    def _removed(self, caller: Any, event: str, node: Any) -> None:
        if not self._fits(node):
            return
        self.nodeAboutToBeRemoved.emit(node)
        nodes = self._nodes()
        others = [n for n in nodes if n is not node]
        chosen = self._current
        if chosen is node:  # the surprise: the list's next row becomes the choice
            chosen = others[min(nodes.index(node), len(others) - 1)] if others else None
        self._fill(others, chosen)

    def _fits(self, node: Any) -> bool:
        kinds = list(self.nodeTypes)
        match = node.IsA if self.showChildNodeTypes else lambda kind: node.GetClassName() == kind
        if not any(match(k) for k in kinds) or any(node.IsA(k) for k in self.hideChildNodeTypes):
            return False
        wanted = [pair for k, pairs in self._attributes.items() if node.IsA(k) for pair in pairs.items()]
        if any(node.GetAttribute(a) is None or v not in (None, node.GetAttribute(a)) for a, v in wanted):
            return False
        return self.showHidden or not node.GetHideFromEditors()

    def _nodes(self) -> list[Any]:
        nodes = (self._scene.GetNthNode(i) for i in range(self._scene.GetNumberOfNodes())) if self._scene else ()
        return [n for n in nodes if self._fits(n)]

    def _refill(self) -> None:
        if self._scene is not None and self._scene.IsBatchProcessing():
            return  # the list is brought up to date when the scene is whole again
        nodes = self._nodes()
        chosen = self._current if self._current in nodes else None
        if chosen is None and nodes and not self.noneEnabled:
            chosen = nodes[0]
        self._fill(nodes, chosen)

    def _fill(self, nodes: list[Any], chosen: Any) -> None:
        self._combo.clear()
        if self.noneEnabled:
            self._combo.addItem(self.noneDisplay, "")
        for node in nodes:
            self._combo.addItem(node.GetName() or "", node.GetID())
        self._choose(chosen)

    def _row_node(self, row: int) -> Any:
        return self._scene.GetNodeByID(self._combo.itemData(row) or "") if self._scene else None

    def _choose(self, node: Any, activated: bool = False) -> None:
        row = self._combo.findData(node.GetID()) if node else self._combo.findData("")
        self._combo.setCurrentIndex(row)
        node = node if row >= 0 else None
        changed, self._current = node is not self._current, node
        if changed:
            self.currentNodeChanged.emit(node)
            self.currentNodeValid.emit(node is not None)
            self.currentNodeIDChanged.emit(node.GetID() if node else "")
        if activated:
            self.nodeActivated.emit(node)

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        node = self._scene.GetNodeByID(node) if isinstance(node, str) and self._scene else node
        self._choose(node)

    def _id(self) -> str:
        return self._current.GetID() if self._current else ""

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(node_id)

    currentNodeID = Property(str, _id, setCurrentNodeID)
    currentNodeId = Property(str, _id, setCurrentNodeID)

    def setCurrentNodeIndex(self, index: int) -> None:
        self._choose(self.nodeFromIndex(index))

    def nodeCount(self) -> int:
        return len(self._nodes())

    def nodeFromIndex(self, index: int) -> Any:
        nodes = self._nodes()
        return nodes[index] if 0 <= index < len(nodes) else None

    def addAttribute(self, kind: str, name: str, value: Any = None) -> None:
        self._attributes.setdefault(kind, {})[name] = value
        self._refill()

    def removeAttribute(self, kind: str, name: str) -> None:
        self._attributes.get(kind, {}).pop(name, None)
        self._refill()

    def addNode(self, kind: str = "") -> Any:
        node = self._scene.AddNewNodeByClass(kind or self.nodeTypes[0], self.baseName)
        self._choose(node)
        return node

    def removeCurrentNode(self) -> None:
        self._scene.RemoveNode(self._current)


class qMRMLColorTableComboBox(qMRMLNodeComboBox):
    _exposed = True

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setProperty("nodeTypes", ["vtkMRMLColorNode"])
        self.setProperty("showHidden", True)
        self.setProperty("addEnabled", False)
        self.setProperty("removeEnabled", False)


class qMRMLSliderWidget(ctkSliderWidget):
    _exposed = True

    def setMRMLScene(self, scene: Any) -> None:
        """Units come from the scene; the host has none."""


class qMRMLTableView(QTableView):
    _exposed = True
    selectionChangedSignal = Signal()
    _cpp_signals: ClassVar = {"selectionChanged()": "selectionChangedSignal()"}

    def setMRMLScene(self, scene: Any) -> None:
        """The table node brings its scene."""

    def setMRMLTableNode(self, node: Any) -> None:
        self._node = node

    def mrmlTableNode(self) -> Any:
        return self.__dict__.get("_node")


WIDGETS = qMRMLWidget, qSlicerWidget, qMRMLNodeComboBox, qMRMLColorTableComboBox, qMRMLSliderWidget, qMRMLTableView
