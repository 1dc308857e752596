"""The section Inputs: which images go into the prediction. What is shown follows the checkpoint."""

from __future__ import annotations

from html import escape
from typing import Any

from HARM3SlicerLib.choice import inputsOf
from HARM3SlicerLib.parameters import NODES, POINT
from HARM3SlicerLib.part import Part, showIf, showName, showPath, showText
from HARM3SlicerLib.words import AMBER


class InputsPart(Part):
    """Selectors, slide, sample case."""

    def setup(self) -> None:
        ui = self.ui
        self._shown: Any = None
        self._tips: dict[str, tuple[str, str]] = {}
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
        if ui.caseIdLineEdit.text.strip() != parameters.caseId:  # a space at the end is on its way to the next word
            ui.caseIdLineEdit.text = parameters.caseId
        for member in (*NODES.values(), POINT):
            node = getattr(parameters, member)
            showName(getattr(ui, f"{member}Selector"), node.GetName() or "" if node is not None else "", self._tips)
        showName(ui.slidePathLineEdit, parameters.slide, self._tips)
        given = self.panel.given()
        hint = self.panel.lacking() or (wanted.left(given) if given else "")
        showText(ui.inputsHintLabel, f"<span style='color:{AMBER}'>{escape(hint, quote=False)}</span>" if hint else "")
        showIf(ui.inputsHintLabel, bool(hint))

    def onCaseId(self, text: str) -> None:
        self.set("caseId", text.strip())

    def onSample(self) -> None:
        self.attempt(lambda: self.panel.work.loadSample(wait=False))

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
        shown["tumourPointLabel"] = shown["tumourPointSelector"] = shown["placePointButton"] = wanted.point
        shown["ctFrame"] = asks("ct") or asks("tumour_ct") or wanted.point
        shown["slideFrame"] = asks("slide")
        shown["ignoreMasksCheckBox"] = bool(wanted.masks)
        for name, visible in shown.items():
            showIf(getattr(ui, name), visible)


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
