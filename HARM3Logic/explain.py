"""Why the model says so: Grad-CAM of every volume, and what each input changes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
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
        variable_attention: share of the attention each clinical variable gets (mean of the queries); None without clinical values.
        without_variable: the logit when a clinical variable is unknown, that of the case itself where it is so anyway.
    """

    logit: float
    saliency: Mapping[str, Float[Tensor, "D H W"]]
    tile_attention: Float[Tensor, " N"] | None
    without: Mapping[str, float]
    variable_attention: Float[Tensor, " V"] | None = None
    without_variable: Float[Tensor, " V"] | None = None


def explain(model: nn.Module, batch: Batch) -> Explanation:
    """Explain a batch of one case: all maps from one forward and one backward pass, all left-out logits from one more forward.

    Source: Grad-CAM, Selvaraju et al. 2020, eqs. 1 and 2, for the logit of "responder".
    """
    output, maps = saliency(model, batch)
    slide, clinical = (output.attention.get(name) for name in ("slide", "clinical"))
    return Explanation(
        logit=float(output.logit.detach()[0]),
        saliency={name: m[0] for name, m in maps.items()},
        tile_attention=None if slide is None or batch.tiles is None else slide.detach().float().mean(dim=1)[0].cpu(),
        without=leave_one_out(model, batch),
        variable_attention=None if clinical is None or batch.clinical is None else clinical.detach().float().mean(dim=1)[0].cpu(),
        without_variable=None if clinical is None else without_variables(model, batch),
    )


def saliency(
    model: nn.Module, batch: Batch, layers: tuple[CamLayer, ...] | None = None
) -> tuple[Output, dict[str, Float[Tensor, "B D H W"]]]:
    """The model's output and, per input, Grad-CAM enlarged to the model grid; an input a case lacks has a map of zeros.

    Args:
        layers: where to look; None takes the model's own choice.
    """
    layers = layers or model.cam_layers()  # type: ignore[operator]
    if not layers:  # no volume goes in
        with torch.no_grad():
            return model(batch), {}
    columns = _present(batch)
    if any(name in MRI for layer in layers for name in layer.inputs):
        batch.need("mri", "mri_mask")
    with torch.enable_grad(), _recording(layers) as seen:
        output: Output = model(batch)
        activations = [seen[id(layer.module)] for layer in layers]
        # an input no case has never runs through its trunk
        found = [a for a in activations if a is not None]
        gradients = iter(torch.autograd.grad(output.logit.sum(), found) if found else ())
    maps: dict[str, Tensor] = {}
    for layer, activation in zip(layers, activations, strict=True):
        image = batch.mri if layer.inputs[0] in MRI else batch.ct
        if image is None:
            continue
        shown = torch.stack([columns[name] for name in layer.inputs], dim=1)
        full = image.new_zeros(*shown.shape, *image.shape[-3:], dtype=torch.float32)
        if activation is not None:
            cam = grad_cam(activation.detach(), next(gradients), layer.by_place).float()
            full[shown] = F.interpolate(cam[:, None], size=image.shape[-3:], mode="trilinear", align_corners=False)[:, 0]
        for k, name in enumerate(layer.inputs):  # members of an ensemble each see an input; the logit's mean has divided by their number
            maps[name] = maps[name] + full[:, k].cpu() if name in maps else full[:, k].cpu()
    return output, {name: maps[name] for name in (*MRI, "ct") if name in maps}


def _present(batch: Batch) -> dict[str, Bool[Tensor, " B"]]:
    """Which cases have an input, for every input that the batch could hold."""
    found: dict[str, Tensor] = {}
    if batch.mri_mask is not None:
        found |= {name: batch.mri_mask.flatten(1)[:, k] for k, name in enumerate(MRI)}
    if batch.tile_mask is not None:
        found["slide"] = batch.tile_mask.any(dim=1)
    if batch.ct is not None:
        found["ct"] = ~batch.ct.isnan().flatten(1).any(dim=1)
    if batch.clinical_mask is not None:
        found["clinical"] = batch.clinical_mask.any(dim=1)
    return found


def grad_cam(
    activation: Float[Tensor, "N C d h w"], gradient: Float[Tensor, "N C d h w"], by_place: bool = False
) -> Float[Tensor, "N d h w"]:
    """Source: Selvaraju et al. 2020; by place, Draelos and Carin 2020 (HiResCAM)."""
    weights = gradient if by_place else gradient.mean(dim=(2, 3, 4), keepdim=True)  # eq. 1
    return (weights * activation).sum(dim=1).relu()  # eq. 2


@torch.no_grad()
def leave_one_out(model: nn.Module, batch: Batch) -> dict[str, float]:
    """The logit without each input the model reads, of a batch of one case, in one forward.

    What it cannot do without is never left out: the only volume, the only input, what its config needs.
    """
    read, needed = set(model.inputs()), getattr(model.config, "needs", ())  # type: ignore[operator]
    there = [name for name, shown in _present(batch).items() if shown[0] and name in read]
    volumes = [name for name in there if name in MRI]
    names = volumes * (len(volumes) > 1) + ["slide"] * ("slide" in there and bool(volumes))
    names += ["ct", "clinical"] * ("ct" in there and "clinical" in there)
    names = [name for name in names if name not in needed]
    if not names:
        return {}
    rows = _copies(batch, len(names))
    for row, name in enumerate(names):
        if name == "slide":
            rows.need("tile_mask")[0][row] = False
        elif name == "ct":
            rows.need("ct")[0][row] = torch.nan
        elif name == "clinical":
            rows.need("clinical_mask")[0][row] = False
        else:
            rows.need("mri_mask")[0].flatten(1)[row, MRI.index(name)] = False
    return dict(zip(names, model(rows).logit.float().tolist(), strict=True))


@torch.no_grad()
def without_variables(model: nn.Module, batch: Batch) -> Float[Tensor, " V"] | None:
    """The logit of a batch of one case with each clinical variable unknown, in one forward; None without clinical values."""
    if batch.clinical_mask is None:
        return None
    rows = _copies(batch, batch.clinical_mask.shape[1])
    rows.need("clinical_mask")[0].fill_diagonal_(False)
    logit: Tensor = model(rows).logit
    return logit.float().cpu()


def _copies(batch: Batch, count: int) -> Batch:
    """The only case of a batch so many times, to be changed freely."""
    return batch.take(torch.zeros(count, dtype=torch.long, device=next(iter(batch.tensors().values())).device))


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
