"""Facts about slides: what is refused, where the tissue and the tiles are, what their pixels are."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from HARM3Logic import slide_file, tile_reader
from HARM3Logic.errors import BadOption, BadSlide
from HARM3Logic.slide import (
    Slide,
    TileGrid,
    TileSettings,
    Tissue,
    TissueSettings,
    paint,
    read_batches,
    read_tile,
    read_tiles,
    tile_grid,
    tissue,
)
from HARM3Logic.tissue import block_means, closing, majority, saturation

PINK, GLASS, BLUE_INK = (200, 120, 170), (243, 243, 243), (30, 80, 160)


def glass(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GLASS, np.uint8)


def speckle(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-25, 25, picture.shape[:2])[..., None]
    return np.clip(picture.astype(int) + noise, 0, 255).astype(np.uint8)


def write_slide(path: Path, *levels: np.ndarray, mpp: tuple[float, float] | None = (0.5, 0.5)) -> Path:
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels):
            unit = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
            file.write(level, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(i > 0), **unit)
    return path


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """A slide with one piece of tissue from (600, 400) to (1000, 700)."""
    picture = glass(1100, 1400)
    picture[400:700, 600:1000] = PINK
    return write_slide(tmp_path / "square.tif", speckle(picture))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_plain_picture_is_a_slide_once_its_scale_is_given(tmp_path: Path, suffix: str) -> None:
    picture = glass(1100, 1400)
    picture[400:700, 600:1000] = PINK
    path = tmp_path / f"plain{suffix}"
    Image.fromarray(picture).save(path, **({"quality": 95} if suffix == ".jpg" else {}))
    with pytest.raises(BadSlide, match="does not say its µm") as error:
        Slide.open(path)
    assert "--mpp" in error.value.advice
    with Slide.open(path, mpp=0.5) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings())
        tiles = np.concatenate(list(read_batches(slide, grid, 4, 2)))
        assert slide.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(tiles) == 9
    x, y = grid.xy_px[4]
    assert np.abs(tiles[4].astype(int) - picture[y : y + 224, x : x + 224]).max() <= (3 if suffix == ".jpg" else 0)


def test_unusable_pictures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((60, 50), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(BadSlide, match=r"deep\.png.*I;16.*8-bit"):
        Slide.open(tmp_path / "deep.png", mpp=0.5)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(BadSlide, match="neither a slide nor a picture"):
        Slide.open(tmp_path / "text.png", mpp=0.5)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:9000])
    with pytest.raises(BadSlide, match=r"cut\.png.*damaged"):
        Slide.open(tmp_path / "cut.png", mpp=0.5)
    Image.fromarray(glass(60, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(slide_file, "PLAIN_PX", 2000)
    with pytest.raises(BadSlide, match=r"50 x 60 px.*without a pyramid") as error:
        Slide.open(tmp_path / "large.png", mpp=0.5)
    assert "pyramidal TIFF" in error.value.advice


@pytest.mark.parametrize(
    ("mpp", "words"),
    [(None, "µm per pixel"), ((352.0, 352.0), "0.05 to 20"), ((0.5, 0.6), "equal values")],
)
def test_a_slide_of_unknown_size_is_refused_and_can_be_told(tmp_path: Path, mpp: tuple[float, float] | None, words: str) -> None:
    path = write_slide(tmp_path / "a.tif", glass(300, 300), mpp=mpp)
    with pytest.raises(BadSlide, match=words) as error:
        Slide.open(path)
    assert "--mpp" in error.value.advice
    with Slide.open(path, mpp=0.25) as slide:
        assert slide.mpp == 0.25


def test_mpp_is_the_mean_of_both_axes(tmp_path: Path) -> None:
    with Slide.open(write_slide(tmp_path / "a.tif", glass(300, 400), mpp=(0.5, 0.52))) as slide:
        assert slide.mpp == pytest.approx(0.51, rel=1e-4)
        assert (slide.width_px, slide.height_px) == (400, 300)


def test_an_impossible_given_mpp_is_refused(square: Path) -> None:
    for mpp in (0.0, -1.0, 500.0, float("nan")):
        with pytest.raises(BadSlide, match=r"0\.05 to 20"):
            Slide.open(square, mpp=mpp)


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadSlide, match="does not exist"):
        Slide.open(tmp_path / "none.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(BadSlide, match=r"text\.svs.*not a slide"):
        Slide.open(tmp_path / "text.svs")
    with pytest.raises(BadSlide, match="holds no slide"):
        Slide.open(tmp_path)


def test_a_truncated_slide_is_named(square: Path) -> None:
    whole = square.read_bytes()
    for share in (0.3, 0.6, 0.95):
        square.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(BadSlide, match=r"square\.tif"), Slide.open(square) as slide:
            tile_grid(slide, TissueSettings(), TileSettings())


def test_what_is_transparent_is_white(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide.open(square) as slide:
        half = Image.fromarray(np.array([[[0, 0, 0, 0], [10, 20, 30, 255]]], np.uint8))
        monkeypatch.setattr(slide._handle, "read_region", lambda *_: half)
        assert slide.read_region_rgb(0, 0, 0, 2, 1).tolist() == [[[255, 255, 255], [10, 20, 30]]]


def test_sha256_is_that_of_the_file(square: Path) -> None:
    with Slide.open(square) as slide:
        assert slide.sha256 == hashlib.sha256(square.read_bytes()).hexdigest()


def test_thumbnail_keeps_the_shape_and_the_place(square: Path) -> None:
    with Slide.open(square) as slide:
        picture = slide.thumbnail(140)
        assert slide.thumbnail(9999).shape == (1100, 1400, 3)
    assert picture.shape == (110, 140, 3)
    pink = picture[..., 1] < 180
    rows, columns = np.nonzero(pink)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (40, 69, 60, 99)


def test_reading_in_blocks_leaves_no_seam(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide.open(square) as slide:
        once = slide.whole(0, 12)
        monkeypatch.setattr(slide_file, "WHOLE_PX", 300)
        assert np.array_equal(slide.whole(0, 12), once)
        pixels = slide.read_region_rgb(0, 0, 0, 1400, 1100).astype(float)
    assert once.shape == (92, 117, 3)
    assert once[0, 0, 0] == np.floor(pixels[:12, :12, 0].mean() + 0.5)
    assert once[91, 116, 2] == np.floor(pixels[1092:, 1392:, 2].mean() + 0.5)  # partial blocks use what there is


def test_saturation_is_that_of_opencv() -> None:
    rgb = np.array([[[0, 0, 0], [255, 0, 0], [10, 9, 9], [200, 120, 170], [3, 0, 1]]], np.uint8)
    assert saturation(rgb).tolist() == [[0, 255, 26, 102, 255]]


def test_majority_equals_a_thresholded_median() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 31), dtype=np.uint8)
    median = ndimage.median_filter(picture, 7, mode="nearest")
    for threshold in (100, 127, 140):
        assert np.array_equal(majority(picture > threshold, 7), median > threshold)


def test_closing_with_an_even_kernel_shifts_only_when_asked() -> None:
    mask = np.zeros((20, 20), bool)
    mask[8:12, 8:12] = True
    assert np.array_equal(closing(mask, 4, False), mask)
    assert np.array_equal(closing(mask, 4, True), np.roll(mask, 1, (0, 1)))


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        # the tissue spans x 600..1000, y 400..700 and the tiles begin at multiples of 224
        ("corners", {(448, 224), (672, 224), (896, 224), (448, 448), (672, 448), (896, 448), (448, 672), (672, 672), (896, 672)}),
        ("clam_four_pt", {(448, 448), (672, 448), (896, 448)}),
        ("min_coverage", {(448, 448), (672, 448), (896, 448)}),
    ],
)
def test_each_rule_keeps_its_tiles(square: Path, rule: str, wanted: set[tuple[int, int]]) -> None:
    with Slide.open(square) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings(rule=rule))  # type: ignore[arg-type]
    assert {(int(x), int(y)) for x, y in grid.xy_px} == wanted
    assert grid.found == len(wanted)
    assert grid.xy_px.tolist() == sorted(grid.xy_px.tolist(), key=lambda p: (p[1], p[0]))
    assert grid.tissue.fractions["tissue"] == pytest.approx(300 * 400 / (1100 * 1400), rel=0.05)


def test_min_coverage_is_a_share_of_the_tile(square: Path) -> None:
    kept = {}
    with Slide.open(square) as slide:
        for share in (0.3, 0.6, 0.95):
            kept[share] = tile_grid(slide, TissueSettings(), TileSettings(rule="min_coverage", min_coverage=share)).xy_px.tolist()
    # covered: x 448: 72/224, 672: all, 896: 104/224; y 448: all
    assert kept == {0.3: [[448, 448], [672, 448], [896, 448]], 0.6: [[672, 448]], 0.95: [[672, 448]]}


def test_origins_are_rounded_one_by_one_and_tiles_are_complete(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", speckle(np.full((500, 5000, 3), PINK, np.uint8)), mpp=(0.499, 0.499))
    with Slide.open(path) as slide:
        grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings())
        halves = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(overlap_px=112))
        edge = 224 * 0.5 / slide.mpp
    assert grid.size0_px == pytest.approx(edge) and grid.mpp == 0.5
    row = grid.xy_px[grid.xy_px[:, 1] == 0, 0]
    assert row.tolist() == [round(i * edge) for i in range(22)]  # 224 px each would end 10 px short
    assert (grid.xy_px + edge <= [5000, 500]).all()
    assert halves.xy_px[:3, 0].tolist() == [0, round(edge / 2), round(edge)]


def test_max_tiles_takes_an_even_subset(square: Path) -> None:
    with Slide.open(square) as slide:
        every = tile_grid(slide, TissueSettings(), TileSettings())
        few = tile_grid(slide, TissueSettings(), TileSettings(max_tiles=3))
    assert few.found == every.found == 9
    assert np.array_equal(few.xy_px, every.xy_px[[1, 4, 7]])


def test_no_tissue_is_an_error_that_tells_the_share(tmp_path: Path) -> None:
    with Slide.open(write_slide(tmp_path / "empty.tif", glass(600, 600))) as slide, pytest.raises(BadSlide, match=r"empty\.tif.* 0 % of"):
        tile_grid(slide, TissueSettings(), TileSettings())


def test_too_coarse_a_scan_is_refused(square: Path) -> None:
    with Slide.open(square, mpp=2.0) as slide, pytest.raises(BadSlide, match=r"1\.25 or less"):
        tile_grid(slide, TissueSettings(), TileSettings())


def test_a_small_core_survives_and_dust_does_not(tmp_path: Path) -> None:
    picture = glass(3000, 3000)
    picture[1000:1640, 1000:1640] = PINK  # 0.32 mm square: 0.1 mm²
    picture[2500:2600, 2500:2600] = PINK  # 0.0025 mm²
    with Slide.open(write_slide(tmp_path / "core.tif", picture)) as slide:
        found = tissue(slide, TissueSettings())
    rows, columns = np.nonzero(found.mask)
    assert found.downsample == 16
    assert abs(rows.size * (16 * 0.0005) ** 2 - 0.1024) < 0.01
    assert rows.max() < 105 and columns.max() < 105


def test_ink_and_black_are_no_tissue(tmp_path: Path) -> None:
    picture = glass(1600, 1600)
    picture[200:600, 200:600] = PINK
    picture[1000:1400, 200:600] = BLUE_INK
    picture[1000:1400, 1000:1400] = (3, 0, 1)  # almost black, S = 255
    with Slide.open(write_slide(tmp_path / "ink.tif", picture)) as slide:
        clean = tissue(slide, TissueSettings(blur_samples=0))
        rule = tissue(slide, TissueSettings(blur_samples=0, exclude_pen=False, exclude_dark=False))
    share = 400 * 400 / 1600**2
    assert clean.fractions["tissue"] == pytest.approx(share, rel=0.1)
    assert clean.fractions["pen"] == pytest.approx(share, rel=0.1)
    assert clean.fractions["dark"] == pytest.approx(share, rel=0.1)
    assert rule.fractions["tissue"] == pytest.approx(3 * share, rel=0.1)
    artefacts = clean.artefacts
    assert artefacts is not None and artefacts.mean() == pytest.approx(2 * share, rel=0.1) and not (artefacts & clean.mask).any()


def cells(soft_px: float) -> np.ndarray:
    """A piece of tissue on glass with round nuclei, out of focus by a Gaussian."""
    rng = np.random.default_rng(0)
    picture = glass(900, 900).astype(float)
    picture[100:800, 100:800] = PINK
    rows, columns = np.mgrid[-9:10, -9:10]
    nucleus = rows**2 + columns**2 < 60
    for row, column in rng.integers(100, 780, (1500, 2)):
        picture[row : row + 19, column : column + 19][nucleus] = (90, 60, 120)
    blurred = ndimage.gaussian_filter(picture, (soft_px, soft_px, 0))
    return np.clip(blurred + rng.normal(0, 2, (900, 900, 1)), 0, 255).astype(np.uint8)


def test_blur_is_seen(tmp_path: Path) -> None:
    found = {}
    for soft_px in (0.7, 3.0):
        with Slide.open(write_slide(tmp_path / f"{soft_px}.tif", cells(soft_px))) as slide:
            found[soft_px] = tissue(slide, TissueSettings(blur_samples=25)).fractions["blurred"]
    assert found[0.7] <= 0.04 and found[3.0] >= 0.96


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "TCGA-CR-7395-01A-01-TS1.svs"])
def test_a_real_slide_is_sharp_and_its_blurred_copy_is_not(data: Path, tmp_path: Path, name: str) -> None:
    with Slide.open(data / "data" / "slides" / name, mpp=0.5) as slide:
        assert tissue(slide, TissueSettings()).fractions["blurred"] == 0
        pixels = slide.read_region_rgb(0, 0, 0, slide.width_px, slide.height_px)
    soft = np.stack([ndimage.gaussian_filter(pixels[..., c], 2.0) for c in range(3)], axis=2)
    with Slide.open(write_slide(tmp_path / "soft.tif", soft)) as slide:
        assert tissue(slide, TissueSettings()).fractions["blurred"] > 0.95


def test_fluorescence_is_refused(tmp_path: Path) -> None:
    picture = np.zeros((800, 800, 3), np.uint8)
    picture[200:500, 200:500, 2] = 200
    with Slide.open(write_slide(tmp_path / "dapi.tif", picture)) as slide, pytest.raises(BadSlide, match="dark background"):
        tile_grid(slide, TissueSettings(), TileSettings())


def test_tiles_of_level_0_are_its_pixels(square: Path) -> None:
    picture = tifffile.imread(square)
    with Slide.open(square) as slide:
        for tiles in (TileSettings(mpp=None), TileSettings(mpp=0.5)):
            grid = tile_grid(slide, TissueSettings(), tiles)
            got = read_tiles(slide, grid, 0, 2)
            x, y = grid.xy_px[1]
            assert got.shape == (2, 224, 224, 3)
            assert np.array_equal(got[1], picture[y : y + 224, x : x + 224])


def test_the_best_level_is_read_and_made_smaller_without_aliasing(tmp_path: Path) -> None:
    stripes = np.full((2048, 2048, 3), PINK, np.uint8)
    stripes[:, ::2] = (100, 60, 85)
    half = np.full((1024, 1024, 3), (150, 60, 120), np.uint8)  # unlike level 0, so it shows which one was read
    path = write_slide(tmp_path / "pyramid.tif", stripes, half)
    with Slide.open(path, mpp=0.25) as slide:
        assert slide.level_downsamples == (1.0, 2.0)
        settings = TissueSettings(blur_samples=0)
        first = {mpp: read_tiles(slide, tile_grid(slide, settings, TileSettings(mpp=mpp)), 0, 1)[0] for mpp in (0.25, 0.4, 0.5, 0.75)}
    assert np.array_equal(first[0.25], stripes[:224, :224])
    assert np.abs(first[0.4][8:-8, 8:-8].astype(int) - stripes[:2, :2].mean((0, 1))).max() < 45  # plain picking gives the stripes: 50 off
    assert (first[0.5] == half[0, 0]).all() and (first[0.75] == half[0, 0]).all()


def test_batches_are_the_tiles_in_order(square: Path) -> None:
    with Slide.open(square) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings())
        for readers in (1, 3):
            batches = list(read_batches(slide, grid, 2, readers))
            assert [len(b) for b in batches] == [2, 2, 2, 2, 1]
            assert np.array_equal(np.concatenate(batches), read_tiles(slide, grid, 0, 9))


def test_reading_ahead_is_bounded(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[int] = []

    class Pool(ThreadPoolExecutor):
        def submit(self, function, /, *values):  # type: ignore[no-untyped-def]
            submitted.append(len(values[1]))
            return super().submit(function, *values)

    with Slide.open(square) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings())
        monkeypatch.setattr(tile_reader, "ThreadPoolExecutor", Pool)
        batches = read_batches(slide, grid, 1, 2)
        next(batches)
        assert submitted == [1, 1, 1]  # one for each reader, and one
        batches.close()
        submitted.clear()
        monkeypatch.setattr(tile_reader, "AHEAD", 4)
        batches = read_batches(slide, grid, 2, 2, turns=True)
        for wanted in (6, 6, 6, 9):  # nothing is decoded while what was decoded is in use
            next(batches)
            assert sum(submitted) == wanted
        batches.close()


def pyramid(path: Path, mpp: tuple[float, float] = (0.25, 0.25)) -> Path:
    """Noisy tissue with a second level a quarter the size."""
    rng = np.random.default_rng(0)
    first = np.kron(rng.integers(0, 60, (750, 1000, 3)), np.ones((2, 2, 1))).astype(np.uint8) + np.array([140, 60, 110], np.uint8)
    return write_slide(path, first, block_means(block_means(first, 2), 2), mpp=mpp)


@pytest.mark.parametrize(("mpp", "overlap"), [(0.25, 0), (0.31, 0), (0.5, 0), (0.5, 50), (1.0, 0), (1.13, 20)])
def test_tiles_from_blocks_are_those_read_one_by_one(tmp_path: Path, mpp: float, overlap: int) -> None:
    with Slide.open(pyramid(tmp_path / "p.tif")) as slide:
        grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=96, mpp=mpp, overlap_px=overlap))
        got = np.concatenate(list(read_batches(slide, grid, 5, 2)))
        one_by_one = [tile_reader.read_tile(slide, int(x), int(y), grid.size0_px, 96) for x, y in grid.xy_px]
    assert len(got) == len(grid.xy_px) >= 15
    assert np.array_equal(got, one_by_one)


@pytest.mark.parametrize("keep", [tile_reader.KEEP_BYTES, 1])
def test_a_pyramid_tile_is_decoded_once_and_forgotten(tmp_path: Path, keep: int) -> None:
    with Slide.open(pyramid(tmp_path / "p.tif")) as slide:
        grid = tile_grid(slide, TissueSettings(blur_samples=0), TileSettings(size_px=96, mpp=0.25))
        blocks = tile_reader.Blocks(tile_reader.Cut.of(slide, grid.size0_px, 96), grid.xy_px, keep)
        decoded: list[tuple[int, ...]] = []
        read = slide.read_region_rgb
        slide.read_region_rgb = lambda *where: (decoded.append(where), read(*where))[1]  # type: ignore[method-assign]
        most = 0
        for x, y in grid.xy_px.tolist():
            blocks.tile(x, y)
            most = max(most, len(blocks._held))
    assert all(x % 256 == y % 256 == 0 and size == [256, 256] for x, y, _, *size in decoded)
    assert len(set(decoded)) == 8 * 6
    assert len(decoded) == 8 * 6 if keep > 1 else len(decoded) > 8 * 6
    assert most <= (16 if keep > 1 else 1) and not blocks._held  # two rows of eight


def test_a_tile_between_the_pixels_of_a_level_lies_where_it_should(tmp_path: Path) -> None:
    ramp = np.repeat((np.arange(400) // 2 + 20)[None, :, None], 400, 0).repeat(3, 2).astype(np.uint8)
    quarter = np.repeat((np.arange(100) * 2 + 20)[None, :, None], 100, 0).repeat(3, 2).astype(np.uint8)
    with Slide.open(write_slide(tmp_path / "ramp.tif", ramp, quarter), mpp=0.25) as slide:
        tiles = {x: tile_reader.read_tile(slide, x, 0, 188.0, 48)[20, 8:-8, 0].astype(float) for x in (40, 41, 42, 44)}
    assert np.array_equal(tiles[44] - tiles[40], np.full(32, 2.0))
    assert np.abs(tiles[42] - tiles[40] - 1.0).max() <= 0.5 and tiles[40].mean() < tiles[41].mean() + 0.5 <= tiles[42].mean()


@pytest.mark.parametrize("miss", [0.992, 0.998, 1.0, 1.003, 1.009])
def test_pixels_of_nearly_the_wanted_size_are_taken_as_they_are(tmp_path: Path, miss: float) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (260, 300, 3), np.uint8)
    with Slide.open(write_slide(tmp_path / "p.tif", picture), mpp=0.5) as slide:
        middle = tile_reader.read_tile(slide, 17, 31, 224 * miss, 224)
        at_edge = tile_reader.read_tile(slide, 77, 0, 224 * miss, 224)  # one column too far for whole pixels
        over = tile_reader.read_tile(slide, 256, 128, 256 * miss, 256)
        coarser = tile_reader.read_tile(slide, 17, 31, 224 * 1.02, 224)
    assert np.array_equal(middle, picture[31:255, 17:241])
    assert np.array_equal(at_edge, picture[:224, 76:]) == (77 + 224 * miss <= 300)  # a tile that lies within the slide stays within
    assert np.array_equal(over[:132, :44], picture[128:, 256:])  # one that hangs over does not move
    assert not np.array_equal(coarser, middle)


def test_closing_waits_for_the_readers(square: Path) -> None:
    slide = Slide.open(square)
    batches = read_batches(slide, tile_grid(slide, TissueSettings(), TileSettings()), 1, readers=4)
    next(batches)  # three more are being read
    slide.close()  # without waiting, this crashes the process
    with pytest.raises(BadSlide, match="closed"):
        list(batches)
    with pytest.raises(BadSlide, match="closed"):
        read_tile(slide, 0, 0, 8.0, 8)  # cutting asks for the blocks first: nothing of that may reach a handle that is being closed


def test_damage_met_by_a_reader_thread_surfaces(square: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Image.Image:
        raise openslide.OpenSlideError("TIFFRGBAImageGet failed")

    with Slide.open(square) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings())
        monkeypatch.setattr(slide._handle, "read_region", broken)
        with pytest.raises(BadSlide, match=r"square\.tif.*TIFFRGBAImageGet"):
            list(read_batches(slide, grid, 4))


@pytest.mark.parametrize(
    "wrong", [{"size_px": 0}, {"mpp": 0.0}, {"rule": "all"}, {"overlap_px": 224}, {"max_tiles": 0}, {"min_coverage": 0.0}]
)
def test_impossible_tile_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadOption, match=next(iter(wrong))):
        TileSettings(**wrong)  # type: ignore[arg-type]


def test_paint_puts_each_weight_on_its_tile() -> None:
    mask = Tissue(np.ones((2, 2), bool), 16.0, {})
    xy = np.array([[0, 0], [200, 100], [250, 100], [300, 300]], np.int64)
    grid = TileGrid(xy, 100.0, 0.5, mask, 4, TissueSettings(), TileSettings(size_px=100, mpp=None))
    picture = paint(np.array([1.0, 0.5, 0.1, np.nan]), grid, (400, 400), (40, 40))
    assert picture.dtype == np.float32 and np.isfinite(picture).all()
    assert (picture[:10, :10] == 1).all() and (picture[10:20, 20:25] == 0.5).all()
    assert np.allclose(picture[10:20, 25:30], 0.3) and np.allclose(picture[10:20, 30:35], 0.1)  # the mean where two overlap
    assert picture.sum() == pytest.approx(100 + 25 + 15 + 5)
    assert paint(np.array([1.0, 0.5, 0.1, 0.7]), grid, (400, 400), (3, 3))[2, 2] == np.float32(0.7)  # smaller than a pixel, not lost


def test_tile_origins_equal_the_golden_ones(data: Path) -> None:
    with np.load(data / "parity" / "wsi_tiles_cmu.npz") as golden:
        height, width = golden["output.mask_shape"]
        mask = np.unpackbits(golden["output.mask_packed"])[: height * width].reshape(height, width).astype(bool)
        with Slide.open(data / "data" / "slides" / "CMU-1-Small-Region.svs") as slide:
            grid = tile_grid(slide, TissueSettings.parity(), TileSettings(mpp=None))
        assert np.array_equal(grid.tissue.mask, mask)
        assert np.array_equal(grid.xy_px, golden["output.tiles"])


def test_real_slides_are_told_apart(data: Path) -> None:
    slides = data / "data" / "slides"
    with pytest.raises(BadSlide, match="--mpp"):
        Slide.open(slides / "TCGA-CR-7395-01A-01-TS1.svs")
    with Slide.open(slides / "TCGA-CR-7395-01A-01-TS1.svs", mpp=0.5) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings())
        assert len(grid.xy_px) > 150 and grid.tissue.fractions["pen"] == 0 and grid.tissue.fractions["blurred"] < 0.1
    with Slide.open(slides / "test3-DAPI-2-_387_.ndpi") as slide, pytest.raises(BadSlide, match="dark background"):
        tile_grid(slide, TissueSettings.parity(), TileSettings(mpp=None))


def test_dicom_folder_and_file_are_one_slide_with_true_colours(data: Path) -> None:
    folder = data / "data" / "slides" / "cmu1_small_region_dicom"
    with (
        Slide.open(folder) as dicom,
        Slide.open(folder / "level-3-frames-0-1.dcm") as one,
        Slide.open(data / "data" / "slides" / "CMU-1-Small-Region.svs") as aperio,
    ):
        assert (dicom.vendor, len(dicom.level_downsamples), dicom.mpp) == ("dicom", 12, 0.499)
        assert dicom.sha256 == one.sha256
        assert "YCbCr" in dicom.warnings[0] and aperio.warnings == ()
        pictures = [s.thumbnail(256).astype(int) for s in (dicom, aperio)]
    assert np.abs(pictures[0] - pictures[1]).mean((0, 1)).max() < 12  # unmended, the glass alone is 115 off in two channels


@pytest.mark.parametrize("block_px", [1, 2, 3, 16, 40])
def test_means_of_blocks_are_exact(block_px: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (33, 50, 4), dtype=np.uint8)[..., :3]
    found = block_means(picture, block_px)
    assert found.shape == (-(-33 // block_px), -(-50 // block_px), 3)
    for row in range(found.shape[0]):
        for column in range(found.shape[1]):
            block = picture[row * block_px : (row + 1) * block_px, column * block_px : (column + 1) * block_px].reshape(-1, 3)
            assert np.array_equal(found[row, column], np.floor(block.mean(axis=0) + 0.5))


def test_label_and_macro_pictures_are_never_touched(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = data / "data" / "slides" / "CMU-1-Small-Region.svs"
    with openslide.OpenSlide(path) as handle:
        assert "label" in handle.associated_images  # there is one to leave alone
    monkeypatch.setattr(openslide.OpenSlide, "associated_images", property(lambda _: pytest.fail("read the label")))
    monkeypatch.setattr(openslide.lowlevel, "read_associated_image", lambda *_: pytest.fail("read the label"))
    with Slide.open(path) as slide:
        slide.thumbnail(64)
        read_tiles(slide, tile_grid(slide, TissueSettings(), TileSettings()), 0, 1)
