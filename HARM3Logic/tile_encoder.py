"""A frozen network that turns the tiles of a slide into features.

    tiles n S S 3 --(x/255 - mean)/std--> n 3 S S --timm model--> tokens n L E --pooling--> features n F

An encoder is one `.safetensors` file, weights with an `EncoderEntry` in its metadata; or a name of `encoders` and the weight file its
makers gave; or, where the user asks for it, a foreign program.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from HARM3Logic import foreign_encoder
from HARM3Logic.case import file_sha256
from HARM3Logic.device import Precision, best_precision
from HARM3Logic.encoder_weights import build, read_entry, read_weights, renamed, save_encoder
from HARM3Logic.encoders import KNOWN, EncoderEntry, Known, Pooling
from HARM3Logic.errors import BadCheckpoint, BadOption, OutOfMemory

__all__ = ["EncoderEntry", "Pooling", "TileEncoder", "default_path", "read_entry", "save_encoder", "shipped"]

BATCH = {"cpu": 4, "cuda": 64, "mps": 16}  # tiles at a time; on CPUs as fast as more (72 ms a tile), and the last batch wastes less
FOLDER = "HARM3_ENCODERS"  # environment variable: folder of weights that were given by their makers
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")


def default_path() -> Path:
    """The encoder that comes with the program.

    Raises:
        BadCheckpoint: it is not there.
    """
    root = Path(__file__).resolve().parent.parent
    places = [root / folder / "Resources" / "Models" / "tile_encoder.safetensors" for folder in ("HARM3Slicer", "")]
    for place in places:
        if place.is_file():
            return place
    raise BadCheckpoint(f"the tile encoder {str(places[0])!r} is missing.", "Install again, or name an encoder file.")


class TileEncoder:
    """A frozen encoder on a device.

    Args:
        weights_sha256: hash of the file it came from.
    """

    def __init__(self, entry: EncoderEntry, model: torch.nn.Module, weights_sha256: str, device: str, precision: Precision) -> None:
        self.entry = entry
        self.weights_sha256 = weights_sha256
        self.device = torch.device(device)
        self.precision: Precision = precision
        self.batch = BATCH[self.device.type]
        self._model = model.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.warnings: tuple[str, ...] = ()
        self._fits = self.device.type == "cpu"
        self._copies: torch.cuda.Stream | None = None
        self._mean, self._std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (entry.mean, entry.std))

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        device: str = "cpu",
        precision: Precision | Literal["auto"] = "auto",
        *,
        weights: str | os.PathLike[str] | None = None,
        run_foreign_code: bool = False,
    ) -> TileEncoder:
        """An encoder by its name or from its file; "default" is the one that comes with the program.

        Args:
            weights: file of an encoder of `encoders.KNOWN`, as its makers give it; None looks into the folder HARM3_ENCODERS names.
            run_foreign_code: `path_or_name` is a TorchScript or ONNX program, which is executed with all rights of the user.

        Raises:
            BadCheckpoint: the file is missing, is no encoder, or its weights do not fit.
            BadOption: weights are given for an encoder that needs none, or a foreign program without leave.
        """
        name = os.fspath(path_or_name)
        if name in KNOWN:
            return cls._known(KNOWN[name], Path(weights) if weights is not None else _found(name), device, precision)
        if weights is not None:
            raise BadOption(f"encoder {name!r} takes no weights; {', '.join(KNOWN)} do.", "Name the encoder the weights belong to.")
        path = Path(name)
        if not path.exists():
            own = name in ("default", read_entry(default_path()).name)
            found = default_path() if own else _found(name)
            if found is None and path.suffix not in foreign_encoder.SUFFIXES:
                raise BadCheckpoint(
                    f"tile encoder {name!r} does not exist.",
                    'Check the path, or use "default" or a name of harm3 features --list-encoders.',
                )
            path = found or path
        if path.suffix in foreign_encoder.SUFFIXES:
            entry, model = foreign_encoder.load(path, run_foreign_code)
            return cls(entry, model, file_sha256(path), device, "float32")
        entry = read_entry(path)
        return cls(entry, build(entry, read_weights(path), str(path)), file_sha256(path), device, _chosen(precision, device))

    @classmethod
    def _known(cls, known: Known, path: Path | None, device: str, precision: Precision | Literal["auto"]) -> TileEncoder:
        entry = known.entry
        if path is None:
            raise BadCheckpoint(
                f"the weights of tile encoder {entry.name!r} are not on this computer, and are not distributed with the program.",
                f"Ask for them at {known.url}; then give the file with --weights, or put it as {entry.name}.bin or .safetensors into the "
                f"folder that the environment variable {FOLDER} names.",
            )
        model = build(entry, renamed(read_weights(path), known.names), str(path))
        return cls(entry, model, file_sha256(path), device, _chosen(precision, device))

    def encode(self, tiles: UInt8[np.ndarray, "n S S 3"], batch: int | None = None) -> Float32[np.ndarray, "n F"]:
        """The features of tiles; those of a tile do not depend on how many follow, for the last batch is filled up.

        Raises:
            BadOption: the tiles do not have the encoder's size.
            OutOfMemory: `batch` tiles do not fit on the device.
        """
        batch = batch or self.batch
        out = np.empty((len(tiles), self.entry.features), np.float32)
        for start in range(0, len(tiles), batch):
            part = tiles[start : start + batch]
            out[start : start + len(part)] = self._forward(self._filled(part, batch))[: len(part)]
        return out

    def fit(self) -> int:
        """The number of tiles at a time: half as many, and again, where the usual number does not fit on the device; `warnings` tells.

        Raises:
            OutOfMemory: not even one tile fits.
        """
        while not self._fits:
            try:
                self._forward(np.zeros((self.batch, self.entry.size_px, self.entry.size_px, 3), np.uint8))
                self._fits = True
            except OutOfMemory:
                if self.batch == 1:
                    raise
                self.batch //= 2
                torch.cuda.empty_cache()
                self.warnings = (f"{self.device} has little memory free; {self.batch} tiles are encoded at a time.",)
        return self.batch

    def encode_each(self, tiles: Iterable[UInt8[np.ndarray, "n S S 3"]], batch: int | None = None) -> Iterator[Float32[np.ndarray, "n F"]]:
        """The features of one lot of tiles after the other; on a GPU the next lot is fetched and copied while one is encoded.

        Raises:
            BadOption, OutOfMemory: as `encode`.
        """
        batch = batch or self.batch
        if self.device.type != "cuda":
            yield from (self.encode(part, batch) for part in tiles)
            return
        flying: deque[tuple[torch.Tensor, torch.cuda.Event, int]] = deque()
        for part in tiles:
            flying.append((*self._launch(self._filled(part, batch)), len(part)))
            if len(flying) > 1:
                yield _landed(*flying.popleft())
        while flying:
            yield _landed(*flying.popleft())

    def _filled(self, part: UInt8[np.ndarray, "n S S 3"], batch: int) -> UInt8[np.ndarray, "b S S 3"]:
        """A batch filled up with black: a matrix product may sum in another order for another shape."""
        if part.shape[1] != self.entry.size_px:
            raise BadOption(f"tiles of {part.shape[1]} px were given; {self.entry.name} takes {self.entry.size_px} px.", "Change size_px.")
        if len(part) == batch:
            return part
        return np.concatenate([part, np.zeros((batch - len(part), *part.shape[1:]), np.uint8)])

    def _forward(self, tiles: UInt8[np.ndarray, "n S S 3"]) -> Float32[np.ndarray, "n F"]:
        if self.device.type == "cpu":
            torch.set_flush_denormal(True)  # denormals slow a CPU down many times
        with self._memory(len(tiles)):
            return np.asarray(self._compute(torch.from_numpy(tiles).to(self.device)).cpu().numpy())

    @contextmanager
    def _memory(self, count: int) -> Iterator[None]:
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(
                f"{count} tiles of {self.entry.size_px} px do not fit on {self.device}.", "Use the device cpu or a smaller batch."
            ) from error

    def _launch(self, tiles: UInt8[np.ndarray, "n S S 3"]) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Start encoding on the GPU: where the features will lie, and what tells that they do."""
        if self._copies is None:
            self._copies = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        work = torch.cuda.current_stream(self.device)
        with self._memory(len(tiles)):
            with torch.cuda.stream(self._copies):
                pixels = torch.from_numpy(tiles).pin_memory().to(self.device, non_blocking=True)
            work.wait_stream(self._copies)
            pixels.record_stream(work)  # or its memory would be given away while the network reads it
            features = self._compute(pixels)
        out = torch.empty(features.shape, pin_memory=True)
        out.copy_(features, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(work)
        return out, done

    @torch.inference_mode()
    def _compute(self, tiles: UInt8[torch.Tensor, "n S S 3"]) -> Float32[torch.Tensor, "n F"]:
        # the bytes lie as n S S 3, which permuted is channels_last already
        pixels = tiles.permute(0, 3, 1, 2).float().div_(255).sub_(self._mean).div_(self._std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            features = pool(self._model, pixels, self.entry.pooling)
        return features.float()


def _landed(features: torch.Tensor, done: torch.cuda.Event, count: int) -> Float32[np.ndarray, "n F"]:
    done.synchronize()
    return np.array(features[:count].numpy())


def pool(model: torch.nn.Module, pixels: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector per image."""
    if pooling == "model":
        out: torch.Tensor = model(pixels)
        return out
    tokens = model.forward_features(pixels).float()  # type: ignore[operator]
    cls, patches = tokens[:, 0], tokens[:, model.num_prefix_tokens :]  # register tokens count for neither
    parts = {"cls": [cls], "mean": [patches.mean(1)], "cls+mean": [cls, patches.mean(1)]}
    return torch.cat(parts[pooling], dim=1)


def shipped() -> Known:
    """The encoder that comes with the program, as the known ones are described.

    Raises:
        BadCheckpoint: it is not there.
    """
    path = default_path()
    return Known(read_entry(path), sum(value.numel() for value in read_weights(path).values()) / 1e6, "")


def _found(name: str) -> Path | None:
    """A weight or encoder file of this name in the user's folder of encoders."""
    folder = os.environ.get(FOLDER)
    if not folder or Path(name).name != name:
        return None
    return next((path for suffix in SUFFIXES if (path := Path(folder) / f"{name}{suffix}").is_file()), None)


def _chosen(precision: Precision | Literal["auto"], device: str) -> Precision:
    return best_precision(device) if precision == "auto" else precision
