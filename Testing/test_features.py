"""Facts about feature files: streamed, resumed from any point, and never believed when spoilt."""

from __future__ import annotations

import dataclasses
import errno
import json
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

from HARM3Logic import feature_file, features
from HARM3Logic.__main__ import main
from HARM3Logic.collection import write_collection
from HARM3Logic.errors import BadOption, BadSlide, OutOfMemory
from HARM3Logic.feature_file import Journal, about_of
from HARM3Logic.features import slide_features, write_features
from HARM3Logic.slide import Slide, TileGrid, TileSettings, TissueSettings, read_tiles, tile_grid
from HARM3Logic.tile_encoder import EncoderEntry, TileEncoder, save_encoder

TINY = EncoderEntry(
    name="tiny",
    timm_model="vit_tiny_patch16_224",
    timm_kwargs={"embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 0, "img_size": 32},
    size_px=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.2, 0.2, 0.2),
    pooling="cls",
    features=12,
    licence="none",
)


def save_tiny(path: Path, size_px: int = 32) -> Path:
    torch.manual_seed(0)
    entry = dataclasses.replace(TINY, size_px=size_px, timm_kwargs={**TINY.timm_kwargs, "img_size": size_px})
    weights = timm.create_model(entry.timm_model, **entry.timm_kwargs).state_dict()
    save_encoder(entry, {name: torch.randn_like(value) * 0.2 for name, value in weights.items()}, path)
    return path


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("encoder") / "tiny.safetensors")


@pytest.fixture(scope="module")
def tiny(encoder_file: Path) -> TileEncoder:
    return TileEncoder.load(encoder_file, precision="float32")


def draw(path: Path, tissue: bool = True) -> Path:
    rng = np.random.default_rng(0)
    picture = np.full((480, 640, 3), 243, np.uint8)
    if tissue:
        picture[64:416, 64:576] = np.clip(np.array([200, 120, 170]) + rng.integers(-40, 40, (352, 512, 1)), 0, 255)
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb", compression="zlib", resolution=(2e4, 2e4), resolutionunit=3)
    return path


@pytest.fixture
def slide(tmp_path: Path) -> Iterator[Slide]:
    with Slide.open(draw(tmp_path / "s.tif")) as slide:
        yield slide


@pytest.fixture
def grid(slide: Slide) -> TileGrid:
    return tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=32))


def silent(done: int) -> None:
    pass


def test_a_file_holds_the_tiles_in_order_and_what_they_are(slide: Slide, grid: TileGrid, tiny: TileEncoder, tmp_path: Path) -> None:
    seen: list[int] = []
    assert write_features(slide, grid, tiny, tmp_path / "s.h5", seen.append, 4)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["features"].shape == (len(grid.xy_px), 12) and file["features"].dtype == np.float32
        assert np.array_equal(file["coords"], grid.xy_px) and file["coords"].dtype == np.int64
        assert np.array_equal(file["features"], tiny.encode(read_tiles(slide, grid, 0, len(grid.xy_px)), 4))
        assert file.attrs["slide"] == "s.tif" and json.loads(file.attrs["quality"])["tissue"] > 0.4
    about = about_of(tmp_path / "s.h5")
    assert about is not None and (about["mpp"], about["size_px"], about["slide_sha256"]) == (0.5, 32, slide.sha256)
    assert seen == [0, 64, 128, *range(192, len(grid.xy_px), 64), len(grid.xy_px)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.h5", "s.tif"]


def test_what_is_there_is_not_done_again(
    slide: Slide, grid: TileGrid, tiny: TileEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(slide, grid, tiny, tmp_path / "s.h5", silent, 4)
    monkeypatch.setattr(TileEncoder, "encode", None)
    assert not write_features(slide, grid, tiny, tmp_path / "s.h5", silent, 4)
    other = dataclasses.replace(grid, tissue_settings=TissueSettings(threshold=20))
    with pytest.raises(TypeError):  # of other settings: encoded anew
        write_features(slide, other, tiny, tmp_path / "s.h5", silent, 4)


def test_a_stopped_run_goes_on_to_the_same_file(
    slide: Slide, grid: TileGrid, tiny: TileEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_features(slide, grid, tiny, tmp_path / "whole.h5", silent, 4)

    def stop(done: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_features(slide, grid, tiny, tmp_path / "s.h5", stop, 4)
    assert not (tmp_path / "s.h5").exists()
    encoded, encode = [0], tiny.encode
    monkeypatch.setattr(tiny, "encode", lambda tiles, batch: (encoded.append(len(tiles)), encode(tiles, batch))[1])
    assert write_features(slide, grid, tiny, tmp_path / "s.h5", silent, 4)
    assert sum(encoded) == len(grid.xy_px) - 128
    assert same(tmp_path / "s.h5", tmp_path / "whole.h5")
    assert not (tmp_path / ".s.h5.part").exists()


def same(one: Path, other: Path) -> bool:
    with h5py.File(one) as a, h5py.File(other) as b:
        return dict(a.attrs) == dict(b.attrs) and all(np.array_equal(a[name], b[name]) for name in ("features", "coords"))


def test_a_killed_process_loses_only_its_last_record(slide: Slide, grid: TileGrid, encoder_file: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from HARM3Logic.features import write_features\n"
        "from HARM3Logic.slide import *; from HARM3Logic.tile_encoder import TileEncoder\n"
        "slide = Slide.open(sys.argv[1])\n"
        "grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=32))\n"
        "encoder = TileEncoder.load(sys.argv[2], precision='float32')\n"
        "write_features(slide, grid, encoder, Path(sys.argv[3]), lambda done: done >= 64 and os.kill(os.getpid(), 9), 4)\n"
    )
    out = tmp_path / "k.h5"
    killed = subprocess.run([sys.executable, "-c", code, slide.path, encoder_file, out], cwd=Path(__file__).parents[1])
    assert killed.returncode == -9
    assert not out.exists() and (tmp_path / ".k.h5.part").exists()
    seen: list[int] = []
    write_features(slide, grid, TileEncoder.load(encoder_file, precision="float32"), out, seen.append, 4)
    assert seen[0] == 64 and about_of(out) is not None


ABOUT = {"slide": "a", "batch": 4}
COORDS = np.arange(40, dtype=np.int64).reshape(20, 2)
PARTS = [np.random.default_rng(k).random((n, 3)).astype(np.float32) for k, n in enumerate((8, 8, 4))]


def journal_of(path: Path, parts: list[np.ndarray]) -> Path:
    with Journal(path, ABOUT, COORDS, 3, 8) as journal:
        for part in parts:
            journal.add(part)
    return path


def test_a_journal_cut_anywhere_goes_on_from_its_last_whole_record(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", PARTS)
    data = path.read_bytes()
    head = len(data) - 2 * 128 - 80  # three records of 8, 8 and 4 rows, 32 bytes of hash each
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with Journal(path, ABOUT, COORDS, 3, 8) as journal:
            assert journal.done == max(0, length - head) // 128 * 8
            for part in PARTS[journal.done // 8 :]:
                journal.add(part)
        assert path.read_bytes() == data
    with Journal(path, ABOUT, COORDS, 3, 8) as journal:
        journal.finish(tmp_path / "f.h5", ABOUT, COORDS)
    found = feature_file.read(tmp_path / "f.h5", ABOUT, COORDS, 3)
    assert found is not None and np.array_equal(found, np.concatenate(PARTS)) and not path.exists()


def test_a_flipped_bit_anywhere_in_a_journal_is_found(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", PARTS)
    data = path.read_bytes()
    for place in range(0, len(data), 5):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        with Journal(path, ABOUT, COORDS, 3, 8) as journal:
            assert journal.done < 20
            assert all(np.array_equal(a, b) for a, b in zip(journal._records(), PARTS, strict=False))


def test_a_journal_of_something_else_is_not_continued(tmp_path: Path) -> None:
    path = journal_of(tmp_path / "j", PARTS)
    with Journal(path, ABOUT | {"batch": 8}, COORDS, 3, 8) as journal:
        assert journal.done == 0
    path = journal_of(tmp_path / "j", PARTS)
    with Journal(path, ABOUT, COORDS + 1, 3, 8) as journal:
        assert journal.done == 0


@pytest.mark.parametrize("room", [0, 50, 300, 420])
def test_a_full_disk_keeps_what_was_done(tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = journal_of(tmp_path / "whole", PARTS).read_bytes()

    class Disk:
        """A file that takes what there is room for, then fails as a full disk does."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: memoryview) -> int:
            left = room - self.file.seek(0, 2)
            if left <= 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(bytes(data)[:left])

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(feature_file, "open", lambda *a, **k: Disk(open(*a, **k)), raising=False)  # noqa: SIM115
        with pytest.raises(BadOption, match="No space left"):
            journal_of(tmp_path / "j", PARTS)
    with Journal(tmp_path / "j", ABOUT, COORDS, 3, 8) as journal:
        assert journal.done == max(0, room - (len(whole) - 2 * 128 - 80)) // 128 * 8  # three records behind the head
        for part in PARTS[journal.done // 8 :]:
            journal.add(part)
    assert (tmp_path / "j").read_bytes() == whole


def test_a_full_disk_leaves_no_feature_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadOption, match="No space left"):
        feature_file.write(tmp_path / "f.h5", ABOUT, COORDS, PARTS, 3)
    assert list(tmp_path.iterdir()) == []


def test_no_spoilt_file_is_taken_for_good(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    feature_file.write(path, ABOUT, COORDS, PARTS, 3)
    data = path.read_bytes()
    assert feature_file.is_good(path, ABOUT, COORDS, 3)
    assert not feature_file.is_good(path, ABOUT, COORDS[::-1].copy(), 3) and not feature_file.is_good(path, ABOUT, COORDS, 4)
    for length in range(0, len(data), 197):
        path.write_bytes(data[:length])
        assert not feature_file.is_good(path, ABOUT, COORDS, 3)
    wanted = np.concatenate(PARTS)
    for place in range(0, len(data), 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        found = feature_file.read(path, ABOUT, COORDS, 3)
        assert found is None or np.array_equal(found, wanted)  # a bit that nothing reads may flip


def test_fewer_tiles_at_a_time_where_memory_is_short(encoder_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TileEncoder.load(encoder_file)
    assert encoder.fit() == 4 and not encoder.warnings
    encoder._fits, encoder.batch = False, 64
    forward = encoder._forward

    def small(tiles: np.ndarray) -> np.ndarray:
        if len(tiles) > 9:
            raise OutOfMemory("too many")
        return forward(tiles)

    monkeypatch.setattr(encoder, "_forward", small)
    assert encoder.fit() == 8 and "8 tiles" in encoder.warnings[0]
    monkeypatch.setattr(encoder, "_forward", lambda _: small(np.empty(100)))
    encoder._fits = False
    with pytest.raises(OutOfMemory):
        encoder.fit()


def test_nothing_found_is_an_error_with_a_picture(tiny: TileEncoder, tmp_path: Path) -> None:
    (failure,) = write_collection([draw(tmp_path / "empty.tif", tissue=False)], tiny, tmp_path / "out")
    assert isinstance(failure, BadSlide) and "empty.tif" in failure.message and "empty.tissue.png" in failure.advice
    with Image.open(tmp_path / "out" / "empty.tissue.png") as picture:
        assert picture.size == (1280, 480)
        shown = np.asarray(picture)
    assert (shown[:, :640] == 243).all() and (shown[:, 640:] == 60).all()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["empty.tissue.png"]


def test_the_command_writes_what_it_can_and_names_the_rest(
    tmp_path: Path, encoder_file: Path, capsys: pytest.CaptureFixture[str], tiny: TileEncoder
) -> None:
    (tmp_path / "one").mkdir()
    good, twin, bad = draw(tmp_path / "s.tif"), draw(tmp_path / "one" / "s.tif"), tmp_path / "none.svs"
    command = ["features", str(good), str(bad), str(twin), "--out", str(tmp_path / "out"), "--encoder", str(encoder_file)]
    assert main([*command, "--device", "cpu", "--mpp", "0.4"]) == 2
    told = capsys.readouterr()
    assert "2 of 3 slides" in told.out and "none.svs" in told.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(["one_s.h5", f"{tmp_path.name}_s.h5"])
    about = about_of(tmp_path / "out" / "one_s.h5")
    assert about is not None and about["slide_mpp"] == 0.4 and about["mpp"] == 0.5


def test_two_slides_of_one_name_are_refused(tiny: TileEncoder, tmp_path: Path) -> None:
    with pytest.raises(BadOption, match=r"s\.tif.*s\.tif"):
        write_collection([tmp_path / "s.tif", tmp_path / "s.tif"], tiny, tmp_path / "out")


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(p.read_bytes()[:-40]), lambda p: p.write_bytes(b"")])
def test_a_spoilt_file_is_written_again(
    slide: Slide, grid: TileGrid, tiny: TileEncoder, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    write_features(slide, grid, tiny, tmp_path / "a.h5", silent, 4)
    write_features(slide, grid, tiny, tmp_path / "b.h5", silent, 4)
    spoil(tmp_path / "b.h5")
    assert write_features(slide, grid, tiny, tmp_path / "b.h5", silent, 4)
    assert same(tmp_path / "a.h5", tmp_path / "b.h5")


def test_a_naive_loop_gives_the_same_bits(slide: Slide, tiny: TileEncoder) -> None:
    grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=32, mpp=None))
    tiles = [np.asarray(slide._handle.read_region((x, y), 0, (32, 32)).convert("RGB")) for x, y in grid.xy_px.tolist()]
    assert np.array_equal(slide_features(slide, grid, tiny, batch=8), tiny.encode(np.stack(tiles), 8))


SIDE, STORED, PIECE = 100_000, 512, 352  # of the slide, of a stored tile, of a piece of tissue; px
PLACES = [int((k + 0.5) * SIDE / 46) // STORED * STORED for k in range(46)]  # where pieces begin, in x and in y


def write_huge(path: Path) -> None:
    """A sparse pyramid with a small piece of tissue in each cell of a lattice over all of it; glass is not stored."""
    rng = np.random.default_rng(0)
    tissue = np.clip(np.array([200, 120, 170]) + rng.integers(-40, 40, (PIECE, PIECE, 1)), 0, 255).astype(np.uint8)

    def tiles(factor: int) -> Iterator[bytes]:
        edge, made = STORED * factor, {}
        inside = [[(p - k * edge) // factor for p in PLACES if p // edge == k] for k in range(-(-SIDE // edge))]
        for rows in inside:
            for columns in inside:
                key = (tuple(rows), tuple(columns))
                if rows and columns and key not in made:
                    tile = np.full((STORED, STORED, 3), 243, np.uint8)
                    for y in rows:
                        for x in columns:
                            part = tile[y : y + PIECE // factor, x : x + PIECE // factor]
                            part[:] = tissue[::factor, ::factor][: part.shape[0], : part.shape[1]]
                    made[key] = zlib.compress(tile.tobytes(), 1)
                yield made.get(key, b"")  # a tile of no bytes is not stored

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in (1, 4, 16, 64):
            length = -(-SIDE // factor)
            file.write(
                tiles(factor), shape=(length, length, 3), dtype=np.uint8, tile=(STORED, STORED), photometric="rgb", compression="zlib",
                resolution=(2e4 / factor, 2e4 / factor), resolutionunit=3, subfiletype=int(factor > 1),
            )  # fmt: skip


@pytest.mark.slow
def test_a_huge_slide_goes_through_in_little_memory(tmp_path: Path) -> None:
    write_huge(tmp_path / "huge.tif")
    save_tiny(tmp_path / "tiny.safetensors", 224)
    command = [sys.executable, "-m", "HARM3Logic", "features", tmp_path / "huge.tif", "--out", tmp_path, "--device", "cpu"]
    subprocess.run([*command, "--encoder", tmp_path / "tiny.safetensors"], check=True, cwd=Path(__file__).parents[1])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    with h5py.File(tmp_path / "huge.h5") as file:
        coords = file["coords"][()]
    assert len(coords) >= len(PLACES) ** 2 >= 2000
    assert (coords.min(0) < 0.02 * SIDE).all() and (coords.max(0) > 0.97 * SIDE).all()
    assert peak < 2e9


def test_features_is_where_prediction_takes_it_from() -> None:
    from HARM3Logic import bag

    assert bag.slide_features is features.slide_features
