"""The models of several folds as one: their maps are the mean of theirs, and a prediction can be made with them."""

import dataclasses
from pathlib import Path

import torch
from test_models import some_batch, tiny

from HARM3Logic import checkpoint
from HARM3Logic.case import Case
from HARM3Logic.explain import saliency
from HARM3Logic.models.ensemble import Ensemble, EnsembleConfig
from HARM3Logic.models.harm3_fusion import compact
from HARM3Logic.predict import Predictor


def ensemble(members: int = 3) -> Ensemble:
    torch.manual_seed(0)
    model = Ensemble(EnsembleConfig(**vars(tiny()), members=members)).eval()
    model.scale.copy_(torch.linspace(0.5, 2, members))
    return model


def test_the_maps_are_the_mean_of_the_members() -> None:
    model, batch = ensemble(), some_batch()
    _, found = saliency(model, batch)
    own = [saliency(member, batch)[1] for member in model.members]
    for name, heat in found.items():
        wanted = torch.stack([s * maps[name] for s, maps in zip(model.scale, own, strict=True)]).mean(dim=0)
        torch.testing.assert_close(heat, wanted, rtol=1e-4, atol=1e-7)
    assert any(heat.any() for heat in found.values())


def test_an_ensemble_predicts_a_case(phantom: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = checkpoint.load(tiny_checkpoint)
    model = Ensemble(EnsembleConfig(**vars(compact()), members=2))
    for member in model.members:
        member.load_state_dict(one.model.state_dict())
    card = dataclasses.replace(one.card, model="harm3_fusion_ensemble", config=dataclasses.asdict(model.config))
    checkpoint.save(tmp_path / "e.safetensors", checkpoint.half(model), card)
    case = Case.read(sorted(phantom.parent.glob("*/case.json"))[0])
    alone, together = (Predictor(path, "cpu")(case) for path in (tiny_checkpoint, tmp_path / "e.safetensors"))
    assert abs(alone.values["logit"] - together.values["logit"]) < 1e-5  # twice the same model
    assert together.values["contributions"].keys() == alone.values["contributions"].keys()
    assert together.values["heat"].keys() == alone.values["heat"].keys()
    together.write(tmp_path / "out")
    assert (tmp_path / "out" / "report.html").is_file()
