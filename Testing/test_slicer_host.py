"""The stand-in for Slicer's window must be as nasty as Slicer: each test holds one fact seen there."""

import gc
import weakref
from pathlib import Path

import pytest

pytest.importorskip("PySide6")


# Properties and slots


def test_a_property_is_a_value_and_a_slot_is_a_call(qt):
    button = qt.QPushButton("Predict")
    with pytest.raises(TypeError, match="'str' object is not callable"):
        button.text()
    button.enabled = False
    assert not button.isEnabled()
    assert button.isEnabled  # the forgotten () is always true
    button.setText("Cancel")
    assert button.text == "Cancel"
    button.name = "predictButton"
    assert button.objectName == "predictButton"


def test_unknown_names_are_errors(qt):
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="no attribute named 'txt'"):
        button.txt  # noqa: B018
    with pytest.raises(AttributeError, match="creating new attributes"):
        button.txt = "x"
    with pytest.raises(AttributeError):
        button.clicked = 3
    with pytest.raises(AttributeError):
        qt.QPushBotton  # noqa: B018
    with pytest.raises(AttributeError):
        qt.Qt.AlignLefft  # noqa: B018
    assert not hasattr(button, "metaObject_") and not hasattr(button, "__wrapped__")


def test_a_property_converts_in_silence(qt):
    button, spin, bar, combo = qt.QPushButton(), qt.QSpinBox(), qt.QProgressBar(), qt.QComboBox()
    button.text = None
    assert button.text == "None"
    button.text = 3
    assert button.text == "3"
    button.enabled = "no"
    assert button.enabled
    button.toolTip = "why"
    assert button.toolTip == "<p>why</p>"
    spin.value = 500
    assert spin.value == spin.maximum == 99
    bar.value = 50.9
    assert bar.value == 50
    combo.addItem("a")
    combo.currentText = "not in the list"
    assert combo.currentText == "a"


def test_what_does_not_convert_raises(qt):
    import numpy as np

    spin = qt.QSpinBox()
    with pytest.raises(AttributeError):
        spin.value = "a"
    with pytest.raises(ValueError):
        spin.setValue("a")
    with pytest.raises(ValueError, match=r"pathlib\.Path"):
        qt.QFile(Path("a.ui"))
    spin.value = np.int64(7)
    assert spin.value == 7


def test_enums_are_integers(qt):
    label, item = qt.QLabel(), qt.QTableWidgetItem("x")
    label.alignment = qt.Qt.AlignRight | qt.Qt.AlignVCenter
    assert label.alignment == 0x82 and isinstance(qt.Qt.AlignLeft, int)
    item.setFlags(item.flags() & ~qt.Qt.ItemIsEditable)
    assert not item.flags() & qt.Qt.ItemIsEditable
    assert item.flags() & qt.Qt.ItemIsEnabled


def test_an_empty_layout_is_false_and_lists_are_tuples(qt):
    widget = qt.QWidget()
    layout = qt.QVBoxLayout(widget)
    assert not layout and widget
    button = qt.QPushButton("x", widget)
    layout.addWidget(button)
    assert layout and isinstance(widget.children(), tuple)
    assert widget.findChildren(qt.QPushButton) == (button,)
    assert widget.layout() is layout and button.parent() is widget


def test_a_table_keeps_its_items(qt):
    table = qt.QTableWidget(2, 1)
    table.setItem(0, 0, qt.QTableWidgetItem("x"))
    gc.collect()
    assert table.item(0, 0).text() == "x" and table.item(1, 0) is None
    table.item(0, 0).setData(qt.Qt.UserRole, 42)
    assert table.item(0, 0).data(qt.Qt.UserRole) == 42
    with pytest.raises(TypeError):
        table.rowCount()
    chosen, clicked = [], []
    table.connect("itemSelectionChanged()", lambda: chosen.append(1))
    table.connect("cellClicked(int,int)", lambda r, c: clicked.append(r))
    table.selectRow(1)
    assert chosen and not clicked


def test_a_destroyed_object_raises(qt):
    label = qt.QLabel("x")
    label.delete()
    with pytest.raises(ValueError, match="destroyed"):
        label.text  # noqa: B018


def test_python_subclasses_reach_the_virtual_methods(host, qt):
    class Bar(qt.QWidget):
        def __init__(self):
            super().__init__()
            self.painted = 0

        def paintEvent(self, event):
            super().paintEvent(event)
            self.painted += 1
            painter = qt.QPainter(self)
            painter.fillRect(self.rect, qt.QColor("red"))
            painter.end()

    class Keys(qt.QObject):
        def __init__(self):
            super().__init__()
            self.seen = []

        def eventFilter(self, watched, event):
            self.seen.append(int(event.type()))
            return False

    bar, keys = Bar(), Keys()
    bar.resize(4, 4)
    bar.installEventFilter(keys)
    image = bar.grab().toImage()
    assert bar.painted == 1 and image.pixelColor(1, 1).red() == 255
    assert int(qt.QEvent.Paint) in keys.seen
    assert host.slot_errors == []


# Signals


def test_an_unknown_signal_gives_false(qt, capsys):
    button, process = qt.QPushButton(), qt.QProcess()
    assert button.connect("clicked()", lambda: None) is True
    assert button.connect("clickedd()", lambda: None) is False
    assert process.connect("finished", lambda: None) is False  # the signature is needed
    assert qt.QCheckBox().connect("checkStateChanged(Qt::CheckState)", lambda: None) is False  # Qt 6
    assert capsys.readouterr().err.count("unknown signal") == 3


def test_slots_may_take_fewer_arguments_but_not_more(host, qt):
    button, got = qt.QPushButton(), []
    button.connect("clicked(bool)", lambda: got.append("none"))
    button.connect("clicked(bool)", lambda checked=7: got.append(checked))  # the trap: the bool lands in the default
    button.connect("clicked(bool)", lambda *all_: got.append(all_))
    button.connect("clicked()", lambda *all_: got.append(all_))
    button.click()
    assert got == ["none", False, (False,), ()]
    button.connect("clicked()", lambda needed: None)
    button.click()
    assert [type(e) for e in host.slot_errors] == [TypeError]


def test_an_error_in_a_slot_is_kept_and_goes_no_further(host, qt, capsys):
    def fail():
        raise RuntimeError("in the slot")

    button = qt.QPushButton()
    button.clicked.connect(fail)
    button.click()
    assert str(host.slot_errors[0]) == "in the slot" and "in the slot" in host.report()
    assert "Traceback" in capsys.readouterr().err


def test_connecting_twice_calls_twice_and_disconnect_ends_it(qt):
    calls, button = [], qt.QPushButton()

    class Receiver:
        def slot(self):
            calls.append(1)

    receiver = Receiver()
    button.connect("clicked()", receiver.slot)
    button.connect("clicked()", receiver.slot)
    button.click()
    assert len(calls) == 2
    alive = weakref.ref(receiver)
    del receiver
    gc.collect()
    assert alive() is not None  # a connection keeps its receiver
    slot = alive().slot
    assert button.disconnect("clicked()", slot) is True
    assert button.disconnect("clicked()", slot) is False
    del slot
    button.click()
    gc.collect()
    assert len(calls) == 2 and alive() is None


def test_timers(host, qt):
    fired = []

    def forget():
        timer = qt.QTimer()
        timer.connect("timeout()", lambda: fired.append("local"))
        timer.start(1)

    forget()
    button = qt.QPushButton()
    button.connect("clicked()", lambda: fired.append("click"))
    qt.QTimer.singleShot(1, lambda: fired.append("single"))
    qt.QTimer.singleShot(1, button, "click()")
    host.process_events(30)
    assert sorted(fired) == ["click", "single"]
    with pytest.raises(ValueError):
        qt.QTimer.singleShot(1, None)
    timer = qt.QTimer()
    timer.singleShot = True  # on an object it is the property
    assert timer.singleShot is True


def test_no_dialog_waits(host, qt):
    assert qt.QFileDialog.getSaveFileName(None, "Save") == ""  # a str, not a tuple
    host.answer("QFileDialog.getSaveFileName", "/data/a.html")
    assert qt.QFileDialog.getSaveFileName(None, "Save") == "/data/a.html"
    assert qt.QDialog().exec_() == 0
    assert [what for what, _ in host.dialogs] == ["QFileDialog.getSaveFileName"] * 2 + ["QDialog"]
    assert qt.QDesktopServices.openUrl(qt.QUrl("file:///nowhere")) is True


def test_settings_keep_types(qt):
    settings = qt.QSettings()
    settings.setValue("HARM3/on", True)
    settings.setValue("HARM3/list", ["a", "b"])
    assert settings.value("HARM3/on") is True
    assert settings.value("HARM3/list") == ("a", "b")
    assert settings.value("HARM3/none") is None
