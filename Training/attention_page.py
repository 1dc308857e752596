"""The page of Training.attention_test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from HARM3Logic.report import LABELS
from Training.attention_stats import LEVEL
from Training.page import _environment
from Training.plots import COLOURS, _picture

WARM, COLD = COLOURS[1], COLOURS[0]


def render(results: Mapping[str, Any], attention: Float[np.ndarray, "N V"], label: Int[np.ndarray, " N"]) -> str:
    """The page.

    Args:
        results: what `Training.attention_test.judge` gives.
    """
    pictures = {"groups": groups(results, attention, label), "beside": beside(results)}
    return _environment().get_template("attention.html.j2").render(
        r=results, pictures=pictures, headline=headline(results), level=LEVEL, words=LABELS
    )  # fmt: skip


def headline(results: Mapping[str, Any]) -> list[str]:
    """What a reader should take home."""
    rows = results["variables"]
    found = [row for row in rows if row["found"]]
    said = ", ".join(f"{row['label']} ({'more' if row['larger'] > 0.5 else 'less'} from responders)" for row in found)
    how = f"differently in responders and in others (false discovery rate {LEVEL:g})"
    lines = [f"The models look at {said} {how}." if found else f"At none of the {len(rows)} variables do the models look {how}."]
    lost = [row["label"] for row in rows if row["found_drop"]]
    lines.append(
        f"Shuffled, {', '.join(lost)} cost the models some of their AUC (false discovery rate {LEVEL:g})."
        if lost
        else "No variable costs the models AUC when it is shuffled that these cases could show."
    )
    silent = [row["label"] for row in found if row["label"] not in lost]
    if silent:
        lines.append(f"Looked at differently, yet without a loss that these cases could show: {', '.join(silent)}.")
    return lines


def groups(results: Mapping[str, Any], attention: Float[np.ndarray, "N V"], label: Int[np.ndarray, " N"]) -> str:
    """Attention to each variable, responders beside the others, with an even share as a line."""
    rows = results["variables"]

    def draw(axes: Axes) -> None:
        axes.axvline(1 / len(rows), color="#c8ced6", lw=1, zorder=0)
        for place, (value, colour, name) in enumerate(((1, WARM, "responders"), (0, COLD, "non-responders"))):
            at = np.arange(len(rows)) + (place - 0.5) * 0.36
            low, middle, high = np.quantile(attention[label == value], (0.25, 0.5, 0.75), axis=0)
            axes.barh(at, high - low, 0.3, low, color=colour, alpha=0.55, lw=0, label=name)
            axes.vlines(middle, at - 0.15, at + 0.15, color="#18212c", lw=1.2)
        names = [f"{row['label']} *" if row["found"] else row["label"] for row in rows]
        axes.set_yticks(range(len(rows)), names)
        axes.set(xlabel="share of the attention to the variables", ylim=(len(rows) - 0.4, -0.6), xlim=(0, None))
        axes.legend(loc="lower right", fontsize=8.5)

    return _picture(draw, (5.4, 1.4 + 0.36 * len(rows)))


def beside(results: Mapping[str, Any]) -> str:
    """Mean attention against what shuffling costs: where attention was importance, the points would rise."""
    rows = results["variables"]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color="#c8ced6", lw=1, zorder=0)
        share = results["responders"] / results["cases"]
        for row in rows:
            mean = share * row["responders"] + (1 - share) * row["others"]
            drop, colour = row["drop"], WARM if row["found"] else COLD
            axes.errorbar(mean, drop.value, [[drop.value - drop.low], [drop.high - drop.value]], fmt="o", ms=4, lw=0.9, color=colour)
            axes.annotate(row["label"], (mean, drop.value), (4, 3), textcoords="offset points", fontsize=8)
        axes.set(xlabel="mean attention", ylabel="AUC lost when shuffled")

    return _picture(draw, (5.0, 1.4 + 0.36 * len(rows)))
