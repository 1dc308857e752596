"""The sections Heatmaps and Slide: how the maps look in the views, and the tiles the model looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer

from HARM3SlicerLib import words
from HARM3SlicerLib.jobs import SLICE_S
from HARM3SlicerLib.part import Part, showIf, showText
from HARM3SlicerLib.steps import named

ROW_PX = 22
MOST_ROWS = 12  # of the tiles; more are scrolled


class Views:
    """A run in the slice views.

    Args:
        onError: told an exception while the views follow the widgets.
    """

    def __init__(self, onError: Callable[[Exception], None]) -> None:
        self.display: Any = None  # a heatmaps.HeatmapDisplay
        self.linking = ""  # how the views are linked, in a sentence
        self._onError = onError
        self._left: int | None = None  # the layout that came back when the user left the module
        self._wanted: dict[str, Any] = {}  # the newest look the widgets ask for
        self._steps: Iterator[str] | None = None
        self._timer = qt.QTimer()
        self._timer.connect("timeout()", self.onTimer)

    def showSteps(self, run: Any, parameters: Any) -> Iterator[str]:
        """Put a run into its layout."""
        from HARM3SlicerLib import layout
        from HARM3SlicerLib.heatmaps import HeatmapDisplay

        self.forget()  # what is drawn now is drawn anew
        linking = yield from named("arranging the views", layout.showSteps(run))
        display = HeatmapDisplay(run, **look(parameters))
        yield from named("drawing the heatmaps", display.applySteps())
        self.display, self.linking = display, linking

    def follow(self, parameters: Any) -> None:
        """Bring the look of the maps to what the parameters say, in the next turns of the event loop; only the newest look counts."""
        self._wanted = look(parameters)
        if self._isThere() and not self._timer.active and self._differs():
            self._timer.start(0)

    def onTimer(self) -> None:
        """Work at the newest look for a moment; a look once begun is finished first."""
        try:
            self._advance()
        except Exception as error:
            self._rest()
            self._onError(error)

    def forget(self) -> None:
        self._rest()
        self.display, self.linking, self._left = None, "", None

    def leave(self) -> None:
        """The user opens another module: give it the layout from before."""
        from HARM3SlicerLib import layout

        left = layout.restore()
        self._left = self._left if left is None else left

    def enter(self) -> None:
        """The user comes back to the module, and the views with them."""
        from HARM3SlicerLib import layout

        left, self._left = self._left, None
        if left is not None and self._isThere():
            layout.comeBack(left)

    def close(self) -> None:
        """Let go of everything."""
        self.forget()
        self._timer.disconnect("timeout()", self.onTimer)

    def _advance(self) -> None:
        end = time.monotonic() + SLICE_S
        while time.monotonic() < end:
            if self._steps is None:
                if not self._isThere() or not self._differs():
                    self._rest()
                    return
                self._steps = self.display.changeSteps(**self._wanted)
            if next(self._steps, None) is None:
                self._steps = None

    def _differs(self) -> bool:
        return any(getattr(self.display, name) != value for name, value in self._wanted.items())

    def _isThere(self) -> bool:
        return self.display is not None and self.display.run.table.GetScene() is not None

    def _rest(self) -> None:
        self._steps = None
        self._timer.stop()


def look(parameters: Any) -> dict[str, Any]:
    """What the parameters say of the look of a `HeatmapDisplay`."""
    p = parameters
    return {
        "opacity": p.opacity,
        "threshold": p.threshold,
        "color": p.color,
        "jointScale": p.jointScale,
        "outline": p.outline,
        "visible": p.heatVisible,
    }


class HeatmapsPart(Part):
    """Opacity, threshold, colours, outlines, blink."""

    def setup(self) -> None:
        ui = self.ui
        self._shortcut: Any = None
        self._hadResult = False
        self.connect(ui.colorComboBox, "currentIndexChanged(int)", self.onColor)
        self.connect(ui.blinkButton, "toggled(bool)", self.onBlink)
        self.connect(ui.layoutButton, "clicked()", self.onLayout)
        self.connect(ui.previousLayoutButton, "clicked()", self.onPreviousLayout)

    def close(self) -> None:
        self.leave()
        super().close()

    def enter(self) -> None:
        """Listen to the blink key, in the whole main window; only while the module is shown."""
        window = slicer.util.mainWindow()
        if window is None or self._shortcut is not None:
            return
        self._shortcut = qt.QShortcut(window)
        self._shortcut.setKey(qt.QKeySequence("b"))
        self.connect(self._shortcut, "activated()", self.onBlinkKey)

    def leave(self) -> None:
        if self._shortcut is not None:
            self._shortcut.disconnect("activated()", self.onBlinkKey)
            self._connections.remove((self._shortcut, "activated()", self.onBlinkKey))
            self._shortcut.deleteLater()
            self._shortcut = None

    def update(self) -> None:
        ui, parameters, values = self.ui, self.parameters, self.panel.result
        there = self.panel.work.run is not None
        self._showColors(parameters.color)
        for widget in (ui.blinkButton, ui.layoutButton, ui.previousLayoutButton):
            widget.enabled = there
        if ui.blinkButton.checked != parameters.heatVisible:
            ui.blinkButton.checked = parameters.heatVisible
        ui.blinkButton.text = "Hide (B)" if parameters.heatVisible else "Show (B)"
        share = words.heatShare(values) if values else ""
        showText(ui.heatShareLabel, " ".join(text for text in (share, self.panel.views.linking) if text))
        showIf(ui.heatShareLabel, bool(share))
        if there != self._hadResult:
            self._hadResult = there
            ui.heatmapsSection.collapsed = not there
        self.panel.views.follow(parameters)

    def onColor(self, index: int) -> None:
        identity = self.ui.colorComboBox.itemData(index)
        if identity:
            self.set("color", identity)

    def onBlink(self, shown: bool) -> None:
        self.set("heatVisible", shown)

    def onBlinkKey(self) -> None:
        if self.parameters is not None and self.panel.work.run is not None:
            self.set("heatVisible", not self.parameters.heatVisible)

    def onLayout(self) -> None:
        self.attempt(self.panel.showRun)

    def onPreviousLayout(self) -> None:
        from HARM3SlicerLib import layout

        self.attempt(layout.restore)

    def _showColors(self, color: str) -> None:
        box = self.ui.colorComboBox
        if box.count == 0:
            from HARM3SlicerLib.heatmaps import COLORS

            box.blockSignals(True)
            for name, identity in COLORS.items():
                box.addItem(name, identity)
            box.blockSignals(False)
        index = box.findData(color)
        if index < 0:  # a scene of somebody who chose another colour node
            box.addItem(color, color)
            index = box.count - 1
        if box.currentIndex != index:
            box.blockSignals(True)
            box.currentIndex = index
            box.blockSignals(False)


class SlidePart(Part):
    """The ranked tiles; a row jumps the slide's view."""

    def setup(self) -> None:
        self._shown: Any = None
        table = self.ui.tilesTable
        table.setColumnCount(4)
        table.setHorizontalHeaderLabels(["Rank", "Attention", "x (px)", "y (px)"])
        table.verticalHeader().hide()
        table.verticalHeader().setDefaultSectionSize(ROW_PX)
        table.horizontalHeader().setSectionResizeMode(qt.QHeaderView.Stretch)
        self.connect(table, "itemSelectionChanged()", self.onTile)
        self.connect(self.ui.openSlideViewerButton, "clicked()", self.onOpenViewer)

    def update(self) -> None:
        values = self.panel.result
        showIf(self.ui.openSlideViewerButton, bool(values) and self._viewer().is_file())
        if values is self._shown:
            return
        self._shown = values
        tiles, table = values.get("tiles", []), self.ui.tilesTable
        table.blockSignals(True)
        table.setRowCount(len(tiles))
        for i, tile in enumerate(tiles):
            texts = (str(tile["rank"]), f"{100 * tile['weight']:.1f} %", str(tile["x_px"]), str(tile["y_px"]))
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setTextAlignment(qt.Qt.AlignCenter)
                table.setItem(i, column, item)
        table.clearSelection()
        table.blockSignals(False)
        table.minimumHeight = table.maximumHeight = (min(len(tiles), MOST_ROWS) + 1) * ROW_PX + 2  # one is the header
        self.ui.slideSection.collapsed = not tiles
        showIf(table, bool(tiles))
        showText(self.ui.tilesLabel, "Tiles with most attention; a click jumps to the tile." if tiles else "No slide in this prediction.")

    def onOpenViewer(self) -> None:
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(self._viewer())))

    def _viewer(self) -> Path:
        """The page beside the prediction, which the worker writes where the page's library is installed."""
        return Path(self.panel.result.get("folder", "")) / "slide.html"

    def onTile(self) -> None:
        from HARM3SlicerLib import layout

        row, run = self.ui.tilesTable.currentRow(), self.panel.work.run
        if row >= 0 and run is not None:
            self.attempt(lambda: layout.jumpToTile(run, row))
