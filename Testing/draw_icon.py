"""Draw the module's icon: four views in two rows, a heatmap in each, the one after therapy nearly gone. Run it from the repository root."""

import numpy as np
from PIL import Image

SIZE, FINE = 128, 4  # drawn FINE times larger, then made smaller for smooth edges
INFERNO = np.array([[66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], float)
TARGET = "HARM3Slicer/Resources/Icons/HARM3Slicer.png"


def rounded(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Where a rectangle with round corners lies."""
    dx = np.maximum(np.maximum(x0 + radius - x, x - (x1 - radius)), 0)
    dy = np.maximum(np.maximum(y0 + radius - y, y - (y1 - radius)), 0)
    return np.hypot(dx, dy) <= radius


def draw() -> Image.Image:
    """The icon with a transparent background."""
    y, x = (np.mgrid[: SIZE * FINE, : SIZE * FINE] + 0.5) / FINE
    image = np.zeros((*x.shape, 4))
    image[rounded(x, y, 3, 3, 125, 125, 20)] = (27, 38, 59, 255)
    for row, brightness in enumerate((150.0, 205.0)):  # T1, T2
        for column, heat in enumerate((1.0, 0.42)):  # before, after therapy
            x0, y0 = 13 + 53 * column, 13 + 53 * row
            tile = rounded(x, y, x0, y0, x0 + 49, y0 + 49, 7)
            image[tile] = (10, 14, 22, 255)
            cx, cy = x0 + 24.5, y0 + 24.5
            head = np.hypot((x - cx) / 19, (y - cy) / 21.5)
            tissue = (brightness * (0.62 + 0.38 * np.cos(5.5 * head)))[..., None]
            image[..., :3] = np.where((head < 1)[..., None], tissue, image[..., :3])
            spot = heat * np.exp(-(((x - cx - 6) ** 2 + (y - cy + 4) ** 2) / (2 * (9.5 * heat**0.7) ** 2)))
            spot = np.where(head < 1, spot, 0)
            colour = np.stack([np.interp(spot, np.linspace(0, 1, 5), INFERNO[:, c]) for c in range(3)], axis=-1)
            alpha = np.clip(1.5 * spot, 0, 0.95)[..., None]
            image[..., :3] = image[..., :3] * (1 - alpha) + colour * alpha
    small = image.reshape(SIZE, FINE, SIZE, FINE, 4)
    weight = small[..., 3:] / 255
    rgb = (small[..., :3] * weight).sum((1, 3)) / np.maximum(weight.sum((1, 3)), 1e-9)
    return Image.fromarray(np.concatenate([rgb, small[..., 3:].mean((1, 3))], axis=-1).round().astype(np.uint8), "RGBA")


if __name__ == "__main__":
    draw().save(TARGET, optimize=True)
