"""Attention layers against golden numbers and torch's own."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from HARM3Logic.models.layers import (
    AttentionPooling,
    CoAttention,
    CrossAttention,
    FeatureScale,
    GatedPooling,
    RelativeBias,
    SelfAttention,
)


def load(parity, name):
    side = json.loads((parity / f"{name}.json").read_text())
    with np.load(parity / f"{name}.npz", allow_pickle=False) as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}, side["tolerances"]["per_output"]


def test_equations_6_and_7(parity):
    golden, tolerance = load(parity, "cross_attention")
    layer = CrossAttention(64).double()
    layer.load_state_dict(
        {k: golden[f"weight.W_{n}"].double() for k, n in (("query.weight", "Q"), ("key.weight", "K"), ("value.weight", "V"))}
    )
    slide, mri = golden["input.F_WSI"].double(), golden["input.F_MRI"].double()
    for prefix, present in (("", None), ("masked.", ~golden["input.mri_padding_mask"].bool())):
        fused, attention = layer(slide, mri, present)
        for name, got in (("A", attention), ("F_fused", fused)):
            t = tolerance[f"output.{prefix}{name}"]
            torch.testing.assert_close(got.detach(), golden[f"output.{prefix}{name}"], rtol=t["rtol"], atol=t["atol"])


def test_pooling_is_multi_head_attention(parity):
    golden, tolerance = load(parity, "pma_pooling")
    layer = AttentionPooling(64, queries=8, heads=8)
    weights = {f"attention.{n}": golden[f"weight.{n}"] for n in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    layer.load_state_dict({**weights, "queries": golden["weight.S"], "absent": layer.absent})
    pooled, attention = layer(golden["input.x"], ~golden["input.key_padding_mask"].bool())
    for name, got in (("pooled", pooled), ("A_mean", attention)):
        t = tolerance[f"output.{name}"]
        torch.testing.assert_close(got.detach(), golden[f"output.{name}"], rtol=t["rtol"], atol=t["atol"])


def test_an_empty_bag_pools_to_the_stand_in():
    torch.manual_seed(0)
    layer = AttentionPooling(16, queries=3, heads=2).eval()
    nothing = torch.zeros(2, 5, dtype=torch.bool)
    pooled, attention = layer(torch.randn(2, 5, 16), nothing)
    other, _ = layer(torch.randn(2, 1, 16), nothing[:, :1])
    torch.testing.assert_close(pooled, other)
    assert attention.abs().sum() == 0


def test_collaborative_heads_start_as_ordinary_ones():
    torch.manual_seed(0)
    plain, shared = SelfAttention(24, 4), SelfAttention(24, 4, collaborative=True)
    shared.load_state_dict({**plain.state_dict(), "mixing": shared.mixing.detach()})
    tokens, present = torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool)
    present[1, 4:] = False
    bias = torch.randn(4, 7, 7)
    torch.testing.assert_close(plain(tokens, present, bias), shared(tokens, present, bias))


def test_self_attention_equals_torch():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(24, 4), nn.MultiheadAttention(24, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.query_key_value.weight, "in_proj_bias": ours.query_key_value.bias,
            "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
        }
    )  # fmt: skip
    tokens, present = torch.randn(2, 7, 24), torch.ones(2, 7, dtype=torch.bool)
    present[0, 5:] = False
    wanted, _ = theirs(tokens, tokens, tokens, key_padding_mask=~present)
    torch.testing.assert_close(ours(tokens, present, torch.zeros(4, 7, 7)), wanted)


@pytest.mark.parametrize("shift", [0, 3])
def test_bias_depends_on_offsets_alone(shift):
    torch.manual_seed(0)
    bias = RelativeBias(2, (2, 8))
    for table in bias.tables:
        nn.init.normal_(table)
    places = torch.tensor([[0, 0], [1, 2], [0, 4]])
    torch.testing.assert_close(bias(places), bias(places + torch.tensor([0, shift])))
    assert not torch.equal(bias(places)[:, 0, 1], bias(places)[:, 1, 0])  # a direction, not a distance


def check(golden, tolerance, name, got):
    t = tolerance[f"output.{name}"]
    torch.testing.assert_close(got.detach(), golden[f"output.{name}"], rtol=t["rtol"], atol=t["atol"], msg=lambda text: f"{name}: {text}")


def starting(golden, names):
    """The golden weights under other names: start to start."""
    plain = {key.removeprefix("weight."): value for key, value in golden.items() if key.startswith("weight.")}
    return {new + key.removeprefix(old): value for old, new in names.items() for key, value in plain.items() if key.startswith(old)}


def gated(golden, start, width, hidden):
    pooling = GatedPooling(width, hidden)
    names = {f"{start}attention_a.0.": "content.", f"{start}attention_b.0.": "gate.", f"{start}attention_c.": "score."}
    pooling.load_state_dict(starting(golden, names))
    return pooling


@pytest.mark.parametrize("cases", [1, 3])
def test_coattention_of_mcat(parity, cases):
    golden, tolerance = load(parity, "mcat_coattn")
    layer = CoAttention(64)
    layer.load_state_dict(starting(golden, {"coattn.": "attention."}))
    asking, bag = (golden[f"input.{name}.B{cases}"].transpose(0, 1) for name in ("query", "key"))
    attended, attention = layer(asking, bag)
    check(golden, tolerance, f"B{cases}.coattn", attended.transpose(0, 1))
    check(golden, tolerance, f"B{cases}.coattn_raw", layer.scores(asking, bag))
    check(golden, tolerance, f"B{cases}.coattn_softmax", attention[:, None])
    if cases == 1:
        pooling = gated(golden, "attention_head.", 64, 64)
        check(golden, tolerance, "B1.pool_A_raw", pooling.scores(attended)[0])
        check(golden, tolerance, "B1.pooled", pooling(attended)[0][0])


@pytest.mark.parametrize("count", [1, 2, 17, 120])
def test_gated_attention_of_ilse(parity, count):
    golden, tolerance = load(parity, "gated_abmil")
    pooling = GatedPooling(64, 32)
    pooling.load_state_dict(starting(golden, {"attention_V.0.": "content.", "attention_U.0.": "gate.", "attention_w.": "score."}))
    bag = golden[f"input.H.N{count}"][None]
    pooled, attention = pooling(bag)
    check(golden, tolerance, f"N{count}.A_raw", pooling.scores(bag)[0])
    check(golden, tolerance, f"N{count}.A", attention[0])
    check(golden, tolerance, f"N{count}.Z", pooled[0])


@pytest.mark.parametrize("count", [1, 50, 133])
def test_the_stack_of_mcat(parity, count):
    """Co-attention, two post-norm transformers, gated pooling, from the co-attended tokens to the scores of the classes."""
    golden, tolerance = load(parity, "mcat_stack")
    coattention = CoAttention(64)
    coattention.load_state_dict(starting(golden, {"coattn.": "attention."}))
    names = {"wsi_net.0.": "wsi.", "mm.": "mm.", "classifier.": "classifier.", "path_rho.0.": "path.", "omic_rho.0.": "omic."}
    own = starting(golden, names)
    tokens = golden["output.h_omic_bag"].transpose(0, 1)
    bag = nn.functional.linear(golden[f"input.x_path.N{count}"], own["wsi.weight"], own["wsi.bias"]).relu()[None]
    attended, _ = coattention(tokens, bag)
    check(golden, tolerance, f"N{count}.h_coattn", attended.transpose(0, 1))
    check(golden, tolerance, f"N{count}.A_coattn_raw", coattention.scores(tokens, bag))
    vectors = []
    for branch, given in (("path", attended), ("omic", tokens)):
        layer = nn.TransformerEncoderLayer(64, 8, 128, dropout=0.25, activation="relu", batch_first=True)
        transformer = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        transformer.load_state_dict(starting(golden, {f"{branch}_transformer.": ""}))
        mixed = transformer.eval()(given)
        check(golden, tolerance, f"N{count}.h_{branch}_trans", mixed.transpose(0, 1))
        pooling = gated(golden, f"{branch}_attention_head.", 64, 64)
        check(golden, tolerance, f"N{count}.A_{branch}_raw", pooling.scores(mixed)[0])
        vectors.append(nn.functional.linear(pooling(mixed)[0][0, 0], own[f"{branch}.weight"], own[f"{branch}.bias"]).relu())
        check(golden, tolerance, f"N{count}.h_{branch}", vectors[-1])
    fused = nn.functional.linear(torch.cat(vectors), own["mm.0.weight"], own["mm.0.bias"]).relu()
    fused = nn.functional.linear(fused, own["mm.2.weight"], own["mm.2.bias"]).relu()
    check(golden, tolerance, f"N{count}.logits", nn.functional.linear(fused, own["classifier.weight"], own["classifier.bias"])[None])


@pytest.mark.parametrize("layer", [CoAttention(16), GatedPooling(16, 8, rows=2)])
def test_a_bag_is_read_without_its_padding_and_an_empty_one_gives_zeros(layer):
    torch.manual_seed(0)
    bag, asking = torch.randn(3, 7, 16), [torch.randn(3, 4, 16)] * isinstance(layer, CoAttention)
    present = torch.arange(7) < torch.tensor([[7], [3], [0]])
    out, attention = layer(*asking, bag, present)
    loud = bag + 50.0 * ~present[..., None]
    torch.testing.assert_close(layer(*asking, loud, present)[0], out)
    short, _ = layer(*[rows[1:2] for rows in asking], bag[1:2, :3])
    torch.testing.assert_close(out[1:2], short)
    assert not out[2].any()
    torch.testing.assert_close(attention.sum(dim=2), present.any(dim=1)[:, None].float().expand(-1, attention.shape[1]))
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


EVERY = torch.ones(2, 40, dtype=torch.bool)


def shown(layer, count=8):
    """The layer when training has shown it tiles of mean 5 and spread 3."""
    torch.manual_seed(0)
    for _ in range(count):
        layer.train()(5 + 3 * torch.randn(2, 40, 4), EVERY)
    return layer


def test_features_are_scaled_alike_in_training_and_later():
    layer, bright = shown(FeatureScale(4)), torch.full((2, 40, 4), 8.0)
    layer.seen.momentum = 0.0  # learns no more
    scaled = layer.train()(bright, EVERY)
    torch.testing.assert_close(scaled, torch.ones_like(bright), atol=0.3, rtol=0)  # a batch norm would see nothing in it
    torch.testing.assert_close(layer.eval()(bright, EVERY), scaled)


def test_a_batch_is_scaled_by_its_own_tiles_where_asked_and_absent_ones_are_zero():
    layer, tiles, present = shown(FeatureScale(4, of_batch=True), 40), 9 + torch.randn(2, 40, 4), EVERY.clone()
    present[1, 5:] = False
    plain = nn.BatchNorm1d(4, affine=False)
    scaled = layer.train()(tiles, present)
    torch.testing.assert_close(scaled[present], plain(tiles[present]))
    assert not scaled[~present].any()
    torch.testing.assert_close(layer.eval()(torch.full((2, 40, 4), 8.0), EVERY).mean(), torch.tensor(0.9), atol=0.3, rtol=0)


@pytest.mark.parametrize("of_batch", [False, True])
def test_one_tile_teaches_nothing_and_is_scaled_by_what_was_seen(of_batch):
    layer, one = shown(FeatureScale(4, of_batch)), EVERY.clone()
    one[:], one[0, 0] = False, True
    before = layer.seen.running_mean.clone()
    learned = layer.train()(torch.full((2, 40, 4), 8.0), one)
    assert torch.equal(layer.seen.running_mean, before)
    torch.testing.assert_close(learned, layer.eval()(torch.full((2, 40, 4), 8.0), one))
    assert learned[0, 0].all()


def test_weights_of_a_plain_batch_norm_are_still_read():
    old, layer = nn.BatchNorm1d(4, affine=False), nn.Sequential(FeatureScale(4, of_batch=True))
    old(torch.randn(30, 4) * 3 + 5)
    layer.load_state_dict({f"0.{name}": value for name, value in old.state_dict().items()})
    tiles = torch.randn(2, 40, 4)
    assert torch.equal(layer.eval()[0](tiles, EVERY).flatten(0, 1), old.eval()(tiles.flatten(0, 1)))
    again = nn.Sequential(FeatureScale(4))
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again[0].seen.running_mean, old.running_mean)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        again.load_state_dict({**layer.state_dict(), "0.gain": torch.zeros(4)})
