"""The phantom's neck in patient coordinates, and what four MRI acquisitions make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from HARM3Logic.volume import Grid, Volume

# signal on (contrast-enhanced T1, T2), both fat-suppressed as usual in the neck, relative to the brightest tissue
AIR, MUSCLE, FAT, BONE = (0.02, 0.02), (0.34, 0.30), (0.20, 0.18), (0.27, 0.34)
GLAND, VESSEL, NODE, TUMOUR = (0.50, 0.46), (0.72, 0.06), (0.46, 0.52), (0.82, 0.78)
ENHANCING, PLAIN = 0.84, 0.34  # T1 of the residual mass
BRIGHT, DARK = 0.82, 0.10  # T2 of the residual mass
EDGE_MM = 0.8  # softness of every border, stands for partial volume in the plane
NOISE = 0.025  # sigma of the Rician noise, relative to the brightest tissue
# in-plane spacing, matrix, slice spacing (mm), slices
ACQUISITION = {"small": (2.0, 72, 5.0, 18), "full": (0.6, 240, 4.0, 22)}


@dataclass(frozen=True)
class Ellipsoid:
    """A soft blob; `wobble` bends its surface by that share of the radius."""

    centre_mm: tuple[float, float, float]
    semi_axes_mm: tuple[float, float, float]
    wobble: float = 0.0
    phase: float = 0.0

    @property
    def radius_mm(self) -> float:
        return float(np.cbrt(np.prod(self.semi_axes_mm)))

    def scaled(self, factor: float) -> Ellipsoid:
        a, b, c = self.semi_axes_mm
        return Ellipsoid(self.centre_mm, (a * factor, b * factor, c * factor), self.wobble, self.phase)

    def inside(self, points: Float[np.ndarray, "*N 3"]) -> Float[np.ndarray, "*N"]:
        """1 inside, 0 outside, soft over `EDGE_MM`."""
        result = np.zeros(points.shape[:-1], dtype=np.float32)
        near = np.arange(result.size)  # a blob fills little of the neck: the rest is 0 without a root or an exponential
        parts: list[Float32[np.ndarray, " n"]] = []
        for axis in range(3):
            place = points[..., axis].reshape(-1)[near]
            part = (place - np.float32(self.centre_mm[axis])) / np.float32(self.semi_axes_mm[axis])
            close = np.abs(part) < 1.5
            near, parts = near[close], [*(old[close] for old in parts), part[close]]
        offset = np.stack(parts, axis=-1)
        distance = np.sqrt(np.einsum("...i,...i", offset, offset)) + np.float32(1e-6)
        if self.wobble:
            angle = np.arctan2(offset[..., 1], offset[..., 0])
            height = offset[..., 2] / distance
            distance = distance / (
                1 + self.wobble * np.sin(3 * angle + self.phase) * (1 - height**2) + self.wobble * height * np.cos(self.phase)
            )
        steep = np.float32(2 * min(self.semi_axes_mm) / EDGE_MM)
        result.reshape(-1)[near] = 1 / (1 + np.exp(np.clip((distance - 1) * steep, -30, 30)))
        return result


@dataclass(frozen=True)
class Scene:
    """One patient: organs as (shape, signal) painted in order, the tumour, and what becomes of it."""

    organs: tuple[tuple[Ellipsoid, tuple[float, float]], ...]
    body: Ellipsoid
    tumour: Ellipsoid
    residual: Ellipsoid
    residual_signal: tuple[float, float]


def draw_scene(rng: np.random.Generator, diameter_ratio: float, enhancing: bool, bright: bool) -> Scene:
    """A neck with a tumour on one side; everything the label does not depend on varies freely."""
    a, b = rng.uniform(50, 56), rng.uniform(44, 50)
    side = rng.choice([-1.0, 1.0])

    def near(x: float, y: float, z: float, spread: float) -> tuple[float, float, float]:
        dx, dy, dz = rng.normal(0, spread, 3)
        return (float(x + dx), float(y + dy), float(z + dz))

    body = Ellipsoid((0.0, 0.0, 0.0), (a, b, 400.0), 0.02, float(rng.uniform(0, 6)))
    fat = rng.uniform(4, 8)
    organs = [
        (body, FAT),
        (Ellipsoid((0.0, 0.0, 0.0), (a - fat, b - fat, 400.0), 0.03, float(rng.uniform(0, 6))), MUSCLE),
        (Ellipsoid(near(0, -8, 0, 1.5), (rng.uniform(6, 9), rng.uniform(7, 10), 300.0)), AIR),
        (Ellipsoid(near(0, 22, 0, 1.5), (rng.uniform(12, 15), rng.uniform(10, 13), 300.0)), BONE),
    ]
    for s in (-1.0, 1.0):
        organs.append((Ellipsoid(near(s * 33, 8, 0, 1.5), (rng.uniform(3.0, 4.2),) * 2 + (300.0,)), VESSEL))
        organs.append(
            (Ellipsoid(near(s * 31, -20, 5, 2.5), (rng.uniform(6, 8), rng.uniform(7, 10), rng.uniform(10, 14)), 0.05, 1.0), GLAND)
        )
        for _ in range(rng.integers(1, 4)):
            r = rng.uniform(2.5, 4.5)
            organs.append((Ellipsoid(near(s * 38, 12, rng.uniform(-28, 28), 2.5), (r, r, r * rng.uniform(1.0, 1.6))), NODE))
    radius = rng.uniform(9, 16)
    stretch = rng.uniform(0.88, 1.14, 3)
    centre = (float(side * rng.uniform(15, 25)), float(rng.uniform(-14, 8)), float(rng.uniform(-18, 18)))
    axes = (float(radius * stretch[0]), float(radius * stretch[1]), float(radius * stretch[2]))
    tumour = Ellipsoid(centre, axes, 0.08, float(rng.uniform(0, 6)))
    signal = (ENHANCING if enhancing else PLAIN, BRIGHT if bright else DARK)
    t1, t2 = (float(np.clip(v + rng.normal(0, 0.03), 0.05, 1)) for v in signal)
    return Scene(tuple(organs), body, tumour, tumour.scaled(diameter_ratio), (t1, t2))


def render(scene: Scene, rng: np.random.Generator, size: str) -> dict[str, Volume]:
    """The four volumes and two masks (on the grids of t1_pre and t1_post)."""
    images: dict[str, Volume] = {}
    for time in ("pre", "post"):
        lesion, signal = (scene.tumour, TUMOUR) if time == "pre" else (scene.residual, scene.residual_signal)
        motion = _rigid(rng, 3.0, 3.0) if time == "post" else np.eye(4)
        for channel, sequence in enumerate(("t1", "t2")):
            moved = motion @ _rigid(rng, 0.5, 0.5) if sequence == "t2" else motion
            grid = _grid(rng, size)
            images[f"{sequence}_{time}"] = _acquire(scene, lesion, signal, channel, grid, moved, rng)
            if sequence == "t1":
                mask = lesion.inside(_points(grid, motion)) > 0.5
                images[f"tumour_{time}"] = Volume(mask.astype(np.float32), grid)
    return images


def _acquire(
    scene: Scene,
    lesion: Ellipsoid,
    signal: tuple[float, float],
    channel: int,
    grid: Grid,
    motion: Float[np.ndarray, "4 4"],
    rng: np.random.Generator,
) -> Volume:
    mean = np.zeros(grid.shape, dtype=np.float32)
    for shift in (-0.3, 0.0, 0.3):  # a thick slice is the mean of thinner ones
        points = _points(grid, motion, shift)
        clean = np.full(grid.shape, AIR[channel] * 0.5, dtype=np.float32)
        for shape, tissue in (*scene.organs, (lesion, signal)):
            share = shape.inside(points)
            clean += share * (tissue[channel] - clean)
        mean += clean / np.float32(3)
    bias = np.exp(_smooth_field(grid.shape, rng, 0.18))
    real, imaginary = np.float32(NOISE) * rng.standard_normal((2, *grid.shape), dtype=np.float32)
    noisy = np.sqrt((mean * bias + real) ** 2 + imaginary**2)
    gain = np.float32(rng.uniform(300, 1500))
    return Volume(np.round(noisy * gain).astype(np.float32), grid)


def _smooth_field(shape: tuple[int, int, int], rng: np.random.Generator, amplitude: float) -> Float[np.ndarray, "D H W"]:
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    c = rng.uniform(-1, 1, 6).astype(np.float32)
    field = c[0] * x + c[1] * y + c[2] * z + c[3] * x * y + c[4] * (x**2 - 0.5) + c[5] * (y**2 - 0.5)
    return np.asarray(np.float32(amplitude) * field, dtype=np.float32)


def _grid(rng: np.random.Generator, size: str) -> Grid:
    """An oblique acquisition centred near the neck's centre; no two are alike."""
    spacing, matrix, thickness, slices = ACQUISITION[size]
    in_plane = round(spacing * rng.uniform(0.92, 1.08), 3)
    step = round(thickness * rng.uniform(0.95, 1.08), 3)
    columns = int(matrix * rng.uniform(0.98, 1.08))
    rows = int(matrix * rng.uniform(0.92, 1.02))
    direction = _rotation(rng.uniform(-6, 6, 3))
    count = np.array([columns, rows, slices])
    spacing_mm = np.array([in_plane, in_plane, step])
    origin = rng.uniform(-4, 4, 3) - direction @ ((count - 1) / 2 * spacing_mm)
    return Grid((columns, rows, slices), tuple(spacing_mm.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist()))


def _points(grid: Grid, motion: Float[np.ndarray, "4 4"], slice_shift: float = 0.0) -> Float[np.ndarray, "D H W 3"]:
    """Scene coordinates (mm) of the voxel centres of a patient who moved by `motion`; `slice_shift` in slices."""
    columns, rows, slices = grid.size
    k, j, i = np.meshgrid(np.arange(slices) + slice_shift, np.arange(rows), np.arange(columns), indexing="ij")
    index = np.stack([i, j, k, np.ones_like(i)], axis=-1)
    to_scene = np.linalg.inv(motion) @ grid.matrix
    return np.asarray((index @ to_scene.T)[..., :3], dtype=np.float32)


def _rotation(degrees: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    x, y, z = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


def _rigid(rng: np.random.Generator, degrees: float, mm: float) -> Float[np.ndarray, "4 4"]:
    matrix = np.eye(4)
    matrix[:3, :3] = _rotation(rng.uniform(-degrees, degrees, 3))
    matrix[:3, 3] = rng.uniform(-mm, mm, 3)
    return matrix
