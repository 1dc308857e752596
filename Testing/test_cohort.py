"""Cohort tables: one row per case, paths relative to the file, every fault with its line."""

from pathlib import Path

import pytest

from HARM3Logic.cohort import read_cohort, scan_cohort, write_cohort
from HARM3Logic.errors import BadCohort


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "cohort.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_row_becomes_a_case(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "case_id,patient_id,centre,t1_pre,slide,slide_mpp,tumour_pre,tumour_point_mm,clinical.age,label,fold\n"
        'A,P1,"Ulm, Nord",a/t1.nrrd, a.svs ; /far/b.svs ,0.25,m.nrrd,1;-2;3.5, 61 ,1,0\n'
        "B,P2,,b/t1.nrrd,,,,,,,\n",
    )
    first, second = read_cohort(path)
    assert (first.case_id, first.patient_id, first.centre, first.label, first.fold) == ("A", "P1", "Ulm, Nord", 1, 0)
    assert first.inputs == {
        "t1_pre": (tmp_path / "a/t1.nrrd",),
        "slide": (tmp_path / "a.svs", Path("/far/b.svs")),
        "tumour_pre": (tmp_path / "m.nrrd",),
    }
    assert (first.slide_mpp, first.tumour_point_mm, first.clinical) == (0.25, (1.0, -2.0, 3.5), {"age": "61"})
    assert second.inputs == {"t1_pre": (tmp_path / "b/t1.nrrd",)}
    assert (second.label, second.fold, second.slide_mpp, second.tumour_point_mm) == (None, None, None, None)


def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "case_id,centre\r\nA,Köln\r\n", "utf-8-sig")  # byte order mark and Windows line ends
    assert read_cohort(path)[0].centre == "Köln"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'case_id'"),
        ("t1_pre\nx\n", "no column 'case_id'"),
        ("case_id,t1pre\nA,x\n", "unknown column 't1pre'"),
        ("case_id\n", "no rows"),
        ("case_id\nA\nB\nA\n", "'A' in lines 2 and 4"),
        ("case_id,centre\nA,Ulm, Nord\n", "line 2 has more values"),
        ("case_id,label\nA,1\nB,2\n", "line 3: label is 2"),
        ("case_id,t1_pre\nA,x;y\n", "line 2: case 'A' gives 2 files for t1_pre"),
        ("case_id\nA\na/b\n", "line 3: case_id is 'a/b'"),
        ("case_id,fold\nA,first\n", "line 2: fold is 'first'; a whole number is wanted"),
        ("case_id,label\nA,yes\n", "line 2: label is 'yes'; 1 (responder), 0 or nothing is wanted"),
        ("case_id;t1_pre;label\nA;x;1\n", "semicolons between its values; commas"),
        ("case_id\tlabel\nA\t1\n", "tabulators between its values"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(BadCohort) as caught:
        read_cohort(path)
    assert words in caught.value.message
    assert "cohort.csv" in caught.value.message
    assert caught.value.message.count("line 2") <= 1  # said once


def test_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCohort, match="UTF-8"):
        read_cohort(write(tmp_path, "case_id,centre\nA,Köln\n", "latin-1"))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCohort, match=r"none\.csv"):
        read_cohort(tmp_path / "none.csv")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rows = [{"case_id": "A", "centre": 'Ulm, "Nord"', "label": 1}, {"case_id": "B", "centre": "", "label": ""}]
    write_cohort(tmp_path / "c.csv", rows)
    assert [(c.case_id, c.centre, c.label) for c in read_cohort(tmp_path / "c.csv")] == [("A", 'Ulm, "Nord"', 1), ("B", "", None)]
    assert [p.name for p in tmp_path.iterdir()] == ["c.csv"]


def test_a_failed_writing_keeps_the_old_table(tmp_path: Path) -> None:
    write_cohort(tmp_path / "c.csv", [{"case_id": "A"}])
    with pytest.raises(ValueError):
        write_cohort(tmp_path / "c.csv", [{"case_id": "B"}, {"case_id": "C", "more": 1}])
    assert read_cohort(tmp_path / "c.csv")[0].case_id == "A"


def test_a_scan_tells_every_fault_and_keeps_what_is_good(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "case_id,t1_pre,t2_pre,label,fold,slide_mpp\n"
        "A,a.nrrd,b.nrrd;c.nrrd,2,x,0.5\n"  # three faults in one row
        "B,a.nrrd,,1,0,\n"
        "B,a.nrrd,,0,1,\n"
        "C/D,a.nrrd,,1,0,\n"
        "E,a.nrrd,,1,0,,more\n",
    )
    table = scan_cohort(path)
    assert [(f.case_id, f.column) for f in table.faults] == [
        ("A", "t2_pre"), ("A", "label"), ("A", "fold"), ("B", "case_id"), ("C/D", "case_id"), ("E", "")
    ]  # fmt: skip
    assert [c.case_id for c in table.cases] == ["A", "B", "line 5"]
    assert table.cases[0].inputs == {"t1_pre": (tmp_path / "a.nrrd",)}
    assert (table.cases[0].label, table.cases[0].slide_mpp) == (None, 0.5)
    assert len(table.rows) == len(table.cases)


def test_a_column_twice_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(BadCohort, match="the column 'label' twice"):
        read_cohort(write(tmp_path, "case_id,label,label\nA,1,0\n"))


def test_the_lines_of_faults_are_those_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(BadCohort, match="line 4: label is 2"):
        read_cohort(write(tmp_path, "case_id,label\nA,1\n\nB,2\n"))  # a blank line counts
