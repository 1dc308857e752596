"""One `.safetensors` file: a model, how to prepare its inputs, how to read its logit, and where it comes from.

Tensors `model.*` are the weights, `familiarity.<input>.{mean,spread}` describe the training data; the metadata key `harm3`
holds the card as JSON. Nothing in the file is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from scipy.special import expit
from torch import Tensor, nn

from HARM3Logic import __version__
from HARM3Logic.card import FORMAT, default, missing, parse, unreadable
from HARM3Logic.case import file_sha256
from HARM3Logic.clinical import Schema
from HARM3Logic.errors import BadCheckpoint
from HARM3Logic.familiarity import Reference
from HARM3Logic.models import MODELS
from HARM3Logic.prepare import Preprocessing
from HARM3Logic.writing import whole

__all__ = ["Calibration", "Card", "Checkpoint", "build", "check_encoder", "default", "file_sha256", "half", "load", "read_card", "save"]

T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Logit to probability: sigmoid(slope * logit + intercept), fitted on cases the training did not see.

    Args:
        covariance: of (slope, intercept); zeros where unknown.
    """

    slope: float = 1.0
    intercept: float = 0.0
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))

    def __call__(self, logit: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return np.asarray(expit(self.slope * logit + self.intercept))

    def draw(self, logits: Float[np.ndarray, " n"], seed: int = 0) -> Float[np.ndarray, " n"]:
        """One probability per logit, each under its own draw of slope and intercept."""
        rng = np.random.default_rng(seed)
        slope, intercept = rng.multivariate_normal((self.slope, self.intercept), np.array(self.covariance), len(logits)).T
        return np.asarray(expit(slope * logits + intercept))


@dataclass(frozen=True)
class Card:
    """What a reader must know of a checkpoint; all of it is shown by `harm3 info`.

    Args:
        config: of the model, as its dataclass gives it.
        tile_encoder: name of the encoder the slide features come from, and the SHA-256 of its file.
        threshold: probability from which on a case counts as responder.
        uncertain_zone: probabilities for which the model says it does not know.
        training: cohort, folds, metrics with intervals, code version.
        clinical: the variables of the clinical row, in the model's order.
    """

    model: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    inputs: tuple[str, ...]
    intended_use: str
    tile_encoder: dict[str, str] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    threshold: float = 0.5
    uncertain_zone: tuple[float, float] = (0.5, 0.5)
    training: dict[str, Any] = field(default_factory=dict)
    version: str = __version__
    clinical: Schema = field(default_factory=Schema)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; the model is in evaluation mode on its device."""

    model: nn.Module
    card: Card
    familiarity: Mapping[str, Reference]
    path: Path
    sha256: str


def check_encoder(card: Card, entry_name: str, weights_sha256: str) -> None:
    """Refuse features the model was not trained on.

    Raises:
        BadCheckpoint: the tile encoder is another one than the card names.
    """
    wanted = card.tile_encoder
    if wanted["weights_sha256"] != weights_sha256:
        raise BadCheckpoint(
            f"the checkpoint was trained on tiles of {wanted['name']} ({wanted['weights_sha256'][:12]}); "
            f"the one found is {entry_name} ({weights_sha256[:12]}).",
            "Install the tile encoder that belongs to it.",
        )


def half(model: nn.Module) -> nn.Module:
    """Round the weights to what the file can hold (16-bit floats), so that saving changes nothing."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    return model


def save(path: str | os.PathLike[str], model: nn.Module, card: Card, familiarity: Mapping[str, Reference] | None = None) -> None:
    """Write a checkpoint whole or not at all; floating weights that 16 bits hold exactly are stored in 16 bits."""
    tensors = {f"model.{name}": _small(t.detach().cpu().contiguous()) for name, t in model.state_dict().items()}
    limits = {}
    for name, reference in (familiarity or {}).items():
        tensors[f"familiarity.{name}.mean"] = torch.from_numpy(reference.mean).float()
        tensors[f"familiarity.{name}.spread"] = torch.from_numpy(reference.spread).float()
        limits[name] = reference.limit
    text = json.dumps({"format": FORMAT, "card": dataclasses.asdict(card), "familiarity": limits}, sort_keys=True)
    with whole(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"harm3": text, "sha256": _seal(text, tensors)})


def _small(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half()
    return tensor


def _seal(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hash over the card and every tensor, so that a changed byte anywhere is found."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())  # view cannot take a scalar
    return digest.hexdigest()


def read_card(path: str | os.PathLike[str]) -> Card:
    """The card alone, without building the model.

    Raises:
        BadCheckpoint: the file is missing, is not a checkpoint of ours, or was changed.
    """
    return _read(Path(path))[0]


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Checkpoint:
    """The model of a checkpoint, ready to run.

    Raises:
        BadCheckpoint: the file is missing, was changed, or holds another model than its card says.
    """
    path = Path(path)
    card, tensors, limits = _read(path)
    if card.model not in MODELS:
        raise BadCheckpoint(
            f"checkpoint {path.name!r} holds a {card.model!r}; this version knows {', '.join(MODELS)}.",
            "Update HARM3Slicer or choose another.",
        )
    model = build(card.model, card.config, path.name)
    weights = {
        name.removeprefix("model."): t.float() if t.dtype == torch.float16 else t
        for name, t in tensors.items()
        if name.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise BadCheckpoint(
            f"checkpoint {path.name!r} does not hold the weights of its {card.model} ({first}).", "Get it again."
        ) from error
    familiarity = {
        name: Reference(tensors[f"familiarity.{name}.mean"].double().numpy(), tensors[f"familiarity.{name}.spread"].double().numpy(), limit)
        for name, limit in limits.items()
    }
    return Checkpoint(model.to(device).eval(), card, familiarity, path, file_sha256(path))


def build(name: str, config: Mapping[str, Any], where: str) -> nn.Module:
    """A fresh model from its registered name and the plain values of its config."""
    cls = MODELS[name]
    config_class = typing.get_type_hints(cls.__init__)["config"]
    return cls(from_plain(config_class, config, where))


def _read(path: Path) -> tuple[Card, dict[str, Tensor], dict[str, float]]:
    if not path.is_file():
        raise missing(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise unreadable(path, error) from error
    data = parse(metadata, path.name)
    if metadata.get("sha256") != _seal(metadata["harm3"], tensors):
        raise BadCheckpoint(f"checkpoint {path.name!r} was changed after it was made (its seal does not fit).", "Get it again.")
    return from_plain(Card, data["card"], path.name), tensors, data["familiarity"]


def from_plain(cls: type[T], data: Any, where: str) -> T:
    """A (nested) frozen dataclass from JSON values; lists become tuples.

    Raises:
        BadCheckpoint: a field is unknown or missing.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise BadCheckpoint(f"{where}: {cls.__name__} has no field {unknown[0]!r}.", "Update HARM3Slicer.")
    try:
        return cls(**{name: _value(hints[name], value, where) for name, value in data.items()})
    except TypeError as error:
        raise BadCheckpoint(f"{where}: {error}.", "Get the file again.") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in typing.get_args(hint) if a is not type(None)]
        return None if value is None else _value(inner[0], value, where)
    if origin is tuple and isinstance(value, list):
        first = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(first) and isinstance(first, type):
            return tuple(from_plain(first, v, where) for v in value)
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    return value
