"""TransMIL against the golden numbers of its official code, and each case for itself."""

import dataclasses

import pytest
import torch
from test_clam import Golden
from test_models import FEATURES, some_batch

from HARM3Logic.errors import BadCheckpoint, MissingInput
from HARM3Logic.models.transmil import TransMIL, TransMILConfig, compact, load_reference, paper, pseudo_inverse, reference_config

SIZES = (1, 2, 15, 16, 255, 300)


@pytest.fixture(scope="module")
def golden(parity):
    return Golden(parity, "transmil")


def filled(golden, **changes):
    model = TransMIL(dataclasses.replace(reference_config(golden.weights), **changes)).eval()
    load_reference(model, golden.weights)
    return model


@pytest.mark.parametrize("count", SIZES)
def test_forward_equals_the_official_code(golden, count):
    model = filled(golden)
    bag = golden.arrays[f"input.x.N{count}"]
    tokens = model.tokens(bag)
    golden.check(f"N{count}.tokens_in", tokens)
    first, _ = model.layer1(tokens)
    golden.check(f"N{count}.layer1", first)
    placed = model.position(first, round((first.shape[1] - 1) ** 0.5))
    golden.check(f"N{count}.ppeg", placed)
    second, _ = model.layer2(placed)
    golden.check(f"N{count}.layer2", second)
    golden.check(f"N{count}.cls", model.norm(second)[:, 0])
    scores, _ = model.judge(bag)
    golden.check(f"N{count}.logits", scores)
    golden.check(f"N{count}.Y_prob", scores.softmax(dim=1))
    output = model(dataclasses.replace(some_batch(1), tiles=bag, tile_mask=torch.ones(bag.shape[:2], dtype=torch.bool)))
    torch.testing.assert_close(output.logit, scores[:, 1] - scores[:, 0])


def test_parts_of_the_attention(golden):
    model = filled(golden)
    tokens = golden.arrays["output.N15.tokens_in"]
    for name, layer, given in (("layer1", model.layer1, tokens), ("layer2", model.layer2, golden.arrays["output.N15.ppeg"])):
        _, left, inverse, right = layer.attention.parts(layer.norm(given))
        for part, got in (("attn1", left), ("attn2_pinv", inverse), ("attn3", right)):
            golden.check(f"N15.{name}.{part}", got)


@pytest.mark.parametrize("count", SIZES)
def test_the_old_nystrom_attention_takes_the_first_tokens(golden, count):
    scores, _ = filled(golden, compat_nystrom_009=True).judge(golden.arrays[f"input.x.N{count}"])
    golden.check(f"compat009.N{count}.logits", scores)


def test_a_batch_starts_its_inverse_together_only_if_asked(golden):
    model, bags = filled(golden), golden.arrays["input.x.batch2.N16"]
    golden.check("batch2.N16.logits", model.judge(bags, together=True)[0])
    golden.check("batch2.N16.logits_each_alone", model.judge(bags)[0])
    matrix = torch.rand(2, 3, 4, 4).softmax(dim=3)
    matrix[1] *= 5
    alone = torch.cat([pseudo_inverse(matrix[k : k + 1], 6) for k in range(2)])
    assert torch.equal(pseudo_inverse(matrix, 6), alone)
    assert not torch.allclose(pseudo_inverse(matrix, 6, together=True), alone)


def test_the_inverse_is_one():
    torch.manual_seed(0)
    matrix = (torch.randn(1, 2, 8, 8) + 4 * torch.eye(8)).softmax(dim=3).double()
    product = matrix @ pseudo_inverse(matrix, 20)
    torch.testing.assert_close(product, torch.eye(8).double().expand_as(product), atol=1e-6, rtol=0)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return TransMIL(TransMILConfig(FEATURES, 32, 4, 8)).eval()


@pytest.mark.parametrize("tiles", [1, 3, 5, 11])
def test_the_square_knows_no_neighbour(small, tiles):
    """A bag whose square is not full, beside a longer one, gives the very logit it has alone."""
    batch = some_batch(2, 2 * tiles)
    alone = dataclasses.replace(batch.take(torch.tensor([1])), tiles=batch.tiles[1:, :tiles], tile_mask=batch.tile_mask[1:, :tiles])
    assert int(batch.tile_mask[1].sum()) == tiles
    torch.testing.assert_close(small(batch).logit[1:], small(alone).logit, rtol=1e-5, atol=1e-6)


def test_gaps_are_not_tiles(small):
    batch = some_batch(1, 8)
    mask = torch.tensor([[True, False, True, True, False, False, True, True]])
    with_gaps = dataclasses.replace(batch, tiles=torch.randn(1, 8, FEATURES), tile_mask=mask)
    without = dataclasses.replace(batch, tiles=with_gaps.tiles[:, mask[0]], tile_mask=mask[:, mask[0]])
    torch.testing.assert_close(small(with_gaps).logit, small(without).logit)
    attention = small(with_gaps).attention["slide"]
    assert not attention[0, 0, ~mask[0]].any()
    torch.testing.assert_close(attention[:, :, mask[0]], small(without).attention["slide"])


def test_attention_is_what_the_class_token_mixes(small):
    """With as many landmarks as tokens and a full inverse, Nystrom's attention is the softmax itself."""
    layer = TransMIL(TransMILConfig(FEATURES, 32, 4, landmarks=10, iterations=40)).eval().layer1
    tokens = torch.randn(1, 10, 32)
    _, seen = layer.attention(tokens)
    q, k, _ = (x.unflatten(2, (4, -1)).transpose(1, 2) for x in layer.attention.query_key_value(tokens).chunk(3, dim=2))
    wanted = (q @ k.transpose(2, 3) / 8**0.5).softmax(dim=3).mean(dim=1)[:, 0]
    torch.testing.assert_close(seen, wanted, atol=1e-3, rtol=0)


def test_a_tile_that_is_repeated_keeps_its_share(small):
    tiles = torch.randn(1, 5, FEATURES)  # a square of nine: four are there twice
    _, seen = small.judge(tiles)
    tokens = small.tokens(tiles)
    placed = small.position(small.layer1(tokens)[0], 3)
    _, whole = small.layer2(placed)
    torch.testing.assert_close(seen[0, :4], whole[0, 1:5] + whole[0, 6:10])
    torch.testing.assert_close(seen[0, 4], whole[0, 5])


def test_official_size():
    assert sum(p.numel() for p in TransMIL(dataclasses.replace(paper(), tile_features=1024)).parameters()) == 2_672_146
    assert sum(p.numel() for p in TransMIL(compact()).parameters()) < 300_000


def test_a_case_without_tiles_is_refused(small):
    with pytest.raises(MissingInput, match="transmil reads nothing else"):
        small(dataclasses.replace(some_batch(), tile_mask=torch.zeros(3, 6, dtype=torch.bool)))


def test_names_of_lightning_checkpoints(golden):
    plain = filled(golden)
    named = {f"model.{name}": value for name, value in golden.weights.items()}
    model = TransMIL(reference_config(named))
    load_reference(model, named)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), model.state_dict().values(), strict=True))
    with pytest.raises(BadCheckpoint, match="layer3"):
        reference_config({**named, "model.layer3.norm.weight": torch.zeros(64)})
