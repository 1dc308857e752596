"""Judge the slide models on real bags: python -m Training.mil_benchmark ucsb_breast_cancer.csv.gz --out DIR [--model clam transmil].

The UCSB breast cancer bags: 58 H&E images as bags of 21 to 40 image patches, each 708 hand-made features; 26 malignant. Ten folds for
each of five seeds, the folds, loop and statistics of every other training here. Nothing is tuned or chosen on the bags: epochs are fixed,
all bags of the other folds train, features are scaled by what the training saw of them.

Writes DIR/MODEL-seedS/fold-K/predictions.csv and DIR/summary.json; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning_fabric import Fabric
from scipy.special import expit

from HARM3Logic.batch import Prepared
from HARM3Logic.case import SEQUENCES, TIMEPOINTS, Case, write_text
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption, HARM3Error
from HARM3Logic.models import clam, transmil
from HARM3Logic.predict import writable
from Training import metrics
from Training.cache import Cache
from Training.datasets import read_table
from Training.devices import open_fabric
from Training.experiment import Augmentation, Experiment
from Training.folds import Split, folds
from Training.loop import logits, train
from Training.tabular import summarise

STILL = Augmentation(flip=0.0, shift=(0, 0, 0), scale=0.0, offset=0.0, drop_volume=0.0, drop_slide=0.0)
SHARED: dict[str, Any] = {"augmentation": STILL, "batch_size": 1, "optimiser": "adam", "weight_decay": 1e-5}
EXPERIMENTS = {  # rates and weight decay are the authors'; TransMIL's Lookahead(RAdam) is plain Adam here
    "clam": Experiment("clam", clam.compact(), epochs=10, learning_rate=1e-4, **SHARED),
    "clam_mb": Experiment("clam", dataclasses.replace(clam.compact(), branches="multi"), epochs=10, learning_rate=1e-4, **SHARED),
    "transmil": Experiment("transmil", transmil.compact(), epochs=5, learning_rate=2e-4, **SHARED),
}
PUBLISHED = {  # AUC of ten folds: Ramsauer et al. 2020, arXiv 2008.02217, table 1; the last was measured on the same table
    "Hopfield pooling": "0.895 ± 0.008",
    "path encoding": "0.880 ± 0.022",
    "MILES": "0.833 ± 0.026",
    "citation-kNN": "0.706 ± 0.032",
    "mean and maximum, logistic regression": "0.864",
}


class Bags(Cache):
    """Bags of features in memory, as prepared cases without any volume."""

    def __init__(self, bags: Sequence[torch.Tensor], cases: Sequence[Case]) -> None:
        super().__init__([], cases)
        self.bags = tuple(bags)

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Prepared:
        case, tiles = self.cases[index], self.bags[index]
        shape = (len(TIMEPOINTS), len(SEQUENCES))
        return Prepared(
            case_id=case.case_id, label=case.label, tiles=tiles, tile_xy_um=torch.zeros(len(tiles), 2),
            mri=torch.zeros(*shape, 1, 1, 1), mri_mask=torch.zeros(shape, dtype=torch.bool), body=torch.zeros(1, 1, 1, dtype=torch.bool),
        )  # fmt: skip


def read_bags(path: Path) -> Bags:
    """The bags of a table without header: label, bag, features of one patch.

    Raises:
        BadOption: it is not there, or not such a table.
    """
    cases = {case.case_id: case for case in read_table(path, "ucsb").cases}
    rows = pd.read_csv(path, header=None)
    bags = {f"bag-{name}": torch.from_numpy(part.iloc[:, 2:].to_numpy(np.float32)) for name, part in rows.groupby(1)}
    return Bags([bags[name] for name in cases], list(cases.values()))


def judge(experiment: Experiment, bags: Bags, split: Split, out: Path, fabric: Fabric) -> list[dict[str, Any]]:
    """Train on every other bag and judge the fold; nothing is done again that is there."""
    path = out / "predictions.csv"
    if path.is_file():
        return list(pd.read_csv(path, dtype={"case_id": str}).to_dict("records"))
    trained = train(experiment, bags, dataclasses.replace(split, train=split.train + split.choose), out, fabric)
    found, label = logits(trained, bags, split.judge, 1, fabric.device)
    names = [bags.cases[k].case_id for k in split.judge]
    rows = [
        {"case_id": name, "fold": split.number, "label": int(y), "probability": p}
        for name, y, p in zip(names, label, expit(found).tolist(), strict=True)
    ]
    write_cohort(path, rows)
    return rows


def benchmark(model: str, bags: Bags, out: Path, count: int, repeats: int, fabric: Fabric) -> dict[str, metrics.Estimate]:
    """All folds of all seeds: AUC of all bags at once (first seed) and mean over the folds.

    Raises:
        BadOption: the folder holds a run of other settings.
    """
    judged = []
    for seed in range(repeats):
        features = bags.bags[0].shape[1]
        experiment = EXPERIMENTS[model]
        experiment = dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, tile_features=features), seed=seed)
        folder = writable(out / f"{model}-seed{seed}")
        plain = json.dumps({**dataclasses.asdict(experiment), "folds": count}, indent=2)
        described = folder / "experiment.json"
        if described.is_file() and described.read_text(encoding="utf-8") != plain:
            raise BadOption(f"{str(folder)!r} holds a run of other settings.", "Choose another --out or remove it.")
        write_text(described, plain)
        splits = folds(bags.cases, count, seed)
        judged.append([judge(experiment, bags, split, folder / f"fold-{split.number}", fabric) for split in splits])
    everyone = [dataclasses.replace(split, train=split.train + split.choose) for split in splits]
    return summarise(judged, everyone)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m Training.mil_benchmark", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("table", type=Path, metavar="TABLE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="seeds of folds and weights (default: 5)")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    try:
        if options.repeats < 1 or options.folds < 2:
            raise BadOption(f"--repeats {options.repeats} --folds {options.folds}; at least 1 and 2 are wanted.", "Correct them.")
        bags, fabric = read_bags(options.table), open_fabric(options.device)
        found = {m: benchmark(m, bags, options.out, options.folds, options.repeats, fabric) for m in options.model}
    except HARM3Error as error:
        print(error, file=sys.stderr)
        return 2
    plain = {model: {key: dataclasses.asdict(value) for key, value in estimates.items()} for model, estimates in found.items()}
    write_text(options.out / "summary.json", json.dumps({**plain, "published": PUBLISHED}, indent=2).replace("NaN", "null") + "\n")
    for model, estimates in found.items():
        print(f"{model}: AUC over folds {estimates['folds']}, all bags at once {estimates['pooled']}")
    print("beside it: " + "; ".join(f"{name} {value}" for name, value in PUBLISHED.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
