"""Facts about the viewer of a finished case: the page of the prediction itself, without its model, and only of its own slide."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from HARM3Logic import viewer
from HARM3Logic.case import Case
from HARM3Logic.checkpoint import read_card
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption, BadSlide, MissingInput
from HARM3Logic.predict import Predictor
from HARM3Logic.predict_cohort import predict_cohort
from HARM3Logic.viewer_later import add_viewer


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("vendor")
    monkeypatch.setattr(viewer, "VENDOR", folder)
    for name in viewer.LIBRARY:
        (folder / name).write_text(name)


@pytest.fixture(scope="module")
def cases(phantom: Path) -> list[Case]:
    """Two cases of one volume and a slide; the second has the first's slide too, before its own."""
    one, two = (case.without(set(case.inputs) - {"t1_pre", "tumour_pre", "slide"}) for case in read_cohort(phantom))
    return [one, dataclasses.replace(two, inputs={**two.inputs, "slide": one.inputs["slide"] + two.inputs["slide"]})]


@pytest.fixture(scope="module")
def finished(cases: list[Case], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort's folder without viewers."""
    out = tmp_path_factory.mktemp("finished")
    assert predict_cohort(cases, out, tiny_checkpoint, device="cpu", workers=1) == []
    return out


def pages(folder: Path) -> dict[str, bytes]:
    files = (folder / "slide.html", *(folder / "slide_files").rglob("*"), folder / "report.html")
    return {str(f.relative_to(folder)): f.read_bytes() for f in files if f.is_file()}


def test_a_second_run_adds_the_pages_the_first_would_have_written(
    cases: list[Case], finished: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(tiny_checkpoint, "cpu")
    for case in cases:
        predictor(case).write(tmp_path / "new" / case.case_id, viewer.write_viewer)
    out = tmp_path / "old"
    shutil.copytree(finished, out)
    kept = {case.case_id: (out / "cases" / case.case_id / "prediction.json").read_bytes() for case in cases}
    monkeypatch.setattr(Predictor, "__init__", None)  # no model is loaded
    warnings: list[str] = []
    assert predict_cohort(cases, out, tiny_checkpoint, device="cpu", viewer=True, on_event=lambda e, v: warnings.append(e)) == []
    assert "warning" not in warnings
    for case in cases:
        made, wanted = pages(out / "cases" / case.case_id), pages(tmp_path / "new" / case.case_id)
        assert set(made) == set(wanted) and {n for n in made if made[n] != wanted[n]} <= {"report.html"}  # which has the minute
        assert b'<a href="slide.html">' in made["report.html"] and b"<!--viewer" not in made["report.html"]
        assert (out / "cases" / case.case_id / "prediction.json").read_bytes() == kept[case.case_id]


@pytest.fixture
def folder(cases: list[Case], finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "cases" / cases[0].case_id, tmp_path / "case"))


def test_it_is_made_once_and_a_killed_run_is_cleared(cases: list[Case], folder: Path, tiny_checkpoint: Path) -> None:
    settings = read_card(tiny_checkpoint).preprocessing
    (folder / "slide_files").mkdir()
    (folder / "slide_files" / "left.jpg").touch()
    (folder / ".writing.1").mkdir()
    assert add_viewer(cases[0], folder, settings.tissue, settings.tiles)
    assert not (folder / "slide_files" / "left.jpg").exists() and not list(folder.glob(".writing.*"))
    assert not add_viewer(cases[0], folder, settings.tissue, settings.tiles)


def test_another_slide_is_refused(cases: list[Case], folder: Path, tiny_checkpoint: Path) -> None:
    settings = read_card(tiny_checkpoint).preprocessing
    other = dataclasses.replace(cases[0], inputs={**cases[0].inputs, "slide": cases[1].inputs["slide"][1:]})
    with pytest.raises(BadSlide, match="is not the one"):
        add_viewer(other, folder, settings.tissue, settings.tiles)
    with pytest.raises(MissingInput, match="no slide to show"):
        add_viewer(cases[0].without(["slide"]), folder, settings.tissue, settings.tiles)
    with pytest.raises(BadSlide, match="tiles of the prediction"):
        add_viewer(cases[0], folder, settings.tissue, dataclasses.replace(settings.tiles, mpp=0.7))
    assert not (folder / "slide.html").exists() and not (folder / "slide_files").exists()


def test_without_the_library_it_is_told_once(
    cases: list[Case], finished: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "VENDOR", tmp_path)
    with pytest.raises(BadOption, match="OpenSeadragon"):
        predict_cohort(cases, finished, tiny_checkpoint, device="cpu", viewer=True)
