"""Files of volumes: one grid whatever the format, what cannot be used, and what is written whole or not at all."""

import gzip
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bodies import CENTRE_MM, oblique, points_mm, to_itk, whole_numbers, write_dicom

from HARM3Logic import volume
from HARM3Logic.errors import BadGeometry, BadVolume
from HARM3Logic.image_file import Held
from HARM3Logic.volume import Grid, Volume


@pytest.fixture
def small() -> Volume:
    return whole_numbers()


def test_grid_places_voxels_as_itk_does(small):
    made = to_itk(small)
    assert np.allclose((small.grid.matrix @ [11, 3, 5, 1])[:3], made.TransformIndexToPhysicalPoint((11, 3, 5)))
    assert np.allclose(small.grid.centre_mm, CENTRE_MM)
    assert small.grid.shape == small.array.shape == (6, 10, 12)
    corners = small.grid.corners_mm
    assert np.allclose(corners.mean(axis=0), CENTRE_MM)
    assert np.isclose(np.linalg.norm(corners[0] - corners[-1]), np.linalg.norm(small.grid.extent_mm))


def test_grid_survives_json(small):
    assert Grid.from_dict(small.grid.to_dict()) == small.grid


def test_axis_aligned_is_centred():
    grid = Grid.axis_aligned((1.0, 2.0, 3.0), (4, 6, 8), (3.0, 2.0, 1.0))
    assert (grid.size, grid.spacing_mm, grid.centre_mm) == ((8, 6, 4), (1.0, 2.0, 3.0), (1.0, 2.0, 3.0))
    assert grid.origin_mm == (-2.5, -3.0, -1.5)


def test_coarser_fills_the_same_box(small):
    assert np.allclose(small.grid.coarser(3.0).corners_mm, small.grid.corners_mm)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [("spacing_mm", [1, 0, 1], "spacing"), ("direction", [1, 0, 0, 1, 0, 0, 0, 0, 1], "directions"), ("origin_mm", [1, 2], "describe")],
)
def test_impossible_grids_are_refused(small, field, value, says):
    with pytest.raises(BadGeometry, match=says):
        Grid.from_dict({**small.grid.to_dict(), field: value})


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_written_volumes_come_back(small, tmp_path, suffix):
    path = tmp_path / f"a.b{suffix}"
    volume.write(small, path)
    again = volume.read(path)
    assert np.array_equal(again.array, small.array)
    assert np.allclose(again.grid.matrix, small.grid.matrix, atol=1e-9 if suffix == ".nrrd" else 1e-4)
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_write_leaves_the_old_file(small, tmp_path):
    path = tmp_path / "a.unknown"
    path.write_text("old")
    with pytest.raises(BadVolume, match=r"a\.unknown"):
        volume.write(small, path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.unknown"]


def transposed(image: Volume) -> Volume:
    """The same voxels stored in another order: two axes changed, one of them turned round."""
    made = sitk.Flip(sitk.PermuteAxes(to_itk(image), [1, 2, 0]), [True, False, True], False)
    grid = Grid(made.GetSize(), made.GetSpacing(), made.GetOrigin(), made.GetDirection())
    return Volume(sitk.GetArrayFromImage(made), grid)


@pytest.mark.parametrize("form", ["nrrd", "nii.gz", "dicom", "transposed"])
@pytest.mark.parametrize("degrees", [(4, -6, 9), (0, 0, 0), (1, 2, 130)])
def test_one_image_has_one_grid_in_every_format(small, tmp_path, form, degrees):
    image = Volume(small.array, oblique(small.grid.shape, small.grid.spacing_mm[::-1], degrees))
    if form == "dicom":
        read = volume.read(write_dicom(image, tmp_path / "series"))
    else:
        volume.write(transposed(image) if form == "transposed" else image, tmp_path / f"a.{form.replace('transposed', 'nrrd')}")
        read = volume.read(next(tmp_path.iterdir()))
    wanted, found = volume.canonical(image), volume.canonical(read)
    assert found.grid == wanted.grid
    assert np.array_equal(found.array, wanted.array)
    model = Grid.axis_aligned(CENTRE_MM, (8, 8, 8), (2.0, 1.0, 1.0))
    assert np.array_equal(volume.resample(found, model), volume.resample(wanted, model))


def test_canonical_keeps_every_voxel_in_its_place(small):
    for image in (small, transposed(small)):
        grid = volume.canonical(image).grid
        assert (np.diag(grid.axes) > 0.9).all()
        assert np.isclose(np.linalg.det(grid.axes), 1)
        assert np.abs(grid.corners_mm.mean(axis=0) - CENTRE_MM).max() < 1e-3
    there = points_mm(small.grid)[small.array.argmax()]
    found = volume.canonical(small)
    assert np.abs(points_mm(found.grid)[found.array.argmax()] - there).max() < 2e-3


def test_canonical_of_a_mirrored_image_is_a_rotation():
    grid = Grid((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    array = np.arange(120, dtype=np.float32).reshape(grid.shape)
    found = volume.canonical(Volume(array, grid))
    assert found.grid.direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert found.grid.origin_mm == (-3.0, 0.0, 0.0)
    assert np.array_equal(found.array, array[:, :, ::-1])


@pytest.mark.parametrize("kind", ["1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4.1"], ids=["CT", "enhanced MR"])
def test_dicom_applies_rescale_and_sorts_by_place(small, tmp_path, kind):
    """Enhanced files keep position, orientation and rescale in sequences; GDCM writes an MR with a rescale as one."""
    image = Volume(np.round(small.array) / 2, small.grid)
    found = volume.read(write_dicom(image, tmp_path / "series", slope=0.5, kind=kind))
    assert np.allclose(found.array, image.array, atol=1e-3)
    assert np.allclose(found.grid.matrix, image.grid.matrix, atol=1e-5)


def test_single_frame_4d_is_3d(small, tmp_path):
    sitk.WriteImage(sitk.JoinSeries([to_itk(small)]), str(tmp_path / "a.nrrd"))
    found = volume.read(tmp_path / "a.nrrd")
    assert np.array_equal(found.array, small.array)
    assert np.allclose(found.grid.matrix, small.grid.matrix)


def nifti(image: Volume, path: Path, at: int = 0, value: bytes = b"", cut: int = 0) -> Path:
    """A NIfTI file with bytes of its header changed, or its end cut off."""
    plain = path.parent / "plain.nii"
    sitk.WriteImage(to_itk(image), str(plain))
    data = plain.read_bytes()
    plain.unlink()
    data = data[:at] + value + data[at + len(value) : len(data) - cut]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def mha(path: Path, spacing: str) -> Path:
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 1 {spacing}\nDimSize = 3 3 3\n"
        "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + bytes(range(27)))
    return path


def saved(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-900])
    return path


def changed(image: Volume, index: tuple[int, ...], value: float) -> Volume:
    array = image.array.copy()
    array[index] = value
    return Volume(array, image.grid)


FAULTS = {
    "missing": (lambda v, d: d / "none.nrrd", "there is no volume"),
    "text": (lambda v, d: (d / "a.nii.gz", (d / "a.nii.gz").write_text("hello " * 200))[0], "cannot be read"),
    "empty": (lambda v, d: (d / "a.nrrd", (d / "a.nrrd").touch())[0], "cannot be read"),
    "cut short": (lambda v, d: nifti(v, d / "a.nii", cut=900), r"ends after \d+ bytes"),
    "cut short, compressed": (lambda v, d: nifti(v, d / "a.nii.gz", cut=900), r"ends after \d+ bytes"),
    "cut short, MHA": (lambda v, d: cut(saved(to_itk(v), d / "a.mha")), r"ends after \d+ bytes"),
    "cut short, NRRD": (lambda v, d: cut(saved(to_itk(v), d / "a.nrrd")), "cannot be read"),
    "2D": (lambda v, d: saved(to_itk(v)[:, :, 1], d / "a.nrrd"), r"is 2D \(12 x 10 voxels\)"),
    "4D": (lambda v, d: saved(sitk.JoinSeries([to_itk(v)] * 2), d / "a.nii.gz"), r"is 4D \(12 x 10 x 6 x 2 voxels\)"),
    "colour": (lambda v, d: saved(sitk.Compose(*[to_itk(v)] * 3), d / "a.nrrd"), "has 3 numbers in each voxel"),
    "complex": (lambda v, d: saved(sitk.RealAndImaginaryToComplex(*[to_itk(v)] * 2), d / "a.nii"), "complex"),
    "one slice": (lambda v, d: saved(to_itk(v)[:, :, 1:2], d / "a.nrrd"), "at least 2 slices"),
    "NaN": (lambda v, d: saved(to_itk(changed(v, (0, 0, slice(3)), np.nan)), d / "a.nrrd"), "has 3 of 720 voxels that are NaN"),
    "infinite": (lambda v, d: saved(to_itk(changed(v, (0, 0, 0), -np.inf)), d / "a.nrrd"), "has 1 of 720"),
    "too large": (lambda v, d: saved(sitk.Cast(to_itk(v), sitk.sitkFloat64) * 1e300, d / "a.nrrd"), "beyond 32 bits"),
    "constant": (lambda v, d: saved(to_itk(v) * 0 + 7, d / "a.nrrd"), "every voxel of .* is 7"),
    "spacing 0, NIfTI": (lambda v, d: nifti(v, d / "a.nii.gz", 88, b"\0\0\0\0"), r"spacing \(.*, 0\.0\)"),
    "spacing NaN, NIfTI": (lambda v, d: nifti(v, d / "a.nii", 88, b"\0\0\xc0\x7f"), "spacing .*nan"),
    "spacing 0": (lambda v, d: mha(d / "a.mha", "0"), "spacing"),
    "spacing < 0": (lambda v, d: mha(d / "a.mha", "-2"), r"spacing \(1\.0, 1\.0, -2\.0\)"),
    "no DICOM": (lambda v, d: d, "holds no DICOM"),
    "missing slice": (lambda v, d: write_dicom(v, d, skip=(2,)), "gap of 6.60 mm after slice 2 of 5"),
    "one place": (lambda v, d: write_dicom(v, d, places=[v.grid.origin_mm] * 6), "several slices at one position"),
    "tilted": (lambda v, d: write_dicom(v, d, places=[np.add(v.grid.origin_mm, (0, z, 3.0 * z)) for z in range(6)]), "tilted gantry"),
    "two series": (
        lambda v, d: write_dicom(v, write_dicom(v, d, "1.2.3.4", description="T2 TSE"), "1.2.3.5"),
        r"holds 2 DICOM series: .*1\.2\.3\.4 \(T2 TSE\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_unusable_files_are_refused(small, tmp_path, capfd, name):
    make, says = FAULTS[name]
    path = make(small, tmp_path)
    capfd.readouterr()
    with pytest.raises(BadVolume, match=says) as caught:
        volume.read(path)
    assert str(path) in caught.value.message
    assert caught.value.advice
    assert capfd.readouterr() == ("", "")


def test_the_console_hears_itk_again_after_a_read(small, tmp_path):
    volume.write(small, tmp_path / "a.nrrd")
    volume.read(tmp_path / "a.nrrd")
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


def test_masks_are_zero_and_one(small, tmp_path):
    array = np.zeros(small.array.shape, dtype=np.float32)
    array[2, 3:5, 4] = (7, -1)
    volume.write(Volume(array, small.grid), tmp_path / "a.nrrd")
    assert np.array_equal(volume.read_mask(tmp_path / "a.nrrd").array, array != 0)
    volume.write(Volume(array * 0, small.grid), tmp_path / "a.nrrd")
    with pytest.raises(BadVolume, match="no voxel set"):
        volume.read_mask(tmp_path / "a.nrrd")


def test_fingerprints(small, tmp_path):
    for name, text in {"c": "o ", "f": "d", "a": "he", "d": "wo", ".hidden": "no", "b": "ll", "e": "rl"}.items():
        (tmp_path / name).write_text(text)
    assert volume.sha256(tmp_path) == "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"  # of "hello world"
    assert volume.sha256(tmp_path / "b") != volume.sha256(tmp_path / "a")
    with pytest.raises(BadVolume, match="cannot be read"):
        volume.sha256(tmp_path / "none")


def test_a_real_dicom_series(data: Path):
    found = volume.read(data / "data/dicom/STS_006/MR_T1/image")
    assert found.grid.size == (139, 117, 68)
    assert np.allclose(found.grid.spacing_mm, (0.976562, 0.976562, 3.27))
    assert found.grid.origin_mm[2] == pytest.approx(713.2279)


def test_a_real_2d_slice_is_refused(data: Path):
    with pytest.raises(BadVolume, match="is 2D"):
        volume.read(next((data / "data/mri/npc_t2wi_2d_slices/images").glob("*.jpg")))


def test_a_setting_is_held_until_the_last_thread_has_left() -> None:
    value, first, second = [5], threading.Event(), threading.Event()
    held = Held(lambda: value[0], lambda new: value.__setitem__(0, new), 1)

    def longer() -> None:
        with held:
            first.set()
            second.wait(10)

    thread = threading.Thread(target=longer)
    with held:
        thread.start()
        first.wait(10)
    assert value == [1]
    second.set()
    thread.join()
    assert value == [5]
