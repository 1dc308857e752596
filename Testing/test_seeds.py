"""Several seeds of the same rows: what one training says, and what their mean says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from HARM3Logic.errors import BadOption
from Training.comparison import delong, paired
from Training.runs import Run
from Training.seeds import TESTS, over_seeds

CASES, SEEDS = 300, 5


def run_of(score: np.ndarray, label: np.ndarray, seed: int) -> Run:
    names = tuple(f"c{k:03d}" for k in range(len(label)))
    return Run(
        "row", Path("."), names, names, ("",) * len(label), ("",) * len(label), ("fold-0",) * len(label), label, expit(score),
        np.full(len(label), np.nan), {"fold-0": 1}, experiment={"seed": seed},
    )  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Run]]:
    """A row whose signal is weaker, under the noise that every training adds of its own."""
    rng = np.random.default_rng(4)
    label = rng.integers(0, 2, CASES)
    shared = rng.normal(size=CASES)
    return {
        name: [run_of(strength * label + shared + rng.normal(size=CASES), label, seed) for seed in range(SEEDS)]
        for name, strength in (("full", 1.4), ("less", 1.1))
    }


def test_the_mean_over_seeds_tells_apart_what_one_training_cannot(rows: dict[str, list[Run]]) -> None:
    full, less = over_seeds(rows, "full")
    single = [paired(run.label, run.probability, other.probability).p for run, other in zip(rows["full"], rows["less"], strict=True)]
    assert less["of_means"]["p"] < 0.05 < np.median(single)
    assert full["auc_of_mean"].value > max(full["aucs"])  # what each training adds of its own is averaged away
    assert "of_means" not in full
    assert less["of_means"]["difference"].value == pytest.approx(less["auc_of_mean"].value - full["auc_of_mean"].value)


def test_single_trainings_are_compared_by_the_mean_of_their_aucs(rows: dict[str, list[Run]]) -> None:
    full, less = over_seeds(rows, "full")
    step = less["of_trainings"]["difference"]
    assert step.value == pytest.approx(less["auc_mean"] - full["auc_mean"])
    rng, label = np.random.default_rng(0), rows["full"][0].label
    draws = []
    for _ in range(400):  # DeLong's spread is that of cases drawn anew
        drawn = np.concatenate([rng.choice(np.flatnonzero(label == k), int(np.sum(label == k))) for k in (0, 1)])
        means = [np.mean([delong(label[drawn], run.probability[drawn])[0] for run in rows[name]]) for name in ("full", "less")]
        draws.append(means[1] - means[0])
    assert (step.high - step.low) / 3.92 == pytest.approx(np.std(draws), rel=0.1)


def test_logits_are_averaged_and_single_trainings_are_summarised(rows: dict[str, list[Run]]) -> None:
    found = over_seeds(rows, "full")[0]
    label, logits = rows["full"][0].label, [np.log(run.probability / (1 - run.probability)) for run in rows["full"]]
    assert found["auc_of_mean"].value == pytest.approx(float(delong(label, np.mean(logits, axis=0))[0][0]))
    single = [float(delong(label, score)[0][0]) for score in logits]
    assert found["aucs"] == pytest.approx(single) and found["seeds"] == list(range(SEEDS))
    assert found["auc_mean"] == pytest.approx(np.mean(single)) and found["auc_spread"] == pytest.approx(np.std(single, ddof=1))


def test_p_is_corrected_for_the_rows(rows: dict[str, list[Run]]) -> None:
    two = over_seeds({**rows, "again": rows["less"]}, "full")
    for test in TESTS:
        assert two[1][test]["p_holm"] == pytest.approx(2 * two[1][test]["p"]) and two[1][test]["p"] == two[2][test]["p"]


def test_runs_of_other_cases_are_refused(rows: dict[str, list[Run]]) -> None:
    with pytest.raises(BadOption, match="the 4 runs of 'less' do not judge the cases of the 5 runs"):
        over_seeds({**rows, "less": rows["less"][:4]}, "full")
    strange = replace(rows["less"][2], case_id=("x", *rows["less"][2].case_id[1:]))
    with pytest.raises(BadOption, match="do not judge the cases"):
        over_seeds({**rows, "less": [*rows["less"][:2], strange, *rows["less"][3:]]}, "full")
