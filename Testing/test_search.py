"""The search: what it may change, that it reads no case it is judged on, goes on where it stopped, and says what mattered."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("smac", reason="the extra 'search' is not installed")

from test_loop import FABRIC
from test_start import small, write_cache

from HARM3Logic.errors import BadCohort, BadOption, HARM3Error
from HARM3Logic.models.lora import LoraSettings
from Training import search, search_page, trial
from Training.cache import Cache
from Training.experiment import find
from Training.folds import Split
from Training.history import Trial, best_of, decoded, encoded, importance, incumbents, read_history, write_history
from Training.loop import Diverged
from Training.optimise import Plan, optimise, workers
from Training.runs import read_run
from Training.search_page import Searched
from Training.space import Choice, Float, Int, own, put, space_of, usual

EXPERIMENT = small(learning_rate=1e-3, weight_decay=1e-3)
SPACE = {"learning_rate": Float(1e-5, 1e-1, log=True), "config.dropout": Float(0.0, 0.5), "batch_size": Choice((2, 3, 4))}
PLAN = Plan(trials=12, epochs=(1, 4))


def bowl(values: Mapping[str, Any], epochs: int) -> tuple[float | None, dict[str, Any]]:
    """Best at a learning rate of 1e-3 and without dropout; crashes at the highest rates."""
    if values["learning_rate"] > 3e-2:
        return None, {"reason": "the loss is nan"}
    return 0.1 + 0.05 * abs(math.log10(values["learning_rate"]) + 3) + 0.1 * values["config.dropout"] + 0.2 / epochs, {}


def run_bowl(folder: Path, plan: Plan = PLAN, cost: Any = bowl, client: Any = None) -> tuple[Trial, ...]:
    folder.mkdir(exist_ok=True)
    return optimise(cost, SPACE, EXPERIMENT, folder, plan, client)


def plain(trials: tuple[Trial, ...]) -> list[tuple[Any, ...]]:
    return [(t.number, dict(t.values), t.epochs, t.auc, t.reason) for t in trials]


def test_fields_are_changed_by_path_and_nothing_else():
    changed = put(EXPERIMENT, {"learning_rate": 0.5, "config.dropout": 0.4, "config.trunk.layers": 3, "config.heads": 4})
    assert own(changed, "config.trunk.layers") == 3 and own(changed, "config.dropout") == 0.4 and changed.learning_rate == 0.5
    back = put(
        changed, {path: own(EXPERIMENT, path) for path in ("learning_rate", "config.dropout", "config.trunk.layers", "config.heads")}
    )
    assert back == EXPERIMENT
    with pytest.raises(BadOption, match=r"'config.drop'.*drop: there are fusion"):
        own(EXPERIMENT, "config.drop")


def test_the_usual_space_has_what_the_experiment_has():
    found = usual(small())
    assert "lora.rank" not in found and found["config.heads"] == Choice((2, 4, 8))  # its width is 24
    assert "lora.rank" in usual(small(lora=LoraSettings()))
    odd = small()
    assert "config.heads" not in usual(dataclasses.replace(odd, config=dataclasses.replace(odd.config, width=26)))
    assert space_of("harm3_fusion:compact", find("harm3_fusion:compact"))["learning_rate"] == Float(1e-5, 1e-3, log=True)


@pytest.mark.parametrize("kind", [Float(0.0, 1.0, log=True), Int(3, 3), Choice((1,)), Choice((1, 1)), Float(0, math.inf)])
def test_bounds_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, kind: Any):
    from Training.experiments import harm3_fusion

    monkeypatch.setattr(harm3_fusion, "SPACE", {"learning_rate": kind}, raising=False)
    with pytest.raises(BadOption, match="SPACE has for learning_rate"):
        space_of("harm3_fusion", find("harm3_fusion"))
    monkeypatch.setattr(harm3_fusion, "SPACE", {"config.depth": Int(1, 2)}, raising=False)
    with pytest.raises(BadOption, match=r"'config\.depth'"):
        space_of("harm3_fusion", find("harm3_fusion"))


def test_values_come_back_as_they_were():
    space = {"a": Choice(((1, 2), None, "x")), "b": Int(1, 9), "c": Float(0, 1)}
    for value in ((1, 2), None, "x"):
        kept = json.loads(json.dumps(encoded(space, {"a": value, "b": 4, "c": 0.25})))
        assert decoded(space, kept) == {"a": value, "b": 4, "c": 0.25}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched") / "fold-0"
    run_bowl(folder)
    return folder


def test_a_search_tries_the_experiment_itself_and_keeps_crashes(whole: Path):
    trials = read_history(whole, SPACE)
    assert [t.number for t in trials] == list(range(1, 13)) and {t.epochs for t in trials} <= {1, 4} and 4 in {t.epochs for t in trials}
    assert any(dict(t.values) == {path: own(EXPERIMENT, path) for path in SPACE} for t in trials)
    assert all((t.auc is None) == (t.values["learning_rate"] > 3e-2) and (t.reason == "the loss is nan") == (t.auc is None) for t in trials)
    for t in trials:
        cost = bowl(t.values, t.epochs)[0]
        assert t.auc == (None if cost is None else pytest.approx(1 - cost))


def test_the_same_seed_takes_the_same_path(whole: Path, tmp_path: Path):
    assert plain(run_bowl(tmp_path / "fold-0")) == plain(read_history(whole, SPACE))


def test_a_stopped_search_goes_on_and_repeats_nothing(whole: Path, tmp_path: Path):
    calls: list[tuple[str, int]] = []

    def stops(values: Mapping[str, Any], epochs: int) -> tuple[float | None, dict[str, Any]]:
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append((repr(sorted(values.items())), epochs))
        return bowl(values, epochs)

    with pytest.raises(KeyboardInterrupt):
        run_bowl(tmp_path / "fold-0", cost=stops)
    before = plain(read_history(tmp_path / "fold-0", SPACE))
    assert before == plain(read_history(whole, SPACE))[:5]
    (tmp_path / "fold-0/smac/0/runhistory.json").write_text('{"sta')  # stopped while SMAC was writing
    calls.append(("the stop", 0))
    trials = run_bowl(tmp_path / "fold-0", Plan(trials=14, epochs=(1, 4)), cost=stops)
    assert len(trials) == 14 and plain(trials)[:5] == before
    assert len(set(calls)) == len(calls) == 15  # no trial was made twice
    assert run_bowl(tmp_path / "fold-0", Plan(trials=14, epochs=(1, 4)), cost=None) == trials  # nothing is left to do


def test_a_bug_in_the_first_trial_ends_the_search_and_a_refusal_keeps_its_words(tmp_path: Path):
    def bug(values: Any, epochs: int) -> Any:
        return values["learing_rate"]

    def refuses(values: Any, epochs: int) -> Any:
        raise BadCohort("no case has a CT.", "Give one.")

    with pytest.raises(RuntimeError, match="learing_rate"):
        run_bowl(tmp_path / "a", cost=bug)
    with pytest.raises(HARM3Error, match=r"no case has a CT\. Give one\."):
        run_bowl(tmp_path / "b", cost=refuses)
    assert read_history(tmp_path / "a", SPACE) == read_history(tmp_path / "b", SPACE) == ()


@pytest.mark.slow
def test_workers_are_other_processes(tmp_path: Path):
    home = os.getpid()

    def where(values: Mapping[str, Any], epochs: int) -> tuple[float | None, dict[str, Any]]:
        import os

        return (None, {"reason": "at home"}) if os.getpid() == home else bowl(values, epochs)

    plan = Plan(trials=12, epochs=(1, 4), workers=2)
    with workers(plan, tmp_path) as client:
        trials = run_bowl(tmp_path / "fold-0", plan, where, client)
    assert len(trials) >= 12 and all(t.reason in ("", "the loss is nan") for t in trials)
    with pytest.raises(BadOption, match="no Dask scheduler answers"), workers(Plan(4, (1, 4), scheduler="tcp://127.0.0.1:9"), tmp_path):
        pass


def made(number: int, epochs: int, auc: float | None, **values: Any) -> Trial:
    return Trial(number, {"learning_rate": 1e-3, "config.dropout": 0.1, "batch_size": 3, **values}, epochs, auc, 1.0, "" if auc else "nan")


def test_the_best_is_of_the_most_epochs(tmp_path: Path):
    trials = (made(1, 1, 0.7), made(2, 1, None), made(3, 1, 0.9), made(4, 4, 0.6), made(5, 1, 0.95), made(6, 4, 0.65), made(7, 4, 0.65))
    assert [t.number for t in incumbents(trials)] == [1, 3, 4, 6]
    write_history(tmp_path, trials)
    assert json.loads((tmp_path / "best.json").read_text()) == {
        "values": dict(trials[5].values), "inner_auc": 0.65, "epochs": 4, "trial": 6, "trials": 7, "crashed": 1
    }  # fmt: skip
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 8 and len((tmp_path / "path.csv").read_text().splitlines()) == 5
    with pytest.raises(HARM3Error, match="none of the 1 trials of fold-0"):
        best_of((made(1, 1, None),), "fold-0")


def test_importance_names_what_mattered():
    rng = np.random.default_rng(0)
    rates, drops = 10 ** rng.uniform(-5, -1, 60), rng.uniform(0, 0.5, 60)
    trials = tuple(
        made(
            k + 1, 4, 0.9 - 0.1 * abs(math.log10(rate) + 3), learning_rate=rate, **{"config.dropout": drop, "batch_size": (2, 3, 4)[k % 3]}
        )
        for k, (rate, drop) in enumerate(zip(rates, drops, strict=True))
    )
    found = importance(trials, SPACE)
    rate = found["learning_rate"]
    assert rate.value > 0.03 and rate.low > 0 and max(abs(found[name].value) for name in found if name != "learning_rate") < rate.value / 5
    assert importance(trials[:9], SPACE) == {}
    page = search_page.render("x", EXPERIMENT, SPACE, [Searched("fold-0", (*trials, made(61, 1, None)), found)], 2)
    for words in (
        "Permutation importance",
        "1 of 2 folds have been searched",
        "trial 61: nan",
        "1e-05 to 0.1, log scale",
        "one of 2, 3, 4",
    ):
        assert words in page


class Guarded(Cache):
    """Only the named cases may be read."""

    def __init__(self, cache: Cache, allowed: set[int]) -> None:
        super().__init__(cache.paths, cache.cases)
        self.allowed, self.read = allowed, set[int]()

    def __getitem__(self, index: int) -> Any:
        assert index in self.allowed, f"case {index} was read"
        self.read.add(index)
        return super().__getitem__(index)


SPLIT = Split(train=tuple(range(6, 38)), choose=(0, 1, 2), judge=(3, 4, 5), number=0)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    made = write_cache(tmp_path_factory.mktemp("cases") / "cache", [50.0 + k for k in range(38)])
    return Cache(made.paths, [dataclasses.replace(case, fold=k % 2) for k, case in enumerate(made.cases)])


def test_a_trial_reads_the_cases_that_train_and_no_other(cases: Cache):
    poisoned = [dataclasses.replace(case, label=None) if k < 6 else case for k, case in enumerate(cases.cases)]  # cannot even be split
    guarded = Guarded(Cache(cases.paths, poisoned), set(SPLIT.train))
    cost, about = trial.objective(EXPERIMENT, guarded, SPLIT.train, 2, "cpu")({"learning_rate": 1e-2}, 1)
    assert guarded.read == set(SPLIT.train)
    assert cost == pytest.approx(1 - np.mean(about["inner_aucs"])) and len(about["inner_aucs"]) == 2
    with pytest.raises(AssertionError, match="was read"):
        trial.inner_aucs(EXPERIMENT, Guarded(cases, set(SPLIT.train)), range(38), 2, FABRIC)


def test_inner_folds_are_the_searchs_own_and_keep_patients_together(cases: Cache):
    paired = Cache(cases.paths, [dataclasses.replace(case, patient_id=f"P{k // 4}") for k, case in enumerate(cases.cases)])
    paired.cases = tuple(dataclasses.replace(case, label=k // 4 % 2) for k, case in enumerate(paired.cases))
    with pytest.raises(BadCohort, match="one must train and one choose"):
        trial.inner_splits(paired, tuple(range(16)), 2, 0)  # two patients of a kind, of whom one judges
    for split in trial.inner_splits(paired, tuple(range(38)), 3, 0):
        parts = [{paired.cases[k].patient_id for k in part} for part in (split.train, split.choose, split.judge)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    splits = trial.inner_splits(cases, SPLIT.train, 2, 0)  # the cohort's own folds would leave every second case
    assert sorted(k for split in splits for k in split.judge) == list(SPLIT.train)
    for split in splits:
        assert sorted((*split.train, *split.choose, *split.judge)) == list(SPLIT.train)
    assert len({cases.cases[k].fold for k in splits[0].judge}) == 2


def test_a_training_that_diverges_is_a_crash_and_other_errors_are_not(cases: Cache, monkeypatch: pytest.MonkeyPatch):
    def diverges(*_: Any) -> None:
        raise Diverged("the loss is nan in epoch 0.", "Lower the learning rate.")

    cost = trial.objective(EXPERIMENT, cases, SPLIT.train, 2, "cpu")
    monkeypatch.setattr(trial, "train", diverges)
    assert cost({}, 1) == (None, {"reason": "the loss is nan in epoch 0. Lower the learning rate."})


def test_a_fold_is_searched_and_then_trained_with_the_best(tmp_path: Path, cases: Cache, monkeypatch: pytest.MonkeyPatch):
    space = {"learning_rate": Float(1e-3, 1e-1, log=True), "config.dropout": Float(0.0, 0.5)}
    inside = [dataclasses.replace(case, fold=0 if k in SPLIT.judge else 1) for k, case in enumerate(cases.cases)]
    monkeypatch.setattr(search, "space_of", lambda name, experiment: space)
    monkeypatch.setattr(search, "read_cohort", lambda path: inside)
    monkeypatch.setattr(search, "partition", lambda *_: (tuple(inside), [SPLIT]))
    monkeypatch.setattr(search, "prepared", lambda *_: Cache(cases.paths, inside))
    plan = Plan(trials=6, epochs=(1, 2), inner=2)
    search.run(EXPERIMENT, "x", tmp_path / "c.csv", tmp_path / "run", plan, device="cpu")
    fold = tmp_path / "run/fold-0"
    best = json.loads((fold / "best.json").read_text())
    run = read_run(tmp_path / "run")
    assert run.case_id == ("GI-3", "GI-4", "GI-5") and run.cards["fold-0"]["config"]["dropout"] == best["values"]["config.dropout"]
    assert run.experiment["search"]["inner"] == 2 and (tmp_path / "run/search.html").is_file()
    with pytest.raises(BadOption, match="fold-0 was trained with the best of 6 trials; 7 were asked for"):
        search.run(EXPERIMENT, "x", tmp_path / "c.csv", tmp_path / "run", dataclasses.replace(plan, trials=7), device="cpu")
    with pytest.raises(BadOption, match=r"other settings \(search\)"):
        search.run(EXPERIMENT, "x", tmp_path / "c.csv", tmp_path / "run", dataclasses.replace(plan, inner=3), device="cpu")


@pytest.mark.parametrize("asked", [["--trials", "1"], ["--min-epochs", "9", "--max-epochs", "3"], ["--inner", "1"]])
def test_impossible_plans_are_refused(tmp_path: Path, asked: list[str], capsys: pytest.CaptureFixture[str]):
    assert search.main(["harm3_fusion", "--cohort", str(tmp_path / "c.csv"), "--out", str(tmp_path / "o"), *asked]) == 2
    assert "wanted" in capsys.readouterr().err


def test_without_smac_the_sentence_says_what_to_install() -> None:
    code = "import runpy, sys; sys.modules['smac'] = None; runpy.run_module('Training.search', run_name='__main__')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert found.returncode == 2
    assert found.stderr.splitlines()[-1].endswith("needs the package smac, which is not installed. pip install 'harm3slicer[search]'")
