"""The 3D ResNet against golden numbers of its official code, in evaluation and in training."""

import dataclasses

import pytest
import torch
from test_layers import load
from test_models import SHAPE, some_batch
from torch.nn import functional as F

from HARM3Logic.case import MRI
from HARM3Logic.explain import grad_cam, saliency
from HARM3Logic.models.channels import gather
from HARM3Logic.models.resnet3d import TrunkConfig
from HARM3Logic.models.resnet3d_classifier import ResNet3D, ResNet3DConfig, compact, load_reference, paper

DEPTHS = {"resnet3d_18": (18, 1 / 8), "resnet3d_50": (50, 1 / 16)}


@pytest.fixture(params=DEPTHS)
def golden(request, parity):
    values, tolerance = load(parity, request.param)
    depth, widen = DEPTHS[request.param]
    model = ResNet3D(ResNet3DConfig(volumes=MRI[:1], trunk=TrunkConfig(depth=depth, widen=widen)))
    load_reference(model, {k.removeprefix("weight."): v for k, v in values.items() if k.startswith("weight.")})
    return model, values, tolerance


def agree(got, values, tolerance):
    for name, tensor in got.items():
        t = tolerance[f"output.{name}"]
        torch.testing.assert_close(tensor, values[f"output.{name}"], rtol=t["rtol"], atol=t["atol"])


def test_every_stage_equals_the_reference(golden):
    model, values, tolerance = golden
    model.eval()
    seen = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        model.trunk.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        seen["logits"] = model.classify(values["input.x"])
    seen["layer1"] = seen["layer1"][:, :, :, ::2, ::2]
    seen["features"] = seen["layer4"].mean(dim=(2, 3, 4))
    agree(seen, values, tolerance)


def test_a_training_pass_equals_the_reference(golden):
    """Logits from the batch's own statistics, and the running ones after it."""
    model, values, tolerance = golden
    model.train()
    with torch.no_grad():
        got = {"train.logits": model.classify(values["input.x"])}
    for name in (n for n in values if n.startswith("output.train.") and "running" in n):
        ours = name.removeprefix("output.train.").replace("bn1.", "stem.1.", 1) if name.startswith("output.train.bn1") else None
        got[name.removeprefix("output.")] = model.trunk.state_dict()[ours or name.removeprefix("output.train.")]
    assert len(got) > 10
    agree(got, values, tolerance)


def test_a_data_parallel_state_dict_is_read_too():
    torch.manual_seed(0)
    one, other = (ResNet3D(ResNet3DConfig(trunk=TrunkConfig(depth=10, widen=1 / 16))) for _ in range(2))
    names = {"trunk.stem.0": "conv1", "trunk.stem.1": "bn1"}
    published = {}
    for name, value in one.state_dict().items():
        start = name.rpartition(".")[0]
        published[f"module.{name.replace(start, names[start]) if start in names else name.removeprefix('trunk.')}"] = value
    load_reference(other, published)
    batch = some_batch()
    assert torch.equal(one.eval()(batch).logit, other.eval()(batch).logit)


def test_the_volumes_share_the_heat_of_the_last_map():
    torch.manual_seed(0)
    model = ResNet3D(ResNet3DConfig(trunk=TrunkConfig(depth=10, widen=1 / 16, output_stride=8))).eval()
    batch = some_batch(1)
    batch = dataclasses.replace(batch, mri_mask=torch.tensor([[[True, True], [False, True]]]))
    kept = []
    model.trunk.layer4.register_forward_hook(lambda _, __, out: kept.append(out))
    output, maps = saliency(model, batch)
    output = model(batch)  # the hook keeps this pass's map
    (gradient,) = torch.autograd.grad(output.logit.sum(), kept[-1:])
    whole = F.interpolate(grad_cam(kept[-1].detach(), gradient)[:, None], size=SHAPE, mode="trilinear", align_corners=False)[:, 0]
    assert whole.max() > 0
    classes = model.classify(gather(batch, MRI)[0])
    torch.testing.assert_close(output.logit, classes[:, 1] - classes[:, 0])  # which sharing leaves as it is
    torch.testing.assert_close(sum(maps.values()), whole)
    assert maps["t1_post"].abs().sum() == 0
    torch.testing.assert_close(maps["t2_post"], maps["t1_pre"])


def test_the_gate_of_a_trunk_that_has_one_is_heard():
    torch.manual_seed(0)
    model = ResNet3D(ResNet3DConfig(trunk=TrunkConfig(depth=10, widen=1 / 16, focus=True))).eval()
    before = model(some_batch()).logit
    torch.nn.init.constant_(model.trunk.gate.bias, -30.0)
    assert not torch.allclose(model(some_batch()).logit, before)


def test_preset_sizes():
    def count(config):
        with torch.device("meta"):
            return sum(p.numel() for p in ResNet3D(config).parameters())

    one = dataclasses.replace(paper(), volumes=MRI[:1])
    assert count(one) == 33_161_026  # the reference counts for one channel and two classes
    assert count(dataclasses.replace(one, trunk=TrunkConfig(depth=10))) == 14_356_546
    assert count(dataclasses.replace(one, trunk=TrunkConfig(depth=50))) == 46_159_170
    assert count(compact()) < 3_000_000
