"""The form of clinical values, the table it can be filled from, and the point in the tumour: what a checkpoint for CT asks for."""

from __future__ import annotations

import json
from typing import Any

import qt
import slicer

from HARM3SlicerLib import clinical
from HARM3SlicerLib.parameters import POINT, jsonObject
from HARM3SlicerLib.part import Part, showIf

NOT_KNOWN = "not known"


class ClinicalPart(Part):
    """One row for each variable of the schema; an empty one is not known."""

    def setup(self) -> None:
        self._fields: dict[str, Any] = {}  # variable to its widget
        self._variables: tuple[clinical.Variable, ...] = ()
        self.connect(self.ui.clinicalTableSelector, "currentNodeChanged(vtkMRMLNode*)", self.onTable)
        self.connect(self.ui.placePointButton, "clicked()", self.onPlacePoint)

    def update(self) -> None:
        wanted = self.panel.wanted
        self._build(wanted.variables)
        showIf(self.ui.clinicalForm, wanted.asksFor("clinical"))
        showIf(self.ui.clinicalTableFrame, bool(wanted.variables))
        self._show(jsonObject(self.parameters.clinical))

    def onChange(self) -> None:
        values = {name: self._read(widget) for name, widget in self._fields.items()}
        # values of variables another checkpoint asked for are kept
        self._keep({**jsonObject(self.parameters.clinical), **values} if self.parameters is not None else values)

    def onTable(self, table: Any) -> None:
        """Fill the form; the selector goes back to nothing, so that a table deleted later cannot fill it with another one."""
        if table is None or self.parameters is None:
            return
        self.attempt(lambda: self.fill(table))
        qt.QTimer.singleShot(0, self.forgetTable)

    def forgetTable(self) -> None:
        if self._connections:
            self.ui.clinicalTableSelector.setCurrentNode(None)

    def fill(self, table: Any) -> None:
        """Take the values of a table node; those it does not have stay.

        Raises:
            BadClinical: it has none of them, or one that cannot be meant.
        """
        found = clinical.fromTable(table, self._variables, self.parameters.caseId)
        self._keep({**jsonObject(self.parameters.clinical), **found})

    def onPlacePoint(self) -> None:
        self.attempt(self.placePoint)

    def placePoint(self) -> None:
        """Let the user click into the tumour; an earlier point is replaced."""
        node = getattr(self.parameters, POINT)
        if node is None:
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tumour point")
            node.CreateDefaultDisplayNodes()
            self.set(POINT, node)
        node.RemoveAllControlPoints()
        logic = slicer.modules.markups.logic()
        logic.SetActiveList(node)
        logic.StartPlaceMode(False)

    def _keep(self, values: dict[str, str]) -> None:
        values = {name: text for name, text in values.items() if text}
        self.set("clinical", json.dumps(values, ensure_ascii=False) if values else "")

    def _build(self, variables: tuple[clinical.Variable, ...]) -> None:
        if variables == self._variables:
            return
        self._variables = variables
        form = self.ui.clinicalForm.layout()
        for widget in self._fields.values():
            signal = _signal(widget)
            widget.disconnect(signal, self.onChange)
            self._connections.remove((widget, signal, self.onChange))
        while form.rowCount():
            form.removeRow(0)
        self._fields = {}
        for variable in variables:
            widget = qt.QComboBox() if variable.allowed else qt.QLineEdit()
            widget.name = f"clinical.{variable.name}"
            if variable.allowed:
                widget.addItems([NOT_KNOWN, *variable.allowed])
            else:
                widget.placeholderText = NOT_KNOWN
            label = qt.QLabel(variable.label)
            label.toolTip = widget.toolTip = variable.help
            form.addRow(label, widget)
            self._fields[variable.name] = widget
            self.connect(widget, _signal(widget), self.onChange)

    def _read(self, widget: Any) -> str:
        if isinstance(widget, qt.QComboBox):
            return widget.currentText if widget.currentIndex > 0 else ""
        return widget.text.strip()

    def _show(self, values: dict[str, Any]) -> None:
        for name, widget in self._fields.items():
            value = "" if values.get(name) is None else str(values[name])
            if self._read(widget) == value:
                continue
            widget.blockSignals(True)
            if isinstance(widget, qt.QComboBox):
                index = widget.findText(value) if value else 0
                if index < 0:  # of a case or a scene: shown as it is, and told to be wrong
                    widget.addItem(value)
                    index = widget.count - 1
                widget.currentIndex = index
            else:
                widget.text = value
            widget.blockSignals(False)


def _signal(widget: Any) -> str:
    return "currentIndexChanged(int)" if isinstance(widget, qt.QComboBox) else "textChanged(QString)"
