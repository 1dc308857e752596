"""A case's files to the tensors of a model: read, register, crop, resample, normalise, encode."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from HARM3Logic import bag, ct, mri, volume
from HARM3Logic.batch import Prepared
from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS, Case
from HARM3Logic.clinical import Schema
from HARM3Logic.errors import Cancelled, MissingInput
from HARM3Logic.feature_slide import EncoderName
from HARM3Logic.preprocessing import OnEvent, Preprocessing, silent
from HARM3Logic.stain import Stain
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.volume import Volume

__all__ = ["OnEvent", "Preprocessing", "prepare", "silent"]

NO_SCHEMA = Schema()


def prepare(
    case: Case,
    settings: Preprocessing,
    encoder: TileEncoder | EncoderName | None = None,
    *,
    wanted: Sequence[str] = (*MRI, "slide"),
    schema: Schema = NO_SCHEMA,
    images: dict[str, Volume] | None = None,
    cache: Path | None = None,
    ignore_masks: bool = False,
    on_event: OnEvent = silent,
) -> Prepared:
    """The tensors of a case, with the way back to each file's own grid.

    Args:
        encoder: None leaves the slide unread; its name is enough where files of features stand in the slides' place.
        wanted: what a model reads. Without the slide in it the slide stays unread; with any volume all volumes are read, since the grid
            and the registration depend on all of them.
        schema: of the clinical values.
        images: filled with the volumes as they were read, for whoever wants to show them.
        cache: folder in which tile features are kept between runs.
        ignore_masks: neither crop round the tumour nor carry its masks.

    Raises:
        MissingInput: MRI is wanted and the case has no volume, or the slide alone is and there is none.
        BadVolume, BadGeometry, BadSlide, BadClinical: a file or value cannot be used.
        Cancelled: raised by `on_event`.
    """
    if set(wanted) <= {"ct", "clinical"}:
        return ct.prepare(case, settings, schema, wanted, images=images, ignore_masks=ignore_masks, on_event=on_event)
    seeing = any(name in MRI for name in wanted)
    names = [name for name in MRI if name in case.inputs and seeing]
    if seeing and not names:
        raise MissingInput(f"case {case.case_id!r} has no MRI volume; at least one of {', '.join(MRI)} is wanted.", "Add one.")
    sliding = encoder is not None and "slide" in case.inputs and "slide" in wanted
    if not names and not sliding:
        raise MissingInput(f"case {case.case_id!r} has no slide, and nothing else is read.", "Add one.")
    with _workers() as pool, ExitStack() as files:
        slides: bag.Slides = ()
        if sliding and encoder is not None:
            on_event("stage", {"name": "reading the slide"})
            slides = files.enter_context(bag.open_slides(case, settings.tissue, settings.tiles, encoder, settings.stain))
        looking = [pool.submit(bag.look, *each) for each in slides]

        def place(listener: OnEvent) -> Prepared:
            found, told = _read(case, names, settings, pool, images, listener)
            masks = {} if ignore_masks or not names else mri.read_masks(case)
            placed = mri.place(case, found, masks, settings, pool, listener) if names else _without_mri(case, settings)
            grids = tuple(waiting.result() for waiting in looking)
            digests = {"slide": ",".join(digest for digest, _ in grids)} if grids else {}
            return replace(
                placed,
                tile_grids=grids,
                sha256={**placed.sha256, **digests},
                warnings=(*told, *placed.warnings, *bag.quality(slides, [grid for _, grid in grids])),
            )

        if encoder is None or not slides:
            return place(on_event)
        tiles, places, prepared = _encode_beside(place, slides, encoder, settings.stain, cache, pool, on_event)
        return replace(prepared, tiles=tiles, tile_xy_um=places)


def _read(
    case: Case, names: Sequence[str], settings: Preprocessing, pool: ThreadPoolExecutor, images: dict[str, Volume] | None, on_event: OnEvent
) -> tuple[dict[str, mri.Image], list[tuple[str, str]]]:
    """The volumes turned, each as soon as it is read, and what a reader should know of them; `images` gets them as they were read."""
    turning: dict[str, Future[tuple[mri.Image, mri.Warnings]]] = {}
    for name in names:
        on_event("stage", {"name": f"reading {name}"})
        read = volume.read(case.inputs[name][0])
        if images is not None:
            images[name] = read
        turning[name] = pool.submit(mri.turn, name, read, settings)
    turned = {name: waiting.result() for name, waiting in turning.items()}
    return {name: image for name, (image, _) in turned.items()}, [warning for _, told in turned.values() for warning in told]


def _without_mri(case: Case, settings: Preprocessing) -> Prepared:
    """The case with every volume absent."""
    grid = (len(TIMEPOINTS), len(SEQUENCES), *settings.shape)
    return Prepared(
        case_id=case.case_id,
        mri=torch.zeros(grid),
        mri_mask=torch.zeros(grid[:2], dtype=torch.bool),
        body=torch.zeros(settings.shape, dtype=torch.bool),
        label=case.label,
    )


@contextmanager
def _workers() -> Iterator[ThreadPoolExecutor]:
    """Threads for the volumes of a case, and one that waits for them; what has not begun when the block fails is dropped."""
    pool = ThreadPoolExecutor(1 + min(len(MRI), os.cpu_count() or 1), thread_name_prefix="volume")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _encode_beside(
    place: Callable[[OnEvent], Prepared],
    slides: bag.Slides,
    encoder: TileEncoder | EncoderName,
    stain: Stain | None,
    cache: Path | None,
    pool: ThreadPoolExecutor,
    on_event: OnEvent,
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N 2"], Prepared]:
    """The tiles' features and places, and the volumes placed at the same time; until they are, the encoder leaves cores to them."""
    turn, stopped = threading.Lock(), threading.Event()
    threads = torch.get_num_threads()

    def listener(event: str, values: dict[str, Any]) -> None:
        with turn:  # one thread after the other
            if stopped.is_set():
                raise Cancelled("stopped.", "Start it again.")
            on_event(event, values)

    def progress(share: float) -> None:
        if placing.done():
            placing.result()  # what failed there ends the encoding too
            torch.set_num_threads(threads)
        listener("progress", {"stage": "encoding tiles", "value": share})

    placing = pool.submit(place, listener)
    try:
        # Trap: torch's threads wait for each other in a loop; one too many on a full machine makes each step of theirs many times slower.
        torch.set_num_threads(max(1, threads - len(MRI)))
        tiles, places = bag.features(slides, encoder, cache, progress, stain)
    except BaseException:
        stopped.set()
        raise
    finally:
        torch.set_num_threads(threads)
    return tiles, places, placing.result()
