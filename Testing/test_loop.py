"""The training loop: a stopped run equals an unbroken one, and what cannot be learned from is named."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from HARM3Logic.batch import Batch, collate
from HARM3Logic.case import Case
from HARM3Logic.models import MODELS
from HARM3Logic.models.harm3_fusion import compact
from HARM3Logic.models.ldvae import LdvaeConfig
from HARM3Logic.models.output import Output
from HARM3Logic.models.resnet3d import TrunkConfig
from Training import loop
from Training.augment import augment
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Augmentation, Experiment
from Training.folds import Split
from Training.loop import Diverged, train

SHAPE, FEATURES = (8, 16, 16), 6
SPLIT = Split(train=(0, 1, 2, 3, 4, 5), choose=(6, 7), judge=())
CPU = torch.device("cpu")
FABRIC = open_fabric("cpu")


def small(**changes: Any) -> Experiment:
    """Everything that draws random numbers is on: dropout, latents, augmentation, withheld inputs."""
    config = dataclasses.replace(
        compact(), trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16), vae=LdvaeConfig(width=32, hidden=32, latent=16),
        volume_shape=SHAPE, width=32, hidden=32, tile_features=FEATURES, pooled=4, head_widths=(16, 16, 8),
    )  # fmt: skip
    settings = {
        "epochs": 3,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "warm_up": 0.3,
        "average": 0.8,
        "augmentation": Augmentation(shift=(1, 2, 2)),
    }
    return Experiment("harm3_fusion", config, **{**settings, **changes})


def write_case(folder: Path, index: int, fill: float | None = None) -> Path:
    """A prepared case as `Training.cache` keeps it."""
    generator = torch.Generator().manual_seed(index)
    mri = torch.randn(2, 2, *SHAPE, generator=generator) + index % 2
    if fill is not None:
        mri[1, 0, 0, 0, 0] = fill
    count = 3 + index % 3
    tensors = {
        "mri": mri,
        "mri_mask": torch.ones(2, 2, dtype=torch.bool),
        "body": torch.ones(SHAPE, dtype=torch.bool),
        "tiles": torch.randn(count, FEATURES, generator=generator),
        "tile_xy_um": torch.rand(count, 2, generator=generator),
    }
    save_file(tensors, folder / f"c{index}.safetensors")
    return folder / f"c{index}.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    return Cache([write_case(folder, k) for k in range(8)], [Case(f"HN-{k}", {}, label=k % 2) for k in range(8)])


@pytest.fixture(scope="module")
def unbroken(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    torch.save(train(small(), cache, SPLIT, out, FABRIC).state_dict(), out / "final.pt")
    return out


def rows(out: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def same(out: Path, model: nn.Module, unbroken: Path) -> bool:
    wanted = torch.load(unbroken / "final.pt", weights_only=True)
    return rows(out) == rows(unbroken) and all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


class Stopped(Exception):
    pass


class Breaking(Cache):
    """A cache that fails once, at the n-th reading."""

    def __init__(self, cache: Cache, at: int) -> None:
        super().__init__(cache.paths, cache.cases)
        self.left = at

    def __getitem__(self, index: int) -> Any:
        self.left -= 1
        if self.left == 0:
            raise Stopped
        return super().__getitem__(index)


def test_training_is_logged_and_moves_the_weights(cache: Cache, unbroken: Path) -> None:
    found = rows(unbroken)
    assert [row["epoch"] for row in found] == [0, 1, 2]
    assert {"bce", "kl", "recon", "contra", "inner_loss"} <= set(found[0])
    assert all(math.isfinite(value) for row in found for value in row.values())
    torch.manual_seed(0)
    fresh = MODELS["harm3_fusion"](small().config).state_dict()
    final = torch.load(unbroken / "final.pt", weights_only=True)
    trained = [name for name, _ in MODELS["harm3_fusion"](small().config).named_parameters()]
    assert sum(not torch.equal(fresh[name], final[name]) for name in trained) > 0.9 * len(trained)


@pytest.mark.parametrize("at", [12, 15], ids=["while training", "while choosing"])
def test_a_run_broken_within_an_epoch_goes_on_exactly(cache: Cache, unbroken: Path, tmp_path: Path, at: int) -> None:
    with pytest.raises(Stopped):
        train(small(), Breaking(cache, at), SPLIT, tmp_path, FABRIC)  # 8 readings an epoch: within the second
    assert len(rows(tmp_path)) == 1
    torch.manual_seed(999)  # whatever else drew numbers meanwhile
    assert same(tmp_path, train(small(), cache, SPLIT, tmp_path, FABRIC), unbroken)


@pytest.mark.parametrize("name", ["_save", "_log"])
def test_a_run_broken_between_its_files_goes_on_exactly(
    cache: Cache, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real, calls = getattr(loop, name), []

    def breaking(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise Stopped
        real(*arguments)

    monkeypatch.setattr(loop, name, breaking)
    with pytest.raises(Stopped):
        train(small(), cache, SPLIT, tmp_path, FABRIC)
    assert same(tmp_path, train(small(), cache, SPLIT, tmp_path, FABRIC), unbroken)


def test_a_finished_run_is_not_trained_again(cache: Cache, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_epoch", None)
    assert same(unbroken, train(small(), cache, SPLIT, unbroken, FABRIC), unbroken)


def test_the_running_average_is_what_comes_out(cache: Cache, unbroken: Path) -> None:
    saved = torch.load(unbroken / "state.pt", weights_only=True)
    final = torch.load(unbroken / "final.pt", weights_only=True)
    assert all(torch.equal(saved["average"][f"module.{name}"], value) for name, value in final.items())
    assert any(not torch.equal(saved["model"][name], value) for name, value in final.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_case_that_breaks_the_loss_is_named(cache: Cache, tmp_path: Path, value: float) -> None:
    paths = [*cache.paths[:4], write_case(tmp_path, 4, fill=value), *cache.paths[5:]]
    with pytest.raises(Diverged, match=r"cases HN-4\.") as caught:
        train(small(batch_size=1, augmentation=Augmentation(drop_volume=0)), Cache(paths, cache.cases), SPLIT, tmp_path / "run", FABRIC)
    assert "epoch 0" in caught.value.message


def test_an_error_of_the_reader_reaches_the_trainer(cache: Cache, tmp_path: Path) -> None:
    lost = Cache([*cache.paths[:3], tmp_path / "none.safetensors", *cache.paths[4:]], cache.cases)
    with pytest.raises(FileNotFoundError):
        train(small(), lost, SPLIT, tmp_path / "run", FABRIC)


class Line(nn.Module):
    """A model whose losses are known."""

    def __init__(self, config: None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: Batch) -> Output:
        mri, _ = batch.need("mri", "mri_mask")
        losses = {"kl": torch.tensor(2.0), "l1": torch.tensor(3.0)} if self.training else {}
        return Output(self.weight * mri.flatten(1).mean(dim=1), losses)


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setitem(MODELS, "line", Line)
    return Experiment("line", None, epochs=8, batch_size=6, learning_rate=0.1, kl_warm_up=0.5)


def test_the_kl_term_alone_is_warmed_up(cache: Cache, tmp_path: Path, line: Experiment) -> None:
    train(line, cache, SPLIT, tmp_path, FABRIC)
    assert [row["kl"] for row in rows(tmp_path)] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0])
    assert [row["l1"] for row in rows(tmp_path)] == pytest.approx([3.0] * 8)


def test_without_warm_up_the_kl_term_counts_at_once(cache: Cache, tmp_path: Path, line: Experiment) -> None:
    train(dataclasses.replace(line, kl_warm_up=0.0, epochs=1), cache, SPLIT, tmp_path, FABRIC)
    assert rows(tmp_path)[0]["kl"] == 2.0


def test_patience_stops_and_the_best_epoch_is_kept(cache: Cache, tmp_path: Path, line: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    goodness, weights = iter([1.0, 3.0, 2.0, 2.5, 9.0]), []

    def judge(model: Line, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        weights.append(model.weight.item())
        return np.array([next(goodness)]), np.array([1])

    monkeypatch.setattr(loop, "logits", judge)
    model = train(dataclasses.replace(line, patience=2), cache, SPLIT, tmp_path, FABRIC)
    assert len(rows(tmp_path)) == 4  # the best was the second; two more brought nothing
    assert len(set(weights)) == 4
    assert model.weight.item() == weights[1]
    assert train(dataclasses.replace(line, patience=2), cache, SPLIT, tmp_path, FABRIC).weight.item() == weights[1]  # stays stopped


def test_patience_ends_nothing_before_the_least_epochs(line: Experiment) -> None:
    waiting = dataclasses.replace(line, patience=20, least_epochs=52)
    assert [done for done in range(60) if loop._enough(waiting, done, best=1)] == list(range(52, 60))
    assert [done for done in range(60) if loop._enough(waiting, done, best=35)] == list(range(56, 60))  # 20 epochs after number 35
    assert not loop._enough(dataclasses.replace(line, least_epochs=5), 60, best=1)  # without patience never


def test_the_best_epoch_may_lie_before_the_least(cache: Cache, tmp_path: Path, line: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    goodness, weights = iter([1.0, 3.0, 2.0, 2.5, 2.0, 2.0, 9.0]), []

    def judge(model: Line, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        weights.append(model.weight.item())
        return np.array([next(goodness)]), np.array([1])

    monkeypatch.setattr(loop, "logits", judge)
    model = train(dataclasses.replace(line, patience=2, least_epochs=6), cache, SPLIT, tmp_path, FABRIC)
    assert len(rows(tmp_path)) == 6
    assert model.weight.item() == weights[1]


def test_tiles_are_withheld_but_never_all_of_a_slide(cache: Cache) -> None:
    batch = collate([cache[k] for k in range(6)])
    how = Augmentation(drop_tiles=0.9, drop_slide=0.5)
    kept = torch.stack([augment(batch, how, torch.Generator().manual_seed(seed)).tile_mask for seed in range(40)])
    there, whole = kept[:, batch.tile_mask].float().mean(), batch.tile_mask.sum(dim=1)
    assert not kept[:, ~batch.tile_mask].any()
    assert 0.04 < there < 0.4  # half of the slides, and of those the tenth part of the tiles or one
    assert 0.3 < kept.any(dim=2).float().mean() < 0.7  # what drop_slide alone withholds
    assert (kept.sum(dim=2) < whole).any()


def test_the_rate_rises_and_falls() -> None:
    assert [loop._rate(done, 0.2) for done in (0, 0.1, 0.2, 0.6, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])
    assert [loop._rate(done, 0.0) for done in (0, 0.5, 1)] == [1, 1, 1]  # the paper's constant rate


def test_logits_stand_in_the_order_asked_whatever_the_batch(cache: Cache) -> None:
    torch.manual_seed(0)
    model = MODELS["harm3_fusion"](small().config)
    order = (5, 0, 7, 2, 3)
    logit, label = loop.logits(model, cache, order, 3, CPU)
    alone = [loop.logits(model, cache, [k], 1, CPU)[0][0] for k in order]
    assert logit == pytest.approx(alone, abs=1e-5)
    assert label.tolist() == [1, 0, 1, 0, 1]
    assert [len(found) for found in loop.logits(model, cache, (), 3, CPU)] == [0, 0]


def test_changes_are_the_same_for_all_volumes_of_a_case() -> None:
    image = torch.randn(1, 1, 1, *SHAPE).expand(4, 2, 2, *SHAPE)
    how = Augmentation(flip=0.5, shift=(1, 2, 2), scale=0.0, offset=0.0, drop_volume=0.0, drop_slide=0.0)
    changed = augment(Batch(mri=image.clone(), mri_mask=torch.ones(4, 2, 2, dtype=torch.bool)), how, torch.Generator().manual_seed(0)).mri
    assert changed is not None
    assert all(torch.equal(changed[:, t, s], changed[:, 0, 0]) for t in (0, 1) for s in (0, 1))
    assert len({tuple(case.flatten().tolist()) for case in changed[:, 0, 0]}) > 1  # but not of all cases


def test_what_is_absent_stays_absent_and_something_stays(cache: Cache) -> None:
    batch = collate([cache[k] for k in range(4)])
    mask = torch.tensor([[True, False], [False, False]]).expand(4, 2, 2)
    batch = dataclasses.replace(batch, mri=batch.mri * mask[..., None, None, None], mri_mask=mask)
    for seed in range(5):
        changed = augment(batch, Augmentation(drop_volume=0.9, drop_slide=0.5, offset=1.0), torch.Generator().manual_seed(seed))
        assert torch.equal(changed.mri_mask, mask)  # the only volume is never withheld
        assert not changed.mri[~mask].any()  # noise does not fill what is absent
        withheld = ~changed.tile_mask.any(dim=1, keepdim=True)  # a slide goes as a whole
        assert torch.equal(changed.tile_mask, batch.tile_mask & ~withheld)


def test_the_running_mean_leaves_whole_numbers_alone() -> None:
    model = torch.nn.Linear(1, 1)
    model.register_buffer("rows", torch.arange(0, 90, 3), persistent=False)
    average = loop.AveragedModel(model, multi_avg_fn=loop._running_mean(0.95), use_buffers=True)
    for _ in range(50):
        average.update_parameters(model)
    assert torch.equal(average.module.rows, model.rows)
