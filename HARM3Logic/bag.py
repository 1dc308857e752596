"""All slides of a case as one bag of tile features.

case --open_slides--> slides with their tile grids --features--> (N F), places in µm (N 2)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from HARM3Logic.case import Case
from HARM3Logic.features import slide_features
from HARM3Logic.slide import Slide, focused, tile_grid
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings
from HARM3Logic.tissue import TissueSettings

Slides = Sequence[tuple[Slide, TileGrid]]

# share of the tissue or slide above which a reader should know of it
LIMITS = {"pen": (0.005, "pen ink covers"), "dark": (0.02, "folds or dark areas cover"), "blurred": (0.3, "out-of-focus tiles are")}


@contextmanager
def open_slides(case: Case, tissue: TissueSettings, tiles: TileSettings) -> Iterator[Slides]:
    """The slides of a case, open, with the tiles to be read; all that can make a slide useless is found here, before long work.

    Raises:
        BadSlide: a slide cannot be opened, does not say its µm per pixel, or shows no tissue.
    """
    with ExitStack() as stack:
        slides = [stack.enter_context(Slide.open(path, case.slide_mpp)) for path in case.inputs.get("slide", ())]
        yield [(slide, tile_grid(slide, tissue, tiles, focus=False)) for slide in slides]


def look(slide: Slide, grid: TileGrid) -> tuple[str, TileGrid]:
    """The hash of a slide and its grid with the focus judged: what may wait, and takes long on a large slide.

    Raises:
        BadSlide: the slide cannot be read.
    """
    return slide.sha256, focused(slide, grid)


def features(
    slides: Slides, encoder: TileEncoder, cache: Path | None, on_progress: Callable[[float], None]
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N 2"]]:
    """The features of all tiles, and where their corners lie on their slide in µm.

    Args:
        cache: folder in which features are kept between runs.
        on_progress: told the share that is done, 0 to 1.

    Raises:
        BadSlide, BadOption, OutOfMemory: as `slide_features`.
    """
    bags, places = [], []
    for number, (slide, grid) in enumerate(slides):

        def progress(share: float, number: int = number) -> None:
            on_progress((number + share) / len(slides))

        bags.append(torch.from_numpy(slide_features(slide, grid, encoder, cache, on_progress=progress)))
        places.append(torch.from_numpy(grid.xy_px.astype(np.float32) * np.float32(slide.mpp)))
    return torch.cat(bags), torch.cat(places)


def quality(slides: Slides, looked: Sequence[TileGrid]) -> list[tuple[str, str]]:
    """Warnings (code, sentence) about slides that can be used but should be looked at.

    Args:
        looked: their grids with the focus judged.
    """
    found = []
    for (slide, _), grid in zip(slides, looked, strict=True):
        found += [("slide_file", f"slide: {sentence}") for sentence in slide.warnings]
        shares = grid.tissue.fractions
        found += [
            (f"slide_{name}", f"slide: {words} {shares[name]:.1%} of it; ink and dark areas are left out." if name != "blurred" else
             f"slide: {words} {shares[name]:.0%} of those looked at.")
            for name, (limit, words) in LIMITS.items() if shares.get(name, 0.0) > limit
        ]  # fmt: skip
        if len(grid.xy_px) < grid.found:
            found.append(("slide_sampled", f"slide: {len(grid.xy_px)} of {grid.found} tiles are read, evenly over the tissue."))
    return found


def shares(looked: Sequence[TileGrid]) -> list[dict[str, Any]]:
    """For each slide the area of its tissue, and how much of what is stained is spoilt.

    Args:
        looked: grids of the slides with the focus judged.
    """
    found = []
    for grid in looked:
        fractions = grid.tissue.fractions
        mpp = grid.mpp * grid.tile_settings.size_px / grid.size0_px  # of level 0
        found.append(
            {
                "tissue_mm2": float(grid.tissue.mask.sum()) * (grid.tissue.downsample * mpp / 1000) ** 2,
                "tiles": len(grid.xy_px),
                "tiles_found": grid.found,
                "pen": fractions["stained_pen"],
                "dark": fractions["stained_dark"],
                "blurred": fractions.get("blurred"),
                "poor": [name for name, (limit, _) in LIMITS.items() if fractions.get(name, 0.0) > limit],  # there is a warning of these
            }
        )
    return found
