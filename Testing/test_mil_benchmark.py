"""The benchmark of bags: what it reads, that nobody judged has trained, and that one telling patch is found."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from HARM3Logic.errors import BadOption
from HARM3Logic.models.clam import CLAMConfig
from Training import mil_benchmark
from Training.datasets import read_table
from Training.devices import open_fabric
from Training.experiments.baselines import AUTHORS
from Training.folds import folds


def write(path, bags=40, seed=0):
    """Bags of 5 to 9 patches of noise; a malignant one has one patch that stands out."""
    rng = np.random.default_rng(seed)
    rows = []
    for bag in range(bags):
        patches = rng.normal(3.0, 1.0, (rng.integers(5, 10), 6))
        if bag % 2:
            patches[0] += 4.0
        rows += [[bag % 2, bag + 1, *patch] for patch in patches]
    pd.DataFrame(rows).sample(frac=1, random_state=seed).to_csv(path, header=False, index=False)
    return path


@pytest.fixture
def quick(monkeypatch):
    config = CLAMConfig(width=16, hidden=8, standardise=True)
    experiment = dataclasses.replace(mil_benchmark.EXPERIMENTS["clam"], config=config, epochs=12, learning_rate=5e-3, batch_size=8)
    monkeypatch.setitem(mil_benchmark.EXPERIMENTS, "clam", experiment)


def test_bags_belong_to_their_cases(tmp_path):
    bags = mil_benchmark.read_bags(write(tmp_path / "bags.csv"))
    assert len(bags) == 40
    for prepared, case in zip(bags, bags.cases, strict=True):
        assert prepared.case_id == case.case_id
        assert prepared.label == case.label == (int(case.case_id.removeprefix("bag-")) - 1) % 2
        assert (float(prepared.tiles.mean(dim=1).max()) > 5.5) == bool(case.label)  # the patch that stands out


@pytest.mark.parametrize("name", mil_benchmark.EXPERIMENTS)
def test_each_network_is_trained_as_its_authors_train_it(name):
    found = mil_benchmark.EXPERIMENTS[name]
    for field, value in AUTHORS[found.model].items():
        assert getattr(found, field) == value
    assert found.optimiser == {"clam": "adam", "transmil": "lookahead_radam"}[found.model]
    assert getattr(found.config, "branches", "") == {"clam": "single", "clam_mb": "multi"}.get(name.removesuffix("_paper"), "")
    assert found.config.standardise and (found.config.width == 512) == name.endswith("_paper")
    assert found.augmentation.drop_tiles == found.augmentation.drop_slide == 0


def test_the_real_bags(data):
    path = data / "data" / "tables" / "ucsb_breast_cancer.csv.gz"
    bags = mil_benchmark.read_bags(path)
    assert (len(bags), sum(case.label for case in bags.cases), sum(len(bag) for bag in bags.bags)) == (58, 26, 2002)
    assert {bag.shape[1] for bag in bags.bags} == {708}
    mean = torch.stack([bag.mean(dim=0) for bag in bags.bags]).numpy()
    np.testing.assert_allclose(mean, read_table(path).frame.iloc[:, :708].to_numpy(), rtol=1e-3, atol=1e-4)


def test_a_telling_patch_is_found_and_a_run_is_not_done_twice(tmp_path, quick, monkeypatch):
    bags, fabric = mil_benchmark.read_bags(write(tmp_path / "bags.csv")), open_fabric("cpu")
    found = mil_benchmark.benchmark("clam", bags, tmp_path / "out", 2, 1, fabric)
    assert found["folds"].value > 0.9
    monkeypatch.setattr(mil_benchmark, "train", None)  # would fail
    assert mil_benchmark.benchmark("clam", bags, tmp_path / "out", 2, 1, fabric) == found
    with pytest.raises(BadOption, match="other settings"):
        mil_benchmark.benchmark("clam", bags, tmp_path / "out", 3, 1, fabric)


def test_the_bags_that_tell_the_length_train_in_the_end(tmp_path, quick, monkeypatch):
    bags, fabric = mil_benchmark.read_bags(write(tmp_path / "bags.csv")), open_fabric("cpu")
    experiment = mil_benchmark.EXPERIMENTS["clam"]
    experiment = dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, tile_features=6), patience=2, least_epochs=0)
    split, trained, really = folds(bags.cases, 2, 0)[0], [], mil_benchmark.train

    def train(how, cache, part, *rest):
        trained.append((how.epochs, how.patience, set(part.train)))
        return really(how, cache, part, *rest)

    monkeypatch.setattr(mil_benchmark, "train", train)
    mil_benchmark.judge(experiment, bags, split, tmp_path / "fold", fabric)
    losses = [row["inner_loss"] for row in mil_benchmark.read_log(tmp_path / "fold" / "length")]
    assert trained[0] == (12, 2, set(split.train))
    assert trained[1] == (losses.index(min(losses)) + 1, 0, set(range(len(bags))) - set(split.judge))
    assert len(mil_benchmark.read_log(tmp_path / "fold")) == trained[1][0]


def test_a_judged_bag_cannot_move_the_model(tmp_path, quick):
    bags, fabric = mil_benchmark.read_bags(write(tmp_path / "bags.csv")), open_fabric("cpu")
    experiment = mil_benchmark.EXPERIMENTS["clam"]
    experiment = dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, tile_features=6), epochs=2)
    split = folds(bags.cases, 2, 0)[0]
    loud = [bag * 1e3 if k in split.judge[1:] else bag for k, bag in enumerate(bags.bags)]
    other = mil_benchmark.Bags(loud, bags.cases)
    plain, moved = (mil_benchmark.judge(experiment, b, split, tmp_path / n, fabric)[0] for b, n in ((bags, "a"), (other, "b")))
    assert plain == moved
