"""Attention layers against golden numbers and torch's own."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from HARM3Logic.models.layers import AttentionPooling, CrossAttention, RelativeBias, SelfAttention


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
