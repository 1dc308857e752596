"""Every network by name. A model is named in its own file, here, and in the experiments that train it."""

from torch import nn

from HARM3Logic.models.c3d import C3D
from HARM3Logic.models.clam import CLAM
from HARM3Logic.models.ct_clinical import CTClinical
from HARM3Logic.models.ensemble import Ensemble
from HARM3Logic.models.harm3_fusion import HARM3Fusion
from HARM3Logic.models.hmcat import HMCAT
from HARM3Logic.models.m2fusion import M2Fusion
from HARM3Logic.models.resnet3d_classifier import ResNet3D
from HARM3Logic.models.rpnet3d import RPNet3D
from HARM3Logic.models.transmil import TransMIL

MODELS: dict[str, type[nn.Module]] = {
    "harm3_fusion": HARM3Fusion,
    "harm3_fusion_ensemble": Ensemble,
    "c3d": C3D,
    "resnet3d": ResNet3D,
    "rpnet3d": RPNet3D,
    "clam": CLAM,
    "transmil": TransMIL,
    "hmcat": HMCAT,
    "m2fusion": M2Fusion,
    "ct_clinical": CTClinical,
}
