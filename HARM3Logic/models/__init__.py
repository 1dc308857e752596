"""Every network by name. A model is named in its own file, here, and in the experiments that train it."""

from torch import nn

from HARM3Logic.models.ensemble import Ensemble
from HARM3Logic.models.harm3_fusion import HARM3Fusion

MODELS: dict[str, type[nn.Module]] = {
    "harm3_fusion": HARM3Fusion,
    "harm3_fusion_ensemble": Ensemble,
}
