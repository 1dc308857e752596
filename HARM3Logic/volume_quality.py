"""What a reader should know of a volume that can be used: a spacing that looks lost, a body that is cut, saturation, noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from HARM3Logic.volume import Volume, body_mask


def quality(volume: Volume, body: Bool[np.ndarray, "D H W"] | None = None) -> list[tuple[str, str]]:
    """Warnings (code, sentence) about a volume that can be used but should be looked at.

    Args:
        body: the patient; None to find it.

    Raises:
        BadVolume: the patient is not found.
    """
    grid = volume.grid
    body = body_mask(volume) if body is None else body
    found = []
    extents, spacing = sorted(grid.extent_mm), grid.spacing_mm
    if (spacing == (1.0, 1.0, 1.0) and min(grid.size) < 64) or extents[2] < 60 or extents[1] > 700:
        size = " x ".join(f"{e:.0f}" for e in grid.extent_mm)
        voxel = " x ".join(f"{s:g}" for s in spacing)
        found.append(("spacing_lost", f"Voxels of {voxel} mm make an image of {size} mm: the true spacing looks lost."))
    if max(spacing) > 8:
        found.append(("thick_slices", f"Slices are {max(spacing):.1f} mm apart: small structures can hide between them."))
    through = int(np.argmax(spacing)) if max(spacing) > 1.5 * min(spacing) else int(np.argmin(grid.size))
    faces = [np.take(body, end, axis=2 - axis).mean() for axis in range(3) if axis != through for end in (0, -1)]
    if max(faces) > 0.25:
        found.append(("field_of_view_cut", f"The patient fills {max(faces):.0%} of one edge of the slices: the image cuts the body."))
    values = volume.array[body]
    top = float((values == values.max()).mean())
    if top > 0.01:
        found.append(("saturated", f"{top:.1%} of the patient's voxels have the largest value {values.max():g}: the image is saturated."))
    ratio = _signal_to_noise(volume, body)
    if ratio < 4:
        found.append(("low_signal", f"The signal is only {ratio:.1f} times the noise."))
    return found


def _signal_to_noise(volume: Volume, body: Bool[np.ndarray, "D H W"]) -> float:
    # Second differences along a line see noise and little anatomy; their deviation is that of the noise times the root of 6.
    bend = np.abs(np.diff(volume.array, n=2, axis=2))[body[:, :, 1:-1]]
    noise = float(np.median(bend)) / 0.6745 / np.sqrt(6)
    signal = float(np.median(volume.array[body]) - np.percentile(np.maximum(volume.array, -1024), 0.5))
    return signal / noise if noise > 0 else np.inf
