"""Rigid registration of two images by mutual information; `volume.register` prepares what it gets."""

# mypy: disallow-untyped-calls=False
# (SimpleITK carries no types)

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from jaxtyping import Bool, Float, Float32

from HARM3Logic.errors import BadGeometry
from HARM3Logic.image_file import Held, reason

SMOOTHING_MM = (6.0, 2.0)  # coarse to fine
SAMPLES = 6000  # voxels of the fixed image looked at in each step
BINS = 32
LOW_MI = 0.15  # nats; on real pairs of one patient we measured 0.39 and more, against noise 0.01
FAR_MM, FAR_DEG = 40.0, 30.0
STILL_MM = 0.5


# Lets ITK add up in one order: parts of it take the global number of threads, whatever a filter is told, and sums change with it.
one_thread = Held(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads, sitk.ProcessObject.SetGlobalDefaultNumberOfThreads, 1)


@dataclass(frozen=True)
class Registration:
    """Where the fixed image's points lie in the moving image.

    Args:
        matrix: LPS mm of the fixed image to LPS mm of the moving image.
        mi_before: mutual information (nats) of the two images as their patient coordinates place them.
        mi_after: the same after `matrix`; larger is better.
        moved_mm: mean distance by which the voxels of the fixed body move.
        rotated_deg: angle of the rotation.
    """

    matrix: Float[np.ndarray, "4 4"]
    mi_before: float
    mi_after: float
    moved_mm: float
    rotated_deg: float

    @property
    def poor(self) -> bool:
        """Whether a reader should look at it: nothing gained by a real move, moved too far, or the images share too little."""
        lost = self.mi_after <= self.mi_before and self.moved_mm > STILL_MM  # images aligned from the start stay put and are fine
        return lost or self.moved_mm > FAR_MM or self.rotated_deg > FAR_DEG or self.mi_after < LOW_MI


def rigid(fixed: sitk.Image, moving: sitk.Image, body: sitk.Image) -> Registration:
    """The rotation and translation, starting from patient coordinates, that make the images share most information.

    The same images give the same answer on any number of cores: one thread, a regular sample, a fixed seed.

    Args:
        fixed: the image that stays, smoothed to voxels of about 3 mm like `moving`.
        body: the patient in `fixed` (non-zero), on its grid.

    Raises:
        BadGeometry: the images share no part of the patient.
    """
    points = _points(body)
    transform = sitk.Euler3DTransform()
    transform.SetCenter([float(v) for v in points.mean(axis=0)])
    radius_mm = float(np.sqrt(((points - points.mean(axis=0)) ** 2).sum(axis=1).mean()))
    region = _region(body)
    fixed_part, body_part = (sitk.RegionOfInterest(image, *region) for image in (fixed, body))
    for level, sigma_mm in enumerate(SMOOTHING_MM):
        method = _method(radius_mm, step_mm=4.0 / 2**level)
        method.SetMetricFixedMask(body_part)
        method.SetMetricSamplingPercentage(min(1.0, SAMPLES / fixed_part.GetNumberOfPixels()), 1)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            with one_thread:
                method.Execute(_smooth(fixed_part, sigma_mm), _smooth(moving, sigma_mm))
        except RuntimeError as error:
            raise BadGeometry(
                f"the images share too little of the patient to be registered ({reason(error)}).",
                "Check that both show the same region in one coordinate system, or place one over the other by hand.",
            ) from error
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    moved = points @ matrix[:3, :3].T + matrix[:3, 3] - points
    return Registration(
        matrix=matrix,
        mi_before=_information_at(fixed, moving, body, sitk.Euler3DTransform()),
        mi_after=_information_at(fixed, moving, body, transform),
        moved_mm=float(np.linalg.norm(moved, axis=1).mean()),
        rotated_deg=float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1.0, 1.0)))),
    )


def mutual_information(a: Float32[np.ndarray, " n"], b: Float32[np.ndarray, " n"], bins: int = BINS) -> float:
    """Mutual information (nats) of paired values, from their joint histogram."""
    joint = np.histogram2d(a, b, bins=bins)[0] / len(a)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log(joint[some] / apart[some])).sum())


def _information_at(fixed: sitk.Image, moving: sitk.Image, body: sitk.Image, transform: sitk.Transform) -> float:
    # Points outside the moving image count as its darkest value: leaving them out would reward pushing the patient out of view.
    darkest = float(sitk.GetArrayViewFromImage(moving).min())
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, darkest, sitk.sitkFloat32)
    inside = sitk.GetArrayViewFromImage(body) != 0
    return mutual_information(sitk.GetArrayViewFromImage(fixed)[inside], sitk.GetArrayViewFromImage(moved)[inside])


def _method(radius_mm: float, step_mm: float) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetInterpolator(sitk.sitkLinear)
    # Central differences: the images are smooth already, and ITK's gradient filter refuses fewer than 4 slices.
    method.SetMetricUseFixedImageGradientFilter(False)
    method.SetMetricUseMovingImageGradientFilter(False)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=step_mm, minStep=0.01, numberOfIterations=60, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-12
    )
    # A rotation of 1 / radius moves the body by about 1 mm, so that a step is the same in all six directions.
    method.SetOptimizerScales([radius_mm**2] * 3 + [1.0] * 3)
    return method


def _smooth(image: sitk.Image, sigma_mm: float) -> sitk.Image:
    return sitk.DiscreteGaussian(image, [sigma_mm**2] * 3, maximumKernelWidth=32, maximumError=0.02, useImageSpacing=True)


def _region(body: sitk.Image) -> tuple[list[int], list[int]]:
    inside: Bool[np.ndarray, "D H W"] = sitk.GetArrayViewFromImage(body) != 0
    found = np.argwhere(inside)[:, ::-1]
    low, high = found.min(axis=0), found.max(axis=0)
    return [int(v) for v in high - low + 1], [int(v) for v in low]


def _points(body: sitk.Image) -> Float[np.ndarray, "n 3"]:
    index = np.argwhere(sitk.GetArrayViewFromImage(body) != 0)[:, ::-1]
    direction = np.reshape(body.GetDirection(), (3, 3))
    points: Float[np.ndarray, "n 3"] = index * body.GetSpacing() @ direction.T + body.GetOrigin()
    return points
