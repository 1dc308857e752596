"""The phantom's abdomen with a tumour, and what a CT scanner of one of four centres makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from HARM3Logic.phantom_mri import Ellipsoid
from HARM3Logic.volume import Grid, Volume

# in-plane spacing, matrix, slice spacing (mm), slices
ACQUISITION = {"small": (3.0, 96, 5.0, 30), "full": (0.8, 360, 2.5, 60)}
AIR, FAT, MUSCLE, LIVER, SPINE, AORTA, KIDNEY, GAS, TUMOUR = -1000.0, -100.0, 55.0, 105.0, 260.0, 165.0, 150.0, -850.0, 75.0
GRAIN_MM = 7.0  # sigma of the patches


@dataclass(frozen=True)
class Scanner:
    """What a centre does to every image, and the factor on its share of missing values."""

    noise_hu: float
    blur_mm: float
    phase_hu: float
    gain: float
    slices: float
    missing: float


CENTRES = (
    Scanner(14.0, 0.0, 0.0, 1.0, 1.0, 0.7),
    Scanner(20.0, 0.0, 10.0, 1.05, 1.0, 1.0),
    Scanner(12.0, 3.5, -12.0, 0.95, 1.3, 1.0),
    Scanner(28.0, 0.0, 18.0, 1.15, 0.9, 1.5),
)


def render(diameter_mm: float, spread_hu: float, scanner: Scanner, rng: np.random.Generator, size: str) -> dict[str, Volume]:
    """The CT (HU) and the tumour's mask on its grid.

    Args:
        spread_hu: standard deviation of the tumour's density, before the scanner's noise.
        size: a key of `ACQUISITION`.
    """
    spacing, matrix, thickness, slices = ACQUISITION[size]
    step, count = thickness * scanner.slices, max(2, round(slices / scanner.slices))
    grid = Grid.axis_aligned(rng.uniform(-40, 40, 3), (count, matrix, matrix), (step, spacing, spacing))
    points = _points(grid) - np.array(grid.centre_mm, dtype=np.float32)
    hu = np.full(grid.shape, AIR, dtype=np.float32)
    for organ, density in _organs(rng):
        hu += organ.inside(points) * (np.float32(density) - hu)
    radius = diameter_mm / 2
    stretch = rng.uniform(0.92, 1.08, 3)
    stretch /= np.cbrt(stretch.prod())
    axes = radius * stretch
    where = (float(rng.uniform(0, 35)), float(rng.uniform(-35, 0)), float(rng.uniform(-8, 8)))
    tumour = Ellipsoid(where, (float(axes[0]), float(axes[1]), float(axes[2])), 0.06, float(rng.uniform(0, 6)))
    share = tumour.inside(points)
    grain = ndimage.gaussian_filter(rng.standard_normal(grid.shape), [GRAIN_MM / s for s in grid.spacing_mm[::-1]])
    grain = (grain - grain[share > 0.5].mean()) / grain[share > 0.5].std()
    lesion = TUMOUR + rng.normal(0, 8) + spread_hu * grain
    hu += share * (lesion.astype(np.float32) - hu)
    soft = hu > -500  # the contrast phase fills tissue, not air
    hu = np.where(soft, (hu - MUSCLE) * np.float32(scanner.gain) + MUSCLE + np.float32(scanner.phase_hu), hu)
    if scanner.blur_mm:
        hu = ndimage.gaussian_filter(hu, [0.0, *(scanner.blur_mm / s for s in grid.spacing_mm[1::-1])])
    noisy = hu + rng.normal(0, scanner.noise_hu, hu.shape)
    return {
        "ct": Volume(np.round(np.clip(noisy, -1024, 3071)).astype(np.float32), grid),
        "tumour_ct": Volume((share > 0.5).astype(np.float32), grid),
    }


def _points(grid: Grid) -> Float[np.ndarray, "D H W 3"]:
    x, y, z = (origin + step * np.arange(n) for origin, step, n in zip(grid.origin_mm, grid.spacing_mm, grid.size, strict=True))
    k, j, i = np.meshgrid(z, y, x, indexing="ij")
    return np.stack([i, j, k], axis=-1).astype(np.float32)


def _organs(rng: np.random.Generator) -> list[tuple[Ellipsoid, float]]:
    """An abdomen, painted in order."""
    a, b = float(rng.uniform(116, 130)), float(rng.uniform(88, 98))
    fat = float(rng.uniform(8, 20))

    def blob(x: float, y: float, z: float, axes: tuple[float, float, float], density: float) -> tuple[Ellipsoid, float]:
        dx, dy, dz = (float(v) for v in rng.normal(0, 4, 3))
        return Ellipsoid((x + dx, y + dy, z + dz), axes, 0.05, float(rng.uniform(0, 6))), density

    return [
        (Ellipsoid((0.0, 0.0, 0.0), (a, b, 900.0), 0.02, float(rng.uniform(0, 6))), FAT),
        (Ellipsoid((0.0, 0.0, 0.0), (a - fat, b - fat, 900.0), 0.02, float(rng.uniform(0, 6))), MUSCLE),
        blob(-55, -10, 10, (50.0, 55.0, 60.0), LIVER),
        blob(0, 62, 0, (19.0, 16.0, 800.0), SPINE),
        blob(10, 38, 0, (9.0, 9.0, 800.0), AORTA),
        blob(54, 38, -5, (22.0, 20.0, 45.0), KIDNEY),
        blob(-54, 38, -10, (22.0, 20.0, 45.0), KIDNEY),
        blob(75, -30, 20, (16.0, 14.0, 18.0), GAS),
    ]


def crop(image: Volume, tumour: Volume, half_mm: float) -> Volume:
    """The box of so many mm to each side of the tumour's middle, as far as the image goes."""
    grid, inside = image.grid, np.argwhere(tumour.array > 0)
    centre, half = (inside.min(axis=0) + inside.max(axis=0)) / 2, half_mm / np.array(grid.spacing_mm)[::-1]
    low = np.maximum(np.round(centre - half), 0).astype(int)
    high = np.minimum(np.round(centre + half) + 1, grid.shape).astype(int)
    array = image.array[tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))]
    x, y, z = (float(v) for v in (grid.matrix @ [*low[::-1], 1])[:3])
    size = (array.shape[2], array.shape[1], array.shape[0])
    return Volume(np.ascontiguousarray(array), Grid(size, grid.spacing_mm, (x, y, z), grid.direction))
