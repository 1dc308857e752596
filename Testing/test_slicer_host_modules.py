"""The stand-in host: layouts, the application, and the life of a module, as seen in Slicer."""

import sys

import numpy as np
import pytest
import slicer

pytest.importorskip("PySide6")
import slicer_host
from host_nodes import volume

MODULE = """
import slicer, qt
from slicer.ScriptedLoadableModule import *
from slicer.i18n import tr as _

class Tiny(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title, parent.categories = _("Tiny"), ["Quantification"]
        self.told = []
        slicer.app.connect("startupCompleted()", lambda: self.told.append("started"))
        slicer.app.connect("aboutToQuit()", lambda: EVENTS.append("aboutToQuit"))

class TinyWidget(ScriptedLoadableModuleWidget):
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = TinyLogic()
        self.ui = slicer.util.childWidgetVariables(slicer.util.loadUI(self.resourcePath("UI/Tiny.ui")))
        EVENTS.append("setup")
    def enter(self): EVENTS.append("enter")
    def exit(self): EVENTS.append("exit")
    def cleanup(self): EVENTS.append("cleanup")

class TinyLogic(ScriptedLoadableModuleLogic):
    pass

class TinyTest(ScriptedLoadableModuleTest):
    def runTest(self):
        EVENTS.append("runTest")

EVENTS = []
"""
UI = """<ui version="4.0"><class>Tiny</class><widget class="qMRMLWidget" name="Tiny"><layout class="QVBoxLayout" name="column"><item>
<widget class="{widget}" name="edit"><property name="{prop}"><string>x</string></property>
<property name="SlicerParameterName" stdset="0"><string>slide</string></property></widget></item><item>
<widget class="qMRMLNodeComboBox" name="selector"/></item></layout></widget>
<connections><connection><sender>Tiny</sender><signal>{signal}</signal><receiver>selector</receiver>
<slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
SCENE_CHANGED = "mrmlSceneChanged(vtkMRMLScene*)"


def write_module(folder, widget="ctkPathLineEdit", prop="settingKey", signal=SCENE_CHANGED):
    (folder / "Tiny" / "Resources" / "UI").mkdir(parents=True)
    (folder / "Tiny" / "Resources" / "UI" / "Tiny.ui").write_text(UI.format(widget=widget, prop=prop, signal=signal))
    path = folder / "Tiny" / "Tiny.py"
    path.write_text(MODULE)
    return path


# Layout

XML = (
    '<layout type="horizontal"><item><view class="vtkMRMLSliceNode" singletontag="preT1"><property name="viewgroup" action="default">71'
    '</property></view></item><item><view class="vtkMRMLSliceNode" singletontag="preT2"><property name="viewgroup" action="default">71'
    '</property></view></item><item><view class="vtkMRMLSliceNode" singletontag="slide"><property name="viewgroup" action="default">72'
    '</property></view></item><item><view class="vtkMRMLTableViewNode" singletontag="harm3Table"/></item></layout>'
)


def test_layouts_make_their_views_at_once(host):
    lm = slicer.app.layoutManager()
    node = lm.layoutLogic().GetLayoutNode()
    assert lm.layout == 0 and lm.sliceWidget("preT1") is None
    assert node.AddLayoutDescription(571, XML) and not node.AddLayoutDescription(571, XML)
    lm.setLayout(571)
    widget = lm.sliceWidget("preT1")
    assert widget.mrmlSliceNode().GetViewGroup() == 71 and widget.mrmlSliceNode().IsMappedInLayout()
    assert widget.mrmlSliceCompositeNode().GetLayoutName() == "preT1"
    assert lm.tableViewCount == 1 and lm.tableWidget(0).tableView().mrmlTableViewNode().GetSingletonTag() == "harm3Table"
    lm.setLayout(3)
    assert "preT1" in lm.sliceViewNames() and not widget.mrmlSliceNode().IsMappedInLayout()
    lm.setLayout(999)
    assert lm.layout == 2  # no error


def test_closing_the_scene_takes_layers_and_links(host):
    lm = slicer.app.layoutManager()
    lm.layoutLogic().GetLayoutNode().AddLayoutDescription(571, XML)
    lm.setLayout(571)
    composite = lm.sliceWidget("preT1").mrmlSliceCompositeNode()
    composite.SetLinkedControl(True)
    slicer.util.setSliceViewerLayers(background=volume("A"))
    assert lm.sliceWidget("slide").mrmlSliceCompositeNode().GetBackgroundVolumeID()  # every view, whatever its group
    slicer.mrmlScene.Clear(0)
    composite = lm.sliceWidget("preT1").mrmlSliceCompositeNode()
    assert lm.layout == 571 and composite.GetBackgroundVolumeID() is None and not composite.GetLinkedControl()


def test_only_interaction_reaches_linked_views(host):
    lm = slicer.app.layoutManager()
    lm.layoutLogic().GetLayoutNode().AddLayoutDescription(571, XML)
    lm.setLayout(571)
    for tag in ("preT1", "preT2"):
        lm.sliceWidget(tag).mrmlSliceCompositeNode().SetLinkedControl(True)
    offsets = lambda: [lm.sliceWidget(t).sliceLogic().GetSliceOffset() for t in ("preT1", "preT2", "slide")]  # noqa: E731
    lm.sliceWidget("preT1").sliceLogic().SetSliceOffset(5)
    assert offsets() == [5, 0, 0]
    lm.sliceWidget("preT1").sliceController().setSliceOffsetValue(7)
    assert offsets() == [7, 7, 0]
    lm.sliceWidget("preT1").setSliceOrientation("Sagittal")
    assert lm.sliceWidget("preT2").mrmlSliceNode().GetOrientation() == "Sagittal"
    assert lm.sliceWidget("slide").mrmlSliceNode().GetOrientation() != "Sagittal"
    composites = [lm.sliceWidget(t).mrmlSliceCompositeNode() for t in ("preT1", "preT2", "slide")]
    composites[0].SetForegroundOpacity(0.3)
    assert [c.GetForegroundOpacity() for c in composites] == [0.3, 0.3, 0.0]  # opacity is shared, without interaction


def test_views_can_be_drawn():
    host = slicer_host.install(render=True)
    try:
        slicer.app.layoutManager().setLayout(3)
        node = slicer.util.addVolumeFromArray(np.full((4, 30, 40), 7, np.float32), name="flat")
        node.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeFileInferno.txt")
        node.GetDisplayNode().AutoWindowLevelOff()
        node.GetDisplayNode().SetWindowLevelMinMax(0, 7)
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        image = host.view_image("Red")
        assert image[image.shape[0] // 2, image.shape[1] // 2].tolist() == [252, 255, 164]  # Inferno's last colour
    finally:
        host.close()


# Application and modules


def test_without_a_main_window():
    host = slicer_host.install(main_window=False)
    try:
        assert slicer.app.layoutManager() is None and slicer.util.mainWindow() is None
        with pytest.raises(RuntimeError, match="main window"):
            slicer.util.selectModule("Tiny")
        slicer.util.setSliceViewerLayers(background=volume("A"))
    finally:
        host.close()


def test_dialogs_in_testing_mode_and_outside():
    for testing in (True, False):
        host = slicer_host.install(testing=testing)
        try:
            assert slicer.util.errorDisplay("wrong") is None
            host.answer("ctkMessageBox", 0x400)
            assert slicer.util.confirmOkCancelDisplay("sure?") is not testing  # False in testing mode
            assert [text for _, text in host.dialogs] == ([] if testing else ["wrong", "sure?"])
        finally:
            host.close()


def test_a_modules_life(tmp_path):
    host = slicer_host.install()
    module, widget, logic = host.load_module(write_module(tmp_path))
    events = module.EVENTS
    assert slicer.modules.tiny.categories == ("Quantification",) and slicer.modules.tiny.title == "Tiny"
    assert slicer.modules.TinyInstance.told == ["started"]
    assert slicer.util.getModuleLogic("Tiny") is logic and slicer.util.getModuleWidget("Tiny") is widget
    assert events == ["setup"]
    slicer.util.selectModule("Tiny")
    slicer.selfTests["Tiny"]()
    host.close()
    assert events == ["setup", "enter", "runTest", "exit", "cleanup", "aboutToQuit"]
    assert not hasattr(slicer, "app") and "qt" not in sys.modules and "Tiny" not in sys.modules


def test_reload_makes_a_new_module_and_does_not_enter(host, tmp_path):
    module, widget, logic = host.load_module(write_module(tmp_path))
    widget.onReload()
    assert module.EVENTS == ["setup", "cleanup"]
    assert sys.modules["Tiny"] is not module and sys.modules["Tiny"].EVENTS == ["setup"]
    assert slicer.util.getModuleLogic("Tiny") is not logic


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"widget": "QPushBotton"}, "QPushBotton"),
        ({"prop": "settingKee"}, "no property 'settingKee'"),
        ({"signal": "mrmlSceneChangedd(vtkMRMLScene*)"}, "no signal"),
    ],
)
def test_a_slip_in_the_ui_file_is_an_error(host, tmp_path, change, complaint):
    with pytest.raises(RuntimeError, match=complaint):
        host.load_module(write_module(tmp_path, **change))


def test_sample_data_as_slicer_has_it(host):
    from SampleData import SampleDataLogic, downloadSample

    called, register = [], SampleDataLogic.registerCustomSampleDataSource
    with pytest.raises(TypeError, match="NoneType"):
        register(category="HARM3", sampleName="Demo", uris=None)
    register(category="HARM3", sampleName="Demo", uris="generated:x", fileNames="x.nrrd", nodeNames="x", customDownloader=called.append)
    with pytest.raises(IndexError):
        downloadSample("Demo")
    assert called == []
    host.press_sample("Demo")
    assert called[0].sampleName == "Demo"


def test_packages_are_never_installed():
    host = slicer_host.install(testing=False)
    try:
        assert slicer.packaging.pip_check("numpy") and not slicer.packaging.pip_check("numpy<1")
        host.refuse_packages()
        with pytest.raises(RuntimeError, match="User declined"):
            slicer.packaging.pip_ensure(["numpy", "no-such-package-x"], requester="HARM3Slicer")
        host.refuse_packages(False)
        slicer.packaging.pip_ensure(["numpy", "no-such-package-x"], constraints="c.txt", requester="HARM3Slicer")
        assert [(name, list(what)) for name, what, _ in host.pip_calls] == [("pip_install", ["no-such-package-x"])]
    finally:
        host.close()


def test_files_go_and_come_back(host, tmp_path):
    node, path = volume("A"), tmp_path / "new folder" / "Mü 患.nrrd"
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    slicer.util.updateTransformMatrixFromArray(transform, np.array([[1, 0, 0, 5], [0, 1, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]], float))
    node.SetAndObserveTransformNodeID(transform.GetID())
    assert slicer.util.exportNode(node, str(path), world=True)
    back = slicer.util.loadVolume(str(path), {"show": False, "name": "back"})
    assert back.GetName() == "back" and np.allclose(back.GetOrigin(), (5, 6, 7))
    assert node.GetParentTransformNode() is transform
    with pytest.raises(RuntimeError):
        slicer.util.loadVolume(str(tmp_path / "missing.nrrd"))
