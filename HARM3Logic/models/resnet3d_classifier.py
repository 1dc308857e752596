"""A 3D ResNet, the "ResNet" of the paper's Table 1, over the volumes stacked as channels.

    mri (B V D H W) --trunk--> (B C d h w) --mean--> (B C) --fc--> (B 2) --difference--> logit (B)

The paper cites the 2D network (He et al. 2016); this is its extension to volumes. How they enter is open in the paper; as channels they
share one network of the published size.

Source: Hara et al. 2018 (3D-ResNets-PyTorch).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor, nn

from HARM3Logic.case import MRI
from HARM3Logic.models.channels import ChannelClassifier, joined
from HARM3Logic.models.reference import bare, fill
from HARM3Logic.models.resnet3d import ResNetTrunk, TrunkConfig

NAMES = {"conv1": "trunk.stem.0", "bn1": "trunk.stem.1", "fc": "fc"}  # the reference's other modules only lack "trunk."


@dataclass(frozen=True)
class ResNet3DConfig:
    """Defaults are the source's, for another number of input channels.

    Args:
        volumes: the channels.
        trunk: a smaller `output_stride` makes finer heatmaps with the same weights.
        needs: inputs that may not be missing; empty: any one of the volumes will do.
    """

    volumes: tuple[str, ...] = MRI
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    needs: tuple[str, ...] = field(default=())


def paper() -> ResNet3DConfig:
    """ResNet-18: 33 M parameters."""
    return ResNet3DConfig()


def compact() -> ResNet3DConfig:
    """The trunk of the small HARM3-Fusion without its gate, 0.9 M parameters; its finest map, as no gate makes a finer one."""
    return ResNet3DConfig(trunk=TrunkConfig(depth=10, widen=0.25, stem="strided", output_stride=8))


class ResNet3D(ChannelClassifier):
    """See the module's diagram."""

    name = "resnet3d"

    def __init__(self, config: ResNet3DConfig = ResNet3DConfig()) -> None:
        super().__init__(config)
        self.trunk = ResNetTrunk(config.trunk)
        _widen_input(self.trunk, len(config.volumes))
        self.fc = nn.Linear(self.trunk.channels, 2)

    def classify(self, channels: Float[Tensor, "B V D H W"], present: Tensor | None = None) -> Float[Tensor, "B 2"]:
        first = self.trunk.layer1(self.trunk.stem(channels))  # not `begin`, which is declared for one channel
        last = self.trunk.end(first, None if self.trunk.gate is None else self.trunk.gate(first)[:, 0])
        if present is not None:
            last = joined(self.each(last, present), present)
        return self.fc(last.mean(dim=(2, 3, 4)))


def load_reference(model: ResNet3D, weights: Mapping[str, Tensor]) -> None:
    """Fill the model with a state dict of 3D-ResNets-PyTorch (shortcut B), with or without a `module.` before its names.

    Raises:
        BadCheckpoint: they do not fit.
    """
    renamed = {}
    for name, value in bare(weights).items():
        module, _, rest = name.partition(".")
        if not rest.endswith("num_batches_tracked"):
            renamed[f"{NAMES.get(module, f'trunk.{module}')}.{rest}"] = value
    fill(model, renamed, "the 3D ResNet")


def _widen_input(trunk: ResNetTrunk, channels: int) -> None:
    """Let the trunk's first convolution read that many volumes at once."""
    first = trunk.stem[0]
    assert isinstance(first, nn.Conv3d)
    if first.in_channels != channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.new_empty(first.out_channels, channels, *first.kernel_size))
        nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
