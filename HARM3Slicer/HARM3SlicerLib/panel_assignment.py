"""Load a case folder: which image is which is proposed with reasons, corrected by the user, and then loaded."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import ctk
import qt

from HARM3SlicerLib import roles, words
from HARM3SlicerLib.jobs import Job, Steps
from HARM3SlicerLib.part import Part, showIf, showText

NOTHING = "(none)"


class AssignmentPart(Part):
    """The table between choosing a folder and loading it."""

    def setup(self) -> None:
        ui, table = self.ui, self.ui.assignmentTable
        self.assignment: Any = None
        self._boxes: dict[str, Any] = {}  # role to the box with the image chosen for it
        self._paths: list[Any] = []  # what the rows of every box stand for; the first is nothing
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels(["Input", "Image"])
        table.verticalHeader().hide()
        table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.ResizeToContents)
        table.horizontalHeader().setSectionResizeMode(1, qt.QHeaderView.Stretch)
        showIf(ui.assignmentFrame, False)
        self.connect(ui.loadCaseButton, "clicked()", self.onLoadCase)
        self.connect(ui.loadAssignmentButton, "clicked()", self.onLoad)
        self.connect(ui.cancelAssignmentButton, "clicked()", self.onDiscard)

    def update(self) -> None:
        self.ui.loadAssignmentButton.enabled = not self.panel.runner.busy
        showIf(self.ui.assignmentFrame, self.assignment is not None)

    def onLoadCase(self) -> None:
        folder = qt.QFileDialog.getExistingDirectory(self.panel.widget, "Folder with the images of one patient")
        if folder:
            self.attempt(lambda: self.readFolder(folder))

    def readFolder(self, folder: str) -> None:
        """Propose which image of a folder is which; shown when done."""

        def before() -> Steps:
            steps = roles.assignSteps(Path(folder), self.panel.wanted.inputs)
            while True:
                try:
                    name = next(steps)
                except StopIteration as end:
                    self.propose(end.value)
                    return
                yield f"looking at {name}"

        self.panel.runner.start(Job("assign", None, before))

    def propose(self, assignment: Any) -> None:
        """Show an assignment for the user to correct."""
        asked = [role for role in roles.ROLES if self.panel.wanted.asksFor(role) or role in assignment.choices]
        choices = assignment.choices
        images = {choice.path: choice for choice in choices.values()}
        images.update({left.path: left for left in assignment.unassigned})
        self._paths = [None, *images.values()]
        names = [NOTHING, *(image.name for image in images.values())]
        table, self._boxes = self.ui.assignmentTable, {}
        table.setRowCount(len(asked))
        for row, role in enumerate(asked):
            table.setItem(row, 0, qt.QTableWidgetItem(words.label(role)))
            box = ctk.ctkComboBox()
            box.elideMode = qt.Qt.ElideMiddle
            box.addItems(names)
            choice = choices.get(role)
            box.currentIndex = names.index(choice.name) if choice is not None else 0
            box.toolTip = f"<p><b>{escape(choice.name)}</b></p>{escape(choice.reason)}" if choice is not None else "No image fits."
            box.minimumWidth = 60
            table.setCellWidget(row, 1, box)
            self._boxes[role] = box
        table.resizeRowsToContents()
        mark = f"<span style='color:{words.AMBER}'><b>!</b></span>"
        doubts = "<br>".join(f"{mark} {escape(words.stage(doubt.message))}" for doubt in assignment.warnings)
        showText(
            self.ui.assignmentLabel,
            f"<b>{escape(assignment.folder.name)}</b>: which image is which? Rest the mouse on a name for the reason.",
        )
        showText(self.ui.assignmentWarningsLabel, doubts)
        showIf(self.ui.assignmentWarningsLabel, bool(doubts))
        self.assignment = assignment
        self.panel.updateGUI()

    def chosen(self) -> dict[str, Any]:
        """Role to the image chosen for it now: an entry with `path`, and `files` where it has several."""
        found = {role: self._paths[box.currentIndex] for role, box in self._boxes.items()}
        return {role: image for role, image in found.items() if image is not None}

    def onLoad(self) -> None:
        self.attempt(self.load)

    def load(self) -> None:
        """Load what is chosen and take it as input."""
        chosen, case = self.chosen(), self.assignment.case
        self.panel.runner.start(Job("load", None, lambda: self._steps(chosen, case)))
        self.assignment = None
        self.panel.updateGUI()

    def onDiscard(self) -> None:
        self.assignment = None
        self.panel.updateGUI()

    def _steps(self, chosen: dict[str, Any], case: Any) -> Iterator[str]:
        from HARM3Logic.case import MASKS
        from HARM3SlicerLib import export

        inputs: dict[str, Any] = {}
        try:
            for role, image in chosen.items():
                if role == "slide":
                    inputs[role] = list(getattr(image, "files", ()) or [image.path])
                    continue
                yield f"loading {words.label(role)}"
                path, kind = Path(image.path), "LabelMapVolume" if role in MASKS else "ScalarVolume"
                files = image.files if len(image.files) > 1 else ()  # of a DICOM series, also where others lie beside it
                inputs[role] = export.loadVolume(path, path.name.split(".")[0], kind, files)
        except BaseException:
            for node in inputs.values():
                if hasattr(node, "GetID"):
                    export.removeNode(node)
            raise
        self.panel.work.useInputs(inputs, case)
