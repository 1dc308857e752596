"""Many cases: a stopped run goes on, a bad case stops no other."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from HARM3Logic import checkpoint, predict_cohort
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadCheckpoint, BadOption, Cancelled
from HARM3Logic.predict import Predictor
from HARM3Logic.predict_cohort import finished


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint without a tile encoder and registration: these tests are about the cohort."""
    loaded = checkpoint.load(tiny_checkpoint)
    settings = dataclasses.replace(loaded.card.preprocessing, registration="none")
    path = tmp_path_factory.mktemp("model") / "plain.safetensors"
    checkpoint.save(path, loaded.model, dataclasses.replace(loaded.card, tile_encoder={}, preprocessing=settings))
    return path


@pytest.fixture(scope="module")
def cases(phantom: Path) -> tuple[Case, ...]:
    """Two cases of one volume each."""
    first, second = (case.without(set(case.inputs) - {"t1_pre", "tumour_pre"}) for case in read_cohort(phantom))
    return first, dataclasses.replace(second, fold=2, label=None)


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the cases that were worked on."""
    seen: list[str] = []
    work = Predictor.__call__

    def listening(self: Predictor, case: Case, **options: object) -> object:
        seen.append(case.case_id)
        return work(self, case, **options)

    monkeypatch.setattr(Predictor, "__call__", listening)
    return seen


def run(cases: tuple[Case, ...], out: Path, model: Path, **options: Any) -> list[str]:
    return predict_cohort.predict_cohort(cases, out, model, device="cpu", workers=1, **options)


def table(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with open(out / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_run_goes_on_with_what_is_missing(cases: tuple[Case, ...], plain: Path, tmp_path: Path, predicted: list[str]) -> None:
    assert run(cases, tmp_path, plain) == []
    names = [case.case_id for case in cases]
    assert predicted == names
    before = table(tmp_path)
    assert [row["case_id"] for row in before] == names
    kept = (tmp_path / "cases" / names[1] / "prediction.json").read_bytes()

    folder = tmp_path / "cases" / names[0]  # as a process leaves it that was killed while writing
    (folder / "prediction.json").unlink()
    (folder / ".writing.1").mkdir()
    (folder / ".writing.1/heatmap_t1_pre.nrrd").write_text("half")
    predicted.clear()
    assert run(cases, tmp_path, plain) == []
    assert predicted == [names[0]]
    assert table(tmp_path) == before  # each case once, in the order of the cohort
    assert (tmp_path / "cases" / names[1] / "prediction.json").read_bytes() == kept
    assert not (tmp_path / "failures.csv").exists()

    predicted.clear()
    assert run(cases, tmp_path, plain) == []
    assert predicted == []  # nothing was left to do


def test_the_table_says_what_the_files_say(cases: tuple[Case, ...], plain: Path, tmp_path: Path) -> None:
    run(cases, tmp_path, plain)
    for case, row in zip(cases, table(tmp_path), strict=True):
        values = json.loads((tmp_path / "cases" / case.case_id / "prediction.json").read_text(encoding="utf-8"))
        assert [float(row[key]) for key in ("probability", "low", "high")] == [values["probability"], *values["interval"]]
        assert (row["decision"], row["centre"]) == (values["decision"], case.centre)
        assert row["label"] == ("" if case.label is None else str(case.label))
        assert row["fold"] == ("" if case.fold is None else str(case.fold))


def test_a_failure_is_listed_and_stops_no_other(cases: tuple[Case, ...], plain: Path, tmp_path: Path, predicted: list[str]) -> None:
    lost = Case.from_files("lost", {"t1_pre": tmp_path / "none.nrrd"})
    failures = run((cases[0], lost, cases[1]), tmp_path / "out", plain)
    assert len(failures) == 1
    assert failures[0].startswith("lost: ")
    assert "none.nrrd" in failures[0]
    assert [row["case_id"] for row in table(tmp_path / "out")] == [cases[0].case_id, cases[1].case_id]
    assert [row["case_id"] for row in table(tmp_path / "out", "failures.csv")] == ["lost"]
    assert not (tmp_path / "out/cases/lost/prediction.json").exists()

    predicted.clear()
    mended = dataclasses.replace(lost, inputs=cases[0].inputs)
    assert run((cases[0], mended, cases[1]), tmp_path / "out", plain) == []
    assert predicted == ["lost"]  # a failure is tried again, and then forgotten
    assert not (tmp_path / "out/failures.csv").exists()


def test_other_options_or_another_model_predict_again(cases: tuple[Case, ...], plain: Path, tmp_path: Path, predicted: list[str]) -> None:
    run(cases[:1], tmp_path, plain)
    run(cases[:1], tmp_path, plain, ignore_masks=True)
    assert len(predicted) == 2
    folder, digest = tmp_path / "cases" / cases[0].case_id, checkpoint.file_sha256(plain)
    assert finished(cases[0], folder, digest, True) is not None
    assert finished(cases[0], folder, digest, False) is None
    assert finished(cases[0], folder, "0" * 64, True) is None
    assert finished(cases[0], tmp_path / "cases/none", digest, True) is None
    replaced = dataclasses.replace(cases[0], inputs={"t1_pre": cases[1].inputs["t1_pre"]})
    assert finished(replaced, folder, digest, True) is None  # the same name, another volume


def test_a_bad_checkpoint_or_folder_is_told_before_any_work(
    cases: tuple[Case, ...], plain: Path, tmp_path: Path, predicted: list[str]
) -> None:
    with pytest.raises(BadCheckpoint, match=r"none\.safetensors"):
        run(cases, tmp_path, tmp_path / "none.safetensors")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOption, match="file"):
        run(cases, tmp_path / "file", plain)
    assert predicted == []


def test_a_warm_predictor_does_the_work_and_every_step_is_told(
    cases: tuple[Case, ...], plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm = Predictor(plain, "cpu")
    monkeypatch.setattr(predict_cohort, "Predictor", None)  # no other is made
    lost = Case.from_files("lost", {"t1_pre": tmp_path / "none.nrrd"})
    told: list[tuple[str, dict[str, Any]]] = []
    out = tmp_path / "out"
    failures = run((cases[0], lost), out, plain, predictor=warm, on_event=lambda *event: told.append(event))
    rows = [values for event, values in told if event == "case"]
    assert [row["case_id"] for row in rows] == [cases[0].case_id, "lost"]
    assert {key: str(value) for key, value in rows[0]["row"].items()} == table(out)[0]
    assert rows[1]["row"] is None
    assert f"lost: {rows[1]['reason']}" == failures[0]
    assert f"{cases[0].case_id} (1 of 2): reading t1_pre" in [values.get("name") for _, values in told]
    progress = [values for event, values in told if event == "progress"]
    assert [values["value"] for values in progress] == [0.5, 1.0]
    assert progress[0]["remaining_s"] > 0
    assert progress[-1]["remaining_s"] == 0

    told.clear()
    run((cases[0], lost), out, plain, predictor=warm, on_event=lambda *event: told.append(event))
    assert [values["row"] for event, values in told if event == "case"] == [rows[0]["row"], None]  # finished ones are told again


@pytest.mark.parametrize("at", ["reading t1_pre", "case"])
def test_a_cancelled_run_keeps_what_was_finished(
    cases: tuple[Case, ...], plain: Path, tmp_path: Path, predicted: list[str], at: str
) -> None:
    """A cancel is no failure of the case it meets."""

    def stop(event: str, values: dict[str, Any]) -> None:
        if event == at or values.get("name", "").startswith(f"{cases[1].case_id} (2 of 2): {at}"):
            raise Cancelled("the job was cancelled.")

    warm = Predictor(plain, "cpu")
    with pytest.raises(Cancelled):
        run(cases, tmp_path, plain, predictor=warm, on_event=stop)
    assert [row["case_id"] for row in table(tmp_path)] == [cases[0].case_id]
    assert not (tmp_path / "failures.csv").exists()
    predicted.clear()
    assert run(cases, tmp_path, plain, predictor=warm) == []
    assert predicted == [cases[1].case_id]
