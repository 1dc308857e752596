"""Published weights of another code as a checkpoint of ours.

weights.pt --torch.load, weights only--> state dict --sizes, names--> model --> card and model in one .safetensors file
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from HARM3Logic import checkpoint
from HARM3Logic.card import missing
from HARM3Logic.checkpoint import Card
from HARM3Logic.errors import BadCheckpoint, BadOption
from HARM3Logic.models import clam, transmil
from HARM3Logic.prediction import writable
from HARM3Logic.prepare import Preprocessing
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileSettings

SOURCES = {"clam": "CLAM (Lu et al. 2021)", "transmil": "TransMIL (Shao et al. 2021)"}
WRAPPINGS = ("state_dict", "model_state_dict", "model")  # under which training programs keep the weights


def import_weights(
    weights: str | os.PathLike[str],
    model: str,
    out: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] = "default",
    mpp: float = 0.5,
    compat_nystrom_009: bool = False,
) -> Card:
    """Write a checkpoint from a state dict of the official code; its second class becomes the responder.

    Args:
        weights: file of `torch.save`; only tensors are read from it, nothing in it is executed.
        model: clam or transmil.
        encoder: of the tiles the weights were trained on; the checkpoint is bound to it.
        mpp: µm per pixel of those tiles.
        compat_nystrom_009: the TransMIL weights were trained with nystrom-attention 0.0.9, which its code names.

    Raises:
        BadCheckpoint: the weights are not those of the model, or do not fit the encoder.
        BadOption: the model is not known, or an option is out of range or not its own.
    """
    if model not in SOURCES:
        raise BadOption(f"weights of {model!r} cannot be imported; there are {', '.join(SOURCES)}.", "Choose one.")
    if compat_nystrom_009 and model != "transmil":
        raise BadOption(f"{model} has no Nystrom attention.", "Leave --compat-nystrom-009 out.")
    state = read_state(Path(weights))
    filled = _fill(model, state, compat_nystrom_009)
    file, tiles = Path(encoder), TileEncoder.load(encoder)
    wanted, given = filled.config.tile_features, tiles.entry.features
    if wanted != given:
        raise BadCheckpoint(
            f"the weights in {Path(weights).name!r} read tiles of {wanted} features; the tile encoder {tiles.entry.name} gives {given}.",
            "Name the encoder they were trained with.",
        )
    card = Card(
        model=model,
        config=asdict(filled.config),
        preprocessing=Preprocessing(tiles=TileSettings(size_px=tiles.entry.size_px, mpp=mpp)),
        inputs=filled.inputs(),
        intended_use="Research. What the second class means, and for which tissue, is known to those who trained the weights. "
        "Not for clinical use.",
        tile_encoder={"name": str(file.resolve()) if file.is_file() else tiles.entry.name, "weights_sha256": tiles.weights_sha256},
        training={"imported": SOURCES[model], "weights_sha256": checkpoint.file_sha256(Path(weights))},
    )
    writable(Path(out).parent)
    checkpoint.save(out, filled, card)
    return card


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name.

    Raises:
        BadCheckpoint: the file is missing, damaged, or holds more than plain values and tensors.
    """
    if not path.is_file():
        raise missing(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # the safe reader names what it will not make
        raise BadCheckpoint(
            f"weights {path.name!r} are damaged, or hold more than tensors; what they hold is not executed.",
            "Save the state_dict() alone with torch.save and import that.",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"weights {path.name!r} cannot be read ({type(error).__name__}).", "Get the file again.") from error
    while isinstance(found, Mapping) and (inner := next((name for name in WRAPPINGS if isinstance(found.get(name), Mapping)), None)):
        found = found[inner]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise BadCheckpoint(f"weights {path.name!r} hold no state dict.", "Save model.state_dict() with torch.save and import that.")
    return {str(name): value for name, value in found.items()}


def _fill(model: str, state: Mapping[str, Tensor], compat_nystrom_009: bool) -> clam.CLAM | transmil.TransMIL:
    if model == "clam":
        made = clam.CLAM(clam.reference_config(state))
        clam.load_reference(made, state)
        return made
    other = transmil.TransMIL(replace(transmil.reference_config(state), compat_nystrom_009=compat_nystrom_009))
    transmil.load_reference(other, state)
    return other
