"""CLAM against the golden numbers of its official code, and what it does where that code would fail."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from test_models import FEATURES, some_batch
from torch import nn
from torch.nn import functional as F

from HARM3Logic.errors import BadCheckpoint, MissingInput
from HARM3Logic.models.clam import CLAM, CLAMConfig, compact, load_reference, paper, reference_config

SIZES = (8, 9, 37, 200)


class Golden:
    """A parity fixture: arrays by name, and the comparison its sidecar asks for."""

    def __init__(self, folder, name):
        self.tolerances = json.loads((folder / f"{name}.json").read_text())["tolerances"]["per_output"]
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            self.arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
        self.weights = {key.removeprefix("weight."): value for key, value in self.arrays.items() if key.startswith("weight.")}

    def check(self, name, got):
        wanted, allowed = self.arrays[f"output.{name}"], self.tolerances[f"output.{name}"]
        if allowed.get("exact"):
            assert torch.equal(got, wanted), name
        else:
            torch.testing.assert_close(got.detach(), wanted, rtol=allowed["rtol"], atol=allowed["atol"], msg=lambda text: f"{name}: {text}")


@pytest.fixture(params=["clam_sb", "clam_mb"])
def golden(request, parity):
    return Golden(parity, request.param)


@pytest.fixture
def model(golden):
    made = CLAM(reference_config(golden.weights)).eval()
    load_reference(made, golden.weights)
    return made


def here(bag):
    return torch.ones(1, len(bag), dtype=torch.bool)


@pytest.mark.parametrize("count", SIZES)
def test_forward_equals_the_official_code(golden, model, count):
    bag = golden.arrays[f"input.h.N{count}"]
    embedded = model.embed_tiles(bag[None], here(bag))
    pooled, attention = model.pool(embedded, here(bag))
    scores = model.class_scores(pooled)
    if count == 8:
        golden.check("N8.h_fc", embedded[0])
    golden.check(f"N{count}.A_raw", model.pool.scores(embedded)[0])
    golden.check(f"N{count}.M", pooled[0])
    golden.check(f"N{count}.logits", scores)
    golden.check(f"N{count}.Y_prob", scores.softmax(dim=1))
    output = model(dataclasses.replace(some_batch(1), tiles=bag[None], tile_mask=here(bag)))
    assert torch.equal(output.logit, scores[:, 1] - scores[:, 0])
    assert torch.equal(output.attention["slide"], attention)


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("subtyping", [False, True])
def test_losses_equal_the_official_code(golden, model, count, label, subtyping):
    model.config = dataclasses.replace(model.config, subtyping=subtyping)
    bag = golden.arrays[f"input.h.N{count}"]
    embedded = model.embed_tiles(bag[None], here(bag))
    _, attention = model.pool(embedded, here(bag))
    parts = model.instances(embedded[0], attention[0], label)
    name = f"N{count}.label{label}." + "subtyping." * subtyping
    golden.check(name + "inst_preds", torch.cat([z.argmax(dim=1) for z, _ in parts]))
    golden.check(name + "inst_targets", torch.cat([t for _, t in parts]))
    golden.check(name + "instance_loss", model.instance_loss(embedded, attention, here(bag), torch.tensor([label])))


@pytest.mark.parametrize("label", [0, 1])
def test_the_total_loss_and_its_gradient_are_the_official_ones(golden, model, label):
    """What the training loop adds up, times the bag's weight."""
    model.config = dataclasses.replace(model.config, dropout=0.0)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    bag = golden.arrays["input.h.N37"][None].clone().requires_grad_()
    output = model.train()(dataclasses.replace(some_batch(1), tiles=bag, tile_mask=here(bag[0]), label=torch.tensor([label])))
    cross_entropy = F.binary_cross_entropy_with_logits(output.logit, torch.tensor([float(label)]))
    golden.check(f"N37.label{label}.bag_loss", cross_entropy)
    total = model.config.bag_weight * (cross_entropy + output.losses["instance"])
    golden.check(f"N37.label{label}.total_loss", total)
    if label == 1:
        total.backward()
        golden.check("N37.label1.grad.input", bag.grad[0])
        golden.check("N37.label1.grad.attention_net.0.bias", model.embed[0].bias.grad)
        golden.check("N37.label1.grad.attention_net.3.attention_c.weight", model.pool.score.weight.grad)
        golden.check("N37.label1.grad.instance_classifiers.1.weight", model.instance.weight.grad[2:])
        assert not model.instance.weight.grad[:2].any()  # the other class has no part in it


@pytest.mark.parametrize("branches", ["single", "multi"])
@pytest.mark.parametrize("tiles", [1, 2, 7, 9])
def test_fewer_tiles_than_are_sampled_still_teach(branches, tiles):
    torch.manual_seed(0)
    model = CLAM(CLAMConfig(FEATURES, 32, 16, branches)).train()
    output = model(some_batch(2, 2 * tiles))  # the last case has half of them
    assert math.isfinite(output.losses["instance"].item())
    embedded = torch.randn(tiles, 32)
    _, targets = model.instances(embedded, torch.rand(len(output.attention["slide"][0]), tiles), 1)[0]
    assert len(targets) == 2 * min(8, tiles)
    assert int(targets.sum()) == min(8, tiles)


def test_padding_moves_no_loss():
    torch.manual_seed(0)
    model = CLAM(CLAMConfig(FEATURES, 32, 16, dropout=0.0)).train()
    batch = some_batch(1, 12)
    short = dataclasses.replace(batch, tiles=batch.tiles[:, :6], tile_mask=batch.tile_mask[:, :6])
    assert int(batch.tile_mask.sum()) == 6
    torch.testing.assert_close(model(batch).losses["instance"], model(short).losses["instance"])


def test_a_margin_is_the_smooth_top_1_svm():
    torch.manual_seed(0)
    model = CLAM(CLAMConfig(FEATURES, 32, 16, margin=1.0))
    embedded, attention = torch.randn(1, 20, 32), torch.rand(1, 1, 20)
    (z, t), *_ = model.instances(embedded[0], attention[0], 0)
    own, other = z.gather(1, t[:, None])[:, 0], z.gather(1, 1 - t[:, None])[:, 0]
    wanted = torch.log(torch.exp(own) + torch.exp(other + 1)) - own
    got = model.instance_loss(embedded, attention, torch.ones(1, 20, dtype=torch.bool), torch.tensor([0]))
    torch.testing.assert_close(got, wanted.mean())


def test_official_sizes():
    def count(**changes):
        return sum(p.numel() for p in CLAM(dataclasses.replace(paper(), tile_features=1024, **changes)).parameters())

    assert count() == 790_791
    assert count(branches="multi") == 791_048
    assert sum(p.numel() for p in CLAM(compact()).parameters()) < 200_000


def test_a_case_without_tiles_is_refused():
    batch = some_batch()
    with pytest.raises(MissingInput, match="reads nothing else"):
        CLAM(CLAMConfig(FEATURES, 32, 16))(dataclasses.replace(batch, tile_mask=batch.tile_mask & (torch.arange(3) > 0)[:, None]))
    with pytest.raises(MissingInput, match="24 features; the model needs 768"):
        CLAM(compact())(batch)


def test_several_classes_give_the_log_odds_of_the_second():
    torch.manual_seed(0)
    model = CLAM(CLAMConfig(FEATURES, 32, 16, "multi", classes=3)).eval()
    batch = some_batch()
    pooled, _ = model.pool(model.embed_tiles(batch.tiles, batch.tile_mask), batch.tile_mask)
    probability = model.class_scores(pooled).softmax(dim=1)[:, 1]
    torch.testing.assert_close(model(batch).logit, torch.logit(probability))


def test_names_of_older_checkpoints(parity):
    golden = Golden(parity, "clam_sb")
    plain = CLAM(reference_config(golden.weights))
    load_reference(plain, golden.weights)
    for change in (
        lambda n: n.replace("attention_net.", "attention_net.module."),
        lambda n: f"module.{n}",
        lambda n: n.replace("attention_net.3.", "attention_net.2."),  # made without dropout
    ):
        older = {change(name): value for name, value in golden.weights.items()}
        older["instance_loss_fn.labels"] = torch.arange(2)  # of the support vector loss
        model = CLAM(reference_config(older))
        load_reference(model, older)
        assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))


def test_weights_for_prediction_alone(parity):
    golden = Golden(parity, "clam_sb")
    whole, bare = ({n: v for n, v in golden.weights.items() if keep or "instance" not in n} for keep in (True, False))
    models = []
    for weights in (whole, bare):
        models.append(CLAM(reference_config(weights)).eval())
        load_reference(models[-1], weights)
    batch = dataclasses.replace(some_batch(1), tiles=golden.arrays["input.h.N9"][None], tile_mask=torch.ones(1, 9, dtype=torch.bool))
    assert torch.equal(models[0](batch).logit, models[1](batch).logit)
    assert not models[1].instance.weight.any()
    torn = {n: v for n, v in whole.items() if n != "instance_classifiers.1.bias"}
    with pytest.raises(BadCheckpoint, match=r"instance\.bias"):
        load_reference(models[0], torn)


def test_attention_without_a_gate_is_refused():
    plain = {"attention_net.0.weight": torch.zeros(8, 4), "attention_net.3.module.0.weight": torch.zeros(4, 8)}
    with pytest.raises(BadCheckpoint, match="without a gate"):
        reference_config(plain)


def test_other_weights_are_refused(parity):
    golden = Golden(parity, "clam_sb")
    cut = {name: value for name, value in golden.weights.items() if "attention_b" not in name}
    with pytest.raises(BadCheckpoint, match=r"pool\.gate"):
        load_reference(CLAM(reference_config(golden.weights)), cut)
    with pytest.raises(BadCheckpoint, match="'cls_token'"):
        reference_config({"cls_token": torch.zeros(1, 1, 8)})


def test_features_are_scaled_by_what_was_seen_and_not_by_the_batch():
    torch.manual_seed(0)
    model = CLAM(CLAMConfig(FEATURES, 32, 16, standardise=True, dropout=0.0)).train()
    for seed in range(8):
        batch = some_batch(3, 40, seed)
        model(dataclasses.replace(batch, tiles=(5 + 3 * batch.tiles) * batch.tile_mask[..., None]))
    seen = model.scale.seen
    torch.testing.assert_close(seen.running_mean, torch.full((FEATURES,), 5.0), atol=0.6, rtol=0)
    torch.testing.assert_close(seen.running_var, torch.full((FEATURES,), 9.0), atol=1.5, rtol=0)
    bright = torch.full((1, 10, FEATURES), 8.0)  # one spread above the mean in every tile: a batch norm would see nothing in it
    scaled = model.scale(bright, torch.ones(1, 10, dtype=torch.bool))
    assert float(scaled.mean()) > 0.3
