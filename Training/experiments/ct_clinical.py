"""The second paper's framework: CT and clinical values, by cross-attention, from a pretrained trunk or from scratch.

    harm3 phantom --kind gist --cases 240 --crops 400 --seed 1 --out runs/gist
    python -m Training.pretrain --crops runs/gist/crops --never runs/gist/cohort.csv --out runs/trunk
    python -m Training.train ct_clinical:compact_lora --cohort runs/gist/cohort.csv --pretrained runs/trunk/trunk.safetensors --out runs/ct

    name                what reaches the answer
    SIZE                clinical values ask the CT: cross-attention (paper, compact)
    SIZE_concat         both side by side
    SIZE_image          the CT alone
    SIZE_clinical       the clinical values alone
    each ..._lora       the same with low-rank updates of a pretrained trunk, which --pretrained names; not of SIZE_clinical, which has none

`Training.ct_table` trains all of a size and compares them. Of the published framework only the abstract can be had: optimiser, rates and
epochs are ours. The trunk of `paper` is a ViT-S, that of `compact` fits two cores. The schema is that of the GIST abstract; --schema gives
another.
"""

from dataclasses import replace
from typing import Any

from HARM3Logic.clinical import gist
from HARM3Logic.models import ct_clinical
from HARM3Logic.models.lora import LoraSettings
from Training.experiment import Augmentation, Experiment
from Training.pretrain import RECIPES

FUSIONS: dict[str, tuple[str, ...]] = {"cross": (), "concat": (), "image": ("ct",), "clinical": ("clinical",)}  # and what each needs
BOTH = Augmentation(shift=(1, 2, 2), scale=0.05, offset=0.05, drop_value=0.2)

# compact keeps its last weights: among few labels a handful choose, and the epoch that they like best is chance
SIZES: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 100, "batch_size": 16, "learning_rate": 1e-4, "weight_decay": 1e-2, "patience": 30},
    "compact": {"epochs": 15, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 1e-2, "average": 0.95},
}


def _experiment(size: str, fusion: str, lora: bool) -> Experiment:
    config = {"paper": ct_clinical.paper, "compact": ct_clinical.compact}[size]()
    needs = FUSIONS[fusion]
    return Experiment(
        "ct_clinical",
        replace(config, fusion=fusion, needs=needs),
        RECIPES[size].preprocessing,  # the trunk has learned on these crops
        replace(BOTH, drop_ct=0.0, drop_row=0.0) if needs else BOTH,  # what a model needs is never withheld
        schema=gist(),
        lora=LoraSettings() if lora else None,
        warm_up=0.1,
        **SIZES[size],
    )


EXPERIMENTS = {
    "_".join([size, *([fusion] if fusion != "cross" else []), *(["lora"] if lora else [])]): _experiment(size, fusion, lora)
    for size in SIZES
    for fusion in FUSIONS
    for lora in (False, True)
    if not (lora and fusion == "clinical")
}
