"""A frozen network that turns the tiles of a slide into features.

    tiles n S S 3 --(x/255 - mean)/std--> n 3 S S --timm model--> tokens n L E --pooling--> features n F

The only home of timm. An encoder is one `.safetensors` file: weights, and an `EncoderEntry` in its metadata.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from HARM3Logic.device import Precision, best_precision
from HARM3Logic.errors import BadCheckpoint, BadOption, OutOfMemory

KEY = "tile_encoder"  # where the entry lies in the file's metadata
BATCH = {"cpu": 4, "cuda": 64, "mps": 16}  # tiles at a time; on CPUs as fast as more (72 ms a tile), and the last batch wastes less
Pooling = Literal["cls", "mean", "cls+mean", "model"]


@dataclass(frozen=True)
class EncoderEntry:
    """What must be known of an encoder besides its weights.

    Args:
        timm_kwargs: arguments of `timm.create_model` beside the name; must fit into JSON.
        mean: subtracted from RGB / 255, then divided by `std`; 0 and 1 leave RGB / 255.
        pooling: `cls` token, `mean` of the patch tokens, both one after the other, or what the `model` itself returns.
        features: length of a tile's feature vector.
    """

    name: str
    timm_model: str
    timm_kwargs: dict[str, Any]
    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pooling: Pooling
    features: int
    licence: str

    @classmethod
    def from_json(cls, text: str) -> EncoderEntry:
        """The entry in a file's metadata.

        Raises:
            ValueError: the text is not an entry.
        """
        data = json.loads(text)
        if not isinstance(data, dict) or set(data) != {f.name for f in fields(cls)} or data["pooling"] not in get_args(Pooling):
            raise ValueError("not an encoder entry")
        data["mean"], data["std"] = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
        if len(data["mean"]) != 3 or len(data["std"]) != 3 or not all(data["std"]):
            raise ValueError("mean and std must have three values, std not 0")
        return cls(**data)


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
        cls, path_or_name: str | os.PathLike[str], device: str = "cpu", precision: Precision | Literal["auto"] = "auto"
    ) -> TileEncoder:
        """The encoder in a file, or the one that comes with the program by the name "default" or its own.

        Raises:
            BadCheckpoint: the file is missing, is no encoder, or its weights do not fit its entry.
        """
        path = Path(path_or_name)
        if not path.exists():
            shipped = default_path()
            if str(path_or_name) not in ("default", read_entry(shipped).name):
                raise BadCheckpoint(f"tile encoder {str(path_or_name)!r} does not exist.", 'Check the path, or use "default".')
            path = shipped
        entry = read_entry(path)
        chosen = best_precision(device) if precision == "auto" else precision
        try:
            with safe_open(path, "pt") as file:
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  not a dictionary
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"tile encoder {str(path)!r} is damaged ({error}).", "Copy it again.") from error
        return cls(entry, build(entry, weights, str(path)), _file_sha256(path), device, chosen)

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


def read_entry(path: Path) -> EncoderEntry:
    """What an encoder file says of itself.

    Raises:
        BadCheckpoint: the file is missing, broken or no tile encoder.
    """
    try:
        with safe_open(path, "pt") as file:
            return EncoderEntry.from_json((file.metadata() or {})[KEY])
    except OSError as error:
        raise BadCheckpoint(f"tile encoder {str(path)!r} cannot be read ({error}).", "Check the path.") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise BadCheckpoint(
            f"{str(path)!r} is not a tile encoder; a .safetensors file with {KEY!r} in its metadata is wanted.",
            "Make one with Training/ship_encoder.py.",
        ) from error


def build(entry: EncoderEntry, weights: Mapping[str, torch.Tensor], where: str) -> torch.nn.Module:
    """The timm model of an entry with its weights; nothing is downloaded.

    Raises:
        BadCheckpoint: timm does not know the model, or the weights do not fit it.
    """
    import timm  # here, for it takes seconds

    try:
        model: torch.nn.Module = timm.create_model(entry.timm_model, pretrained=False, **entry.timm_kwargs)
        model.load_state_dict(weights, strict=True)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # all of them timm's and torch's answers to wrong entries
        raise BadCheckpoint(
            f"weights in {where!r} do not fit {entry.timm_model} ({str(error).splitlines()[0]}).", "Check its entry."
        ) from error
    return model


def save_encoder(entry: EncoderEntry, weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write an encoder file in half precision, with position embeddings resampled to the entry's tile size.

    Raises:
        BadCheckpoint: the weights do not fit the entry.
    """
    import timm
    from timm.layers.pos_embed import resample_abs_pos_embed

    kept = {name: value.float() for name, value in weights.items()}
    model: Any = timm.create_model(entry.timm_model, pretrained=False, **entry.timm_kwargs)
    if "pos_embed" in kept and kept["pos_embed"].shape != model.pos_embed.shape:
        grid = list(model.patch_embed.grid_size)
        kept["pos_embed"] = resample_abs_pos_embed(kept["pos_embed"], grid, num_prefix_tokens=model.num_prefix_tokens)
    build(entry, kept, str(out))
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    save_file({k: v.half().contiguous() for k, v in kept.items()}, temporary, metadata={"format": "pt", KEY: json.dumps(asdict(entry))})
    temporary.chmod(0o644)  # safetensors writes for the owner alone
    temporary.replace(out)


def _file_sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
