"""Bars drawn by style sheets alone: they need no painting code, grow with the panel and stay sharp on every screen."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

Band = tuple[float, float, str]  # from, to (0 to 1), colour

TRACK, INTERVAL, MARK, THRESHOLD = "#e3e6ea", "#9dbfe6", "#0d47a1", "#37474f"
LOW, UNKNOWN, HIGH = "#c98a5e", "#9e9e9e", "#5c9f74"
POSITIVE, NEGATIVE = "#5c9f74", "#c98a5e"
EDGE = 1e-5


def gradient(track: str, bands: Iterable[Band]) -> str:
    """A Qt gradient with hard edges; later bands lie over earlier ones."""
    bands = [(max(0.0, min(start, 1.0)), max(0.0, min(end, 1.0)), color) for start, end, color in bands]
    edges = sorted({0.0, 1.0, *(edge for start, end, _ in bands for edge in (start, end))})
    stops = []
    for start, end in pairwise(edges):
        if end - start < 2 * EDGE:
            continue
        middle = (start + end) / 2
        color = next((c for a, b, c in reversed(bands) if a <= middle <= b), track)
        stops += [f"stop:{start + EDGE:.6f} {color}", f"stop:{end - EDGE:.6f} {color}"]
    return f"qlineargradient(x1:0, y1:0, x2:1, y2:0, {', '.join(stops)})"


def probability(value: float, interval: tuple[float, float], threshold: float) -> str:
    """Track, interval as a band, threshold as a thin line, value as a thick one."""
    bands = [
        (*interval, INTERVAL),
        (threshold - 0.003, threshold + 0.003, THRESHOLD),
        (value - 0.009, value + 0.009, MARK),
    ]
    return (
        f"QProgressBar {{ border: 1px solid #78909c; border-radius: 2px; background: {gradient(TRACK, bands)}; }} "
        "QProgressBar::chunk { background: transparent; }"
    )


def zones(threshold: float, zone: tuple[float, float]) -> str:
    """What each probability means: unlikely, not known, likely."""
    return f"background: {gradient(HIGH, [(0, threshold, LOW), (*zone, UNKNOWN)])}; border: none;"


def contribution(value: float, largest: float) -> str:
    """A bar from the middle: to the right what speaks for response, to the left what speaks against it."""
    reach = 0.5 * value / largest if largest > 0 else 0.0
    band = (min(0.5, 0.5 + reach), max(0.5, 0.5 + reach), POSITIVE if value > 0 else NEGATIVE)
    return f"background: {gradient('rgba(128,128,128,30)', [band, (0.497, 0.503, '#78909c')])}; border: none;"


def share(value: float, largest: float) -> str:
    """A bar from the left, the largest one whole."""
    return f"background: {gradient('rgba(128,128,128,30)', [(0.0, value / largest if largest > 0 else 0.0, INTERVAL)])}; border: none;"
