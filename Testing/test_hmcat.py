"""What makes HMCAT: radiology asks both levels of the slide, by MCAT's parts; squares of the slide are its upper level."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_models import FEATURES, SHAPE, some_batch, without
from torch import nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI
from HARM3Logic.errors import MissingInput
from HARM3Logic.explain import explain
from HARM3Logic.models.hmcat import HMCAT, HMCATConfig, RegionPooling, compact, paper
from HARM3Logic.models.resnet3d import TrunkConfig


def tiny(**changes):
    config = dataclasses.replace(
        compact(), trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=16), width=32, hidden=64, tile_features=FEATURES
    )
    return dataclasses.replace(config, **changes)


def placed_batch(**kinds):
    """Tiles of 112 µm in a row: squares of 224 µm hold two each."""
    batch = some_batch(**kinds)
    cases, tiles = batch.tile_mask.shape
    row = torch.stack([112.0 * torch.arange(tiles), torch.zeros(tiles)], dim=1)
    return dataclasses.replace(batch, tile_xy_um=row.expand(cases, -1, -1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HMCAT(tiny()).eval()


@pytest.mark.parametrize("bag", ["N1", "N50", "N133"])
def test_a_level_is_mcats(parity, bag):
    side = json.loads((parity / "mcat_stack.json").read_text())["tolerances"]["per_output"]
    with np.load(parity / "mcat_stack.npz", allow_pickle=False) as file:
        golden = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    model = HMCAT(tiny(width=64, heads=8, hidden=128, layers=2, tile_features=48, standardise=False)).eval()

    def fill(part, **places):
        found = {}
        for ours, theirs in places.items():
            head = f"weight.{theirs}."
            found |= {f"{ours.replace('__', '.')}.{n.removeprefix(head)}": w for n, w in golden.items() if n.startswith(head)}
        part.load_state_dict(found)

    def branch(kind, at=""):
        parts = {"transformer": "transformer", "rho": "rho"}
        head = f"{kind}_attention_head.attention_"
        pooling = {"content": f"{head}a.0", "gate": f"{head}b.0", "score": f"{head}c"}
        return {f"{at}{k}": f"{kind}_{v}" for k, v in parts.items()} | {f"{at}pooling__{k}": v for k, v in pooling.items()}

    fill(model.tile_to_width, **{"0": "wsi_net.0"})
    fill(model.ask_tiles, attention__attention="coattn", **branch("path", "branch__"))
    fill(model.radiology, **branch("omic"))
    asking = golden["output.h_omic_bag"].transpose(0, 1)
    asks = torch.ones(asking.shape[:2], dtype=torch.bool)
    tiles = model.tile_to_width(golden[f"input.x_path.{bag}"][None])
    found = {
        "h_path": model.ask_tiles(asking, asks, tiles, torch.ones(tiles.shape[:2], dtype=torch.bool))[0],
        "h_omic": model.radiology(asking, asks),
    }
    for name, got in found.items():
        t = side[f"output.{bag}.{name}"]
        torch.testing.assert_close(got[0].detach(), golden[f"output.{bag}.{name}"], rtol=t["rtol"], atol=t["atol"])


def recorded(model, level, batch):
    """What a level's co-attention is given and gives."""
    seen = []
    hook = getattr(model, level).attention.register_forward_hook(lambda _, given, out: seen.append((given, out)))
    model(batch)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("level", ["ask_tiles", "ask_regions"])
def test_co_attention_is_torchs_and_radiology_is_the_query(model, level):
    batch = placed_batch()
    (asking, answering, present), (answer, attention) = recorded(model, level, batch)
    torch.testing.assert_close(asking, model._radiology_tokens(batch)[0])
    assert answering.shape[1] == (6 if level == "ask_tiles" else 3)
    torchs = nn.MultiheadAttention(32, 1, batch_first=True)
    torchs.load_state_dict(getattr(model, level).attention.attention.state_dict())
    wanted, weights = torchs(asking, answering, answering, key_padding_mask=~present)
    torch.testing.assert_close(answer, wanted)
    torch.testing.assert_close(attention, weights)


def test_radiology_weighs_the_slide_and_adds_nothing_to_its_answer(model):
    """Where all tiles are alike there is nothing to weigh: every query gets the same answer."""
    batch = placed_batch()
    alike = dataclasses.replace(batch, tiles=torch.ones_like(batch.tiles) * batch.tile_mask[..., None])
    for level in ("ask_tiles", "ask_regions"):
        _, (same, _) = recorded(model, level, alike)
        torch.testing.assert_close(same, same[:, :1].expand_as(same))
        _, (own, _) = recorded(model, level, batch)
        assert own[0].std(dim=0).max() > 1e-4


def test_squares_are_pooled_from_their_own_tiles():
    torch.manual_seed(0)
    pooling = RegionPooling(8, 100.0).eval()
    tiles = torch.randn(2, 4, 8)
    xy = torch.tensor([[[0.0, 0], [99, 99], [100, 0], [0, 250]], [[0, 0], [50, 50], [350, 0], [0, 0]]])
    present = torch.tensor([[True, True, True, True], [True, True, True, False]])
    regions = pooling(tiles, present, xy)
    assert regions.present.tolist() == [[True, True, True], [True, True, False]]
    assert regions.place.tolist() == [0, 0, 2, 1, 0, 0, 1]
    pair = tiles[0, :2]
    weights = pooling.score(pair)[:, 0].softmax(0)
    wanted = pooling.mix(torch.cat([pair.mean(dim=0), weights @ pair]))
    torch.testing.assert_close(regions.tokens[0, 0], wanted)
    torch.testing.assert_close(regions.tokens[1, 1], pooling.mix(tiles[1, 2].repeat(2)))
    shared = regions.spread(torch.tensor([[0.5, 0.2, 0.3], [0.6, 0.4, 0.0]]))
    torch.testing.assert_close(shared[0], torch.cat([0.5 * weights, torch.tensor([0.3, 0.2])]))
    torch.testing.assert_close(shared.sum(dim=1), torch.ones(2))
    assert shared[1, 3] == 0


def test_where_tiles_lie_matters_and_their_order_does_not(model):
    batch = placed_batch()
    turned = dataclasses.replace(batch, **{n: getattr(batch, n).flip(1) for n in ("tiles", "tile_mask", "tile_xy_um")})
    torch.testing.assert_close(model(batch).logit, model(turned).logit, rtol=1e-4, atol=1e-5)
    gathered = dataclasses.replace(batch, tile_xy_um=torch.zeros_like(batch.tile_xy_um))
    assert (model(batch).logit - model(gathered).logit).abs().min() > 1e-6
    nowhere = dataclasses.replace(batch, tile_xy_um=None)  # a bag without coordinates is one region
    torch.testing.assert_close(model(gathered).logit, model(nowhere).logit)


def test_before_and_after_are_told_apart(model):
    batch = placed_batch()
    assert (model(batch).logit - model(dataclasses.replace(batch, mri=batch.mri.flip(1))).logit).abs().min() > 1e-6


@pytest.mark.parametrize("gone", [[(0, 0)], [(1, 0), (1, 1)], [(0, 1), (1, 0), (1, 1)], [(0, 0), (1, 0)]])
@pytest.mark.parametrize("slide", [False, True])
def test_any_subset_of_inputs_will_do(model, gone, slide):
    batch = without(placed_batch(), gone, slide)
    output = model(batch)
    assert torch.isfinite(output.logit).all()
    sums = output.attention["slide"].sum(dim=-1)
    torch.testing.assert_close(sums, torch.full_like(sums, 1.0 - slide))
    loud = batch.mri.clone()
    for t, s in gone:
        loud[:, t, s] = 50.0
    other = dataclasses.replace(batch, mri=loud, tiles=batch.tiles + 50.0 * ~batch.tile_mask[..., None])
    torch.testing.assert_close(model(other).logit, output.logit, rtol=0, atol=0)
    logit = HMCAT(tiny()).train()(batch).logit  # a batch in which nobody has the input trains, too
    logit.sum().backward()
    assert torch.isfinite(logit).all()


def test_an_absent_volume_changes_what_is_asked(model):
    batch = placed_batch(cases=2)
    some = without(batch, [(0, 0)])
    mixed = dataclasses.replace(batch, mri_mask=torch.cat([some.mri_mask[:1], batch.mri_mask[1:]]))
    logit = model(mixed).logit
    torch.testing.assert_close(logit[0], model(some).logit[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logit[1], model(batch).logit[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logit[0], model(batch).logit[0], rtol=0, atol=1e-6)


def test_tokens_of_an_absent_volume_reach_no_branch(model):
    tokens, present = torch.randn(2, 5, 32), torch.tensor([[True, True, True, False, False], [True] * 5])
    other = torch.where(present[..., None], tokens, torch.tensor(9.0))
    for branch in (model.radiology, model.ask_tiles.branch, model.ask_regions.branch):
        torch.testing.assert_close(branch(tokens, present), branch(other, present))
        torch.testing.assert_close(branch(tokens[:1], present[:1]), branch(tokens[:1, :3], present[:1, :3]))


def test_without_a_slide_and_with_an_empty_bag_are_one(model):
    empty = without(placed_batch(), slide=True)
    none = dataclasses.replace(empty, tiles=None, tile_mask=None, tile_xy_um=None)
    torch.testing.assert_close(model(empty).logit, model(none).logit)


def test_what_cannot_be_read_is_refused(model):
    with pytest.raises(MissingInput, match="no MRI volume"):
        model(without(placed_batch(), [(0, 0), (0, 1), (1, 0), (1, 1)]))
    with pytest.raises(MissingInput, match="no t2_post"):
        HMCAT(tiny(needs=("t2_post",)))(without(placed_batch(), [(1, 1)]))
    with pytest.raises(MissingInput, match="5 features; the model needs 24"):
        model(dataclasses.replace(placed_batch(), tiles=torch.zeros(3, 6, 5)))


def test_explanation_shows_every_volume_and_tile(model):
    batch = without(placed_batch(cases=1), [(1, 1)])
    explanation = explain(model, batch)
    assert list(explanation.saliency) == list(MRI)
    heat = {name: float(m.abs().sum()) for name, m in explanation.saliency.items()}
    assert heat["t2_post"] == 0
    assert max(heat.values()) > 0
    assert explanation.tile_attention.shape == (6,)
    assert float(explanation.tile_attention.sum()) == pytest.approx(1, rel=1e-4)
    assert list(explanation.without) == ["t1_pre", "t2_pre", "t1_post", "slide"]


def test_preset_sizes():
    def count(config):
        return sum(p.numel() for p in HMCAT(config).parameters())

    assert count(compact()) <= 3_000_000
    assert 66e6 < count(paper()) < 75e6
    assert HMCATConfig().width == 256  # MCAT's


def test_a_step_of_training_lowers_the_loss():
    torch.manual_seed(0)
    model, batch = HMCAT(tiny(dropout=0.0)).train(), placed_batch()
    assert isinstance(batch, Batch)
    assert batch.mri.shape[-3:] == SHAPE
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    seen = []
    for _ in range(8):
        loss = nn.functional.binary_cross_entropy_with_logits(model(batch).logit, batch.label.float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0]
