"""The features of a slide's tiles: in memory for a prediction, on disk for a collection of slides.

    Slide, TileGrid --read_batches--> tiles n S S 3 --TileEncoder--> features N F --> cache, or DIR/<slide>.h5

Tiles are streamed and features written as they come, so memory does not grow with the slide; a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from HARM3Logic import feature_file, geojson
from HARM3Logic.errors import BadOption, BadSlide, Cancelled, HARM3Error
from HARM3Logic.feature_file import Journal
from HARM3Logic.slide import NoTissue, Slide, read_batches, read_tiles, tile_grid
from HARM3Logic.stain import SAMPLE, StainSettings
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings, evenly
from HARM3Logic.tissue import Tissue, TissueSettings

Progress = Callable[[str, int, int], None]  # name of the slide, tiles in all, tiles done
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
    stain: StainSettings | None = None,
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
    stain: StainSettings | None,
    cancelled: Callable[[], bool] | None = None,
    start: int = 0,
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
        with closing(read_batches(slide, grid, batch, start=start, turns=turns)) as batches:
            while done < len(grid.xy_px):
                if cancelled is not None and cancelled():
                    raise Cancelled(f"stopped after {done} of {len(grid.xy_px)} tiles of {slide.path.name!r}.", "Start it again.")
                part = next(batches)
                done += len(part)
                yield part if change is None else change(part)

    with closing(tiles()) as parts:
        yield from encoder.encode_each(parts, batch)


def _about(
    slide: Slide, grid: TileGrid, encoder: TileEncoder, batch: int, stain: StainSettings | None = None
) -> dict[str, str | float | int]:
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
    stain: StainSettings | None = None,
) -> bool:
    """Write the features of a slide; False where a good file of just these was there already.

    Stopped at any moment, the next call goes on from the last whole record of the journal beside the file.

    Args:
        on_progress: told the number of tiles that are done.

    Raises:
        BadSlide, BadOption, OutOfMemory: as `slide_features`; what was done is kept.
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
        with closing(_encoded(slide, grid, encoder, batch, stain, start=journal.done)) as parts:
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


def write_collection(
    paths: Sequence[Path],
    encoder: TileEncoder,
    out: Path,
    *,
    mpp: float | None = None,
    tissue: TissueSettings | None = None,
    tiles: TileSettings | None = None,
    stain: StainSettings | None = None,
    outlines: bool = False,
    clam: bool = False,
    on_progress: Progress = lambda *_: None,
) -> list[HARM3Error]:
    """Write `OUT/<slide>.h5` for each slide with one warm encoder; why slides failed, the others are written.

    Args:
        mpp: true µm per level-0 pixel of all of them; None takes what each file says.
        tiles: None takes the size and the µm per pixel the encoder was made for.
        outlines: write the tissue as `OUT/<slide>.geojson` too.
        clam: write `OUT/h5_files/<slide>.h5` and `OUT/pt_files/<slide>.pt`, where CLAM's training looks for them.

    Raises:
        BadOption: two slides have one name, or the folder cannot be made.
    """
    tiles = tiles or TileSettings(size_px=encoder.entry.size_px, mpp=encoder.entry.mpp)
    folder = feature_file.make_folder(out / "h5_files" if clam else out)
    names = _names(paths)
    failures: list[HARM3Error] = []
    for name, path in names.items():
        try:
            with Slide.open(path, mpp) as slide:
                grid = _grid(slide, tissue or TissueSettings(), tiles, out / name)
                if outlines:
                    _outline(slide, grid.tissue, out / f"{name}.geojson")
                tell = partial(on_progress, name, len(grid.xy_px))
                new = write_features(slide, grid, encoder, folder / f"{name}.h5", tell, stain=stain)
                if clam:
                    _tensor_file(folder / f"{name}.h5", feature_file.make_folder(out / "pt_files") / f"{name}.pt", new)
        except BadSlide as error:
            failures.append(error)
    return failures


def _outline(slide: Slide, tissue: Tissue, path: Path) -> None:
    try:
        geojson.write_tissue(path, tissue.mask, tissue.downsample, (slide.width_px, slide.height_px))
    except OSError as error:
        raise feature_file.cannot_write(path, error) from error


def _tensor_file(path: Path, out: Path, new: bool) -> None:
    """The features as the tensor CLAM's training loads."""
    if out.is_file() and not new:
        return
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        torch.save(torch.from_numpy(feature_file.load(path).features), temporary)
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        raise feature_file.cannot_write(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """What each slide's file is called: as the slide, with its folder before it where several slides have one name."""
    short = [path.name if path.is_dir() else path.stem for path in paths]
    names: dict[str, Path] = {}
    for path, name in zip(paths, short, strict=True):
        name = name if short.count(name) == 1 else f"{path.absolute().parent.name}_{name}"
        if name in names:
            raise BadOption(f"{str(names[name])!r} and {str(path)!r} would both become {name}.h5.", "Give them in separate runs.")
        names[name] = path
    return names


def _grid(slide: Slide, tissue: TissueSettings, tiles: TileSettings, beside: Path) -> TileGrid:
    try:
        return tile_grid(slide, tissue, tiles)
    except NoTissue as error:
        picture = beside.with_name(f"{beside.name}.tissue.png")
        save_mask(slide, error.tissue, picture)
        raise BadSlide(error.message, f"{error.advice} What was taken for tissue is shown in {str(picture)!r}.") from error


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(np.concatenate([picture, shown], axis=1)).save(temporary, "png")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise feature_file.cannot_write(path, error) from error
