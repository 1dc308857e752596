"""Facts about files of features in a slide's place: taken only where they are what the model was trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from HARM3Logic import checkpoint, feature_slide
from HARM3Logic.__main__ import main
from HARM3Logic.assemble import _tiles_alone
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort, write_cohort
from HARM3Logic.errors import BadCohort, BadSlide
from HARM3Logic.feature_slide import EncoderName, Wanted
from HARM3Logic.features import write_features
from HARM3Logic.predict import Predictor
from HARM3Logic.predict_cohort import predict_cohort
from HARM3Logic.prediction import SLIDE_FILES, TILE_FILES
from HARM3Logic.prepare import prepare
from HARM3Logic.slide import Slide, tile_grid
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings, by_place
from HARM3Logic.tissue import Tissue, TissueSettings
from Training import cache

ENCODER = EncoderName("uni", "a" * 64, 6)
WANTED = Wanted(ENCODER, TileSettings(), {})
OURS: dict[str, Any] = {
    "encoder": "uni", "weights_sha256": "a" * 64, "slide_mpp": 0.25, "mpp": 0.5, "size_px": 224, "size0_px": 448.0,
}  # fmt: skip
XY = np.stack([np.tile(np.arange(5), 4), np.repeat(np.arange(4), 5)], axis=1) * 448


def h5(path: Path, coords: np.ndarray = XY, features: int = 6, array: dict[str, Any] | None = None, **about: Any) -> Path:
    """A file as others write it.

    Args:
        array: attributes of the coordinates, where TRIDENT has them.
    """
    with h5py.File(path, "w") as file:
        file["features"] = np.random.default_rng(0).normal(size=(len(coords), features)).astype(np.float32)
        file["coords"] = coords
        file["coords"].attrs.update(array or {})
        file.attrs.update(about)
    return path


def test_a_file_that_fits_gives_its_features_and_a_grid(tmp_path: Path) -> None:
    found = feature_slide.read(h5(tmp_path / "s.h5", **OURS), WANTED)
    with h5py.File(tmp_path / "s.h5") as file:
        assert np.array_equal(found.features, file["features"])
    assert np.array_equal(found.grid.xy_px, XY) and (found.mpp, found.grid.size0_px, found.grid.found) == (0.25, 448.0, 20)
    assert found.sha256 == hashlib.sha256((tmp_path / "s.h5").read_bytes()).hexdigest()
    assert len(found.warnings) == 1 and "not opened" in found.warnings[0]


def test_of_many_tiles_as_many_are_taken_as_of_a_slide(tmp_path: Path) -> None:
    few = dataclasses.replace(WANTED, tiles=TileSettings(max_tiles=4))
    found, whole = (feature_slide.read(h5(tmp_path / "s.h5", **OURS), wanted) for wanted in (few, WANTED))
    assert np.array_equal(found.grid.xy_px, XY[[2, 7, 12, 17]]) and np.array_equal(found.features, whole.features[[2, 7, 12, 17]])
    assert found.grid.found == 20


@pytest.mark.parametrize(
    ("change", "mpp", "match"),
    [
        ({"weights_sha256": "b" * 64}, None, r"features of uni \(bbbbbbbbbbbb\); the model takes those of uni \(aaaaaaaaaaaa\)"),
        ({"mpp": 1.0, "size0_px": 896.0}, None, "224 px at 1 µm per pixel; the model takes tiles of 224 px at 0.5"),
        ({"size_px": 256, "size0_px": 512.0}, None, "256 px at 0.5 µm per pixel"),
        ({"slide_mpp": 0.3}, None, "at 0.6 µm per pixel"),  # its own values contradict each other
        ({}, 0.5, r"of a slide of 0\.25 µm per pixel; 0\.5 is given"),
        ({"slide_mpp": None}, None, "does not say the µm per pixel"),
        ({"slide_mpp": None}, 99.0, "is 99; 0.05 to 20"),
        ({"stain": "macenko", "stain_target_sha256": ""}, None, "normalised by macenko; the model takes it as it is"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any], mpp: float | None, match: str) -> None:
    about = {key: value for key, value in {**OURS, **change}.items() if value is not None}
    with pytest.raises(BadSlide, match=match):
        feature_slide.read(h5(tmp_path / "s.h5", **about), WANTED, mpp, "uni")  # a statement mends nothing that the file says


def test_the_length_is_the_encoders(tmp_path: Path) -> None:
    with pytest.raises(BadSlide, match="7 features a tile; uni has 6"):
        feature_slide.read(h5(tmp_path / "s.h5", features=7, **OURS), WANTED)


def test_the_models_stain_is_wanted_too(tmp_path: Path) -> None:
    stained = dataclasses.replace(WANTED, stain={"stain": "macenko", "stain_target_sha256": ""})
    with pytest.raises(BadSlide, match="stain as it is; the model takes it normalised by macenko"):
        feature_slide.read(h5(tmp_path / "s.h5", **OURS), stained)
    feature_slide.read(h5(tmp_path / "t.h5", **OURS, stain="macenko", stain_target_sha256=""), stained)


def test_clams_file_needs_a_statement(tmp_path: Path) -> None:
    path = h5(tmp_path / "s.h5", XY.astype(np.int32))
    with pytest.raises(BadSlide, match=r"does not say the µm per pixel.*slide_mpp"):
        feature_slide.read(path, WANTED)
    with pytest.raises(BadSlide, match=r"does not say which encoder.*224 px at 0\.5 µm per pixel.*--slide-encoder uni"):
        feature_slide.read(path, WANTED, 0.25)
    with pytest.raises(BadSlide, match="stated to hold features of conch; the model takes those of uni"):
        feature_slide.read(path, WANTED, 0.25, "conch")
    found = feature_slide.read(path, WANTED, 0.25, "uni")
    assert found.grid.size0_px == 448 and "as stated" in found.warnings[1]


def test_clams_tiles_must_lie_as_far_apart_as_the_models(tmp_path: Path) -> None:
    """CLAM takes 256 px of a level whatever their size in µm; a second contour has a grid of its own."""
    other = XY // 448 * 256 + 10_037
    path = h5(tmp_path / "s.h5", np.concatenate([XY // 448 * 256, other]))
    with pytest.raises(BadSlide, match=r"256 px of the slide apart, which is 64 µm"):
        feature_slide.read(path, WANTED, 0.25, "uni")
    assert feature_slide.read(path, WANTED, 0.4375, "uni").grid.size0_px == 256


def test_tridents_file_says_its_tiles(tmp_path: Path) -> None:
    said = {"patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "overlap": 0, "savetodir": "None"}
    path = h5(tmp_path / "s.h5", array=said)
    assert feature_slide.read(path, WANTED, 0.2425, "uni").grid.size0_px == 448  # a rounded magnification is 3 % off
    with pytest.raises(BadSlide, match=r"224 px at 0\.44 µm per pixel"):
        feature_slide.read(path, WANTED, 0.22, "uni")
    with pytest.raises(BadSlide, match=r"256 px at 0\.438"):
        feature_slide.read(h5(tmp_path / "t.h5", array={**said, "patch_size": 256}), WANTED, 0.25, "uni")


@pytest.fixture(scope="module")
def case(phantom: Path) -> Case:
    case = read_cohort(phantom)[0]
    return case.without(set(case.inputs) - {"t1_pre", "tumour_pre", "slide"})


@pytest.fixture(scope="module")
def encoder() -> TileEncoder:
    return TileEncoder.load("default", precision="float32")


@pytest.fixture(scope="module")
def instead(case: Case, encoder: TileEncoder, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The case with the features of its slide in the slide's place."""
    path = tmp_path_factory.mktemp("features") / "slide.h5"
    with Slide.open(case.inputs["slide"][0], case.slide_mpp) as slide:
        settings = TileSettings()
        grid = tile_grid(slide, checkpoint.Preprocessing().tissue, settings)
        write_features(slide, grid, encoder, path, lambda done: None)
    return dataclasses.replace(case, inputs={**case.inputs, "slide": (path,)})


def test_prepared_is_the_same_as_from_the_slide(case: Case, instead: Case, encoder: TileEncoder, tiny_checkpoint: Path) -> None:
    settings = dataclasses.replace(checkpoint.read_card(tiny_checkpoint).preprocessing, registration="none")
    slide = prepare(case, settings, encoder)
    for by in (encoder, EncoderName.of(encoder)):  # the name alone is enough
        file = prepare(instead, settings, by)
        assert torch.equal(file.tiles, slide.tiles) and torch.equal(file.mri, slide.mri)
        torch.testing.assert_close(file.tile_xy_um, slide.tile_xy_um)
    assert file.sha256["slide"] == hashlib.sha256(instead.inputs["slide"][0].read_bytes()).hexdigest()
    assert "slide_features" in [code for code, _ in file.warnings]


def test_the_answer_is_the_same_and_shows_the_tiles_where_they_lie(
    case: Case, instead: Case, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = Predictor(tiny_checkpoint, "cpu")(case)
    slide.write(tmp_path / "slide")
    monkeypatch.setattr(TileEncoder, "load", None)
    monkeypatch.setattr(Slide, "open", None)
    instead.write(tmp_path / "case.json")
    assert (
        main(
            [
                "predict",
                str(tmp_path / "case.json"),
                "--checkpoint",
                str(tiny_checkpoint),
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "file"),
            ]
        )
        == 0
    )
    said = json.loads((tmp_path / "file" / "prediction.json").read_text())
    assert said["logit"] == pytest.approx(slide.values["logit"], abs=1e-5) and said["tiles"] == slide.values["tiles"]
    assert any(w["code"] == "slide_features" and "no picture" in w["message"] for w in said["warnings"])
    assert said["quality"][0]["tissue_mm2"] is None and said["quality"][0]["pen"] == pytest.approx(
        slide.values["quality"][0]["pen"], abs=1e-5
    )
    names = {path.name for path in (tmp_path / "file").iterdir()}
    assert names >= {*SLIDE_FILES, *TILE_FILES} and "slide.html" not in names
    maps = [sitk.ReadImage(str(tmp_path / name / "slide_attention_tiles.nrrd")) for name in ("file", "slide")]
    own, seen = (sitk.GetArrayFromImage(each)[0] for each in maps)
    rows, columns = own.shape  # up to the last tile, where the slide's goes on to its edge
    np.testing.assert_allclose(own, seen[:rows, :columns], atol=1e-5)
    assert own.sum() == pytest.approx(seen.sum(), rel=1e-4)
    assert maps[0].GetSpacing() == pytest.approx(maps[1].GetSpacing(), rel=1e-4)
    small = np.asarray(Image.open(tmp_path / "file" / "slide_thumbnail.png").convert("RGB"))
    for tile in said["tiles"]:
        place = said["slide"]
        x, y = ((tile[key] + place["tile_px"] / 2) * small.shape[1] / place["size_px"][0] for key in ("x_px", "y_px"))
        assert small[int(y), int(x)].tolist() == [200, 200, 200]
    outlines = [json.loads((tmp_path / name / "tiles.geojson").read_text())["features"] for name in ("slide", "file")]
    assert outlines[0] == outlines[1] and len(outlines[0]) > 8
    page = (tmp_path / "file" / "report.html").read_text(encoding="utf-8")
    assert 'id="tiles"' in page and 'id="unopened"' in page and f"{said['tiles'][0]['x_px']:,}" in page
    assert 'aria-label="slide with attention"' in page and page.count("<img") == 0
    assert 'id="unopened"' not in (tmp_path / "slide" / "report.html").read_text(encoding="utf-8")


def test_tiles_alone_are_grey_where_they_lie_and_white_between() -> None:
    xy_px = np.array([[0, 0], [896, 0], [448, 448]])
    grid = TileGrid(xy_px, 448.0, 0.5, Tissue(np.zeros((0, 0), bool), 1.0, {}), 3, TissueSettings(), TileSettings())
    ranked = [{"rank": 1, "x_px": 448, "y_px": 448, "weight": 0.5}]
    view = _tiles_alone(grid, by_place(np.array([0, 0.5, 1]), grid), ranked)
    assert view.size_px == (1344, 896) and view.thumbnail.shape == (682, 1023, 3) and view.mm_per_px == pytest.approx(1344 * 0.25e-3 / 1023)
    assert view.thumbnail[170, ::341].tolist() == [[200] * 3, [255] * 3, [200] * 3] and view.thumbnail[340, 341].tolist() == [255] * 3
    assert view.attention[340:342, 682].tolist() == [0.5, 0] and view.attention[341, 341:683:341].tolist() == [1, 0]
    assert view.tiles[0].image is None and view.source is None


def test_a_cohort_of_feature_files_needs_no_encoder(
    instead: Case, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {name: str(paths[0]) for name, paths in instead.inputs.items()}
    write_cohort(tmp_path / "c.csv", [{"case_id": instead.case_id, **columns, "slide_encoder": "named"}])
    (case,) = read_cohort(tmp_path / "c.csv")
    assert case.slide_encoder == "named"
    monkeypatch.setattr(TileEncoder, "load", None)
    assert predict_cohort([case], tmp_path, tiny_checkpoint, device="cpu", workers=1) == []


def test_a_slide_is_not_left_out_where_the_encoder_is_missing(case: Case, tiny_checkpoint: Path) -> None:
    with pytest.raises(BadSlide, match=r"encoder .* is not loaded"):
        Predictor(tiny_checkpoint, "cpu", encoding=False)(case)


def test_the_statement_travels_with_the_case(tmp_path: Path) -> None:
    Case("c", {}, slide_encoder="uni").write(tmp_path / "case.json")
    assert Case.read(tmp_path / "case.json").slide_encoder == "uni"


def test_a_cohort_of_feature_files_is_checked(instead: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    paths = (instead.inputs["slide"][0], tmp_path / "bad.h5")
    write_cohort(
        tmp_path / "c.csv", [{"case_id": f"c{k}", "t1_pre": str(instead.inputs["t1_pre"][0]), "slide": str(p)} for k, p in enumerate(paths)]
    )
    main(["check", str(tmp_path / "c.csv"), "--json", "--workers", "0"])
    found = [p for p in json.loads(capsys.readouterr().out) if p["column"] == "slide"]
    assert [(p["case_id"], p["code"]) for p in found] == [("c1", "bad_slide")] and "damaged" in found[0]["message"]


def test_a_training_takes_it_and_sees_when_the_file_changes(instead: Case, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(checkpoint.read_card(tiny_checkpoint).preprocessing, registration="none")
    path = tmp_path / "slide.h5"
    path.write_bytes(instead.inputs["slide"][0].read_bytes())
    case = dataclasses.replace(instead, inputs={"slide": (path,)})
    made = cache.build([case], settings, "default", tmp_path / "cache", wanted=["slide"], workers=1)
    with h5py.File(path) as file:
        assert np.array_equal(made[0].tiles, file["features"])
    with h5py.File(path, "r+") as file:
        file["features"][0, 0] += 1
    with pytest.raises(BadCohort, match="checksum does not hold"):
        cache.build([case], settings, "default", tmp_path / "cache", wanted=["slide"], workers=1)
