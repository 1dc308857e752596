"""One case as one page of HTML for a reader: the answer, where the model looked, what each input changed, what to doubt.

    Volume --canonical--> Stack (slices as a reader hangs them) --> picture, heat, contours --report.html.j2--> text

The text needs nothing outside itself: pictures are data URIs, contours are SVG paths.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contourpy import contour_generator
from jaxtyping import Bool, Float, UInt8
from jinja2 import Environment, StrictUndefined, Template

from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS
from HARM3Logic.errors import BadGeometry
from HARM3Logic.picture import GREEN, INFERNO, nice_length, palette, picture
from HARM3Logic.slide_view import SlideView, TileView, drawn
from HARM3Logic.stack import key_slices, stack
from HARM3Logic.volume import Volume

__all__ = ["SlideView", "TileView", "VolumeView", "hottest_point", "outline", "render", "template", "with_viewer"]

LABELS = {"t1": "T1c", "t2": "T2", "slide": "Biopsy slide", "ct": "CT", "clinical": "Clinical values"}
LEVELS = ((0.5, "#ffe24a"), (0.75, "#ff9a1f"), (0.9, "#ff3b30"))  # iso-contours of the joint scale and their colours
HEAT_FROM = 0.25  # heat below is not painted
HEAT_ALPHA = 0.75  # opacity of heat 1
SERIOUS = ("out_of_distribution", "registration", "spacing_lost", "no_heat")
NOT_SHOWN = ("patient_id", "centre", "centres", "synthetic")  # keys of the training provenance
# A file's name may be a patient's: quoted names with a dot or slash, and absolute paths.
PATH = re.compile(r"""\s*(?:(?<!\w)(['"])[^'"]*[./\\][^'"]*\1(?!\w)|(?<![\w.])(?:[A-Za-z]:\\|~?/)[^\s;,]+|\w+://\S+)""")


@dataclass(frozen=True)
class VolumeView:
    """An input volume with its heatmap.

    Args:
        image: as the user gave it.
        heat: on the grid of `image`, 0 to 1 on one scale for all volumes.
        tumour: on the grid of `image`; None where no mask is known.
        matrix: LPS mm of the frame the volumes are registered in to LPS mm of `image`; None where they are the same.
        window: values shown black and white; None takes them from the image.

    Raises:
        BadGeometry: heat or tumour do not fit the image.
    """

    name: str
    image: Volume
    heat: Volume
    tumour: Bool[np.ndarray, "D H W"] | None = None
    matrix: Float[np.ndarray, "4 4"] | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for what, shape in (("heatmap", self.heat.array.shape), ("tumour mask", None if self.tumour is None else self.tumour.shape)):
            if shape not in (None, self.image.array.shape):
                wanted = f"the {self.image.array.shape} of its image are wanted"
                raise BadGeometry(f"the {what} of {self.name} has {shape} voxels; {wanted}.", "Restore it to the image's grid.")


def hottest_point(views: Sequence[VolumeView]) -> Float[np.ndarray, " 3"] | None:
    """Where the heat of all volumes has its maximum, in LPS mm of their common frame; None without heat."""
    peaks = [float(view.heat.array.max()) for view in views]
    if max(peaks, default=0.0) <= 0:
        return None
    view = views[int(np.argmax(peaks))]
    z, y, x = np.unravel_index(int(view.heat.array.argmax()), view.heat.array.shape)
    point = view.image.grid.matrix @ np.array([x, y, z, 1.0])
    common: Float[np.ndarray, " 3"] = (point if view.matrix is None else np.linalg.inv(view.matrix) @ point)[:3]
    return common


def outline(values: Float[np.ndarray, "H W"], level: float, pixel_mm: tuple[float, float]) -> str:
    """An SVG path (mm from the upper left corner) round all that is above the level."""
    above = values > level
    rows, columns = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    if not rows.size:
        return ""
    padded = np.pad(values, 1)[rows[0] : rows[-1] + 3, columns[0] : columns[-1] + 3]  # what the edge of the image cuts is closed along it
    down, right = ((start + np.arange(n) - 0.5) * mm for start, n, mm in zip((rows[0], columns[0]), padded.shape, pixel_mm, strict=True))
    lines = contour_generator(right, down, padded).lines(level)
    return "".join("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in np.asarray(line)[:-1]) + "Z" for line in lines)


def render(prediction: Mapping[str, Any], card: Mapping[str, Any], views: Sequence[VolumeView], slide: SlideView | None) -> str:
    """The report of one case as HTML.

    Args:
        prediction: content of `prediction.json`; `created` (ISO date) is shown where given.
        card: the checkpoint's card as a dictionary.
        views: the volumes given, in any order.
    """
    inputs = tuple(card.get("inputs", ()))
    training = card.get("training") or {}
    # a CT model tells response to its drug, not pCR
    outcome = "pCR" if any(name in MRI for name in (*inputs, *prediction["inputs"])) else ""
    return template("report.html.j2").render(
        p=prediction,
        card=card,
        outcome=outcome,
        synthetic=bool(training.get("synthetic") or prediction["model"].get("synthetic") or "synthetic" in str(training.get("data", ""))),
        facts=[(key.replace("_", " ").replace("auc", "AUC"), fact(value)) for key, value in training.items() if key not in NOT_SHOWN],
        firm=not prediction["interval"][0] < prediction["threshold"] < prediction["interval"][1],
        rows=_rows(views, inputs),
        known_reach=max([abs(v["change"] or 0.0) for v in prediction.get("clinical", ())], default=0.0) or 1.0,
        reach=max([abs(v) for v in prediction["contributions"].values()], default=0.0) or 1.0,
        slide=None if slide is None else drawn(slide),
        levels=LEVELS,
        serious=SERIOUS,
        inferno=INFERNO,
        green=GREEN,
    )


def with_viewer(html: str) -> str:
    """The report with its links to the slide viewer, which sleep in comments until there is one."""
    return html.replace("<!--viewer ", "").replace(" viewer-->", "")


def _rows(views: Sequence[VolumeView], inputs: tuple[str, ...]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows of the volumes' table: sequences down and timepoints across for MRI, one row for any other volume."""
    given, point = {view.name: view for view in views}, hottest_point(views)
    names = [[f"{s}_{t}" for t in TIMEPOINTS] for s in SEQUENCES] if any(n in MRI for n in (*given, *inputs)) else []
    names += [[name] for name in given if name not in MRI]
    rows = []
    for row in names:
        cells = []
        for name in row:
            panels = _panels(given[name], point) if name in given else []
            absent = "not given" if name in inputs or not inputs else "not used by this model"
            cells.append({"name": name, "panels": panels, "absent": absent})
        rows.append((LABELS.get(row[0].split("_")[0], row[0]), cells))
    return rows


def _panels(view: VolumeView, point: Float[np.ndarray, " 3"] | None) -> list[dict[str, Any]]:
    """What the template draws of a volume's key slices, lengths in mm."""
    image = stack(view.image)
    heat = stack(view.heat, image.plane)
    mask = None if view.tumour is None else stack(Volume(view.tumour.astype(np.float32), view.image.grid), image.plane)
    if point is not None and view.matrix is not None:
        point = (view.matrix @ [*point, 1])[:3]
    sample = view.image.array.ravel()[:: max(1, view.image.array.size // 200_000)]
    low, high = view.window or (float(v) for v in np.percentile(sample, (1, 99.5)))
    panels = []
    for k in key_slices(heat, point):
        grey = np.clip((image.slices[k] - low) / (high - low or 1.0), 0, 1)
        height, width = (n * mm for n, mm in zip(grey.shape, image.pixel_mm, strict=True))
        warm = np.clip(heat.slices[k], 0, 1)
        panels.append(
            {
                "width": round(width, 1),
                "height": round(height, 1),
                "bar": nice_length(max(width, height) / 4),
                "edges": image.edges,
                "place": image.place(k),
                "plane": image.plane,
                "image": picture((grey * 255).astype(np.uint8)),
                "heat": picture((warm * 255).astype(np.uint8), _heat_table()) if warm.max() >= HEAT_FROM else "",
                "contours": [(outline(warm, level, image.pixel_mm), colour) for level, colour in LEVELS],
                "tumour": "" if mask is None else outline(mask.slices[k], 0.5, image.pixel_mm),
            }
        )
    return panels


def label(name: str) -> str:
    """An input's name for people."""
    return " ".join(LABELS.get(part, part) for part in name.split("_"))


def percent(share: float, digits: int = 0) -> str:
    """Such as `61 %`; never 0 or 100 % for what is only near it."""
    least = 10.0**-digits
    if 0 < 100 * share < least / 2:
        return f"< {least:.{digits}f} %"
    if share < 1 and 100 * share > 100 - least / 2:
        return f"> {100 - least:.{digits}f} %"
    return f"{100 * share:.{digits}f} %"


def span(ends: Sequence[float]) -> str:
    """Such as `48-73 %`."""
    low, high = (percent(end) for end in ends)
    return high if low == high else f"{low.removesuffix(' %')}\u2013{high}"


def points(change: float) -> str:
    """A change of probability in percentage points with its sign, such as `+12.3`."""
    text = f"{100 * abs(change):.1f}"
    return text if float(text) == 0 else ("+" if change > 0 else "\u2212") + text


def fact(value: Any) -> str:
    """A value of the training provenance for people; nothing for what is empty or looks like a path."""
    if isinstance(value, Mapping):
        if {"value", "low", "high"} <= value.keys():
            return f"{fact(value['value'])} (95 % interval {fact(value['low'])}\u2013{fact(value['high'])})"
        return ", ".join(f"{str(k).replace('_', ' ')} {text}" for k, v in value.items() if k not in NOT_SHOWN and (text := fact(v)))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(text for v in value if (text := fact(v)))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.005 or value == 0 else ("< 0.01" if value > 0 else "> \u22120.01")
    return "" if PATH.search(str(value)) else str(value)


def sentence(message: str) -> str:
    """A warning for people: inputs by their names, no file names, a capital letter."""
    message = re.sub(rf"\b({'|'.join(MRI)})\b", lambda m: label(m[1]), PATH.sub("", message)).strip()
    return message[:1].upper() + message[1:]


@functools.cache
def _heat_table() -> UInt8[np.ndarray, "256 4"]:
    heat = np.arange(256) / 255
    alpha = np.where(heat < HEAT_FROM, 0, 255 * HEAT_ALPHA * heat)
    return np.column_stack([palette(INFERNO), alpha.round().astype(np.uint8)])


@functools.cache
def template(name: str) -> Template:
    """A page's template, with our filters."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(label=label, percent=percent, span=span, points=points, sentence=sentence, fact=fact)
    return environment.from_string(Path(__file__).with_name(name).read_text(encoding="utf-8"))
