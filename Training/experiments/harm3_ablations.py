"""The rows of the paper's table 2: what is lost without a part of HARM3-Fusion.

    row of the table                        name
    LD-VAE, attention 1, attention 2        full
    -,      attention 1, attention 2        no_ldvae        tokens of both timepoints side by side
    LD-VAE, -,           attention 2        no_attn1        tokens of both sequences side by side
    LD-VAE, attention 1, -                  no_attn2        MRI and slide tokens side by side
    LD-VAE, -,           -                  row4_concat     all side by side, or
                                            row4_mri_only   "individual prediction": no slide at all

The table does not say which of the two readings its fourth row is, so that both are here. Each name alone has the paper's settings;
with `:compact` it has those for small machines: python -m Training.train harm3_ablations:no_ldvae:compact --cohort C.csv --out DIR

Every row is trained exactly as the full model is: same folds, seed, epochs and augmentation.
"""

from dataclasses import replace
from typing import Any

from Training.experiment import Experiment
from Training.experiments.harm3_fusion import EXPERIMENTS as FULL

ROWS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_ldvae": {"ldvae": False},
    "no_attn1": {"attn1": False},
    "no_attn2": {"attn2": "concat"},
    "row4_concat": {"attn1": False, "attn2": "concat"},
    "row4_mri_only": {"attn1": False, "attn2": "mri_only"},
}


def _row(base: Experiment, changes: dict[str, Any]) -> Experiment:
    return replace(base, config=replace(base.config, **changes))


EXPERIMENTS = {name: _row(FULL["paper"], changes) for name, changes in ROWS.items()} | {
    f"{name}:compact": _row(FULL["compact"], changes) for name, changes in ROWS.items()
}
