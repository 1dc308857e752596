"""The colours of a slide brought to those of a reference, by its stains or by its colour statistics.

    sample of the slide's tiles --fit--> its stains; tiles n S S 3 --its stains to the reference's--> tiles n S S 3

Measured once on the whole slide, not tile by tile: a tile with little tissue says nothing about the stain. The only home of torchstain,
which measures; the change of the pixels is ours. Off unless asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from HARM3Logic.errors import BadOption, BadSlide

SHAPES = {"macenko": (2, 2, 2, 2), "reinhard": (3, 3)}  # lengths of the rows of `Stain.colours`
METHODS = tuple(SHAPES)
LIGHT = 240.0  # brightness of empty glass that torchstain assumes
STAINED = 206  # brightest channel below it is dense enough for torchstain (0.15)
FEWEST = 100  # such pixels that are needed
SAMPLE = 64  # tiles a slide's stain is measured on

Pixels = UInt8[np.ndarray, "*n S S 3"]


@dataclass(frozen=True)
class Stain:
    """A method and the colours that are wanted; plain values, so that a checkpoint can carry them.

    Args:
        method: `macenko` (stains: Macenko et al. 2009, doi 10.1109/ISBI.2009.5193250) or `reinhard` (statistics of colour: Reinhard et
            al. 2001, doi 10.1109/38.946629).
        target_sha256: of the picture the colours were measured on; empty for the reference that comes with Macenko's method.
        colours: macenko: red, green and blue of the two stains, then how much of each there is; reinhard: means, then spreads of L, a, b.

    Raises:
        BadOption: the method is not known, or its colours are not those of a measured picture.
    """

    method: str
    target_sha256: str = ""
    colours: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadOption(f"stain method {self.method!r} is not known; there are {', '.join(METHODS)}.", "Choose one.")
        if self.method == "reinhard" and not self.colours:
            raise BadOption("reinhard has no reference of its own.", "Give a picture of H&E with --stain-target.")
        shape = tuple(len(row) for row in self.colours)
        if shape not in ((), SHAPES[self.method]) or bool(shape) != bool(self.target_sha256):
            raise BadOption(f"the colours of a {self.method} stain are {self.colours!r}; a measured picture's are wanted.", "Use Stain.of.")

    @classmethod
    def of(cls, method: str, target: Path | None = None) -> Stain:
        """A method with the colours of a picture of H&E; without one, with the method's own.

        Raises:
            BadOption: the method is not known or needs a picture, the picture cannot be used, or torchstain is not installed.
        """
        if target is None or method not in METHODS:
            made = cls(method)
            made.ready()
            return made
        found = _normalizer(method)
        if not _measure(found, _picture(target)):
            raise BadOption(f"stain target {os.fspath(target)!r} shows too little stain to measure it.", "Choose a picture of H&E.")
        rows = (*found.HERef, found.maxCRef) if method == "macenko" else (found.target_means, found.target_stds)
        digest = hashlib.sha256(target.read_bytes()).hexdigest()
        return cls(method, digest, tuple(tuple(float(v) for v in row) for row in rows))

    def about(self) -> dict[str, str]:
        """What the features depend on."""
        return {"stain": self.method, "stain_target_sha256": self.target_sha256}

    def ready(self) -> None:
        """Refuse to begin where torchstain is missing.

        Raises:
            BadOption: it is not installed.
        """
        _normalizer(self.method)

    def fit(self, sample: UInt8[np.ndarray, "n S S 3"], slide: str) -> Callable[[Pixels], Pixels]:
        """What brings the tiles of a slide to the reference.

        Args:
            sample: tiles of tissue from all over it.

        Raises:
            BadSlide: the sample shows no stain.
            BadOption: torchstain is not installed.
        """
        wanted, own = _normalizer(self.method), _normalizer(self.method)
        rows = np.array(self.colours)
        if self.method == "macenko" and self.colours:
            wanted.HERef, wanted.maxCRef = rows[:3], rows[3]
        elif self.colours:
            wanted.target_means, wanted.target_stds = rows
        if not _measure(own, sample.reshape(-1, sample.shape[-2], 3)):
            raise BadSlide(f"slide {slide!r} shows too little stain to measure it.", "Leave the stain as it is, or check the slide.")
        return _macenko(own, wanted) if self.method == "macenko" else _reinhard(own, wanted)


def _measure(normalizer: Any, picture: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Measure the colours of a picture; False where too few of its pixels are stained."""
    if (picture.max(axis=-1) < STAINED).sum() < FEWEST:
        return False
    normalizer.fit(picture)
    return all(
        bool(np.isfinite(found).all() and (found > 0).all())
        for found in (getattr(normalizer, name, None) for name in ("maxCRef", "target_stds"))
        if found is not None
    )


def _macenko(own: Any, wanted: Any) -> Callable[[Pixels], Pixels]:
    """Optical densities split into the slide's two stains, each scaled to the reference's, mixed with the reference's colours."""
    mix = wanted.HERef @ np.diag(wanted.maxCRef / own.maxCRef) @ np.linalg.pinv(own.HERef)
    density = (-np.log((np.arange(256) + 1.0) / LIGHT)).astype(np.float32)  # by brightness; one is added so that 0 has a logarithm
    mix = mix.astype(np.float32)

    def change(tiles: Pixels) -> Pixels:
        bright = LIGHT * np.exp(-(density[tiles] @ mix.T))
        return np.asarray(np.clip(bright, 0, 255).astype(np.uint8))

    return change


def _reinhard(own: Any, wanted: Any) -> Callable[[Pixels], Pixels]:
    """Mean and spread of L, a and b of the slide's colours moved to the reference's."""
    from torchstain.numpy.utils.lab2rgb import lab2rgb
    from torchstain.numpy.utils.rgb2lab import rgb2lab

    scale = wanted.target_stds / own.target_stds
    unit, zero = np.array([2.55, 1, 1], np.float32), np.array([0, 128, 128], np.float32)  # torchstain's conversions work on bytes

    def change(tiles: Pixels) -> Pixels:
        lab = (rgb2lab(tiles.astype(np.float32) / 255) - zero) / unit
        lab = (lab - own.target_means) * scale + wanted.target_means
        return np.asarray((lab2rgb(lab * unit + zero) * 255).astype(np.uint8))

    return change


def _normalizer(method: str) -> Any:
    try:
        from torchstain.base.normalizers import MacenkoNormalizer, ReinhardNormalizer
    except ImportError as error:
        raise BadOption("stain normalisation needs torchstain, which is not installed.", 'pip install "harm3slicer[stain]"') from error
    return (MacenkoNormalizer if method == "macenko" else ReinhardNormalizer)(backend="numpy")


def _picture(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise BadOption(f"stain target {os.fspath(path)!r} cannot be read as a picture ({error}).", "Give a PNG, JPEG or TIFF.") from error
