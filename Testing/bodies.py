"""Synthetic volumes: an oblique grid, a body of ellipsoids on it that can be moved, and a DICOM series of one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from HARM3Logic.volume import Grid, Volume

CENTRE_MM = (5.0, -30.0, 120.0)
T1 = (0.5, 0.7, 0.35, 0.9, 0.2, 1.0, 0.6)  # brightness of the parts of the synthetic body
T2 = (0.4, 0.25, 0.9, 0.5, 0.7, 0.3, 0.95)


def oblique(shape=(24, 64, 64), spacing_dhw=(5.0, 3.5, 3.5), degrees=(4, -6, 9), centre_mm=CENTRE_MM) -> Grid:
    """An anisotropic grid that is turned against the patient."""
    axes = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    grid = Grid.axis_aligned(centre_mm, shape, spacing_dhw)
    origin = np.asarray(centre_mm) - axes @ (np.asarray(centre_mm) - grid.origin_mm)
    return replace(grid, origin_mm=tuple(origin.tolist()), direction=tuple(axes.ravel().tolist()))


def points_mm(grid: Grid) -> np.ndarray:
    z, y, x = np.indices(grid.shape)
    return (np.stack([x, y, z, np.ones_like(x)], -1).reshape(-1, 4) @ grid.matrix.T)[:, :3]


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def motion(shift_mm, degrees) -> np.ndarray:
    """A rigid motion round the body's centre."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.radians(degrees)).as_matrix()
    matrix[:3, 3] = np.add(CENTRE_MM, shift_mm) - matrix[:3, :3] @ CENTRE_MM
    return matrix


def body(grid: Grid, contrast=T1, matrix=None, noise=0.03, bias=0.0, seed=0) -> tuple[Volume, np.ndarray]:
    """A body of ellipsoids with Rician noise, moved by `matrix`, and where it is."""
    points = moved(points_mm(grid), np.linalg.inv(np.eye(4) if matrix is None else matrix)) - CENTRE_MM
    centres = ((0, 0, 0), (0, -20, 10), (25, 40, 0), (-25, 35, -10), (0, 45, 0), (20, -30, 20), (-30, -10, -25))
    radii = ((75, 90, 110), (40, 40, 50), (14, 18, 60), (18, 12, 50), (12, 12, 90), (12, 15, 10), (10, 14, 12))
    values = np.zeros(len(points))
    for centre, radius, level in zip(centres, radii, contrast, strict=True):
        depth_mm = (1 - np.sqrt((((points - centre) / radius) ** 2).sum(1))) * min(radius)
        part = 1 / (1 + np.exp(-np.clip(depth_mm / 1.5, -50, 50)))
        values = values * (1 - part) + level * part
    values *= np.exp(bias * (points[:, 0] / 75 + points[:, 1] / 180))
    random = np.random.default_rng(seed)
    values = np.hypot(values + noise * random.standard_normal(len(values)), noise * random.standard_normal(len(values)))
    inside = ((points / radii[0]) ** 2).sum(1) < 1
    return Volume((1000 * values).reshape(grid.shape).astype(np.float32), grid), inside.reshape(grid.shape)


def to_itk(image: Volume) -> sitk.Image:
    made = sitk.GetImageFromArray(image.array)
    made.SetSpacing(image.grid.spacing_mm)
    made.SetOrigin(image.grid.origin_mm)
    made.SetDirection(image.grid.direction)
    return made


def whole_numbers() -> Volume:
    """Whole numbers that differ, 12 x 10 x 6 voxels on an oblique grid whose spacing lies on the edge of rounding."""
    grid = oblique((6, 10, 12), (3.3, 0.71875, 0.9765625))
    return Volume(np.random.default_rng(1).integers(-500, 3000, grid.shape).astype(np.float32), grid)


def write_dicom(
    image: Volume, folder: Path, uid="1.2.3.1", places=None, skip=(), slope=1.0, description="T1", kind="1.2.840.10008.5.1.4.1.1.4"
) -> Path:
    """A DICOM series of a volume; file names run against the order of the slices.

    Args:
        kind: SOP class; MR by default.
    """
    folder.mkdir(exist_ok=True)
    made = sitk.Cast(to_itk(image), sitk.sitkInt16 if slope == 1 else sitk.sitkFloat32)
    axes = np.reshape(made.GetDirection(), (3, 3))
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in range(made.GetDepth()):
        if z in skip:
            continue
        part = made[:, :, z]
        place = made.TransformIndexToPhysicalPoint((0, 0, z)) if places is None else places[z]
        tags = {
            "0008|0060": "MR",
            "0008|0016": kind,
            "0008|0018": f"{uid}.{z + 1}",
            "0008|103e": description,
            "0018|0050": f"{made.GetSpacing()[2]:.10g}",
            "0020|000d": "1.2.3",
            "0020|000e": uid,
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(f"{v:.10g}" for v in place),
            "0020|0037": "\\".join(f"{v:.10f}" for v in (*axes[:, 0], *axes[:, 1])),
        }
        if slope != 1:
            tags |= {"0028|1052": "-7", "0028|1053": str(slope), "0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
        for key, value in tags.items():
            part.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{999 - z}.dcm"))
        writer.Execute(part)
    return folder
