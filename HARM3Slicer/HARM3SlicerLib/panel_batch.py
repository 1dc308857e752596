"""The section Batch: a cohort table predicted case by case; each row opens as a case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt

from HARM3SlicerLib.batch import cells, readRows
from HARM3SlicerLib.part import Part, showIf, showName, showPath, showText

TITLES = ("Case", "Prob.", "Interval", "Response", "Truth")


class BatchPart(Part):
    """Cohort, output folder, table."""

    def setup(self) -> None:
        ui = self.ui
        self._shown: Any = None
        self._file: Any = None
        self._tips: dict[str, tuple[str, str]] = {}
        self._saved: list[dict[str, Any]] = []
        self.bindPath(ui.batchCohortPathLineEdit, "batchCohort")
        self.bindPath(ui.batchOutputPathLineEdit, "batchOutput")
        ui.batchTable.setColumnCount(len(TITLES))
        ui.batchTable.setHorizontalHeaderLabels(list(TITLES))
        ui.batchTable.textElideMode = qt.Qt.ElideMiddle
        ui.batchTable.verticalHeader().hide()
        ui.batchTable.verticalHeader().setDefaultSectionSize(22)
        ui.batchTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        ui.batchTable.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        self.connect(ui.batchRunButton, "clicked()", self.onRun)
        self.connect(ui.batchOpenButton, "clicked()", self.onOpenCase)
        self.connect(ui.batchTable, "itemSelectionChanged()", self.onSelect)

    def update(self) -> None:
        ui, parameters, runner = self.ui, self.parameters, self.panel.runner
        showPath(ui.batchCohortPathLineEdit, parameters.batchCohort)
        showPath(ui.batchOutputPathLineEdit, parameters.batchOutput)
        showName(ui.batchCohortPathLineEdit, parameters.batchCohort, self._tips)
        showName(ui.batchOutputPathLineEdit, parameters.batchOutput, self._tips)
        running = runner.job is not None and runner.job.kind == "batch"
        ui.batchRunButton.text = "Cancel batch" if running else "Run batch"
        ready = bool(parameters.batchCohort and parameters.batchOutput) and not runner.busy
        ui.batchRunButton.enabled = running or ready
        self._showRows(self._rows(running))
        self._showOpen()

    def onRun(self) -> None:
        if self.panel.runner.busy:
            self.panel.runner.cancel()
            return
        p = self.parameters
        self.attempt(
            lambda: self.panel.work.predictBatch(
                p.batchCohort, p.batchOutput, p.checkpoint or None, p.device, wait=False, ignoreMasks=p.ignoreMasks
            )
        )

    def onSelect(self) -> None:
        self._showOpen()

    def onOpenCase(self) -> None:
        self.attempt(self.openCase)

    def openCase(self) -> None:
        """Load the images and the prediction of the selected row.

        Raises:
            BadOption: the row's case is not in the cohort table any more.
        """
        row = self.ui.batchTable.currentRow()
        if 0 <= row < len(self._shown):
            p = self.parameters
            self.panel.work.openBatchCase(p.batchCohort, p.batchFolder or p.batchOutput, str(self._shown[row]["case_id"]), wait=False)

    def _rows(self, running: bool) -> list[dict[str, Any]]:
        """Rows as they come, or those of the output folder the scene remembers."""
        live = self.panel.work.batchRows
        if live or running:
            return list(live)
        file = Path(self.parameters.batchFolder) / "predictions.csv" if self.parameters.batchFolder else None
        key = (file, file.stat().st_mtime_ns) if file is not None and file.is_file() else None
        if key != self._file:
            self._file, self._saved = key, readRows(file) if key else []
        return self._saved

    def _showRows(self, rows: list[dict[str, Any]]) -> None:
        ui, table = self.ui, self.ui.batchTable
        failures = self.panel.work.batchFailures
        said = f"{len(rows)} predicted" + (f", {len(failures)} failed: {failures[0]}" if failures else "") + "." if rows or failures else ""
        showText(ui.batchLabel, said)
        showIf(ui.batchLabel, bool(said))
        showIf(table, bool(rows))
        if rows == self._shown:
            return
        first = 0 if self._shown is None or rows[: len(self._shown)] != self._shown else len(self._shown)
        self._shown = list(rows)
        table.setRowCount(len(rows))
        for i in range(first, len(rows)):
            for column, text in enumerate(cells(rows[i])):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(i, column, item)

    def _showOpen(self) -> None:
        ui = self.ui
        ui.batchOpenButton.enabled = bool(self._shown) and ui.batchTable.currentRow() >= 0 and not self.panel.runner.busy
