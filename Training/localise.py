"""Where the heat lies: python -m Training.localise COHORT.csv [--checkpoint M] [--layers focus layer1 ...].

For every case the maximum of the joint Grad-CAM over all volumes, with tumour masks withheld from the model, is looked up in
the pre-treatment tumour mask widened by 5 mm; a random voxel of the body says what chance gives.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

from HARM3Logic import checkpoint, volume
from HARM3Logic.batch import Prepared, collate
from HARM3Logic.case import SEQUENCES, TIMEPOINTS, Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import HARM3Error
from HARM3Logic.explain import saliency
from HARM3Logic.models.output import CamLayer
from HARM3Logic.prepare import prepare
from HARM3Logic.tile_encoder import TileEncoder

WIDEN_MM = 5.0


def localise(cases: Sequence[Case], loaded: checkpoint.Checkpoint, layers: Sequence[str], encoder: TileEncoder | None) -> dict[str, float]:
    """Share of the cases whose hottest voxel lies in the widened tumour, per layer, and for a random voxel of the body."""
    trunks: Mapping[str, torch.nn.Module] = loaded.model.trunks  # type: ignore[assignment]
    hits: dict[str, list[float]] = {layer: [] for layer in (*layers, "random voxel")}
    for case in tqdm([c for c in cases if "tumour_pre" in c.inputs], unit="case", disable=None):
        prepared = prepare(case, loaded.card.preprocessing, encoder, ignore_masks=True)
        target = _widened(case, prepared)
        batch = collate([prepared])
        for layer in layers:
            cams = tuple(CamLayer(trunks[s].get_submodule(layer), tuple(f"{s}_{t}" for t in TIMEPOINTS)) for s in SEQUENCES)
            _, maps = saliency(loaded.model, batch, cams)
            hottest = max((m[0].numpy() for m in maps.values()), key=lambda m: float(m.max()))
            hits[layer].append(float(target.flat[int(hottest.argmax())] and hottest.max() > 0))
        hits["random voxel"].append(float(target[prepared.body.numpy()].mean()))
    return {name: float(np.mean(values)) for name, values in hits.items()}


def _widened(case: Case, prepared: Prepared) -> np.ndarray:
    """The pre-treatment tumour on the model grid, widened; the mask lies in the space of the grid (that of t1_pre)."""
    assert prepared.grid is not None
    mask = volume.resample(volume.canonical(volume.read_mask(case.inputs["tumour_pre"][0])), prepared.grid, nearest=True, outside=0.0) > 0
    distance = ndimage.distance_transform_edt(~mask, sampling=prepared.grid.spacing_mm[::-1])
    return np.asarray(distance <= WIDEN_MM)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m Training.localise", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--checkpoint", type=Path, help="default: the demo checkpoint")
    parser.add_argument("--layers", nargs="+", default=["focus", "layer1", "layer2", "layer3", "layer4"], help="submodules of the trunk")
    options = parser.parse_args(arguments)
    try:
        torch.set_flush_denormal(True)
        loaded = checkpoint.load(options.checkpoint or checkpoint.default())
        encoder = TileEncoder.load(loaded.card.tile_encoder["name"]) if loaded.card.tile_encoder else None
        found = localise(read_cohort(options.cohort), loaded, options.layers, encoder)
    except HARM3Error as error:
        print(error, file=sys.stderr)
        return 2
    for name, share in found.items():
        print(f"{name:>16}  {share:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
