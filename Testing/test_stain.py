"""Facts about stain normalisation: it is torchstain's, measured once a slide, recorded, and off unless asked for."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from test_features import draw, encoder_file, grid, silent, slide, tiny  # noqa: F401  fixtures

from HARM3Logic import checkpoint
from HARM3Logic.__main__ import main
from HARM3Logic.case import Case
from HARM3Logic.checkpoint import from_plain
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption, BadSlide
from HARM3Logic.features import slide_features, write_features
from HARM3Logic.predict import Predictor
from HARM3Logic.prepare import Preprocessing, prepare
from HARM3Logic.slide import Slide, TileGrid, TileSettings, tile_grid
from HARM3Logic.stain import Stain
from HARM3Logic.tile_encoder import TileEncoder

needs_torchstain = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("torchstain"), reason="the extra stain (torchstain) is not installed"
)


def tissue(seed: int, purple: tuple[float, float, float], pink: tuple[float, float, float]) -> np.ndarray:
    """Tiles of two dyes in changing amounts, by the law of Lambert and Beer."""
    rng = np.random.default_rng(seed)
    amounts = rng.gamma(2.0, 0.3, (6, 32, 32, 2))
    density = amounts @ np.array([purple, pink])
    return np.clip(240 * np.exp(-density), 0, 255).astype(np.uint8)


OWN = tissue(0, (0.55, 0.75, 0.35), (0.15, 0.85, 0.50))
OTHER = tissue(1, (0.70, 0.65, 0.25), (0.05, 0.95, 0.30))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    Image.fromarray(OTHER.reshape(-1, 32, 3)).save(tmp_path / "target.png")
    return tmp_path / "target.png"


@needs_torchstain
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_the_sample_becomes_what_torchstain_makes_of_it(method: str, target: Path) -> None:
    from torchstain.base.normalizers import MacenkoNormalizer, ReinhardNormalizer

    reference = (MacenkoNormalizer if method == "macenko" else ReinhardNormalizer)(backend="numpy")
    reference.fit(OTHER.reshape(-1, 32, 3))
    wanted = reference.normalize(OWN.reshape(-1, 32, 3))
    wanted = (wanted[0] if method == "macenko" else wanted).reshape(OWN.shape)
    change = Stain.of(method, target).fit(OWN, "s.svs")
    assert np.abs(change(OWN).astype(int) - wanted).max() <= 1 and change(OWN).dtype == np.uint8
    assert np.array_equal(change(OWN)[2:4], change(OWN[2:4]))  # a tile does not depend on its neighbours
    before, after = (np.abs(x.reshape(-1, 3).mean(0) - OTHER.reshape(-1, 3).mean(0)).max() for x in (OWN, change(OWN)))
    assert after < before / 2


@needs_torchstain
def test_glass_stays_bright() -> None:
    assert Stain.of("macenko").fit(OWN, "s")(np.full((1, 4, 4, 3), 240, np.uint8)).min() > 230


@needs_torchstain
def test_a_slide_without_stain_is_told(target: Path) -> None:
    for method in ("macenko", "reinhard"):
        with pytest.raises(BadSlide, match=r"'s\.svs' shows too little stain"):
            Stain.of(method, target).fit(np.full((2, 8, 8, 3), 240, np.uint8), "s.svs")


@needs_torchstain
def test_a_target_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("no picture")
    with pytest.raises(BadOption, match=r"t\.png"):
        Stain.of("macenko", tmp_path / "t.png")
    with pytest.raises(BadOption, match="--stain-target"):
        Stain.of("reinhard")


def test_without_torchstain_it_is_told_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchstain.base.normalizers", None)
    monkeypatch.setitem(sys.modules, "torchstain", None)
    assert main(["features", str(draw(tmp_path / "s.tif")), "--out", str(tmp_path), "--stain", "macenko"]) == 2
    assert "harm3slicer[stain]" in capsys.readouterr().err


@needs_torchstain
def test_stain_is_recorded_and_part_of_what_is_cached(
    slide: Slide,  # noqa: F811
    grid: TileGrid,  # noqa: F811
    tiny: TileEncoder,  # noqa: F811
    tmp_path: Path,
    target: Path,
) -> None:
    few = dataclasses.replace(grid, xy_px=grid.xy_px[40:48])
    stain = Stain.of("reinhard", target)
    plain = slide_features(slide, few, tiny, tmp_path / "cache")
    changed = slide_features(slide, few, tiny, tmp_path / "cache", stain=stain)
    assert not np.allclose(plain, changed) and len(list((tmp_path / "cache").iterdir())) == 2
    assert np.array_equal(slide_features(slide, few, tiny, tmp_path / "cache"), plain)
    write_features(slide, few, tiny, tmp_path / "plain.h5", silent, 4)
    write_features(slide, few, tiny, tmp_path / "stain.h5", silent, 4, stain)
    with h5py.File(tmp_path / "plain.h5") as one, h5py.File(tmp_path / "stain.h5") as other:
        assert "stain" not in one.attrs and other.attrs["stain"] == "reinhard" and len(other.attrs["stain_target_sha256"]) == 64
        np.testing.assert_allclose(other["features"][()], changed, rtol=1e-4, atol=1e-5)
    assert not write_features(slide, few, tiny, tmp_path / "stain.h5", silent, 4, stain)


@pytest.fixture
def slide_case(tmp_path: Path) -> Case:
    return Case("c", {"slide": (draw(tmp_path / "s.tif"),)})


SETTINGS = Preprocessing(tiles=TileSettings(size_px=32, max_tiles=8))


@needs_torchstain
def test_prepare_does_what_the_features_command_does(
    slide_case: Case,
    slide: Slide,  # noqa: F811
    tiny: TileEncoder,  # noqa: F811
    target: Path,
) -> None:
    stain = Stain.of("reinhard", target)
    plain = prepare(slide_case, SETTINGS, tiny, wanted=["slide"])
    found = prepare(slide_case, dataclasses.replace(SETTINGS, stain=stain), tiny, wanted=["slide"])
    alike = slide_features(slide, tile_grid(slide, SETTINGS.tissue, SETTINGS.tiles), tiny, stain=stain)
    assert np.array_equal(found.tiles, alike) and not np.allclose(found.tiles, plain.tiles)


@needs_torchstain
@pytest.mark.parametrize("method", ["macenko", "reinhard"])
def test_a_checkpoint_carries_the_reference_itself(method: str, target: Path) -> None:
    stain = Stain.of(method, target)
    text = json.dumps(dataclasses.asdict(dataclasses.replace(SETTINGS, stain=stain)))
    target.unlink()  # the picture is not needed any more
    read = from_plain(Preprocessing, json.loads(text), "x")
    assert read.stain == stain and np.array_equal(read.stain.fit(OWN, "s")(OWN), stain.fit(OWN, "s")(OWN))


def test_a_card_of_before_has_none() -> None:
    data = dataclasses.asdict(SETTINGS)
    del data["stain"]
    assert from_plain(Preprocessing, data, "x") == SETTINGS and SETTINGS.stain is None


@pytest.fixture
def stained_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    loaded = checkpoint.load(tiny_checkpoint)
    settings = dataclasses.replace(loaded.card.preprocessing, stain=Stain("macenko"), registration="none")
    checkpoint.save(tmp_path / "stained.safetensors", loaded.model, dataclasses.replace(loaded.card, preprocessing=settings))
    return tmp_path / "stained.safetensors"


def test_a_checkpoint_of_normalised_slides_needs_torchstain(
    stained_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchstain.base.normalizers", None)
    monkeypatch.setitem(sys.modules, "torchstain", None)
    assert main(["info", str(stained_checkpoint)]) == 0 and '"macenko"' in capsys.readouterr().out
    with pytest.raises(BadOption, match=r"torchstain, which is not installed.*harm3slicer\[stain\]"):
        Predictor(stained_checkpoint, "cpu")
    Predictor(stained_checkpoint, "cpu", encoding=False)  # files of features are normalised already


@needs_torchstain
def test_the_record_says_how_the_colours_were_changed(stained_checkpoint: Path, tiny_checkpoint: Path, phantom: Path) -> None:
    case = read_cohort(phantom)[0]
    case = case.without(set(case.inputs) - {"t1_pre", "slide"})
    found = Predictor(stained_checkpoint, "cpu")(case)
    assert found.values["stain"] == {"stain": "macenko", "stain_target_sha256": ""} and "normalised by macenko" in found.html
    assert Predictor(tiny_checkpoint, "cpu")(case.without(["slide"])).values["stain"] is None


@pytest.mark.parametrize("colours", [((1.0, 2.0),), ((1.0, 2.0, 3.0),) * 2])
def test_colours_of_another_method_are_refused(colours: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(BadOption, match="macenko stain"):
        Stain("macenko", "0" * 64, colours)
