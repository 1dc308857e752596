"""The stand-in host: child processes, CTK and MRML widgets have the habits seen in Slicer."""

import os
import sys

import pytest
import slicer

pytest.importorskip("PySide6")
from host_nodes import selector, volume


@pytest.fixture
def ctk(host):
    import ctk

    return ctk


# Processes


def start(qt, program, arguments):
    process, events = qt.QProcess(), []
    assert process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: events.append(("finished", code, status)))
    assert process.connect("errorOccurred(QProcess::ProcessError)", lambda error: events.append(("error", error)))
    process.start(program, arguments)
    return process, events


def test_a_failed_start_gives_only_an_error(host, qt):
    _process, events = start(qt, "/no/such/program", [])
    host.process_events(50)
    assert events == [("error", 0)]


def test_process_talks_in_bytes(host, qt):
    code = "import sys; line = sys.stdin.readline(); print(line.strip()); sys.stdin.read(); print('end'); sys.exit(3)"
    process, events = start(qt, sys.executable, ["-X", "utf8", "-c", code])
    output = []
    process.connect("readyReadStandardOutput()", lambda: output.append(process.readAllStandardOutput().data()))
    process.write("hällo\n")
    process.closeWriteChannel()
    host.wait(lambda: events)
    assert b"".join(output) == "hällo\nend\n".encode()
    assert events == [("finished", 3, 0)]


def test_a_killed_process_errs_first_and_then_finishes(host, qt):
    process, events = start(qt, sys.executable, ["-c", "import time; time.sleep(60)"])
    host.wait(lambda: process.state() == qt.QProcess.Running)
    process.kill()
    host.wait(lambda: len(events) == 2)
    assert events == [("error", 1), ("finished", 9, 1)]


def test_a_forgotten_process_is_killed(host, qt):
    def forget():
        process, _events = start(qt, sys.executable, ["-c", "import time; time.sleep(60)"])
        assert process.waitForStarted(5000)
        return process.processId()

    pid = forget()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# CTK


def test_an_empty_or_rejected_path_is_not_emitted(ctk):
    edit, paths, valid = ctk.ctkPathLineEdit(), [], []
    edit.connect("currentPathChanged(QString)", paths.append)
    edit.connect("validInputChanged(bool)", valid.append)
    edit.currentPath = "/data/Müller 患者.svs"
    edit.currentPath = ""
    edit.nameFilters = ["Slides (*.svs *.tif)"]
    edit.currentPath = "/data/a.png"
    edit.currentPath = "/not/there.tif"  # existence is not checked
    assert paths == ["/data/Müller 患者.svs", "/not/there.tif"]
    assert valid == [True, False, True]


def test_slider_clamps_and_has_no_value_changing(ctk, qt):
    slider, got = ctk.ctkSliderWidget(), []
    slider.minimum, slider.maximum, slider.singleStep, slider.decimals = 0, 1, 0.01, 2
    assert slider.connect("valueChanged(double)", got.append)
    assert not slider.connect("valueChanging(double)", got.append)
    slider.value = 3
    assert slider.value == 1 and got == [1.0]
    slider.findChild(qt.QSlider, "Slider").value = 25
    assert slider.value == pytest.approx(0.25)


def test_a_collapsed_section_hides_its_contents(ctk, qt):
    section = ctk.ctkCollapsibleButton()
    section.text = "Inputs"
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.setVisible(False)
    section.show()
    section.collapsed = True
    assert not shown.visible
    section.collapsed = False
    assert shown.visible and not hidden.visible
    section.collapsed = True
    shown.visible, hidden.visible = False, True
    assert not shown.visible and not hidden.visible
    section.collapsed = False
    assert not shown.visible and hidden.visible


def test_a_collapsed_section_keeps_some_height(ctk, qt):
    section = ctk.ctkCollapsibleButton()
    section.collapsed = True
    kept = section.sizeHint().height()
    assert section.maximumHeight == kept
    section.collapsedHeight = 0
    assert (section.sizeHint().height(), section.maximumHeight) == (kept - 14, kept)  # the bound is set when it collapses
    section.collapsed = False
    section.collapsed = True
    assert section.maximumHeight == kept - 14


def test_a_setting_key_brings_the_last_path_back(ctk, qt):
    first = ctk.ctkPathLineEdit()
    first.settingKey = "tests/path"
    first.currentPath = "/data/one.csv"
    assert first.currentPath == "/data/one.csv"
    first.addCurrentPathToHistory()
    second = ctk.ctkPathLineEdit()
    second.settingKey = "tests/path"
    assert second.currentPath == "/data/one.csv"


def test_a_ui_file_names_values_that_exist(host, tmp_path):
    text = """<ui version="4.0"><class>P</class><widget class="QWidget" name="P"><layout class="QVBoxLayout" name="l"><item>
    <widget class="ctkPathLineEdit" name="edit">
    <property name="filters"><set>ctkPathLineEdit::Dirs|ctkPathLineEdit::VALUE</set></property></widget></item></layout></widget></ui>"""
    path = tmp_path / "p.ui"
    path.write_text(text.replace("VALUE", "NoDotDot"))
    widget = slicer.util.loadUI(str(path))
    assert slicer.util.childWidgetVariables(widget).edit.filters == 0x4001
    path.write_text(text.replace("VALUE", "Folders"))
    with pytest.raises(RuntimeError, match="Folders"):
        slicer.util.loadUI(str(path))


# Node selectors


def test_deleting_the_chosen_node_chooses_another(host):
    a, b, combo, got = volume("A"), volume("B"), selector(), []
    assert combo.connect("currentNodeChanged(vtkMRMLNode*)", got.append)
    assert combo.connect("currentNodeChanged(bool)", got.append)
    combo.setCurrentNode(a)
    slicer.mrmlScene.RemoveNode(a)
    assert combo.currentNode() is b and combo.currentNodeID == b.GetID()
    slicer.mrmlScene.RemoveNode(b)
    assert combo.currentNode() is None
    assert got == [a, True, b, True, None, False]


def test_a_selector_without_none_chooses_on_its_own(host):
    combo = selector(none=False)
    assert combo.currentNode() is None
    a = volume("A")
    assert combo.currentNode() is a
    assert combo.nodeCount() == 1
    with pytest.raises(TypeError):
        combo.noneEnabled()


def test_a_selector_lists_what_fits(host):
    combo = selector()
    combo.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode"))
    assert combo.currentNode() is None
    hidden = volume("hidden")
    combo.setCurrentNode(hidden)
    assert combo.currentNode() is hidden
    hidden.SetHideFromEditors(True)
    volume("B")
    assert combo.nodeCount() == 1 and combo.currentNode() is None
