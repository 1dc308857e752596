"""A prediction as it lies on disk and the volumes it was made from, small and with known places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from HARM3SlicerLib.volumes import addVolume
from PIL import Image

NAMES = ("t1_pre", "t2_pre", "t1_post", "t2_post")
SHAPE = (18, 36, 40)
PEAK = (11, 14, 25)  # k, j, i of the bright voxel


def turned(degrees_z: float, degrees_x: float, spacing: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    """Voxel index to RAS of an oblique grid."""
    z, x = np.radians(degrees_z), np.radians(degrees_x)
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_z @ about_x * spacing
    matrix[:3, 3] = origin
    return matrix


OBLIQUE = turned(20, 12, (2.1, 1.7, 4.0), (-35.0, -28.0, -40.0))


def grid(name: str) -> np.ndarray:
    """Each input has its own oblique grid."""
    i = NAMES.index(name)
    return turned(20 - 8 * i, 12 - 5 * i, (2.1 - 0.1 * i, 1.7 + 0.1 * i, 4.0), (-35.0 + i, -28.0, -40.0 + 2 * i))


def oblique_volume() -> np.ndarray:
    """Dark, with a bright voxel at `PEAK`."""
    array = np.zeros(SHAPE, np.float32)
    array[PEAK] = 1
    return array


def blob(name: str) -> np.ndarray:
    """Smooth heat round `PEAK`; of the four only the first reaches 1."""
    top = (1.0, 0.6, 0.8, 0.1)[NAMES.index(name)]
    distance = sum(((axis - p) * s) ** 2 for axis, p, s in zip(np.indices(SHAPE), PEAK, (4.0, 1.7, 2.1), strict=True))
    return (top * np.exp(-distance / (2 * 8.0**2))).astype(np.float32)


def write_prediction(folder: Path, case_id: str) -> dict[str, Any]:
    """Write the files of a prediction, and give the volume nodes it was made from."""
    folder.mkdir(parents=True, exist_ok=True)
    nodes = {name: addVolume(f"{case_id} {name}", 100 * oblique_volume(), grid(name)) for name in NAMES}
    for node in nodes.values():
        node.GetDisplayNode().SetWindowLevelMinMax(0, 100)
    for name in NAMES:
        write_nrrd(folder / f"heatmap_{name}.nrrd", blob(name), grid(name))
    picture = np.full((30, 40, 3), 255, np.uint8)
    picture[:10, :12] = (255, 0, 0)  # upper left
    Image.fromarray(picture).save(folder / "slide_thumbnail.png")
    attention = np.zeros((30, 40), np.float32)
    attention[20:30, 30:40] = 1
    write_nrrd(folder / "slide_attention.nrrd", attention[None], np.diag([-0.1, -0.1, 1, 1]))
    values = {
        "case_id": case_id,
        "probability": 0.73,
        "interval": [0.6, 0.81],
        "decision": "responder",
        "threshold": 0.5,
        "contributions": {"t1_pre": 0.1, "t2_pre": -0.02, "t1_post": 0.2, "t2_post": 0.0, "slide": 0.05},
        "heat": {name: {"max": float(blob(name).max()), "share_in_tumour": 0.4 if name == "t1_pre" else None} for name in NAMES},
        "tiles": [{"rank": 1, "x_px": 300, "y_px": 200, "weight": 0.5}],
        "slide": {"size_px": [400, 300], "tile_px": 100.0, "thumbnail_px": [40, 30], "thumbnail_mm_per_px": 0.1},
        "warnings": [{"code": "small", "message": "the slide's tissue is small; it's 2 % \"only\"."}],
        "model": {"name": "harm3_fusion", "checkpoint_sha256": "ab" * 32},
    }
    (folder / "prediction.json").write_text(json.dumps(values), encoding="utf-8")
    return nodes


def write_nrrd(path: Path, array: np.ndarray, ijk_to_ras: np.ndarray) -> None:
    """As the prediction writes it: by ITK, compressed."""
    matrix = np.diag([-1, -1, 1, 1]) @ ijk_to_ras
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)
