"""A user's own TorchScript or ONNX program as a tile encoder: the last resort, for loading such a file executes it.

    MODEL.onnx | .ts | .torchscript with MODEL.json beside it --load--> entry, module: pixels n 3 S S --> features n F

The file beside says what the program cannot: {"name", "size_px", "mpp", "mean", "std", "features", "licence"}. The only home of
onnxruntime.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from HARM3Logic.encoders import EncoderEntry
from HARM3Logic.errors import BadCheckpoint, BadOption

SUFFIXES = (".onnx", ".ts", ".torchscript")
WANTED = ("name", "size_px", "mpp", "mean", "std", "features", "licence")


class Onnx(nn.Module):
    """An ONNX program on the CPU; takes and gives tensors of any device."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session, self._input = session, session.get_inputs()[0].name

    def forward(self, pixels: Tensor) -> Tensor:
        (out, *_) = self._session.run(None, {self._input: pixels.float().contiguous().cpu().numpy()})
        return torch.from_numpy(out).to(pixels.device)


class TorchScript(nn.Module):
    """A TorchScript program; it fixes its own layout in memory."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = program

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self._program(pixels.contiguous())
        return out


def load(path: Path, run_foreign_code: bool) -> tuple[EncoderEntry, nn.Module]:
    """What the file beside says of a program, and the program; tried on one black tile.

    Raises:
        BadOption: the user did not allow to execute it, or onnxruntime is not installed.
        BadCheckpoint: it is missing, cannot be loaded, or does not give what the file beside says.
    """
    if not run_foreign_code:
        raise BadOption(
            f"{path.name!r} is a program, not weights alone; loading it executes what its author wrote, with all your rights.",
            "Only where you trust the author, add --run-foreign-code.",
        )
    if not path.is_file():
        raise BadCheckpoint(f"tile encoder {str(path)!r} does not exist.", "Check the path.")
    entry = _entry(path)
    try:
        model = _onnx(path) if path.suffix == ".onnx" else TorchScript(torch.jit.load(path, map_location="cpu"))  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            tried = model(torch.zeros(1, 3, entry.size_px, entry.size_px))
    except BadOption:
        raise
    except Exception as error:  # whatever a foreign program may raise
        raise BadCheckpoint(
            f"tile encoder {str(path)!r} cannot be run on tiles of {entry.size_px} px ({str(error).strip().splitlines()[-1][:200]}).",
            f"Check {path.with_suffix('.json').name}, or export it again.",
        ) from error
    if not isinstance(tried, Tensor) or tried.shape != (1, entry.features):
        got = f"shape {tuple(tried.shape)}" if isinstance(tried, Tensor) else type(tried).__name__
        raise BadCheckpoint(f"tile encoder {path.name!r} gives {got} for a tile; (1, {entry.features}) is wanted.", "Correct its file.")
    return entry, model


def _entry(path: Path) -> EncoderEntry:
    beside = path.with_suffix(".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        kind = "onnx" if path.suffix == ".onnx" else "torchscript"
        return EncoderEntry.from_json(json.dumps({**{key: said[key] for key in WANTED}, **_rest(kind)}))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise BadCheckpoint(
            f"{beside.name!r} beside {path.name!r} is missing or incomplete; it must say {', '.join(WANTED)}.",
            "Write it: mean and std are three numbers each, of RGB / 255.",
        ) from error


def _rest(kind: str) -> dict[str, Any]:
    return {"timm_model": kind, "timm_kwargs": {}, "pooling": "model"}


def _onnx(path: Path) -> Onnx:
    try:
        import onnxruntime
    except ImportError as error:
        raise BadOption("ONNX models need onnxruntime, which is not installed.", 'pip install "harm3slicer[onnx]"') from error
    return Onnx(onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]))
