"""How files become tensors, and how the work tells where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from HARM3Logic.stain import Stain
from HARM3Logic.tiles import TileSettings
from HARM3Logic.tissue import TissueSettings

OnEvent = Callable[[str, dict[str, Any]], None]  # event name and its values; raises Cancelled to stop the work; one call at a time


def silent(event: str, values: dict[str, Any]) -> None:
    """The default listener."""


@dataclass(frozen=True)
class Preprocessing:
    """How files become tensors; part of the checkpoint, so that a model always sees what it was trained on.

    Args:
        shape, spacing_mm: the model grid, D H W.
        crop: its centre: the pre-treatment tumour where a mask is given (else the body), or always the body; on CT the tumour's mask or
            the point given in it, or the middle of the image.
        bias_correction: N4 on every volume.
        registration: nothing, T2 to T1 of the same day, or that and post to pre.
        percentiles: intensities are clipped to these within the body, then z-scored within it.
        window_hu: CT is clipped to these Hounsfield units, which become -1 and 1.
        stain: how the colours of a slide's tiles are changed before they are encoded; None leaves them.
    """

    shape: tuple[int, int, int] = (32, 128, 128)
    spacing_mm: tuple[float, float, float] = (3.0, 1.0, 1.0)
    crop: Literal["tumour", "body"] = "tumour"
    bias_correction: bool = True
    registration: Literal["none", "within_timepoint", "full"] = "full"
    percentiles: tuple[float, float] = (0.5, 99.5)
    window_hu: tuple[float, float] = (-160.0, 240.0)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    tiles: TileSettings = field(default_factory=TileSettings)
    stain: Stain | None = None
