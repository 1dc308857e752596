"""Volumes: files in, one grid whatever the format, and the way to the model and back."""

import gzip
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from HARM3Logic import volume
from HARM3Logic.errors import BadGeometry, BadVolume
from HARM3Logic.image_file import Held
from HARM3Logic.registration import mutual_information
from HARM3Logic.volume import Grid, Registration, Volume

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


@pytest.fixture
def small() -> Volume:
    """Whole numbers that differ, 12 x 10 x 6 voxels on an oblique grid whose spacing lies on the edge of rounding."""
    grid = oblique((6, 10, 12), (3.3, 0.71875, 0.9765625))
    return Volume(np.random.default_rng(1).integers(-500, 3000, grid.shape).astype(np.float32), grid)


@pytest.fixture(scope="module")
def pair():
    """A body in two contrasts and places, the motion between them, and where the body is in the first."""
    matrix = motion((2, -2, 1), (2, 1.5, -1.5))
    fixed, inside = body(oblique())
    moving, _ = body(oblique((22, 64, 60), (6.0, 3.2, 3.2), (-3, 5, -7), (9.0, -34.0, 118.0)), T2, matrix, seed=1)
    return fixed, moving, matrix, inside


# Grid


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


# Reading and writing


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


# To the model and back


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
    return {code for code, _ in volume.quality(image)}


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


# Real images


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("HARM3_TEST_DATA")
    if not folder:
        pytest.skip("HARM3_TEST_DATA is not set")
    return Path(folder) / "data"


@pytest.mark.parametrize(("fixed", "moving"), [("study1_T1W", "study1_T2W"), ("study1_T1W", "study2_T1W"), ("study2_T1W", "study2_T2W")])
def test_real_scans_of_one_patient_register(data, fixed, moving):
    images = [volume.canonical(volume.read(data / f"mri/ms_longitudinal/patient01/{name}.nii.gz")) for name in (fixed, moving)]
    found = volume.register(*images)
    assert found.mi_after > found.mi_before
    assert not found.poor


def test_a_real_dicom_series(data):
    found = volume.read(data / "dicom/STS_006/MR_T1/image")
    assert found.grid.size == (139, 117, 68)
    assert np.allclose(found.grid.spacing_mm, (0.976562, 0.976562, 3.27))
    assert found.grid.origin_mm[2] == pytest.approx(713.2279)


def test_a_real_lost_spacing_is_noticed(data):
    assert "spacing_lost" in codes(volume.read(data / "mri/brain_tumor_progression/01/Pre_Scan_T1.nii.gz"))


def test_a_real_2d_slice_is_refused(data):
    with pytest.raises(BadVolume, match="is 2D"):
        volume.read(next((data / "mri/npc_t2wi_2d_slices/images").glob("*.jpg")))


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
