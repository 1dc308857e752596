"""A folder with a prediction to nodes of the scene, found again and removed as a whole. Needs only MRML.

The results table is the hub of a run: every node of it hangs on a node reference of the table, so a saved scene, or one imported beside
another, still knows which nodes belong together.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import vtk

from HARM3Logic.case import INPUTS
from HARM3Logic.errors import BadOption
from HARM3SlicerLib.export import exportSteps, loadCase, loadCaseSteps
from HARM3SlicerLib.results import ATTENTION, ROLE, addChart, addResultsTable, addSlide, tilePoint
from HARM3SlicerLib.steps import finish, named
from HARM3SlicerLib.volumes import addVolumeSteps, nodesOf, removeNode

__all__ = [
    "Run",
    "exportSteps",
    "findRun",
    "findRuns",
    "finish",
    "loadCase",
    "loadCaseSteps",
    "loadRun",
    "loadRunSteps",
    "removeRun",
    "removeRunSteps",
    "tilePoint",
]

INPUT, HEATMAP = f"{ROLE}input.", f"{ROLE}heatmap."
SHOWN = f"{ROLE}shown"  # nodes that only draw the others: made again when needed, never saved


@dataclass(frozen=True)
class Run:
    """The nodes of one prediction; what the user deleted by hand is missing or None.

    Args:
        values: the content of `prediction.json`.
        heatmaps: input to its map, 0 to 1 on one scale for all.
        inputs: input to the volume it was made from, as far as it is still there.
        contributions: table behind `chart`: input, position, contribution.
        slide: the thumbnail; `attention` lies over it, `tiles` are its ranked points. None of them is in patient space.
        folderItem: the subject hierarchy's folder; 0 when there is none.
    """

    caseId: str
    folder: Path
    values: Mapping[str, Any]
    table: Any
    heatmaps: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    contributions: Any = None
    chart: Any = None
    slide: Any = None
    attention: Any = None
    tiles: Any = None
    folderItem: int = 0


def loadRun(folder: Path, inputs: Mapping[str, Any]) -> Run:
    """`loadRunSteps` in one go."""
    return finish(loadRunSteps(folder, inputs))


def loadRunSteps(folder: Path, inputs: Mapping[str, Any]) -> Generator[str, None, Run]:
    """Make the nodes of a prediction in small steps; the generator's return value is the run.

    A run of the same case that is there already is removed once the new one is whole. When a step fails or the generator is closed,
    nothing of the new one is left.

    Args:
        inputs: input to the volume node that was predicted from.

    Raises:
        BadOption, BadVolume: the folder lacks a file, or one is damaged.
    """
    values = readValues(folder)
    before = [run for run in findRuns() if run.caseId == values["case_id"]]
    table = addResultsTable(values, folder)
    try:
        for name, node in inputs.items():
            if isinstance(node, vtk.vtkObject) and node.IsA("vtkMRMLVolumeNode") and node.GetScene() is not None:
                table.SetNodeReferenceID(INPUT + name, node.GetID())
        for name in values.get("heat", {}):
            steps = addVolumeSteps(folder / f"heatmap_{name}.nrrd", f"HARM3 {values['case_id']} heatmap {name}")
            heat = yield from named(f"heatmap {name}", steps)
            table.SetNodeReferenceID(HEATMAP + name, heat.GetID())
            yield f"heatmap {name}"
        if any((folder / name).is_file() for name in ATTENTION):
            yield from addSlide(folder, values, table)
        addChart(values, table)
        yield "contributions"
        for run in before:  # in one go, so that a cancel leaves the old one or the new one
            removeRun(run)
        _file(table, values["case_id"])
    except BaseException:
        finish(_removeOwnedSteps(table))
        raise
    return _runOf(table)


def readValues(folder: Path) -> dict[str, Any]:
    """The content of a folder's `prediction.json`.

    Raises:
        BadOption: there is none, or it is damaged, or a heatmap it names is missing.
    """
    path, advice = Path(folder) / "prediction.json", "Run the prediction again, or choose the folder that holds prediction.json."
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadOption(f"{str(path)!r} cannot be read ({error.strerror}).", advice) from error
    except ValueError as error:
        raise BadOption(f"{str(path)!r} is damaged ({error}).", advice) from error
    if not isinstance(values, dict) or not isinstance(values.get("case_id"), str) or "probability" not in values:
        raise BadOption(f"{str(path)!r} holds no prediction.", advice)
    missing = [name for name in values.get("heat", {}) if not (Path(folder) / f"heatmap_{name}.nrrd").is_file()]
    if missing:
        raise BadOption(f"the results folder {str(folder)!r} lacks heatmap_{missing[0]}.nrrd.", advice)
    return values


def findRuns(scene: Any = None) -> list[Run]:
    """Every run of a scene, the latest last."""
    return [_runOf(table) for table in nodesOf("vtkMRMLTableNode", scene) if table.GetAttribute(f"{ROLE}prediction")]


def findRun(scene: Any = None) -> Run | None:
    """The latest run of a scene, as after loading it."""
    return next(iter(findRuns(scene)[::-1]), None)


def removeRun(run: Run) -> None:
    """`removeRunSteps` in one go."""
    finish(removeRunSteps(run))


def removeRunSteps(run: Run) -> Generator[str, None, None]:
    """Remove exactly what the run made, one node each step; the volumes it was made from and what the user put into its folder stay."""
    hierarchy, item = _hierarchy(), run.folderItem
    yield from _removeOwnedSteps(run.table)
    if hierarchy is None or not item:
        return
    children = vtk.vtkIdList()
    hierarchy.GetItemChildren(item, children, False)
    for i in range(children.GetNumberOfIds()):
        hierarchy.SetItemParent(children.GetId(i), hierarchy.GetItemParent(item))
    hierarchy.RemoveItem(item, False, False)


def _roles(table: Any) -> Iterator[tuple[str, Any]]:
    """Role and node of every reference of the table, as far as the node is still there."""
    roles: list[str] = []
    table.GetNodeReferenceRoles(roles)
    for role in roles:
        if role.startswith(ROLE):
            for i in range(table.GetNumberOfNodeReferences(role)):
                node = table.GetNthNodeReference(role, i)
                if node is not None:
                    yield role, node


def _runOf(table: Any) -> Run:
    values = json.loads(table.GetAttribute(f"{ROLE}prediction"))
    nodes = sorted(_roles(table), key=lambda pair: _place(pair[0]))
    named = {role.removeprefix(ROLE): node for role, node in nodes}
    hierarchy = _hierarchy()
    parent = hierarchy.GetItemParent(hierarchy.GetItemByDataNode(table)) if hierarchy else 0
    return Run(
        caseId=values["case_id"],
        folder=Path(table.GetAttribute(f"{ROLE}folder")),
        values=values,
        table=table,
        heatmaps={role.removeprefix(HEATMAP): node for role, node in nodes if role.startswith(HEATMAP)},
        inputs={role.removeprefix(INPUT): node for role, node in nodes if role.startswith(INPUT)},
        folderItem=parent if parent and hierarchy.GetItemAttribute(parent, f"{ROLE}run") else 0,
        **{role: named.get(role) for role in ("contributions", "chart", "slide", "attention", "tiles")},
    )


def _place(role: str) -> int:
    """Inputs in the order of the house: the table gives its roles by alphabet."""
    name = role.rpartition(".")[2]
    return INPUTS.index(name) if name in INPUTS else len(INPUTS)


def _hierarchy() -> Any:
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def _file(table: Any, caseId: str) -> None:
    """Put the run's nodes into one folder of the subject hierarchy."""
    hierarchy = _hierarchy()
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), f"HARM3 {caseId}")
    hierarchy.SetItemAttribute(folder, f"{ROLE}run", caseId)
    for node in [table, *(node for role, node in _roles(table) if not role.startswith(INPUT))]:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.SetItemParent(item, folder)
        else:  # without Slicer's window nobody makes items on his own
            hierarchy.CreateItem(folder, node)


def _removeOwnedSteps(table: Any) -> Generator[str, None, None]:
    if table.GetScene() is None:
        return
    hierarchy = _hierarchy()
    for node in [*(node for role, node in _roles(table) if not role.startswith(INPUT)), table]:
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)
        removeNode(node)
        yield "removing the result"
