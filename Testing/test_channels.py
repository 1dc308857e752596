"""What the convolutional comparison methods have in common: absent volumes, shared heat, foreign weights, a prediction."""

import dataclasses

import pytest
import torch
from test_models import SHAPE, TINY, some_batch
from torch import nn

from HARM3Logic import checkpoint
from HARM3Logic.case import MRI
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadCheckpoint, MissingInput
from HARM3Logic.explain import explain, saliency
from HARM3Logic.models import MODELS
from HARM3Logic.models.channels import EachVolume, gather, joined
from HARM3Logic.models.reference import fill
from HARM3Logic.predict import predict
from HARM3Logic.prepare import Preprocessing

NAMES = ("c3d", "resnet3d", "rpnet3d")


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def made(name, **changes):
    torch.manual_seed(0)
    return MODELS[name](dataclasses.replace(TINY[name](), **changes)).eval()


def lacking(batch, *gone, value=0.0):
    """Without the named volumes in every case; `value` lies in their place."""
    mri, mask = batch.mri.clone(), batch.mri_mask.clone()
    for volume in gone:
        mri.flatten(1, 2)[:, MRI.index(volume)] = value
        mask.flatten(1)[:, MRI.index(volume)] = False
    return dataclasses.replace(batch, mri=mri, mri_mask=mask)


@pytest.mark.parametrize("gone", [MRI[:1], MRI[3:], MRI[:2], MRI[::2], MRI[1:]])
def test_what_lies_where_a_volume_is_absent_is_never_read(name, gone):
    model, batch = made(name), some_batch()
    logit = model(lacking(batch, *gone)).logit
    assert torch.isfinite(logit).all()
    assert torch.equal(model(lacking(batch, *gone, value=torch.nan)).logit, logit)
    assert not torch.allclose(model(batch).logit, logit)


def test_every_volume_moves_the_logit(name):
    model, batch = made(name), some_batch()
    for volume in MRI:
        assert (model(lacking(batch, volume)).logit - model(batch).logit).abs().min() > 1e-6


def test_a_case_without_any_volume_is_refused(name):
    with pytest.raises(MissingInput, match=f"{name} reads; it needs at least one of t1_pre, t2_pre"):
        made(name)(lacking(some_batch(), *MRI))


def test_a_volume_the_config_needs_is_named(name):
    model = made(name, needs=("t2_post",))
    assert torch.isfinite(model(lacking(some_batch(), "t1_pre")).logit).all()
    with pytest.raises(MissingInput, match="a case has no t2_post; this checkpoint needs t2_post"):
        model(lacking(some_batch(), "t2_post"))


def test_present_volumes_have_heat_and_absent_ones_none(name):
    batch = some_batch()
    mask = batch.mri_mask.clone()
    mask[0, 0, 0] = mask[1, 1, 1] = False
    batch = dataclasses.replace(batch, mri_mask=mask)
    _, maps = saliency(made(name), batch)
    assert tuple(maps) == MRI
    for k, volume in enumerate(MRI):
        heat = maps[volume]
        assert heat.shape == (3, *SHAPE)
        assert torch.isfinite(heat).all()
        assert torch.equal(heat.flatten(1).amax(dim=1) > 0, mask.flatten(1)[:, k])


def test_heat_of_a_case_does_not_depend_on_its_neighbours(name):
    model, batch = made(name), some_batch()
    _, together = saliency(model, batch)
    _, alone = saliency(model, batch.take(torch.tensor([1])))
    for volume in MRI:
        torch.testing.assert_close(together[volume][1], alone[volume][0], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("gone", [(), MRI[2:], MRI[:3]])
def test_an_explanation_names_what_there_is(name, gone):
    batch = dataclasses.replace(some_batch(1), tiles=None, tile_mask=None)
    explanation = explain(made(name), lacking(batch, *gone))
    left = [volume for volume in MRI if volume not in gone]
    assert list(explanation.without) == (left if len(left) > 1 else [])
    assert explanation.tile_attention is None


def test_a_checkpoint_gives_back_the_same_model(name, tmp_path):
    model = made(name)
    card = checkpoint.Card(name, dataclasses.asdict(model.config), Preprocessing(shape=SHAPE), model.inputs(), "Tests.")
    checkpoint.save(tmp_path / "m.safetensors", model, card)
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert loaded.model.config == model.config
    assert torch.equal(loaded.model(some_batch()).logit, model(some_batch()).logit)


def test_a_case_is_predicted_with_heat_on_its_volumes_alone(name, tmp_path, phantom):
    model = made(name)
    settings = Preprocessing(shape=SHAPE, spacing_mm=(10.0, 4.0, 4.0), bias_correction=False, registration="none")
    card = checkpoint.Card(name, dataclasses.asdict(model.config), settings, model.inputs(), "Tests.")
    checkpoint.save(tmp_path / "m.safetensors", model, card)
    prediction = predict(read_cohort(phantom)[0].without(["t2_post"]), tmp_path / "m.safetensors", device="cpu")
    assert list(prediction.heatmaps) == list(MRI[:3])
    assert list(prediction.values["contributions"]) == list(MRI[:3])
    assert 0 < prediction.values["probability"] < 1


def test_rows_of_present_volumes_come_together_again():
    generator = torch.Generator().manual_seed(0)
    maps, present = torch.randn(3, 2, 1, 2, 2, generator=generator), torch.tensor([[True, False, True], [False] * 3, [True] * 3])
    rows = EachVolume()(maps, present)
    assert torch.equal(rows, maps[[0, 0, 2, 2, 2]])
    torch.testing.assert_close(joined(rows, present), maps * torch.tensor([1.0, 0.0, 1.0])[:, None, None, None, None])


def test_volumes_come_in_the_order_of_their_names():
    batch = some_batch()
    channels, present = gather(lacking(batch, "t2_pre", value=5.0), ("t2_post", "t2_pre"))
    assert torch.equal(channels[:, 0], batch.mri[:, 1, 1])
    assert not channels[:, 1].any()
    assert present.tolist() == [[True, False]] * 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "bias is nothing, the model wants (2,)"),
        ({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, "weight is (2, 2), the model wants (2, 3)"),
        ({"bias": torch.ones(2), "more": torch.ones(1), "weight": torch.ones(2, 3)}, "more is (1,), the model wants nothing"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(weights, message):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    with pytest.raises(BadCheckpoint) as caught:
        fill(model, weights, "X")
    assert message in str(caught.value)
    assert torch.equal(model.weight, before)
