"""The report of an evaluation as one page of HTML that needs nothing outside itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from Training import plots, published
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
    return (
        _environment()
        .get_template("evaluation.html.j2")
        .render(
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
    )


def render_tables(results: Mapping[str, Any], runs: Sequence[Run], reference: Run) -> str:
    """The page of `Training.table1`: the paper's two tables for another cohort, beside what the paper prints.

    Args:
        results: what `Training.table1.tabulate` gives.
    """
    figures = {row["run"]: row for row in results["runs"]}
    costs = {row["run"]: row for row in results["methods"]}
    ablated = [name for name in published.ABLATIONS if name in figures and name != reference.name]
    compared = [name for name in figures if name not in published.ABLATIONS and name != reference.name]
    printed = {**published.ABLATIONS, **published.METHODS}
    return (
        _environment()
        .get_template("table1.html.j2")
        .render(
            r=results,
            figures=figures,
            costs=costs,
            by_run={row["run"]: row for row in results["comparisons"]},
            sees={run.name: sees(run) for run in runs},
            tables=[
                ("methods", [*compared, reference.name], published.METHODS),
                ("parts", [*ablated, reference.name], published.ABLATIONS),
            ],
            order=[*compared, reference.name, *ablated],
            printed=printed,
            impossible=[row for row in dict.fromkeys([*published.METHODS.values(), *published.ABLATIONS.values()]) if row.impossible],
            rows=list(dict.fromkeys([*published.METHODS.values(), *published.ABLATIONS.values()])),
            parts=PARTS,
            paper={"cases": published.CASES, "responders": published.RESPONDERS},
            headline=_headline(results),
        )
    )


def _headline(results: Mapping[str, Any]) -> list[str]:
    """What a reader should take home, in sentences."""
    if not results["runs"]:
        return []
    own = next(row for row in results["runs"] if row["run"] == results["reference"])
    cohort, auc, lines = results["cohort"], own["auc"], []
    where = f"{cohort['cases']} cases, {cohort['responders']} of them responders, each judged by a model that did not see it"
    lines.append(f"{own['run']} tells responders from the others with an AUC of {str(auc).replace('-', '–')} in {where}.")
    if cohort["shuffled"] is not None:
        leaking = "suspect a leak" if auc.low > 0.5 or auc.high < 0.5 else "no leak shows"
        leaking = leaking if math.isfinite(auc.low) else "whether anything leaks cannot be told"
        lines.append(f"The labels were dealt out anew, so that 0.5 is wanted: {leaking}.")
    elif auc.low <= 0.5 <= auc.high:
        lines.append("The interval contains 0.5: these cases do not show that it is better than chance.")
    slope = own["calibration"]["calibration_slope"]
    if math.isfinite(slope.value) and (slope.high < 1 or slope.low > 1):
        kind = "extreme" if slope.value < 1 else "timid"
        lines.append(f"Its probabilities are too {kind}: the calibration slope is {slope.value:.2f}, 1 is wanted.")
    told = [row for row in results["comparisons"] if row["p_holm"] < 0.05]
    rest = [row for row in results["comparisons"] if not row["p_holm"] < 0.05]
    for row in told:
        worse = "lower" if row["difference"].value < 0 else "higher"
        lines.append(
            f"{row['run']} has an AUC {abs(row['difference'].value):.3f} {worse} than that (p {probability(row['p_holm'])} after Holm)."
        )
    if rest:
        named = [f"{row['run']} (below {row['detectable']:.2f})" if row["detectable"] > 0 else row["run"] for row in rest]
        unseen = "; with so many cases a difference below the one in brackets would mostly go unseen" if named[0].endswith(")") else ""
        lines.append(f"Not told apart from it: {', '.join(named)}{unseen}.")
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
    return f"{number(value.value, digits)}<br><small>{_span(value, digits)}</small>"


def inline(value: Estimate, digits: int = 3) -> str:
    """A value and its interval within a sentence."""
    return number(value.value, digits) + (f" ({_span(value, digits)})" if math.isfinite(value.low) else "")


def _span(value: Estimate, digits: int) -> str:
    to = "–" if value.low >= 0 else " to "
    return f"{number(value.low, digits)}{to}{number(value.high, digits)}"


def duration(seconds: float | None) -> str:
    """In the unit a reader would choose."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@functools.cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "n": number, "p": probability, "e": lambda value, digits=3: Markup(estimate(value, digits)), "duration": duration
    }  # fmt: skip
    return environment
