"""Checking a cohort: every problem is found, named with its case, and told by severity and exit code."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from HARM3Logic import check, volume
from HARM3Logic.__main__ import main
from HARM3Logic.check import Report, as_table, check_cohort, overlap
from HARM3Logic.cohort import read_cohort, write_cohort
from HARM3Logic.cohort_rules import Problem
from HARM3Logic.grid import Grid

Rows = list[dict[str, str]]


def rows_of(cohort: Path) -> Rows:
    with open(cohort, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def rows(phantom: Path) -> Rows:
    """Two good cases with absolute paths, dated, one of each class."""
    found = rows_of(phantom)
    for k, row in enumerate(found):
        for name, value in row.items():
            if value.endswith((".nii.gz", ".tif")):
                row[name] = str(phantom.parent / value)
        row |= {"label": str(k), "centre": "Ulm", "date_pre": "2024-01-01", "date_post": "2024-04-01"}
    return found


def checked(folder: Path, rows: Rows, workers: int = 0) -> Report:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    write_cohort(folder / "cohort.csv", [{key: row.get(key, "") for key in keys} for row in rows])
    return check_cohort(folder / "cohort.csv", workers)


def codes(report: Report) -> set[tuple[str, str]]:
    return {(p.case_id, p.code) for p in report.problems}


def table_only(folder: Path, text: str) -> Report:
    (folder / "cohort.csv").write_text(text)
    return check_cohort(folder / "cohort.csv", 0)


def of(report: Report, code: str) -> list[Problem]:
    return [p for p in report.problems if p.code == code]


def test_a_good_cohort_has_no_errors(tmp_path: Path, rows: Rows) -> None:
    report = checked(tmp_path, rows)
    assert {p.code for p in report.problems if p.severity == "error"} == set()
    assert "2 cases of 2 patients; 1 of 2 respond (50%); centres Ulm: 2." in report.summary


def test_all_problems_are_found_and_not_only_the_first(tmp_path: Path, rows: Rows) -> None:
    first, second = rows
    first |= {"t1_pre": str(tmp_path / "none.nii.gz"), "label": "7", "slide_mpp": "big"}
    second |= {"t2_pre": str(tmp_path / "broken.nii.gz"), "date_post": "2023-01-01"}
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    report = checked(tmp_path, rows)
    a, b = first["case_id"], second["case_id"]
    assert {(a, "missing_file"), (a, "table"), (b, "bad_volume"), (b, "dates_swapped")} <= codes(report)
    assert {p.column for p in of(report, "table")} == {"label", "slide_mpp"}
    assert report.errors >= 5
    assert [p.case_id for p in report.problems if p.case_id] == sorted(p.case_id for p in report.problems if p.case_id)


def altered(path: str, out: Path, change: Callable[[np.ndarray], np.ndarray], move_mm: float = 0.0) -> str:
    image = sitk.ReadImage(path)
    made = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image).astype(np.float32)))
    made.SetSpacing(image.GetSpacing()[: made.GetDimension()])
    made.SetOrigin([v + move_mm for v in image.GetOrigin()[: made.GetDimension()]])
    sitk.WriteImage(made, str(out))
    return str(out)


def with_nan(array: np.ndarray) -> np.ndarray:
    array[0, 0, 0] = np.nan
    return array


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_nan, "NaN"),
        (lambda array: array * 0 + 5, "every voxel"),
        (lambda array: array[0], "2D"),
        (lambda array: np.random.default_rng(0).normal(100, 9, array.shape).astype(np.float32), "noise"),
    ],
)
def test_odd_voxels_and_sizes_are_told(tmp_path: Path, rows: Rows, change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    rows[0]["t2_post"] = altered(rows[0]["t2_post"], tmp_path / "x.nrrd", change)
    (found,) = [p for p in checked(tmp_path, rows).problems if p.severity == "error"]
    assert (found.case_id, found.column) == (rows[0]["case_id"], "t2_post")
    assert words in found.message


def test_four_dimensions_are_told(tmp_path: Path, rows: Rows) -> None:
    image = sitk.ReadImage(rows[0]["t1_pre"])
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "x.nrrd"))
    rows[0]["t1_pre"] = str(tmp_path / "x.nrrd")
    assert "4D" in next(p.message for p in checked(tmp_path, rows).problems if p.column == "t1_pre")


def test_volumes_that_share_no_point_are_told(tmp_path: Path, rows: Rows) -> None:
    rows[0]["t2_post"] = altered(rows[0]["t2_post"], tmp_path / "x.nrrd", lambda array: array, move_mm=900.0)
    rows[1]["tumour_pre"] = altered(rows[1]["tumour_pre"], tmp_path / "m.nrrd", lambda array: array, move_mm=900.0)
    told = of(checked(tmp_path, rows), "no_overlap")
    assert [(p.case_id, p.column) for p in told] == [(rows[0]["case_id"], "t2_post"), (rows[1]["case_id"], "tumour_pre")]
    assert "t2_post and t1_post share no point" in told[0].message


def test_the_same_image_under_two_patients_is_told_whatever_its_format(tmp_path: Path, rows: Rows) -> None:
    rows[1]["t1_post"] = altered(rows[0]["t1_pre"], tmp_path / "copy.mha", lambda array: array, move_mm=0.5)
    (found,) = of(checked(tmp_path, rows), "same_image")
    assert (found.case_id, found.column, found.severity) == (rows[1]["case_id"], "t1_post", "error")
    assert repr(rows[0]["case_id"]) in found.message


def test_one_patient_may_share_an_image_between_cases(tmp_path: Path, rows: Rows) -> None:
    rows[1]["t1_pre"] = rows[0]["t1_pre"]
    for row in rows:
        row["patient_id"] = "P"
    assert of(checked(tmp_path, rows), "same_image") == []


def test_pre_given_again_as_post_is_told(tmp_path: Path, rows: Rows) -> None:
    rows[0]["t1_post"] = rows[0]["t1_pre"]
    (found,) = of(checked(tmp_path, rows), "same_image")
    assert (found.case_id, found.column) == (rows[0]["case_id"], "t1_post")


def test_a_slide_under_two_patients_is_told(tmp_path: Path, rows: Rows) -> None:
    shutil.copy(rows[0]["slide"], tmp_path / "copy.tif")
    rows[1]["slide"] = str(tmp_path / "copy.tif")
    (found,) = of(checked(tmp_path, rows), "same_slide")
    assert found.case_id == rows[1]["case_id"]


def test_slides_that_do_not_open_or_lack_their_scale_are_told(tmp_path: Path, rows: Rows, data: Path) -> None:
    (tmp_path / "no.svs").write_bytes(b"no slide")
    rows[0]["slide"] = str(tmp_path / "no.svs")
    rows[1]["slide"] = str(data / "data/slides/TCGA-CR-7395-01A-01-TS1.svs")
    told = of(checked(tmp_path, rows), "bad_slide")
    assert [p.case_id for p in told] == [row["case_id"] for row in rows]
    assert "µm per pixel" in told[1].message
    rows[1]["slide_mpp"] = "0.5"
    assert [p.case_id for p in of(checked(tmp_path, rows), "bad_slide")] == [rows[0]["case_id"]]


def test_each_volume_is_read_once(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    for name in ("read", "read_mask"):
        plain = getattr(volume, name)
        monkeypatch.setattr(volume, name, lambda path, plain=plain: read.append(str(path)) or plain(path))
    checked(tmp_path, rows)
    assert len(read) == len(set(read)) == 12  # four volumes and two masks of two cases


def test_worker_processes_find_the_same(tmp_path: Path, rows: Rows) -> None:
    rows[0]["t1_pre"] = str(tmp_path / "none.nii.gz")
    rows[1]["t2_pre"] = altered(rows[1]["t2_pre"], tmp_path / "x.nrrd", with_nan)
    assert checked(tmp_path, rows, workers=2) == checked(tmp_path, rows, workers=0)


def die_on_first(case: check.Case) -> check.Seen:
    if case.case_id == "A":
        os.kill(os.getpid(), signal.SIGKILL)  # as a reader written in C does on some damaged files
    return check.Seen(())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_file_that_kills_its_reader_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "look", die_on_first)
    (tmp_path / "cohort.csv").write_text("case_id,t1_pre\nA,x\nB,x\nC,x\n")
    assert [p.case_id for p in of(check_cohort(tmp_path / "cohort.csv", 1), "crash")] == ["A"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("patient_id,label\nP,1\n", {("", "table", "error")}),
        ("case_id,t1pre,lable\nA,x,1\n", {("", "table", "error")}),
        ("case_id,label\nA,1\nA,0\n", {("A", "table", "error")}),
        ("case_id,label\nA,1\nB,\nC,0\n", {("B", "no_label", "error")}),
        ("case_id,label\nA,1\nB,1\n", {("", "one_class", "error")}),
        ("case_id,label\n" + "".join(f"C{k},{int(k == 0)}\n" for k in range(20)), {("", "rare_class", "warning")}),
        ("case_id,patient_id,fold\nA,P,0\nB,P,1\nC,Q,1\n", {("A", "patient_in_two_folds", "error")}),
        ("case_id,fold\nA,0\nB,\nC,1\n", {("B", "no_fold", "error")}),
        ("case_id,label,fold\nA,0,1\nB,1,2\nC,0,2\n", {("", "one_class_fold", "error")}),
        ("case_id,fold\nA,1\nB,1\n", {("", "one_fold", "error")}),
        ("case_id,centre\nA,Ulm\nB,ULM \nC,ulm\n", {("", "centre_spelling", "warning"), ("", "small_centre", "warning")}),
        ("case_id,centre\nA,Ulm\nB,\n", {("B", "no_centre", "warning")}),
        ("case_id,patient_id,label\nA,P,1\nB,P,0\n", {("A", "two_labels", "warning")}),
        ("case_id,patient_id\nA,P\nB,\n", {("", "no_patient", "warning")}),
        ("case_id,date_pre,date_post\nA,2024-02-01,2024-01-01\n", {("A", "dates_swapped", "error")}),
        ("case_id,date_pre,date_post\nA,1.2.24,2024-03-01\n", {("A", "bad_date", "error")}),
        ("case_id,date_pre,date_post\nA,2024-01-01,2024-03-01\nB,,2024-03-01\n", {("B", "no_date", "warning")}),
        ("case_id,label\nA,1\nB,0\n", {("", "no_dates", "warning"), ("A", "no_image", "error")}),
        ("case_id,clinical.age\nA,\n", {("A", "no_image", "error")}),
        ("case_id,t1_pre,slide\nA,x,s\nB,x,s\nC,x,\n", {("C", "missing_input", "warning")}),
        ("case_id\nA\n", {("", "no_labels", "warning"), ("", "no_centre", "warning")}),
        ("case_id\n", {("", "table", "error")}),
    ],
)
def test_tables_are_checked(tmp_path: Path, text: str, expected: set[tuple[str, str, str]]) -> None:
    report = table_only(tmp_path, text)
    assert expected <= {(p.case_id, p.code, p.severity) for p in report.problems}


@pytest.mark.parametrize("text", ["case_id,slide,label\nA,a.svs,1\nB,b.svs,0\n", "case_id,clinical.age,label\nA,61,1\nB,70,0\n"])
def test_cohorts_for_models_without_volumes_are_cohorts(tmp_path: Path, text: str) -> None:
    assert not of(table_only(tmp_path, text), "no_image")


def test_every_unknown_column_is_named(tmp_path: Path) -> None:
    report = table_only(tmp_path, "case_id,t1pre,lable\nA,x,1\n")
    assert [p.column for p in of(report, "table")] == ["t1pre", "lable"]


def test_an_unreadable_table_is_a_problem_too(tmp_path: Path) -> None:
    (found,) = check_cohort(tmp_path / "none.csv").problems
    assert (found.severity, found.code) == ("error", "table")


def test_dates_and_the_cohort_reader_agree(tmp_path: Path, rows: Rows) -> None:
    checked(tmp_path, rows)
    assert len(read_cohort(tmp_path / "cohort.csv")) == 2  # the date columns are known to it


def grid(centre: tuple[float, float, float], angle_deg: float = 0.0) -> Grid:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    direction = (c, -s, 0.0, s, c, 0.0, 0.0, 0.0, 1.0)
    turned = np.reshape(direction, (3, 3)) @ np.full(3, -4.5)
    origin = np.add(centre, turned)
    return Grid((10, 10, 10), (1.0, 1.0, 1.0), (float(origin[0]), float(origin[1]), float(origin[2])), tuple(map(float, direction)))


def test_overlap_is_exact_for_oblique_boxes() -> None:
    still, turned = grid((0, 0, 0)), grid((11, 11, 0), 45)
    assert overlap(still, grid((9.9, 0, 0)))
    assert not overlap(still, grid((10.1, 0, 0)))
    assert not overlap(grid((10.1, 0, 0)), still)  # from either side
    assert not overlap(turned, still)
    assert not overlap(still, turned)  # though their boxes along x and y overlap
    assert overlap(still, grid((8, 8, 0), 45))


@pytest.mark.parametrize(("text", "code"), [("case_id,label\nA,1\nA,1\n", 2), ("label\n1\n", 2)])
def test_errors_end_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, code: int) -> None:
    (tmp_path / "cohort.csv").write_text(text)
    assert main(["check", str(tmp_path / "cohort.csv"), "--workers", "0"]) == code
    assert "error" in capsys.readouterr().out


def test_warnings_end_with_zero_and_json_is_a_list(tmp_path: Path, rows: Rows, capsys: pytest.CaptureFixture[str]) -> None:
    rows[0].pop("date_pre")
    checked(tmp_path, rows)
    assert main(["check", str(tmp_path / "cohort.csv"), "--json", "--workers", "0"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"case_id", "column", "severity", "code", "message", "advice"} == set(told[0])
    assert "no_date" in {row["code"] for row in told}
    assert {row["severity"] for row in told} == {"warning"}


def test_the_table_keeps_its_width_and_every_word() -> None:
    long = Problem("HN-017", "t2_post", "error", "missing_file", "t2_post: there is no file " + "x" * 90, "Check the path.")
    text = as_table(Report((long,), "1 case."), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.replace("\n", "").replace(" ", "").count("x") == 90
    assert text.endswith("Errors: 1, warnings: 0. 1 case.")
    assert as_table(Report((), "1 case.")) == "No problems. 1 case."
