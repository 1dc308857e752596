"""A prediction as files: what is written, where it lies and what it says of absent inputs."""

import dataclasses
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from HARM3Logic.case import MRI, Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption, MissingInput
from HARM3Logic.predict import Predictor, decide
from HARM3Logic.prediction import SLIDE_FILES, TILE_FILES
from HARM3Logic.prepare import prepare


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint):
    return Predictor(tiny_checkpoint, "cpu")


@pytest.fixture(scope="module")
def case(phantom) -> Case:
    return read_cohort(phantom)[0]


@pytest.fixture(scope="module")
def written(predictor, case, tmp_path_factory):
    out = tmp_path_factory.mktemp("Müller 患者") / "result folder"
    prediction = predictor(case)
    prediction.write(out)
    return prediction, out


def test_a_case_without_a_volume_that_is_read_is_told_which(predictor, case, monkeypatch):
    """The model reads T1 and the slide; the case has T2 and the slide."""
    made = predictor.checkpoint
    card = dataclasses.replace(made.card, inputs=("t1_pre", "t1_post", "slide"))
    monkeypatch.setattr(predictor, "checkpoint", dataclasses.replace(made, card=card))
    with pytest.raises(MissingInput, match=r"no MRI volume that .* at least one of t1_pre, t1_post is wanted"):
        predictor(case.without(["t1_pre", "t1_post"]))


def test_heatmaps_lie_on_the_grids_of_their_inputs(written, case):
    _, out = written
    for name in MRI:
        heat, image = sitk.ReadImage(str(out / f"heatmap_{name}.nrrd")), sitk.ReadImage(str(case.inputs[name][0]))
        assert heat.GetSize() == image.GetSize()
        for geometry in ("GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(heat, geometry)() == pytest.approx(getattr(image, geometry)(), abs=1e-6)
        assert heat.GetPixelID() == sitk.sitkFloat32


def test_heat_is_on_one_scale(written):
    prediction, out = written
    tops = {name: float(heat.array.max()) for name, heat in prediction.heatmaps.items()}
    assert max(tops.values()) == pytest.approx(1)
    assert min(float(heat.array.min()) for heat in prediction.heatmaps.values()) >= 0
    with np.load(out / "heatmap_raw.npz") as raw:
        assert set(raw.files) == set(MRI)
        order = sorted(MRI, key=lambda name: float(raw[name].max()))
    assert order[-1] == max(tops, key=tops.get)


def test_json_holds_what_it_promises(written):
    prediction, out = written
    values = json.loads((out / "prediction.json").read_text(encoding="utf-8"))
    low, high = values["interval"]
    assert 0 <= low <= values["probability"] <= high <= 1
    assert set(values["contributions"]) == {*MRI, "slide"}
    assert all(values["inputs"][name]["used"] and len(values["inputs"][name]["sha256"]) == 64 for name in (*MRI, "slide"))
    assert [set(q) for q in values["quality"]] == [{"tissue_mm2", "tiles", "tiles_found", "pen", "dark", "folds", "blurred", "poor"}]
    assert 0.1 < values["quality"][0]["tissue_mm2"] < 100 and values["quality"][0]["tiles"] > 0
    assert set(values["registration"]) == {"t2_pre", "t1_post", "t2_post"}
    weights = [tile["weight"] for tile in values["tiles"]]
    assert weights == sorted(weights, reverse=True)
    assert all(0 <= values["heat"][name]["share_in_tumour"] <= 1 for name in MRI)
    assert values["decision"] in ("responder", "non-responder", "uncertain")
    assert prediction.probability == values["probability"]


def test_everything_is_there_and_nothing_half_written(written):
    _, out = written
    names = {path.name for path in out.iterdir()}
    wanted = {f"heatmap_{name}.nrrd" for name in MRI} | {"heatmap_raw.npz", *SLIDE_FILES, *TILE_FILES}
    assert names == wanted | {"report.html", "prediction.json"}


def test_the_same_case_gives_the_same_numbers(predictor, case, written):
    again = predictor(case)
    assert {**again.values, "created": 0} == {**written[0].values, "created": 0}


def test_absent_inputs_are_said(predictor, case):
    values = predictor(case.without(["t2_post", "slide"])).values
    assert not values["inputs"]["t2_post"]["used"]
    assert not values["inputs"]["slide"]["used"]
    assert set(values["contributions"]) == {"t1_pre", "t2_pre", "t1_post"}
    assert "t2_post" not in values["heat"]


def test_masks_can_be_ignored(predictor, case):
    values = predictor(case, ignore_masks=True).values
    assert all(heat["share_in_tumour"] is None for heat in values["heat"].values())


def test_bfloat16_moves_the_probability_little(tiny_checkpoint, case, written):
    other = Predictor(tiny_checkpoint, "cpu", "bfloat16")(case)
    assert abs(other.probability - written[0].probability) < 0.01


def test_predict_sees_what_training_cached(predictor, case, tmp_path):
    from Training.cache import build

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the cache's processes do
    try:
        settings = predictor.checkpoint.card.preprocessing
        cached = build([case], settings, "default", tmp_path, workers=1)[0]
        fresh = prepare(case, settings, predictor.encoder)
    finally:
        torch.set_num_threads(threads)
    for name in ("mri", "mri_mask", "body", "tumour", "tiles", "tile_xy_um"):
        assert torch.equal(getattr(cached, name), getattr(fresh, name)), name


@pytest.mark.parametrize(("probability", "word"), [(0.1, "non-responder"), (0.45, "uncertain"), (0.55, "uncertain"), (0.9, "responder")])
def test_decision(probability, word):
    assert decide(probability, 0.5, (0.4, 0.6)) == word


def test_unwritable_folder_is_told(written, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(BadOption, match="cannot be written"):
        written[0].write(blocker)
