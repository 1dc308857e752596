"""The section Result: the answer as number, bar and words, what is doubtful about it, and what each input changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qt

from HARM3SlicerLib import bars, words
from HARM3SlicerLib.part import Part, showText

SMALL = 0.05  # contributions below this share of probability never fill their bar


class ResultPart(Part):
    """Shows the values of the last prediction."""

    def setup(self) -> None:
        self._shown: Mapping[str, Any] | None = None
        self._rows: list[tuple[Any, Any, Any]] = []  # label, bar, number of each contribution
        self.ui.probabilityBar.setStyleSheet("QProgressBar::chunk { background: transparent; }")

    def update(self) -> None:
        values = self.panel.result
        if values is self._shown:
            return
        self._shown = values
        ui, there = self.ui, bool(values)
        for widget in (ui.probabilityBar, ui.zoneBar, ui.scaleLabel, ui.contributionsFrame, ui.resultInfoLabel, ui.intervalLabel):
            widget.visible = there
        ui.resultSection.collapsed = not there
        if not there:
            showText(ui.probabilityLabel, "")
            showText(ui.decisionLabel, "No prediction yet.")
            ui.decisionLabel.setStyleSheet("")
            ui.warningsLabel.visible = ui.contributionsLabel.visible = False
            return
        self._showAnswer(values)
        warnings = words.warnings(values)
        showText(ui.warningsLabel, warnings)
        ui.warningsLabel.visible = bool(warnings)
        self._showContributions(values.get("contributions", {}))
        showText(ui.resultInfoLabel, words.resultInfo(values))

    def _showAnswer(self, values: Mapping[str, Any]) -> None:
        ui = self.ui
        decision, color = words.decision(values)
        showText(ui.probabilityLabel, words.percent(values["probability"]))
        ui.probabilityLabel.setStyleSheet("font-size: 38px; font-weight: bold;")
        showText(ui.decisionLabel, decision)
        ui.decisionLabel.setStyleSheet(f"font-size: 18px; font-weight: bold; color: {color};")
        showText(ui.intervalLabel, words.intervalLine(values))
        ui.probabilityBar.value = round(1000 * values["probability"])
        ui.probabilityBar.setStyleSheet(bars.probability(values["probability"], tuple(values["interval"]), values["threshold"]))
        ui.zoneBar.setStyleSheet(bars.zones(values["threshold"], tuple(values["uncertain_zone"])))
        showText(ui.scaleLabel, words.scaleLine(values))

    def _showContributions(self, contributions: Mapping[str, float]) -> None:
        """One row for each input, largest first; rows are kept and reused."""
        ui = self.ui
        ui.contributionsLabel.visible = ui.contributionsFrame.visible = bool(contributions)
        largest = max((abs(value) for value in contributions.values()), default=0.0)
        largest = max(largest, SMALL)
        grid = ui.contributionsFrame.layout()
        grid.setColumnStretch(1, 1)
        ordered = sorted(contributions.items(), key=lambda item: -abs(item[1]))
        while len(self._rows) < len(ordered):
            row = (qt.QLabel(), qt.QFrame(), qt.QLabel())
            row[1].minimumHeight = row[1].maximumHeight = 12
            row[0].minimumWidth, row[2].minimumWidth = 64, 72
            row[2].alignment = qt.Qt.AlignRight
            for column, widget in enumerate(row):
                grid.addWidget(widget, len(self._rows), column)
            self._rows.append(row)
        for row, (name, value) in zip(self._rows, ordered):  # noqa: B905  more rows than inputs are hidden below
            showText(row[0], words.stage(name))
            row[1].setStyleSheet(bars.contribution(value, largest))
            showText(row[2], words.points(value))
        for i, row in enumerate(self._rows):
            for widget in row:
                widget.visible = i < len(ordered)
