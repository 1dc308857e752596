"""Which processor does the work, and in what precision."""

from __future__ import annotations

import re
from typing import Literal

import torch

from HARM3Logic.errors import BadOption

Precision = Literal["float32", "bfloat16"]


def choose(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda, cuda:<i> or mps.

    Raises:
        BadOption: the name is unknown or the machine has no such device.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise BadOption(f"device is {name!r}; auto, cpu, cuda, cuda:<number> or mps is wanted.", "Correct --device.")
    device = torch.device(name)
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing or (device.type == "mps" and not has_mps):
        raise BadOption(f"device {name!r} is not on this machine ({torch.cuda.device_count()} CUDA devices).", "Use --device auto or cpu.")
    return device


def best_precision(device: torch.device | str) -> Precision:
    """The precision that is faster on a device at no loss that matters."""
    kind = torch.device(device).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    # AVX512_BF16 alone is not enough: measured slower than float32 (Testing/benchmarks); only tile units repay the conversion
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return "bfloat16" if kind == "cpu" and has_tiles is not None and has_tiles() else "float32"
