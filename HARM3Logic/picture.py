"""Pixels as data URIs, and the colours of heat and attention."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

INFERNO = ("#000004", "#160b39", "#420a68", "#6a176e", "#932667", "#bc3754", "#dd513a", "#f37819", "#fca50a", "#f6d746", "#fcffa4")
GREEN = ("#d6f5c9", "#8fd694", "#2fa36b", "#0b6b53", "#003f3a")  # on the pink and violet of H&E, which inferno is too near to


def png(pixels: UInt8[np.ndarray, "H W"], table: UInt8[np.ndarray, "256 4"]) -> bytes:
    """A PNG file in the colours of a table (red, green, blue, opacity)."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    image.putpalette(table[:, :3].tobytes())
    image.save(file, "png", transparency=table[:, 3].tobytes(), compress_level=4)
    return file.getvalue()


def picture(pixels: UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"], table: UInt8[np.ndarray, "256 4"] | None = None) -> str:
    """A data URI: a JPEG, or a PNG in the colours of a table."""
    if table is not None:
        return f"data:image/png;base64,{base64.b64encode(png(pixels, table)).decode()}"
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=90, subsampling=0)  # else colours bleed over the edges of tiles
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def palette(colours: Sequence[str]) -> UInt8[np.ndarray, "256 3"]:
    """256 colours from the first to the last of some, evenly."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours])
    known, wanted = np.arange(len(colours)), np.linspace(0, len(colours) - 1, 256)
    table: UInt8[np.ndarray, "256 3"] = np.column_stack([np.interp(wanted, known, c) for c in anchors.T]).round().astype(np.uint8)
    return table


def nice_length(most: float) -> float:
    """The longest of 1, 2, 5 times a power of ten that is not above `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(f * power for f in (1, 2, 5) if f * power <= most * (1 + 1e-9)))
