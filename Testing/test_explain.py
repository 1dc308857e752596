"""Grad-CAM against golden numbers, and what an explanation promises."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_models import SHAPE, some_batch, tiny
from torch import nn

from HARM3Logic.case import MRI
from HARM3Logic.explain import explain, grad_cam, leave_one_out, saliency
from HARM3Logic.models.harm3_fusion import HARM3Fusion


@pytest.mark.parametrize("layer", ["conv2", "conv3", "relu3"])
@pytest.mark.parametrize("target", [0, 1])
def test_grad_cam_equals_monai(parity, layer, target):
    side = json.loads((parity / "gradcam3d.json").read_text())["tolerances"]["per_output"]
    with np.load(parity / "gradcam3d.npz", allow_pickle=False) as file:
        golden = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    net = nn.Sequential()
    for name, module in (
        ("conv1", nn.Conv3d(1, 4, 3, padding=1)), ("relu1", nn.ReLU()), ("pool", nn.MaxPool3d(2)),
        ("conv2", nn.Conv3d(4, 8, 3, stride=2, padding=1)), ("relu2", nn.ReLU()),
        ("conv3", nn.Conv3d(8, 8, 3, padding=1)), ("relu3", nn.ReLU()),
        ("mean", nn.AdaptiveAvgPool3d(1)), ("flat", nn.Flatten()), ("fc", nn.Linear(8, 2)),
    ):  # fmt: skip
        net.add_module(name, module)
    net.load_state_dict({k.removeprefix("weight."): v for k, v in golden.items() if k.startswith("weight.")})
    kept = []
    getattr(net, layer).register_forward_hook(lambda m, i, o: kept.append(o))
    logits = net(golden["input.x"])
    (gradient,) = torch.autograd.grad(logits[0, target], kept)
    got = grad_cam(kept[0].detach(), gradient)
    name = f"output.{layer}.class{target}.cam_raw"
    torch.testing.assert_close(got[:, None], golden[name], rtol=side[name]["rtol"], atol=side[name]["atol"])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return HARM3Fusion(tiny()).eval()


def only(batch, *names):
    mask = torch.zeros_like(batch.mri_mask)
    for name in names:
        mask.flatten(1)[:, MRI.index(name)] = True
    return dataclasses.replace(batch, mri_mask=mask)


def test_one_map_per_present_volume_on_the_model_grid(model):
    _, maps = saliency(model, some_batch())
    assert list(maps) == list(MRI)
    assert all(m.shape == (3, *SHAPE) and (m >= 0).all() for m in maps.values())
    assert max(float(m.max()) for m in maps.values()) > 0


def test_maps_of_a_case_do_not_depend_on_its_neighbours(model):
    batch = some_batch()
    _, together = saliency(model, batch)
    _, alone = saliency(model, batch.take(torch.tensor([1])))
    for name in MRI:
        torch.testing.assert_close(together[name][1], alone[name][0], rtol=1e-3, atol=1e-6)


def test_rows_go_to_their_own_volume(model):
    """Two cases lacking different volumes: an absent volume's map is zero, the others equal those of the case alone."""
    batch = some_batch(cases=2)
    mask = batch.mri_mask.clone()
    mask[0, 0, 0] = mask[1, 1, 1] = False
    batch = dataclasses.replace(batch, mri_mask=mask)
    _, maps = saliency(model, batch)
    assert maps["t1_pre"][0].abs().sum() == 0
    assert maps["t2_post"][1].abs().sum() == 0
    for row in (0, 1):
        _, alone = saliency(model, batch.take(torch.tensor([row])))
        for name in MRI:
            torch.testing.assert_close(maps[name][row], alone[name][0], rtol=1e-3, atol=1e-6)


def test_a_sequence_that_is_wholly_absent(model):
    _, maps = saliency(model, only(some_batch(), "t1_pre", "t1_post"))
    assert maps["t2_pre"].abs().sum() == 0


def test_left_out_logits_are_those_of_the_case_without_the_input(model):
    batch = some_batch(cases=1)
    found = leave_one_out(model, batch)
    assert list(found) == [*MRI, "slide"]
    rest = only(batch, "t1_pre", "t2_pre", "t1_post")
    assert found["t2_post"] == pytest.approx(model(rest).logit[0].item(), rel=1e-4)
    no_slide = dataclasses.replace(batch, tile_mask=torch.zeros_like(batch.tile_mask))
    assert found["slide"] == pytest.approx(model(no_slide).logit[0].item(), rel=1e-4)


def test_the_only_volume_is_never_left_out(model):
    assert list(leave_one_out(model, only(some_batch(cases=1), "t2_pre"))) == ["slide"]


def test_explanation_leaves_no_hooks_and_agrees_with_the_model(model):
    batch = some_batch(cases=1)
    explanation = explain(model, batch)
    assert explanation.logit == pytest.approx(model(batch).logit[0].item(), rel=1e-5)
    assert float(explanation.tile_attention.sum()) == pytest.approx(1, rel=1e-4)
    assert not any(module._forward_hooks for module in model.modules())
