"""The page of Training.ct_table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from Training.page import _environment, _headline, inline
from Training.plots import COLOURS, _picture

INSIDE, OUTSIDE = COLOURS[0], COLOURS[1]
LORA = "_lora"
INPUTS = {
    "clinical": "clinical values",
    "image": "CT",
    "concat": "CT beside clinical values",
    "cross": "cross-attention of both",
}
PLACES = {"internal": "Inside", "external": "On the locked centres"}
PUBLISHED = (0.99, (0.60, 0.63))  # cross-attention inside at most, and outside from and to: abstract of the GIST framework


def render(results: Mapping[str, Any]) -> str:
    """The page.

    Args:
        results: what `Training.ct_table.tabulate` gives.
    """
    rows = [{**row, "label": _capital(INPUTS[_fusion(row["run"])])} for row in results["methods"]]
    own = next(row for row in rows if row["run"] == results["reference"])
    places = [place for place in PLACES if any(row["where"] == place for row in results["planned"])]
    return (
        _environment()
        .get_template("ct_table.html.j2")
        .render(
            r=results,
            rows=rows,
            pairs=_pairs(results["planned"]),
            places={place: PLACES[place] for place in places},
            headline=headline(results),
            picture=gap(results["methods"]),
            centres=list(own["external"].get("by_centre", {})),
        )
    )


def label(run: str) -> str:
    """A row as a reader is told of it."""
    start = {True: " (pretrained)", False: " (from scratch)"}[run.endswith(LORA)]
    return INPUTS[_fusion(run)] + (start if _fusion(run) != "clinical" else "")


def headline(results: Mapping[str, Any]) -> list[str]:
    """What a reader should take home."""
    own = next(row for row in results["methods"] if row["run"] == results["reference"])
    name = _capital(label(own["run"]))
    told = [{**row, "run": name} for row in results["runs"] if row["run"] == own["run"]]
    lines = _headline({**results, "comparisons": [], "reference": name, "runs": told})
    if own["gap"] is not None:
        outside, told = own["external"], own["gap"].low > 0 or own["gap"].high < 0
        change = f"the step from inside is {inline(own['gap'])}" + ("" if told else ", which so few cases do not tell from none")
        lines.append(f"On the locked centres its AUC is {inline(outside['auc'])} in {outside['cases']} cases; {change}.")
    for place, word in PLACES.items():
        planned = [row for row in results["planned"] if row["where"] == place]
        for run in dict.fromkeys(row["run"] for row in planned if _fusion(row["run"]) == "cross"):
            own_start = [row for row in planned if row["run"] == run and row["reference"] + LORA != run]
            lines += _compared(f"{word}, {label(run)}", own_start, [label(row["reference"]) for row in own_start], "beats", "is beaten by")
        starts = [row for row in planned if row["reference"] + LORA == row["run"]]
        inputs = [INPUTS[_fusion(row["run"])] for row in starts]
        lines += _compared(f"{word}, pretraining", starts, inputs, "helps with", "harms with")
    return lines


def _compared(subject: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str], better: str, worse: str) -> list[str]:
    """One sentence on several planned comparisons, after Holm; none without any."""
    groups: dict[str, list[str]] = {better: [], worse: [], "shows no difference to" if better == "beats" else "shows no effect with": []}
    for row, name in zip(rows, names, strict=True):
        told = row["p_holm"] < 0.05
        groups[list(groups)[2 if not told else int(row["difference"].value < 0)]].append(name)
    said = "; it ".join(f"{verb} {', '.join(those)}" for verb, those in groups.items() if those)
    return [f"{subject} {said}."] if said else []


def _pairs(planned: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each comparison once, with its figures of each place."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in planned:
        pair = (row["run"], row["reference"])
        found.setdefault(pair, {"run": label(pair[0]), "reference": label(pair[1])})[row["where"]] = row
    return list(found.values())


def _fusion(run: str) -> str:
    return run.removesuffix(LORA)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def gap(rows: Sequence[Mapping[str, Any]]) -> str:
    """AUC inside and on locked centres, each with its interval, a line between the two, and the single centres; last the published gap."""

    def draw(axes: Axes) -> None:
        axes.axvline(0.5, color="#c8ced6", lw=1, zorder=0)
        left = 0.45
        for k, row in enumerate(rows):
            left = min([left, *_draw_row(axes, row, k)])
        inside, (low, high) = PUBLISHED
        k = len(rows)
        axes.axhline(k - 0.5, color="#dfe3e8", lw=0.8)
        axes.plot([inside, (low + high) / 2], [k - 0.12, k + 0.12], color="#5d6876", lw=1, ls=":", zorder=1)
        axes.plot(inside, k - 0.12, "o", mfc="white", mec=INSIDE, ms=6)
        axes.plot([low, high], [k + 0.12] * 2, color=OUTSIDE, lw=4, alpha=0.6, solid_capstyle="butt")
        names = [_capital(INPUTS[_fusion(row["run"])]) + (" *" if row["run"].endswith(LORA) else "") for row in rows]
        axes.set_yticks(range(k + 1), [*names, "Published, other patients"])
        axes.set(xlabel="AUC with its 95 % interval", xlim=(max(-0.01, left - 0.03), 1.01), ylim=(k + 0.5, -0.5))
        handles, told = axes.get_legend_handles_labels()
        first = dict(zip(reversed(told), reversed(handles), strict=True))
        order = [name for name in ("internal", "external", "single centre") if name in first]
        axes.legend([first[name] for name in order], order, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8.5)

    return _picture(draw, (8.2, 1.3 + 0.42 * (len(rows) + 1)))


def _draw_row(axes: Axes, row: Mapping[str, Any], k: int) -> list[float]:
    """Draws a row; the ends of its intervals and its centres."""
    places = [("internal", row["auc"], INSIDE, k - 0.12), ("external", row["external"].get("auc"), OUTSIDE, k + 0.12)]
    known = [place for place in places if place[1] is not None and np.isfinite(place[1].value)]
    axes.plot([auc.value for _, auc, _, _ in known], [height for *_, height in known], color="#5d6876", lw=1, zorder=1)
    for name, auc, colour, height in known:
        axes.plot([auc.low, auc.high], [height] * 2, color=colour, lw=1, alpha=0.6)
        axes.plot(auc.value, height, "o", color=colour, ms=6, label=name)
    centres = [auc.value for auc in row["external"].get("by_centre", {}).values() if np.isfinite(auc.value)]
    if len(centres) > 1:
        axes.plot(centres, [k + 0.28] * len(centres), "|", color=OUTSIDE, ms=7, label="single centre")
    return [value for _, auc, _, _ in known for value in (auc.low,) if np.isfinite(value)] + centres
