"""The features of a slide's tiles: in memory for a prediction, or in a file.

    Slide, TileGrid --read_batches--> tiles n S S 3 --TileEncoder--> features N F --> cache, or <slide>.h5

Tiles are streamed and features written as they come, so memory does not grow with the slide; a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from HARM3Logic import feature_file
from HARM3Logic.errors import Cancelled
from HARM3Logic.feature_file import Journal
from HARM3Logic.slide import Slide, read_batches, read_tiles
from HARM3Logic.stain import SAMPLE, Stain
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, evenly
from HARM3Logic.tissue import Tissue
from HARM3Logic.writing import whole

RECORD = 64  # tiles of a journal's record, at least
PICTURE_PX = 1024  # longer edge of the picture of a mask


def slide_features(
    slide: Slide,
    grid: TileGrid,
    encoder: TileEncoder,
    cache_dir: Path | None = None,
    on_progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    batch: int | None = None,
    stain: Stain | None = None,
) -> Float32[np.ndarray, "N F"]:
    """The features of the tiles of a slide, in the order of the grid.

    Args:
        cache_dir: folder that keeps them, one file for each slide and settings; None keeps nothing.
        on_progress: told the share that is done, 0 to 1.
        cancelled: asked before each batch.
        stain: how the slide's colours are changed first; None leaves them.

    Raises:
        Cancelled: `cancelled` said so; nothing is written.
        BadSlide: the pixels cannot be decoded.
        BadOption: the tiles do not have the encoder's size, or the cache cannot be written.
        OutOfMemory: `batch` tiles do not fit on the device.
    """
    batch = batch or encoder.fit()
    length, path, features = encoder.entry.features, None, None
    if cache_dir is not None:
        about = _about(slide, grid, encoder, batch, stain)
        name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
        path = feature_file.make_folder(cache_dir) / f"{name}.h5"  # before the work, not after it
        features = feature_file.read(path, about, grid.xy_px, length)
    if features is None:
        features = np.empty((len(grid.xy_px), length), np.float32)
        done = 0
        with closing(_encoded(slide, grid, encoder, batch, stain, cancelled)) as parts:
            for part in parts:
                features[done : done + len(part)] = part
                done += len(part)
                if on_progress is not None and done < len(features):
                    on_progress(done / len(features))
        if path is not None:
            feature_file.write(path, about, grid.xy_px, [features], length)
    if on_progress is not None:
        on_progress(1.0)
    return features


def _encoded(
    slide: Slide,
    grid: TileGrid,
    encoder: TileEncoder,
    batch: int,
    stain: Stain | None,
    cancelled: Callable[[], bool] | None = None,
    start: int = 0,
    pool: ThreadPoolExecutor | None = None,
) -> Generator[Float32[np.ndarray, "n F"], None, None]:
    """The features from tile `start` on, a batch at a time; the tiles of the next ones are being decoded meanwhile."""
    # Trap: torch's threads wait for each other in a loop; a reader on one of their cores would stop them all.
    turns = encoder.device.type == "cpu" and torch.get_num_threads() >= (os.cpu_count() or 1)
    change = None
    if stain is not None:
        sample = [read_tiles(slide, grid, k, k + 1) for k in evenly(len(grid.xy_px), SAMPLE).tolist()]
        change = stain.fit(np.concatenate(sample), slide.path.name)

    def tiles() -> Generator[np.ndarray, None, None]:
        done = start
        with closing(read_batches(slide, grid, batch, start=start, turns=turns, pool=pool)) as batches:
            while done < len(grid.xy_px):
                if cancelled is not None and cancelled():
                    raise Cancelled(f"stopped after {done} of {len(grid.xy_px)} tiles of {slide.path.name!r}.", "Start it again.")
                part = next(batches)
                done += len(part)
                yield part if change is None else change(part)

    with closing(tiles()) as parts:
        yield from encoder.encode_each(parts, batch)


def _about(slide: Slide, grid: TileGrid, encoder: TileEncoder, batch: int, stain: Stain | None = None) -> dict[str, str | float | int]:
    """All that a tile's features depend on."""
    return {
        **(stain.about() if stain is not None else {}),
        "slide_sha256": slide.sha256,
        "slide_mpp": slide.mpp,
        "mpp": grid.mpp,
        "size_px": grid.tile_settings.size_px,
        "size0_px": grid.size0_px,
        "settings": json.dumps({"tiles": asdict(grid.tile_settings), "tissue": asdict(grid.tissue_settings)}, sort_keys=True),
        "encoder": encoder.entry.name,
        "weights_sha256": encoder.weights_sha256,
        "precision": encoder.precision,
        "batch": batch,
    }


def write_features(
    slide: Slide,
    grid: TileGrid,
    encoder: TileEncoder,
    path: Path,
    on_progress: Callable[[int], None],
    batch: int | None = None,
    stain: Stain | None = None,
    cancelled: Callable[[], bool] | None = None,
    pool: ThreadPoolExecutor | None = None,
) -> bool:
    """Write the features of a slide; False where a good file of just these was there already.

    Stopped at any moment, the next call goes on from the last whole record of the journal beside the file.

    Args:
        on_progress: told the number of tiles that are done.
        cancelled: asked before each batch.
        pool: threads that decode, shared by several slides; None starts some for this one.

    Raises:
        BadSlide, BadOption, OutOfMemory, Cancelled: as `slide_features`; what was done is kept.
    """
    batch = batch or encoder.fit()
    length, rows = encoder.entry.features, batch * max(1, RECORD // batch)
    about = _about(slide, grid, encoder, batch, stain) | _facts(slide, grid)
    journal_path = path.with_name(f".{path.name}.part")
    if feature_file.is_good(path, about, grid.xy_px, length):
        journal_path.unlink(missing_ok=True)
        on_progress(len(grid.xy_px))
        return False
    with Journal(journal_path, about, grid.xy_px, length, rows) as journal:
        on_progress(journal.done)
        held: list[np.ndarray] = []
        with closing(_encoded(slide, grid, encoder, batch, stain, cancelled, journal.done, pool)) as parts:
            for part in parts:
                held.append(part)
                count = sum(map(len, held))
                if count == min(rows, len(grid.xy_px) - journal.done):
                    journal.add(np.concatenate(held))
                    held = []
                    on_progress(journal.done)
        journal.finish(path, about, grid.xy_px)
    return True


def _facts(slide: Slide, grid: TileGrid) -> dict[str, str | float | int]:
    """What a reader of the file wants to know besides."""
    return {
        "slide": slide.path.name,
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        "tiles_found": grid.found,
        "quality": json.dumps({name: round(share, 6) for name, share in grid.tissue.fractions.items()}, sort_keys=True),
        "warnings": json.dumps(slide.warnings),
    }


def save_mask(slide: Slide, found: Tissue, path: Path) -> None:
    """A picture of the slide, and beside it the same with all but the tissue darkened and ink and black areas yellow.

    Raises:
        BadOption: it cannot be written.
    """
    picture = slide.thumbnail(PICTURE_PX)

    def place(mask: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(mask).resize(picture.shape[1::-1], Image.Resampling.NEAREST))[..., None]

    shown = np.where(place(found.mask), picture, picture // 4)
    if found.artefacts is not None:
        shown = np.where(place(found.artefacts), np.array([255, 210, 0], np.uint8), shown)
    try:
        with whole(path) as temporary:
            Image.fromarray(np.concatenate([picture, shown], axis=1)).save(temporary, "png")
    except OSError as error:
        raise feature_file.cannot_write(path, error) from error
