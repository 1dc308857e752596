"""Stand-ins for CTK's slider, spin box and path edit."""

import fnmatch
from pathlib import PurePath
from typing import Any

from PySide6.QtCore import Property, QSettings, Qt, Signal
from PySide6.QtWidgets import QComboBox, QDoubleSpinBox, QHBoxLayout, QSizePolicy, QSlider, QToolButton, QWidget

from .stored import stored


class ctkSliderWidget(QWidget):
    """A slider and a spin box named "Slider" and "SpinBox", as in CTK; values are clamped and rounded to `decimals`."""

    _exposed = True
    valueChanged = Signal(float)
    valueIsChanging = Signal(float)
    decimalsChanged = Signal(int)
    pageStep = stored(float, "pageStep", 1.0)
    tickInterval = stored(float, "tickInterval", 0.0)
    tracking = stored(bool, "tracking", True)
    popupSlider = stored(bool, "popupSlider", False)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._slider, self._spin = QSlider(Qt.Orientation.Horizontal), QDoubleSpinBox()
        self._slider.setObjectName("Slider")
        self._spin.setObjectName("SpinBox")
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._slider, 1)
        layout.addWidget(self._spin)
        self._spin.setRange(0, 99)
        self._ticks()
        self._slider.valueChanged.connect(lambda n: self._spin.setValue(self._spin.minimum() + n * self._spin.singleStep()))
        self._spin.valueChanged.connect(self._moved)

    def _ticks(self) -> None:
        was = self._slider.blockSignals(True)
        low, high, step = self._spin.minimum(), self._spin.maximum(), self._spin.singleStep()
        self._slider.setRange(0, round(min(max((high - low) / step, 0), 1e9)) if step > 0 else 0)
        self._slider.setValue(round((self._spin.value() - low) / step) if step > 0 else 0)
        self._slider.blockSignals(was)

    def _moved(self, value: float) -> None:
        self._ticks()
        self.valueIsChanging.emit(value)
        self.valueChanged.emit(value)

    def _through(getter: str, setter: str) -> Any:  # type: ignore[misc]
        def write(self: Any, value: Any) -> None:
            getattr(self._spin, setter)(value)
            self._ticks()

        return lambda self: getattr(self._spin, getter)(), write

    _minimum, setMinimum = _through("minimum", "setMinimum")
    _maximum, setMaximum = _through("maximum", "setMaximum")
    _step, setSingleStep = _through("singleStep", "setSingleStep")
    _value, setValue = _through("value", "setValue")
    _decimals, setDecimals = _through("decimals", "setDecimals")
    _suffix, setSuffix = _through("suffix", "setSuffix")
    _prefix, setPrefix = _through("prefix", "setPrefix")
    minimum = Property(float, _minimum, setMinimum)
    maximum = Property(float, _maximum, setMaximum)
    singleStep = Property(float, _step, setSingleStep)
    value = Property(float, _value, setValue)
    decimals = Property(int, _decimals, setDecimals)
    suffix = Property(str, _suffix, setSuffix)
    prefix = Property(str, _prefix, setPrefix)
    spinBoxVisible = Property(bool, lambda self: not self._spin.isHidden(), lambda self, on: self._spin.setVisible(on))

    def setRange(self, low: float, high: float) -> None:
        self._spin.setRange(low, high)
        self._ticks()


class ctkDoubleSpinBox(QDoubleSpinBox):
    _exposed = True
    decimalsChanged = Signal(int)


class ctkPathLineEdit(QWidget):
    """A path with history and browse button: an empty or filter-rejected text emits no `currentPathChanged`."""

    _exposed = True
    Dirs, Files, Drives, NoSymLinks, Readable, Writable, Executable = 0x001, 0x002, 0x004, 0x008, 0x010, 0x020, 0x040
    Hidden, AllDirs, CaseSensitive, NoDotAndDotDot, NoDot, NoDotDot = 0x100, 0x400, 0x800, 0x1000, 0x2000, 0x4000
    currentPathChanged = Signal(str)
    validInputChanged = Signal(bool)
    label = stored(str, "label", "")
    settingKey = stored(str, "settingKey", "", "retrieveHistory")
    filters = stored(int, "filters", 0x1000 | 0x007 | 0x010 | 0x040)
    sizeAdjustPolicy = stored(int, "sizeAdjustPolicy", 2)
    minimumContentsLength = stored(int, "minimumContentsLength", 0)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._combo, self._browse, self._patterns, self._valid = QComboBox(), QToolButton(), [], False
        self._combo.setEditable(True)
        self._combo.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self._combo.setMinimumWidth(60)
        self._combo.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._browse.setText("...")
        self._browse.clicked.connect(self.browse)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(self._combo)
        layout.addWidget(self._browse)
        self._combo.lineEdit().textChanged.connect(self._check)

    def _check(self, path: str) -> None:
        was, self._valid = self._valid, bool(path) and self._accepts(path)
        if self._valid:
            self.currentPathChanged.emit(path)
        if self._valid != was:
            self.validInputChanged.emit(self._valid)

    def _accepts(self, path: str) -> bool:
        patterns = [p for f in self._patterns for p in f.rpartition("(")[2].rstrip(")").split()]
        return not patterns or any(fnmatch.fnmatch(PurePath(path).name, p) for p in patterns)

    def _set_patterns(self, patterns: list[str]) -> None:
        self._patterns = list(patterns)

    def _path(self) -> str:
        return self._combo.currentText()

    def setCurrentPath(self, path: str) -> None:
        self._combo.lineEdit().setText(path)

    currentPath = Property(str, _path, setCurrentPath)
    nameFilters = Property("QStringList", lambda self: self._patterns, _set_patterns)
    showBrowseButton = Property(bool, lambda self: not self._browse.isHidden(), lambda self, on: self._browse.setVisible(on))
    showHistoryButton = stored(bool, "showHistoryButton", True)

    def comboBox(self) -> QComboBox:
        return self._combo

    def browse(self) -> None:
        from . import qt_module

        which = "getOpenFileName" if self.filters & self.Files else "getExistingDirectory"
        if path := qt_module.answer(f"QFileDialog.{which}", ""):
            self.setCurrentPath(path)

    def _history(self) -> tuple[str, list[str]]:
        key = f"ctkPathLineEdit/{self.settingKey or self.objectName()}"
        known = QSettings().value(key) or []
        return key, [known] if isinstance(known, str) else list(known)

    def addCurrentPathToHistory(self) -> None:
        key, known = self._history()
        QSettings().setValue(key, [self._path(), *(path for path in known if path != self._path())])
        self._combo.insertItem(0, self._path())

    def retrieveHistory(self) -> None:
        """List what is known under the key; an empty edit takes the last path of it."""
        path, known = self._path(), self._history()[1]
        self._combo.clear()
        self._combo.addItems(known)
        self.setCurrentPath(path or next(iter(known), ""))

    def setCurrentDirectory(self, directory: str) -> None:
        """Only steers the browse dialog."""
