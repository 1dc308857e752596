"""The section Result: the answer as number, bar and words, what is doubtful about it, and what each input changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import qt

from HARM3SlicerLib import bars, words
from HARM3SlicerLib.part import Part, showIf, showText

SMALL = 0.05  # contributions below this share of probability never fill their bar


class ResultPart(Part):
    """Shows the values of the last prediction."""

    def setup(self) -> None:
        self._shown: Mapping[str, Any] | None = None
        self._inputs = Rows(self.ui.contributionsLabel, self.ui.contributionsFrame)
        self._variables = Rows(self.ui.attentionLabel, self.ui.attentionFrame)
        self.ui.probabilityBar.setStyleSheet("QProgressBar::chunk { background: transparent; }")

    def update(self) -> None:
        values = self.panel.result
        if values is self._shown:
            return
        self._shown = values
        ui, there = self.ui, bool(values)
        for widget in (ui.probabilityBar, ui.zoneBar, ui.scaleLabel, ui.resultInfoLabel, ui.intervalLabel):
            showIf(widget, there)
        ui.resultSection.collapsed = not there
        if not there:
            showText(ui.probabilityLabel, "")
            showText(ui.decisionLabel, "No prediction yet.")
            ui.decisionLabel.setStyleSheet("")
            showIf(ui.warningsLabel, False)
            self._inputs.show(())
            self._variables.show(())
            return
        self._showAnswer(values)
        warnings = words.warnings(values)
        showText(ui.warningsLabel, warnings)
        showIf(ui.warningsLabel, bool(warnings))
        self._showContributions(values.get("contributions", {}))
        self._showAttention(values.get("clinical", ()))
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
        """One row for each input, largest first."""
        largest = max([SMALL, *(abs(value) for value in contributions.values())])
        ordered = sorted(contributions.items(), key=lambda item: -abs(item[1]))
        self._inputs.show([(words.stage(name), bars.contribution(value, largest), words.points(value), "") for name, value in ordered])

    def _showAttention(self, variables: Sequence[Mapping[str, Any]]) -> None:
        """One row for each clinical variable that is known, the one with most attention first."""
        known = sorted((v for v in variables if v.get("value") is not None), key=lambda v: -float(v["attention"]))
        largest = max((float(v["attention"]) for v in known), default=0.0)
        rows = []
        for v in known:
            change = "" if v.get("change") is None else f"Knowing it changed the probability by {words.points(float(v['change']))}."
            given = f"{v['value']} {v.get('unit') or ''}".strip()
            number = words.percent(float(v["attention"]))
            bar = bars.share(float(v["attention"]), largest)
            rows.append((str(v.get("label") or v["name"]), bar, number, f"{given}. {change}".strip()))
        self._variables.show(rows)


class Rows:
    """Rows of name, bar and number under a heading; kept and reused, hidden where there are none."""

    def __init__(self, heading: Any, frame: Any) -> None:
        self._heading, self._frame = heading, frame
        self._rows: list[tuple[Any, Any, Any]] = []
        frame.layout().setColumnStretch(1, 1)

    def show(self, rows: Sequence[tuple[str, str, str, str]]) -> None:
        """Show rows of name, style sheet of the bar, number and tool tip."""
        showIf(self._heading, bool(rows))
        showIf(self._frame, bool(rows))
        while len(self._rows) < len(rows):
            self._add()
        for widgets, (name, style, number, tip) in zip(self._rows, rows):  # noqa: B905  more widgets than rows are hidden below
            showText(widgets[0], name)
            widgets[1].setStyleSheet(style)
            showText(widgets[2], number)
            for widget in widgets:
                widget.toolTip = tip
        for i, widgets in enumerate(self._rows):
            for widget in widgets:
                showIf(widget, i < len(rows))

    def _add(self) -> None:
        row = (qt.QLabel(), qt.QFrame(), qt.QLabel())
        row[1].minimumHeight = row[1].maximumHeight = 12
        row[0].minimumWidth, row[2].minimumWidth = 64, 72
        row[2].alignment = qt.Qt.AlignRight
        for column, widget in enumerate(row):
            self._frame.layout().addWidget(widget, len(self._rows), column)
        self._rows.append(row)
