"""Where heat lies: every model that explains itself by volumes, ensembles included, and cases without heat or mask."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_ensemble import ensemble
from test_models import FEATURES, SHAPE, TINY, tiny
from torch import nn

from HARM3Logic.batch import Prepared
from HARM3Logic.case import MRI
from HARM3Logic.errors import BadOption
from HARM3Logic.models import MODELS
from HARM3Logic.models.output import CamLayer, Output
from Training import localise
from Training.localise import Heat, heat_of, layers_of, mean

SPACING_MM = (2.0, 1.0, 1.0)


def prepared() -> Prepared:
    generator = torch.Generator().manual_seed(1)
    return Prepared(
        "C",
        mri=torch.randn(2, 2, *SHAPE, generator=generator),
        mri_mask=torch.ones(2, 2, dtype=torch.bool),
        body=torch.ones(SHAPE, dtype=torch.bool),
        tiles=torch.randn(5, FEATURES, generator=generator),
        tile_xy_um=torch.zeros(5, 2),
        label=1,
    )


class Brightness(nn.Module):
    """Its heat is the first volume itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, batch: object) -> Output:
        return Output(self.conv(batch.mri[:, 0, 0][:, None]).mean(dim=(1, 2, 3, 4)))  # type: ignore[attr-defined]

    def cam_layers(self) -> tuple[CamLayer, ...]:
        return (CamLayer(self.conv, ("t1_pre",)),)


def spot(*place: int) -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[place] = True
    return mask


def bright(*places: tuple[int, int, int]) -> Prepared:
    mri = torch.zeros(2, 2, *SHAPE)
    for k, place in enumerate(places):
        mri[0, 0][place] = 3.0 - k
    return dataclasses.replace(prepared(), mri=mri)


def test_the_maximum_counts_within_five_millimetres_and_heat_in_the_mask_itself() -> None:
    model = Brightness()
    for tumour, inside, share in [
        (spot(4, 16, 16), 1.0, 0.6),
        (spot(4, 16, 20), 1.0, 0.0),  # 4 mm off
        (spot(4, 16, 22), 0.0, 0.0),  # 6 mm off
        (spot(6, 16, 16), 1.0, 0.0),  # two slices of 2 mm
        (spot(7, 16, 16), 0.0, 0.0),
    ]:
        found = heat_of(model, bright((4, 16, 16), (0, 0, 0)), tumour, SPACING_MM, model.cam_layers())
        assert (found.inside, found.share) == (inside, pytest.approx(share, abs=1e-6))


def test_chance_is_the_share_of_the_body() -> None:
    model, case = Brightness(), bright((4, 16, 16))
    body = torch.zeros(SHAPE, dtype=torch.bool)
    body[:, :, 14:] = True
    everywhere = heat_of(model, case, spot(4, 16, 16), SPACING_MM, model.cam_layers()).random
    within = heat_of(model, dataclasses.replace(case, body=body), spot(4, 16, 16), SPACING_MM, model.cam_layers()).random
    assert 0 < everywhere < within < 0.2


def test_no_heat_is_no_hit() -> None:
    model = Brightness()
    found = heat_of(model, bright(), np.ones(SHAPE, dtype=bool), SPACING_MM, model.cam_layers())
    assert (found.inside, found.share, found.random) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"ct_clinical"}))  # which reads no MRI and no slide
def test_every_model_with_volumes_is_looked_at(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name](TINY[name]()).eval()
    layers = layers_of(model, None)
    assert bool(layers) == any(entry in MRI for entry in model.inputs())  # type: ignore[operator]
    if layers:
        found = heat_of(model, prepared(), spot(4, 16, 16), SPACING_MM, layers)
        assert found.inside in (0.0, 1.0) and 0 <= found.share <= 1 and 0 < found.random < 1


def test_another_layer_of_an_ensemble_is_that_of_each_member() -> None:
    model = ensemble(members=2)
    layers = layers_of(model, "layer1")
    trunks = [member.trunks[s] for member in model.members for s in ("t1", "t2")]
    assert [layer.module for layer in layers] == [trunk.get_submodule("layer1") for trunk in trunks]
    assert [layer.inputs for layer in layers] == [("t1_pre", "t1_post"), ("t2_pre", "t2_post")] * 2
    with pytest.raises(BadOption, match="cannot be looked at in 'nowhere'"):
        layers_of(MODELS["harm3_fusion"](tiny()), "nowhere")


def test_cases_count_alike_and_none_is_refused() -> None:
    assert mean([Heat(1, 0.5, 0.1), Heat(0, 0.1, 0.3)]) == Heat(0.5, pytest.approx(0.3), pytest.approx(0.2), 2)
    with pytest.raises(BadOption, match="no case has a pre-treatment tumour mask"):
        mean([])


def test_the_command_gives_a_row_per_model(phantom: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert localise.main([str(phantom), "--checkpoint", str(tiny_checkpoint), "--layers", "focus", "layer1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[:3] for row in rows[1:]] == [["tiny", "focus", "2"], ["tiny", "layer1", "2"]]
    assert all(0 < float(row.split()[-1].rstrip("%")) < 20 for row in rows[1:])
