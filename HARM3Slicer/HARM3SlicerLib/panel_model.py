"""The section Model: the checkpoint and what it says of itself, the device, and what this computer can do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from html import escape
from pathlib import Path

import qt

from HARM3Logic import card
from HARM3Logic.errors import HARM3Error
from HARM3SlicerLib import words
from HARM3SlicerLib.part import Part, showIf, showName, showPath, showText
from HARM3SlicerLib.wanted import Wanted

CHUNK = 1 << 21  # bytes hashed in one turn of the event loop
DEVICES = ("auto", "cpu", "cuda", "mps")


class ModelPart(Part):
    """Checkpoint, card, device."""

    def setup(self) -> None:
        ui = self.ui
        self._file: Path | None = None
        self._digest = ""
        self._tips: dict[str, tuple[str, str]] = {}
        self._hashing: Iterator[str] | None = None
        self._timer = qt.QTimer()
        self.bindPath(ui.checkpointPathLineEdit, "checkpoint")
        ui.deviceComboBox.addItems(list(DEVICES))
        self.connect(self._timer, "timeout()", self.onTimer)
        self.connect(ui.deviceComboBox, "currentTextChanged(QString)", self.onDevice)
        self.connect(ui.checkComputerButton, "clicked()", self.onCheck)
        self.connect(ui.modelSection, "contentsCollapsed(bool)", self.onCollapsed)

    def close(self) -> None:
        self._timer.stop()
        super().close()

    def update(self) -> None:
        ui, parameters = self.ui, self.parameters
        showPath(ui.checkpointPathLineEdit, parameters.checkpoint)
        self._showDevices(parameters.device)
        ui.checkComputerButton.enabled = not self.panel.runner.busy
        found = self.panel.work.computer
        showText(ui.computerLabel, words.computer(found) if found else "")
        showIf(ui.computerLabel, bool(found))
        problem = self.panel.cardProblem
        name = "demo model" if not parameters.checkpoint else Path(parameters.checkpoint).name
        ui.modelSection.text = f"Model: {words.middle(name)}".replace("&", "&&")  # a single one underlines what follows
        showName(ui.checkpointPathLineEdit, parameters.checkpoint, self._tips)
        if problem:
            showText(ui.cardLabel, f"<span style='color:{words.RED}'>{escape(problem, quote=False)}</span>")
        else:
            showText(ui.cardLabel, words.card(self.panel.wanted.card, self._digest))
            self._hash()

    def onDevice(self, device: str) -> None:
        if device:
            self.set("device", device)

    def onCheck(self) -> None:
        self.attempt(lambda: self.panel.work.checkComputer(wait=False))

    def onCollapsed(self, collapsed: bool) -> None:
        if not collapsed and self.parameters is not None:
            self._hash()

    def onTimer(self) -> None:
        """Hash the next piece of the file."""
        if self._hashing is None:
            self._timer.stop()
            return
        self._digest = next(self._hashing)
        if self._digest:
            self._hashing = None
            self._timer.stop()
            self.panel.updateGUI()

    def _hash(self) -> None:
        """Begin to hash the checkpoint when somebody can see the result and the file is another one."""
        file = self.panel.checkpointFile
        if self.ui.modelSection.collapsed or file == self._file:
            return
        self._file, self._digest = file, ""
        self._hashing = pieces(file) if file is not None else None
        self._timer.start(0)

    def _showDevices(self, device: str) -> None:
        box = self.ui.deviceComboBox
        found = [str(name).split(" ")[0] for name in self.panel.work.computer.get("devices", ())]
        for name in (*found, device):
            if box.findText(name) < 0:
                box.addItem(name)
        if box.currentText != device:
            box.currentIndex = box.findText(device)


class CardReader:
    """Reads the head of the chosen checkpoint, again only when the file changed."""

    def __init__(self) -> None:
        self._key: object = None
        self._found: tuple[Path | None, Wanted | None, str] = (None, None, "")

    def read(self, checkpoint: str) -> tuple[Path | None, Wanted | None, str]:
        """File, what its card asks for, and what is wrong with it in one sentence."""
        try:
            path = Path(checkpoint) if checkpoint else card.default()
            stat = path.stat() if path.is_file() else None
            key = (str(path), stat and (stat.st_mtime_ns, stat.st_size))
            if key != self._key:
                self._key = key
                self._found = (path, Wanted.fromCard(card.read_header(path)), "")
        except HARM3Error as error:
            self._found = (None, None, str(error))
        return self._found


def pieces(file: Path) -> Iterator[str]:
    """The SHA-256 of a file as the last value; before it, empty texts."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while data := stream.read(CHUNK):
            digest.update(data)
            yield ""
    yield digest.hexdigest()
