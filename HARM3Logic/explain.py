"""Why the model says so: Grad-CAM of every volume, and what each input changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI
from HARM3Logic.models.output import CamLayer, Output


@dataclass(frozen=True)
class Explanation:
    """One case explained.

    Args:
        saliency: input to its raw Grad-CAM on the model grid (logit units, at least 0).
        tile_attention: share of the slide's attention each tile gets (mean of the queries); None without a slide.
        without: input to the logit the model gives when that input is left out.
    """

    logit: float
    saliency: Mapping[str, Float[Tensor, "D H W"]]
    tile_attention: Float[Tensor, " N"] | None
    without: Mapping[str, float]


def explain(model: nn.Module, batch: Batch) -> Explanation:
    """Explain a batch of one case: all maps from one forward and one backward pass, all left-out logits from one more forward.

    Source: Grad-CAM, Selvaraju et al. 2020, eqs. 1 and 2, for the logit of "responder".
    """
    output, maps = saliency(model, batch)
    slide = output.attention.get("slide")
    return Explanation(
        logit=float(output.logit.detach()[0]),
        saliency={name: m[0] for name, m in maps.items()},
        tile_attention=None if slide is None or batch.tiles is None else slide.detach().float().mean(dim=1)[0].cpu(),
        without=leave_one_out(model, batch),
    )


def saliency(
    model: nn.Module, batch: Batch, layers: tuple[CamLayer, ...] | None = None
) -> tuple[Output, dict[str, Float[Tensor, "B D H W"]]]:
    """The model's output and, per input, Grad-CAM enlarged to the model grid; an input a case lacks has a map of zeros.

    Args:
        layers: where to look; None takes the model's own choice.
    """
    layers = layers or model.cam_layers()  # type: ignore[operator]
    (mri, present) = batch.need("mri", "mri_mask")
    with torch.enable_grad(), _recording(layers) as seen:
        output: Output = model(batch)
        activations = [seen[id(layer.module)] for layer in layers]
        # a sequence no case has never runs through its trunk
        found = [a for a in activations if a is not None]
        gradients = iter(torch.autograd.grad(output.logit.sum(), found))
    columns = {name: present.flatten(1)[:, k] for k, name in enumerate(MRI)}
    maps: dict[str, Tensor] = {}
    for layer, activation in zip(layers, activations, strict=True):
        shown = torch.stack([columns[name] for name in layer.inputs], dim=1)
        full = mri.new_zeros(*shown.shape, *mri.shape[-3:], dtype=torch.float32)
        if activation is not None:
            cam = grad_cam(activation.detach(), next(gradients)).float()
            full[shown] = F.interpolate(cam[:, None], size=mri.shape[-3:], mode="trilinear", align_corners=False)[:, 0]
        for k, name in enumerate(layer.inputs):  # members of an ensemble each see an input; the logit's mean has divided by their number
            maps[name] = maps[name] + full[:, k].cpu() if name in maps else full[:, k].cpu()
    return output, {name: maps[name] for name in MRI if name in maps}


def grad_cam(activation: Float[Tensor, "N C d h w"], gradient: Float[Tensor, "N C d h w"]) -> Float[Tensor, "N d h w"]:
    """Source: Selvaraju et al. 2020."""
    weights = gradient.mean(dim=(2, 3, 4), keepdim=True)  # eq. 1
    return (weights * activation).sum(dim=1).relu()  # eq. 2


@torch.no_grad()
def leave_one_out(model: nn.Module, batch: Batch) -> dict[str, float]:
    """The logit without each input of a batch of one case, in one forward; the only volume is never left out."""
    assert batch.mri_mask is not None
    volumes = [k for k in range(len(MRI)) if batch.mri_mask[0].flatten()[k]]
    slide = batch.tile_mask is not None and bool(batch.tile_mask.any())
    names = [MRI[k] for k in volumes] * (len(volumes) > 1) + ["slide"] * slide
    if not names:
        return {}
    rows = batch.take(torch.zeros(len(names), dtype=torch.long, device=batch.mri_mask.device))
    changed: dict[str, Any] = {"mri_mask": rows.mri_mask.clone()} if rows.mri_mask is not None else {}
    if slide and rows.tile_mask is not None:
        changed["tile_mask"] = rows.tile_mask.clone()
    for row, name in enumerate(names):
        if name == "slide":
            changed["tile_mask"][row] = False
        else:
            changed["mri_mask"].flatten(1)[row, MRI.index(name)] = False
    logits = model(dataclasses.replace(rows, **changed)).logit
    return dict(zip(names, logits.float().tolist(), strict=True))


@contextmanager
def _recording(layers: tuple[CamLayer, ...]) -> Iterator[dict[int, Tensor | None]]:
    """Keep what the layers put out during the block."""
    seen: dict[int, Tensor | None] = {id(layer.module): None for layer in layers}

    def keep(module: nn.Module, _: Any, out: Tensor) -> None:
        seen[id(module)] = out

    hooks = [layer.module.register_forward_hook(keep) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
