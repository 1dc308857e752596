"""One step: a batch gives the same gradient in pieces, too large a batch is cut, and both labels can be made to weigh the same."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import SHAPE, rows, write_case
from torch import nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import Case
from HARM3Logic.errors import OutOfMemory
from HARM3Logic.models import MODELS
from HARM3Logic.models.output import Output
from Training import feed
from Training.augment import augment
from Training.cache import Cache
from Training.devices import group, open_fabric
from Training.experiment import Augmentation, Experiment
from Training.folds import Split
from Training.loop import train

FABRIC = open_fabric("cpu")
SPLIT = Split(train=(0, 1, 2, 3, 4, 5, 6), choose=(7,), judge=())


class Scales(nn.Module):
    """Runs out of memory on more than `most` cases."""

    most = 99
    seen: list[int]

    def __init__(self, config: None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 0.1))
        type(self).seen = []

    def forward(self, batch: Batch) -> Output:
        mri, _ = batch.need("mri", "mri_mask")
        if self.training:
            self.seen.append(len(mri))
            if len(mri) > self.most:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        logit = mri.flatten(3).mean(dim=3).flatten(1) @ self.weight
        return Output(logit, {"l2": self.weight.square().sum()} if self.training else {})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    return Cache([write_case(folder, k) for k in range(8)], [Case(f"HN-{k}", {}, label=int(k > 4)) for k in range(8)])


@pytest.fixture
def learn(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[nn.Module, Path]]:
    monkeypatch.setitem(MODELS, "scales", Scales)
    monkeypatch.setattr(Scales, "most", 99)

    def run(name: str, **changes: Any) -> tuple[nn.Module, Path]:
        experiment = Experiment("scales", None, **{"epochs": 3, "batch_size": 5, "learning_rate": 0.05, **changes})
        return train(experiment, cache, SPLIT, tmp_path / name, FABRIC), tmp_path / name

    return run


def test_pieces_of_a_batch_give_its_gradient_and_its_losses(learn: Callable[..., Any]) -> None:
    whole, out = learn("whole")
    for size in (1, 2, 3):
        pieces, other = learn(f"pieces{size}", micro_batch=size)
        torch.testing.assert_close(pieces.weight, whole.weight, rtol=1e-4, atol=1e-6)
        for row, same in zip(rows(out), rows(other), strict=True):
            assert same == pytest.approx(row, rel=1e-5)
    assert max(Scales.seen) == 3


def test_out_of_memory_halves_what_goes_through_at_once_and_says_so(
    learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = learn("whole")
    monkeypatch.setattr(Scales, "most", 2)
    cut, other = learn("cut")
    # 5 is halved to 3, 3 to 2; then every epoch is 2 + 2 + 1 and 2
    assert Scales.seen == [5, 3, 2, 2, 1, 2] + [2, 2, 1, 2] * 2
    said = capsys.readouterr().err
    assert "from now on 3 cases at once" in said and "from now on 2 cases at once" in said
    torch.testing.assert_close(cut.weight, whole.weight, rtol=1e-4, atol=1e-6)
    for row, same in zip(rows(out), rows(other), strict=True):
        assert same == pytest.approx(row, rel=1e-5)
    assert torch.load(other / "state.pt", weights_only=True)["state"]["micro"] == 2  # a resumed run need not find out again


def test_a_case_too_large_alone_is_an_error(learn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scales, "most", 0)
    with pytest.raises(OutOfMemory, match="1 cases at once"):
        learn("none")


def test_a_weighted_responder_counts_as_often(learn: Callable[..., Any], cache: Cache) -> None:
    """Two of seven training cases respond: with the weight 0 their loss counts 5/2 times."""
    still = {"learning_rate": 0.0, "epochs": 1, "batch_size": 7, "augmentation": Augmentation(0.0, (0, 0, 0), 0.0, 0.0, 0.0, 0.0)}
    _, plain = learn("plain", **still)
    _, out = learn("weighted", positive_weight=0.0, **still)
    _, named = learn("named", positive_weight=2.5, **still)
    model = Scales(None).eval()
    terms = []
    for k in range(8):
        case = cache[k]
        z = model(Batch(mri=case.mri[None], mri_mask=case.mri_mask[None])).logit.item()
        terms.append(math.log1p(math.exp(-z if k > 4 else z)))
    assert rows(plain)[0]["bce"] == pytest.approx(sum(terms[:7]) / 7, rel=1e-5)
    assert rows(out)[0]["bce"] == pytest.approx((sum(terms[:5]) + 2.5 * sum(terms[5:7])) / 7, rel=1e-5)
    assert rows(named) == rows(out)
    assert rows(out)[0]["inner_loss"] == pytest.approx(2.5 * rows(plain)[0]["inner_loss"])  # the one choosing case responds


def test_adam_and_adamw_differ_by_the_decay_alone(learn: Callable[..., Any]) -> None:
    first, second = (learn(kind, optimiser=kind, weight_decay=0.0)[0].weight for kind in ("adam", "adamw"))
    assert torch.equal(first, second)
    first, second = (learn(f"{kind}-decays", optimiser=kind, weight_decay=0.5)[0].weight for kind in ("adam", "adamw"))
    assert not torch.allclose(first, second)


def test_a_balanced_order_draws_both_labels_alike() -> None:
    labels = [0] * 90 + [1] * 10
    drawn = [k for seed in range(20) for k in feed.order(range(100), labels, True, torch.Generator().manual_seed(seed))]
    assert len(drawn) == 2000
    assert 0.45 < sum(labels[k] for k in drawn) / 2000 < 0.55
    assert set(drawn) == set(range(100))
    assert sorted(feed.order(range(100), labels, False, torch.Generator().manual_seed(0))) == list(range(100))


def test_processes_share_out_every_batch() -> None:
    parts = [feed.groups(range(7), 3, rank, 2) for rank in (0, 1)]
    assert [g.rows for g in parts[0]] == [(0, 2), (3, 5), (6,)]
    assert [g.rows for g in parts[1]] == [(1,), (4,), (6,)]  # the last keeps step on a case that is not its own
    assert [g.share for g in parts[1]] == pytest.approx([1 / 3, 1 / 3, 0])
    assert all(sum(shares) == pytest.approx(1) for shares in zip(*([g.share for g in part] for part in parts), strict=True))


def test_a_shared_batch_is_changed_as_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(1)
    batch = Batch(mri=torch.randn(5, 2, 2, *SHAPE, generator=generator), mri_mask=torch.ones(5, 2, 2, dtype=torch.bool))
    how = Augmentation(shift=(1, 2, 2), drop_volume=0.3)
    whole = augment(batch, how, torch.Generator().manual_seed(3))
    own = torch.tensor([1, 3])
    part = augment(batch.take(own), how, torch.Generator().manual_seed(3), (1, 3), 5)
    assert torch.equal(part.mri, whole.mri[own])
    assert torch.equal(part.mri_mask, whole.mri_mask[own])


def test_an_abandoned_feed_lets_its_reader_go(cache: Cache) -> None:
    import threading

    before = threading.active_count()
    fed = feed.batches(cache, feed.groups(range(8), 1))
    next(fed)
    fed.close()
    assert threading.active_count() == before


def test_the_reader_takes_no_core_from_the_model_and_leaves_no_trace(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def elsewhere() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    def seen() -> set[int]:
        found: set[int] = set()
        for _ in feed.batches(cache, feed.groups(range(8), 4), lambda batch, _: (found.add(torch.get_num_threads()), batch)[1]):
            assert torch.get_num_threads() == 2
        assert elsewhere() == 2
        return found

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert seen() == {1}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # the model does not work here
        assert seen() == {2}
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, (1, 1)),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0"}, (4, 2)),
        ({"SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, (1, 1)),  # a batch script, not started by srun
    ],
)
def test_a_group_is_found_by_what_started_it(environment: dict[str, str], wanted: tuple[int, int]) -> None:
    assert group(environment) == wanted
