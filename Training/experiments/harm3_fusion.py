"""HARM3-Fusion.

harm3 phantom --cases 1060 --seed 1 --out runs/phantoms
python -m Training.train harm3_fusion:compact --cohort runs/phantoms/cohort.csv --out runs/demo --whole
"""

from dataclasses import replace
from typing import Literal

from HARM3Logic.models.harm3_fusion import compact, paper
from HARM3Logic.prepare import Preprocessing
from Training.experiment import Augmentation, Experiment

EXPERIMENTS = {
    # the paper's optimiser, rate, decay, epochs and batch; the rest ours
    "paper": Experiment("harm3_fusion", paper(), optimiser="adam", patience=30, augmentation=Augmentation(shift=(2, 10, 10))),
    "compact": Experiment(
        "harm3_fusion",
        compact(),
        Preprocessing(shape=(16, 64, 64), spacing_mm=(5.0, 2.0, 2.0), crop="body", bias_correction=False),
        augmentation=Augmentation(shift=(1, 2, 2), scale=0.05, offset=0.05, drop_tiles=0.7),
        epochs=58,
        batch_size=16,
        learning_rate=4e-4,
        weight_decay=1e-3,
        warm_up=0.1,
        average=0.97,
        mask_epochs=20,
        mask_steps=1100,
        fusion_epochs=20,
        mask_learning_rate=2e-3,
        frozen_epochs=18,
        patience=18,
    ),
}


def _stride(voxels: Literal[8, 16]) -> Experiment:
    """The small model with finer tokens, to compare where its heat lies (Training.localise)."""
    small = EXPERIMENTS["compact"]
    return replace(small, config=replace(small.config, trunk=replace(small.config.trunk, output_stride=voxels)))


EXPERIMENTS |= {"compact_stride16": _stride(16), "compact_stride8": _stride(8)}
