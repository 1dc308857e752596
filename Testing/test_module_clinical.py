"""A checkpoint that asks for CT, clinical values and a point in the tumour: the panel follows its schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

slicer = pytest.importorskip("slicer")
pytest.importorskip("PySide6")
import vtk  # noqa: E402
from module_host import Opened, opened, write_checkpoint  # noqa: E402
from test_module_panel import WITH_CT, shown  # noqa: E402

from HARM3Logic.errors import BadClinical  # noqa: E402


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Opened]:
    with opened() as it:
        it.ui.checkpointPathLineEdit.currentPath = str(write_checkpoint(tmp_path / "ct.safetensors", **WITH_CT))
        yield it


def fields(it: Opened) -> list[Any]:
    import qt

    form = it.ui.clinicalForm.layout()
    return [form.itemAt(row, qt.QFormLayout.FieldRole).widget() for row in range(form.rowCount())]


def table(columns: dict[str, list[str]], name: str = "values") -> Any:
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode", name)
    for title, texts in columns.items():
        column = vtk.vtkStringArray()
        column.SetName(title)
        for text in texts:
            column.InsertNextValue(text)
        node.AddColumn(column)
    return node


def case_of(it: Opened, folder: Path) -> dict[str, Any]:
    """Press Predict; what the worker was told."""
    from HARM3SlicerLib import selftest

    cases: list[dict[str, Any]] = []

    def answer(job: dict[str, Any], say: Any) -> None:
        cases.append(json.loads(Path(job["case"]).read_text(encoding="utf-8")))
        selftest.makePrediction(job, say)

    it.answers["predict"] = answer
    values = it.parameters.clinical
    it.parameters.ct = it.load_sample(folder)["t1_pre"]
    it.parameters.clinical = values
    it.predict()
    return cases[0]


def test_the_form_is_the_schema(it: Opened) -> None:
    import qt

    form = it.ui.clinicalForm.layout()
    labels = [form.itemAt(row, qt.QFormLayout.LabelRole).widget() for row in range(2)]
    assert [label.text for label in labels] == ["Age (years)", "Sex"]
    assert "At the CT. In years. 0 to 120" in labels[0].toolTip
    age, sex = fields(it)
    assert age.placeholderText == "not known"
    assert [sex.itemText(i) for i in range(sex.count)] == ["not known", "f", "m"]
    assert shown(it.ui.clinicalTableSelector)
    assert shown(it.ui.placePointButton)


@pytest.mark.parametrize(("text", "said"), [
    ("old", "age is 'old'; a number in years"),
    ("430", "0 to 120 in years is possible"),
    ("1e999", "a number in years"),
])  # fmt: skip
def test_a_wrong_value_is_said_before_anything_starts(it: Opened, tmp_path: Path, text: str, said: str) -> None:
    it.parameters.ct = it.load_sample(tmp_path)["t1_pre"]
    assert it.ui.predictButton.isEnabled()
    fields(it)[0].text = text
    assert said in it.ui.inputsHintLabel.text
    assert not it.ui.predictButton.isEnabled()
    with pytest.raises(BadClinical, match="age"):
        it.logic.predict({"ct": it.parameters.ct, "clinical": {"age": text}}, checkpoint=it.parameters.checkpoint)
    assert it.workers == []
    fields(it)[0].text = "64"
    assert it.ui.predictButton.isEnabled()


def test_unknown_values_are_left_out_and_a_decimal_comma_is_a_point(it: Opened, tmp_path: Path) -> None:
    fields(it)[0].text = "63,5"
    case = case_of(it, tmp_path)
    assert case["clinical"] == {"age": "63.5"}


def test_a_table_with_a_row_per_case_fills_the_form(it: Opened) -> None:
    it.ui.caseIdLineEdit.text = "b"
    node = table({"case_id": ["a", "b"], "clinical.Age": ["50", "61"], "Sex": ["F", "M"]})
    it.ui.clinicalTableSelector.setCurrentNode(node)
    it.host.process_events(20)
    age, sex = fields(it)
    assert (age.text, sex.currentText) == ("61", "m")
    assert it.ui.clinicalTableSelector.currentNode() is None
    slicer.mrmlScene.RemoveNode(node)
    assert age.text == "61"


def test_a_table_of_names_and_values_fills_the_form_and_keeps_the_rest(it: Opened) -> None:
    fields(it)[1].currentIndex = 1
    it.ui.clinicalTableSelector.setCurrentNode(table({"name": ["age", "smoker"], "value": ["70", "yes"]}))
    assert [fields(it)[0].text, fields(it)[1].currentText] == ["70", "f"]


@pytest.mark.parametrize(("columns", "said"), [
    ({"weight": ["80"]}, "has none of the variables age, sex"),
    ({"age": ["50", "60"]}, "2 rows and no column case_id"),
    ({"case_id": ["x", "y"], "age": ["50", "60"]}, "0 rows with the case_id"),
    ({"age": ["x"]}, "Age is &#x27;x&#x27;"),
])  # fmt: skip
def test_a_table_that_does_not_fit_is_told(it: Opened, columns: dict[str, list[str]], said: str) -> None:
    it.ui.clinicalTableSelector.setCurrentNode(table(columns))
    assert said in it.ui.stageLabel.text
    assert it.parameters.clinical == ""


def test_values_survive_a_saved_scene_and_another_checkpoint(it: Opened, tmp_path: Path) -> None:
    age, sex = fields(it)
    age.text, sex.currentIndex = "64", 2
    checkpoint = it.parameters.checkpoint
    it.ui.checkpointPathLineEdit.currentPath = ""
    assert not shown(it.ui.clinicalForm)
    it.ui.checkpointPathLineEdit.currentPath = checkpoint
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    slicer.mrmlScene.Clear(0)
    it.host.process_events(20)
    slicer.util.loadScene(path)
    it.idle()
    assert [fields(it)[0].text, fields(it)[1].currentText] == ["64", "m"]


def test_place_makes_a_point_list_and_begins_to_place(it: Opened) -> None:
    it.ui.placePointButton.click()
    node = it.parameters.tumourPoint
    assert node.GetName() == "tumour point"
    assert slicer.modules.markups.logic().GetActiveListID() == node.GetID()
    interaction = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    node.AddControlPoint(1.0, 2.0, 3.0)
    it.ui.placePointButton.click()
    assert it.parameters.tumourPoint is node
    assert node.GetNumberOfControlPoints() == 0


def test_a_card_whose_schema_cannot_be_read_is_told(it: Opened, tmp_path: Path) -> None:
    bad = {**WITH_CT, "clinical": {"variables": [{"kind": "numeric"}]}}
    it.ui.checkpointPathLineEdit.currentPath = str(write_checkpoint(tmp_path / "bad.safetensors", **bad))
    assert "clinical variables cannot be read" in it.ui.inputsHintLabel.text
    assert not it.ui.predictButton.isEnabled()


def test_attention_over_the_variables_is_drawn_as_bars(it: Opened, tmp_path: Path) -> None:
    from HARM3SlicerLib import selftest

    told = [
        {"name": "age", "label": "Age", "value": "64", "unit": "years", "attention": 0.2, "change": -0.05},
        {"name": "sex", "value": None, "unit": "", "attention": 0.5, "change": None},
        {"name": "tumour_size", "label": "Tumour size", "value": "30", "unit": "mm", "attention": 0.3, "change": 0.1},
    ]

    def answer(job: dict[str, Any], say: Any) -> None:
        selftest.makePrediction(job, lambda **event: None)
        file = Path(job["out"]) / "prediction.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "clinical": told}))
        say(event="result", job=job["job"], kind="predict", prediction=str(file))

    it.parameters.ct = it.load_sample(tmp_path)["t1_pre"]
    assert not shown(it.ui.attentionFrame)
    it.answers["predict"] = answer
    it.predict()
    assert shown(it.ui.attentionFrame)
    grid = it.ui.attentionFrame.layout()
    rows = [[grid.itemAtPosition(row, column).widget() for column in (0, 2)] for row in range(2)]
    assert [[widget.text for widget in row] for row in rows] == [["Tumour size", "30 %"], ["Age", "20 %"]]
    assert "64 years. Knowing it changed the probability by -5.0 points." in rows[1][0].toolTip
    assert grid.itemAtPosition(2, 0) is None  # what is not known is not shown
    it.ui.removeResultsButton.click()
    it.host.process_events(20)
    assert not shown(it.ui.attentionFrame)
