"""C3D against golden numbers of its official port, and what volumes of other sizes become."""

import pytest
import torch
from test_layers import load
from torch import nn

from HARM3Logic.batch import Batch
from HARM3Logic.case import MRI
from HARM3Logic.models.c3d import C3D, C3DConfig, compact, load_reference, paper

STRIDES = {  # in which the fixture keeps the convolutions
    "conv1": (4, 8, 8), "conv2": (2, 4, 4), "conv3a": (2, 2, 2), "conv3b": (2, 2, 2),
    "conv4a": (1, 2, 2), "conv4b": (1, 2, 2), "conv5a": (1, 1, 1), "conv5b": (1, 1, 1),
}  # fmt: skip


@pytest.fixture
def golden(parity):
    return load(parity, "c3d")


@pytest.fixture
def model(golden):
    """The network of the fixture: three channels, an eighth of the widths, the reference's weights."""
    made = C3D(C3DConfig(volumes=MRI[:3], widths=(8, 16, 32, 64, 64), hidden=256)).eval()
    load_reference(made, {k.removeprefix("weight."): v for k, v in golden[0].items() if k.startswith("weight.")})
    return made


def test_every_layer_equals_the_reference(golden, model):
    values, tolerance = golden
    seen = {}
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        seen["logits"] = model.classify(values["input.x"])
    del seen["fc8"]
    for name, step in STRIDES.items():
        seen[f"{name}.channel_mean"] = seen[name].mean(dim=(0, 2, 3, 4))
        seen[name] = seen[name][:, :, :: step[0], :: step[1], :: step[2]]
    assert len(seen) == 2 * len(STRIDES) + 3
    for name, got in seen.items():
        t = tolerance[f"output.{name}"]
        torch.testing.assert_close(got, values[f"output.{name}"], rtol=t["rtol"], atol=t["atol"])


def test_the_logit_is_the_difference_of_the_two_classes(golden, model):
    volumes = golden[0]["input.x"]
    mri = torch.cat([volumes, torch.full_like(volumes[:, :1], torch.nan)], dim=1).unflatten(1, (2, 2))
    batch = Batch(mri=mri, mri_mask=torch.tensor([[[True, True], [True, False]]]))
    with torch.no_grad():
        z0, z1 = model.classify(volumes)[0]
        torch.testing.assert_close(model(batch).logit[0], z1 - z0, rtol=0, atol=2e-5)


def test_weights_of_several_gpus(golden, model):
    several = {f"module.{k.removeprefix('weight.')}": v for k, v in golden[0].items() if k.startswith("weight.")}
    other = C3D(model.config).eval()
    load_reference(other, several)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("shape", [(8, 32, 32), (16, 64, 64), (12, 50, 41), (3, 17, 9)])
def test_volumes_of_any_size_have_a_finite_logit(shape):
    torch.manual_seed(0)
    model = C3D(C3DConfig(widths=(4, 4, 4, 4, 4), hidden=8)).eval()
    assert torch.isfinite(model.classify(torch.randn(2, 4, *shape))).all()


def test_preset_sizes():
    def count(config):
        with torch.device("meta"):
            return sum(p.numel() for p in C3D(config).parameters())

    assert count(paper()) == 78_003_970 + 64 * 27  # the reference count for two classes, and a fourth input channel
    assert count(compact()) < 3_000_000
