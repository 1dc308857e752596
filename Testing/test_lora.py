"""Low-rank adaptation: nothing at the start, only its own parameters while learning, plain weights at the end."""

import copy
import dataclasses

import pytest
import torch
from test_ct_clinical import batch, net

from HARM3Logic.checkpoint import build
from HARM3Logic.errors import BadOption

pytest.importorskip("peft")
from HARM3Logic.models import lora


def learn(model, steps=3):
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    label = torch.tensor([0.0, 1, 1])
    for _ in range(steps):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch()).logit, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def test_it_changes_nothing_at_the_start():
    model = net()
    before = model(batch()).logit
    lora.adapt(model.trunk)
    assert torch.equal(model.eval()(batch()).logit, before)


def test_attention_and_mlp_of_every_layer_are_adapted():
    model = net()
    lora.adapt(model.trunk)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}
    assert adapted == {f"trunk.layers.0.{layer}" for layer in lora.LAYERS}


def test_the_share_that_learns_is_counted():
    model = net()
    frozen = sum(p.numel() for p in model.trunk.parameters())
    told = lora.adapt(model.trunk, lora.LoraSettings(rank=2))
    width, hidden, rank = 16, 32, 2
    expected = rank * ((width + 3 * width) + (width + width) + (width + hidden) + (hidden + width))
    assert (told.trainable, told.total) == (expected, frozen + expected)
    assert f"{expected:,} of" in str(told)
    whole = lora.share(model)
    assert whole.trainable == sum(p.numel() for name, p in model.named_parameters() if not name.startswith("trunk.")) + expected


def test_frozen_parameters_stay_and_the_others_move():
    model = net()
    lora.adapt(model.trunk)
    before = copy.deepcopy(dict(model.named_parameters()))
    learn(model.train())
    for name, parameter in model.named_parameters():
        frozen = name.startswith("trunk.") and "lora_" not in name
        assert torch.equal(parameter, before[name]) == frozen, name


def test_merged_equals_unmerged_and_is_an_ordinary_model():
    model = net()
    lora.adapt(model.trunk)
    start = net()(batch()).logit
    learn(model.train())
    unmerged = model.eval()(batch()).logit
    assert (unmerged - start).abs().max() > 1e-3  # there is something to merge
    merged = lora.merge(model)
    assert (merged(batch()).logit - unmerged).abs().max() <= 1e-6
    again = build("ct_clinical", dataclasses.asdict(model.config), "here").eval()
    again.load_state_dict(merged.state_dict())
    assert torch.equal(again(batch()).logit, merged(batch()).logit)
    assert all(p.requires_grad for p in merged.parameters())


def test_no_rank_and_no_layer_are_refused():
    for settings in (lora.LoraSettings(rank=0), lora.LoraSettings(layers=("nowhere",))):
        with pytest.raises(BadOption, match="LoRA"):
            lora.adapt(net().trunk, settings)
