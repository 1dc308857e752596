"""Where an image lies in the patient: `Grid`, `Volume` (an array on its grid) and the one grid of an image, `canonical`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from scipy.spatial.transform import Rotation

from HARM3Logic.errors import BadGeometry


@dataclass(frozen=True)
class Grid:
    """Where the voxels of an image lie: ITK's convention, patient coordinates LPS.

    Args:
        size: voxels along x, y, z; the array's axes D H W run the other way.
        origin_mm: centre of the first voxel.
        direction: row-major; its columns are the unit vectors of the axes x, y, z.
    """

    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: tuple[float, float, float, float, float, float, float, float, float]

    def __post_init__(self) -> None:
        fault = geometry_fault(self.size, self.spacing_mm, self.origin_mm, self.direction)
        if fault:
            raise BadGeometry(f"a grid has {fault}.", "Correct the geometry.")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the array, D H W."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Unit vectors of x, y, z in its columns."""
        return np.reshape(np.array(self.direction, dtype=np.float64), (3, 3))

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """Voxel index (x, y, z, 1) to LPS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.axes * self.spacing_mm
        matrix[:3, 3] = self.origin_mm
        return matrix

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge lengths of the box of voxels along x, y, z."""
        x, y, z = (n * s for n, s in zip(self.size, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def centre_mm(self) -> tuple[float, float, float]:
        """Centre of the box of voxels."""
        return triple(self.matrix[:3] @ [*((n - 1) / 2 for n in self.size), 1])

    @property
    def corners_mm(self) -> Float[np.ndarray, "8 3"]:
        """Outer corners of the box of voxels, half a voxel beyond the outermost centres."""
        index = np.array([(*c, 1) for c in itertools.product(*((-0.5, n - 0.5) for n in self.size))])
        corners: Float[np.ndarray, "8 3"] = (index @ self.matrix.T)[:, :3]
        return corners

    def coarser(self, spacing_mm: float) -> Grid:
        """The same box in voxels that are about so large, or as large as they were; at least 4 along each axis where there are."""
        size = tuple(
            n if s >= spacing_mm else max(min(n, 4), round(n * s / spacing_mm)) for n, s in zip(self.size, self.spacing_mm, strict=True)
        )
        spacing = triple([e / n for e, n in zip(self.extent_mm, size, strict=True)])
        return _centred(self.centre_mm, (size[0], size[1], size[2]), spacing, self.direction)

    @classmethod
    def axis_aligned(cls, centre_mm: Iterable[float], shape_dhw: tuple[int, int, int], spacing_dhw_mm: Iterable[float]) -> Grid:
        """A grid along the patient's axes round a point."""
        identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
        d, h, w = shape_dhw
        return _centred(centre_mm, (w, h, d), triple(tuple(spacing_dhw_mm)[::-1]), identity)

    def to_dict(self) -> dict[str, Any]:
        """Its fields as JSON takes them."""
        return {name: list(getattr(self, name)) for name in ("size", "spacing_mm", "origin_mm", "direction")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Grid:
        """The grid that `to_dict` described.

        Raises:
            BadGeometry: a field is missing, has the wrong length or is no geometry.
        """
        try:
            x, y, z = (int(n) for n in data["size"])
            spacing, origin = triple(data["spacing_mm"]), triple(data["origin_mm"])
            a, b, c, d, e, f, g, h, i = (float(v) for v in data["direction"])
        except (KeyError, TypeError, ValueError) as error:
            raise BadGeometry(f"{data!r} does not describe a grid ({error!r}).", "Give size, spacing_mm, origin_mm, direction.") from error
        return cls((x, y, z), spacing, origin, (a, b, c, d, e, f, g, h, i))


@dataclass(frozen=True)
class Volume:
    """A 3D image and its place in the patient."""

    array: Float32[np.ndarray, "D H W"]
    grid: Grid

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise BadGeometry(f"an array of {self.array.shape} voxels does not fit a grid of {self.grid.shape}.", "Give its own grid.")


def triple(values: Any) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def geometry_fault(size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Iterable[float]) -> str:
    """What makes this no geometry of a 3D image, or nothing."""
    if min(size) < 1:
        return f"the size {tuple(size)}; at least one voxel along each axis is wanted"
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        return f"the spacing {tuple(spacing)} mm; positive numbers are wanted"
    if not all(np.isfinite(origin)):
        return f"the origin {tuple(origin)} mm; finite numbers are wanted"
    axes = np.reshape([float(v) for v in direction], (3, 3))
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
        return f"the axis directions {tuple(round(float(v), 4) for v in direction)}; three unit vectors at right angles are wanted"
    return ""


def _centred(centre_mm: Iterable[float], size: tuple[int, int, int], spacing: tuple[float, float, float], direction: Any) -> Grid:
    axes = np.reshape(direction, (3, 3)) * spacing
    return Grid(size, spacing, triple(np.asarray(triple(centre_mm)) - axes @ [(n - 1) / 2 for n in size]), direction)


def canonical(volume: Volume) -> Volume:
    """The same voxels with x, y, z running as nearly as possible to the patient's left, back and head.

    Nothing is interpolated. The geometry is rounded (0.0001 mm spacing, 0.001 mm place, 0.00001 rad direction), so that one image has
    one grid whichever format it was read from.
    """
    axes = volume.grid.axes
    # Rounded scores: at exactly 45 degrees the first order wins, not the noise.
    p = max(itertools.permutations(range(3)), key=lambda p: round(sum(abs(axes[i, p[i]]) for i in range(3)), 5))
    turned = [-1 if axes[i, p[i]] < 0 else 1 for i in range(3)]
    array = volume.array.transpose([2 - p[2 - k] for k in range(3)])[tuple(slice(None, None, turned[2 - k]) for k in range(3))]
    angles = Rotation.from_matrix(axes[:, p] * turned).as_rotvec()  # the best order never mirrors, so this is a rotation
    spacing = triple(_rounded([volume.grid.spacing_mm[k] for k in p], 1e-4))
    direction = tuple((Rotation.from_rotvec(_rounded(angles, 1e-5)).as_matrix() + 0.0).ravel().tolist())
    size = (volume.grid.size[p[0]], volume.grid.size[p[1]], volume.grid.size[p[2]])
    # The centre is the one point that does not depend on the order of the axes.
    return Volume(np.ascontiguousarray(array), _centred(_rounded(volume.grid.centre_mm, 1e-3), size, spacing, direction))


def _rounded(values: Sequence[float] | np.ndarray, step: float) -> list[float]:
    # Trap: 0.71875 mm lies on the edge between two steps, where a NIfTI header's 32 bits decide. The shift moves the edges off
    # the decimal and binary fractions that scanners use.
    return [round(float(np.floor(v / step + 0.537)) * step, 9) for v in values]
