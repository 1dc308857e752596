"""All slides of a case as one bag of tile features.

case --open_slides--> slides, or files of features in their place, with their tile grids --features--> (N F), places in µm (N 2)
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

from HARM3Logic import feature_slide
from HARM3Logic.case import Case, holds_features
from HARM3Logic.errors import BadSlide
from HARM3Logic.feature_slide import EncoderName, FeatureSlide, Wanted
from HARM3Logic.features import slide_features
from HARM3Logic.slide import Slide, focused, tile_grid
from HARM3Logic.stain import Stain
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings
from HARM3Logic.tissue import TissueSettings

Slides = Sequence[tuple[Slide | FeatureSlide, TileGrid]]

# share of the tissue or slide above which a reader should know of it
LIMITS = {
    "pen": (0.005, "pen ink covers {:.1%} of it; ink and dark areas are left out."),
    "dark": (0.02, "black areas cover {:.1%} of it; ink and dark areas are left out."),
    "folds": (0.02, "folds cover {:.1%} of the tissue; they are read like the rest of it."),
    "blurred": (0.3, "out-of-focus tiles are {:.0%} of those looked at."),
}


@contextmanager
def open_slides(
    case: Case, tissue: TissueSettings, tiles: TileSettings, encoder: TileEncoder | EncoderName, stain: Stain | None = None
) -> Iterator[Slides]:
    """The slides of a case, open, with the tiles to be read; all that can make a slide useless is found here, before long work.

    Raises:
        BadSlide: a slide cannot be opened, does not say its µm per pixel, or shows no tissue; a file of features does not fit; the encoder
            is not loaded and a slide needs it.
    """
    wanted = Wanted(EncoderName.of(encoder), tiles, stain.about() if stain is not None else {})
    with ExitStack() as stack:

        def opened(path: Path) -> Slide | FeatureSlide:
            if holds_features(path):
                return feature_slide.read(path, wanted, case.slide_mpp, case.slide_encoder)
            if not isinstance(encoder, TileEncoder):
                raise BadSlide(f"slide {path.name!r} cannot be read: the tile encoder {encoder.name} is not loaded.", "Load it.")
            return stack.enter_context(Slide.open(path, case.slide_mpp))

        slides = [opened(path) for path in case.inputs.get("slide", ())]
        yield [(slide, slide.grid if isinstance(slide, FeatureSlide) else tile_grid(slide, tissue, tiles, focus=False)) for slide in slides]


def encodes(case: Case) -> bool:
    """Whether a case has a slide that must be encoded: one that is no file of features."""
    return not all(holds_features(path) for path in case.inputs.get("slide", ()))


def look(slide: Slide | FeatureSlide, grid: TileGrid) -> tuple[str, TileGrid]:
    """The hash of a slide and its grid with the focus judged: what may wait, and takes long on a large slide.

    Raises:
        BadSlide: the slide cannot be read.
    """
    return slide.sha256, grid if isinstance(slide, FeatureSlide) else focused(slide, grid)


def features(
    slides: Slides,
    encoder: TileEncoder | EncoderName,
    cache: Path | None,
    on_progress: Callable[[float], None],
    stain: Stain | None = None,
) -> tuple[Float[Tensor, "N F"], Float[Tensor, "N 2"]]:
    """The features of all tiles, and where their corners lie on their slide in µm.

    Args:
        encoder: loaded, unless all slides are files of features.
        cache: folder in which features are kept between runs.
        on_progress: told the share that is done, 0 to 1.
        stain: how the slides' colours are changed first; None leaves them.

    Raises:
        BadSlide, BadOption, OutOfMemory: as `slide_features`.
    """
    bags, places = [], []
    for number, (slide, grid) in enumerate(slides):

        def progress(share: float, number: int = number) -> None:
            on_progress((number + share) / len(slides))

        if isinstance(slide, Slide) and isinstance(encoder, TileEncoder):
            found = slide_features(slide, grid, encoder, cache, on_progress=progress, stain=stain)
        else:
            assert isinstance(slide, FeatureSlide)  # `open_slides` saw to it
            found = slide.features
            progress(1.0)
        bags.append(torch.from_numpy(found))
        places.append(torch.from_numpy(grid.xy_px.astype(np.float32) * np.float32(slide.mpp)))
    return torch.cat(bags), torch.cat(places)


def quality(slides: Slides, looked: Sequence[TileGrid]) -> list[tuple[str, str]]:
    """Warnings (code, sentence) about slides that can be used but should be looked at.

    Args:
        looked: their grids with the focus judged.
    """
    found = []
    for (slide, _), grid in zip(slides, looked, strict=True):
        code = "slide_features" if isinstance(slide, FeatureSlide) else "slide_file"
        found += [(code, f"slide: {sentence}") for sentence in slide.warnings]
        shares = grid.tissue.fractions
        for name, (limit, words) in LIMITS.items():
            if shares.get(name, 0.0) > limit:
                found.append((f"slide_{name}", f"slide: {words.format(shares[name])}"))
        if len(grid.xy_px) < grid.found:
            found.append(("slide_sampled", f"slide: {len(grid.xy_px)} of {grid.found} tiles are read, evenly over the tissue."))
    return found


def shares(looked: Sequence[TileGrid]) -> list[dict[str, Any]]:
    """For each slide the area of its tissue, and how much of what is stained is spoilt; None for what a file of features does not say.

    Args:
        looked: grids of the slides with the focus judged.
    """
    found = []
    for grid in looked:
        mask, fractions = grid.tissue.mask, grid.tissue.fractions
        found.append(
            {
                "tissue_mm2": float(mask.sum()) * (grid.tissue.downsample * grid.slide_mpp / 1000) ** 2 if mask.size else None,
                "tiles": len(grid.xy_px),
                "tiles_found": grid.found,
                "pen": fractions.get("stained_pen"),
                "dark": fractions.get("stained_dark"),
                "folds": fractions.get("folds"),
                "blurred": fractions.get("blurred"),
                "poor": [name for name, (limit, _) in LIMITS.items() if fractions.get(name, 0.0) > limit],  # there is a warning of these
            }
        )
    return found
