"""Plain models on tables: nothing of a judged case reaches the model, and the files are those of a training."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from HARM3Logic.case import Case
from HARM3Logic.clinical import read_schema
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from Training import judgement, metrics, tabular
from Training.datasets import DATASETS, Table, read_table, write_as_cohort
from Training.folds import folds


def table(cases: int = 120, strength: float = 1.5, seed: int = 0, gaps: float = 0.1) -> Table:
    """Two numbers, one of which tells the label, and a word."""
    rng = np.random.default_rng(seed)
    label = (np.arange(cases) % 3 == 0).astype(int)
    frame = pd.DataFrame({"a": label * strength + rng.normal(size=cases), "b": rng.normal(size=cases), "w": rng.choice(list("xyz"), cases)})
    frame.loc[rng.random(cases) < gaps, "a"] = np.nan
    return Table("made", frame, tuple(Case(f"c{k}", {}, f"p{k}", "AB"[k % 2], int(y)) for k, y in enumerate(label)))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", tabular.MODELS)
@pytest.mark.parametrize("role", ["judge", "choose"])
def test_what_was_not_trained_on_cannot_move_the_model(model: str, role: str) -> None:
    plain = table()
    split = folds(plain.cases, 5, seed=0)[0]
    changed = plain.frame.copy()
    part = list(getattr(split, role))
    changed.loc[part, ["a", "b"]] = changed.loc[part, ["a", "b"]].fillna(3.0) * 1e4 - 500  # would drag any mean, spread or median along
    changed.loc[part, "w"] = "never seen"
    train_rows, label = list(split.train), np.array([case.label for case in plain.cases])
    fitted = [tabular.pipeline(model, f).fit(f.iloc[train_rows], label[train_rows]) for f in (plain.frame, changed)]
    assert np.array_equal(*(f.decision_function(plain.frame) for f in fitted))
    if role == "judge":  # nor what is made of its output
        before, after = (tabular.judge(replace(plain, frame=f), split, model) for f in (plain.frame, changed))
        assert [r for r in before if r["role"] == "choose"] == [r for r in after if r["role"] == "choose"]
        assert before != after


def test_the_scaler_knows_the_training_cases_alone() -> None:
    plain = table(gaps=0.0)
    split = folds(plain.cases, 5, seed=0)[0]
    train_rows, label = list(split.train), np.array([case.label for case in plain.cases])
    fitted = tabular.pipeline("logistic", plain.frame).fit(plain.frame.iloc[train_rows], label[train_rows])
    scaler = fitted.named_steps["columns"].named_transformers_["number"].named_steps["standardscaler"]
    assert scaler.mean_ == pytest.approx(plain.frame.iloc[train_rows][["a", "b"]].mean().to_numpy())
    assert scaler.mean_ != pytest.approx(plain.frame[["a", "b"]].mean().to_numpy())


def test_calibration_is_by_those_who_choose() -> None:
    plain = table()
    split = folds(plain.cases, 5, seed=0)[0]
    turned = [replace(case, label=1 - case.label) if k in split.choose else case for k, case in enumerate(plain.cases)]
    before, after = (tabular.judge(replace(plain, cases=tuple(cases)), split, "logistic") for cases in (plain.cases, turned))
    assert [r["probability"] for r in before] != [r["probability"] for r in after]


def test_a_network_is_trained_on_the_same_cases_columns_and_folds(tmp_path: Path) -> None:
    made = table()
    made.frame["w"] = made.frame["w"].where(np.arange(120) % 7 > 0, "unknown")
    made.frame["same"] = "yes"
    path, schema = write_as_cohort(made, tmp_path)
    cases, read = read_cohort(path), read_schema(schema)
    assert folds(cases, 5, seed=0) == folds(made.cases, 5, seed=0)
    assert read.names == ("a", "b", "w") and read.levels == (0, 0, 3)
    for k, case in enumerate(cases):
        values, known = read.read(case.clinical)
        assert known.tolist() == [not np.isnan(made.frame["a"][k]), True, k % 7 > 0]
        assert values[1] == pytest.approx(made.frame["b"][k]) and (not known[0] or values[0] == pytest.approx(made.frame["a"][k]))
        assert not known[2] or "xyz"[int(values[2])] == made.frame["w"][k]
    for case in made.cases:
        (tmp_path / "ct" / case.case_id).mkdir(parents=True)
        for name in ("ct.nii.gz", "tumour.nii.gz"):
            (tmp_path / "ct" / case.case_id / name).write_bytes(b"x")
    case = read_cohort(write_as_cohort(made, tmp_path, tmp_path / "ct")[0])[7]
    assert case.inputs["ct"][0].parent.name == case.inputs["tumour_ct"][0].parent.name == "c7"
    (tmp_path / "ct" / "c7" / "tumour.nii.gz").unlink()
    with pytest.raises(BadOption, match=r"c7' holds 0 files tumour"):
        write_as_cohort(made, tmp_path, tmp_path / "ct")


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """A cohort table with clinical columns."""
    made = table()
    frame = made.frame.add_prefix("clinical.").assign(
        case_id=[c.case_id for c in made.cases], patient_id=[c.patient_id for c in made.cases],
        centre=[c.centre for c in made.cases], label=[c.label for c in made.cases],
    )  # fmt: skip
    frame.to_csv(tmp_path / "cohort.csv", index=False)
    return tmp_path / "cohort.csv"


def test_a_run_has_the_files_and_columns_of_a_training(cohort: Path, tmp_path: Path) -> None:
    assert tabular.main([str(cohort), "--out", str(tmp_path / "run")]) == 0
    wanted = list(judgement.prediction_rows([Case("c", {}, label=1)], "judge", np.array([0.5]), judgement.Rule(0.5, (0.5, 0.5)))[0])
    judged = []
    for model in tabular.MODELS:
        assert json.loads((tmp_path / "run" / model / "experiment.json").read_text())["cohort"] == "cohort"
        found = [rows(tmp_path / f"run/{model}/fold-{k}/predictions.csv") for k in range(5)]
        assert all(list(row) == wanted for fold in found for row in fold)
        judged.append(sorted(row["case_id"] for fold in found for row in fold if row["role"] == "judge"))
        assert {row["role"] for row in found[0]} == {"judge", "choose"}
    assert judged[0] == judged[1] == sorted(f"c{k}" for k in range(120))  # everyone once, by both models in the same folds
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["logistic"]["pooled"]["low"] > 0.6
    assert (summary["cases"], summary["positive"]) == (120, 40)


def test_the_same_seed_gives_the_same_files(cohort: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        tabular.main([str(cohort), "--out", str(tmp_path / name)])
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_other_settings_need_another_folder(cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tabular.main([str(cohort), "--out", str(tmp_path / "run")]) == 0
    assert tabular.main([str(cohort), "--out", str(tmp_path / "run"), "--seed", "3"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_centres_are_held_out_judged_and_locked(cohort: Path, tmp_path: Path) -> None:
    assert tabular.main([str(cohort), "--out", str(tmp_path / "centre"), "--by-centre"]) == 0
    for number, centre in enumerate("AB"):
        found = rows(tmp_path / f"centre/logistic/fold-{number}/predictions.csv")
        assert {row["centre"] for row in found if row["role"] == "judge"} == {centre}
        assert centre not in {row["centre"] for row in found if row["role"] == "choose"}
    assert tabular.main([str(cohort), "--out", str(tmp_path / "test"), "--judge-centres", "B"]) == 0
    assert [p.name for p in (tmp_path / "test/logistic").iterdir() if p.is_dir()] == ["fold-1"]
    assert tabular.main([str(cohort), "--out", str(tmp_path / "locked"), "--external", "B"]) == 0
    for path in (tmp_path / "locked").rglob("predictions.csv"):
        assert {row["centre"] for row in rows(path)} == {"A"}


def test_repeats_lie_beside_each_other(cohort: Path, tmp_path: Path) -> None:
    assert tabular.main([str(cohort), "--out", str(tmp_path / "run"), "--repeats", "2"]) == 0
    one, two = (rows(tmp_path / f"run/{name}/fold-0/predictions.csv") for name in ("logistic", "logistic-seed1"))
    assert [r["case_id"] for r in one] != [r["case_id"] for r in two]


@pytest.mark.parametrize("model", tabular.MODELS)
def test_shuffled_labels_teach_nothing(model: str) -> None:
    made = table(180)
    rng = np.random.default_rng(5)
    label = rng.permutation([case.label for case in made.cases])
    made = replace(made, cases=tuple(replace(case, label=int(y)) for case, y in zip(made.cases, label, strict=True)))
    judged = [row for s in folds(made.cases, 5, seed=0) for row in tabular.judge(made, s, model) if row["role"] == "judge"]
    found = metrics.auc(np.array([row["label"] for row in judged]), np.array([row["probability"] for row in judged]))
    assert found.low < 0.5 < found.high


@pytest.mark.parametrize(
    ("name", "cases", "positive", "features"),
    [
        ("ispy1:pre_post", 168, 45, 8),
        ("transneo:clinical", 162, 42, 8),
        ("transneo:all", 162, 42, 44),
        ("hn_locoregional", 300, 45, 6),
        ("hn_distant", 300, 40, 6),
        ("hn_death", 300, 56, 6),
        ("sarcoma:ct", 51, 19, 17),
        ("ucsb", 58, 26, 1416),
    ],
)
def test_published_tables_are_read_as_described(data: Path, name: str, cases: int, positive: int, features: int) -> None:
    found = read_table(data / "data/tables" / DATASETS[name.partition(":")[0]].file, name)
    assert (len(found.cases), sum(case.label or 0 for case in found.cases), found.frame.shape[1]) == (cases, positive, features)
    assert len(found.frame) == cases
    assert len({case.case_id for case in found.cases}) == cases


def test_no_outcome_is_among_the_features() -> None:
    outcomes = ("rcb", "surviv", "rfs", "alive", "surgery", "death", "distant", "locoregional", "cellularity", "lvi", "positive.ln")
    for known in DATASETS.values():
        for columns in known.features.values():
            assert not [c for c in columns if any(word in c.lower() for word in outcomes) or c == known.label]


def test_what_is_unknown_counts_as_such(data: Path) -> None:
    found = read_table(data / "data/tables/hn_petct_300_clinical_outcomes.csv", "hn_death")
    assert set(found.frame["hpv"]) == {"0.0", "1.0", "unknown"}
    assert {case.centre for case in found.cases} == {"HGJ", "CHUS", "HMR", "CHUM"}


@pytest.mark.parametrize(
    ("file", "dataset", "words"),
    [
        ("none.csv", "", "no table"),
        ("hn_petct_300_clinical_outcomes.csv", "", "hn_locoregional, hn_distant, hn_death"),
        ("hn_petct_300_clinical_outcomes.csv", "ispy2", "'ispy2' is not known"),
        ("ispy1_168_longitudinal_mri_pcr.csv", "ispy1:post", "no features 'post'"),
        ("ispy1_168_longitudinal_mri_pcr.csv", "transneo", "no column"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, file: str, dataset: str, words: str) -> None:
    if file != "none.csv":
        (tmp_path / file).write_text("x\n1\n")
    with pytest.raises(BadOption, match=words):
        read_table(tmp_path / file, dataset)


def test_a_cohort_without_features_is_told(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("case_id,label\nA,1\n")
    with pytest.raises(BadOption, match=r"no columns clinical\.\*"):
        read_table(tmp_path / "cohort.csv")
