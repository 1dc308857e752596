"""The section Inputs: which images and values go into the prediction. What is shown follows the checkpoint."""

from __future__ import annotations

import json
from typing import Any

import qt

from HARM3SlicerLib.choice import inputsOf
from HARM3SlicerLib.parameters import jsonObject
from HARM3SlicerLib.part import Part, showPath, showText
from HARM3SlicerLib.wanted import Variable
from HARM3SlicerLib.words import AMBER


class InputsPart(Part):
    """Selectors, slide, clinical form, sample case."""

    def setup(self) -> None:
        ui = self.ui
        self._fields: dict[str, Any] = {}  # clinical variable to its widget
        self._variables: tuple[Variable, ...] | None = None
        self._shown: Any = None
        self.bindPath(ui.slidePathLineEdit, "slide")
        self.connect(ui.caseIdLineEdit, "textChanged(QString)", self.onCaseId)
        self.connect(ui.sampleCaseButton, "clicked()", self.onSample)

    def update(self) -> None:
        ui, parameters, wanted = self.ui, self.parameters, self.panel.wanted
        idle = not self.panel.runner.busy
        ui.loadCaseButton.enabled = ui.sampleCaseButton.enabled = idle
        if self._shown is not wanted:
            self._follow(wanted)
        showPath(ui.slidePathLineEdit, parameters.slide)
        if ui.caseIdLineEdit.text != parameters.caseId:
            ui.caseIdLineEdit.text = parameters.caseId
        self._showClinical(jsonObject(parameters.clinical))
        given = self.panel.given()
        lacking, left = wanted.missing(given), wanted.left(given) if given else ""
        hint = self.panel.cardProblem or lacking or left
        showText(ui.inputsHintLabel, f"<span style='color:{AMBER}'>{hint}</span>" if hint else "")
        ui.inputsHintLabel.visible = bool(hint)

    def onCaseId(self, text: str) -> None:
        self.set("caseId", text.strip())

    def onSample(self) -> None:
        self.attempt(lambda: self.panel.work.loadSample(wait=False))

    def onClinical(self) -> None:
        values = {name: self._read(widget) for name, widget in self._fields.items()}
        # values of variables another checkpoint asked for are kept
        values = {**jsonObject(self.parameters.clinical), **values} if self.parameters is not None else values
        values = {name: text for name, text in values.items() if text}
        self.set("clinical", json.dumps(values, ensure_ascii=False) if values else "")

    def _follow(self, wanted: Any) -> None:
        """Show what the checkpoint asks for and nothing else."""
        ui, asks = self.ui, wanted.asksFor
        self._shown = wanted
        rows = {"t1": ("t1Label", "t1PreSelector", "t1PostSelector"), "t2": ("t2Label", "t2PreSelector", "t2PostSelector")}
        rows["tumour"] = ("tumourLabel", "tumourPreSelector", "tumourPostSelector")
        shown = {}
        for row, names in rows.items():
            for name, time in zip(names[1:], ("pre", "post")):  # noqa: B905
                shown[name] = asks(f"{row}_{time}")
            shown[names[0]] = shown[names[1]] or shown[names[2]]
        shown["preLabel"] = any(shown[names[1]] for names in rows.values())
        shown["postLabel"] = any(shown[names[2]] for names in rows.values())
        shown["mriFrame"] = shown["preLabel"] or shown["postLabel"]
        shown["ctLabel"] = shown["ctSelector"] = asks("ct")
        shown["tumourCtLabel"] = shown["tumourCtSelector"] = asks("tumour_ct")
        shown["tumourPointLabel"] = shown["tumourPointSelector"] = wanted.point
        shown["ctFrame"] = asks("ct") or asks("tumour_ct") or wanted.point
        shown["slideFrame"] = asks("slide")
        shown["clinicalForm"] = asks("clinical")
        shown["ignoreMasksCheckBox"] = bool(wanted.masks)
        for name, visible in shown.items():
            getattr(ui, name).visible = visible
        self._buildForm(wanted.variables)

    def _buildForm(self, variables: tuple[Variable, ...]) -> None:
        if variables == self._variables:
            return
        self._variables = variables
        form = self.ui.clinicalForm.layout()
        for widget in self._fields.values():
            signal = self._signal(widget)
            widget.disconnect(signal, self.onClinical)
            self._connections.remove((widget, signal, self.onClinical))
        while form.rowCount():
            form.removeRow(0)
        self._fields = {}
        for variable in variables:
            widget = qt.QComboBox() if variable.levels else qt.QLineEdit()
            widget.name = f"clinical.{variable.name}"
            if variable.levels:
                widget.addItems(["not known", *variable.levels])
            else:
                widget.placeholderText = "not known"
            unit = f" ({variable.unit})" if variable.unit else ""
            form.addRow(f"{variable.label}{unit}", widget)
            self._fields[variable.name] = widget
            self.connect(widget, self._signal(widget), self.onClinical)

    def _signal(self, widget: Any) -> str:
        return "currentIndexChanged(int)" if isinstance(widget, qt.QComboBox) else "textChanged(QString)"

    def _read(self, widget: Any) -> str:
        if isinstance(widget, qt.QComboBox):
            return widget.currentText if widget.currentIndex > 0 else ""
        return widget.text.strip()

    def _showClinical(self, values: dict[str, Any]) -> None:
        for name, widget in self._fields.items():
            value = str(values.get(name, ""))
            if self._read(widget) == value:
                continue
            widget.blockSignals(True)
            if isinstance(widget, qt.QComboBox):
                widget.currentIndex = max(widget.findText(value), 0) if value else 0
            else:
                widget.text = value
            widget.blockSignals(False)


def givenInputs(parameters: Any, wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is chosen, as far as the checkpoint asks for it; and the other fields of the case."""
    inputs, fields = inputsOf(parameters)
    if not wanted.asksFor("slide"):
        fields.pop("slide_mpp", None)
    kept = {name: value for name, value in inputs.items() if wanted.asksFor(name) or (name == "tumour_point" and wanted.point)}
    if "tumour_point" in kept and kept["tumour_point"].GetNumberOfControlPoints() == 0:
        del kept["tumour_point"]
    if kept.get("clinical"):
        names = {variable.name for variable in wanted.variables}
        kept["clinical"] = {name: text for name, text in kept["clinical"].items() if not names or name in names}
    return kept, fields
