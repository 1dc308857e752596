"""The features of many slides, one file each: a warm encoder on each device, and one pool of readers for all.

slides --whichever encoder is free--> DIR/<slide>.h5
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from HARM3Logic import feature_file, geojson
from HARM3Logic.errors import BadOption, BadSlide, Cancelled, HARM3Error
from HARM3Logic.features import save_mask, write_features
from HARM3Logic.slide import NoTissue, Slide, reader_count, tile_grid
from HARM3Logic.stain import Stain
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings
from HARM3Logic.tissue import Tissue, TissueSettings
from HARM3Logic.writing import whole

Progress = Callable[[str, int, int], None]  # name of the slide, tiles in all, tiles done
Worker = TypeVar("Worker")
Item = TypeVar("Item")


def write_collection(
    paths: Sequence[Path],
    encoders: TileEncoder | Sequence[TileEncoder],
    out: Path,
    *,
    mpp: float | None = None,
    tissue: TissueSettings | None = None,
    tiles: TileSettings | None = None,
    stain: Stain | None = None,
    outlines: bool = False,
    clam: bool = False,
    on_slide: Callable[[Slide, TileGrid], None] = lambda *_: None,
    on_progress: Progress = lambda *_: None,
) -> list[HARM3Error]:
    """Write `OUT/<slide>.h5` for each slide; why slides failed, in their order, the others are written.

    Args:
        encoders: one, or the same on several devices, which take slides in turn.
        mpp: true µm per level-0 pixel of all of them; None takes what each file says.
        tiles: None takes the size and the µm per pixel the encoder was made for.
        outlines: write the tissue as `OUT/<slide>.geojson` too.
        clam: write `OUT/h5_files/<slide>.h5` and `OUT/pt_files/<slide>.pt`, where CLAM's training looks for them.
        on_slide: told of each before it is encoded.
        on_progress: likewise of its tiles; both one call at a time, from any thread, and what they raise stops the work.

    Raises:
        BadOption: two slides have one name, or the folder cannot be made.
    """
    each = [encoders] if isinstance(encoders, TileEncoder) else list(encoders)
    entry = each[0].entry
    tiles = tiles or TileSettings(size_px=entry.size_px, mpp=entry.mpp)
    folder = feature_file.make_folder(out / "h5_files" if clam else out)
    turn, stopped = threading.Lock(), threading.Event()

    def tell(name: str, count: int, done: int) -> None:
        with turn:
            on_progress(name, count, done)

    with ThreadPoolExecutor(reader_count(), thread_name_prefix="slide") as readers:

        def write(encoder: TileEncoder, named: tuple[str, Path]) -> None:
            name, path = named
            with Slide.open(path, mpp) as slide:
                grid = _grid(slide, tissue or TissueSettings(), tiles, out / name)
                with turn:
                    on_slide(slide, grid)
                if outlines:
                    _outline(slide, grid.tissue, out / f"{name}.geojson")
                file, say = folder / f"{name}.h5", partial(tell, name, len(grid.xy_px))
                new = write_features(slide, grid, encoder, file, say, stain=stain, cancelled=stopped.is_set, pool=readers)
                if clam:
                    _tensor_file(file, feature_file.make_folder(out / "pt_files") / f"{name}.pt", new)

        return in_turn(list(_names(paths).items()), each, write, stopped)


def in_turn(
    items: Sequence[Item], workers: Sequence[Worker], do: Callable[[Worker, Item], None], stopped: threading.Event
) -> list[HARM3Error]:
    """Have each item done once, by whichever worker is free; the slides that cannot be read, in the order of the items.

    Args:
        stopped: set when any other error ends the work; `do` should look at it.

    Raises:
        What `do` raises but BadSlide; the other workers have ended then.
    """
    waiting, failures = deque(enumerate(items)), dict[int, HARM3Error]()

    def work(worker: Worker) -> None:
        while not stopped.is_set():
            try:
                number, item = waiting.popleft()
            except IndexError:
                return
            try:
                do(worker, item)
            except BadSlide as error:
                failures[number] = error
            except BaseException:
                stopped.set()
                raise

    if len(workers) == 1:
        work(workers[0])
    else:
        with ThreadPoolExecutor(len(workers), thread_name_prefix="encoder") as pool:
            running = [pool.submit(work, worker) for worker in workers]
            try:
                wait(running)
            except BaseException:  # Ctrl-C
                stopped.set()
                raise
        errors = [error for each in running if (error := each.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, Cancelled)):  # who was stopped last says nothing of why
            raise error
    return [failures[number] for number in sorted(failures)]


def _outline(slide: Slide, tissue: Tissue, path: Path) -> None:
    try:
        geojson.write_tissue(path, tissue.mask, tissue.downsample, (slide.width_px, slide.height_px))
    except OSError as error:
        raise feature_file.cannot_write(path, error) from error


def _tensor_file(path: Path, out: Path, new: bool) -> None:
    """The features as the tensor CLAM's training loads."""
    if out.is_file() and not new:
        return
    try:
        with whole(out) as temporary:
            torch.save(torch.from_numpy(feature_file.load(path).features), temporary)
    except (OSError, RuntimeError) as error:
        raise feature_file.cannot_write(out, error) from error


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
