"""Reading and writing for `slicer.util.loadVolume`, `loadScene`, `saveScene`, `exportNode` and their kin."""

import csv
from pathlib import Path
from typing import Any

import slicer
from PySide6.QtCore import QObject

SCENES = ".mrml", ".mrb"
VOLUMES = ".nrrd", ".nhdr", ".nii", ".nii.gz", ".mha", ".mhd"


def _extension(path: str) -> str:
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


class qSlicerCoreIOManager(QObject):
    _exposed = True

    def __init__(self, scene: Any) -> None:
        super().__init__()
        self._scene = scene

    def fileType(self, path: str) -> str:
        kinds = {".csv": "TableFile", ".tsv": "TableFile"}
        extension = _extension(path)
        return "SceneFile" if extension in SCENES else kinds.get(extension, "VolumeFile" if extension in VOLUMES else "NoFile")

    def loadNodes(self, kind: str, properties: dict[str, Any], loaded: Any, messages: Any) -> bool:
        path = properties["fileName"]
        if not Path(path).is_file():
            return False
        if kind == "SceneFile":
            return self._load_scene(path, bool(properties.get("clear")))
        if kind != "VolumeFile":
            return False
        logic = slicer.app.moduleLogic("Volumes")
        name = properties.get("name") or Path(path).name.split(".")[0]
        node = logic.AddArchetypeVolume(path, name, 1 if properties.get("labelmap") else 0)
        if node is None:
            return False
        loaded.AddItem(node)
        if properties.get("show", True):
            slicer.util.setSliceViewerLayers(background=node, fit=True)  # every view, also other modules'
        return True

    def _load_scene(self, path: str, clear: bool) -> bool:
        if path.endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, clear))
        self._scene.SetURL(path)
        return bool(self._scene.Connect() if clear else self._scene.Import())

    def saveNodes(self, kind: str, properties: dict[str, Any], messages: Any) -> bool:
        path = properties["fileName"]
        if kind == "SceneFile" and path.endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path))
        if kind == "SceneFile":
            self._scene.SetURL(path)
            self._scene.SetRootDirectory(str(Path(path).parent))
            return bool(self._scene.Commit(path))  # the scene alone, no volumes
        return self.exportNodes([properties["nodeID"]], [path], properties, False, messages)

    def extractKnownExtension(self, path: str, node: Any) -> str:
        return _extension(path)

    def fileWriterExtensions(self, node: Any) -> list[str]:
        known = VOLUMES if node.IsA("vtkMRMLVolumeNode") else (".csv",) if node.IsA("vtkMRMLTableNode") else ()
        return [f"{e[1:]} (*{e})" for e in known]

    def fileWriterFileType(self, node: Any, extension: str = "") -> str:
        return "VolumeFile" if node.IsA("vtkMRMLVolumeNode") else "TableFile"

    def exportNodes(self, ids: list[str], paths: list[str], properties: dict[str, Any], harden: bool, messages: Any) -> bool:
        return all(self._export(self._scene.GetNodeByID(i), Path(p), harden) for i, p in zip(ids, paths, strict=True))

    def _export(self, node: Any, path: Path, harden: bool) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)  # Slicer makes a missing folder
        if node.IsA("vtkMRMLTableNode"):
            return _write_table(node, path)
        copy = self._scene.AddNewNodeByClass(node.GetClassName(), node.GetName())
        copy.CopyContent(node)
        copy.SetAndObserveTransformNodeID(node.GetTransformNodeID())
        storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
        storage.SetFileName(str(path))
        try:
            if harden:
                copy.HardenTransform()
            return bool(storage.WriteData(copy))
        finally:
            self._scene.RemoveNode(copy)


def _write_table(node: Any, path: Path) -> bool:
    table = node.GetTable()
    columns = range(table.GetNumberOfColumns())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([table.GetColumnName(c) for c in columns])
        writer.writerows([[table.GetValue(r, c).ToString() for c in columns] for r in range(table.GetNumberOfRows())])
    return True
