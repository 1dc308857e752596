"""What every model keeps, whatever it computes."""

import dataclasses

import pytest
import torch

from HARM3Logic.batch import Batch
from HARM3Logic.checkpoint import build
from HARM3Logic.errors import MissingInput
from HARM3Logic.models import MODELS
from HARM3Logic.models.c3d import C3DConfig
from HARM3Logic.models.clam import CLAMConfig
from HARM3Logic.models.ct_clinical import CTClinicalConfig
from HARM3Logic.models.ensemble import EnsembleConfig
from HARM3Logic.models.harm3_fusion import DRAWS_AT_ONCE, HARM3Fusion, compact, paper
from HARM3Logic.models.hmcat import HMCATConfig
from HARM3Logic.models.ldvae import Branch, LdvaeConfig
from HARM3Logic.models.m2fusion import M2FusionConfig
from HARM3Logic.models.resnet3d import ResNetTrunk, TrunkConfig
from HARM3Logic.models.resnet3d_classifier import ResNet3DConfig
from HARM3Logic.models.rpnet3d import RPNet3DConfig
from HARM3Logic.models.transmil import TransMILConfig
from HARM3Logic.models.vit3d import ViTConfig

SHAPE = (8, 32, 32)
FEATURES = 24


def tiny(**changes):
    """A configuration of each model small enough for a test."""
    config = dataclasses.replace(
        compact(), trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16, focus=True), vae=LdvaeConfig(width=32, hidden=32, latent=16),
        volume_shape=SHAPE, width=32, hidden=64, tile_features=FEATURES, pooled=4, head_widths=(16, 16, 8),
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def tiny_ensemble():
    return EnsembleConfig(**{f.name: getattr(tiny(), f.name) for f in dataclasses.fields(tiny())}, members=2)


TINY = {"harm3_fusion": tiny, "harm3_fusion_ensemble": tiny_ensemble}
TINY |= {
    "c3d": lambda: C3DConfig(widths=(4, 4, 8, 8, 8), hidden=16, cam_layer="conv3b"),
    "resnet3d": lambda: ResNet3DConfig(trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16)),
    "rpnet3d": lambda: RPNet3DConfig(base=2, cam_layer="enc2"),
    "clam": lambda: CLAMConfig(FEATURES, 32, 16, "multi", standardise=True),
    "transmil": lambda: TransMILConfig(FEATURES, 32, 4, 8, standardise=True),
}

VIT = ViTConfig(volume_shape=SHAPE, patch=(4, 8, 8), width=16, heads=2, layers=1, hidden=32)
TINY["hmcat"] = lambda: HMCATConfig(
    trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16), width=32, hidden=64, tile_features=FEATURES, standardise=True
)
TINY["m2fusion"] = lambda: M2FusionConfig(
    trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16), width=32, gate=16, tile_features=FEATURES, standardise=True
)
TINY["ct_clinical"] = lambda: CTClinicalConfig(trunk=VIT, levels=(0, 2, 3), width=24, heads=2, hidden=32, head=8, needs=("ct",))


def some_batch(cases=3, tiles=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(cases, tiles, dtype=torch.bool)
    mask[-1, tiles // 2 :] = False
    bag = torch.randn(cases, tiles, FEATURES, generator=generator)
    return Batch(
        mri=torch.randn(cases, 2, 2, *SHAPE, generator=generator),
        mri_mask=torch.ones(cases, 2, 2, dtype=torch.bool),
        tumour=(torch.rand(cases, 2, *SHAPE, generator=generator) > 0.9).float(),
        tiles=bag * mask[..., None],
        tile_mask=mask,
        ct=torch.randn(cases, *SHAPE, generator=generator),
        clinical=torch.tensor([[61.0, 1, 2]]) * torch.rand(cases, 3, generator=generator).round(),
        clinical_mask=torch.tensor([[True, True, True], [True, False, True], [False, False, True]])[:cases],
        label=torch.arange(cases) % 2,
    )


@pytest.fixture(params=sorted(MODELS))
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param](TINY[request.param]())


def test_one_finite_logit_per_case(model):
    output = model.eval()(some_batch())
    assert output.logit.shape == (3,)
    assert torch.isfinite(output.logit).all()
    assert not output.losses


def test_attention_rows_sum_to_one(model):
    for attention in model.eval()(some_batch()).attention.values():
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:2]))


def test_every_parameter_gets_a_gradient(model):
    output = model.train()(some_batch())
    (output.logit.sum() + sum(output.losses.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_a_case_is_judged_alone(model):
    model.eval()
    batch = some_batch()
    together = model(batch).logit
    for row in range(3):
        alone = batch.take(torch.tensor([row]))
        short = dataclasses.replace(alone, tiles=alone.tiles[:, :3], tile_mask=alone.tile_mask[:, :3])
        torch.testing.assert_close(model(alone).logit[0], together[row], rtol=1e-4, atol=1e-5)
        if row == 2:  # its last three tiles are padding
            torch.testing.assert_close(model(short).logit[0], together[row], rtol=1e-4, atol=1e-5)


def test_padding_is_not_read(model):
    model.eval()
    batch = some_batch()
    noisy = dataclasses.replace(batch, tiles=batch.tiles + 100.0 * ~batch.tile_mask[..., None])
    assert torch.equal(model(batch).logit, model(noisy).logit)


def test_config_survives_plain_values(model):
    name = next(n for n, cls in MODELS.items() if isinstance(model, cls))
    again = build(name, dataclasses.asdict(model.config), "here")
    assert again.config == model.config


def test_a_missing_input_is_named(model):
    name = {"slide": "tiles", "ct": "ct"}.get(model.inputs()[0], "mri")
    with pytest.raises(MissingInput, match=name):
        model.eval()(dataclasses.replace(some_batch(), **{name: None}))


def without(batch, volumes=(), slide=False):
    mask = batch.mri_mask.clone()
    for t, s in volumes:
        mask[:, t, s] = False
    return dataclasses.replace(batch, mri_mask=mask, tile_mask=batch.tile_mask & (not slide))


@pytest.mark.parametrize("gone", [[(0, 0)], [(1, 1)], [(0, 0), (0, 1)], [(0, 1), (1, 0), (1, 1)]])
@pytest.mark.parametrize("slide", [False, True])
def test_any_subset_of_inputs_will_do(gone, slide):
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    batch = without(some_batch(), gone, slide)
    logit = model(batch).logit
    assert torch.isfinite(logit).all()
    loud = batch.mri.clone()
    for t, s in gone:
        loud[:, t, s] = 50.0  # what lies where a volume is absent is never read
    assert torch.equal(model(dataclasses.replace(batch, mri=loud)).logit, logit)


def test_no_volume_at_all_is_refused():
    batch = without(some_batch(), [(0, 0), (0, 1), (1, 0), (1, 1)])
    with pytest.raises(MissingInput, match="no MRI volume"):
        HARM3Fusion(tiny())(batch)


def test_a_bag_without_tiles_equals_no_bag():
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    empty = without(some_batch(), slide=True)
    none = dataclasses.replace(empty, tiles=None, tile_mask=None)
    torch.testing.assert_close(model(empty).logit, model(none).logit)


@pytest.mark.parametrize(
    "changes",
    [{"ldvae": False}, {"attn1": False}, {"attn2": "concat"}, {"attn2": "mri_only"}, {"attn1": False, "attn2": "concat"},
     {"temporal": "sum"}, {"collaborative": True}, {"cross_heads": 4, "cross_residual": True}, {"layers": 2}],
)  # fmt: skip
def test_options_and_ablations_train(changes):
    torch.manual_seed(0)
    model = HARM3Fusion(tiny(**changes))
    output = model(some_batch())
    (output.logit.sum() + sum(output.losses.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    if changes.get("attn2") == "mri_only":
        assert "slide" not in model.inputs()


def test_the_slide_reaches_the_logit_through_cross_attention():
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    batch = some_batch()
    other = dataclasses.replace(batch, tiles=batch.tiles.flip(0) * batch.tile_mask[..., None])
    assert (model(batch).logit - model(other).logit).abs().max() > 1e-6


def test_samples_vary_round_the_logit_and_repeat():
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    draws = model.sample(some_batch(), 8, torch.Generator().manual_seed(1))
    assert draws.shape == (8, 3)
    assert draws.std(dim=0).min() > 0
    assert torch.equal(draws, model.sample(some_batch(), 8, torch.Generator().manual_seed(1)))
    assert model.sample(some_batch(), 2)[:, 0].diff().abs() > 0  # without a generator they vary, too


def test_a_draw_is_what_the_forward_pass_makes_of_its_latent():
    """A draw without spread is the logit itself: trunk, slide and copies are put together in the right order."""
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    for part in model.modules():
        if isinstance(part, Branch):
            torch.nn.init.constant_(part.log_variance.weight, 0.0)
            torch.nn.init.constant_(part.log_variance.bias, -1e3)  # clamped to -10
    batch = some_batch()
    count = DRAWS_AT_ONCE + 3
    draws = model.sample(batch, count)
    assert draws.shape == (count, 3)
    assert (draws - model(batch).logit).abs().max() < 0.05 * model(batch).logit.std()


@pytest.mark.parametrize(("stride", "shape"), [(8, (2, 4, 4)), (16, (1, 2, 2)), (32, (1, 1, 1))])
def test_output_stride_sets_the_map(stride, shape):
    trunk = ResNetTrunk(TrunkConfig(depth=10, widen=1 / 16, output_stride=stride)).eval()
    assert trunk.end(*trunk.begin(torch.zeros(1, 1, *SHAPE))).shape[2:] == shape


def test_both_stems_give_the_same_map():
    stems = (ResNetTrunk(TrunkConfig(depth=10, widen=1 / 16, stem=stem)).eval() for stem in ("conv", "strided"))
    assert len({trunk.begin(torch.zeros(1, 1, *SHAPE))[0].shape for trunk in stems}) == 1


def test_instance_norm_knows_no_neighbour_even_in_training():
    torch.manual_seed(0)
    trunk = ResNetTrunk(TrunkConfig(depth=10, widen=1 / 16, norm="instance", output_stride=8)).train()
    volumes = torch.randn(3, 1, *SHAPE)
    together, alone = (trunk.end(*trunk.begin(rows)) for rows in (volumes, volumes[:1]))
    torch.testing.assert_close(together[:1], alone)


def test_focus_hides_what_the_gate_does_not_believe():
    torch.manual_seed(0)
    trunk = ResNetTrunk(TrunkConfig(depth=10, widen=1 / 16, focus=True)).eval()
    volumes = torch.randn(2, 1, *SHAPE)
    torch.nn.init.constant_(trunk.gate.weight, 0.0)
    torch.nn.init.constant_(trunk.gate.bias, -30.0)  # believes in no tumour anywhere
    first, belief = trunk.begin(volumes)
    assert belief.shape[1:] == first.shape[2:]
    last = trunk.end(first, belief)
    torch.testing.assert_close(last[0], last[1])
    assert not torch.allclose(*trunk.end(first, belief + 30.0))


def test_training_without_any_mask_still_works():
    batch = dataclasses.replace(some_batch(), tumour=None)
    assert not [name for name in HARM3Fusion(tiny()).train()(batch).losses if name.startswith("tumour")]


def test_all_volumes_of_a_case_look_where_any_timepoint_sees_tumour():
    torch.manual_seed(0)
    model = HARM3Fusion(tiny()).eval()
    for trunk in model.trunks.values():
        torch.nn.init.constant_(trunk.gate.weight, 0.0)
        torch.nn.init.constant_(trunk.gate.bias, -60.0)
    batch = some_batch()

    def post() -> torch.Tensor:
        return model._mri_tokens(batch)[0][:, 1]

    blind = post()
    model.trunks["t1"].begin = lambda rows, begin=model.trunks["t1"].begin: (begin(rows)[0], seen(len(rows), begin(rows)[1]))

    def seen(rows: int, belief: torch.Tensor) -> torch.Tensor:
        return torch.where((torch.arange(rows) % 2 == 0)[:, None, None, None], 120.0, belief)  # T1 before therapy alone sees it

    assert not torch.allclose(post(), blind)  # and what remains is looked at after therapy, on both sequences


def test_dilation_keeps_the_weights():
    torch.manual_seed(0)
    coarse, fine = (ResNetTrunk(TrunkConfig(depth=18, widen=1 / 16, output_stride=s)) for s in (32, 8))
    fine.load_state_dict(coarse.state_dict())


def test_preset_sizes():
    def count(config):
        return sum(p.numel() for p in HARM3Fusion(config).parameters())

    assert count(compact()) <= 3_000_000
    assert 74e6 < count(paper()) < 77e6  # 75.1 M in the reference count


@pytest.mark.slow
def test_paper_preset_takes_a_training_step():
    torch.manual_seed(0)
    model = HARM3Fusion(paper())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    batch = Batch(
        mri=torch.randn(2, 2, 2, 32, 128, 128), mri_mask=torch.ones(2, 2, 2, dtype=torch.bool),
        tiles=torch.randn(2, 50, 768), tile_mask=torch.ones(2, 50, dtype=torch.bool), label=torch.tensor([0, 1]),
    )  # fmt: skip
    before = model.head.decide[-1].weight.clone()
    output = model(batch)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output.logit, batch.label.float()) + sum(output.losses.values())
    loss.backward()
    optimiser.step()
    assert torch.isfinite(loss)
    assert not torch.equal(before, model.head.decide[-1].weight)
