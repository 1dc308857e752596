"""The report of an evaluation as one page of HTML that needs nothing outside itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from Training import plots
from Training.metrics import Estimate
from Training.runs import Run
from Training.tables import PARTS, sees

NAMES = {
    "accuracy": "ACC", "sensitivity": "SEN", "specificity": "SPE", "ppv": "PPV", "npv": "NPV", "balanced_accuracy": "balanced ACC",
    "mcc": "MCC", "f1_positive": "F1 resp.", "f1_macro": "F1 macro", "brier": "Brier", "scaled_brier": "scaled Brier", "ece": "ECE",
    "ici": "ICI", "calibration_intercept": "intercept", "calibration_slope": "slope", "calibration_in_the_large": "in the large",
}  # fmt: skip


def render(results: Mapping[str, Any], runs: Sequence[Run], reference: Run | None) -> str:
    """The page.

    Args:
        results: what `Training.evaluate.evaluate` gives.
        reference: None where only locked cases were judged.
    """
    pictures = {}
    if reference is not None:
        pictures = {
            "roc": plots.roc(runs, reference),
            "precision_recall": plots.precision_recall(runs, reference),
            "calibration": plots.calibration(runs, reference),
            "decision_curve": plots.decision_curve(runs, reference),
        }
    switches = {row["run"]: row["parts"] for row in results["runs"] if row["parts"]}
    return _template().render(
        r=results,
        pictures=pictures,
        sees={run.name: sees(run) for run in runs},
        knows_inputs=any(run.inputs for run in runs),
        parts=PARTS,
        switches=switches if len({tuple(s.values()) for s in switches.values()}) > 1 else {},
        names=NAMES,
        headline=_headline(results),
        by_run={row["run"]: row for row in results["comparisons"]},
    )


def _headline(results: Mapping[str, Any]) -> list[str]:
    """What a reader should take home, in sentences."""
    if not results["runs"]:
        return []
    own = next(row for row in results["runs"] if row["run"] == results["reference"])
    cohort, auc, lines = results["cohort"], own["auc"], []
    where = f"{cohort['cases']} cases, {cohort['responders']} of them responders, each judged by a model that did not see it"
    lines.append(f"{own['run']} tells responders from the others with an AUC of {str(auc).replace('-', '–')} in {where}.")
    if auc.low <= 0.5 <= auc.high:
        lines.append("The interval contains 0.5: these cases do not show that it is better than chance.")
    slope = own["calibration"]["calibration_slope"]
    if math.isfinite(slope.value) and (slope.high < 1 or slope.low > 1):
        kind = "extreme" if slope.value < 1 else "timid"
        lines.append(f"Its probabilities are too {kind}: the calibration slope is {slope.value:.2f}, 1 is wanted.")
    told = [row for row in results["comparisons"] if row["p_holm"] < 0.05]
    rest = [row for row in results["comparisons"] if row["p_holm"] >= 0.05]
    for row in told:
        worse = "lower" if row["difference"].value < 0 else "higher"
        lines.append(
            f"{row['run']} has an AUC {abs(row['difference'].value):.3f} {worse} than that (p {probability(row['p_holm'])} after Holm)."
        )
    if rest:
        names, least = ", ".join(row["run"] for row in rest), min(row["detectable"] for row in rest)
        lines.append(f"Not told apart from it: {names}; differences below {least:.2f} would mostly go unseen with so many cases.")
    return lines


def number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def probability(value: float | None) -> str:
    """A p-value."""
    if value is None or not math.isfinite(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def estimate(value: Estimate | None, digits: int = 3) -> str:
    """A value and its interval on two lines, so that seven of them fit a page."""
    if value is None or not math.isfinite(value.value):
        return "–"
    if not math.isfinite(value.low):
        return number(value.value, digits)
    to = "–" if value.low >= 0 else " to "
    return f"{number(value.value, digits)}<br><small>{number(value.low, digits)}{to}{number(value.high, digits)}</small>"


@functools.cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"n": number, "p": probability, "e": lambda value, digits=3: Markup(estimate(value, digits))}
    return environment.from_string(Path(__file__).with_name("evaluation.html.j2").read_text(encoding="utf-8"))
