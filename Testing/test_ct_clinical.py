"""What the CT and clinical model computes; the standing contract is in test_models."""

import dataclasses

import pytest
import torch

from HARM3Logic.batch import Batch
from HARM3Logic.clinical import Scaling
from HARM3Logic.errors import MissingInput
from HARM3Logic.explain import explain, saliency
from HARM3Logic.models.ct_clinical import CTClinical, CTClinicalConfig, compact, paper
from HARM3Logic.models.vit3d import ViTConfig, ViTTrunk

SHAPE = (8, 16, 16)
VIT = ViTConfig(volume_shape=SHAPE, patch=(4, 8, 8), width=16, heads=2, layers=1, hidden=32)
KINDS = ("cross", "concat", "clinical", "image")


FINE = dataclasses.replace(VIT, patch=tuple(n // 4 for n in VIT.volume_shape))


def net(fusion="cross", **changes) -> CTClinical:
    torch.manual_seed(0)
    config = CTClinicalConfig(fusion=fusion, trunk=VIT, levels=(0, 2, 3), width=24, heads=2, hidden=32, head=8)
    return CTClinical(dataclasses.replace(config, **changes)).eval()


def batch(cases=3) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        ct=torch.randn(cases, *SHAPE, generator=generator),
        clinical=torch.tensor([[61.0, 1, 2], [40, 0, 1], [70, 1, 0]])[:cases],
        clinical_mask=torch.ones(cases, 3, dtype=torch.bool),
    )


@pytest.mark.parametrize("fusion", KINDS)
def test_each_fusion_reads_what_it_says(fusion):
    model, given = net(fusion), batch()
    logit = model(given).logit
    other = {"ct": dataclasses.replace(given, ct=given.ct.flip(0)), "clinical": dataclasses.replace(given, clinical=given.clinical.flip(0))}
    moved = {name for name, changed in other.items() if not torch.allclose(model(changed).logit, logit, atol=1e-6)}
    assert moved == set(model.inputs())
    assert set(model.inputs()) == {"clinical": {"clinical"}, "image": {"ct"}}.get(fusion, {"ct", "clinical"})


@pytest.mark.parametrize("fusion", KINDS)
def test_each_fusion_trains_all_of_itself(fusion):
    model = net(fusion).train()
    model(batch()).logit.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_an_unknown_value_is_not_read():
    model, given = net(), batch()
    hidden = dataclasses.replace(given, clinical_mask=torch.tensor([[True, False, True]] * 3))
    loud = dataclasses.replace(hidden, clinical=hidden.clinical * torch.tensor([1.0, 0, 1]))
    assert torch.equal(model(hidden).logit, model(loud).logit)
    assert not torch.allclose(model(hidden).logit, model(given).logit, atol=1e-6)


def test_each_variable_has_its_own_unknown():
    model, given = net(), batch(1)
    logits = [model(dataclasses.replace(given, clinical_mask=torch.arange(3)[None] != k)).logit for k in range(3)]
    assert len({round(float(z.detach()), 6) for z in logits}) == 3


def test_numbers_are_scaled_and_categories_are_not():
    plain, given = net(), batch()
    scaled = net(scaling=Scaling((50.0, 0.0, 0.0), (10.0, 1.0, 1.0)))
    same = dataclasses.replace(given, clinical=(given.clinical - torch.tensor([50.0, 0, 0])) / torch.tensor([10.0, 1, 1]))
    torch.testing.assert_close(scaled(given).logit, plain(same).logit)


def test_one_slip_of_a_typist_does_not_rule():
    model, given = net(), batch(1)
    far, farther = (dataclasses.replace(given, clinical=torch.tensor([[value, 1.0, 2]])) for value in (1e3, 1e6))
    assert torch.equal(model(far).logit, model(farther).logit)


def test_the_meaning_of_the_ct_can_depend_on_a_value():
    """Cross-attention can learn that a category turns the sign of what a texture means; the sum of two single models cannot."""
    generator = torch.Generator().manual_seed(0)
    sign, kind = (torch.randint(0, 2, (64,), generator=generator) for _ in range(2))
    ct = torch.randn(64, *SHAPE, generator=generator) * (0.2 + sign[:, None, None, None])
    row = torch.stack([torch.zeros(64), kind.float(), torch.zeros(64)], dim=1)
    given = Batch(ct=ct, clinical=row, clinical_mask=torch.ones(64, 3, dtype=torch.bool))
    label = (sign ^ kind).float()
    torch.manual_seed(0)
    model = net(dropout=0.0).train()
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(given).logit, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(((model.eval()(given).logit > 0) == (label > 0)).float().mean()) > 0.95


@pytest.mark.parametrize("fusion", ["cross", "concat"])
def test_a_missing_ct_is_a_token_of_its_own(fusion):
    model, given = net(fusion), batch()
    absent = dataclasses.replace(given, ct=torch.full_like(given.ct, torch.nan))
    torch.testing.assert_close(model(absent).logit, model(dataclasses.replace(given, ct=None)).logit)
    some = given.ct.clone()
    some[1] = torch.nan
    mixed = model(dataclasses.replace(given, ct=some))
    torch.testing.assert_close(mixed.logit[1], model(absent).logit[1])
    torch.testing.assert_close(mixed.logit[0], model(given).logit[0])
    if fusion == "cross":
        assert mixed.attention["ct"][1].sum() == 0


@pytest.mark.parametrize(
    ("changes", "gone", "told"),
    [({"fusion": "image"}, "ct", "ct"), ({"fusion": "clinical"}, "clinical", "clinical"), ({"needs": ("ct",)}, "ct", "ct"),
     ({"needs": ("clinical",)}, "clinical", "clinical")],
)  # fmt: skip
def test_what_may_not_be_missing_is_named(changes, gone, told):
    with pytest.raises(MissingInput, match=told):
        net(**changes)(dataclasses.replace(batch(), **{gone: None}))


def test_another_schema_is_refused():
    short = dataclasses.replace(batch(), clinical=torch.zeros(3, 2), clinical_mask=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(MissingInput, match="2 clinical variables; the model needs 3"):
        net()(short)


def test_attention_is_over_variables_and_over_the_ct():
    found = net()(batch()).attention
    assert found["clinical"].shape == (3, 1, 3)
    assert found["ct"].shape == (3, 4, 8)  # CLS and three variables; 2 x 2 x 2 patches
    for rows in found.values():
        torch.testing.assert_close(rows.sum(dim=-1), torch.ones(rows.shape[:2]))


@pytest.mark.parametrize("fusion", ["cross", "concat", "image"])
def test_grad_cam_follows_the_patches(fusion):
    model, given = net(fusion), batch()
    _, maps = saliency(model, given)
    assert set(maps) == {"ct"}
    assert maps["ct"].shape == (3, *SHAPE)
    assert torch.isfinite(maps["ct"]).all()
    assert maps["ct"].max() > 0
    some = given.ct.clone()
    some[0] = torch.nan
    if fusion != "image":
        _, mixed = saliency(model, dataclasses.replace(given, ct=some))
        assert mixed["ct"][0].abs().sum() == 0
        torch.testing.assert_close(mixed["ct"][1], maps["ct"][1], rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_an_explanation_leaves_out_each_input_and_each_variable():
    model, given = net(), batch(1)
    found = explain(model, given)
    assert found.without["ct"] == pytest.approx(float(model(dataclasses.replace(given, ct=None)).logit), abs=1e-5)
    empty = dataclasses.replace(given, clinical_mask=torch.zeros(1, 3, dtype=torch.bool))
    assert found.without["clinical"] == pytest.approx(float(model(empty).logit), abs=1e-5)
    for k in range(3):
        one = dataclasses.replace(given, clinical_mask=torch.arange(3)[None] != k)
        assert float(found.without_variable[k]) == pytest.approx(float(model(one).logit), abs=1e-5)
    assert float(found.variable_attention.sum()) == pytest.approx(1)
    assert explain(net(needs=("ct",)), given).without.keys() == {"clinical"}
    assert explain(net("image"), given).without_variable is None


WIDE = {"trunk": dataclasses.replace(VIT, readings=2), "wide": 3.0}


@torch.no_grad()
def test_the_straight_answer_says_nothing_at_the_start():
    model, given = net(**WIDE), batch()
    logit = model(given).logit
    model.wide = None
    assert torch.equal(model(given).logit, logit)


@torch.no_grad()
def test_a_value_is_multiplied_by_what_is_read_where_it_looked():
    model, given = net(**WIDE), batch()
    before = model(given)
    model.wide.weigh.weight.normal_()
    after = model(given)
    weights = model.wide.weigh(model.wide.norm(model.variables(given.clinical, given.clinical_mask)))  # (B, V, 1 + R)
    found = torch.einsum("bvl,blr->bvr", before.attention["ct"][:, 1:], model.trunk.reading(model.trunk(given.ct)))
    expected = 3.0 * (weights[..., 0] + (weights[..., 1:] * found).sum(dim=2)).sum(dim=1)
    torch.testing.assert_close(after.logit - before.logit, expected)


@torch.no_grad()
def test_without_a_ct_the_values_speak_alone():
    model, given = net(**WIDE), batch()
    given = dataclasses.replace(given, ct=torch.full_like(given.ct, torch.nan))
    before = model(given).logit
    model.wide.weigh.weight.normal_()
    told = model.variables(given.clinical, given.clinical_mask)
    torch.testing.assert_close(model(given).logit - before, 3.0 * model.wide.weigh(model.wide.norm(told))[..., 0].sum(dim=1))


@pytest.mark.parametrize(("fusion", "weights"), [("cross", 3), ("concat", 1), ("clinical", 1), ("image", 0)])
def test_only_cross_attention_multiplies(fusion, weights):
    wide = net(fusion, **WIDE).wide
    assert (0 if wide is None else len(wide.weigh.weight)) == weights


@torch.no_grad()
def test_what_is_found_in_the_ct_counts_by_its_factor():
    """Of variables that read a CT; where the CT is all there is it counts in full."""
    small, given = net(layer_scale=0.01), batch()
    other = dataclasses.replace(given, ct=given.ct.flip(0))
    moved = [float((model(other).logit - model(given).logit).abs().max()) for model in (small, net())]
    assert 0 < moved[0] < 0.2 * moved[1]
    assert net("image", layer_scale=0.01).state_dict().keys() == net("image").state_dict().keys()


def test_a_config_of_before_builds_the_model_of_before():
    names = net().state_dict().keys()
    assert not [name for name in names if "reading" in name or "wide" in name or name.endswith("ask_ct.scale")]


def test_a_held_trunk_does_not_learn():
    model = net().train()
    model.hold_trunk(True)
    model(batch()).logit.sum().backward()
    assert all(p.grad is None for p in model.trunk.parameters())
    assert model.head[-1].weight.grad is not None


def test_preset_sizes():
    def count(config):
        return sum(p.numel() for p in CTClinical(config).parameters())

    assert count(compact()) < 1_000_000
    assert 25e6 < count(paper()) < 27e6


def test_a_patch_is_a_token_at_its_place():
    torch.manual_seed(0)
    trunk = ViTTrunk(VIT).eval()
    volume = torch.zeros(1, *SHAPE)
    volume[0, 4:, 8:, :8] = 1.0  # the second patch down, the second back, the first across
    moved = (trunk.tokens(volume) - trunk.tokens(torch.zeros(1, *SHAPE))).abs().sum(dim=2)[0]
    assert moved.nonzero().flatten().tolist() == [6]  # of 2 x 2 x 2 in the order D, H, W


def test_the_middle_of_the_crop_is_asked_first():
    """A bell of the wanted width on the map, whatever its shape, before anything is learned."""
    trunk = dataclasses.replace(VIT, volume_shape=(8, 24, 16), patch=(8, 4, 4))
    prior = net(trunk=trunk, near=0.5).prior.detach().view(1, 6, 4)
    y, x = torch.meshgrid(torch.tensor([-5, -3, -1, 1, 3, 5]) / 6, torch.tensor([-3, -1, 1, 3]) / 4, indexing="ij")
    torch.testing.assert_close(prior[0], -(x**2 + y**2) / 0.5)
    everywhere, here = (net(near=near, trunk=FINE)(batch(1)).attention["ct"][0, 0] for near in (1e3, 0.3))
    at = net(trunk=FINE, near=0.3).prior.argmax()
    assert here[at] > 3 * everywhere[at]


def test_heat_lies_where_attention_lets_a_token_count():
    """Tokens that nobody asks stay cold; with the mean gradient of all places they would be as warm as any."""
    model = net("image", trunk=FINE, near=0.2)
    given = Batch(ct=torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(2)))
    assert all(layer.by_place for layer in model.cam_layers())
    share = {}
    for by_place in (True, False):
        layers = tuple(dataclasses.replace(layer, by_place=by_place) for layer in model.cam_layers())
        heat = saliency(model, given, layers)[1]["ct"]
        share[by_place] = float(heat[:, 2:6, 4:12, 4:12].sum() / heat.sum())
    assert share[True] > 0.6 > 0.4 > share[False]
