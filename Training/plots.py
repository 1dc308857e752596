"""The pictures of a report, as SVG in data URIs that need nothing outside themselves."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from Training import metrics
from Training.calibration import reliability, smooth_curve
from Training.metrics import LEVEL, wilson
from Training.runs import Run

COLOURS = ("#2b5c8a", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#7f3c8d", "#5d6876", "#a3231f", "#11a579")
STYLE = {
    "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#5d6876", "axes.labelcolor": "#18212c",
    "xtick.color": "#5d6876", "ytick.color": "#5d6876", "svg.hashsalt": "harm3", "figure.constrained_layout.use": True,
    "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
GRID = np.linspace(0, 1, 101)


def _picture(draw: Callable[[Axes], None], size: tuple[float, float] = (5.0, 4.6)) -> str:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=size)
        try:
            draw(axes)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None})
        finally:
            plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()


def _lines(runs: Sequence[Run], reference: Run) -> list[tuple[Run, dict[str, object]]]:
    """Runs with their line, the reference last and so on top."""
    styles = [
        (run, {"color": COLOURS[k % len(COLOURS)], "lw": 2.2 if run is reference else 1.2, "label": run.name}) for k, run in enumerate(runs)
    ]
    return sorted(styles, key=lambda pair: pair[0] is reference)


def _legend(axes: Axes, runs: Sequence[Run], place: str) -> None:
    """In the order of the runs, whatever was drawn on top."""
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = [run.name for run in runs] + [name for name in handles if name not in {run.name for run in runs}]
    axes.legend([handles[name] for name in order if name in handles], [name for name in order if name in handles], loc=place, fontsize=8.5)


def roc_points(label: np.ndarray, score: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """False alarms and hits at every threshold, one row per row of weights, from (0, 0) to (1, 1)."""
    weights = np.ones((1, len(label))) if weights is None else weights
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    curves = []
    for side in (label == 0, label == 1):
        sums = np.cumsum((weights * side)[:, order], axis=1)[:, last]
        curves.append(np.concatenate([np.zeros((len(weights), 1)), sums / np.maximum(sums[:, -1:], 1e-12)], axis=1))
    return curves[0], curves[1]


def roc(runs: Sequence[Run], reference: Run, draws: int = 500) -> str:
    """ROC curves of all judged cases; the band is the pointwise 95 % bootstrap of the reference."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#c8ced6", lw=1, zorder=0)
        alarms, hits = roc_points(reference.label, reference.probability, metrics.resample(reference.label, reference.patients, draws))
        many = np.stack([np.interp(GRID, x, y) for x, y in zip(alarms, hits, strict=True)])
        low, high = np.quantile(many, LEVEL, axis=0)
        for run, style in _lines(runs, reference):
            x, y = roc_points(run.label, run.probability)
            axes.plot(x[0], y[0], **style)
            if run is reference:
                axes.fill_between(GRID, low, high, color=str(style["color"]), alpha=0.13, lw=0, label=f"95 % band of {run.name}")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        _legend(axes, runs, "lower right")

    return _picture(draw)


def precision_recall(runs: Sequence[Run], reference: Run) -> str:
    """Precision against recall, with the share of responders as the level of chance."""

    def draw(axes: Axes) -> None:
        axes.axhline(float(reference.label.mean()), color="#c8ced6", lw=1, label="responders")
        for run, style in _lines(runs, reference):
            alarms, hits = roc_points(run.label, run.probability)
            tp, fp = hits[0, 1:] * run.label.sum(), alarms[0, 1:] * (1 - run.label).sum()
            axes.step(np.append(0, hits[0, 1:]), np.append(1, tp / (tp + fp)), where="pre", **style)
        axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.03), aspect="equal")
        _legend(axes, runs, "upper right")

    return _picture(draw)


def calibration(runs: Sequence[Run], reference: Run) -> str:
    """What came true against what was said: smooth curves of all runs, bins of the reference, and where its probabilities lie."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color="#c8ced6", lw=1, zorder=0)
        for run, style in _lines(runs, reference):
            at = np.linspace(*np.quantile(run.probability, [0.01, 0.99]), 80)
            axes.plot(at, smooth_curve(run.label, run.probability, at)[0], **style)
        bins = reliability(reference.label, reference.probability)
        shares = [wilson(o * n, n) for o, n in zip(bins.observed, bins.count, strict=True)]
        reach = np.array([[s.value - s.low for s in shares], [s.high - s.value for s in shares]])
        colour = COLOURS[[run is reference for run in runs].index(True) % len(COLOURS)]
        axes.errorbar(
            bins.predicted, bins.observed, np.maximum(reach, 0), fmt="o", ms=4, lw=0.9, color=colour, label=f"tenths of {reference.name}"
        )
        for value, sign in ((0, -1), (1, 1)):  # non-responders hang down, responders stand up, from a line below the axis
            heights, edges = np.histogram(reference.probability[reference.label == value], 40, (0, 1))
            axes.bar(edges[:-1], sign * heights / max(heights.max(), 1) * 0.055, 0.025, -0.09, align="edge", color=colour, alpha=0.45, lw=0)
        axes.set(
            xlabel="predicted probability", ylabel="observed share of responders", xlim=(-0.01, 1.01), ylim=(-0.16, 1.01), aspect="equal"
        )
        axes.set_yticks(np.arange(0, 1.1, 0.2))
        _legend(axes, runs, "upper left")

    return _picture(draw)


def decision_curve(runs: Sequence[Run], reference: Run) -> str:
    """Net benefit of acting on each run, on everyone and on no one."""

    def draw(axes: Axes) -> None:
        everyone = metrics.net_benefit(reference.label, np.ones(len(reference.label)))
        axes.plot(metrics.THRESHOLDS, everyone, color="#5d6876", lw=1.1, ls="--", label="treat all")
        axes.axhline(0, color="#5d6876", lw=1.1, ls=":", label="treat none")
        tops = [float(reference.label.mean())]
        for run, style in _lines(runs, reference):
            values = metrics.net_benefit(run.label, run.probability)
            tops.append(float(values.max()))
            axes.plot(metrics.THRESHOLDS, values, **style)
        axes.set(xlabel="threshold probability", ylabel="net benefit per patient", xlim=(0, 1), ylim=(-0.25 * max(tops), 1.12 * max(tops)))
        _legend(axes, runs, "upper right")

    return _picture(draw)
