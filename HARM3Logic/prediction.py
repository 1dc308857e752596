"""What came out for one case, and its files."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from HARM3Logic import geojson, report, volume
from HARM3Logic.case import INPUTS
from HARM3Logic.errors import BadOption
from HARM3Logic.picture import png
from HARM3Logic.slide_view import SlideView, TileAttention, attention_table, levels
from HARM3Logic.volume import Grid, Volume
from HARM3Logic.writing import write_text

SLIDE_FILES = ("slide_thumbnail.png", "slide_attention.png", "slide_attention.nrrd", "tiles.geojson")
TILE_FILES = ("slide_attention_tiles.png", "slide_attention_tiles.nrrd")
VIEWER_FILES = ("slide.html", "slide_files")
NO_TISSUE = "slide_tissue.png"  # left by an earlier run that found none
Viewer = Callable[[SlideView, Path, str], bool]


@dataclass(frozen=True)
class Prediction:
    """What came out for one case; `values` is the content of `prediction.json`.

    Args:
        heatmaps: input to its Grad-CAM on the input's own grid, 0 to 1 on one scale for all inputs.
        raw: input to its Grad-CAM on the model grid (logit units).
        slide: the one with most attention; None without one.
        tiles: all of that slide.
    """

    values: Mapping[str, Any]
    heatmaps: Mapping[str, Volume]
    raw: Mapping[str, Float[np.ndarray, "D H W"]]
    slide: SlideView | None
    html: str
    tiles: TileAttention | None = None

    @property
    def case_id(self) -> str:
        return str(self.values["case_id"])

    @property
    def probability(self) -> float:
        return float(self.values["probability"])

    @property
    def decision(self) -> str:
        return str(self.values["decision"])

    def write(self, out: str | os.PathLike[str], viewer: Viewer | None = None) -> Path:
        """Write every file into `out`; `prediction.json`, whose presence says the rest is whole, comes last.

        Args:
            viewer: writes the slide viewer into a folder, such as `viewer.write_viewer`; None leaves it out.

        Raises:
            BadOption: the folder cannot be written.
            BadSlide: the slide cannot be read any more.
        """
        out = writable(out)
        work = out / f".writing.{os.getpid()}"
        try:
            for left in out.glob(".writing.*"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            work.mkdir()
            self._write_files(work, viewer)
            old = ("prediction.json", NO_TISSUE, *SLIDE_FILES, *TILE_FILES, *VIEWER_FILES, *(f"heatmap_{name}.nrrd" for name in INPUTS))
            for name in old:  # nothing of an earlier prediction may stay beside this one
                _remove(out / name)
            for file in sorted(work.iterdir()):
                file.replace(out / file.name)
            write_text(out / "prediction.json", json.dumps(self.values, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BadOption(
                f"results cannot be written to {str(out)!r} ({error.strerror}).", "Free room or choose another folder."
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return out

    def _write_files(self, folder: Path, viewer: Viewer | None) -> None:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            work: list[Future[Any]] = [pool.submit(volume.write, v, folder / f"heatmap_{name}.nrrd") for name, v in self.heatmaps.items()]
            raw: dict[str, Any] = dict(self.raw)
            work.append(pool.submit(np.savez_compressed, folder / "heatmap_raw.npz", **raw))
            if self.slide is not None:
                work.append(pool.submit(_write_picture, self.slide.thumbnail, folder / "slide_thumbnail.png"))
                work.append(pool.submit(_write_picture, self.slide.picture, folder / "slide_attention.png"))
                work.append(pool.submit(volume.write, _flat(self.slide), folder / "slide_attention.nrrd"))
            if self.tiles is not None:
                (folder / "slide_attention_tiles.png").write_bytes(png(levels(self.tiles.by_tile), attention_table()))
                if self.slide is not None:
                    work.append(pool.submit(volume.write, _by_tile(self.slide, self.tiles), folder / "slide_attention_tiles.nrrd"))
                outlines = (folder / "tiles.geojson", self.values["tiles"], self.tiles.tile_px, self.tiles.xy_px, self.tiles.weight)
                work.append(pool.submit(geojson.write_tiles, *outlines))
            looked = self.slide if self.slide is not None and self.slide.source is not None else None  # there are pixels to walk about in
            seen = viewer is not None and looked is not None and viewer(looked, folder, self.case_id)
            (folder / "report.html").write_text(report.with_viewer(self.html) if seen else self.html, encoding="utf-8")
            for written in work:
                written.result()


def _write_picture(pixels: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    # run lengths alone: as small as the default on such pictures, in a quarter of the time
    Image.fromarray(pixels).save(path, compress_level=1, compress_type=zlib.Z_RLE)


def _flat(slide: SlideView) -> Volume:
    """The attention as a volume of one slice."""
    return _slice(slide.attention, slide.mm_per_px, 0.0)


def _by_tile(slide: SlideView, tiles: TileAttention) -> Volume:
    """The attention with one pixel for each tile, in the frame of `_flat`: 0 mm is the middle of the thumbnail's first pixel."""
    mm = tiles.mpp / 1000
    return _slice(tiles.by_tile, tiles.step_px * mm, tiles.tile_px * mm / 2 - slide.mm_per_px / 2)


def _slice(values: Float32[np.ndarray, "h w"], mm_per_px: float, first_mm: float) -> Volume:
    height, width = values.shape
    size, spacing, origin = (width, height, 1), (mm_per_px, mm_per_px, 1.0), (first_mm, first_mm, 0.0)
    return Volume(values[None], Grid(size, spacing, origin, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def writable(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        BadOption: it cannot be made or written; told before any work is done.
    """
    folder = Path(folder)
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadOption(f"the output folder {str(folder)!r} cannot be written ({error.strerror}).", "Choose another with --out.") from error
    return folder
