"""The stages of a training: each moves its own part, and runs that teach their trunks alike do it once."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import SHAPE, SPLIT, rows, small, write_case

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort, BadOption, MissingInput
from Training import loop, start, trunks
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment
from Training.loop import train

FABRIC = open_fabric("cpu")


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The same kind of cases with tumour masks."""
    folder = tmp_path_factory.mktemp("masked")
    paths = [write_case(folder, k) for k in range(8)]
    for k, path in enumerate(paths):
        tensors = load_file(path)
        tensors["tumour"] = (torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(k)) > 0.8).float()
        save_file(tensors, path)
    return Cache(paths, [Case(f"HN-{k}", {}, label=k % 2) for k in range(8)])


def staged(**changes: Any) -> Experiment:
    plain = small(average=0.0, weight_decay=0.0, **changes)
    trunk = dataclasses.replace(plain.config.trunk, focus=True)
    return dataclasses.replace(plain, config=dataclasses.replace(plain.config, trunk=trunk))


def weights(experiment: Experiment, cache: Cache, out: Path) -> dict[str, torch.Tensor]:
    return dict(train(experiment, cache, SPLIT, out, FABRIC).state_dict())


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before if part in name)


def test_stages_move_what_they_should(masked: Cache, tmp_path: Path) -> None:
    fresh = weights(staged(epochs=0), masked, tmp_path / "fresh")
    masks = weights(staged(epochs=2, mask_epochs=2), masked, tmp_path / "masks")
    fused = weights(staged(epochs=4, mask_epochs=2, fusion_epochs=2), masked, tmp_path / "fused")
    frozen = weights(staged(epochs=4, mask_epochs=2, frozen_epochs=2), masked, tmp_path / "frozen")
    whole = weights(staged(epochs=4, mask_epochs=2), masked, tmp_path / "whole")
    assert moved(fresh, masks, "gate")
    for part in ("head.decide", "fuse_sequences", "cross", "vaes", "change"):  # batch statistics of the rest follow
        assert not moved(fresh, masks, part)
    for part in ("vaes", "fuse_sequences", "pool_tiles", "cross", "change"):
        assert moved(masks, fused, part)
    for part in ("head.decide", "head.convolve.0", "trunks", "to_width.t1", "to_width.t2", "radiomics"):
        assert not moved(masks, fused, part)
    assert not moved(masks, frozen, "trunks")  # batch statistics included
    for part in ("to_width.t1", "to_width.t2", "radiomics"):
        assert not moved(masks, frozen, part)
    assert moved(masks, frozen, "head")
    assert moved(masks, whole, "gate")
    assert moved(masks, whole, "layer4")


def test_no_label_is_looked_at_before_its_stage(masked: Cache, tmp_path: Path) -> None:
    other = Cache(masked.paths, [dataclasses.replace(case, label=1 - (case.label or 0)) for case in masked.cases])
    how = staged(epochs=4, mask_epochs=2, fusion_epochs=2)
    assert not moved(weights(how, masked, tmp_path / "one"), weights(how, other, tmp_path / "other"), "")
    how = staged(epochs=1)
    assert moved(weights(how, masked, tmp_path / "taught"), weights(how, other, tmp_path / "taught otherwise"), "head")


def test_fusion_epochs_need_something_to_learn(masked: Cache, tmp_path: Path) -> None:
    how = staged(epochs=2, fusion_epochs=1)
    for k, kept in enumerate(({"ldvae": False}, {"change_weight": 0.0})):
        train(dataclasses.replace(how, config=dataclasses.replace(how.config, **kept)), masked, SPLIT, tmp_path / str(k), FABRIC)
    idle = dataclasses.replace(how.config, ldvae=False, change_weight=0.0)
    with pytest.raises(BadOption, match="neither has an LD-VAE nor"):
        train(dataclasses.replace(how, config=idle), masked, SPLIT, tmp_path / "idle", FABRIC)


def test_a_term_that_needs_labels_has_no_place_in_fusion_epochs(masked: Cache, tmp_path: Path) -> None:
    how = staged(epochs=2, fusion_epochs=1)
    how = dataclasses.replace(how, config=dataclasses.replace(how.config, vae=dataclasses.replace(how.config.vae, cos="label_aware")))
    with pytest.raises(BadOption, match="label_aware"):
        start.check(how)
    start.check(dataclasses.replace(how, fusion_epochs=0))
    with pytest.raises(MissingInput, match="label_aware"):  # not even where nobody asked
        train(how, masked, SPLIT, tmp_path, FABRIC)


def test_mask_epochs_need_masks(tmp_path: Path) -> None:
    bare = Cache([write_case(tmp_path, k) for k in range(8)], [Case(f"HN-{k}", {}, label=k % 2) for k in range(8)])
    with pytest.raises(BadCohort, match="masks"):
        train(staged(mask_epochs=1), bare, SPLIT, tmp_path, FABRIC)


RECIPE: dict[str, Any] = {"epochs": 5, "mask_epochs": 2, "fusion_epochs": 1, "frozen_epochs": 2, "average": 0.8, "patience": 3}


def recipe(**parts: Any) -> Experiment:
    how = dataclasses.replace(staged(), **RECIPE)
    return dataclasses.replace(how, config=dataclasses.replace(how.config, **parts))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epochs that are run from now on."""
    run, found = loop._epoch, []

    def epoch(*arguments: Any) -> Any:
        found.append(arguments[3])
        return run(*arguments)

    monkeypatch.setattr(loop, "_epoch", epoch)
    return found


def test_a_shared_trunk_changes_nothing_but_the_work(masked: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs, row = counted(monkeypatch), recipe(attn1=False, attn2="concat")
    alone = train(row, masked, SPLIT, tmp_path / "alone", FABRIC)
    train(recipe(), masked, SPLIT, tmp_path / "full", FABRIC, taught=tmp_path / "trunks")
    assert epochs == [0, 1, 2, 3, 4] * 2
    told: list[dict[str, Any]] = []
    after = train(row, masked, SPLIT, tmp_path / "after", FABRIC, told.append, tmp_path / "trunks")
    assert epochs[10:] == [2, 3, 4]
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in alone.state_dict().items())
    assert rows(tmp_path / "after") == rows(tmp_path / "alone")
    assert [line["epoch"] for line in told] == [0, 1, 2, 3, 4] and told[0]["seconds"] > 0  # what it cost whoever taught it


def test_another_trunk_is_not_taken(masked: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, how = tmp_path / "trunks", recipe()

    def place(experiment: Experiment = how, cache: Cache = masked, train_rows: tuple[int, ...] = SPLIT.train) -> Path:
        return trunks.place(folder, experiment, cache, train_rows, FABRIC.device, 1)

    assert place(recipe(ldvae=False, change_weight=0.0)) == place() == place(dataclasses.replace(how, learning_rate=0.5, epochs=4))
    others = [
        place(recipe(trunk=dataclasses.replace(how.config.trunk, output_stride=32))),
        place(recipe(mask_weight=7.0)),
        place(dataclasses.replace(how, seed=1)),
        place(dataclasses.replace(how, mask_epochs=3)),
        place(dataclasses.replace(how, mask_learning_rate=0.5)),
        place(train_rows=SPLIT.train[1:]),
        place(cache=Cache([path.with_name(f"other-{path.name}") for path in masked.paths], masked.cases)),
    ]
    monkeypatch.setattr(trunks, "hash_of_code", lambda *modules: "other")
    assert len({place(), *others}) == len(others) + 1


def test_a_trunk_that_learns_on_is_not_shared(masked: Cache, tmp_path: Path) -> None:
    for how in ({"frozen_epochs": 1}, {"mask_epochs": 0, "frozen_epochs": 5}):
        train(dataclasses.replace(recipe(), **how), masked, SPLIT, tmp_path / str(len(how)), FABRIC, taught=tmp_path / "trunks")
    assert not (tmp_path / "trunks").exists()


def test_before_its_stage_no_answer_is_judged(masked: Cache, tmp_path: Path) -> None:
    train(recipe(), masked, SPLIT, tmp_path, FABRIC)
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["inner_loss" in line for line in log] == [False, False, False, True, True]
