"""What the paper prints in its two tables, and which of it cannot be.

Source: Wang et al., HARM3-Fusion, tables 1 and 2: 407 patients of one hospital, 122 with a complete response, five folds, no intervals.
"""

from __future__ import annotations

from dataclasses import dataclass

from HARM3Logic.errors import HARM3Error
from Training.metrics import refuse_impossible

CASES, RESPONDERS = 407, 122
LAST_DIGIT = 1e-4


@dataclass(frozen=True)
class Printed:
    """A row of a table. `f1` is macro-averaged, as far as it fits sensitivity and specificity at all."""

    name: str
    auc: float
    accuracy: float
    f1: float
    sensitivity: float
    specificity: float

    @property
    def impossible(self) -> bool:
        """Whether no confusion matrix, of whatever cohort, gives this accuracy with this sensitivity and specificity."""
        try:
            refuse_impossible(self.accuracy, self.sensitivity, self.specificity, LAST_DIGIT)
        except HARM3Error:
            return True
        return False

    @property
    def fits(self) -> bool:
        """Whether the three can come from one confusion matrix of the paper's own patients."""
        return abs(self.accuracy - self.implied_accuracy) <= 2 * LAST_DIGIT

    @property
    def implied_accuracy(self) -> float:
        """The accuracy that this sensitivity and specificity give among the paper's patients."""
        return (RESPONDERS * self.sensitivity + (CASES - RESPONDERS) * self.specificity) / CASES


# method to its row of table 1
METHODS = {
    "c3d": Printed("3D-CNN", 0.5881, 0.6854, 0.5357, 0.5212, 0.6140),
    "resnet3d": Printed("ResNet", 0.5218, 0.6914, 0.5879, 0.5500, 0.6705),
    "rpnet3d": Printed("3D-RPNET", 0.7059, 0.7365, 0.6578, 0.6337, 0.7183),
    "clam": Printed("CLAM", 0.6202, 0.7020, 0.6121, 0.6278, 0.6601),
    "transmil": Printed("TransMIL", 0.6132, 0.6914, 0.5745, 0.6020, 0.6191),
    "hmcat": Printed("HMCAT", 0.6968, 0.7479, 0.6741, 0.6414, 0.7350),
    "m2fusion": Printed("M2Fusion", 0.6905, 0.7256, 0.6812, 0.6455, 0.7419),
    "harm3_fusion": Printed("Ours", 0.7581, 0.8272, 0.7541, 0.6578, 0.8167),
}

# row of the ablation to its row of table 2; both readings of the fourth row stand beside the same figures
_FOURTH = Printed("only LD-VAE", 0.6810, 0.7502, 0.6812, 0.6027, 0.7586)
ABLATIONS = {
    "no_ldvae": Printed("without LD-VAE", 0.6258, 0.6829, 0.6586, 0.5945, 0.7367),
    "no_attn1": Printed("without Attention-1", 0.6917, 0.7784, 0.6888, 0.6210, 0.7602),
    "no_attn2": Printed("without Attention-2", 0.7195, 0.7931, 0.7206, 0.6563, 0.7862),
    "row4_concat": _FOURTH,
    "row4_mri_only": _FOURTH,
    "harm3_fusion": Printed("full", 0.7581, 0.8272, 0.7649, 0.6978, 0.8167),
}
