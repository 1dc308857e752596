"""3D RP-Net: two U-Nets, one before and one after therapy, and a head that reads their difference.

    pre  (B v D H W) --U-Net--> maps of levels 2 and 4, segmentation logits summed to level 1 --.
    post (B v D H W) --U-Net--> the same ------------------------------------------------------ minus
        each of the three --conv block--> (B 32 d h w) --mean--> (B 32);  all --linear--> logit of the network (B)
    logits of all networks --mean over those that have a volume--> logit (B)

The source has one network for each sequence and joins their scores afterwards; here the networks are trained together and their logits
averaged. In training the U-Nets also segment the tumour where masks are given; without masks the labels alone teach them.

Source: Jin et al. 2021, Predicting treatment response from longitudinal images using multi-task deep learning; the U-Net is that of
Isensee et al. 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI, SEQUENCES, TIMEPOINTS
from HARM3Logic.errors import BadOption
from HARM3Logic.models.channels import EachVolume, check, gather, joined
from HARM3Logic.models.output import CamLayer, Output
from HARM3Logic.models.reference import fill

LEVELS = 5
SEGMENTED = 3  # finest levels that give segmentation logits
TAPS = ("enc2", "enc4", "seg1")  # what the head reads
HEAD_WIDTH = 32
SLOPE = 0.3
EPSILON = 1e-3  # added to the standard deviation, not to the variance
TINY = 1e-12  # of a variance: the root has no slope at 0
SMOOTH = 1e-5


@dataclass(frozen=True)
class RPNet3DConfig:
    """Defaults are the source's.

    Args:
        networks: one network for each entry, the sequences it reads as channels; (("t1", "t2"),) is a single network for both.
        base: channels of the first level; each further level has twice as many.
        stem_stride: of the first convolution; more than 1 is ours, for processors without a GPU.
        mask_weight: of each timepoint's segmentation loss; 0 trains from the labels alone.
        cam_layer: branch of the head whose map Grad-CAM explains. Earlier maps will not do: the norm that follows them takes away each
            channel's mean, and with it the mean of its gradient, which is what Grad-CAM weighs the channel by.
        needs: inputs that may not be missing; empty: any one volume will do.
    """

    networks: tuple[tuple[str, ...], ...] = tuple((s,) for s in SEQUENCES)
    base: int = 16
    stem_stride: tuple[int, int, int] = (1, 1, 1)
    dropout: float = 0.3
    mask_weight: float = 0.2
    cam_layer: Literal["enc2", "enc4", "seg1"] = "enc4"
    needs: tuple[str, ...] = field(default=())


def paper() -> RPNet3DConfig:
    """The source's widths: 16.8 M parameters for each sequence."""
    return RPNet3DConfig()


def compact() -> RPNet3DConfig:
    """A quarter of the widths at half the resolution, 1.1 M parameters for each sequence, for processors without a GPU."""
    return RPNet3DConfig(base=4, stem_stride=(1, 2, 2), cam_layer="enc2")  # the map of enc4 would have one or two cells a side


class RPNet3D(nn.Module):
    """See the module's diagram."""

    def __init__(self, config: RPNet3DConfig = RPNet3DConfig()) -> None:
        super().__init__()
        if not config.networks or not all(read and set(read) <= set(SEQUENCES) for read in config.networks):
            raise BadOption(f"networks is {config.networks}; each must read some of {', '.join(SEQUENCES)}.", "Correct the config.")
        self.config = config
        self.networks = nn.ModuleList(RPNetwork(read, config) for read in config.networks)

    def forward(self, batch: Batch) -> Output:
        """One logit per case. The maps of a timepoint without a volume count as 0.

        Raises:
            MissingInput: a case has no volume the networks read, or lacks one the config says it needs.
        """
        batch.need("mri", "mri_mask")
        check(batch, self.inputs(), self.config.needs, "rpnet3d")
        teach = self.training and self.config.mask_weight > 0 and batch.tumour is not None
        results, seen = [], []
        for network in self._parts():
            channels, present = gather(batch, network.volumes)
            results.append(network(channels, present, teach))
            seen.append(present.any(dim=1))
        used = torch.stack(seen).float()
        logit = (torch.stack([result.logit for result in results]) * used).sum(dim=0) / used.sum(dim=0)
        return Output(logit, self._losses(batch, results) if teach else {})

    def cam_layers(self) -> tuple[CamLayer, ...]:
        """One per network, which its volumes share: it explains their difference."""
        return tuple(CamLayer(network.each, network.volumes) for network in self._parts())

    def inputs(self) -> tuple[str, ...]:
        """What the model can read."""
        return tuple(name for name in MRI if any(name in network.volumes for network in self._parts()))

    def _losses(self, batch: Batch, results: list[NetworkOutput]) -> dict[str, Tensor]:
        """What masks teach, for each timepoint the mean over the networks."""
        (tumour,) = batch.need("tumour")
        losses = {}
        for t, time in enumerate(TIMEPOINTS):
            terms = [dice_loss(result.masks[t], tumour[:, t], result.seen[:, t]) for result in results]
            losses[f"tumour_{time}"] = self.config.mask_weight * torch.stack(terms).mean()
        return losses

    def _parts(self) -> Iterator[RPNetwork]:
        for network in self.networks:
            assert isinstance(network, RPNetwork)
            yield network


class NetworkOutput(NamedTuple):
    """Args:
    masks: logits of the segmentation of each timepoint; empty unless asked for.
    seen: which timepoints have a volume.
    """

    logit: Float[Tensor, " B"]
    masks: tuple[Float[Tensor, "B D H W"], ...]
    seen: Bool[Tensor, "B T"]


class RPNetwork(nn.Module):
    """The source's network for some sequences as channels (v of them)."""

    def __init__(self, sequences: tuple[str, ...], config: RPNet3DConfig) -> None:
        super().__init__()
        self.volumes = tuple(f"{s}_{t}" for t in TIMEPOINTS for s in sequences)
        self.cam_layer = config.cam_layer
        self.branches = nn.ModuleDict({t: UNet(len(sequences), config) for t in TIMEPOINTS})
        widths = (config.base * 4, config.base * 16, 1)
        self.head = nn.ModuleDict({tap: ConvBlock(width, HEAD_WIDTH) for tap, width in zip(TAPS, widths, strict=True)})
        self.score = nn.Linear(len(TAPS) * HEAD_WIDTH, 1)
        self.each = EachVolume()
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, channels: Float[Tensor, "B V D H W"], present: Bool[Tensor, "B V"], segment: bool) -> NetworkOutput:
        seen = present.unflatten(1, (len(TIMEPOINTS), -1)).any(dim=2)
        parts = zip(self.branches.values(), channels.unflatten(1, (len(TIMEPOINTS), -1)).unbind(dim=1), strict=True)
        pre, post = (branch(volumes, segment) for branch, volumes in parts)
        features = []
        for tap in TAPS:
            here = seen.to(pre[tap].dtype)[:, :, None, None, None, None]
            x = self.head[tap](pre[tap] * here[:, 0] - post[tap] * here[:, 1])
            if tap == self.cam_layer:
                x = joined(self.each(x, present), present)
            features.append(x.mean(dim=(2, 3, 4)))
        masks = (pre["mask"][:, 0], post["mask"][:, 0]) if segment else ()
        return NetworkOutput(self.score(torch.cat(features, dim=1))[:, 0], masks, seen)


class UNet(nn.Module):
    """One timepoint's volumes to the maps the head reads, and to the logits of a tumour mask."""

    def __init__(self, channels: int, config: RPNet3DConfig) -> None:
        super().__init__()
        widths = [config.base * 2**level for level in range(LEVELS)]
        self.enc = nn.ModuleList(
            Encoder(before, width, config.stem_stride if level == 0 else (2, 2, 2), config.dropout)
            for level, (before, width) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.dec = nn.ModuleList(Decoder(width, level < SEGMENTED) for level, width in enumerate(widths[:-1]))

    def forward(self, volumes: Float[Tensor, "B v D H W"], segment: bool) -> dict[str, Tensor]:
        """The source's names to maps; `mask`, the logits of the finest level, only on request: the head does not read it."""
        skips, x = [], volumes
        for encoder in self.enc:
            x = encoder(x)
            skips.append(x)
        maps = {f"enc{level}": skip for level, skip in enumerate(skips)}
        logits: Tensor | None = None
        for level in range(LEVELS - 2, -1 if segment else 0, -1):
            decoder = self.dec[level]
            x = decoder(x, skips[level])
            if isinstance(decoder.seg, nn.Conv3d):
                own = decoder.seg(x)
                logits = own if logits is None else own + _enlarge(logits, own)
                maps[f"seg{level}"] = logits
        return {**maps, "mask": _enlarge(maps["seg0"], volumes)} if segment else maps


class Encoder(nn.Module):
    """One level down: a convolution and what its context adds to it."""

    def __init__(self, before: int, width: int, stride: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        self.enter = ConvBlock(before, width, stride=stride)
        self.context1, self.context2 = ConvBlock(width, width), ConvBlock(width, width)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, x: Float[Tensor, "B c d h w"]) -> Float[Tensor, "B C _ _ _"]:
        entered = self.enter(x)
        return entered + self.context2(self.dropout(self.context1(entered)))


class Decoder(nn.Module):
    """One level up: the coarser map enlarged, beside the encoder's map of this level."""

    def __init__(self, width: int, segmented: bool) -> None:
        super().__init__()
        self.up = ConvBlock(2 * width, width)
        self.loc1, self.loc2 = ConvBlock(2 * width, width), ConvBlock(width, width, kernel=1)
        self.seg = nn.Conv3d(width, 1, 1) if segmented else None

    def forward(self, coarse: Float[Tensor, "B c _ _ _"], skip: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B C d h w"]:
        return self.loc2(self.loc1(torch.cat([skip, self.up(_enlarge(coarse, skip))], dim=1)))


class ConvBlock(nn.Module):
    """Convolution with TensorFlow's "same" padding, norm of each channel of each case, leaky rectifier."""

    def __init__(self, before: int, width: int, kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, width, kernel, stride)
        self.norm = Norm(width)

    def forward(self, x: Float[Tensor, "B c d h w"]) -> Float[Tensor, "B C _ _ _"]:
        pads: list[int] = []
        for n, kernel, stride in zip(x.shape[:1:-1], self.conv.kernel_size[::-1], self.conv.stride[::-1], strict=True):
            short = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [short // 2, short - short // 2]  # trap: an even length of stride 2 gets none before and one after
        return F.leaky_relu(self.norm(self.conv(F.pad(x, pads))), SLOPE)


class Norm(nn.Module):
    """(x - mean) / (standard deviation + 0.001), over space. PyTorch's own adds to the variance."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B C d h w"]) -> Float[Tensor, "B C d h w"]:
        variance, mean = torch.var_mean(x.float(), dim=(2, 3, 4), correction=0, keepdim=True)
        normed = (x - mean) / (variance.clamp(min=TINY).sqrt() + EPSILON)
        return (normed * self.weight[:, None, None, None] + self.bias[:, None, None, None]).to(x.dtype)


def dice_loss(logit: Float[Tensor, "B D H W"], tumour: Float[Tensor, "B D H W"], seen: Bool[Tensor, " B"]) -> Float[Tensor, ""]:
    """Minus the mean Dice coefficient of the cases that have a volume and a mask (one without has NaN)."""
    known = seen & ~tumour.flatten(1).isnan().any(dim=1)
    found, true = logit[known].float().sigmoid().flatten(1), tumour[known].float().flatten(1)
    dice = 2 * ((found * true).sum(dim=1) + SMOOTH / 2) / (found.sum(dim=1) + true.sum(dim=1) + SMOOTH)
    return -dice.sum() / max(1, len(dice))


def load_reference(model: RPNet3D, weights: Mapping[str, Tensor], network: int = 0) -> None:
    """Fill one of the model's networks with Keras variables of 3D RP-Net.

    Args:
        weights: by their place in the network, `branch1.enc0.in.conv.kernel` to `head.score.bias` (branch 1 is pre); kernels as Keras
            keeps them, input and output channels last.

    Raises:
        BadCheckpoint: they do not fit.
    """
    renamed = {}
    for name, value in weights.items():
        tensor = torch.as_tensor(value)
        if name.endswith("kernel"):
            tensor = tensor.permute(4, 3, 0, 1, 2) if tensor.ndim == 5 else tensor.T
        renamed[_our_name(name)] = tensor
    fill(model.networks[network], renamed, "3D RP-Net")


def _our_name(name: str) -> str:
    for pattern, ours in (
        (r"^branch1\.", "branches.pre."), (r"^branch2\.", "branches.post."), (r"(enc|dec)(\d)\.(?!conv|norm)", r"\1.\2."),
        (r"\.in\.", ".enter."), (r"seg\.conv", "seg"), (r"^head\.score", "score"),
        (r"kernel$|gamma$", "weight"), (r"beta$", "bias"),
    ):  # fmt: skip
        name = re.sub(pattern, ours, name)
    return name


def _enlarge(x: Float[Tensor, "B C _ _ _"], to: Float[Tensor, "B c d h w"]) -> Float[Tensor, "B C d h w"]:
    """Nearest neighbour; twice as large wherever the finer length is even."""
    return F.interpolate(x, size=to.shape[2:], mode="nearest")
