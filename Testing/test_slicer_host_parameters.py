"""The stand-in host: the parameter node wrapper keeps, binds, refuses and goes stale as in Slicer."""

import enum
import pathlib
from typing import Annotated, Optional, Union

import pytest
import slicer
from vtkmodules.util.misc import calldata_type
from vtkmodules.vtkCommonCore import VTK_OBJECT, vtkCommand

pytest.importorskip("PySide6")
from host_nodes import selector, volume


class Mode(enum.Enum):
    AUTO = "auto"
    CPU = "cpu"

    def label(self):
        return f"<{self.value}>"


def wrapper_class():
    from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

    @parameterNodeWrapper
    class Parameters:
        t1Pre: slicer.vtkMRMLScalarVolumeNode
        slide: pathlib.Path
        opacity: Annotated[float, WithinRange(0, 1)] = 0.5
        free: float
        mode: Mode = Mode.CPU
        color: Annotated[str, Choice(["Inferno", "Viridis"])] = "Viridis"
        on: bool
        text: str
        maybe: Optional[float]  # noqa: UP045
        maybePath: pathlib.Path | None
        either: Union[int, str] = 3  # noqa: UP007

    return Parameters


def parameter_node():
    return slicer.ScriptedLoadableModule.ScriptedLoadableModuleLogic().getParameterNode()


def test_members_have_slicers_defaults(host):
    p = wrapper_class()(parameter_node())
    assert (p.t1Pre, p.slide, p.opacity, p.on, p.text, p.maybe, p.maybePath, p.either) == (
        None,
        pathlib.Path("."),
        0.5,
        False,
        "",
        None,
        None,
        3,
    )
    assert p.mode is Mode.CPU and p.color == "Viridis" and p.free == 0


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("opacity", 2, ValueError),
        ("opacity", "a", TypeError),
        ("color", "Grey", ValueError),
        ("slide", "/data/a.svs", TypeError),
        ("mode", "cpu", TypeError),
        ("text", None, ValueError),
        ("maybePath", "/data", TypeError),
    ],
)
def test_wrong_values_raise(host, name, value, error):
    p = wrapper_class()(parameter_node())
    with pytest.raises(error):
        setattr(p, name, value)


def test_a_model_is_no_volume_and_a_slip_is_stored_in_silence(host):
    p = wrapper_class()(parameter_node())
    with pytest.raises(TypeError):
        p.t1Pre = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode")
    p.t1Prre = 1
    assert p.t1Prre == 1
    with pytest.raises(ValueError, match="Cannot find a param"):
        p.connectParametersToGui({"nosuch": None})


def test_kinds_that_cannot_be_kept(host):
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    with pytest.raises(Exception, match="Unable to create serializer"):
        parameterNodeWrapper(type("Bytes", (), {"__annotations__": {"raw": bytes}}))
    with pytest.raises(ValueError, match="reserved name"):
        parameterNodeWrapper(type("Reserved", (), {"__annotations__": {"connectGui": int}}))
    masks = Union[slicer.vtkMRMLSegmentationNode, slicer.vtkMRMLLabelMapVolumeNode]  # noqa: UP007
    union = parameterNodeWrapper(type("NoNone", (), {"__annotations__": {"mask": masks}}))
    with pytest.raises(TypeError, match="Unable to write value 'None'"):
        union(parameter_node())  # a union of nodes needs None among its members


def test_one_event_for_each_change(host):
    p, events = wrapper_class()(parameter_node()), []
    p.AddObserver(vtkCommand.ModifiedEvent, lambda *a: events.append(1))
    p.opacity = 0.7
    p.opacity = 0.7
    assert len(events) == 1
    with slicer.util.NodeModify(p.parameterNode):
        p.opacity, p.text = 0.8, "x"
    assert len(events) == 2


def test_binding_follows_both_ways_until_disconnected(host):
    import ctk
    import qt

    p = wrapper_class()(parameter_node())
    combo, slider, box, edit = selector(), ctk.ctkSliderWidget(), qt.QComboBox(), ctk.ctkPathLineEdit()
    tag = p.connectParametersToGui({"t1Pre": combo, "opacity": slider, "mode": box, "slide": edit})
    assert (slider.maximum, box.currentText, edit.currentPath) == (1, "<cpu>", ".")
    combo.setCurrentNode(a := volume("A"))
    slider.value, box.currentIndex, edit.currentPath = 0.25, 0, "/data/a.svs"
    assert (p.t1Pre, p.opacity, p.mode, p.slide) == (a, 0.25, Mode.AUTO, pathlib.Path("/data/a.svs"))
    edit.currentPath = ""
    assert p.slide == pathlib.Path("/data/a.svs")  # the surprise: an emptied edit tells nobody
    wrapper_class()(p.parameterNode).opacity = 0.75  # another wrapper of the same node
    assert slider.value == p.opacity == 0.75
    p.disconnectGui(tag)
    slider.value = 0.1
    assert p.opacity == 0.75
    assert host.slot_errors == []


def test_widgets_that_do_not_bind(host):
    import ctk
    import qt

    p = wrapper_class()(parameter_node())
    refused = {
        "maybePath": ctk.ctkPathLineEdit,
        "maybe": qt.QDoubleSpinBox,
        "opacity": qt.QSpinBox,
        "text": qt.QPlainTextEdit,
        "on": qt.QLineEdit,
    }
    for name, widget in refused.items():
        with pytest.raises(RuntimeError, match="Unable to create GUI connector"):
            p.connectParametersToGui({name: widget()})
    with pytest.raises(RuntimeError, match="unbounded"):
        p.connectParametersToGui({"free": ctk.ctkSliderWidget()})
    with pytest.raises(RuntimeError, match="Choice annotation"):
        p.connectParametersToGui({"text": qt.QComboBox()})


def test_a_deleted_volume_takes_another_into_the_parameter(host):
    a, b, p, combo = volume("A"), volume("B"), wrapper_class()(parameter_node()), selector()
    p.t1Pre = a
    p.connectParametersToGui({"t1Pre": combo})
    slicer.mrmlScene.RemoveNode(a)
    assert p.t1Pre is b  # without a word
    assert volume("C") and combo.currentNode() is b

    @calldata_type(VTK_OBJECT)
    def before(caller, event, node):
        if p.t1Pre is node:
            p.t1Pre = None

    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, before, 10.0)  # above the combo's priority
    slicer.mrmlScene.RemoveNode(b)
    assert p.t1Pre is None and combo.currentNode() is None


@pytest.mark.parametrize("suffix", [".mrml", ".mrb"])
def test_a_wrapper_is_stale_after_an_import(host, tmp_path, suffix):
    first, path = wrapper_class()(parameter_node()), tmp_path / f"Müller 患者{suffix}"
    first.t1Pre, first.opacity, first.slide, first.maybe = volume("A"), 0.9, pathlib.Path("/d/Müller 患者.svs"), 1.5
    slicer.util.saveScene(str(path))
    slicer.mrmlScene.Clear(0)
    assert (first.t1Pre, first.opacity) == (None, 0.5)  # the node survives a closed scene, its values do not
    p, combo = wrapper_class()(parameter_node()), selector()
    p.connectParametersToGui({"t1Pre": combo})
    slicer.util.loadScene(str(path))
    assert p.t1Pre is None and combo.currentNode() is None and p.opacity == 0.9
    fresh = wrapper_class()(parameter_node())
    assert fresh.t1Pre.GetName() == "A"
    assert (fresh.slide, fresh.maybe) == (pathlib.Path("/d/Müller 患者.svs"), 1.5)
    assert (fresh.t1Pre.GetImageData() is not None) == (suffix == ".mrb")  # .mrml is the scene alone
