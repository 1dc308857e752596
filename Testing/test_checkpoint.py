"""Checkpoints: one file that gives the same model back, and shows every change made to it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from HARM3Logic import checkpoint
from HARM3Logic.batch import Batch
from HARM3Logic.checkpoint import Calibration, Card
from HARM3Logic.errors import BadCheckpoint
from HARM3Logic.familiarity import Reference
from HARM3Logic.models.harm3_fusion import HARM3Fusion, compact
from HARM3Logic.prepare import Preprocessing
from HARM3Logic.tiles import TileSettings


@pytest.fixture(scope="module")
def model() -> HARM3Fusion:
    torch.manual_seed(1)
    return HARM3Fusion(compact()).eval()


@pytest.fixture(scope="module")
def card(model: HARM3Fusion) -> Card:
    """Every field other than its default."""
    return Card(
        model="harm3_fusion",
        config=json.loads(json.dumps(dataclasses.asdict(model.config))),  # as a file holds it: lists, no tuples
        preprocessing=Preprocessing(
            (8, 16, 24), (5.0, 2.0, 1.5), "body", False, "none", (1.0, 99.0), tiles=TileSettings(mpp=None, max_tiles=50)
        ),
        inputs=("t1_pre", "slide"),
        intended_use="Tests: µ.",
        tile_encoder={"name": "e", "weights_sha256": "ab" * 32},
        calibration=Calibration(1.5, -0.5, ((0.04, 0.01), (0.01, 0.09))),
        threshold=0.3,
        uncertain_zone=(0.2, 0.4),
        training={"auc": {"value": 0.8, "low": 0.7, "high": 0.9}},
        version="9.9",
    )


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(mri=torch.randn(1, 2, 2, *compact().volume_shape, generator=generator), mri_mask=torch.ones(1, 2, 2, dtype=torch.bool))


def test_the_same_model_comes_back_bit_for_bit(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, card)
    loaded = checkpoint.load(tmp_path / "m.safetensors")
    assert not loaded.model.training
    assert loaded.card == card == checkpoint.read_card(tmp_path / "m.safetensors")
    assert loaded.sha256 == checkpoint.file_sha256(tmp_path / "m.safetensors")
    saved = model.state_dict()
    assert all(torch.equal(value, saved[name]) and value.dtype == saved[name].dtype for name, value in loaded.model.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(loaded.model(batch()).logit, model(batch()).logit)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_halved_weights_need_half_the_room(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "full.safetensors", model, card)
    torch.manual_seed(1)
    halved = checkpoint.half(HARM3Fusion(compact()))
    checkpoint.save(tmp_path / "half.safetensors", halved, card)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.55 * (tmp_path / "full.safetensors").stat().st_size
    loaded = checkpoint.load(tmp_path / "half.safetensors").model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in halved.state_dict().items())


def test_familiarity_goes_along(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    reference = Reference(np.array([1.0, 2.5]), np.array([0.5, 0.25]), 3.75)
    checkpoint.save(tmp_path / "m.safetensors", model, card, {"slide": reference})
    found = checkpoint.load(tmp_path / "m.safetensors").familiarity
    assert set(found) == {"slide"}
    assert np.array_equal(found["slide"].mean, reference.mean)
    assert np.array_equal(found["slide"].spread, reference.spread)
    assert found["slide"].limit == 3.75


def changed(source: Path, target: Path, **changes: str) -> Path:
    """The same tensors with other metadata."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        metadata = {**file.metadata(), **changes}
    save_file(tensors, target, metadata=metadata)
    return target


def test_a_change_of_the_card_is_seen(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with safe_open(tiny_checkpoint, "pt") as file:
        text = file.metadata()["harm3"]
    for other in (text.replace('"threshold": 0.5', '"threshold": 0.1'), text + " "):
        assert other != text
        with pytest.raises(BadCheckpoint, match="was changed"):
            checkpoint.read_card(changed(tiny_checkpoint, tmp_path / "m.safetensors", harm3=other))


@pytest.mark.parametrize("place", [0.5, 0.999])
def test_a_change_of_one_weight_is_seen(tiny_checkpoint: Path, tmp_path: Path, place: float) -> None:
    content = bytearray(tiny_checkpoint.read_bytes())
    content[int(place * len(content))] ^= 1
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match="was changed"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_cut_file_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = tiny_checkpoint.read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadCheckpoint, match=r"m\.safetensors"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_weights_that_do_not_fit_the_config_are_named(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, dataclasses.replace(card, config={**card.config, "pooled": 5}))
    with pytest.raises(BadCheckpoint, match="does not hold the weights of its harm3_fusion"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_config_of_a_later_version_is_named(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, dataclasses.replace(card, config={**card.config, "magic": 5}))
    with pytest.raises(BadCheckpoint, match="no field 'magic'"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_another_format_is_named(model: HARM3Fusion, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    checkpoint.save(tmp_path / "m.safetensors", model, card)
    monkeypatch.undo()
    with pytest.raises(BadCheckpoint, match="format 2"):
        checkpoint.load(tmp_path / "m.safetensors")


def test_a_failed_saving_keeps_the_old_file(model: HARM3Fusion, card: Card, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "m.safetensors", model, card)
    before = checkpoint.file_sha256(tmp_path / "m.safetensors")
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "m.safetensors", model, dataclasses.replace(card, training={"x": object()}))
    assert checkpoint.file_sha256(tmp_path / "m.safetensors") == before


def test_another_tile_encoder_is_refused(card: Card) -> None:
    checkpoint.check_encoder(card, "e", "ab" * 32)
    with pytest.raises(BadCheckpoint, match=r"tiles of e \(abababababab\).*found is f \(cdcdcdcdcdcd\)"):
        checkpoint.check_encoder(card, "f", "cd" * 32)


def test_calibration_is_a_line_in_the_logit() -> None:
    calibration = Calibration(2.0, -1.0)
    assert calibration(np.array([0.5, 0.5 + np.log(3) / 2])) == pytest.approx([0.5, 0.75])
    logits = np.linspace(-2, 2, 9)
    assert calibration.draw(logits) == pytest.approx(calibration(logits))  # no covariance: no spread


def test_draws_spread_as_the_covariance_says() -> None:
    calibration = Calibration(1.0, 0.3, ((0.01, -0.01), (-0.01, 0.04)))
    drawn = calibration.draw(np.full(20_000, 2.0))
    logit = np.log(drawn / (1 - drawn))
    assert logit.mean() == pytest.approx(2.3, abs=0.01)
    assert logit.var() == pytest.approx(2.0**2 * 0.01 + 2 * 2.0 * -0.01 + 0.04, rel=0.05)
    assert np.array_equal(drawn, calibration.draw(np.full(20_000, 2.0)))  # the same interval every time


def test_json_becomes_the_types_it_came_from() -> None:
    settings = Preprocessing((8, 16, 24), tiles=TileSettings(mpp=None))
    assert checkpoint.from_plain(Preprocessing, json.loads(json.dumps(dataclasses.asdict(settings))), "m") == settings
    with pytest.raises(BadCheckpoint, match="missing"):
        checkpoint.from_plain(Card, {"model": "harm3_fusion"}, "m")
