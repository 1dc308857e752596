"""Volumes: 3D images on their way from file to the model's grid, and heatmaps on the way back.

read -> canonical -> correct_bias -> register -> resample -> normalise -> model -> restore -> write
"""

# mypy: disallow-untyped-calls=False
# (SimpleITK carries no types)

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float, Float32
from scipy import ndimage

from HARM3Logic.errors import BadGeometry, BadVolume
from HARM3Logic.grid import Grid, Volume, canonical
from HARM3Logic.image_file import read, read_mask, reason, sha256, to_itk, write
from HARM3Logic.registration import Registration, one_thread, rigid

__all__ = [
    "Grid",
    "Registration",
    "Volume",
    "body_mask",
    "canonical",
    "correct_bias",
    "normalise",
    "read",
    "read_mask",
    "register",
    "resample",
    "restore",
    "sha256",
    "write",
]

WORK_MM = 3.0  # voxel size at which bodies are found and images registered
EVEN_MM = 15.0  # larger than tissue edges, smaller than a coil's falloff
BIAS_MM = 10.0  # voxel size at which bias fields are fitted; they vary over centimetres


def resample(
    volume: Volume,
    grid: Grid,
    matrix: Float[np.ndarray, "4 4"] | None = None,
    nearest: bool = False,
    outside: float | None = None,
) -> Float32[np.ndarray, "D H W"]:
    """The volume's values at the points of another grid.

    Linear, after a Gaussian along each axis on which the grid is coarser than the volume, so that fine structure does not alias.

    Args:
        matrix: LPS mm of `grid` to LPS mm of `volume`; None where they are the same.
        nearest: the nearest voxel's value, for masks.
        outside: value beyond the volume's field of view; None for the volume's smallest.

    Raises:
        BadGeometry: no point of the grid lies inside the volume.
    """
    matrix = np.eye(4) if matrix is None else matrix
    array = volume.array if nearest else _smoothed(volume, grid, matrix)
    values = _sampled(array, volume.grid, grid, matrix, sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear)
    return np.where(np.isnan(values), np.float32(volume.array.min() if outside is None else outside), values)


def restore(saliency: Float32[np.ndarray, "D H W"], grid: Grid, reference: Grid, matrix: Float[np.ndarray, "4 4"] | None = None) -> Volume:
    """Put a map of the model grid back onto the image the user gave.

    Linear interpolation; voxels the model did not see become 0.

    Args:
        grid: geometry of the model input.
        reference: the user's own grid, which the result takes.
        matrix: what `resample` got: LPS mm of `grid` to LPS mm of the user's image.

    Raises:
        BadGeometry: the grids do not overlap.
    """
    back = np.eye(4) if matrix is None else np.linalg.inv(matrix)
    return Volume(np.nan_to_num(_sampled(saliency, grid, reference, back, sitk.sitkLinear), nan=0.0), reference)


def _sampled(
    array: Float32[np.ndarray, "D H W"], source: Grid, target: Grid, matrix: Float[np.ndarray, "4 4"], interpolator: int
) -> Float32[np.ndarray, "d h w"]:
    """Values of an array at the points of another grid, NaN beyond its voxels."""
    transform = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist())
    like = (target.size, transform, interpolator, target.origin_mm, target.spacing_mm, target.direction)
    values = sitk.GetArrayFromImage(sitk.Resample(to_itk(array, source), *like, float("nan"), sitk.sitkFloat32))
    if np.isnan(values).all():
        between = np.linalg.norm((matrix @ [*target.centre_mm, 1])[:3] - source.centre_mm)
        raise BadGeometry(
            f"the image does not overlap the region wanted: their centres are {between:.0f} mm apart.",
            "Check that the images belong to one patient and share a coordinate system.",
        )
    return values


def _smoothed(volume: Volume, grid: Grid, matrix: Float[np.ndarray, "4 4"]) -> Float32[np.ndarray, "D H W"]:
    turned = volume.grid.axes.T @ matrix[:3, :3] @ grid.axes
    step_mm = np.sqrt(turned**2 @ np.square(grid.spacing_mm))  # of the grid, along the volume's axes
    ratio = step_mm / volume.grid.spacing_mm
    sigma = np.sqrt(np.clip(ratio**2 - 1, 0, None) / (8 * np.log(2)))  # makes a voxel of the volume as wide as one of the grid
    array = volume.array
    for axis in range(3):
        if sigma[axis] > 0.2:  # below, the sampled Gaussian is a single one
            array = ndimage.gaussian_filter1d(array, sigma[axis], axis=2 - axis, mode="nearest", truncate=3.0)
    return array


def _coarse(volume: Volume, spacing_mm: float) -> Volume:
    grid = volume.grid.coarser(spacing_mm)
    return Volume(resample(volume, grid), grid)


def body_mask(volume: Volume) -> Bool[np.ndarray, "D H W"]:
    """The patient, not the air: one piece without holes; all of the image where it shows no air.

    Raises:
        BadVolume: there is only noise.
    """
    small = _coarse(volume, WORK_MM)
    smooth = ndimage.gaussian_filter(small.array, [min(1.0, WORK_MM / s) for s in small.grid.spacing_mm[::-1]], mode="nearest")
    if smooth.var() < 0.1 * small.array.var():  # white noise keeps less than 0.05 of its variance
        raise BadVolume("the volume shows no patient, only noise.", "Choose another series.")
    smooth = np.maximum(smooth, -1024)  # CT: the filling outside the scanner's circle is far below air
    low, high = np.percentile(smooth, (0.5, 99))
    if low > -0.05 * high:
        low = 0.0  # a magnitude image: no signal is 0, even where the image was cropped inside the body
    level = np.clip((smooth - low) / (high - low), 0, 1)
    # Cut the logarithm: it makes a bias field a shift, and sets dark tissue nearer to bright tissue than to air.
    log = sitk.GetImageFromArray(np.log(level + 0.03).astype(np.float32))
    found = sitk.GetArrayFromImage(sitk.OtsuThreshold(log, 0, 1, 256)) != 0
    if np.median(level[~found]) > 0.3 * np.median(level[found]):
        return np.ones(volume.grid.shape, dtype=bool)  # the darker part is tissue too: the image was cropped inside the body
    found = _one_piece(found)
    if found.mean() < 0.01:
        raise BadVolume(f"the patient fills only {found.mean():.2%} of the volume; 1 % is wanted.", "Choose another series.")
    return resample(Volume(found.astype(np.float32), small.grid), volume.grid, outside=0.0) > 0.5


def _one_piece(found: Bool[np.ndarray, "D H W"]) -> Bool[np.ndarray, "D H W"]:
    plane = np.ones((1, 3, 3), dtype=bool)
    labels, count = ndimage.label(ndimage.binary_opening(found, plane))  # cuts threads of noise
    if not count:
        return found
    found = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
    found = ndimage.binary_dilation(found, plane) & ndimage.binary_closing(found, plane, border_value=0) | found
    for axis in range(3):  # slice by slice too: a windpipe is open at the ends of the image
        for part in np.moveaxis(found, axis, 0):
            part |= ndimage.binary_fill_holes(part)
    return found


def correct_bias(volume: Volume, mask: Bool[np.ndarray, "D H W"]) -> Volume:
    """The volume without the slow change of brightness that receive coils leave (N4); its mean level in the mask stays.

    Raises:
        BadVolume: the mask is empty, or no field can be fitted.

    Source: Tustison et al. 2010, N4ITK. Fitted on coarse voxels, applied to all.
    """
    _need_mask(mask)
    finer = _coarse(volume, WORK_MM)
    small = _coarse(finer, BIAS_MM)
    part = resample(Volume(mask.astype(np.float32), volume.grid), small.grid, outside=0.0)
    inside = part >= min(0.9, part.max())  # half-filled voxels at the skin would be taken for a shadow
    floor = max(0.01 * float(np.median(volume.array[mask])), 1e-6)  # N4 takes logarithms
    image = to_itk(np.maximum(small.array, np.float32(floor)), small.grid)
    corrector = sitk.N4BiasFieldCorrectionImageFilter()
    corrector.SetMaximumNumberOfIterations([40, 30])
    corrector.SetBiasFieldFullWidthAtHalfMaximum(0.2)
    with one_thread:
        try:
            corrector.Execute(image, _itk_mask(inside, small.grid))
            field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(to_itk(finer.array, finer.grid)))
        except RuntimeError as error:
            raise BadVolume(f"no bias field can be fitted ({reason(error)}).", "Switch bias correction off.") from error
    field = _sampled(field.astype(np.float32), finer.grid, volume.grid, np.eye(4), sitk.sitkLinear)
    field = np.clip(field, field[mask].min(), field[mask].max())  # beyond the patient the fit runs wild
    corrected = volume.array / np.exp(field)
    level = volume.array[mask].mean(dtype=np.float64) / corrected[mask].mean(dtype=np.float64)
    return Volume((corrected * level).astype(np.float32), volume.grid)


def register(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Bool[np.ndarray, "D H W"] | None = None,
    moving_mask: Bool[np.ndarray, "d h w"] | None = None,
) -> Registration:
    """The rigid motion that lays the moving image on the fixed one, starting from their patient coordinates.

    Args:
        fixed_mask, moving_mask: the patient in each; None to find it.

    Raises:
        BadGeometry: the images lie apart from each other.
        BadVolume: the patient is not found.
    """
    boxes = [(c.min(axis=0), c.max(axis=0)) for c in (fixed.grid.corners_mm, moving.grid.corners_mm)]
    gap = np.linalg.norm(np.clip(np.maximum(boxes[0][0] - boxes[1][1], boxes[1][0] - boxes[0][1]), 0, None))
    if gap > 0:
        raise BadGeometry(
            f"the two images lie {gap:.0f} mm apart in patient coordinates; they must overlap to be registered.",
            "Check that both are of one patient, or place one over the other in Slicer first.",
        )
    coarse = [_coarse(v, WORK_MM) for v in (fixed, moving)]
    bodies = []
    for small, own, mask in zip(coarse, (fixed, moving), (fixed_mask, moving_mask), strict=True):
        if mask is not None:
            _need_mask(mask)
            mask = resample(Volume(mask.astype(np.float32), own.grid), small.grid, outside=0.0) > 0.5
        bodies.append(body_mask(small) if mask is None else mask)
        _need_mask(bodies[-1])  # a speck can vanish in coarse voxels
    images = [to_itk(_evened(small, body), small.grid) for small, body in zip(coarse, bodies, strict=True)]
    around = ndimage.binary_dilation(bodies[0], np.ones((1, 3, 3), dtype=bool), iterations=2)  # the skin's edge tells most
    return rigid(images[0], images[1], _itk_mask(around, coarse[0].grid))


def _evened(volume: Volume, body: Bool[np.ndarray, "D H W"]) -> Float32[np.ndarray, "D H W"]:
    """Values over their local mean in the body: brightness that drifts over an image would pull the registration along."""
    limits = _limits(volume.array, (0.5, 99.5))
    values, inside = np.clip(volume.array, *limits), ndimage.binary_fill_holes(body)
    low = limits[0] - np.float32(1e-3) * (limits[1] - limits[0])  # so that the logarithm holds for images with negative values
    logs = np.log(np.maximum(values - low, 0.05 * np.median(values[inside] - low)))
    sigma = [EVEN_MM / mm for mm in volume.grid.spacing_mm[::-1]]
    weight = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="constant")
    mean = ndimage.gaussian_filter(np.where(inside, logs, 0.0), sigma, mode="constant") / np.maximum(weight, 0.01)
    scale = np.where(inside, mean, logs[inside].mean())
    evened: Float32[np.ndarray, "D H W"] = ((values - low) * np.exp(-scale)).astype(np.float32)
    clipped: Float32[np.ndarray, "D H W"] = np.clip(evened, *_limits(evened, (0.5, 99.5)))
    return clipped


def normalise(
    array: Float32[np.ndarray, "D H W"], mask: Bool[np.ndarray, "D H W"], percentiles: tuple[float, float] = (0.5, 99.5)
) -> Float32[np.ndarray, "D H W"]:
    """Values clipped to the mask's percentiles, with mean 0 and standard deviation 1 within the mask.

    Raises:
        BadVolume: the mask is empty, or the values in it are all the same.
    """
    _need_mask(mask)
    clipped = np.clip(array, *_limits(array[mask], percentiles))
    mean, deviation = clipped[mask].mean(dtype=np.float64), clipped[mask].std(dtype=np.float64)
    if deviation == 0:
        raise BadVolume(f"every voxel of the patient is {mean:g}; an image is wanted.", "Choose another series.")
    scored: Float32[np.ndarray, "D H W"] = ((clipped - mean) / deviation).astype(np.float32)
    return scored


def _limits(values: Float32[np.ndarray, "*n"], percentiles: tuple[float, float]) -> tuple[np.float32, np.float32]:
    low, high = np.percentile(values, percentiles)
    return np.float32(low), np.float32(high)  # 64-bit limits would make the clipped array 64-bit


def _itk_mask(mask: Bool[np.ndarray, "D H W"], grid: Grid) -> sitk.Image:
    image: sitk.Image = sitk.Cast(to_itk(mask.astype(np.float32), grid), sitk.sitkUInt8)
    return image


def _need_mask(mask: Bool[np.ndarray, "D H W"]) -> None:
    if not mask.any():
        raise BadVolume("the mask of the patient is empty; some voxels are wanted.", "Check that mask and image belong together.")
