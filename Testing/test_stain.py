"""Facts about stain normalisation: it is torchstain's, measured once a slide, recorded, and off unless asked for."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from test_features import draw, encoder_file, grid, silent, slide, tiny  # noqa: F401  fixtures

from HARM3Logic.__main__ import main
from HARM3Logic.errors import BadOption, BadSlide
from HARM3Logic.features import slide_features, write_features
from HARM3Logic.slide import Slide, TileGrid
from HARM3Logic.stain import StainSettings
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
    change = StainSettings(method, target).fit(OWN, "s.svs")
    assert np.abs(change(OWN).astype(int) - wanted).max() <= 1 and change(OWN).dtype == np.uint8
    assert np.array_equal(change(OWN)[2:4], change(OWN[2:4]))  # a tile does not depend on its neighbours
    before, after = (np.abs(x.reshape(-1, 3).mean(0) - OTHER.reshape(-1, 3).mean(0)).max() for x in (OWN, change(OWN)))
    assert after < before / 2


@needs_torchstain
def test_glass_stays_bright() -> None:
    assert StainSettings("macenko").fit(OWN, "s")(np.full((1, 4, 4, 3), 240, np.uint8)).min() > 230


@needs_torchstain
def test_a_slide_without_stain_is_told(target: Path) -> None:
    for method in ("macenko", "reinhard"):
        with pytest.raises(BadSlide, match=r"'s\.svs' shows too little stain"):
            StainSettings(method, target).fit(np.full((2, 8, 8, 3), 240, np.uint8), "s.svs")


@needs_torchstain
def test_a_target_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.png").write_text("no picture")
    with pytest.raises(BadOption, match=r"t\.png"):
        StainSettings("macenko", tmp_path / "t.png")
    with pytest.raises(BadOption, match="--stain-target"):
        StainSettings("reinhard")


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
    stain = StainSettings("reinhard", target)
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
