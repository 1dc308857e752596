"""The experiments of the comparison methods: on HARM3-Fusion's terms, each as its authors train it."""

import dataclasses
import re

import pytest
import torch

from HARM3Logic.batch import Batch
from HARM3Logic.checkpoint import build
from HARM3Logic.models import MODELS
from Training import optimisers
from Training.experiment import Experiment, find
from Training.experiments import baselines
from Training.experiments.baselines import EXPERIMENTS, METHODS
from Training.step import Losses

ONLY_SLIDE = {"clam", "transmil"}
LIGHT = [name for name in EXPERIMENTS if name.endswith("compact") or name == "clam_paper"]  # the equal ones have the compact networks


def some_batch(shape: tuple[int, int, int] = (16, 32, 32), cases: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        mri=torch.randn(cases, 2, 2, *shape, generator=generator),
        mri_mask=torch.ones(cases, 2, 2, dtype=torch.bool),
        tumour=(torch.rand(cases, 2, *shape, generator=generator) > 0.9).float(),
        tiles=torch.randn(cases, 20, 768, generator=generator),
        tile_mask=torch.ones(cases, 20, dtype=torch.bool),
        tile_xy_um=1000 * torch.rand(cases, 20, 2, generator=generator),
        label=torch.arange(cases) % 2,
    )


def test_every_method_of_the_table_has_its_experiments() -> None:
    methods = {"c3d", "resnet3d", "rpnet3d", "clam", "transmil", "hmcat", "m2fusion"}
    assert set(EXPERIMENTS) == {f"{method}_{variant}" for method in methods for variant in ("paper", "compact", "equal")}
    assert all(find(f"baselines:{name}") is experiment for name, experiment in EXPERIMENTS.items())
    assert all(name.rpartition("_")[0] == experiment.model for name, experiment in EXPERIMENTS.items())


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_how_the_published_networks_are_trained(method: str) -> None:
    row = re.search(rf"^    {method} +(\w+) +(\S+) +(\S+) +(?:(\d+) x )?(\d+) +(\d+)", baselines.__doc__ or "", re.MULTILINE)
    assert row is not None
    optimiser, rate, decay, times, batch, epochs = row.groups()
    found = EXPERIMENTS[f"{method}_paper"]
    assert found.optimiser == {"SGD": "sgd", "Adam": "adam", "Lookahead": "lookahead_radam"}[optimiser]
    assert (found.learning_rate, found.weight_decay, found.epochs) == (float(rate), float(decay), int(epochs))
    assert found.batch_size == int(times or 1) * int(batch)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_terms_are_those_of_harm3_fusion(name: str) -> None:
    found = EXPERIMENTS[name]
    full = find(f"harm3_fusion:{'paper' if name.endswith('paper') else 'compact'}")
    for part in ("preprocessing", "folds", "seed", "tile_encoder", "ignore_masks"):
        assert getattr(found, part) == getattr(full, part)
    assert found.patience > 0  # the inner validation chooses the epoch, as for HARM3-Fusion
    assert (found.mask_epochs, found.frozen_epochs) == (0, 0)
    assert (found.augmentation == full.augmentation) == (found.model not in ONLY_SLIDE)
    if found.model in ONLY_SLIDE:
        assert found.augmentation.drop_slide == 0
    if name.endswith("equal"):
        for part in ("optimiser", "learning_rate", "weight_decay", "epochs", "batch_size", "warm_up", "average", "patience"):
            assert getattr(found, part) == getattr(full, part)


def test_compact_models_are_small() -> None:
    for method, module in METHODS.items():
        with torch.device("meta"):
            small, large = (sum(p.numel() for p in MODELS[method](make()).parameters()) for make in (module.compact, module.paper))
        assert small <= 3_000_000
        assert small < large


@pytest.mark.parametrize("name", LIGHT)
def test_one_step_of_training_leaves_numbers(name: str) -> None:
    experiment, batch = EXPERIMENTS[name], some_batch()
    losses = step(experiment, batch)
    masks = {key for key in losses if key.startswith("tumour")}
    assert bool(masks) == (experiment.model == "rpnet3d")  # only its paper learns from masks
    assert set(losses) - masks - {"bce", "instance", "contrast"} == set()


def step(experiment: Experiment, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = MODELS[experiment.model](experiment.config)
    losses = Losses(model, experiment.positive_weight).train()
    optimiser = optimisers.build(experiment, model)
    found = losses(batch.tensors())
    sum(found.values()).backward()
    assert all(torch.isfinite(value) for value in found.values())
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    optimiser.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.isfinite(model.eval()(batch).logit).all()
    return found


@pytest.mark.parametrize("method", METHODS)
def test_published_networks_can_be_built_from_their_card(method: str) -> None:
    experiment = EXPERIMENTS[f"{method}_paper"]
    with torch.device("meta"):
        model = build(experiment.model, dataclasses.asdict(experiment.config), "here")
    assert model.config == experiment.config
    assert set(model.inputs()) <= {"t1_pre", "t2_pre", "t1_post", "t2_post", "slide"}
