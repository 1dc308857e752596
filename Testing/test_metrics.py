"""Numbers of merit against other programs' and against what they must be."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from Training import metrics
from Training.train import SLOPE_PRIOR, calibrate


def drawn(count: int, slope: float = 1.0, intercept: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that truly follow sigmoid(slope * logit + intercept)."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, count)
    return (rng.random(count) < expit(slope * logit + intercept)).astype(int), logit


@pytest.mark.parametrize("count", [40, 407])
@pytest.mark.parametrize("model", ["A", "B"])
def test_auc_equals_the_golden_one(parity: Path, count: int, model: str) -> None:
    golden = np.load(parity / "statistics.npz")
    label, probability = golden[f"input.n{count}.y"], golden[f"input.n{count}.p_{model}"]
    found = metrics.auc(label, probability)
    assert found.value == pytest.approx(float(golden[f"output.n{count}.{model}.auc"]), rel=1e-9)
    low, high = golden[f"output.n{count}.{model}.auc_ci95_delong"]
    width = high - low  # another method: near DeLong's, not equal
    assert found.low == pytest.approx(low, abs=0.15 * width)
    assert found.high == pytest.approx(high, abs=0.15 * width)


@pytest.mark.parametrize("model", ["A", "B"])
def test_recalibration_equals_the_golden_one(parity: Path, model: str) -> None:
    golden = np.load(parity / "statistics.npz")
    probability = golden[f"input.n407.p_{model}"]
    found = metrics.logistic(golden["input.n407.y"], np.log(probability / (1 - probability)))
    intercept, slope = golden[f"output.n407.{model}.cal_intercept_slope"]
    assert (found.slope, found.intercept) == (pytest.approx(slope, abs=1e-4), pytest.approx(intercept, abs=1e-4))
    error = np.sqrt(np.diag(found.covariance))
    assert error[::-1] == pytest.approx(golden[f"output.n407.{model}.cal_intercept_slope_se"], rel=1e-3)


def test_auc_with_ties_equals_sklearn() -> None:
    label, logit = drawn(90)
    score = np.round(logit)
    found = metrics.auc(label, score)
    assert found.value == pytest.approx(roc_auc_score(label, score))
    assert found.low < found.value < found.high
    assert found == metrics.auc(label, score)  # the same interval every time
    assert str(metrics.Estimate(0.8124, 0.7, 0.9)) == "0.812 (0.700-0.900)"


def test_a_perfect_score_has_no_spread() -> None:
    label = np.repeat([0, 1], 10)
    assert dataclasses.astuple(metrics.auc(label, label.astype(float))) == (1.0, 1.0, 1.0)


def test_one_score_for_all_is_chance() -> None:
    assert dataclasses.astuple(metrics.auc(np.repeat([0, 1], 10), np.full(20, 0.3))) == (0.5, 0.5, 0.5)  # in every bootstrap draw too


def test_logistic_finds_the_truth() -> None:
    found = metrics.logistic(*drawn(40_000, slope=0.6, intercept=-0.8))
    assert found.slope == pytest.approx(0.6, abs=0.03)
    assert found.intercept == pytest.approx(-0.8, abs=0.05)


def test_covariance_is_the_inverse_of_the_curvature() -> None:
    label, logit = drawn(300, slope=0.7, intercept=0.4)
    found = metrics.logistic(label, logit)

    def cost(x: np.ndarray) -> float:
        z = x[0] * logit + x[1]
        return float(np.sum(np.logaddexp(0, z) - label * z))

    at, h = np.array([found.slope, found.intercept]), 1e-3
    steps = np.eye(2) * h
    hessian = [[(cost(at + a + b) - cost(at + a - b) - cost(at - a + b) + cost(at - a - b)) / (4 * h * h) for b in steps] for a in steps]
    assert np.linalg.inv(hessian) == pytest.approx(found.covariance, rel=1e-3)


def test_the_prior_holds_the_slope_near_one() -> None:
    """Ten cases that are perfectly told apart would give an infinite slope."""
    label, logit = np.repeat([0, 1], 5), np.concatenate([np.linspace(-2, -1, 5), np.linspace(1, 2, 5)])
    tight, loose = (metrics.logistic(label, logit, spread) for spread in (0.1, 1.0))
    assert 1 < tight.slope < 1.1 < loose.slope < 20
    assert np.all(np.linalg.eigvalsh(tight.covariance) > 0)
    assert tight.covariance[0, 0] < 1.1 * 0.1**2 * tight.slope**2


def test_youden_is_the_best_cut() -> None:
    label = np.array([0, 1, 0, 0, 1, 1])
    probability = np.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    assert metrics.youden(label, probability) == pytest.approx(0.6)  # half-way between 0.5 and 0.7: 2 of 3 found, no false alarm
    assert metrics.youden(np.array([0, 1]), np.array([0.4, 0.8])) == pytest.approx(0.6)


@pytest.mark.parametrize("seed", range(5))
def test_no_other_cut_is_better(seed: int) -> None:
    label, logit = drawn(60, seed=seed)
    probability = expit(np.round(logit, 1))

    def gain(cut: float) -> float:
        return float((probability[label == 1] >= cut).mean() + (probability[label == 0] < cut).mean())

    assert gain(metrics.youden(label, probability)) == pytest.approx(max(gain(cut) for cut in [*probability, 2.0]))


def test_calibrate_keeps_the_threshold_on_the_calibrated_scale() -> None:
    label, logit = drawn(400, slope=0.5, intercept=1.0)
    calibration, threshold = calibrate(label, logit)
    fit = metrics.logistic(label, logit, SLOPE_PRIOR)
    assert (calibration.slope, calibration.intercept) == (fit.slope, fit.intercept)
    assert np.array_equal(np.array(calibration.covariance), fit.covariance)
    assert threshold == pytest.approx(metrics.youden(label, expit(fit.slope * logit + fit.intercept)), abs=5e-4)
