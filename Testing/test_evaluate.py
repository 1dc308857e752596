"""Runs read back from their folders, compared, and written as a report; locked cases opened once."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import f1_score, roc_auc_score

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort, BadOption
from Training import checklist, evaluate, external, page, tables
from Training.comparison import paired
from Training.metrics import youden
from Training.runs import Run, read_run, read_runs

COUNT = 90
CARD = {
    "model": "harm3_fusion",
    "config": {},
    "preprocessing": {},
    "inputs": ["t1_pre", "t2_pre", "t1_post", "t2_post", "slide"],
    "intended_use": "Tests.",
    "threshold": 0.4,
    "calibration": {"slope": 0.8, "intercept": 0.0},
    "training": {"synthetic": True, "data": "trained on synthetic phantoms", "code": {"version": "9.9", "commit": "abc1234"}},
}

Change = Callable[[dict[str, Any]], dict[str, Any] | None]


def truth() -> np.ndarray:
    label = np.zeros(COUNT, dtype=int)
    label[:30] = 1
    return np.random.default_rng(0).permutation(label)


def checkpoint(path: Path, card: Mapping[str, Any]) -> None:
    """The head of a checkpoint, which is all that an evaluation reads."""
    text = json.dumps({"format": 1, "card": card, "familiarity": {}})
    head = json.dumps({"__metadata__": {"harm3": text}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(head).to_bytes(8, "little") + head)


def table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder: Path, effect: float = 1.5, seed: int = 1, change: Change = lambda row: row, **config: Any) -> Path:
    """A run of three folds whose scores differ by `effect` between responders and the others.

    Args:
        change: given each row with its fold; what it gives is written instead, None leaves it out.
    """
    label = truth()
    probability = expit(np.random.default_rng(seed).normal(size=COUNT) + effect * (label - 0.5) - 0.7)
    for fold in range(3):
        own = np.arange(COUNT) % 3 == fold
        parts = [("choose", k) for k in np.flatnonzero(~own)[::3]] + [("judge", k) for k in np.flatnonzero(own)]
        rows = [
            {
                "case_id": f"C{k:02d}", "patient_id": f"P{k:02d}", "centre": "north" if k < 50 else "south", "role": role,
                "label": int(label[k]), "probability": float(probability[k]), "decision": "uncertain" if k < 7 else "responder", "age": k,
            }
            for role, k in parts
        ]  # fmt: skip
        kept = [new for row in rows if (new := change({**row, "fold": fold})) is not None]
        (folder / f"fold-{fold}").mkdir(parents=True)
        table(folder / f"fold-{fold}" / "predictions.csv", [{k: v for k, v in row.items() if k != "fold"} for row in kept])
        checkpoint(folder / f"fold-{fold}" / "checkpoint.safetensors", CARD)
    settings = {
        "name": f"x:{folder.name}",
        "epochs": 3,
        "seed": 0,
        "folds": 3,
        "config": {"ldvae": True, "attn1": True, "attn2": "cross"} | config,
    }
    (folder / "experiment.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_run(tmp_path / "good")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return write_run(tmp_path / "bad", effect=0.0, seed=2, ldvae=False)


def test_a_run_is_read_in_the_order_of_its_cases(good: Path) -> None:
    run = read_run(good)
    assert run.case_id == tuple(f"C{k:02d}" for k in range(COUNT))
    assert np.array_equal(run.label, truth())
    assert run.folds == ("fold-0", "fold-1", "fold-2")
    assert [run.fold[k] for k in (0, 1, 2, 3)] == ["fold-0", "fold-1", "fold-2", "fold-0"]
    assert run.train == {"fold-0": 40, "fold-1": 40, "fold-2": 40}  # 90 less 30 judged and 20 choosing
    assert run.inputs == tuple(CARD["inputs"])
    assert run.further["age"][5] == "5"


def test_thresholds_come_from_choosing_cases_alone(good: Path, tmp_path: Path) -> None:
    run = read_run(good)
    with open(good / "fold-1" / "predictions.csv", newline="") as file:
        choose = [row for row in csv.DictReader(file) if row["role"] == "choose"]
    wanted = youden(np.array([int(r["label"]) for r in choose]), np.array([float(r["probability"]) for r in choose]))
    assert set(run.threshold[run.of("fold-1")]) == {wanted}

    def spoil(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "probability": 0.5} if row["role"] == "judge" else row

    assert np.array_equal(read_run(write_run(tmp_path / "spoilt", change=spoil)).threshold, run.threshold)


def judged_twice(row: dict[str, Any]) -> dict[str, Any]:
    again = {"case_id": "C03", "patient_id": "P03", "label": int(truth()[3])}
    return {**row, **again} if row["case_id"] == "C01" and row["role"] == "judge" else row


WRONG: dict[str, tuple[Change, str]] = {
    "judged twice": (judged_twice, r"judges case 'C03' in fold-0 and fold-1; once is wanted"),
    "chose and judged": (
        lambda r: {**r, "patient_id": "P00"} if r["case_id"] == "C01" else r,
        "P00 chose the threshold and is judged by it",
    ),
    "case chose and judged": (
        lambda r: {**r, "case_id": "C00", "patient_id": "other"} if r["case_id"] == "C01" and r["role"] == "judge" else r,
        "C00 chose the threshold and is judged by it",
    ),
    "patient in two folds": (
        lambda r: {**r, "patient_id": "Z"} if r["case_id"] in ("C00", "C01") and r["role"] == "judge" else r,
        "patient 'Z'",
    ),
    "no probability": (lambda r: {**r, "probability": 1.2}, "line 2 has no label 0 or 1, probability from 0 to 1"),
    "not a number": (lambda r: {**r, "probability": "nan"}, "line 2 has no label"),
    "no label": (lambda r: {**r, "label": ""}, "line 2 has no label"),
    "no judge": (lambda r: r if r["role"] == "choose" else None, "judges no case"),
    "no column": (lambda r: {k: v for k, v in r.items() if k != "role"}, "has no column 'role'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_cannot_be_believed_is_refused(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    with pytest.raises(BadOption, match=message):
        read_run(write_run(tmp_path / "wrong", change=change))


def test_a_folder_without_predictions_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"has no fold-K/predictions\.csv"):
        read_run(tmp_path)


DIFFERENT: dict[str, tuple[Change, str]] = {
    "cases": (
        lambda r: {**r, "case_id": "X" + r["case_id"]} if r["case_id"] in ("C03", "C04") else r,
        r"judge different cases \(only in good: C03, C04; only in other: XC03, XC04\)",
    ),
    "labels": (lambda r: {**r, "label": 1 - r["label"]} if r["case_id"] == "C07" else r, "give different labels to C07"),
    "patients": (lambda r: {**r, "patient_id": ""} if r["case_id"] == "C07" else r, "give different patients to C07"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_runs_that_differ_are_not_compared(good: Path, tmp_path: Path, name: str) -> None:
    change, message = DIFFERENT[name]
    with pytest.raises(BadOption, match=message):
        read_runs([good, write_run(tmp_path / "other", change=change)])


def test_runs_of_other_folds_are_not_compared(good: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other")
    (other / "fold-0").rename(other / "fold-x")
    (other / "fold-1").rename(other / "fold-0")
    (other / "fold-x").rename(other / "fold-1")
    with pytest.raises(BadOption, match="give different folds to C00, C01, C03, C04, C06 and 55 more"):
        read_runs([good, other])


def test_one_run_is_not_compared_with_itself(good: Path) -> None:
    with pytest.raises(BadOption, match="two runs are called"):
        read_runs([good, good])


def test_figures_are_those_of_the_judged_cases(good: Path) -> None:
    run = read_run(good)
    found = tables.figures(run, draws=100)
    assert found["auc"].value == pytest.approx(roc_auc_score(run.label, run.probability))
    inner = run.probability >= run.threshold
    assert found["at_inner_youden"]["f1_macro"].value == pytest.approx(f1_score(run.label, inner, average="macro"))
    assert found["at_half"]["accuracy"].value == pytest.approx(np.mean((run.probability >= 0.5) == run.label))
    first = run.of("fold-0")
    assert found["folds"][0]["auc"].value == pytest.approx(roc_auc_score(run.label[first], run.probability[first]))
    assert found["auc_over_folds"].value == pytest.approx(np.mean([fold["auc"].value for fold in found["folds"]]))
    assert (found["uncertain"], found["folds"][0]["train"]) == (7, 40)


def test_comparison_is_paired_and_corrected(good: Path, bad: Path, tmp_path: Path) -> None:
    third = write_run(tmp_path / "third", effect=1.2, seed=3)
    runs = read_runs([good, bad, third])
    found = {row["run"]: row for row in tables.compare(runs, runs[0])}
    assert set(found) == {"bad", "third"}
    raw = {run.name: paired(run.label, runs[0].probability, run.probability) for run in runs[1:]}
    assert found["bad"]["difference"] == raw["bad"].difference
    assert found["bad"]["difference"].value < 0
    low, high = sorted(raw, key=lambda name: raw[name].p)
    assert found[low]["p_holm"] == pytest.approx(2 * raw[low].p)
    assert found[high]["p_holm"] == pytest.approx(max(raw[high].p, 2 * raw[low].p))


def test_subgroups(good: Path) -> None:
    run = read_run(good)
    rows = {row["value"]: row for row in tables.by_group(run, "centre", tables.groups(run, "centre"), 50)}
    south = np.arange(COUNT) >= 50
    assert rows["south"]["cases"] == 40
    assert rows["south"]["auc"].value == pytest.approx(roc_auc_score(run.label[south], run.probability[south]))
    assert set(tables.groups(run, "age")) == {"below 44.5", "from 44.5"}
    cohort = {case: {"clinical.hpv": "pos" if k < 9 else ""} for k, case in enumerate(run.case_id)}
    assert tables.groups(run, "clinical.hpv", cohort)[8:10] == ("pos", "unknown")
    with pytest.raises(BadOption, match=r"no column 'sex' to group by; there are age, centre, clinical\.hpv"):
        tables.groups(run, "sex", cohort)


def test_a_group_of_one_label_has_no_figures_but_a_count(good: Path) -> None:
    run = read_run(good)
    rows = tables.by_group(run, "label", [str(v) for v in run.label], 50)
    assert [row["cases"] for row in rows] == [60, 30]
    assert str(rows[0]["auc"]) == "-"


def test_failures_are_the_largest_errors(good: Path, bad: Path) -> None:
    runs = read_runs([good, bad])
    rows = tables.failures(runs, runs[0], 4)
    errors = [abs(row["label"] - row["probability"]) for row in rows]
    assert errors == sorted(np.abs(runs[0].label - runs[0].probability), reverse=True)[:4]
    k = runs[0].case_id.index(rows[0]["case_id"])
    assert rows[0]["others"] == {"bad": runs[1].probability[k]}


def without(folder: Path, name: str, folds: Sequence[int]) -> None:
    for fold in folds:
        with open(folder / f"fold-{fold}" / "predictions.csv", newline="") as file:
            rows = [{**row, "probability": float(row["probability"]) * 0.5 + 0.2} for row in csv.DictReader(file)]
        table(folder / f"fold-{fold}" / f"predictions_without_{name}.csv", rows)


def test_missing_inputs_are_told_or_said_to_be_unknown(good: Path) -> None:
    assert (
        "what a missing input costs was not measured"
        in evaluate.evaluate(*[(r := read_runs([good])), r[0]], draws=50)["missing_inputs_note"]
    )
    without(good, "slide", (0, 1, 2))
    without(good, "t2_post", (0, 2))
    runs = read_runs([good])
    found = evaluate.evaluate(runs, runs[0], draws=50)
    assert [row["input"] for row in found["missing_inputs"]] == ["slide"]
    assert found["missing_inputs"][0]["difference"].value == pytest.approx(0, abs=1e-12)  # the same order of cases
    assert "good lacks predictions_without_t2_post.csv in fold-1" in found["missing_inputs_note"]


def test_checklists_say_what_is_not_recorded(good: Path) -> None:
    runs = read_runs([good])
    found = {(row["guideline"], row["item"]): row for row in evaluate.evaluate(runs, runs[0], draws=50)["checklist"]}
    assert sum(name == "CLAIM" for name, _ in found) == 42
    assert len({re.match(r"\d+", item)[0] for name, item in found if name == "TRIPOD+AI"}) == 27  # type: ignore[index]
    assert found["TRIPOD+AI", "18f"]["answer"] == "Version 9.9, commit abc1234."
    assert found["TRIPOD+AI", "17"] == {**found["TRIPOD+AI", "17"], "answer": checklist.NOT_RECORDED, "recorded": False}
    assert "north: 50 cases" in found["CLAIM", "34"]["answer"]
    assert all(row["answer"] for row in found.values())


def test_the_command_writes_three_files_that_agree(good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "report"
    assert evaluate.main([str(bad), str(good), "--reference", "good", "--subgroup", "age", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    run = read_run(good)
    assert results["reference"] == "good"
    area = next(row for row in results["runs"] if row["run"] == "good")["auc"]
    assert area["value"] == pytest.approx(roc_auc_score(run.label, run.probability))
    with open(out / "tables.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    line = next(r for r in lines if (r["table"], r["row"], r["metric"]) == ("runs", "good", "auc"))
    assert float(line["low"]) == area["low"]
    assert {r["table"] for r in lines} == {"runs", "folds", "comparisons", "subgroups", "failures"}
    html = (out / "report.html").read_text()
    assert page.number(area["value"]) in html
    assert "synthetic phantoms" in html and "not for clinical use" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)  # needs nothing outside itself
    assert html.count("data:image/svg+xml") == 4
    assert "What each part of the network adds" in html  # the runs differ in LD-VAE
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "results.json", "tables.csv"]
    assert "bad - good: " in capsys.readouterr().out


def test_names_of_cases_cannot_break_the_page(tmp_path: Path) -> None:
    def nasty(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "centre": "<script>x</script>", "case_id": f"<b>{row['case_id']}"}

    runs = read_runs([write_run(tmp_path / "r", change=nasty)])
    html = page.render(evaluate.evaluate(runs, runs[0], draws=50), runs, runs[0])
    assert "<script>" not in html and "<b>C" not in html


def test_an_unfinished_run_is_said_to_be_so(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (good / "fold-2").iterdir():
        path.unlink()
    assert evaluate.main([str(good), "--out", str(tmp_path / "out")]) == 0
    assert "not finished: 2 of 3 folds have judged" in capsys.readouterr().err
    runs = read_runs([good])
    html = page.render(evaluate.evaluate(runs, runs[0], draws=50), runs, runs[0])
    assert "Not finished: 2 of 3 folds have judged" in html


def test_runs_without_choosing_cases_are_judged_at_one_half_only(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / "r", change=lambda row: row if row["role"] == "judge" else None)])
    results = evaluate.evaluate(runs, runs[0], draws=50)
    assert results["runs"][0]["at_inner_youden"] is None
    assert "there is no such threshold" in page.render(results, runs, runs[0])
    json.dumps(tables.plain(results), allow_nan=False)


def test_a_wrong_reference_is_a_user_error(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(good), "--reference", "best", "--out", str(tmp_path / "o")]) == 2
    assert "there is no run 'best'; there are good." in capsys.readouterr().err


class Oracle:
    """Stands in for the network: knows each case's probability, and counts how often it is asked."""

    def __init__(self, fail: Sequence[str] = ()) -> None:
        self.asked: list[str] = []
        self.fail = fail

    def __call__(self, cases: Sequence[Case], path: Path, out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
        self.asked += [case.case_id for case in cases]
        rows = {
            case.case_id: {"probability": 0.3 + 0.4 * (case.label or 0) - 0.01 * len(self.asked), "decision": "responder"}
            for case in cases
            if case.case_id not in self.fail
        }
        return rows, [f"{name}: broken" for name in self.fail]


def locked_cohort(path: Path, start: str = "E", count: int = 12) -> Path:
    table(
        path,
        [{"case_id": f"{start}{k:02d}", "patient_id": f"{start}P{k:02d}", "centre": "west", "label": k % 3 == 0} for k in range(count)],
    )
    path.write_text(path.read_text().replace("True", "1").replace("False", "0"))
    return path


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return locked_cohort(tmp_path / "locked.csv")


def predictions(cohort: Path) -> dict[str, Any]:
    """Those of the only model in a ledger."""
    (own,) = json.loads(external.ledger_of(cohort).read_text())["models"].values()
    return own["predictions"]


def test_locked_cases_are_predicted_once(good: Path, cohort: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    oracle = Oracle()
    first = external.evaluate(cohort, good, tmp_path / "a", oracle)
    assert len(oracle.asked) == 12
    assert first["auc"].value == 1.0
    assert (first["cases"], first["responders"], first["threshold"]) == (12, 4, 0.4)
    book = json.loads(external.ledger_of(cohort).read_text())
    assert list(book["models"]) == [first["model_sha256"]]
    again = external.evaluate(cohort, good, tmp_path / "b", oracle)
    assert len(oracle.asked) == 12  # read from the ledger
    assert again == first


def test_another_model_is_refused_even_after_a_stopped_run(good: Path, cohort: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)

    def stopped(cases: Sequence[Case], path: Path, out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        external.evaluate(cohort, good, tmp_path, stopped)
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD | {"threshold": 0.6})
    oracle = Oracle()
    with pytest.raises(BadOption, match=r"were opened on 20\d\d-\d\d-\d\d for the model [0-9a-f]{12}; .* may judge one model only"):
        external.evaluate(cohort, good, tmp_path, oracle)
    assert not oracle.asked


def test_several_models_judge_when_all_were_named_before_the_first_case(good: Path, cohort: Path, tmp_path: Path) -> None:
    runs = []
    for k in range(3):
        shutil.copytree(good, tmp_path / f"run{k}")
        checkpoint(tmp_path / f"run{k}" / "whole" / "checkpoint.safetensors", CARD | {"threshold": 0.3 + 0.1 * k})
        runs.append(read_run(tmp_path / f"run{k}"))
    external.register(cohort, runs[:2])
    oracle = Oracle()
    found = [external.evaluate(cohort, run.path, tmp_path / run.name, oracle) for run in runs[:2]]
    assert len(oracle.asked) == 24 and [row["models"] for row in found] == [2, 2]
    assert list(found[0]["by_centre"]) == ["west"] and found[0]["by_centre"]["west"] == found[0]["auc"]
    cases, probability = external.judged(cohort, runs[1])
    assert [case.case_id for case in cases] == [f"E{k:02d}" for k in range(12)]
    assert probability.tolist() != external.judged(cohort, runs[0])[1].tolist()  # each model's own
    with pytest.raises(BadOption, match=r"for the models .* may judge those models only"):
        external.evaluate(cohort, runs[2].path, tmp_path, oracle)
    external.register(cohort, runs[:2])  # again, unchanged
    with pytest.raises(BadOption, match="those models only"):
        external.register(cohort, runs)
    assert len(oracle.asked) == 24


def test_a_ledger_of_one_model_as_it_was_written_before_is_read(good: Path, cohort: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    oracle = Oracle()
    first = external.evaluate(cohort, good, tmp_path, oracle)
    book = json.loads(external.ledger_of(cohort).read_text())
    ((model, own),) = book.pop("models").items()
    external.ledger_of(cohort).write_text(json.dumps({"model_sha256": model, **book, **own}))
    assert external.evaluate(cohort, good, tmp_path, oracle) == first
    assert len(oracle.asked) == 12


def test_a_changed_table_is_refused(good: Path, cohort: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    external.evaluate(cohort, good, tmp_path, Oracle())
    cohort.write_text(cohort.read_text().replace("west,0", "west,1", 1))
    with pytest.raises(BadCohort, match="changed after its locked cases were opened"):
        external.evaluate(cohort, good, tmp_path, Oracle())


def test_failed_cases_are_tried_again_and_predicted_ones_are_not_replaced(good: Path, cohort: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    oracle = Oracle(fail=["E03"])
    first = external.evaluate(cohort, good, tmp_path, oracle)
    assert (first["cases"], first["failures"]) == (11, ["E03: broken"])
    before = predictions(cohort)
    oracle.fail = []
    second = external.evaluate(cohort, good, tmp_path, oracle)
    after = predictions(cohort)
    assert (second["cases"], second["failures"]) == (12, [])
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize(("old", "new", "message"), [("E00,", "C05,", "'C05'"), ("EP00", "P05", "'E00', or its patient")])
def test_patients_the_model_learned_from_are_not_external(
    good: Path, cohort: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    cohort.write_text(cohort.read_text().replace(old, new))
    with pytest.raises(BadCohort, match=message):
        external.evaluate(cohort, good, tmp_path, Oracle())
    assert not external.ledger_of(cohort).exists()  # nothing was opened


def test_only_the_external_centres_of_a_shared_table_are_judged(good: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    shared = locked_cohort(tmp_path / "all.csv")
    lines = shared.read_text().splitlines()
    shared.write_text("\n".join([*lines, "C05,P05,north,1"]) + "\n")
    settings = json.loads((good / "experiment.json").read_text())
    (good / "experiment.json").write_text(json.dumps({**settings, "external": ["west"]}))
    for folds in ("with", "without"):
        if folds == "without":  # trained with --whole alone, into the same kind of folder
            external.ledger_of(shared).unlink()
            for fold in good.glob("fold-*"):
                shutil.rmtree(fold)
        oracle = Oracle()
        external.evaluate(shared, good, tmp_path / folds, oracle)
        assert oracle.asked == [f"E{k:02d}" for k in range(12)]


def test_nobody_who_was_learned_from_is_judged_as_a_locked_case(good: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    for fold in (1, 2):
        shutil.rmtree(good / f"fold-{fold}")  # not finished: most who trained stand in no table of predictions
    locked = locked_cohort(tmp_path / "locked.csv")
    assert not external.learned_from(good)[1]

    table(good / "cases.csv", [{"case_id": f"C{k:02d}", "patient_id": f"P{k:02d}", "centre": "north", "label": 1} for k in range(COUNT)])
    assert external.learned_from(good) == ({f"{kind}{k:02d}" for k in range(COUNT) for kind in "CP"}, True)
    locked.write_text(locked.read_text() + "X01,P01,west,1\n")
    with pytest.raises(BadCohort, match="'X01', or its patient, is among those that run 'good' learned from"):
        external.evaluate(locked, good, tmp_path, Oracle())


def test_who_only_chose_was_learned_from_too(good: Path, tmp_path: Path) -> None:
    checkpoint(good / "whole" / "checkpoint.safetensors", CARD)
    with open(good / "fold-0" / "predictions.csv", newline="") as file:
        chose = next(row["patient_id"] for row in csv.DictReader(file) if row["role"] == "choose")
    for fold in (1, 2):
        shutil.rmtree(good / f"fold-{fold}")
    locked = locked_cohort(tmp_path / "locked.csv")
    locked.write_text(locked.read_text() + f"X01,{chose},west,1\n")
    with pytest.raises(BadCohort, match="'X01', or its patient"):
        external.evaluate(locked, good, tmp_path, Oracle())


def test_a_run_of_folds_alone_has_no_model_for_locked_cases(good: Path, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"has no single model for external cases .* Train it with --whole"):
        external.evaluate(cohort, good, tmp_path, Oracle())


def test_the_command_reports_locked_cases_of_a_run_without_folds(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "final" / "whole" / "checkpoint.safetensors", CARD)
    oracle = Oracle(fail=["E01"])
    monkeypatch.setattr(external, "_predict", lambda cases, path, out, *, ignore_masks: oracle(cases, path, out))
    assert evaluate.main([str(tmp_path / "final"), "--external", str(cohort), "--out", str(tmp_path / "o")]) == 2  # a case is missing
    html = (tmp_path / "o" / "report.html").read_text()
    assert "11 locked cases (4 responders)" in html
    assert "could not be predicted" in html and "could not be checked" in html
    assert json.loads((tmp_path / "o" / "results.json").read_text())["external"]["auc"]["value"] == 1.0
    assert "E01: broken" in capsys.readouterr().err


def test_a_run_is_what_the_training_writes(good: Path) -> None:
    """The columns that Training.train writes are those a run reads."""
    from Training.judgement import Rule, prediction_rows
    from Training.runs import COLUMNS

    case = Case.from_files("A", {}, patient_id="P", centre="c", label=1)
    assert tuple(prediction_rows([case], "judge", np.array([0.6]), Rule(0.5, (0.5, 0.5)))[0]) == COLUMNS
    assert isinstance(read_run(good), Run)
