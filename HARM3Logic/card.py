"""What a checkpoint says of itself, read from the head of its file alone. Standard library only: Slicer reads it too."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from HARM3Logic.errors import BadCheckpoint

FORMAT = 1
LONGEST_HEAD = 100_000_000  # bytes; the limit of the safetensors format
WANTED: dict[str, type] = {"model": str, "config": dict, "preprocessing": dict, "inputs": list, "intended_use": str}


def default() -> Path:
    """The demo checkpoint that comes with the package.

    Raises:
        BadCheckpoint: it is not there.
    """
    root = Path(__file__).resolve().parents[1]
    places = [root / "HARM3Slicer/Resources/Models", root / "Resources/Models"]
    for place in places:
        if (place / "harm3_fusion_demo.safetensors").is_file():
            return place / "harm3_fusion_demo.safetensors"
    raise BadCheckpoint(f"the demo checkpoint is not in {' or '.join(map(str, places))}.", "Name one with --checkpoint.")


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The card as plain values: `inputs`, `config` with its `needs`, `training`, `threshold`, `intended_use` and so on.

    The weights are not read, so a file changed after it was made is found only when it is loaded.

    Raises:
        BadCheckpoint: the file is missing, is not a checkpoint of ours, or is of a later version.
    """
    card: dict[str, Any] = parse(read_metadata(Path(path)), Path(path).name)["card"]
    return card


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the head of a `.safetensors` file: eight bytes of length, then JSON with the key `__metadata__`.

    Raises:
        BadCheckpoint: the file is missing or has no such head.
    """
    if not path.is_file():
        raise missing(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= min(LONGEST_HEAD, path.stat().st_size - 8):
                raise ValueError(f"a head of {length} bytes in a file of {path.stat().st_size}")
            head = json.loads(file.read(length))
        metadata = head.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are no texts")
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # ValueError: no JSON, no UTF-8; AttributeError: no object
        raise unreadable(path, error) from error
    return metadata


def parse(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """What the metadata of a checkpoint file hold: `card`, and `familiarity` with the limit of each input.

    Args:
        name: of the file, for the message.

    Raises:
        BadCheckpoint: there is no card, or none of this version.
    """
    if "harm3" not in metadata:
        raise BadCheckpoint(f"{name!r} is a .safetensors file without a HARM3 card.", "Choose a checkpoint made by Training.train.")
    try:
        data = json.loads(metadata["harm3"])
        found = data["format"]
        card = data["card"] if found == FORMAT else {}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadCheckpoint(f"the card of checkpoint {name!r} cannot be read ({error!r}).", "Get it again.") from error
    if found != FORMAT:
        raise BadCheckpoint(f"checkpoint {name!r} has format {found}; this version reads {FORMAT}.", "Update HARM3Slicer.")
    for key, kind in WANTED.items():
        if not isinstance(card, dict) or not isinstance(card.get(key), kind):
            raise BadCheckpoint(f"the card of checkpoint {name!r} has no usable {key!r}; a {kind.__name__} is wanted.", "Get it again.")
    values: dict[str, Any] = data
    return values


def missing(path: Path) -> BadCheckpoint:
    return BadCheckpoint(f"checkpoint {str(path)!r} is not there.", "Check the path.")


def unreadable(path: Path, error: Exception) -> BadCheckpoint:
    return BadCheckpoint(f"checkpoint {path.name!r} is not a readable .safetensors file ({error}).", "Get it again.")
