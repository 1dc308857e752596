"""The section Report: the result as files, and the way to be rid of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import qt
import slicer

from HARM3Logic.errors import BadOption
from HARM3Logic.writing import write_text
from HARM3SlicerLib.part import Part


class ReportPart(Part):
    """Save, open, remove."""

    def setup(self) -> None:
        ui = self.ui
        self._hadResult = False
        self.connect(ui.saveReportButton, "clicked()", self.onSave)
        self.connect(ui.openReportButton, "clicked()", self.onOpen)
        self.connect(ui.removeResultsButton, "clicked()", self.onRemove)

    def update(self) -> None:
        ui, there = self.ui, bool(self.panel.result)
        ui.saveReportButton.enabled = there
        ui.openReportButton.enabled = there and self._report().is_file()
        ui.openReportButton.toolTip = "In the web browser" if ui.openReportButton.enabled else "The report's folder is not there any more."
        ui.removeResultsButton.enabled = there and not self.panel.runner.busy
        if there != self._hadResult:
            self._hadResult = there
            ui.reportSection.collapsed = not there

    def onSave(self) -> None:
        name = f"{self.panel.result['case_id']}_report"
        filters = "Report (*.html);;Values (*.json)" if self._report().is_file() else "Values (*.json)"
        path = qt.QFileDialog.getSaveFileName(self.panel.widget, "Save report", str(Path.home() / name), filters)
        if path:
            self.attempt(lambda: self.save(Path(path)))

    def save(self, path: Path) -> Path:
        """Write the report (.html) or the values (.json, and whatever has no other ending).

        Raises:
            BadOption: it cannot be written, or the report's folder is gone.
        """
        try:
            if path.suffix.lower() == ".html":
                write_text(path, withoutViewer(self._report().read_text(encoding="utf-8")))
            else:
                path = path if path.suffix else path.with_suffix(".json")
                values = {name: value for name, value in self.panel.result.items() if name != "folder"}
                write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BadOption(f"the report cannot be saved as {str(path)!r} ({error.strerror}).", "Choose another place.") from error
        return path

    def onOpen(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._report())))

    def onRemove(self) -> None:
        question = "Delete the heatmaps and the table of this prediction from the scene? Your own volumes stay."
        if slicer.app.testingEnabled() or slicer.util.confirmOkCancelDisplay(question, "HARM3Slicer"):
            self.attempt(self.panel.removeResults)

    def _report(self) -> Path:
        return Path(self.panel.result.get("folder", "")) / "report.html"


def withoutViewer(html: str) -> str:
    """A report that travels alone: its links to the slide viewer, which stays in the results folder, are taken out."""
    html = re.sub(r' ?<a href="slide\.html">.*?</a>\.?', "", html, flags=re.DOTALL)
    return re.sub(r'<a href="slide\.html#[^"]*">(.*?)</a>', r"\1", html, flags=re.DOTALL)
