"""C3D, the "3D-CNN" of the paper's Table 1: plain 3^3 convolutions over the volumes stacked as channels.

    mri (B V D H W) -> conv1 -> pool (1,2,2) -> conv2 -> pool -> conv3a, 3b -> pool -> conv4a, 4b -> pool -> conv5a, 5b -> pool
        -> mean over a grid of 1x4x4 -> fc6 -> fc7 -> fc8 (B 2) --difference--> logit (B)

How MRI volumes enter is open in the paper; as channels they share one network of the published size.

Source: Tran et al. 2015, Learning spatiotemporal features with 3D convolutional networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from HARM3Logic.case import MRI
from HARM3Logic.models.channels import ChannelClassifier, joined
from HARM3Logic.models.reference import bare, fill

STAGES = (("conv1",), ("conv2",), ("conv3a", "conv3b"), ("conv4a", "conv4b"), ("conv5a", "conv5b"))
GRID = (1, 4, 4)  # what 16x112x112, the source's input, leaves after the last pool


@dataclass(frozen=True)
class C3DConfig:
    """Defaults are the source's, for another number of input channels.

    Args:
        volumes: the channels.
        widths: channels of the five stages.
        hidden: width of fc6 and fc7.
        cam_layer: convolution whose rectified output Grad-CAM explains.
        needs: inputs that may not be missing; empty: any one of the volumes will do.
    """

    volumes: tuple[str, ...] = MRI
    widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    hidden: int = 4096
    dropout: float = 0.5
    cam_layer: Literal["conv3b", "conv4b", "conv5b"] = "conv5b"
    needs: tuple[str, ...] = field(default=())


def paper() -> C3DConfig:
    """The source's widths: 78 M parameters."""
    return C3DConfig()


def compact() -> C3DConfig:
    """A quarter of the widths, 2.3 M parameters, for processors without a GPU; heat from the last map that is not yet too coarse."""
    return C3DConfig(widths=(16, 32, 64, 128, 128), hidden=256, cam_layer="conv4b")


class C3D(ChannelClassifier):
    """See the module's diagram."""

    name = "c3d"

    def __init__(self, config: C3DConfig = C3DConfig()) -> None:
        super().__init__(config)
        c = config
        before = len(c.volumes)
        for names, width in zip(STAGES, c.widths, strict=True):
            for name in names:
                convolution = nn.Conv3d(before, width, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight)
                self.add_module(name, convolution)
                before = width
        self.fc6 = nn.Linear(before * GRID[0] * GRID[1] * GRID[2], c.hidden)
        self.fc7 = nn.Linear(c.hidden, c.hidden)
        self.fc8 = nn.Linear(c.hidden, 2)

    def classify(self, channels: Float[Tensor, "B V D H W"], present: Tensor | None = None) -> Float[Tensor, "B 2"]:
        x = channels
        for k, names in enumerate(STAGES):
            for name in names:
                x = F.relu(self.get_submodule(name)(x))
                if name == self.config.cam_layer and present is not None:
                    x = joined(self.each(x, present), present)
            x = _pool(x, k)
        x = F.adaptive_avg_pool3d(x, GRID).flatten(1)
        for layer in (self.fc6, self.fc7):
            x = F.dropout(F.relu(layer(x)), self.config.dropout, self.training)
        return self.fc8(x)


def load_reference(model: C3D, weights: Mapping[str, Tensor]) -> None:
    """Fill the model with a state dict of C3D in the pytorch-video-recognition port, whose names are ours, of one or several GPUs.

    Raises:
        BadCheckpoint: they do not fit.
    """
    fill(model, bare(weights), "C3D")


def _pool(x: Float[Tensor, "B C d h w"], stage: int) -> Float[Tensor, "B C _ _ _"]:
    """The pool after a stage; an axis of one cell stays as it is."""
    depth, height, width = (min(2, n) for n in x.shape[2:])
    if stage == 0:
        return F.max_pool3d(x, (1, height, width))
    return F.max_pool3d(x, (depth, height, width), padding=(0, height // 2, width // 2) if stage == len(STAGES) - 1 else 0)
