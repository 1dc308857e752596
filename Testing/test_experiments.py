"""The experiments that are shipped: the paper's settings, and the rows of its table 2."""

import dataclasses
from typing import Any

import pytest
import torch

from HARM3Logic.batch import Batch
from HARM3Logic.errors import BadOption
from HARM3Logic.models.harm3_fusion import HARM3Fusion
from HARM3Logic.models.ldvae import LdvaeConfig
from HARM3Logic.models.resnet3d import TrunkConfig
from Training.experiment import Experiment, find, lengthened, shortened

# name: LD-VAE, attention 1, attention 2, slide
TABLE_2 = {
    "full": (True, True, True, True),
    "no_ldvae": (False, True, True, True),
    "no_attn1": (True, False, True, True),
    "no_attn2": (True, True, False, True),
    "row4_concat": (True, False, False, True),
    "row4_mri_only": (True, False, False, False),
}


def test_the_paper_is_as_printed() -> None:
    paper = find("harm3_fusion")
    assert paper is find("harm3_fusion:paper")
    printed = (paper.optimiser, paper.learning_rate, paper.weight_decay, paper.epochs, paper.batch_size, paper.folds)
    assert printed == ("adam", 1e-4, 1e-6, 200, 8, 5)
    assert paper.config.l1 > 0
    assert (paper.positive_weight, paper.balanced_sampler) == (1.0, False)


def test_an_unknown_experiment_is_named() -> None:
    with pytest.raises(BadOption, match="'nothing' does not exist; there are baselines, ct_clinical, harm3_ablations, harm3_fusion"):
        find("nothing")
    with pytest.raises(BadOption, match="no variant 'nothing:compact'; it has full, no_ldvae"):
        find("harm3_ablations:nothing:compact")


def differences(one: Any, two: Any) -> set[str]:
    return {f.name for f in dataclasses.fields(one) if getattr(one, f.name) != getattr(two, f.name)}


@pytest.mark.parametrize(("variant", "base"), [("", "paper"), (":compact", "compact")])
@pytest.mark.parametrize("row", TABLE_2)
def test_a_row_differs_from_the_full_model_by_its_parts_alone(row: str, variant: str, base: str) -> None:
    full, found = find(f"harm3_fusion:{base}"), find(f"harm3_ablations:{row}{variant}")
    ldvae, attn1, attn2, _ = TABLE_2[row]
    assert differences(full, found) == (set() if row == "full" else {"config"})
    off = {name for name, on in (("ldvae", ldvae), ("attn1", attn1), ("attn2", attn2)) if not on}
    assert differences(full.config, found.config) == off


@pytest.mark.parametrize("row", TABLE_2)
def test_a_row_is_the_model_without_those_parts(row: str) -> None:
    ldvae, attn1, attn2, slide = TABLE_2[row]
    config = dataclasses.replace(
        find(f"harm3_ablations:{row}:compact").config, trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16),
        vae=LdvaeConfig(width=32, hidden=32, latent=16), volume_shape=(8, 16, 16), width=32, hidden=32, tile_features=6, pooled=4,
        head_widths=(16, 16, 8), mask_weight=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = HARM3Fusion(config).eval()
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert ("vaes" in parts, "bias" in parts, "cross" in parts, "pool_tiles" in parts) == (ldvae, attn1, attn2, slide)
    assert ("slide" in model.inputs()) == slide
    batch = Batch(
        mri=torch.randn(2, 2, 2, 8, 16, 16), mri_mask=torch.ones(2, 2, 2, dtype=torch.bool),
        tiles=torch.randn(2, 5, 6), tile_mask=torch.ones(2, 5, dtype=torch.bool),
    )  # fmt: skip
    other = dataclasses.replace(batch, tiles=torch.randn(2, 5, 6))
    assert torch.isfinite(model(batch).logit).all()
    assert torch.equal(model(batch).logit, model(other).logit) != slide


def test_every_experiment_can_be_found() -> None:
    from Training.experiments import harm3_ablations, harm3_fusion

    for module in (harm3_fusion, harm3_ablations):
        for name in module.EXPERIMENTS:
            assert isinstance(find(f"{module.__name__.rpartition('.')[2]}:{name}"), Experiment)


def test_stages_shrink_with_the_epochs_and_leave_some_for_the_labels():
    full = Experiment("m", None, epochs=38, mask_epochs=20, frozen_epochs=18, patience=18, least_epochs=8, decay_at=(20, 30))
    for epochs in (1, 4, 13):
        short = shortened(full, epochs)
        assert short.epochs == epochs and short.mask_epochs < epochs and short.patience >= 1
    half = {"epochs": 19, "mask_epochs": 10, "frozen_epochs": 9, "patience": 9, "least_epochs": 4, "decay_at": (10, 15)}
    assert shortened(full, 19) == dataclasses.replace(full, **half)
    assert shortened(full, 38) == full
    assert shortened(full, 1).mask_epochs == 0
    assert shortened(full, None) is full
    assert shortened(Experiment("m", None, epochs=200), 10).patience == 0


def test_few_cases_are_gone_through_more_often_on_masks():
    recipe = Experiment(
        "m", None, epochs=58, batch_size=16, mask_epochs=20, mask_steps=1100, fusion_epochs=20, frozen_epochs=18, decay_at=(50,)
    )
    few = lengthened(recipe, 100)  # 7 steps an epoch
    assert (few.mask_epochs, few.untaught_epochs, few.epochs, few.decay_at) == (158, 178, 196, (188,))
    assert lengthened(few, 10) == few
    many = lengthened(recipe, 900)
    assert (many.mask_epochs, many.epochs, many.decay_at) == (20, 58, (50,))
    assert lengthened(shortened(recipe, 4), 100).epochs == 4  # who asks for so many gets them
    plain = Experiment("m", None)
    assert lengthened(plain, 100) == plain
