"""Numbers of merit against other programs' and against what they must be."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score

from HARM3Logic.errors import HARM3Error
from Training import calibration, comparison, metrics
from Training.judgement import SLOPE_PRIOR, calibrate


def drawn(count: int, slope: float = 1.0, intercept: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that truly follow sigmoid(slope * logit + intercept)."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, count)
    return (rng.random(count) < expit(slope * logit + intercept)).astype(int), logit


class Golden:
    """Golden values of one model, each compared within its own tolerance."""

    def __init__(self, parity: Path, count: int, model: str) -> None:
        self.values = np.load(parity / "statistics.npz")
        self.tolerances = json.loads((parity / "statistics.json").read_text())["tolerances"]["per_output"]
        self.start = f"output.n{count}."
        self.model = model
        self.label = self.values[f"input.n{count}.y"]
        self.probability = self.values[f"input.n{count}.p_{model}"]

    def check(self, name: str, found: object, own: bool = True) -> None:
        key = self.start + (f"{self.model}." if own else "") + name
        allowed = self.tolerances[key]
        slack = {"rtol": 0, "atol": 0} if allowed.get("exact") else {k: allowed[k] for k in ("rtol", "atol")}
        np.testing.assert_allclose(np.asarray(found, dtype=float), self.values[key], **slack)


@pytest.fixture(params=[(n, m) for n in (40, 407) for m in "AB"], ids=lambda x: f"{x[0]}-{x[1]}")
def golden(request: pytest.FixtureRequest, parity: Path) -> Golden:
    return Golden(parity, *request.param)


def ends(estimate: metrics.Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def test_discrimination_equals_the_golden_one(golden: Golden) -> None:
    found = comparison.auc_delong(golden.label, golden.probability)
    golden.check("auc", found.value)
    golden.check("auc_ci95_delong", ends(found))
    golden.check("auc_var_delong_f64", comparison.delong(golden.label, golden.probability)[1][0, 0])
    golden.check("average_precision", metrics.average_precision(golden.label, golden.probability)[0])
    drawn = metrics.auc(golden.label, golden.probability)
    assert drawn.value == pytest.approx(found.value, rel=1e-9)
    assert ends(drawn) == pytest.approx(ends(found), abs=0.15 * (found.high - found.low))  # another method: near, not equal


def test_decisions_equal_the_golden_ones(golden: Golden) -> None:
    once = np.ones((1, len(golden.label)))
    found = metrics.decisions(golden.label, golden.probability >= 0.5, once)
    for name, estimate in found.items():
        golden.check(name, estimate.value)
    for name in ("accuracy", "sensitivity", "specificity", "ppv", "npv"):
        golden.check(f"{name}_ci95_wilson", ends(found[name]))


def test_calibration_equals_the_golden_one(golden: Golden) -> None:
    label, probability = golden.label, golden.probability
    intercept, slope = calibration.recalibration(label, probability)
    golden.check("cal_intercept_slope", [intercept.value, slope.value])
    golden.check("cal_intercept_slope_se", [(e.high - e.low) / (2 * metrics.Z) for e in (intercept, slope)])
    golden.check("cal_in_the_large", calibration.in_the_large(label, probability).value)
    for kind in ("mass", "width"):
        bins = calibration.reliability(label, probability, kind=kind)
        golden.check(f"ece10_equal_{kind}", bins.error)
        for name in ("observed", "predicted", "count"):
            golden.check(f"reliability_equal_{kind}.{name}", getattr(bins, name))
    found = calibration.summary(label, probability, np.ones((1, len(label))))
    golden.check("brier", found["brier"].value)
    golden.check("ece10_equal_mass", found["ece"].value)
    assert found["ece"].low == pytest.approx(found["ece"].value)  # the drawn bins are the same bins


def test_decision_curve_equals_the_golden_one(golden: Golden) -> None:
    np.testing.assert_allclose(metrics.THRESHOLDS, golden.values["output.thresholds"])
    golden.check(f"net_benefit.{golden.model}", metrics.net_benefit(golden.label, golden.probability), own=False)
    golden.check("net_benefit.all", metrics.net_benefit(golden.label, np.ones(len(golden.label))), own=False)


@pytest.mark.parametrize("count", [40, 407])
def test_paired_delong_equals_the_golden_one(parity: Path, count: int) -> None:
    a, b = Golden(parity, count, "A"), Golden(parity, count, "B")
    found = comparison.paired(a.label, a.probability, b.probability)
    a.check("delong_paired.z_B_minus_A", found.z, own=False)
    a.check("delong_paired.p", found.p, own=False)
    a.check("delong_paired.var_diff", found.variance, own=False)


def test_adjusted_p_values_equal_the_golden_ones(parity: Path) -> None:
    golden = np.load(parity / "statistics.npz")
    np.testing.assert_allclose(comparison.holm(golden["input.pvalues"]), golden["output.holm"], rtol=1e-9)
    np.testing.assert_allclose(comparison.benjamini_hochberg(golden["input.pvalues"]), golden["output.fdr_bh"], rtol=1e-9)


def test_interval_over_folds_equals_the_golden_one(parity: Path) -> None:
    golden = np.load(parity / "statistics.npz")
    a, b = golden["input.cv_auc_A"], golden["input.cv_auc_B"]
    np.testing.assert_allclose(ends(comparison.over_folds(a, 326, 81)[0]), golden["output.nadeau_bengio.ci95_A"], rtol=1e-9)
    step, t, p = comparison.over_folds(a - b, 326, 81)
    np.testing.assert_allclose(ends(step), golden["output.nadeau_bengio.ci95_diff"], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose([t, p], golden["output.nadeau_bengio.t_p_diff"], rtol=1e-9)


def test_a_run_is_as_good_as_itself() -> None:
    label, score = drawn(50)
    found = comparison.paired(label, score, score)
    assert (found.z, found.p) == (0, 1)
    assert found.difference.value == 0


def test_cases_of_one_patient_do_not_count_twice() -> None:
    label, score = drawn(80)
    other = score + np.random.default_rng(3).normal(0, 0.3, len(score))
    alone = [f"P{k}" for k in range(80)]
    area, plain = comparison.delong(label, score, other)
    np.testing.assert_allclose(comparison.delong(label, score, other, patient=alone)[1], plain, rtol=1e-12)

    # every case three times over tells nothing more: the same variance, but for the number of patients in it
    again = [np.tile(x, 3) for x in (label, score, other)]
    tripled = comparison.delong(*again, patient=alone * 3)
    np.testing.assert_allclose(tripled[0], area)
    np.testing.assert_allclose(tripled[1], plain, rtol=1e-12)
    np.testing.assert_allclose(comparison.delong(*again)[1] * 3, plain, rtol=0.05)  # as if they were other patients
    assert comparison.paired(*again, alone * 3).p == pytest.approx(comparison.paired(label, score, other).p)


def test_both_labels_within_patients_are_known_to_go_together() -> None:
    rng, errors, told = np.random.default_rng(0), [], []
    for _ in range(300):
        skill = rng.normal(0, 2, 40)  # of a patient: both his cases are scored high or low
        label = np.tile([0, 1], 40)
        score = np.repeat(skill, 2) + label + rng.normal(0, 1, 80)
        (area,), ((variance,),) = comparison.delong(label, score, patient=[f"P{k // 2}" for k in range(80)])
        errors.append(area)
        told.append(variance)
    assert np.mean(told) == pytest.approx(np.var(errors), rel=0.2)


def test_all_pairs_in_order_leave_open_what_so_few_cases_leave_open() -> None:
    few, many = (comparison.auc_delong(np.repeat([0, 1], [2 * n, n]), np.arange(3 * n).astype(float)) for n in (3, 100))
    assert few.value == many.value == few.high == 1.0
    assert few.low == pytest.approx(0.025 ** (1 / 3)) and many.low == pytest.approx(0.025 ** (1 / 100))  # Clopper-Pearson of n of n


def test_what_a_few_cases_cannot_tell_has_no_p() -> None:
    label = np.array([1, 1, 1, 0, 0, 0])
    perfect = comparison.paired(label, np.full(6, 0.5), label.astype(float))
    assert perfect.difference.value == 0.5 and math.isnan(perfect.p) and math.isnan(perfect.difference.low)
    assert math.isnan(comparison.paired(np.array([1, 0, 0]), np.ones(3), np.ones(3)).p)  # one responder


def test_what_is_no_test_is_not_counted_among_them() -> None:
    for adjust in (comparison.holm, comparison.benjamini_hochberg):
        found = adjust([0.04, math.nan, 0.01])
        assert math.isnan(found[1])
        np.testing.assert_array_equal(found[[0, 2]], adjust([0.04, 0.01]))


PAPER = [  # ACC, SEN, SPE of tables 1 and 2 of the HARM3-Fusion paper; True where they can stand together
    (0.6854, 0.5212, 0.6140, False), (0.6914, 0.5500, 0.6705, False), (0.7365, 0.6337, 0.7183, False), (0.7020, 0.6278, 0.6601, False),
    (0.6914, 0.6020, 0.6191, False), (0.7479, 0.6414, 0.7350, False), (0.7256, 0.6455, 0.7419, True), (0.8272, 0.6578, 0.8167, False),
    (0.6829, 0.5945, 0.7367, True), (0.7784, 0.6210, 0.7602, False), (0.7931, 0.6563, 0.7862, False), (0.7502, 0.6027, 0.7586, True),
    (0.8272, 0.6978, 0.8167, False),
]  # fmt: skip


@pytest.mark.parametrize(("accuracy", "sensitivity", "specificity", "possible"), PAPER)
def test_an_impossible_accuracy_is_refused(accuracy: float, sensitivity: float, specificity: float, possible: bool) -> None:
    if possible:
        metrics.refuse_impossible(accuracy, sensitivity, specificity, slack=1e-4)
        return
    with pytest.raises(HARM3Error, match=f"accuracy of {accuracy:.4f} is impossible with a sensitivity of {sensitivity:.4f}"):
        metrics.refuse_impossible(accuracy, sensitivity, specificity, slack=1e-4)


def test_patients_are_drawn_whole_and_within_their_label() -> None:
    label = np.array([1, 0, 1, 0, 0, 0])
    weights = metrics.resample(label, ["a", "a", "b", "c", "d", "d"], draws=500)
    assert np.array_equal(weights[:, 0], weights[:, 1])  # a's cases come together
    assert np.array_equal(weights[:, 4], weights[:, 5])
    assert np.all(weights[:, 0] + weights[:, 2] == 2)  # two patients with a responder in every draw
    assert np.all(weights[:, 3] + weights[:, 4] == 2)
    assert weights[:, 0].var() == pytest.approx(0.5, abs=0.1)  # each by chance


def test_bootstrap_knows_that_cases_of_one_patient_are_alike() -> None:
    label, logit = drawn(80, seed=3)
    four = [np.repeat(values, 4) for values in (label, logit)]  # four cases of each patient that say the same
    apart = metrics.auc(*four)
    together = metrics.auc(*four, patient=np.repeat(np.arange(80), 4).astype(str))
    assert together.value == apart.value
    assert (together.high - together.low) == pytest.approx(2 * (apart.high - apart.low), rel=0.15)  # sqrt(4)


def test_weights_act_as_repeated_cases() -> None:
    """Every weighted metric equals the plain one on a table in which the drawn cases stand as often as drawn."""
    label, logit = drawn(60, seed=2)
    probability = np.round(expit(logit), 2)
    times = metrics.resample(label, draws=1, seed=4)
    again = np.repeat(np.arange(60), times[0].astype(int))
    plain = metrics.decisions(label[again], probability[again] >= 0.5, np.ones((1, len(again))))
    drawn_once = metrics.decisions(label, probability >= 0.5, times)
    for name in ("balanced_accuracy", "mcc", "f1_positive", "f1_macro"):
        assert drawn_once[name].low == pytest.approx(plain[name].value)
    own = metrics.average_precision(label[again], probability[again])
    assert metrics.average_precision(label, probability, times) == pytest.approx(own)
    assert own[0] == pytest.approx(average_precision_score(label[again], probability[again]))
    brier = calibration.summary(label, probability, times)
    assert brier["brier"].low == pytest.approx(np.mean((probability[again] - label[again]) ** 2))
    share = label[again].mean()
    assert brier["scaled_brier"].low == pytest.approx(1 - brier["brier"].low / (share * (1 - share)))


def test_perfect_calibration_has_small_errors_and_timid_probabilities_are_found() -> None:
    label, logit = drawn(4000, seed=1)
    once = np.ones((1, 4000))
    good, timid = (calibration.summary(label, expit(scale * logit), once) for scale in (1.0, 0.4))
    assert good["ici"].value < 0.015 < 0.08 < timid["ici"].value
    assert good["ece"].value < 0.03 < 0.08 < timid["ece"].value
    assert timid["calibration_slope"].low < 2.5 < timid["calibration_slope"].high


def test_smooth_curve_follows_the_truth() -> None:
    label, logit = drawn(20_000, slope=0.5, seed=1)
    at = np.array([0.1, 0.5, 0.9])
    found = calibration.smooth_curve(label[:3000], expit(logit[:3000]), at)[0]
    assert found == pytest.approx(expit(0.5 * np.log(at / (1 - at))), abs=0.05)


def test_a_slope_may_be_negative_or_not_exist() -> None:
    label, logit = drawn(200, slope=-1.0)
    assert calibration.recalibration(label, expit(logit))[1].high < 0
    apart = np.repeat([0, 1], 10)
    assert all(math.isnan(e.value) for e in calibration.recalibration(apart, np.where(apart, 0.9, 0.1)))
    assert str(calibration.recalibration(apart, np.full(20, 0.3))[1]) == "-"


def test_shares_of_nothing_are_not_numbers() -> None:
    label = np.array([0, 0, 1, 1])
    found = metrics.decisions(label, np.zeros(4, dtype=bool), np.ones((1, 4)))
    assert math.isnan(found["ppv"].value)
    assert (found["f1_positive"].value, found["mcc"].value) == (0, 0)
    assert math.isnan(metrics.auc(np.zeros(4, dtype=int), label.astype(float)).value)


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
    calibration, rule = calibrate(label, logit)
    fit = metrics.logistic(label, logit, SLOPE_PRIOR)
    assert (calibration.slope, calibration.intercept) == (fit.slope, fit.intercept)
    assert np.array_equal(np.array(calibration.covariance), fit.covariance)
    assert rule.threshold == pytest.approx(metrics.youden(label, expit(fit.slope * logit + fit.intercept)), abs=5e-4)
