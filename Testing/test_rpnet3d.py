"""3D RP-Net against golden numbers of its official code: every map, the logit and the losses."""

import dataclasses

import pytest
import torch
from test_layers import load
from test_models import some_batch
from torch.nn import functional as F

from HARM3Logic.batch import Batch
from HARM3Logic.case import TIMEPOINTS
from HARM3Logic.errors import BadOption
from HARM3Logic.explain import saliency
from HARM3Logic.models.rpnet3d import TAPS, ConvBlock, Norm, RPNet3D, RPNet3DConfig, compact, dice_loss, load_reference, paper

STRIDES = {"enc0": (2, 4, 4), "enc1": (1, 2, 2)}  # in which the fixture keeps these maps


def tiny(**changes):
    torch.manual_seed(0)
    return RPNet3D(RPNet3DConfig(base=2, **changes))


@pytest.fixture
def golden(parity):
    return load(parity, "rpnet3d")


@pytest.fixture
def model(golden):
    """The network of the fixture alone, with the reference's weights."""
    made = RPNet3D(RPNet3DConfig(networks=(("t1",),), base=4, dropout=0.0)).eval()
    load_reference(made, {k.removeprefix("weight."): v for k, v in golden[0].items() if k.startswith("weight.")})
    return made


@pytest.fixture
def batch(golden):
    """The fixture's inputs as T1; there is no T2."""
    volumes = torch.stack([golden[0][f"input.{t}"][:, 0] for t in TIMEPOINTS], dim=1)
    return Batch(
        mri=torch.stack([volumes, torch.full_like(volumes, torch.nan)], dim=2),
        mri_mask=torch.tensor([True, False]).expand(2, 2, 2),
        tumour=torch.stack([golden[0][f"input.mask_{t}"][:, 0] for t in TIMEPOINTS], dim=1),
        label=golden[0]["input.label"][:, 0].long(),
    )


def agree(name, got, golden):
    t = golden[1][f"output.{name}"]
    torch.testing.assert_close(got, golden[0][f"output.{name}"], rtol=t["rtol"], atol=t["atol"])


@torch.no_grad()
def test_every_map_equals_the_reference(golden, model):
    for number, time in enumerate(TIMEPOINTS, start=1):
        maps = model.networks[0].branches[time](golden[0][f"input.{time}"], True)
        agree(f"mask{number}", maps["mask"].sigmoid(), golden)
        for level in range(5):
            d, h, w = STRIDES.get(f"enc{level}", (1, 1, 1))
            agree(f"branch{number}.enc{level}", maps[f"enc{level}"][:, :, ::d, ::h, ::w], golden)
        agree(f"branch{number}.seg_sum1", maps["seg1"], golden)
        agree(f"branch{number}.seg_sum0", maps["mask"], golden)


@torch.no_grad()
def test_the_logit_and_what_it_is_made_of_equal_the_reference(golden, model, batch):
    pooled = []
    model.networks[0].score.register_forward_pre_hook(lambda _, args: pooled.append(args[0]))
    logit = model(batch).logit[:, None]
    agree("logit", logit, golden)
    agree("score", logit.sigmoid(), golden)
    for k, part in enumerate(pooled[0].chunk(3, dim=1)):
        agree(f"gap{k}", part, golden)


@torch.no_grad()
def test_the_losses_equal_the_reference(golden, model, batch):
    """In training without dropout, which changes nothing else; the second post mask is empty."""
    output = model.train()(batch)
    assert batch.tumour[-1, 1].sum() == 0
    for number, time in enumerate(TIMEPOINTS, start=1):
        agree(f"loss.mask{number}_dice", output.losses[f"tumour_{time}"] / 0.2, golden)
    bce = F.binary_cross_entropy_with_logits(output.logit, batch.label.float())
    agree("loss.score_bce", bce, golden)
    agree("loss.total", bce + sum(output.losses.values()), golden)


def test_the_weights_go_to_the_network_that_is_named(golden, model, batch):
    both = RPNet3D(RPNet3DConfig(base=4)).eval()
    weights = {k.removeprefix("weight."): v for k, v in golden[0].items() if k.startswith("weight.")}
    load_reference(both, weights, network=1)
    t2 = dataclasses.replace(batch, mri=batch.mri.flip(2), mri_mask=batch.mri_mask.flip(2))
    torch.testing.assert_close(both(t2).logit, model(batch).logit)
    assert not torch.allclose(both(batch).logit, model(batch).logit)


@pytest.mark.parametrize(("n", "first"), [(8, 0), (7, -1)])
def test_padding_of_stride_two_is_tensorflows(n, first):
    """The window's first voxel: an even length is padded after, an odd one on both sides."""
    block = ConvBlock(1, 1, stride=(2, 2, 2))
    torch.nn.init.zeros_(block.conv.bias)
    with torch.no_grad():
        block.conv.weight.zero_()[0, 0, 1, 1, 1] = 1.0  # reads the middle of its window
    kept = []
    block.conv.register_forward_hook(lambda _, __, out: kept.append(out))
    line = torch.arange(float(n))
    block((line[:, None, None] + 10 * line[:, None] + 100 * line)[None, None])
    middle = torch.arange(first + 1.0, n, 2)
    torch.testing.assert_close(kept[0][0, 0], middle[:, None, None] + 10 * middle[:, None] + 100 * middle)


def test_a_flat_map_has_a_finite_gradient():
    norm, flat = Norm(2), torch.full((1, 2, 2, 2, 2), 3.0, requires_grad=True)
    out = norm(flat)
    assert out.abs().max() == 0
    out.sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_networks_learn_masks_where_volume_and_mask_are():
    model = tiny(dropout=0.0).train()
    batch = some_batch()
    full = model(batch).losses
    assert set(full) == {"tumour_pre", "tumour_post"}
    tumour = batch.tumour.clone()
    tumour[0, 1] = torch.nan
    part = model(dataclasses.replace(batch, tumour=tumour)).losses
    rest = model(batch.take(torch.tensor([1, 2]))).losses
    torch.testing.assert_close(part["tumour_pre"], full["tumour_pre"])
    torch.testing.assert_close(part["tumour_post"], rest["tumour_post"])
    mask = batch.mri_mask.clone()
    mask[0, 1] = False  # nothing to find the tumour in
    torch.testing.assert_close(model(dataclasses.replace(batch, mri_mask=mask)).losses["tumour_post"], rest["tumour_post"])
    for none in (dataclasses.replace(batch, tumour=None), dataclasses.replace(batch, tumour=tumour * torch.nan)):
        assert all(float(loss.detach()) == 0 for loss in model(none).losses.values())
    assert not model.eval()(batch).losses
    assert not tiny(mask_weight=0.0).train()(batch).losses


def test_dice_is_minus_one_where_all_is_found_and_empty():
    tumour = torch.zeros(2, 2, 4, 4)
    tumour[0, :, :2] = 1
    seen = torch.ones(2, dtype=torch.bool)
    torch.testing.assert_close(dice_loss(60 * (tumour - 0.5), tumour, seen), torch.tensor(-1.0))
    assert float(dice_loss(-60 * (tumour - 0.5), tumour, seen)) > -1e-3


def test_nothing_changed_leaves_the_biases():
    """The logit reads the difference: equal U-Nets on equal volumes give the same logit whatever they show."""
    model = tiny().eval()
    for network in model.networks:
        network.branches["post"].load_state_dict(network.branches["pre"].state_dict())
    batch = some_batch()
    same = dataclasses.replace(batch, mri=batch.mri[:, :1].expand(-1, 2, -1, -1, -1, -1))
    torch.testing.assert_close(model(same).logit, model(same).logit[:1].expand(3))
    assert model(batch).logit.std() > 1e-4


def test_a_sequence_without_a_volume_has_no_say():
    model = tiny().eval()
    batch = some_batch()
    mask = batch.mri_mask.clone()
    mask[1, :, 1] = False
    logit = model(dataclasses.replace(batch, mri_mask=mask)).logit
    alone = RPNet3D(dataclasses.replace(model.config, networks=(("t1",),))).eval()
    alone.networks[0].load_state_dict(model.networks[0].state_dict())
    torch.testing.assert_close(logit[1], alone(batch).logit[1])
    torch.testing.assert_close(logit[[0, 2]], model(batch).logit[[0, 2]])
    assert alone.inputs() == ("t1_pre", "t1_post")


def test_one_network_may_read_both_sequences():
    model = tiny(networks=(("t1", "t2"),)).eval()
    batch = some_batch()
    assert model.inputs() == ("t1_pre", "t2_pre", "t1_post", "t2_post")
    swapped = dataclasses.replace(batch, mri=torch.stack([batch.mri[:, 0], batch.mri[:, 1].flip(1)], dim=1))
    assert not torch.allclose(model(batch).logit, model(swapped).logit)


@pytest.mark.parametrize("networks", [(), ((),), (("t3",),)])
def test_networks_of_unknown_sequences_are_refused(networks):
    with pytest.raises(BadOption, match="networks"):
        tiny(networks=networks)


@pytest.mark.parametrize("tap", TAPS)
def test_each_network_explains_its_own_sequence(tap):
    model = tiny(cam_layer=tap).eval()
    batch = some_batch(1)
    _, maps = saliency(model, batch)
    other = dataclasses.replace(batch, mri=torch.stack([batch.mri[:, :, 0], -batch.mri[:, :, 1]], dim=2))
    _, changed = saliency(model, other)
    for time in TIMEPOINTS:
        torch.testing.assert_close(changed[f"t1_{time}"], maps[f"t1_{time}"])
        assert not torch.allclose(changed[f"t2_{time}"], maps[f"t2_{time}"])
    torch.testing.assert_close(maps["t1_pre"], maps["t1_post"])


def test_a_coarser_stem_still_segments_the_volume_it_was_given():
    model = tiny(stem_stride=(1, 2, 2)).train()
    batch = some_batch()
    maps = model.networks[0].branches["pre"](batch.mri[:, :1, 0], True)
    assert maps["enc0"].shape[2:] == (8, 16, 16)
    assert maps["mask"].shape[2:] == batch.tumour.shape[2:]
    assert set(model(batch).losses) == {"tumour_pre", "tumour_post"}


def test_preset_sizes():
    def count(config):
        with torch.device("meta"):
            return sum(p.numel() for p in RPNet3D(config).parameters())

    assert count(paper()) == 2 * 16_813_799  # the reference count, for each sequence
    assert count(compact()) < 3_000_000
