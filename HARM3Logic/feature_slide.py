"""A file of tile features in a slide's place: what it must say, and the grid its coordinates give.

    X.h5 --feature_file.load--> features N F, corners N 2, attributes --the model's encoder, tiles, stain?--> FeatureSlide

The slide itself is not opened, so there are no pixels to show. CLAM's files say nothing of how they were made and TRIDENT's not with which
weights: there the case must name the encoder (`slide_encoder`), and whoever names it vouches for all the file leaves unsaid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from HARM3Logic import feature_file
from HARM3Logic.case import file_sha256
from HARM3Logic.errors import BadSlide
from HARM3Logic.slide_file import check_mpp
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileGrid, TileSettings, evenly
from HARM3Logic.tissue import Tissue, TissueSettings

EXACT, ROUNDED = 0.01, 0.05  # how far the µm per pixel may be off in files of ours, and in those that know a rounded magnification
NOT_OPENED = (
    "its tile features were read from a file and the slide itself was not opened, so there is no picture of its pixels and no viewer."
)


@dataclass(frozen=True)
class EncoderName:
    """The tile encoder whose features a model takes, where it need not be loaded.

    Args:
        features: length of a tile's feature vector; None where it is not known.
    """

    name: str
    weights_sha256: str
    features: int | None = None

    @classmethod
    def of(cls, encoder: TileEncoder | EncoderName) -> EncoderName:
        """The name of an encoder, loaded or not."""
        if isinstance(encoder, EncoderName):
            return encoder
        return cls(encoder.entry.name, encoder.weights_sha256, encoder.entry.features)


@dataclass(frozen=True)
class Wanted:
    """What the features of a model's tiles were made with.

    Args:
        stain: `Stain.about` of the normalisation; empty for none.
    """

    encoder: EncoderName
    tiles: TileSettings
    stain: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FeatureSlide:
    """The features of a slide's tiles and where these lie.

    Args:
        sha256: of the file.
        mpp: µm per level-0 pixel of the slide.
        grid: its tissue has no mask, only the fractions the file gives.
        warnings: what a reader should know.
    """

    path: Path
    sha256: str
    mpp: float
    features: Float32[np.ndarray, "N F"]
    grid: TileGrid
    warnings: tuple[str, ...]


def read(path: Path, wanted: Wanted, slide_mpp: float | None = None, stated: str = "") -> FeatureSlide:
    """The features in a file of ours, CLAM's or TRIDENT's, if a model may take them.

    Args:
        slide_mpp: µm per level-0 pixel, for files that do not say.
        stated: name of the encoder, for files that do not say its weights.

    Raises:
        BadSlide: the file cannot be used, does not fit what is wanted, or does not say enough.
    """
    found = feature_file.load(path)
    about, unsaid = found.about, "weights_sha256" not in found.about
    mpp = _mpp(path, about, slide_mpp)
    _check_encoder(path, about, found.features.shape[1], wanted, stated)
    size0_px = _check_tiles(path, about, found.coords, wanted.tiles, mpp)
    _check_stain(path, about, wanted.stain, unsaid)
    keep = evenly(len(found.coords), wanted.tiles.max_tiles or len(found.coords))
    grid = TileGrid(
        found.coords[keep],
        size0_px,
        size0_px * mpp / wanted.tiles.size_px,
        Tissue(np.zeros((0, 0), bool), 1.0, json.loads(about["quality"]) if found.sealed and "quality" in about else {}),
        max(int(_number(about, "tiles_found") or 0), len(found.coords)),
        TissueSettings(),
        wanted.tiles,
    )
    warnings: tuple[str, ...] = (NOT_OPENED,)
    if unsaid:
        warnings += (f"the file of its features does not say all that made them; as stated, they are taken for those of {stated}.",)
    return FeatureSlide(path, file_sha256(path), mpp, found.features[keep], grid, warnings)


def _bad(path: Path, what: str, advice: str) -> BadSlide:
    return BadSlide(f"feature file {str(path)!r} {what}", advice)


def _mpp(path: Path, about: Mapping[str, Any], given: float | None) -> float:
    said = _number(about, "slide_mpp")
    for value in (given, said):
        if value is not None:
            check_mpp(path, value)
    if said is None and given is None:
        advice = "Give it with --mpp or the column slide_mpp."
        raise _bad(path, "does not say the µm per pixel of its slide; sizes cannot be guessed.", advice)
    if said is not None and given is not None and abs(given / said - 1) > EXACT:
        what = f"was made of a slide of {said:g} µm per pixel; {given:g} is given."
        raise _bad(path, what, "Correct what is given, or make the features again with it.")
    return said or given or 0.0


def _check_encoder(path: Path, about: Mapping[str, Any], length: int, wanted: Wanted, stated: str) -> None:
    encoder = wanted.encoder
    taken = f"the model takes those of {encoder.name} ({encoder.weights_sha256[:12]})"
    said, digest = about.get("encoder"), about.get("weights_sha256")
    if digest is None and not stated:
        named = f"names its encoder {said!r} but not the weights" if said else "does not say which encoder made its features"
        tiles = f"tiles of {wanted.tiles.size_px} px" + (f" at {wanted.tiles.mpp:g} µm per pixel" if wanted.tiles.mpp else "")
        advice = f"If they are of {encoder.name} on {tiles}, say so with --slide-encoder {encoder.name} or the column slide_encoder."
        raise _bad(path, f"{named}; {taken}.", advice)
    again = f"Make them again with harm3 features --encoder {encoder.name}, or choose the checkpoint trained on them."
    if digest is None and stated != encoder.name:
        raise _bad(path, f"is stated to hold features of {stated}; {taken}.", again)
    if digest is not None and digest != encoder.weights_sha256:
        raise _bad(path, f"holds features of {said} ({str(digest)[:12]}); {taken}.", again)
    if encoder.features is not None and length != encoder.features:
        raise _bad(path, f"holds {length} features a tile; {encoder.name} has {encoder.features}.", again)


def _check_tiles(path: Path, about: Mapping[str, Any], coords: Int64[np.ndarray, "N 2"], tiles: TileSettings, mpp: float) -> float:
    """The edge of a tile in level-0 pixels."""
    fine = tiles.mpp or mpp
    size_px, size0_px = _number(about, "size_px", "patch_size"), _number(about, "size0_px", "patch_size_level0")
    wants = f"the model takes tiles of {tiles.size_px} px at {fine:g} µm per pixel."
    advice = "Make the features again at that size, or choose the checkpoint trained on them."
    if size_px is None or size0_px is None:  # CLAM's features; the distance of the tiles is all there is to go by
        step, scale = _step(coords), mpp / fine * tiles.size_px / (tiles.size_px - tiles.overlap_px)
        if step is not None and abs(step * scale / tiles.size_px - 1) > ROUNDED:
            raise _bad(path, f"has tiles {step} px of the slide apart, which is {step * mpp:.3g} µm; {wants}", advice)
        return tiles.size_px * fine / mpp
    own, limit = size0_px * mpp / size_px, EXACT if "size_px" in about else ROUNDED
    if size_px != tiles.size_px or abs(own / fine - 1) > limit:
        raise _bad(path, f"has tiles of {size_px:g} px at {own:.3g} µm per pixel; {wants}", advice)
    return size0_px


def _number(about: Mapping[str, Any], *names: str) -> float | None:
    """The first of some attributes that is there, as a number above 0; None where none is."""
    for name in names:
        try:
            value = float(about.get(name, 0))
        except (TypeError, ValueError):  # TRIDENT writes None as text
            continue
        if math.isfinite(value) and value > 0:
            return value
    return None


def _step(coords: Int64[np.ndarray, "N 2"]) -> int | None:
    """The commonest distance of neighbours in a row; None where there are too few."""
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    across, down = np.diff(coords[order], axis=0).T
    steps = across[(down == 0) & (across > 0)]
    return int(np.bincount(steps).argmax()) if len(steps) >= 3 else None


def _check_stain(path: Path, about: Mapping[str, Any], wanted: Mapping[str, str], unsaid: bool) -> None:
    said = {key: str(about[key]) for key in ("stain", "stain_target_sha256") if key in about}
    if said != dict(wanted) and not (unsaid and not said):  # what is not said was vouched for

        def words(stain: Mapping[str, str]) -> str:
            target = stain.get("stain_target_sha256", "")[:12]
            return (f"normalised by {stain['stain']}" + (f" to the picture {target}" if target else "")) if stain else "as it is"

        what = f"holds features of a stain {words(said)}; the model takes it {words(wanted)}."
        raise _bad(path, what, "Make the features again with the model's --stain and --stain-target, or none.")
