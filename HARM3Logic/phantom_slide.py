"""The phantom's biopsy slide: a pyramidal tiled TIFF in haematoxylin and eosin colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
from jaxtyping import Float, UInt8
from scipy import ndimage

from HARM3Logic.writing import whole

# optical density per unit of stain (Ruifrok & Johnston 2001, H&E)
HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], dtype=np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], dtype=np.float32)
GLASS = np.array([244, 242, 245], dtype=np.float32)
INKS = ((30, 60, 160), (20, 120, 70))
MPP = {"small": (0.46, 0.5), "full": (0.25, 0.25)}  # µm per pixel, drawn between the two
EXTENT_UM = {"small": (640, 480), "full": (5200, 2400)}  # width, height
LYMPHOCYTES_MM2 = (350.0, 5200.0)  # at -1 and at 1
TUMOUR_CELLS_MM2 = 1500.0


def write_slide(path: Path, rng: np.random.Generator, lymphocytes: float, size: str) -> None:
    """A biopsy core; `lymphocytes` in [-1, 1] is the density of the small round dark nuclei, nothing else follows it."""
    mpp = float(rng.uniform(*MPP[size]))
    pixels = draw_slide(rng, lymphocytes, mpp, EXTENT_UM[size])
    with whole(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 88}, "metadata": None}
        level, factor = pixels, 1
        while True:
            per_cm = 1e4 / (mpp * factor)
            tiff.write(level, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", subfiletype=int(factor > 1), **options)
            if min(level.shape[:2]) < 512:
                break
            height, width = (n // 4 * 4 for n in level.shape[:2])
            blocks = level[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
            level, factor = blocks.mean(axis=(1, 3)).round().astype(np.uint8), factor * 4


def draw_slide(rng: np.random.Generator, lymphocytes: float, mpp: float, extent_um: tuple[float, float]) -> UInt8[np.ndarray, "H W 3"]:
    width, height = (int(e / mpp) for e in extent_um)
    tissue = _core(rng, height, width, mpp)
    nests = _noise(rng, height, width, 45 / mpp) > rng.uniform(-0.2, 0.2)  # tumour nests in stroma
    fibres = _noise(rng, height, width, 6 / mpp, stretch=5)
    eosin = tissue * (0.30 + 0.10 * fibres + 0.06 * nests)
    haematoxylin = tissue * (0.05 + 0.05 * nests)
    area_mm2 = float(tissue.sum()) * (mpp / 1000) ** 2
    low, high = LYMPHOCYTES_MM2
    density = low * (high / low) ** ((lymphocytes + 1) / 2)
    _stamp(haematoxylin, rng, tissue * nests, int(area_mm2 * TUMOUR_CELLS_MM2), (4.5, 7.0), (0.45, 0.7), mpp)
    _stamp(haematoxylin, rng, tissue * ~nests, int(area_mm2 * 500), (3.0, 6.0), (0.5, 0.7), mpp, squash=0.4)  # fibroblasts
    _stamp(haematoxylin, rng, tissue, int(area_mm2 * density), (2.6, 3.4), (0.9, 1.15), mpp)
    for _ in range(max(1, int(area_mm2 * 12))):
        _gland(eosin, haematoxylin, rng, tissue, mpp)
    strength = rng.uniform(0.85, 1.15, 2).astype(np.float32)
    grain = np.float32(2.0) * rng.standard_normal((height, width), dtype=np.float32)
    image = np.empty((height, width, 3), dtype=np.float32)
    for channel in range(3):  # Beer-Lambert, one channel at a time to stay in the cache
        absorbed = haematoxylin * (strength[0] * HAEMATOXYLIN[channel]) + eosin * (strength[1] * EOSIN[channel])
        image[..., channel] = GLASS[channel] * np.exp(np.float32(-np.log(10) * 0.75) * absorbed) + grain
    if rng.random() < 0.15:
        _pen(image, rng, mpp)
    return np.clip(image, 0, 255).astype(np.uint8)


def _core(rng: np.random.Generator, height: int, width: int, mpp: float) -> Float[np.ndarray, "H W"]:
    """A strip of tissue with ragged edges, 1 inside and soft over a few µm."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    bend = 0.06 * height * np.sin(x / width * rng.uniform(2, 5) + rng.uniform(0, 6))
    thickness = rng.uniform(0.30, 0.36) * height
    ragged = _noise(rng, height, width, 25 / mpp) * 8 / mpp
    across = np.abs(y - height / 2 - bend) + ragged - thickness
    along = np.abs(x - width / 2) - 0.44 * width + ragged
    outside = np.maximum(across, along)
    return np.asarray(1 / (1 + np.exp(np.clip(outside / (2 / mpp), -30, 30))), dtype=np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, scale_px: float, stretch: float = 1.0) -> Float[np.ndarray, "H W"]:
    """Smooth noise of unit variance whose features are about `scale_px` wide (and `stretch` times as long)."""
    step = max(1.0, scale_px / 3)
    rows, columns = int(height / step) + 4, int(width / (step * stretch)) + 4
    coarse = ndimage.gaussian_filter(rng.standard_normal((rows, columns), dtype=np.float32), 1.2)
    coarse /= coarse.std()
    fine = ndimage.zoom(coarse, (height / (rows - 3), width / (columns - 3)), order=1)
    return np.asarray(fine[:height, :width], dtype=np.float32)


def _stamp(
    canvas: Float[np.ndarray, "H W"],
    rng: np.random.Generator,
    where: Float[np.ndarray, "H W"],
    count: int,
    radius_um: tuple[float, float],
    strength: tuple[float, float],
    mpp: float,
    squash: float = 0.8,
) -> None:
    """Paint `count` elliptic nuclei at random places where `where` > 0.5."""
    places = np.flatnonzero(where > 0.5)
    if not places.size:
        return
    rows, columns = np.divmod(rng.choice(places, count), canvas.shape[1])
    reach = int(np.ceil(radius_um[1] / mpp)) + 2
    grid = np.arange(-reach, reach + 1, dtype=np.float32)
    stamps = []
    for _ in range(24):  # two dozen shapes, reused
        radius = rng.uniform(*radius_um) / mpp
        angle, ratio = rng.uniform(0, np.pi), rng.uniform(squash, 1.0)
        u = grid[None, :] * np.cos(angle) + grid[:, None] * np.sin(angle)
        v = (grid[:, None] * np.cos(angle) - grid[None, :] * np.sin(angle)) / ratio
        edge = np.clip((np.sqrt(u**2 + v**2) - radius) * 1.5, -20, 20)
        stamps.append(np.float32(rng.uniform(*strength)) / (1 + np.exp(edge)))
    height, width = canvas.shape
    for row, column, which in zip(rows, columns, rng.integers(0, 24, count), strict=True):
        if reach <= row < height - reach and reach <= column < width - reach:
            window = canvas[row - reach : row + reach + 1, column - reach : column + reach + 1]
            np.maximum(window, stamps[which], out=window)


def _gland(
    eosin: Float[np.ndarray, "H W"],
    haematoxylin: Float[np.ndarray, "H W"],
    rng: np.random.Generator,
    tissue: Float[np.ndarray, "H W"],
    mpp: float,
) -> None:
    """A ring of nuclei round an empty lumen."""
    places = np.flatnonzero(tissue > 0.95)
    row, column = divmod(int(rng.choice(places)), tissue.shape[1])
    radius = rng.uniform(18, 30) / mpp
    reach = int(radius * 1.6)
    top, left = max(0, row - reach), max(0, column - reach)
    window = (slice(top, row + reach), slice(left, column + reach))
    y, x = np.mgrid[top : top + eosin[window].shape[0], left : left + eosin[window].shape[1]]
    distance = np.hypot(y - row, x - column)
    lumen = distance < radius * 0.6
    eosin[window][lumen] *= 0.1
    haematoxylin[window][lumen] *= 0.05
    ring = np.arctan2(y - row, x - column) * radius * mpp / 5
    cells = (np.abs(distance - radius) < 4 / mpp) & (np.sin(ring * 2) > -0.2)
    haematoxylin[window][cells] = np.maximum(haematoxylin[window][cells], np.float32(0.55))


def _pen(image: Float[np.ndarray, "H W 3"], rng: np.random.Generator, mpp: float) -> None:
    """A felt-pen stroke along one edge of the slide."""
    height, width = image.shape[:2]
    ink = np.array(INKS[int(rng.integers(len(INKS)))], dtype=np.float32)
    row = rng.choice([0.05, 0.95]) * height
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    stroke = np.abs(y - row - 8 / mpp * np.sin(x / width * 7)) < 12 / mpp
    image[stroke] = 0.25 * image[stroke] + 0.75 * ink
