"""Published weights become a checkpoint that predicts: a slide alone is a case."""

import dataclasses
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from test_models import some_batch
from torch import nn

from HARM3Logic import checkpoint
from HARM3Logic.__main__ import main
from HARM3Logic.cohort import read_cohort
from HARM3Logic.encoder_weights import read_weights
from HARM3Logic.errors import BadCheckpoint, BadOption, MissingInput
from HARM3Logic.explain import explain
from HARM3Logic.import_weights import import_weights
from HARM3Logic.models.clam import CLAM, CLAMConfig
from HARM3Logic.models.transmil import TransMIL, TransMILConfig
from HARM3Logic.predict import Predictor
from HARM3Logic.prediction import SLIDE_FILES
from HARM3Logic.tile_encoder import default_path, read_entry

FEATURES = read_entry(default_path()).features


def clam_sb(features=FEATURES, width=16, hidden=8):
    """A state dict as the official CLAM_SB names it."""
    torch.manual_seed(3)
    parts = {
        "attention_net.0": nn.Linear(features, width),
        "attention_net.3.attention_a.0": nn.Linear(width, hidden),
        "attention_net.3.attention_b.0": nn.Linear(width, hidden),
        "attention_net.3.attention_c": nn.Linear(hidden, 1),
        "classifiers": nn.Linear(width, 2),
        "instance_classifiers.0": nn.Linear(width, 2),
        "instance_classifiers.1": nn.Linear(width, 2),
    }
    return OrderedDict((f"{start}.{name}", value.detach()) for start, part in parts.items() for name, value in part.named_parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "s_0_checkpoint.pt"
    torch.save(OrderedDict((name.replace("attention_net.", "attention_net.module."), value) for name, value in clam_sb().items()), path)
    return path


@pytest.fixture(scope="module")
def imported(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "clam.safetensors"
    assert main(["import-weights", str(weights), "--model", "clam", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def predictor(imported):
    return Predictor(imported, "cpu")


@pytest.fixture(scope="module")
def case(phantom):
    return read_cohort(phantom)[0]


def test_the_checkpoint_holds_the_weights_to_the_last_bit(imported):
    loaded = checkpoint.load(imported)
    assert (loaded.card.model, loaded.card.inputs) == ("clam", ("slide",))
    assert loaded.card.config["tile_features"] == FEATURES
    given = clam_sb()
    assert torch.equal(loaded.model.embed[0].weight, given["attention_net.0.weight"])
    assert torch.equal(loaded.model.instance.weight[2:], given["instance_classifiers.1.weight"])


def test_transmil_of_the_old_nystrom_attention(parity, tmp_path, monkeypatch):
    """As a Lightning checkpoint; the fixture's tiles have 64 features, no encoder of that width ships."""
    with np.load(parity / "transmil.npz", allow_pickle=False) as file:
        state = {f"model.{key[7:]}": torch.from_numpy(file[key]) for key in file.files if key.startswith("weight.")}
        bag, wanted = torch.from_numpy(file["input.x.N15"]), torch.from_numpy(file["output.compat009.N15.logits"])
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.ckpt")
    with pytest.raises(BadCheckpoint, match=f"tiles of 64 features; the tile encoder .* gives {FEATURES}"):
        import_weights(tmp_path / "w.ckpt", "transmil", tmp_path / "m.safetensors")

    class Narrow:
        entry = dataclasses.replace(read_entry(default_path()), features=64)
        weights_sha256 = "0" * 64

    monkeypatch.setattr("HARM3Logic.tile_encoder.TileEncoder.load", lambda *_: Narrow)
    import_weights(tmp_path / "w.ckpt", "transmil", tmp_path / "m.safetensors", compat_nystrom_009=True)
    model = checkpoint.load(tmp_path / "m.safetensors").model
    torch.testing.assert_close(model.judge(bag)[0], wanted, rtol=1e-4, atol=1e-4)


def refuse(path, match, model="clam", **options):
    out = path.with_name("m.safetensors")
    with pytest.raises((BadCheckpoint, BadOption), match=match) as caught:
        import_weights(path, model, out, **options)
    assert not out.exists()
    return caught.value


class Spy:
    """Pickled, it leaves a mark when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_nothing_in_a_file_is_executed(tmp_path):
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"a": Spy(tmp_path / "mark")}, protocol=2))
    refuse(tmp_path / "w.pt", "not executed")
    torch.save({"a": Spy(tmp_path / "mark")}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", "not executed")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"attention_net", bytes(100), b"PK\x03\x04" + bytes(100), None])
def test_what_is_no_file_of_weights(tmp_path, weights, content):
    path = tmp_path / "w.pt"
    path.write_bytes(weights.read_bytes()[:5000] if content is None else content)
    refuse(path, "w.pt")


def test_what_is_no_state_dict(tmp_path):
    for number, held in enumerate(({}, [torch.zeros(2)], torch.zeros(2), {"state_dict": {"epoch": 3}})):
        torch.save(held, tmp_path / f"{number}.pt")
        refuse(tmp_path / f"{number}.pt", "no state dict")
    refuse(tmp_path / "none.pt", "no weight file")


def test_other_models_and_options(tmp_path, weights):
    refuse(weights, "'attention_net.0.weight'", "transmil")
    refuse(weights, "no Nystrom attention", compat_nystrom_009=True)
    refuse(weights, "'mcat'", "mcat")
    refuse(weights, "mpp is -1", mpp=-1.0)
    torch.save(clam_sb(features=1024), tmp_path / "w.pt")
    assert "1024 features" in refuse(tmp_path / "w.pt", "tile encoder").message
    torch.save({k: v for k, v in clam_sb().items() if "attention_b" not in k}, tmp_path / "w.pt")
    refuse(tmp_path / "w.pt", "gate")


def test_wrappings_are_taken_off(tmp_path):
    torch.save({"model": {"state_dict": clam_sb()}, "epoch": 2}, tmp_path / "w.pt")
    assert read_weights(tmp_path / "w.pt").keys() == clam_sb().keys()


def test_a_slide_alone_is_predicted(predictor, case, tmp_path):
    alone = dataclasses.replace(case, inputs={"slide": case.inputs["slide"]})
    prediction = predictor(alone)
    prediction.write(tmp_path)
    values = json.loads((tmp_path / "prediction.json").read_text(encoding="utf-8"))
    assert list(values["inputs"]) == ["slide"]
    assert values["inputs"]["slide"]["used"]
    assert not values["heat"]
    assert not values["contributions"]  # nothing is left without the only input
    codes = [warning["code"] for warning in values["warnings"]]
    assert "no_heat" not in codes
    assert "no_interval" in codes  # nobody calibrated these weights
    assert 0 < sum(tile["weight"] for tile in values["tiles"]) <= 1
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {*SLIDE_FILES, "report.html", "prediction.json"}
    assert not [name for name in names if name.startswith("heatmap_") and name.endswith(".nrrd")]
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The slide</h2>" in report
    assert "Where the model looked" not in report


def test_volumes_beside_the_slide_are_not_read(predictor, case):
    alone = dataclasses.replace(case, inputs={"slide": case.inputs["slide"]})
    stages = []
    beside = predictor(case, on_event=lambda event, values: stages.append(values.get("name", "")) if event == "stage" else None)
    assert beside.values["logit"] == predictor(alone).values["logit"]
    assert not [name for name in stages if "t1_pre" in name]


def test_a_case_without_a_slide_is_told(predictor, case):
    with pytest.raises(MissingInput, match="no slide; clam needs slide"):
        predictor(case.without(["slide"]))


@pytest.mark.parametrize("model", [CLAM(CLAMConfig(24, 32, 16, "multi")), TransMIL(TransMILConfig(24, 32, 4, 8))])
def test_explanations_of_models_that_read_only_the_slide(model):
    batch = some_batch(1)
    explanation = explain(model.eval(), batch)
    assert explanation.logit == pytest.approx(model(batch).logit.item())
    assert not explanation.saliency
    assert not explanation.without
    assert float(explanation.tile_attention.sum()) == pytest.approx(1, rel=1e-5)
    assert not explanation.tile_attention[3:].any()  # padding
