"""3D ResNet trunk: a volume to a map of tokens.

    (N 1 D H W) -> conv 7^3 /(1,2,2) -> max-pool /2 -> layer1 -> layer2 /2 -> layer3 /2* -> layer4 /2* -> (N C d h w)
    * replaced by dilation where `output_stride` is smaller than 32

Source: Hara et al. 2018 (3D-ResNets-PyTorch), built from MONAI's ResNet; dilation as in MedicalNet, Chen et al. 2019.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@dataclass(frozen=True)
class TrunkConfig:
    """Args:
    widen: factor on the stage widths 64, 128, 256, 512.
    stem: conv: 7^3 of stride (1,2,2) and a max-pool, as the source. strided: one (3,7,7) convolution of stride (2,4,4) to the
        same map; ours, for processors without a GPU: a training step takes a seventh of the time.
    output_stride: in-plane voxels per token; the slice axis has half of it.
    focus: a gate, a 1^3 convolution on the first stage's map, believes where the tumour is, and the map can be weighed by it; anatomy
        that all patients share then takes no room in the tokens. Ours, in the manner of Attention U-Net (Schlemper et al. 2019).
    """

    depth: Literal[10, 18, 34, 50] = 18
    widen: float = 1.0
    stem: Literal["conv", "strided"] = "conv"
    output_stride: Literal[8, 16, 32] = 32
    norm: Literal["batch", "instance"] = "batch"
    focus: bool = False


class ResNetTrunk(nn.Module):
    """The convolutional part of a 3D ResNet."""

    def __init__(self, config: TrunkConfig) -> None:
        from monai.networks.nets.resnet import ResNet, ResNetBlock, ResNetBottleneck  # here, for it takes seconds

        super().__init__()
        block = ResNetBottleneck if config.depth >= 50 else ResNetBlock
        kernel: Any = 7 if config.stem == "conv" else (3, 7, 7)  # MONAI's annotation forgets that it takes three numbers
        stride: Any = (1, 2, 2) if config.stem == "conv" else (2, 4, 4)
        net = ResNet(
            block,
            list(BLOCKS[config.depth]),
            [64, 128, 256, 512],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_size=kernel,
            conv1_t_stride=stride,
            no_max_pool=config.stem == "strided",
            shortcut_type="B",
            widen_factor=config.widen,
            feed_forward=False,
            bias_downsample=False,
        )
        if config.norm == "instance":
            _norm_each_volume(net)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.act, *([net.maxpool] if config.stem == "conv" else []))
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = int(512 * config.widen) * block.expansion
        self.gate = nn.Conv3d(int(64 * config.widen) * block.expansion, 1, 1) if config.focus else None
        self.focus = nn.Identity()  # the weighed map, by a name that Grad-CAM can take
        if config.output_stride <= 16:
            _dilate(self.layer4, 2)
        if config.output_stride == 8:
            _dilate(self.layer3, 2)
            _dilate(self.layer4, 4)

    def begin(self, volumes: Float[Tensor, "N 1 D H W"]) -> tuple[Float[Tensor, "N e i j k"], Float[Tensor, "N i j k"] | None]:
        """The first stage's map, and the logit of the gate where there is one."""
        first = self.layer1(self.stem(volumes))
        return first, None if self.gate is None else self.gate(first)[:, 0]

    def end(self, first: Float[Tensor, "N e i j k"], belief: Float[Tensor, "N i j k"] | None) -> Float[Tensor, "N C d h w"]:
        """The last map, from the first stage's weighed by the gate's logit."""
        if belief is not None:
            first = first * belief.sigmoid()[:, None]
        return self.layer4(self.layer3(self.layer2(self.focus(first))))


def _norm_each_volume(net: nn.Module) -> None:
    """Instance norm in place of every batch norm; MONAI's own option reaches its stem only."""
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm3d):
            setattr(net, name, nn.InstanceNorm3d(child.num_features, affine=True))
        else:
            _norm_each_volume(child)


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Trade the stage's stride for dilation: the same field of view on a finer map."""
    for module in stage.modules():
        if isinstance(module, nn.Conv3d):
            module.stride = (1, 1, 1)
            if module.kernel_size == (3, 3, 3):
                module.dilation = module.padding = (dilation,) * 3
