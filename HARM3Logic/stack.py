"""A volume in slices as a reader hangs them: patient left on the right, anterior or superior up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from HARM3Logic.volume import Grid, Volume, canonical

NEIGHBOUR_MM = 8.0  # about how far the neighbours lie from the key slice

# plane: its axis in L P S, letters of the patient's side at the panel's left, right, top and bottom, letters of the slice's place
PLANES = {"axial": (2, "RLAP", "SI"), "coronal": (1, "RLSI", "PA"), "sagittal": (0, "APSI", "LR")}


@dataclass(frozen=True)
class Stack:
    """A volume in slices as a reader hangs them: patient left on the right, anterior or superior up.

    Args:
        grid: of the volume turned to L, P, S, from which the slices were taken.
        pixel_mm: down, right.
        edges: letters of the patient's side at the left, right, top and bottom edge.
    """

    slices: Float32[np.ndarray, "N H W"]
    grid: Grid
    plane: str
    pixel_mm: tuple[float, float]
    edges: str

    def index(self, point_mm: Float[np.ndarray, " 3"]) -> float:
        """The slice (with fraction) through a point in LPS mm; may lie outside."""
        return float((np.linalg.inv(self.grid.matrix) @ [*point_mm, 1])[PLANES[self.plane][0]])

    def place(self, index: int) -> str:
        """Where the middle of a slice lies, such as `S 14 mm`."""
        axis, _, letters = PLANES[self.plane]
        voxel = [(n - 1) / 2 for n in self.grid.size]
        voxel[axis] = index
        mm = round(float((self.grid.matrix @ [*voxel, 1])[axis]))
        return f"{letters[mm < 0]} {abs(mm)} mm"


def stack(volume: Volume, plane: str | None = None) -> Stack:
    """The volume's slices in radiological convention.

    Args:
        plane: axial, coronal or sagittal; None takes the one it was acquired in, axial for voxels of nearly one size.
    """
    turned = canonical(volume)
    x, y, z = turned.grid.spacing_mm
    if plane is None:
        thick = int(np.argmax((x, y, z)))
        plane = next(p for p in PLANES if PLANES[p][0] == thick) if max(x, y, z) > 1.5 * min(x, y, z) else "axial"
    array = turned.array  # S P L
    if plane == "coronal":
        array = array.transpose(1, 0, 2)[:, ::-1]
    elif plane == "sagittal":
        array = array.transpose(2, 0, 1)[:, ::-1]
    pixel = {"axial": (y, x), "coronal": (z, x), "sagittal": (z, y)}[plane]
    return Stack(array, turned.grid, plane, pixel, PLANES[plane][1])


def key_slices(heat: Stack, point_mm: Float[np.ndarray, " 3"] | None) -> tuple[int, ...]:
    """The slice to look at first and its two neighbours about 8 mm off, fewer in a volume of fewer slices.

    The first goes through the point; through the volume's own hottest voxel, or its middle, where the point lies outside or is None.
    """
    count = len(heat.slices)
    at = -1.0 if point_mm is None else heat.index(point_mm)
    if not -0.5 <= at <= count - 0.5:
        per_slice = heat.slices.max(axis=(1, 2))
        at = float(per_slice.argmax()) if per_slice.max() > 0 else (count - 1) / 2
    first = min(max(round(at), 0), count - 1)
    step = max(1, round(NEIGHBOUR_MM / heat.grid.spacing_mm[PLANES[heat.plane][0]]))
    step = min(step, max(1, (count - 1) // 2))  # so that two neighbours fit even beside the outermost slice
    near = [k for k in (first + step, first - step, first + 2 * step, first - 2 * step) if 0 <= k < count]
    return (first, *sorted(near[:2], reverse=True))
