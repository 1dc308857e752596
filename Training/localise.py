"""Where the heat lies: python -m Training.localise COHORT.csv [--checkpoint M ...] [--layers focus layer1 ...].

A row for each model: for every case the maximum of the joint Grad-CAM over all volumes, with tumour masks withheld from the model, is
looked up in the pre-treatment tumour mask widened by 5 mm; a random voxel of the body says what chance gives. Beside it the share of
all heat that lies in the mask itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import ndimage

from HARM3Logic import checkpoint, volume
from HARM3Logic.batch import Prepared, collate
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.explain import saliency
from HARM3Logic.models.output import CamLayer
from HARM3Logic.prepare import prepare
from HARM3Logic.progress import progress
from HARM3Logic.tile_encoder import TileEncoder
from Training import command

WIDEN_MM = 5.0


@dataclass(frozen=True)
class Heat:
    """How the heat of one or several cases lies.

    Args:
        inside: the hottest voxel of all volumes lies in the widened mask; of several cases, the share in which it does.
        share: of all heat that lies in the mask; a case without heat has none of it there.
        random: share of the body that the widened mask takes, which is how often a random voxel would lie in it.
    """

    inside: float
    share: float
    random: float
    cases: int = 1


def mean(found: Sequence[Heat]) -> Heat:
    """Of several cases, each counted alike.

    Raises:
        BadOption: there is none.
    """
    if not found:
        raise BadOption("no case has a pre-treatment tumour mask (tumour_pre).", "Give masks; they are withheld from the model.")
    inside, share, random = np.mean([(heat.inside, heat.share, heat.random) for heat in found], axis=0).tolist()
    return Heat(inside, share, random, len(found))


def heat_of(
    model: torch.nn.Module, prepared: Prepared, tumour: Bool[np.ndarray, "D H W"], spacing_mm: Sequence[float], layers: tuple[CamLayer, ...]
) -> Heat:
    """Of one case.

    Args:
        tumour: before treatment, on the model grid; not empty.
        spacing_mm: of that grid, D H W.
    """
    batch = collate([prepared]).to(next(model.parameters()).device)
    _, maps = saliency(model, batch, layers)
    heat = np.stack([m[0].numpy() for m in maps.values()])
    place = np.unravel_index(int(heat.argmax()), heat.shape)[1:]
    wide = ndimage.distance_transform_edt(~tumour, sampling=spacing_mm) <= WIDEN_MM
    total = float(heat.sum())
    return Heat(
        inside=float(heat.max() > 0 and wide[place]),
        share=float(heat[:, tumour].sum()) / total if total > 0 else 0.0,
        random=float(wide[prepared.body.numpy()].mean()),
    )


def layers_of(model: torch.nn.Module, name: str | None) -> tuple[CamLayer, ...]:
    """The layers a model explains itself by, or others of the same parts of it; empty where no volume goes in.

    Args:
        name: as the config's `cam_layer`: a submodule of the trunk; None takes the model's own choice.

    Raises:
        BadOption: the model has no such layer.
    """
    own: tuple[CamLayer, ...] = model.cam_layers()  # type: ignore[operator]
    if name is None:
        return own
    places = {id(module): place for place, module in model.named_modules()}
    config_layer = getattr(model.config, "cam_layer", None)
    try:
        if config_layer is None:
            raise AttributeError("the model's config has no cam_layer")
        trunks = [places[id(layer.module)].removesuffix(config_layer) for layer in own]
        return tuple(CamLayer(model.get_submodule(f"{trunk}{name}"), layer.inputs) for trunk, layer in zip(trunks, own, strict=True))
    except AttributeError as error:
        raise BadOption(f"{type(model).__name__} cannot be looked at in {name!r} ({error}).", "Leave out --layers.") from error


def localise(cases: Iterable[Case], loaded: checkpoint.Checkpoint, layers: Sequence[str | None], encoder: TileEncoder | None) -> list[Heat]:
    """The mean over all cases with a mask, for each layer.

    Raises:
        BadOption: no case has a mask, or no volume goes into the model.
    """
    places = [layers_of(loaded.model, name) for name in layers]
    if not all(places):
        raise BadOption(f"{loaded.path.name!r} holds a {loaded.card.model}, into which no volume goes.", "Choose another checkpoint.")
    found: list[list[Heat]] = [[] for _ in layers]
    for case in progress([c for c in cases if "tumour_pre" in c.inputs], loaded.path.stem, unit="case"):
        prepared = prepare(case, loaded.card.preprocessing, encoder, ignore_masks=True)
        assert prepared.grid is not None
        tumour = _on_grid(case, prepared)
        for row, place in zip(found, places, strict=True) if tumour.any() else ():
            row.append(heat_of(loaded.model, prepared, tumour, prepared.grid.spacing_mm[::-1], place))
    return [mean(row) for row in found]


def _on_grid(case: Case, prepared: Prepared) -> Bool[np.ndarray, "D H W"]:
    """The pre-treatment tumour; its mask lies in the space of the grid (that of t1_pre)."""
    assert prepared.grid is not None
    mask: Float[np.ndarray, "D H W"] = volume.resample(
        volume.canonical(volume.read_mask(case.inputs["tumour_pre"][0])), prepared.grid, nearest=True, outside=0.0
    )
    return np.asarray(mask > 0)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("localise", __doc__)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--checkpoint", type=Path, nargs="+", help="a row for each (default: the demo checkpoint)")
    parser.add_argument("--layers", nargs="+", help="submodules of the trunk (default: where the model explains itself)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)
    cases = read_cohort(asked.cohort)
    print(f"{'model':<32} {'layer':<12} {'cases':>5} {'maximum in mask':>16} {'heat in mask':>13} {'random voxel':>13}")
    for path in asked.checkpoint or [checkpoint.default()]:
        loaded = checkpoint.load(path)
        encoder = TileEncoder.load(loaded.card.tile_encoder["name"]) if loaded.card.tile_encoder else None
        layers: list[str | None] = asked.layers or [None]
        for layer, heat in zip(layers, localise(cases, loaded, layers, encoder), strict=True):
            shown = layer or getattr(loaded.model.config, "cam_layer", "own")
            print(f"{path.stem:<32} {shown!s:<12} {heat.cases:>5} {heat.inside:>16.1%} {heat.share:>13.1%} {heat.random:>13.1%}")


if __name__ == "__main__":
    sys.exit(main())
