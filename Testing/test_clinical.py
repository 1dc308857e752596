"""Schema, rows and scaling of clinical values."""

import json

import numpy as np
import pytest

from HARM3Logic import clinical
from HARM3Logic.clinical import Schema, Variable
from HARM3Logic.errors import BadClinical

AGE = Variable("age", "numeric", "years", range=(0, 120))
SEX = Variable("sex", "binary", allowed=("female", "male"))
STAGE = Variable("stage", "ordinal", allowed=("I", "II", "III"))
KIT = Variable("kit", "categorical", allowed=("wild type", "exon 11", "none"))


def test_a_row_becomes_values_and_a_mask():
    values, known = Schema((AGE, SEX, STAGE, KIT)).read({"age": "61.5", "sex": "Male", "stage": "", "kit": "exon 11"})
    assert values.tolist() == [61.5, 1, 0, 1]
    assert known.tolist() == [True, True, False, True]


def test_a_variable_the_row_lacks_is_unknown():
    assert Schema((AGE, SEX)).read({"sex": "female"})[1].tolist() == [False, True]


@pytest.mark.parametrize("word", ["", " ", "NA", "n/a", "?", "NaN", "unknown"])
def test_words_for_unknown(word):
    assert AGE.read(word) is None
    assert KIT.read(word) is None


def test_a_word_for_unknown_that_is_allowed_is_a_value():
    assert KIT.read("none") == 2
    assert SEX.read("none") is None


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        (AGE, "430", "age is 430; 0 to 120 in years"),
        (AGE, "sixty", "'sixty'; a number in years"),
        (AGE, "inf", "a number"),
        (AGE, "61,5", "'61,5'; a number"),
        (SEX, "divers", "female, male or nothing"),
        (SEX, "1", "female, male"),  # which of them 1 means nobody can know
        (STAGE, "IV", "I, II, III"),
    ],
)
def test_impossible_values_are_named(variable, text, told):
    with pytest.raises(BadClinical, match=told):
        variable.read(text)


def test_yes_and_no_have_several_spellings():
    variable = Variable("smoker", "binary", allowed=("no", "yes"))
    assert [variable.read(t) for t in ("no", "0", "False", "yes", "1", "true")] == [0, 0, 0, 1, 1, 1]
    assert Variable("smoker", "binary", allowed=("yes", "no")).read("1") == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "text"},
        {"kind": "numeric", "allowed": ("a", "b")},
        {"kind": "numeric", "range": (5.0, 1.0)},
        {"kind": "binary", "allowed": ("a", "b", "c")},
        {"kind": "categorical", "allowed": ("a",)},
        {"kind": "ordinal", "allowed": ("a", "A")},
        {"kind": "ordinal", "allowed": ("a", "b"), "range": (0.0, 1.0)},
    ],
)
def test_impossible_variables_are_refused(wrong):
    with pytest.raises(BadClinical, match="'x'"):
        clinical.schema_from_plain(
            {"variables": [{"name": "x", **{k: list(v) if isinstance(v, tuple) else v for k, v in wrong.items()}}]}, "s"
        )


def test_a_variable_stands_once():
    with pytest.raises(BadClinical, match="'age' twice"):
        Schema((AGE, AGE))


def test_variables_the_schema_lacks_are_told_with_a_guess():
    assert Schema((AGE, SEX)).strangers({"agee": "1", "sex": "male", "height": "2"}) == [
        "the clinical variable 'agee' is not used; is 'age' meant?",
        "the clinical variable 'height' is not used.",
    ]


def test_a_schema_survives_its_file(tmp_path):
    schema = Schema((AGE, SEX, STAGE, KIT))
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema.to_dict()))
    assert clinical.read_schema(path) == schema
    assert set(schema.to_dict()["variables"][0]) == {"name", "kind", "unit", "allowed", "range", "description", "title"}
    assert [v.label for v in (Variable("tumour_size", "numeric"), Variable("kit", "numeric", title="KIT"))] == ["Tumour size", "KIT"]


def test_a_schema_in_toml(tmp_path):
    pytest.importorskip("tomllib", reason="the standard library has it from Python 3.11")
    path = tmp_path / "schema.toml"
    path.write_text('[[variables]]\nname = "age"\nkind = "numeric"\nunit = "years"\nrange = [0, 120]\n')
    assert clinical.read_schema(path) == Schema((AGE,))


@pytest.mark.parametrize(
    ("text", "told"),
    [("[", "not JSON"), ("[]", "no list 'variables'"), ('{"variables": [{"name": "a"}]}', "no kind"),
     ('{"variables": [{"name": "a", "kind": "numeric", "colour": 1}]}', "'colour'"),
     ('{"variables": [{"name": "a", "kind": "numeric", "range": [1]}]}', "two numbers"),
     ('{"variables": [{"name": "a", "kind": "binary", "allowed": "ab"}]}', "a list")],
)  # fmt: skip
def test_a_faulty_file_is_told(tmp_path, text, told):
    path = tmp_path / "schema.json"
    path.write_text(text)
    with pytest.raises(BadClinical, match=told):
        clinical.read_schema(path)


def test_the_gist_schema_has_what_the_abstract_names():
    schema = clinical.gist()
    named = {v.name for v in schema.variables if "Named in the abstract" in v.description}
    assert named == {
        "age", "sex", "tumour_size", "mitotic_index", "cd117", "kit", "pdgfra", "braf", "disease_status", "comorbidities",
    }  # fmt: skip
    assert {v.name for v in schema.variables if v.description.endswith("Ours: not in the abstract.")} == {"location", "dog1"}


def test_a_row_from_a_file(tmp_path):
    path = tmp_path / "row.json"
    path.write_text('{"age": 61, "sex": null}')
    assert clinical.read_row(path) == {"age": "61", "sex": ""}
    path.write_text('{"age": [61]}')
    with pytest.raises(BadClinical, match="no object of variable to value"):
        clinical.read_row(path)


def test_a_schema_is_inferred_from_a_table():
    rows = [{"age": str(60 + k), "er": str(k % 2), "grade": "low" if k % 3 else "High", "id": f"p{k}", "rare": ""} for k in range(12)]
    kept = [{name: text for name, text in row.items() if name not in ("id", "rare")} for row in rows]
    assert {v.name: (v.kind, v.allowed) for v in clinical.inferred(kept).variables} == {
        "age": ("numeric", ()),
        "er": ("binary", ("0", "1")),
        "grade": ("binary", ("High", "low")),
    }
    assert "grade" in clinical.as_text(clinical.inferred(kept))
    for name in ("id", "rare"):
        with pytest.raises(BadClinical, match=name):
            clinical.inferred([{name: row[name]} for row in rows])


def test_scaling_is_of_known_values_and_leaves_categories():
    schema = Schema((AGE, SEX, STAGE))
    values = np.array([[50.0, 1, 0], [70, 0, 2], [0, 1, 0]])
    known = np.array([[True] * 3, [True] * 3, [False, True, False]])
    scaling = clinical.fit_scaling(schema, values, known)
    assert scaling.mean == (60, 0, 1)
    assert scaling.spread == (10, 1, 1)


def test_a_constant_or_unknown_variable_does_not_divide_by_nothing():
    schema = Schema((AGE, Variable("size", "numeric")))
    scaling = clinical.fit_scaling(schema, np.array([[50.0, 0], [50, 0]]), np.array([[True, False], [True, False]]))
    assert scaling == clinical.Scaling((50, 0), (1, 1))
