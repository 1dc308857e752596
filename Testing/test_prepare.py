"""From files to tensors: one patient, one tensor, whatever the files look like; and every input in its place."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import timm
import torch
from bodies import write_dicom

from HARM3Logic import volume
from HARM3Logic.batch import Prepared
from HARM3Logic.case import MRI, Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadGeometry, BadSlide, BadVolume, Cancelled, MissingInput
from HARM3Logic.prepare import Preprocessing, prepare
from HARM3Logic.tile_encoder import EncoderEntry, TileEncoder
from HARM3Logic.tiles import TileSettings

QUICK = Preprocessing(
    shape=(14, 40, 40), spacing_mm=(5.0, 2.5, 2.5), bias_correction=False, registration="none", tiles=TileSettings(size_px=48, max_tiles=8)
)


@pytest.fixture(scope="module")
def case(phantom: Path) -> Case:
    return read_cohort(phantom)[0]


def only(case: Case, *names: str) -> Case:
    return case.without(set(case.inputs) - set(names))


@pytest.fixture(scope="module")
def two(case: Case) -> Case:
    """Two volumes and a mask: enough for most tests."""
    return only(case, "t1_pre", "t2_post", "tumour_pre")


@pytest.fixture(scope="module")
def plain(two: Case) -> Prepared:
    return prepare(two, QUICK)


@pytest.fixture(scope="module")
def encoder() -> TileEncoder:
    settings = {"embed_dim": 24, "depth": 1, "num_heads": 2, "num_classes": 0, "img_size": 48}
    entry = EncoderEntry("tiny", "vit_tiny_patch16_224", settings, 48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "cls", 24, "none")
    torch.manual_seed(0)
    return TileEncoder(entry, timm.create_model(entry.timm_model, **settings), "0" * 64, "cpu", "float32")


def as_file(suffix: str) -> Callable[[Path, Path], Path]:
    def convert(source: Path, folder: Path) -> Path:
        path = folder / (source.name.split(".")[0] + suffix)
        sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkInt16), str(path))
        return path

    return convert


def as_dicom(source: Path, folder: Path) -> Path:
    return write_dicom(volume.read(source), folder / source.name.split(".")[0])


def turned(source: Path, folder: Path) -> Path:
    """The axes in another order and two of them backwards; the geometry says so."""
    image = sitk.Flip(sitk.PermuteAxes(sitk.ReadImage(str(source)), [2, 0, 1]), [True, False, True])
    path = folder / source.name.replace(".nii.gz", ".nrrd")
    sitk.WriteImage(image, str(path))
    return path


def converted(case: Case, folder: Path, how: Callable[[Path, Path], Path]) -> Case:
    return dataclasses.replace(case, inputs={name: (how(paths[0], folder),) for name, paths in case.inputs.items()})


@pytest.mark.parametrize(
    "how", [as_file(".nrrd"), as_file(".mha"), as_file(".nii"), as_dicom, turned], ids=["nrrd", "mha", "nii", "dicom", "turned"]
)
def test_one_patient_gives_one_tensor(two: Case, plain: Prepared, tmp_path: Path, how: Callable[[Path, Path], Path]) -> None:
    found = prepare(converted(two, tmp_path, how), QUICK)
    assert found.grid == plain.grid
    torch.testing.assert_close(found.mri, plain.mri, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.tumour, plain.tumour, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.body, plain.body)
    reference = found.placements["t1_pre"].reference
    assert reference == volume.read(converted(two, tmp_path, how).inputs["t1_pre"][0]).grid  # heatmaps go back to the file's own axes


def test_registration_does_not_see_the_format(case: Case, tmp_path: Path) -> None:
    settings = dataclasses.replace(QUICK, registration="full", bias_correction=True)
    pair = only(case, "t1_pre", "t2_pre")
    torch.testing.assert_close(prepare(converted(pair, tmp_path, turned), settings).mri, prepare(pair, settings).mri, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", MRI)
def test_each_volume_has_its_place(case: Case, name: str) -> None:
    """T is pre, post; S is t1, t2; what is absent is zero."""
    place = {"t1_pre": (0, 0), "t2_pre": (0, 1), "t1_post": (1, 0), "t2_post": (1, 1)}[name]
    found = prepare(only(case, name), QUICK)
    assert found.mri.shape == (2, 2, *QUICK.shape)
    assert found.mri_mask.nonzero().tolist() == [list(place)]
    assert found.mri[place].std() > 0.1
    found.mri[place] = 0
    assert not found.mri.any()
    assert set(found.placements) == set(found.sha256) == {name}


def test_intensities_are_scores_within_the_body(case: Case, plain: Prepared) -> None:
    own = prepare(only(case, "t1_pre"), QUICK)
    inside = own.mri[0, 0][own.body]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-3)
    assert float(inside.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert float(own.body.float().mean()) > 0.3
    assert float(plain.mri[0, 0].max()) < 6  # clipped


def test_the_label_and_the_masks_go_along(case: Case, two: Case, plain: Prepared) -> None:
    assert plain.label == case.label
    assert plain.tumour is not None
    assert plain.tumour[0].unique().tolist() == [0.0, 1.0]
    assert plain.tumour[1].isnan().all()  # no mask after therapy was given: unknown, not free of tumour
    assert prepare(only(two, "t1_pre"), QUICK).tumour is None


def test_the_crop_centres_the_tumour(two: Case, plain: Prepared) -> None:
    mask = sitk.ReadImage(str(two.inputs["tumour_pre"][0]))
    index = np.argwhere(sitk.GetArrayFromImage(mask) > 0)[:, ::-1].tolist()
    points = np.array([mask.TransformIndexToPhysicalPoint(i) for i in index])
    centre_mm = (points.min(axis=0) + points.max(axis=0)) / 2
    assert plain.grid is not None
    assert np.abs(centre_mm - plain.grid.centre_mm).max() < 3  # voxels of 2 x 2 x 5 mm
    apart = prepare(two, QUICK, ignore_masks=True)
    assert apart.tumour is None
    assert apart.grid == prepare(two, dataclasses.replace(QUICK, crop="body")).grid != plain.grid


def test_a_tumour_larger_than_the_field_of_view_is_told(two: Case) -> None:
    found = prepare(two, dataclasses.replace(QUICK, shape=(4, 4, 4)))
    assert "tumour_cropped" in [code for code, _ in found.warnings]


def moved_copy(source: Path, path: Path, shift_mm: tuple[float, ...]) -> tuple[Path, ...]:
    image = sitk.ReadImage(str(source))
    image.SetOrigin(np.add(image.GetOrigin(), shift_mm).tolist())
    sitk.WriteImage(image, str(path))
    return (path,)


def test_registration_follows_each_day_and_then_the_therapy(case: Case, tmp_path: Path) -> None:
    """One image three times, moved: each must be laid back onto the first, T2 of the second day through its T1."""
    source = case.inputs["t1_pre"][0]
    day, both = (4.0, -3.0, 5.0), (1.0, 3.0, 6.0)
    inputs = {
        "t1_pre": (source,),
        "t1_post": moved_copy(source, tmp_path / "a.nrrd", day),
        "t2_post": moved_copy(source, tmp_path / "b.nrrd", both),
    }
    moved = dataclasses.replace(case, inputs=inputs)
    full = prepare(moved, dataclasses.replace(QUICK, registration="full"))
    assert np.array_equal(full.placements["t1_pre"].matrix, np.eye(4))
    assert set(full.registrations) == {"t1_post", "t2_post"}
    for name, shift in (("t1_post", day), ("t2_post", both)):
        assert np.abs(full.placements[name].matrix[:3, 3] - shift).max() < 0.5, name
    assert np.abs(np.subtract(full.registrations["t2_post"].matrix[:3, 3], np.subtract(both, day))).max() < 0.5
    difference = (full.mri[0, 0] - full.mri[1, 1])[full.body].abs().mean()
    assert float(difference) < 0.1

    day_only = prepare(moved, dataclasses.replace(QUICK, registration="within_timepoint"))
    assert set(day_only.registrations) == {"t2_post"}
    assert np.array_equal(day_only.placements["t1_post"].matrix, np.eye(4))


def test_without_registration_nothing_moves(plain: Prepared) -> None:
    assert plain.registrations == {}
    assert all(np.array_equal(place.matrix, np.eye(4)) for place in plain.placements.values())


def test_a_slide_becomes_a_bag(case: Case, encoder: TileEncoder) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    one = only(case, "t1_pre", "slide")
    single = prepare(one, QUICK, encoder)
    double = dataclasses.replace(one, inputs={**one.inputs, "slide": one.inputs["slide"] * 2})
    found = prepare(double, QUICK, encoder, on_event=lambda event, values: events.append((event, values)))
    assert single.tiles is not None and single.tile_xy_um is not None and found.tiles is not None
    assert single.tiles.shape == (8, 24)
    assert torch.equal(found.tiles, torch.cat([single.tiles, single.tiles]))
    (_, grid), mpp = single.tile_grids[0], 640 / int(640 / 0.48)
    assert torch.allclose(single.tile_xy_um, torch.from_numpy(grid.xy_px).float() * mpp, rtol=0.05)  # µm, not pixels
    assert found.sha256["slide"] == f"{single.sha256['slide']},{single.sha256['slide']}"
    shares = [values["value"] for event, values in events if event == "progress"]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 0.5 in shares  # the first slide is half of the way


def test_an_absent_slide_is_none(two: Case, encoder: TileEncoder) -> None:
    found = prepare(two, QUICK, encoder)
    assert (found.tiles, found.tile_xy_um, found.tile_grids) == (None, None, ())
    assert "slide" not in found.sha256


def test_events_tell_the_way_and_images_are_kept(two: Case) -> None:
    stages: list[str] = []
    images: dict[str, volume.Volume] = {}
    prepare(two, QUICK, images=images, on_event=lambda _, values: stages.append(values["name"]))
    assert stages == ["reading t1_pre", "reading t2_post", "registering"]
    assert images["t2_post"].grid == volume.read(two.inputs["t2_post"][0]).grid


def test_a_listener_stops_the_work(two: Case) -> None:
    heard = []

    def stop(event: str, values: dict[str, Any]) -> None:
        heard.append(values["name"])
        if values["name"] == "reading t2_post":
            raise Cancelled("stopped.", "Start it again.")

    with pytest.raises(Cancelled):
        prepare(two, QUICK, on_event=stop)
    assert heard == ["reading t1_pre", "reading t2_post"]


def test_a_case_without_volumes_is_refused(case: Case) -> None:
    with pytest.raises(MissingInput, match=case.case_id):
        prepare(only(case, "slide"), QUICK)


def test_errors_name_the_volume(case: Case, tmp_path: Path) -> None:
    source = case.inputs["t1_pre"][0]
    apart = dataclasses.replace(case, inputs={"t1_pre": (source,), "t2_pre": moved_copy(source, tmp_path / "far.nrrd", (1000.0, 0, 0))})
    with pytest.raises(BadGeometry, match=r"t2_pre.* mm apart"):
        prepare(apart, dataclasses.replace(QUICK, registration="full"))
    with pytest.raises(BadGeometry, match=r"t2_pre.*does not overlap"):
        prepare(apart, QUICK)
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(12, 40, 40)).astype(np.float32))
    sitk.WriteImage(noise, str(tmp_path / "noise.nrrd"))
    with pytest.raises(BadVolume, match=r"t1_post.*only noise"):
        prepare(dataclasses.replace(case, inputs={"t1_post": (tmp_path / "noise.nrrd",)}), QUICK)


def test_a_useless_slide_is_found_before_the_registration(case: Case, encoder: TileEncoder, tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"no slide")
    stages: list[str] = []
    broken = dataclasses.replace(case, inputs={**case.inputs, "slide": (tmp_path / "slide.svs",)})
    with pytest.raises(BadSlide):
        prepare(broken, QUICK, encoder, on_event=lambda _, values: stages.append(values.get("name", "")))
    assert stages[-1] == "reading the slide"
    assert "registering" not in stages


@pytest.fixture(params=[64, 1], ids=["many cores", "one core"])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with many cores or one; torch has as many threads afterwards as before."""
    monkeypatch.setattr(os, "cpu_count", lambda: request.param)
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    yield
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 6


@pytest.mark.usefixtures("cores")
def test_what_is_placed_beside_the_encoding_is_the_same(case: Case, encoder: TileEncoder) -> None:
    settings = dataclasses.replace(QUICK, registration="full")
    alone, found = prepare(case, settings), prepare(case, settings, encoder)
    assert torch.equal(found.mri, alone.mri)
    assert [code for code, _ in found.warnings][: len(alone.warnings)] == [code for code, _ in alone.warnings]
    assert found.tiles is not None
    assert set(found.sha256) == {*MRI, "slide"}


@pytest.mark.usefixtures("cores")
def test_what_fails_beside_the_encoding_is_told(case: Case, encoder: TileEncoder, tmp_path: Path) -> None:
    far = {**case.inputs, "t2_pre": moved_copy(case.inputs["t1_pre"][0], tmp_path / "far.nrrd", (1000.0, 0, 0))}
    with pytest.raises(BadGeometry, match=r"t2_pre to t1_pre.* mm apart"):
        prepare(dataclasses.replace(case, inputs=far), dataclasses.replace(QUICK, registration="full"), encoder)


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("at", ["registering t1_post", "encoding tiles"])
def test_a_listener_stops_both_ways(case: Case, encoder: TileEncoder, at: str) -> None:
    heard: list[str] = []

    def stop(event: str, values: dict[str, Any]) -> None:
        heard.append(str(values.get("name", values.get("stage"))))
        if heard[-1] == at:
            raise Cancelled("enough.", "Start it again.")

    with pytest.raises(Cancelled, match="enough"):
        prepare(case, dataclasses.replace(QUICK, registration="full"), encoder, on_event=stop)
    assert heard.count(at) == 1
