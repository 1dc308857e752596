"""Facts about the tile encoder: what file it accepts, what it computes, and that its cache is never believed blindly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from HARM3Logic.errors import BadCheckpoint, BadOption, BadSlide, Cancelled
from HARM3Logic.features import slide_features
from HARM3Logic.slide import Slide, TileGrid, TileSettings, TissueSettings, read_tiles, tile_grid
from HARM3Logic.tile_encoder import EncoderEntry, TileEncoder, default_path, read_entry, save_encoder

TINY = EncoderEntry(
    name="tiny",
    timm_model="vit_tiny_patch16_224",
    timm_kwargs={"embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 0, "img_size": 48},
    size_px=48,
    mean=(0.7, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    pooling="cls+mean",
    features=48,
    licence="none",
)


def tiny_weights(img_size: int = 48) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(TINY.timm_model, **{**TINY.timm_kwargs, "img_size": img_size})
    return {k: torch.randn_like(v) * 0.2 for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "tiny.safetensors"
    save_encoder(TINY, tiny_weights(), path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_file: Path) -> TileEncoder:
    return TileEncoder.load(tiny_file, precision="float32")


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (11, 48, 48, 3), dtype=np.uint8)


@pytest.fixture
def slide_file(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(-40, 40, (300, 400, 1))
    picture = np.clip(np.array([200, 120, 170]) + noise, 0, 255).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "s.tif", picture, tile=(64, 64), photometric="rgb", compression="zlib", resolution=(2e4, 2e4), resolutionunit=3
    )
    return tmp_path / "s.tif"


def grid_of(slide: Slide, **settings: object) -> TileGrid:
    return tile_grid(slide, TissueSettings(min_area_mm2=0.0, blur_samples=0), TileSettings(**{"size_px": 48, **settings}))  # type: ignore[arg-type]


def test_a_file_gives_back_its_entry_and_hash(tiny: TileEncoder, tiny_file: Path) -> None:
    assert tiny.entry == TINY
    assert tiny.weights_sha256 == hashlib.sha256(tiny_file.read_bytes()).hexdigest()


def test_the_encoder_of_the_program_loads_by_name() -> None:
    entry = read_entry(default_path())
    assert (entry.size_px, entry.pooling, entry.features) == (224, "cls+mean", 768)
    encoder = TileEncoder.load("default", precision="float32")
    assert encoder.encode(np.zeros((1, 224, 224, 3), np.uint8), 1).shape == (1, 768)
    assert TileEncoder.load(entry.name).weights_sha256 == encoder.weights_sha256
    assert default_path().stat().st_size < 27e6
    assert "MIT License" in (default_path().parent / "NOTICE.txt").read_text()


def test_features_are_the_pooled_tokens_of_normalised_tiles(tiny_file: Path, tiles: np.ndarray) -> None:
    model = timm.create_model(TINY.timm_model, **TINY.timm_kwargs).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(tiny_file).items()})
    pixels = (torch.from_numpy(tiles / 255.0) - torch.tensor(TINY.mean)) / torch.tensor(TINY.std)
    with torch.no_grad():
        tokens = model.forward_features(pixels.permute(0, 3, 1, 2).float())
        pooled = model(pixels.permute(0, 3, 1, 2).float())
    cls, mean = tokens[:, 0].numpy(), tokens[:, 1:].mean(1).numpy()
    wanted = {"cls": cls, "mean": mean, "cls+mean": np.concatenate([cls, mean], 1), "model": pooled.numpy()}
    for pooling, value in wanted.items():
        entry = dataclasses.replace(TINY, pooling=pooling, features=value.shape[1])  # type: ignore[arg-type]
        got = TileEncoder(entry, model, "", "cpu", "float32").encode(tiles)
        np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_do_not_depend_on_what_follows(tiny_file: Path, tiles: np.ndarray, precision: str) -> None:
    encoder = TileEncoder.load(tiny_file, precision=precision)  # type: ignore[arg-type]
    every = encoder.encode(tiles, 4)
    for n in (1, 3, 4, 6):
        assert np.array_equal(encoder.encode(tiles[:n], 4), every[:n])
    assert encoder.encode(tiles[:0]).shape == (0, 48)


def test_every_batch_has_the_full_shape(tiny: TileEncoder, tiles: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    forward = tiny._forward
    monkeypatch.setattr(tiny, "_forward", lambda full: (shapes.append(len(full)), forward(full))[1])
    tiny.encode(tiles, 4)  # a matrix product may choose another order of summing for another shape
    assert shapes == [4, 4, 4]


def test_bfloat16_keeps_the_direction(tiny_file: Path, tiles: np.ndarray) -> None:
    a, b = (TileEncoder.load(tiny_file, precision=p).encode(tiles) for p in ("float32", "bfloat16"))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999 and not np.array_equal(a, b)


def test_saving_resamples_the_positions(tmp_path: Path) -> None:
    weights = tiny_weights(img_size=96)
    save_encoder(TINY, weights, tmp_path / "e.safetensors")
    saved = load_file(tmp_path / "e.safetensors")
    assert saved["pos_embed"].shape == (1, 10, 24) and saved["pos_embed"].dtype == torch.float16
    np.testing.assert_allclose(saved["pos_embed"][:, 0], weights["pos_embed"][:, 0], atol=1e-3)  # the class token has no place
    assert [p.name for p in tmp_path.iterdir()] == ["e.safetensors"]


def _missing(path: Path) -> None:
    path.unlink(missing_ok=True)


def _garbage(path: Path) -> None:
    path.write_bytes(b"not safetensors at all")


def _no_entry(path: Path) -> None:
    save_file(tiny_weights(), path)


def _wrong_entry(path: Path) -> None:
    save_file(tiny_weights(), path, metadata={"tile_encoder": '{"name": "x"}'})


def _wrong_weights(path: Path) -> None:
    save_file({"a": torch.zeros(1)}, path, metadata={"tile_encoder": json.dumps(dataclasses.asdict(TINY))})


def _truncated(path: Path) -> None:
    save_encoder(TINY, tiny_weights(), path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("make", [_missing, _garbage, _no_entry, _wrong_entry, _wrong_weights, _truncated])
def test_wrong_files_are_named(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "wrong.safetensors"
    make(path)
    with pytest.raises(BadCheckpoint, match=r"wrong\.safetensors"):
        TileEncoder.load(path)


def test_a_folder_is_no_encoder(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint):
        TileEncoder.load(tmp_path)


def test_tiles_of_another_size_are_refused(tiny: TileEncoder) -> None:
    with pytest.raises(BadOption, match=r"64 px.*48 px"):
        tiny.encode(np.zeros((1, 64, 64, 3), np.uint8))


def test_features_stand_in_the_order_of_the_grid(slide_file: Path, tiny: TileEncoder) -> None:
    with Slide.open(slide_file) as slide:
        grid = grid_of(slide)
        seen: list[float] = []
        features = slide_features(slide, grid, tiny, None, seen.append, batch=5)
        assert features.shape == (48, 48)  # 6 rows of 8 tiles; 2 x 24 features
        assert np.array_equal(features, tiny.encode(read_tiles(slide, grid, 0, 48), 5))
    assert seen == sorted(set(seen)) and seen[-1] == 1.0 and len(seen) == 10


def test_the_cache_answers_in_place_of_the_encoder(
    slide_file: Path, tiny: TileEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "deep" / "cache"
    with Slide.open(slide_file) as slide:
        grid = grid_of(slide)
        first = slide_features(slide, grid, tiny, cache)
        (file,) = cache.iterdir()
        with h5py.File(file) as h5:
            assert h5["features"].dtype == np.float32 and h5["coords"].dtype == np.int64
            assert np.array_equal(h5["features"], first) and np.array_equal(h5["coords"], grid.xy_px)
            assert h5.attrs["slide_sha256"] == slide.sha256 and h5.attrs["weights_sha256"] == tiny.weights_sha256
            assert (h5.attrs["mpp"], h5.attrs["size_px"], h5.attrs["encoder"]) == (0.5, 48, "tiny")
        monkeypatch.setattr(TileEncoder, "encode", None)
        assert np.array_equal(slide_features(slide, grid, tiny, cache), first)
        moved = dataclasses.replace(grid, xy_px=grid.xy_px[::-1].copy())
        for other in (moved, grid_of(slide, rule="clam_four_pt"), dataclasses.replace(grid, tissue_settings=TissueSettings(threshold=20))):
            with pytest.raises(TypeError):  # other tiles or settings: encoded anew
                slide_features(slide, other, tiny, cache)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:2000])


def _flip(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5["features"][3, 4] += 1


def _attribute(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5.attrs["weights_sha256"] = "0" * 64


def _lost(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        del h5["coords"]


def _moved(file: Path) -> None:
    with h5py.File(file, "r+") as h5:
        h5["coords"][0] = 1


@pytest.mark.parametrize("spoil", [_cut, _flip, _attribute, _lost, _moved, lambda file: file.write_bytes(b"")])
def test_a_spoilt_cache_is_made_again(slide_file: Path, tiny: TileEncoder, tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    cache = tmp_path / "cache"
    with Slide.open(slide_file) as slide:
        grid = grid_of(slide)
        first = slide_features(slide, grid, tiny, cache)
        (file,) = cache.iterdir()
        good = dict(h5py.File(file).attrs)
        spoil(file)
        assert np.array_equal(slide_features(slide, grid, tiny, cache), first)
    assert list(cache.iterdir()) == [file] and dict(h5py.File(file).attrs) == good


def test_cancelling_leaves_no_file(slide_file: Path, tiny: TileEncoder, tmp_path: Path) -> None:
    answers = iter([False, False, True])
    with Slide.open(slide_file) as slide, pytest.raises(Cancelled, match="10 of 48"):
        slide_features(slide, grid_of(slide), tiny, tmp_path / "cache", cancelled=lambda: next(answers), batch=5)
    assert list((tmp_path / "cache").iterdir()) == []


def test_damage_while_encoding_leaves_no_file(slide_file: Path, tiny: TileEncoder, tmp_path: Path) -> None:
    with Slide.open(slide_file) as slide:
        grid = grid_of(slide)
    data = bytearray(slide_file.read_bytes())
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 4)
    slide_file.write_bytes(data)
    with pytest.raises(BadSlide), Slide.open(slide_file) as slide:
        slide_features(slide, grid, tiny, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(slide_file: Path, tiny: TileEncoder, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with Slide.open(slide_file) as slide, pytest.raises(BadOption, match="taken"):
        slide_features(slide, grid_of(slide), tiny, tmp_path / "taken", on_progress=lambda _: pytest.fail("encoded before looking"))


def test_the_nearest_neighbour_of_a_tile_is_its_shifted_twin(data: Path) -> None:
    pictures = [Image.open(p).convert("RGB") for p in sorted((data / "data" / "tiles").glob("*.tif"))]
    encoder = TileEncoder.load("default")
    here, there = (
        encoder.encode(np.stack([np.asarray(p.crop((d, d, d + 180, d + 180)).resize((224, 224))) for p in pictures]), 10) for d in (0, 44)
    )
    here, there = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (here, there))
    assert ((here @ there.T).argmax(1) == np.arange(len(pictures))).all()
