"""Judge the slide models on real bags: python -m Training.mil_benchmark ucsb_breast_cancer.csv.gz --out DIR [--model clam transmil].

The UCSB breast cancer bags: 58 H&E images as bags of 21 to 40 image patches, each 708 hand-made features; 26 malignant. Ten folds for
each of five seeds, the folds, loop and statistics of every other training here, and the networks as `experiments.baselines` trains
them, which is as their authors do: the small ones, or (_paper) those of the published width. Nothing is tuned, and no bag that could
train is lost: of those that are not judged some tell first after how many epochs a model of the others is best; then all of them train
a fresh model for as many. Features are scaled by what the training saw of them.

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
from HARM3Logic.case import Case
from HARM3Logic.cohort import write_cohort
from HARM3Logic.prediction import writable
from HARM3Logic.writing import write_text
from Training import command, metrics
from Training.cache import Cache
from Training.datasets import read_table
from Training.devices import open_fabric
from Training.experiment import Augmentation, Experiment
from Training.experiments import baselines
from Training.folds import Split, folds
from Training.loop import logits, read_log, train
from Training.record import same_experiment
from Training.tabular import summarise

STILL = Augmentation(flip=0.0, shift=(0, 0, 0), scale=0.0, offset=0.0, drop_volume=0.0, drop_slide=0.0)


def _on_bags(method: str, size: str = "compact", **config: Any) -> Experiment:
    """A network as its authors train it; a bag is never changed, and hand-made features are brought to one scale."""
    own = baselines.EXPERIMENTS[f"{method}_{size}"]
    return dataclasses.replace(own, config=dataclasses.replace(own.config, standardise=True, **config), augmentation=STILL)


SMALL = {"clam": _on_bags("clam"), "clam_mb": _on_bags("clam", branches="multi"), "transmil": _on_bags("transmil")}
EXPERIMENTS = {
    **SMALL,
    "clam_paper": _on_bags("clam", "paper"),
    "clam_mb_paper": _on_bags("clam", "paper", branches="multi"),
    "transmil_paper": _on_bags("transmil", "paper"),
}
PUBLISHED = {  # AUC of ten folds: Ramsauer et al. 2020, arXiv 2008.02217, table 1; the last was measured on the same table
    "Hopfield pooling": "0.895 ± 0.008",
    "path encoding": "0.880 ± 0.022",
    "MILES": "0.833 ± 0.026",
    "citation-kNN": "0.706 ± 0.032",
    "mean and maximum, logistic regression": "0.864",
}


class Bags(Cache):
    """Bags of features in memory, as prepared cases of a slide alone."""

    def __init__(self, bags: Sequence[torch.Tensor], cases: Sequence[Case]) -> None:
        super().__init__([], cases)
        self.bags = tuple(bags)

    def __len__(self) -> int:
        return len(self.bags)

    def __getitem__(self, index: int) -> Prepared:
        case, tiles = self.cases[index], self.bags[index]
        return Prepared(case_id=case.case_id, label=case.label, tiles=tiles, tile_xy_um=torch.zeros(len(tiles), 2))


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
    """Train on the other bags and judge the fold; nothing is done again that is there."""
    path = out / "predictions.csv"
    if path.is_file():
        return list(pd.read_csv(path, dtype={"case_id": str}).to_dict("records"))
    train(experiment, bags, split, out / "length", fabric)
    log = read_log(out / "length")
    best = min(log, key=lambda row: row["inner_loss"])["epoch"]
    everyone = dataclasses.replace(split, train=(*split.train, *split.choose))  # what chooses chooses nothing now
    trained = train(dataclasses.replace(experiment, epochs=best + 1, patience=0, least_epochs=0), bags, everyone, out, fabric)
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
        settings = {"folds": count, "external": [], "by_centre": False, "shuffle_labels": None, "all_train": True}
        same_experiment(folder / "experiment.json", settings, experiment)
        splits = folds(bags.cases, count, seed)
        judged.append([judge(experiment, bags, split, folder / f"fold-{split.number}", fabric) for split in splits])
    return summarise(judged, splits)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("mil_benchmark", __doc__)
    parser.add_argument("table", type=Path, metavar="TABLE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", nargs="+", choices=list(EXPERIMENTS), default=list(SMALL))
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5, help="seeds of folds and weights (default: 5)")
    command.add_device(parser)
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, repeats=1, folds=2)
    bags, fabric = read_bags(asked.table), open_fabric(asked.device)
    found = {model: benchmark(model, bags, asked.out, asked.folds, asked.repeats, fabric) for model in asked.model}
    plain = {model: {key: dataclasses.asdict(value) for key, value in estimates.items()} for model, estimates in found.items()}
    write_text(asked.out / "summary.json", json.dumps({**plain, "published": PUBLISHED}, indent=2).replace("NaN", "null") + "\n")
    for model, estimates in found.items():
        print(f"{model}: AUC over folds {estimates['folds']}, all bags at once {estimates['pooled']}")
    print("beside it: " + "; ".join(f"{name} {value}" for name, value in PUBLISHED.items()))


if __name__ == "__main__":
    sys.exit(main())
