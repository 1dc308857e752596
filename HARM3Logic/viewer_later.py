"""The slide viewer for a case that is predicted already, from its folder and its slide; no model runs.

prediction.json, tiles.geojson, slide --tissue found again, ranked tiles cut again--> slide.html, slide_files/
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from HARM3Logic import report
from HARM3Logic.case import Case, holds_features
from HARM3Logic.errors import BadOption, BadSlide, MissingInput
from HARM3Logic.slide import Slide, reader_count, tile_grid
from HARM3Logic.slide_view import SlideView, TileView
from HARM3Logic.tile_reader import read_tile
from HARM3Logic.tiles import TileSettings
from HARM3Logic.tissue import TissueSettings
from HARM3Logic.viewer import source_of, write_viewer
from HARM3Logic.writing import write_text

BLANK = np.zeros((1, 1), np.float32)  # of the small picture, which the viewer does not show


def add_viewer(case: Case, folder: Path, tissue: TissueSettings, tiles: TileSettings) -> bool:
    """Write `slide.html` and `slide_files/` into a finished case's folder and link them in its report; False where they are there already.

    Args:
        tissue: how it was found for the prediction; likewise `tiles`.

    Raises:
        MissingInput: the prediction has no slide to show.
        BadSlide: the slide cannot be read, or is not the one that was predicted from.
        BadOption: the viewer's library is not installed, or the folder cannot be written.
    """
    if (folder / "slide.html").is_file():
        return False
    view = _view(case, folder, tissue, tiles)
    work = folder / f".writing.{os.getpid()}"
    try:
        for left in (*folder.glob(".writing.*"), folder / "slide_files"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        work.mkdir()
        write_viewer(view, work, case.case_id)
        for name in ("slide_files", "slide.html"):
            (work / name).replace(folder / name)
        page = folder / "report.html"
        write_text(page, report.with_viewer(page.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadOption(f"the viewer cannot be written to {str(folder)!r} ({error.strerror}).", "Free room in it.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return True


def _view(case: Case, folder: Path, tissue: TissueSettings, tiles: TileSettings) -> SlideView:
    values: dict[str, Any] = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    said, paths = values.get("slide"), case.inputs.get("slide", ())
    if said is None or not paths:
        raise MissingInput(f"the prediction of {case.case_id!r} has no slide to show.", "Give the slide and predict again.")
    number = said.get("number", 1 if len(paths) == 1 else 0)  # of several slides, older predictions do not say which they show
    if not 1 <= number <= len(paths) or holds_features(paths[number - 1]):
        raise MissingInput(f"the prediction of {case.case_id!r} does not show one of its {len(paths)} slides.", "Predict it again.")
    with Slide.open(paths[number - 1], case.slide_mpp) as slide, ThreadPoolExecutor(reader_count()) as pool:
        if slide.sha256 != values["inputs"]["slide"]["sha256"].split(",")[number - 1]:
            raise BadSlide(f"slide {slide.path.name!r} is not the one {case.case_id!r} was predicted from.", "Predict it again.")
        grid = tile_grid(slide, tissue, tiles, focus=False)
        weight = _weights(folder / "tiles.geojson")
        attention = np.array([weight.pop((x, y), 0.0) for x, y in grid.xy_px.tolist()])
        if weight:
            raise BadSlide(f"{len(weight)} tiles of the prediction of {case.case_id!r} are not found on its slide.", "Predict it again.")

        def tile(found: dict[str, Any]) -> TileView:
            return TileView(**found, image=read_tile(slide, found["x_px"], found["y_px"], grid.size0_px, tiles.size_px))

        ranked = tuple(pool.map(tile, values["tiles"]))
        source = source_of(slide, grid, attention / attention.max())
        size = (slide.width_px, slide.height_px)
    return SlideView(np.zeros((1, 1, 3), np.uint8), BLANK, said["thumbnail_mm_per_px"], ranked, size, grid.size0_px, source)


def _weights(path: Path) -> dict[tuple[int, int], float]:
    """Attention of the tiles by their upper left corners."""
    try:
        features = json.loads(path.read_text(encoding="utf-8"))["features"]
    except OSError as error:
        raise MissingInput(f"{str(path)!r} cannot be read ({error.strerror}).", "Predict the case again.") from error
    return {tuple(f["geometry"]["coordinates"][0][0]): f["properties"]["measurements"]["attention"] for f in features}
