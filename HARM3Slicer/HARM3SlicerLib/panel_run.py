"""Predict, progress, what went wrong, and the log."""

from __future__ import annotations

from html import escape

import qt
import slicer

from HARM3SlicerLib import words
from HARM3SlicerLib.part import Part, showIf, showText
from HARM3SlicerLib.process import State

PREDICT = "QPushButton { background: #1565c0; color: white; border: none; border-radius: 4px; font-size: 15px; font-weight: bold; } "
PREDICT += "QPushButton:hover { background: #1976d2; } QPushButton:pressed { background: #0d47a1; } "
PREDICT += "QPushButton:disabled { background: #b7c0c9; color: #eceff1; }"
CANCEL = PREDICT.replace("#1565c0", "#b23b3b").replace("#1976d2", "#c24a4a").replace("#0d47a1", "#8e2b2b")


class RunPart(Part):
    """The one button that matters."""

    def setup(self) -> None:
        self._looks = ""
        self._logged: tuple[str, ...] = ()
        self.connect(self.ui.predictButton, "clicked()", self.onPredict)
        self.connect(self.ui.copyDetailsButton, "clicked()", self.onCopy)

    def update(self) -> None:
        ui, runner = self.ui, self.panel.runner
        busy = runner.busy
        lacking = self.panel.lacking()
        ui.predictButton.text = "Cancel" if busy else "Predict"
        ui.predictButton.enabled = runner.state is not State.CANCELLING and (busy or not lacking)
        ui.predictButton.toolTip = "Stop the work." if busy else lacking or "Ask the model. Nothing leaves this computer."
        looks = CANCEL if busy else PREDICT
        if looks != self._looks:
            self._looks = looks
            ui.predictButton.setStyleSheet(looks)
        value = runner.progress if busy else None
        showIf(ui.progressBar, busy)
        ui.progressBar.maximum = 1000 if value is not None else 0  # 0: busy, nobody knows how long
        if value is not None:
            ui.progressBar.value = round(1000 * value)
        self._say()
        self._showLog()

    def onPredict(self) -> None:
        if self.panel.runner.busy:
            self.panel.runner.cancel()
        else:
            self.attempt(self.panel.predict)

    def onCopy(self) -> None:
        slicer.app.clipboard().setText(self.details())

    def details(self) -> str:
        """Message, details and log as text."""
        runner = self.panel.runner
        failure = runner.failure
        head = [failure.message, failure.advice, failure.code, failure.details] if failure is not None else [runner.stage]
        return "\n".join([text for text in head if text] + ["", *runner.client.log])

    def _say(self) -> None:
        ui, runner = self.ui, self.panel.runner
        failure = runner.failure
        if failure is not None and not runner.busy:
            text = f"<span style='color:{words.RED}'><b>{escape(failure.message[:1].upper() + failure.message[1:])}</b></span>"
            text += f"<br>{escape(failure.advice)}" if failure.advice else ""
        else:
            parts = [words.stage(runner.stage), words.duration(runner.remainingS)]
            text = escape(", ".join(part for part in parts if part))
        showText(ui.stageLabel, text)
        showIf(ui.stageLabel, bool(text))
        showIf(ui.copyDetailsButton, failure is not None or bool(runner.client.log))

    def _showLog(self) -> None:
        """Append what is new; write all of it again only where the beginning was dropped."""
        log, edit = tuple(self.panel.runner.client.log), self.ui.logTextEdit
        if log == self._logged:
            return
        if log[: len(self._logged)] == self._logged:
            for line in log[len(self._logged) :]:
                edit.appendPlainText(line)
        else:
            edit.setPlainText("\n".join(log))
        self._logged = log
        edit.moveCursor(qt.QTextCursor.End)
