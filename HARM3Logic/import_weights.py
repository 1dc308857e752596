"""Published weights of another code as a checkpoint of ours.

weights.pt --torch.load, weights only--> state dict --sizes, names--> model --> card and model in one .safetensors file
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from HARM3Logic import checkpoint
from HARM3Logic.checkpoint import Card
from HARM3Logic.encoder_weights import read_weights
from HARM3Logic.errors import BadCheckpoint, BadOption
from HARM3Logic.models import clam, transmil
from HARM3Logic.prediction import writable
from HARM3Logic.prepare import Preprocessing
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.tiles import TileSettings

SOURCES = {"clam": "CLAM (Lu et al. 2021)", "transmil": "TransMIL (Shao et al. 2021)"}


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
        encoder: of the tiles the weights were trained on, a name or a file; the checkpoint is bound to it and holds its name and hash.
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
    state = read_weights(Path(weights))
    filled = _fill(model, state, compat_nystrom_009)
    tiles = TileEncoder.load(encoder)
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
        tile_encoder={"name": tiles.entry.name, "weights_sha256": tiles.weights_sha256},
        training={"imported": SOURCES[model], "weights_sha256": checkpoint.file_sha256(Path(weights))},
    )
    writable(Path(out).parent)
    checkpoint.save(out, filled, card)
    return card


def _fill(model: str, state: Mapping[str, Tensor], compat_nystrom_009: bool) -> clam.CLAM | transmil.TransMIL:
    if model == "clam":
        made = clam.CLAM(clam.reference_config(state))
        clam.load_reference(made, state)
        return made
    other = transmil.TransMIL(replace(transmil.reference_config(state), compat_nystrom_009=compat_nystrom_009))
    transmil.load_reference(other, state)
    return other
