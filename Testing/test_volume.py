"""Volumes on the way to the model's grid and back: resampling, the body, bias, registration, normalisation, warnings."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bodies import CENTRE_MM, T2, body, motion, moved, oblique, points_mm, whole_numbers

from HARM3Logic import volume
from HARM3Logic.errors import BadGeometry, BadVolume
from HARM3Logic.registration import mutual_information
from HARM3Logic.volume import Grid, Registration, Volume
from HARM3Logic.volume_quality import quality


@pytest.fixture
def small() -> Volume:
    return whole_numbers()


@pytest.fixture(scope="module")
def pair():
    """A body in two contrasts and places, the motion between them, and where the body is in the first."""
    matrix = motion((2, -2, 1), (2, 1.5, -1.5))
    fixed, inside = body(oblique())
    moving, _ = body(oblique((22, 64, 60), (6.0, 3.2, 3.2), (-3, 5, -7), (9.0, -34.0, 118.0)), T2, matrix, seed=1)
    return fixed, moving, matrix, inside


def test_a_bright_voxel_comes_back_to_its_place():
    grid = oblique((20, 40, 44), (4.0, 0.9, 0.8))
    array = np.zeros(grid.shape, dtype=np.float32)
    array[8, 25, 12] = 1000
    there = points_mm(grid)[array.argmax()]
    matrix = motion((3, -2, 1), (3, 2, -4))  # model mm to image mm
    model = Grid.axis_aligned(CENTRE_MM, (32, 64, 64), (2.0, 0.7, 0.7))
    seen = volume.resample(Volume(array, grid), model, matrix)
    expected = moved(there[None], np.linalg.inv(matrix))[0]
    assert np.abs(points_mm(model)[seen.argmax()] - expected).max() < 2.0
    weights = seen.ravel() / seen.sum()
    assert np.abs(weights @ points_mm(model) - expected).max() < 0.35
    back = volume.restore(seen, model, grid, matrix)
    assert back.grid == grid
    assert np.unravel_index(back.array.argmax(), grid.shape) == (8, 25, 12)


def test_resample_smooths_before_it_thins_out():
    grid = Grid.axis_aligned((0.0, 0.0, 0.0), (8, 8, 240), (1.0, 1.0, 0.5))
    stripes = np.broadcast_to((np.arange(240) % 2).astype(np.float32), grid.shape)
    coarse = Grid.axis_aligned((0.25, 0.0, 0.0), (4, 4, 20), (2.0, 2.0, 5.0))
    assert np.abs(volume.resample(Volume(np.ascontiguousarray(stripes), grid), coarse) - 0.5).max() < 0.01
    turned = Grid((240, 8, 8), (0.5, 1.0, 1.0), (0.0, 0.0, -59.75), (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0))  # x runs along S
    coarse = Grid.axis_aligned((4.0, 4.0, 0.25), (20, 4, 4), (5.0, 1.0, 1.0))
    assert np.abs(volume.resample(Volume(np.ascontiguousarray(stripes), turned), coarse) - 0.5).max() < 0.01
    ramp = np.ascontiguousarray(np.broadcast_to(np.arange(240, dtype=np.float32), grid.shape))
    same = volume.resample(Volume(ramp, grid), grid)
    assert np.array_equal(same, ramp)


def test_outside_the_volume(small):
    wide = Grid.axis_aligned(CENTRE_MM, (20, 40, 40), (3.0, 2.0, 2.0))
    assert volume.resample(small, wide)[0, 0, 0] == small.array.min()
    assert volume.resample(small, wide, outside=-9.0)[0, 0, 0] == -9
    assert volume.restore(np.ones(small.array.shape, dtype=np.float32), small.grid, wide).array[0, 0, 0] == 0
    far = Grid.axis_aligned((500.0, 0.0, 0.0), (4, 4, 4), (1.0, 1.0, 1.0))
    with pytest.raises(BadGeometry, match="mm apart"):
        volume.resample(small, far)
    with pytest.raises(BadGeometry, match="mm apart"):
        volume.restore(small.array, small.grid, far)


def test_nearest_keeps_labels(small):
    labels = Volume((small.array > 1000).astype(np.float32) * 3, small.grid)
    found = volume.resample(labels, Grid.axis_aligned(CENTRE_MM, (9, 9, 9), (1.1, 1.3, 1.2)), nearest=True, outside=0.0)
    assert set(np.unique(found)) == {0, 3}


def test_body_is_found_under_noise_and_bias():
    image, inside = body(oblique(), noise=0.06, bias=0.4)
    found = volume.body_mask(image)
    assert 2 * (found & inside).sum() / (found.sum() + inside.sum()) > 0.94
    assert found[inside].mean() > 0.99


def test_a_windpipe_is_part_of_the_body():
    image, inside = body(oblique())
    array = image.array.copy()
    array[:, 28:33, 28:33] = 0
    assert volume.body_mask(Volume(array, image.grid))[8:16, 28:33, 28:33].all()
    assert not inside[:, 0].any()


def test_what_lies_apart_from_the_body_is_left_out():
    image, _ = body(oblique())
    array = image.array.copy()
    array[8:12, 2:5, 2:5] = 1000  # a marker in the air
    assert not volume.body_mask(Volume(array, image.grid))[8:12, 2:5, 2:5].any()


def test_a_crop_inside_the_body_is_all_body():
    image, _ = body(oblique((12, 32, 32), (3.0, 2.0, 2.0)), (0.8, 0.6, 0.9, 0.7, 0.75, 1.0, 0.6))
    assert volume.body_mask(image).all()


def test_noise_is_no_body():
    grid = oblique()
    with pytest.raises(BadVolume, match="noise"):
        volume.body_mask(Volume(np.random.default_rng(0).rayleigh(20, grid.shape).astype(np.float32), grid))


def test_bias_is_taken_out():
    image, _ = body(oblique(), bias=0.4)
    clean, inside = body(oblique(), noise=0.0)
    found = volume.correct_bias(image, inside)
    part = inside & (clean.array > 150)
    before, after = (v.array[part] / clean.array[part] for v in (image, found))
    assert after.std() / after.mean() < 0.5 * before.std() / before.mean()
    assert np.isclose(found.array[inside].mean(), image.array[inside].mean(), rtol=1e-3)
    with pytest.raises(BadVolume, match="empty"):
        volume.correct_bias(image, np.zeros_like(inside))


def test_registration_finds_a_known_motion(pair):
    fixed, moving, matrix, inside = pair
    found = volume.register(fixed, moving)
    there = points_mm(fixed.grid)[inside.ravel()]
    assert np.linalg.norm(moved(there, found.matrix) - moved(there, matrix), axis=1).mean() < 0.7
    assert found.mi_after > found.mi_before + 0.1
    assert abs(found.moved_mm - np.linalg.norm(moved(there, matrix) - there, axis=1).mean()) < 0.7
    assert abs(found.rotated_deg - np.linalg.norm((2, 1.5, -1.5))) < 1
    assert not found.poor


def test_registration_gives_the_same_answer_twice_on_any_threads(pair):
    fixed, moving, _, inside = pair
    first = volume.register(fixed, moving, inside)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1 if threads > 1 else 2)
    try:
        second = volume.register(fixed, moving, inside)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    assert np.array_equal(first.matrix, second.matrix)


def test_registration_of_images_apart_is_refused(pair):
    fixed, moving, _, _ = pair
    x, y, z = moving.grid.origin_mm
    with pytest.raises(BadGeometry, match=r"the two images lie \d+ mm apart"):
        volume.register(fixed, Volume(moving.array, replace(moving.grid, origin_mm=(x + 700, y, z))))


def test_registration_of_images_that_share_no_patient_is_refused(pair):
    fixed = pair[0]
    shifted = replace(fixed.grid, origin_mm=tuple(v + 150 for v in fixed.grid.origin_mm))  # the boxes still touch
    with pytest.raises(BadGeometry, match="share too little"):
        volume.register(fixed, Volume(fixed.array, shifted))


def test_two_thin_slices_walk_the_whole_road():
    image, inside = body(oblique((2, 60, 60), (0.5, 3.0, 3.0)))
    assert volume.body_mask(image).any()
    assert np.isfinite(volume.correct_bias(image, inside).array).all()
    assert volume.register(image, image).moved_mm < 3


def test_poor_registrations():
    good = Registration(np.eye(4), 0.5, 0.9, 5.0, 3.0)
    assert not good.poor
    assert not replace(good, mi_after=0.5, moved_mm=0.1).poor  # nothing to gain: aligned from the start
    for fault in ({"mi_after": 0.5}, {"moved_mm": 41.0}, {"rotated_deg": 31.0}, {"mi_before": 0.01, "mi_after": 0.05}):
        assert replace(good, **fault).poor


def test_mutual_information_in_nats():
    a = np.arange(4096, dtype=np.float32) % 8
    b = np.arange(4096, dtype=np.float32) // 512
    assert np.isclose(mutual_information(a, 7 - a), np.log(8))
    assert np.isclose(mutual_information(a, b), 0)


def test_normalise_looks_only_at_the_mask():
    array = np.random.default_rng(0).normal(500, 50, (8, 8, 8)).astype(np.float32)
    mask = np.zeros(array.shape, dtype=bool)
    mask[2:6] = True
    wild = np.where(mask, array, 1e6).astype(np.float32)
    found = volume.normalise(wild, mask)
    assert np.isclose(found[mask].mean(), 0, atol=1e-5)
    assert np.isclose(found[mask].std(), 1, atol=1e-5)
    assert found.max() < 4
    assert np.array_equal(found[mask], volume.normalise(array, mask)[mask])
    with pytest.raises(BadVolume, match="empty"):
        volume.normalise(array, np.zeros_like(mask))
    with pytest.raises(BadVolume, match="every voxel"):
        volume.normalise(np.full_like(array, 3), mask)


def codes(image: Volume) -> set[str]:
    return {code for code, _ in quality(image)}


def test_quality_warnings():
    image, _ = body(oblique())
    assert codes(image) == set()
    lost = replace(image.grid, spacing_mm=(1.0, 1.0, 1.0))
    assert "spacing_lost" in codes(Volume(image.array, lost))
    assert "spacing_lost" in codes(Volume(image.array, replace(image.grid, spacing_mm=(0.5, 0.5, 0.5))))
    assert "thick_slices" in codes(Volume(image.array, replace(image.grid, spacing_mm=(3.5, 3.5, 8.5))))
    assert "saturated" in codes(Volume(np.minimum(image.array, 500), image.grid))
    assert "low_signal" in codes(body(image.grid, noise=0.3)[0])
    assert "field_of_view_cut" in codes(body(oblique((24, 64, 64), (5.0, 3.5, 1.8)))[0])


@pytest.mark.parametrize(("fixed", "moving"), [("study1_T1W", "study1_T2W"), ("study1_T1W", "study2_T1W"), ("study2_T1W", "study2_T2W")])
def test_real_scans_of_one_patient_register(data: Path, fixed, moving):
    images = [volume.canonical(volume.read(data / f"data/mri/ms_longitudinal/patient01/{name}.nii.gz")) for name in (fixed, moving)]
    found = volume.register(*images)
    assert found.mi_after > found.mi_before
    assert not found.poor


def test_a_real_lost_spacing_is_noticed(data: Path):
    assert "spacing_lost" in codes(volume.read(data / "data/mri/brain_tumor_progression/01/Pre_Scan_T1.nii.gz"))
