"""Case files: what they say, where their paths point, and what is refused."""

import json
from pathlib import Path

import pytest

from HARM3Logic.case import MRI, Case
from HARM3Logic.errors import BadCase, HARM3Error


def write(folder: Path, **values) -> Path:
    path = folder / "case.json"
    path.write_text(json.dumps({"case_id": "a", "inputs": {"t1_pre": "x.nrrd"}, **values}), encoding="utf-8")
    return path


def test_mri_stands_in_the_order_of_the_axes() -> None:
    assert MRI == ("t1_pre", "t2_pre", "t1_post", "t2_post")  # T slowest, then S: the order of Batch.mri flattened


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    case = Case.read(write(tmp_path, inputs={"t1_pre": "deep/x.nrrd", "slide": ["a.svs", "b.svs"], "ct": "/far/ct.nrrd", "t2_pre": ""}))
    assert case.inputs == {
        "t1_pre": (tmp_path / "deep/x.nrrd",),
        "slide": (tmp_path / "a.svs", tmp_path / "b.svs"),
        "ct": (Path("/far/ct.nrrd"),),
    }


def test_all_fields_are_read(tmp_path: Path) -> None:
    case = Case.read(
        write(
            tmp_path, patient_id="p", centre="c", label=1, fold="2", slide_mpp="0.25", tumour_point_mm=[1, 2.5, -3],
            clinical={"age": 61, "sex": None}, tumour_pre="m.nrrd",
        )
    )  # fmt: skip
    assert (case.patient_id, case.centre, case.label, case.fold, case.slide_mpp) == ("p", "c", 1, 2, 0.25)
    assert case.tumour_point_mm == (1.0, 2.5, -3.0)
    assert case.clinical == {"age": "61", "sex": ""}
    assert case.inputs["tumour_pre"] == (tmp_path / "m.nrrd",)


def test_what_is_not_said_is_unknown(tmp_path: Path) -> None:
    case = Case.read(write(tmp_path, label="", fold=None, slide_mpp=""))
    assert (case.label, case.fold, case.slide_mpp, case.tumour_point_mm) == (None, None, None, None)


def test_a_written_case_can_be_moved_with_its_files(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    case = Case(
        "a", {"t1_pre": (home / "x.nrrd",), "slide": (home / "s/1.svs", tmp_path / "2.svs")}, "p", "c",
        label=0, fold=3, slide_mpp=0.5, tumour_point_mm=(1.0, 2.0, 3.0), clinical={"age": "61"},
    )  # fmt: skip
    case.write(home / "case.json")
    assert Case.read(home / "case.json") == case
    moved = Case.read((home.rename(tmp_path / "moved")) / "case.json")
    assert moved.inputs["t1_pre"] == (tmp_path / "moved/x.nrrd",)
    assert moved.inputs["slide"] == (tmp_path / "moved/s/1.svs", tmp_path / "2.svs")  # a file elsewhere keeps its place
    assert [p.name for p in (tmp_path / "moved").iterdir()] == ["case.json"]  # no temporary file is left


def test_without_leaves_the_rest() -> None:
    case = Case.from_files("a", {"t1_pre": "x", "t2_pre": "y", "slide": "z"}, label=1)
    assert case.without(["t1_pre", "slide"]) == Case.from_files("a", {"t2_pre": "y"}, label=1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"inputs": None}, "no object 'inputs'"),
        ({"inputs": {"t1": "x"}}, "unknown input 't1'"),
        ({"inputs": {"t1_pre": 3}}, "'t1_pre' is 3"),
        ({"inputs": {"t1_pre": ["x", "y"]}}, "2 files for t1_pre"),
        ({"case_id": ""}, "case_id is ''"),
        ({"case_id": ".."}, "case_id is '..'"),
        ({"case_id": "a/b"}, "case_id is 'a/b'"),
        ({"label": 2}, "label is 2"),
        ({"label": "yes"}, "label is 'yes'"),
        ({"fold": 1.5}, "fold is 1.5"),
        ({"slide_mpp": "half"}, "slide_mpp is 'half'"),
        ({"slide_mpp": float("nan")}, "slide_mpp is nan"),
        ({"tumour_point_mm": [1, 2]}, "tumour_point_mm is [1, 2]"),
        ({"tumour_point_mm": "1;2;x"}, "tumour_point_mm is 'x'"),
        ({"tumour_point_mm": 5}, "tumour_point_mm is 5"),
        ({"clinical": ["age"]}, "clinical is ['age']"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, values: dict, words: str) -> None:
    with pytest.raises(BadCase) as caught:
        Case.read(write(tmp_path, **values))
    assert words in caught.value.message
    assert caught.value.advice


@pytest.mark.parametrize("content", [b"{not json", b"[]", b"\xff\xfe\x00", None])
def test_files_that_are_no_case_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "case.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadCase, match=r"case\.json"):
        Case.read(path)


def test_every_error_has_its_own_code() -> None:
    kinds = [HARM3Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = [kind.code for kind in kinds if kind.__module__ == "HARM3Logic.errors"]
    assert len(set(codes)) == len(codes)


def test_an_error_reads_as_message_and_advice() -> None:
    assert str(BadCase("This is wrong.", "Mend it.")) == "This is wrong. Mend it."
    assert str(BadCase("This is wrong.")) == "This is wrong."
