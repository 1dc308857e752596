"""The slide viewer: what lies on disk, what the page knows of it, and what a browser makes of both."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from HARM3Logic import viewer
from HARM3Logic.bag import shares
from HARM3Logic.errors import BadOption, BadSlide
from HARM3Logic.predict import keeping_mask
from HARM3Logic.prediction import Prediction
from HARM3Logic.slide import Slide, TileGrid, TileSettings, Tissue, TissueSettings, read_tiles, tile_grid
from HARM3Logic.slide_view import SlideView, TileAttention, TileView
from HARM3Logic.tiles import by_place
from HARM3Logic.viewer import source_of

PINK, GLASS = (200, 120, 170), (243, 243, 243)
NAME = "Mueller_Anna_1961"
LIBRARY_MISSING = not viewer.installed()


@pytest.fixture(autouse=True, scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the library has not been fetched, files of its names: only a browser needs more."""
    with pytest.MonkeyPatch.context() as patch:
        if LIBRARY_MISSING:
            patch.setattr(viewer, "VENDOR", tmp_path_factory.mktemp("vendor"))
            for name in viewer.LIBRARY:
                (viewer.VENDOR / name).write_text(name)
        yield


def test_without_the_library_nothing_is_written(written: tuple[Path, Path, SlideView], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(viewer, "VENDOR", tmp_path)
    with pytest.raises(BadOption, match="OpenSeadragon is not installed"):
        viewer.write_viewer(written[2], tmp_path / "out", "case")
    assert not (tmp_path / "out").exists()


def write_slide(path: Path, height: int, width: int, tissue: tuple[int, int, int, int], levels: int = 1, mpp: float = 0.5) -> Path:
    """A slide with a piece of tissue (top, left, bottom, right) that gets redder to the right and bluer downwards."""
    picture = np.full((height, width, 3), GLASS, np.uint8)
    top, left, bottom, right = tissue
    rows, columns = np.mgrid[0 : bottom - top, 0 : right - left]
    piece = picture[top:bottom, left:right]
    piece[..., 0], piece[..., 1], piece[..., 2] = 150 + 80 * columns / (right - left), 90, 120 + 100 * rows / (bottom - top)
    with tifffile.TiffWriter(path) as file:
        for i in range(levels):
            unit = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            level = picture[:: 4**i, :: 4**i]
            file.write(level, tile=(256, 256), photometric="rgb", compression="zlib", subfiletype=int(i > 0), **unit)
    return path


def view_of(path: Path, best: int = 0, top: int = 3) -> SlideView:
    """The slide as a prediction shows it, its attention highest at one tile and falling in order from there."""
    with Slide.open(path) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings(), focus=False)
        order = np.roll(np.arange(len(grid.xy_px)), -best)
        attention = np.zeros(len(order))
        attention[order] = 0.5 ** np.arange(len(order))
        tiles = tuple(
            TileView(rank, *map(int, grid.xy_px[k]), float(attention[k]) / 2, read_tiles(slide, grid, int(k), int(k) + 1)[0])
            for rank, k in enumerate(order[:top], start=1)
        )
        thumbnail = slide.thumbnail(256)
        size, mm = (slide.width_px, slide.height_px), slide.mpp * slide.width_px / thumbnail.shape[1] / 1000
        nothing = np.zeros(thumbnail.shape[:2], np.float32)
        return SlideView(thumbnail, nothing, mm, tiles, size, grid.size0_px, source_of(slide, grid, attention))


def squares(folder: Path) -> set[tuple[int, int, int]]:
    return {(int(f.parent.name), *map(int, f.stem.split("_"))) for f in (folder / "slide_files").rglob("*.jpg")}


def described(folder: Path) -> dict:
    return json.loads(re.search(r"const V = (.*);\n", (folder / "slide.html").read_text(encoding="utf-8"))[1])


def known(page: dict) -> set[tuple[int, int, int]]:
    """The squares the page will ask for, by its own rule: those whose parent is divided."""
    found = {(0, 0, 0)}
    for level in range(1, len(page["divided"])):
        bits = np.unpackbits(np.frombuffer(base64.b64decode(page["divided"][level - 1]), np.uint8))
        for row in range(page["rows"][level]):
            for column in range(page["columns"][level]):
                if bits[(row >> 1) * page["columns"][level - 1] + (column >> 1)]:
                    found.add((level, column, row))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, SlideView]:
    """A slide of odd size with tissue in its lower right, and its viewer."""
    folder = tmp_path_factory.mktemp("viewer")
    path = write_slide(folder / f"{NAME}.tif", 2301, 3407, (1040, 1552, 2301, 3407))  # tiles reach over into squares without tissue
    view = view_of(path, best=20)
    (folder / "out").mkdir()
    assert viewer.write_viewer(view, folder / "out", "HN-017")
    return path, folder / "out", view


def test_the_finest_squares_are_the_pixels_of_the_slide(written: tuple[Path, Path, SlideView]) -> None:
    path, out, _ = written
    page, pixels = described(out), tifffile.imread(path).astype(int)
    finest = len(page["divided"]) - 1
    assert (page["um"], page["width"], page["height"]) == (0.5, 3407, 2301)
    for level, column, row in squares(out):
        if level == finest:
            part = np.asarray(Image.open(out / f"slide_files/{level}/{column}_{row}.jpg")).astype(int)
            wanted = pixels[row * 512 : row * 512 + 512, column * 512 : column * 512 + 512]
            assert part.shape == wanted.shape and np.abs(part - wanted).mean() < 3
    assert (finest, 6, 4) in squares(out) and (finest, 3, 2) in squares(out)


def test_each_level_is_the_whole_slide_at_half_the_size(written: tuple[Path, Path, SlideView]) -> None:
    path, out, _ = written
    root = np.asarray(Image.open(out / "slide_files/0/0_0.jpg")).astype(int)
    assert root.shape == (288, 426, 3)  # an eighth, rounded up at each halving
    small = np.asarray(Image.fromarray(tifffile.imread(path)).reduce(8)).astype(int)
    assert np.abs(root - small).mean() < 3


def test_the_page_knows_which_squares_exist(written: tuple[Path, Path, SlideView]) -> None:
    _, out, _ = written
    assert known(described(out)) == squares(out)


def test_glass_is_not_kept_as_fine_as_tissue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(write_slide(tmp_path / "core.tif", 4000, 5000, (1600, 2100, 2100, 2700), levels=3))
    viewer.write_viewer(view, tmp_path / "out", "core")
    found, page = squares(tmp_path / "out"), described(tmp_path / "out")
    finest = len(page["divided"]) - 1
    assert known(page) == found and page["um"] == 0.5
    assert 0 < sum(level == finest for level, *_ in found) <= 16 < 8 * 10
    monkeypatch.setattr(viewer, "GLASS_MPP", 1.0)
    with Slide.open(tmp_path / "core.tif") as slide:
        fine = viewer.pyramid(slide, view.source, view.tile_px)
        assert fine.divided[finest - 2].all() and not fine.divided[finest - 1].all()  # glass of 2 µm is divided, of 1 not


def test_every_tile_of_the_model_is_kept_at_full_detail(written: tuple[Path, Path, SlideView]) -> None:
    _, out, view = written
    finest = len(described(out)["divided"]) - 1
    rows, columns = np.nonzero(view.source.by_tile)
    for row, column in zip(rows, columns, strict=True):
        x, y = column * view.source.step_px, row * view.source.step_px
        corners = [(x, y), (x + view.tile_px - 1, y + view.tile_px - 1)]
        assert {(finest, int(x // 512), int(y // 512)) for x, y in corners} <= squares(out)


def test_a_budget_bounds_the_finest_level(written: tuple[Path, Path, SlideView], monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, view = written
    with Slide.open(path) as slide:
        full = viewer.pyramid(slide, view.source, view.tile_px)
        monkeypatch.setattr(viewer, "MOST_BYTES", full.bytes * 0.6)
        half = viewer.pyramid(slide, view.source, view.tile_px)
        assert (full.factor, half.factor) == (1, 2) and half.bytes <= full.bytes * 0.6
        monkeypatch.setattr(viewer, "MOST_BYTES", 1)
        assert viewer.pyramid(slide, view.source, view.tile_px).finest == 0  # it ends even where nothing fits


def test_a_scan_finer_than_the_tiles_is_halved(tmp_path: Path) -> None:
    view = view_of(write_slide(tmp_path / "fine.tif", 1500, 1500, (300, 300, 1300, 1300), mpp=0.25))
    viewer.write_viewer(view, tmp_path / "out", "fine")
    page = described(tmp_path / "out")
    assert (page["um"], page["factor"], page["width"]) == (0.5, 2, 750) and page["tile"] == 224
    assert (page["tiles"][0]["x"], page["tiles"][0]["x0"]) == (view.tiles[0].x_px / 2, view.tiles[0].x_px)
    assert "0.50&nbsp;&micro;m per pixel" in (text := (tmp_path / "out/slide.html").read_text(encoding="utf-8")) and "0.25" in text


def test_memory_stays_flat_without_coarse_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    view = view_of(write_slide(tmp_path / "flat.tif", 2300, 2300, (200, 200, 600, 600)))
    read, most = Slide.read_region_rgb, []

    def watch(slide: Slide, x_px: int, y_px: int, level: int, width: int, height: int) -> np.ndarray:
        most.append(width * height)
        return read(slide, x_px, y_px, level, width, height)

    monkeypatch.setattr(Slide, "read_region_rgb", watch)
    monkeypatch.setattr(viewer, "MOST_SHRINK", 2)
    viewer.write_viewer(view, tmp_path / "out", "flat")
    assert 512**2 < max(most) <= (viewer.EDGE * viewer.MOST_SHRINK) ** 2


def test_nothing_names_the_patient_or_the_network(written: tuple[Path, Path, SlideView]) -> None:
    path, out, _ = written
    page = (out / "slide.html").read_text(encoding="utf-8")
    assert NAME not in page and str(path.parent) not in page and "http:" not in page and "https:" not in page
    assert not any(NAME in str(f.relative_to(out)) or NAME.encode() in f.read_bytes() for f in out.rglob("*") if f.is_file())
    for name in viewer.LIBRARY:  # the licence goes with the library
        assert (out / "slide_files" / name).read_bytes() == (viewer.VENDOR / name).read_bytes()


def test_a_case_cannot_become_markup(written: tuple[Path, Path, SlideView], tmp_path: Path) -> None:
    viewer.write_viewer(written[2], tmp_path, "</script><script>alert(1)</script>")
    assert "alert(1)</script>" not in (tmp_path / "slide.html").read_text(encoding="utf-8")


def made_prediction(view: SlideView) -> Prediction:
    tiles = [{"rank": t.rank, "x_px": t.x_px, "y_px": t.y_px, "weight": t.weight} for t in view.tiles]
    source, xy_px = view.source, np.array([(t.x_px, t.y_px) for t in view.tiles])
    assert source is not None
    weight = np.array([t.weight for t in view.tiles], np.float32)
    everywhere = TileAttention(xy_px, weight, view.tile_px, source.by_tile, source.step_px, source.mpp)
    page = 'report <!--viewer <a href="slide.html">x</a> viewer-->'
    return Prediction({"case_id": "HN-017", "tiles": tiles}, {}, {}, view, page, everywhere)


def test_the_viewer_belongs_to_the_prediction_beside_it(written: tuple[Path, Path, SlideView], tmp_path: Path) -> None:
    prediction = made_prediction(written[2])
    (tmp_path / "slide_files").mkdir()
    (tmp_path / "slide_files/old.jpg").touch()
    (tmp_path / "slide_tissue.png").touch()
    prediction.write(tmp_path, viewer.write_viewer)
    assert not (tmp_path / "slide_files/old.jpg").exists() and (tmp_path / "slide_files/0/0_0.jpg").is_file()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == 'report <a href="slide.html">x</a>'
    prediction.write(tmp_path)
    assert {f.name for f in tmp_path.iterdir() if "slide" in f.name} == {
        "slide_thumbnail.png", "slide_attention.png", "slide_attention.nrrd", "slide_attention_tiles.png", "slide_attention_tiles.nrrd",
    }  # fmt: skip
    assert "<a" not in re.sub("<!--.*?-->", "", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_attention_has_a_pixel_for_each_tile_where_the_tile_lies(written: tuple[Path, Path, SlideView], tmp_path: Path) -> None:
    view = written[2]
    made_prediction(view).write(tmp_path)
    image, whole = (sitk.ReadImage(str(tmp_path / f"slide_attention{end}.nrrd")) for end in ("_tiles", ""))
    assert image.GetSize() == (15, 10, 1)  # complete tiles of 224 px on 3407 x 2301
    values = sitk.GetArrayFromImage(image)[0]
    for tile in view.tiles:
        assert values[tile.y_px // 224, tile.x_px // 224] == pytest.approx(2 * tile.weight)
        left = image.TransformIndexToPhysicalPoint((tile.x_px // 224, tile.y_px // 224, 0))[0] - image.GetSpacing()[0] / 2
        edge = whole.GetOrigin()[0] - whole.GetSpacing()[0] / 2  # of the slide
        assert left - edge == pytest.approx(tile.x_px * 0.0005, abs=1e-6)
    shown = np.asarray(Image.open(tmp_path / "slide_attention_tiles.png").convert("RGBA"))
    assert shown.shape == (10, 15, 4) and shown[0, 0, 3] == 0 and shown[view.tiles[0].y_px // 224, view.tiles[0].x_px // 224, 3] > 200


def test_overlapping_tiles_have_a_pixel_each(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "s.tif", 1200, 1200, (200, 200, 1000, 1000))
    with Slide.open(path) as slide:
        grid = tile_grid(slide, TissueSettings(), TileSettings(overlap_px=100), focus=False)
        made = source_of(slide, grid, np.linspace(0.1, 1, len(grid.xy_px)))
    assert made.step_px == 124 and np.count_nonzero(made.by_tile) == len(grid.xy_px)
    x, y = grid.xy_px[7]
    assert made.by_tile[round(y / 124), round(x / 124)] == pytest.approx(np.linspace(0.1, 1, len(grid.xy_px))[7])


def test_tiles_on_a_grid_of_their_own_count_at_the_place_nearest_to_them() -> None:
    xy_px = np.array([[0, 0], [232, 2], [250, 0], [480, 440]])  # as CLAM's contours have them; the second and third are near one place
    grid = TileGrid(xy_px, 224.0, 0.5, Tissue(np.zeros((0, 0), bool), 1.0, {}), 4, TissueSettings(), TileSettings())
    wanted = [[0.25, 1, 0], [0, 0, 0], [0, 0, 0.75]]
    assert by_place(np.array([0.25, 0.5, 1, 0.75]), grid).tolist() == wanted
    assert by_place(np.array([0.25, 1, np.nan, 0.75]), grid, (672, 900)).tolist() == [*wanted, [0, 0, 0]]


def test_where_no_tissue_is_found_a_picture_is_left(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "empty.tif", 600, 600, (0, 0, 0, 0))
    for out in (tmp_path, None):
        with pytest.raises(BadSlide, match="with tissue") as told, keeping_mask(out), Slide.open(path) as slide:
            tile_grid(slide, TissueSettings(), TileSettings())
        assert ("slide_tissue.png" in told.value.advice) == (out is not None)
    assert Image.open(tmp_path / "slide_tissue.png").size == (1200, 600)


def test_quality_is_a_share_of_what_is_stained(tmp_path: Path) -> None:
    picture = np.full((3000, 3000, 3), GLASS, np.uint8)
    picture[300:700, 300:1100] = PINK  # 0.08 mm²
    picture[300:700, 1100:1500] = (30, 80, 160)  # ink over a third
    with tifffile.TiffWriter(tmp_path / "s.tif") as file:
        file.write(picture, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit="CENTIMETER")
    with Slide.open(tmp_path / "s.tif") as slide:
        (quality,) = shares([tile_grid(slide, TissueSettings(), TileSettings())])
    assert quality["tissue_mm2"] == pytest.approx(0.08, rel=0.1)
    assert quality["pen"] == pytest.approx(1 / 3, abs=0.02) and quality["dark"] == 0
    assert set(quality["poor"]) == {"pen", "blurred"}  # one colour has no edges


needs_browser = pytest.mark.skipif(
    browser.PATH is None or LIBRARY_MISSING, reason=f"{', '.join(browser.NAMES)} or OpenSeadragon (make viewer) is not installed"
)
LOADED = "typeof viewer !== 'undefined' && viewer.world.getItemCount() && viewer.world.getItemAt(0).getFullyLoaded() && heat.complete"
VIEW = "(({x, y, um}) => [Number(x), Number(y), Number(um)])(document.getElementById('bar').dataset)"


@needs_browser
def test_in_a_browser_opened_from_disk(written: tuple[Path, Path, SlideView], tmp_path: Path) -> None:
    _, out, view = written
    first, second = view.tiles[:2]
    with browser.Page((out / "slide.html").as_uri(), tmp_path) as page:
        page.wait(LOADED)
        x, y, um = page.value(VIEW)
        assert (x, y) == pytest.approx((3407 / 2, 2301 / 2), abs=2) and um == pytest.approx(0.5 * 3407 / 800, rel=0.05)
        half = page.picture().astype(int)
        redder, bluer = half[600, 750] - half[600, 450], half[640, 750] - half[420, 750]
        assert redder[0] > 20 and bluer[2] > 20  # squares lie in their places

        def spot(tile: TileView) -> np.ndarray:
            """The screen's pixels within a tile, away from its frame and number."""
            x, y, um = page.value(VIEW)
            column, row = (round(400 + (corner + 150 - at) * 0.5 / um) for corner, at in ((tile.x_px, x), (tile.y_px, y)))
            return page.picture()[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3).mean(axis=0)

        def dim(percent: int) -> None:
            page.value(f"$('opacity').value = {percent}; $('opacity').dispatchEvent(new Event('input')); 0")
            page.value("new Promise(done => setTimeout(() => requestAnimationFrame(() => done(0)), 300))")

        dim(0)
        plain = spot(first)
        dim(100)
        full, weaker = spot(first), spot(second)
        dim(50)
        between = spot(first)
        assert plain[0] - full[0] > 60 and full[0] + 15 < between[0] < plain[0] - 15
        assert weaker[0] - full[0] > 15  # half the attention is paler

        page.click("a[data-rank='2']")
        page.wait(f"({VIEW})[2] < 1 && !viewer.isAnimating()")
        assert page.value("location.hash") == "#tile=2"
        assert page.value(VIEW)[:2] == pytest.approx([second.x_px + 112, second.y_px + 112], abs=2)
        assert page.value("[...document.querySelectorAll('a.chosen')].map(a => a.dataset.rank).join()") == "2"
        page.value("viewer.viewport.goHome(true); 0")
        page.click("a[data-rank='2']")  # the address stays
        page.wait(f"({VIEW})[2] < 1")
        assert page.errors == [] and {url.split(":")[0] for url in page.asked} == {"file", "data"}
        asked = "[...Array(5).keys()].flatMap(l => [...Array(8).keys()].flatMap(x => [...Array(8).keys()].map(y => [l, x, y])))"
        there = page.value(f"{asked}.filter(([l, x, y]) => source.tileExists(l, x, y))")
        assert {tuple(square) for square in there} == squares(out)


@needs_browser
def test_an_address_opens_the_page_at_a_tile(written: tuple[Path, Path, SlideView], tmp_path: Path) -> None:
    _, out, view = written
    with browser.Page((out / "slide.html").as_uri() + "#tile=3&opacity=35", tmp_path) as page:
        page.wait(LOADED)
        assert page.value(VIEW)[:2] == pytest.approx([view.tiles[2].x_px + 112, view.tiles[2].y_px + 112], abs=2)
        assert page.value("$('opacity').value + $('percent').textContent") == "3535 %"
        length = page.value("$('bar').firstChild.textContent").split()
        assert length[1] == "\u00b5m" and page.value("parseFloat($('bar').lastChild.style.width)") == pytest.approx(
            float(length[0]) / page.value(VIEW)[2], rel=0.01
        )
        page.click("#whole")
        page.wait(f"({VIEW})[2] > 2")
