"""The CT road: a crop round the tumour, the clinical row, and a prediction of both from files."""

import dataclasses
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from HARM3Logic import checkpoint, clinical, ct, phantom_gist, volume
from HARM3Logic.__main__ import main
from HARM3Logic.batch import collate
from HARM3Logic.case import Case
from HARM3Logic.clinical import Scaling
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadClinical, BadGeometry, MissingInput
from HARM3Logic.familiarity import learn, unfamiliar
from HARM3Logic.models.ct_clinical import CTClinical, CTClinicalConfig
from HARM3Logic.models.vit3d import ViTConfig
from HARM3Logic.predict import Predictor
from HARM3Logic.predict_cohort import predict_cohort
from HARM3Logic.prepare import Preprocessing, prepare
from HARM3Logic.volume import Grid, Volume

SETTINGS = Preprocessing(shape=(8, 24, 24), spacing_mm=(12.0, 6.0, 6.0))
BOTH = ("ct", "clinical")
GIST = clinical.gist()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gist cohort")
    phantom_gist.write_phantoms(folder, 2, seed=3, workers=0)
    return folder / "cohort.csv"


@pytest.fixture(scope="module")
def case(cohort) -> Case:
    return read_cohort(cohort)[0]


def model(**changes) -> CTClinical:
    torch.manual_seed(0)
    trunk = ViTConfig(volume_shape=SETTINGS.shape, patch=(4, 8, 8), width=16, heads=2, layers=1, hidden=32)
    scaling = Scaling(tuple(61.0 if v.name == "age" else 0.0 for v in GIST.variables), (20.0,) * 12)
    return CTClinical(CTClinicalConfig(trunk=trunk, scaling=scaling, width=24, heads=2, hidden=32, head=8, **changes))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A checkpoint for CT and clinical values, with random weights."""
    net = checkpoint.half(model())
    card = checkpoint.Card(
        model="ct_clinical", config=asdict(net.config), preprocessing=SETTINGS, inputs=net.inputs(), intended_use="Tests.",
        training={"synthetic": True}, clinical=GIST,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("ct") / "ct.safetensors"
    checkpoint.save(path, net, card)
    return path


def prepared(case, wanted=BOTH, **options):
    return prepare(case, SETTINGS, wanted=wanted, schema=GIST, **options)


def middle_mm(case) -> tuple[float, float, float]:
    mask = volume.read_mask(case.inputs["tumour_ct"][0])
    index = np.argwhere(mask.array > 0)[:, ::-1]
    x, y, z = (float(v) for v in (mask.grid.matrix @ [*((index.min(axis=0) + index.max(axis=0)) / 2), 1])[:3])
    return x, y, z


def test_the_crop_lies_round_the_tumour_in_its_window(case):
    found = prepared(case)
    assert found.grid.centre_mm == pytest.approx(middle_mm(case), abs=0.01)
    assert found.ct.shape == SETTINGS.shape
    assert found.ct.min() == -1
    assert found.ct.max() <= 1
    inside = found.ct[found.tumour_ct > 0].numpy()
    truth = volume.read(case.inputs["ct"][0]).array[volume.read_mask(case.inputs["tumour_ct"][0]).array > 0]
    assert inside.mean() * 200 + 40 == pytest.approx(truth.mean(), abs=8)  # the window's middle is 40 HU, its half width 200
    assert set(found.sha256) == {"ct", "clinical"}
    assert found.mri is None


def test_the_window_clips_and_scales():
    array = np.array([[[-1000, -160, 40, 240, 3000]]], dtype=np.float32)
    assert ct.window(array, (-160.0, 240.0)).ravel().tolist() == [-1, -1, 0, 1, 1]


def test_a_point_does_as_well_as_the_mask(case):
    point = dataclasses.replace(case.without(["tumour_ct"]), tumour_point_mm=middle_mm(case))
    torch.testing.assert_close(prepared(point).ct, prepared(case).ct, atol=1e-3, rtol=0)
    assert prepared(point).tumour_ct is None
    marked = dataclasses.replace(case, tumour_point_mm=tuple(v + 6 for v in middle_mm(case)))
    assert torch.equal(prepared(marked).ct, prepared(case).ct)  # the mask comes first
    assert not torch.equal(prepared(marked, ignore_masks=True).ct, prepared(case).ct)


def test_where_the_tumour_is_must_be_said(case):
    with pytest.raises(MissingInput, match="tumour_point_mm"):
        prepared(case.without(["tumour_ct"]))
    with pytest.raises(MissingInput, match="tumour_point_mm"):
        prepared(case, ignore_masks=True)
    with pytest.raises(BadGeometry, match="outside the CT"):
        prepared(dataclasses.replace(case.without(["tumour_ct"]), tumour_point_mm=(900.0, 0.0, 0.0)))


def test_a_mirrored_axis_changes_nothing(case, tmp_path):
    files = {}
    for name in ("ct", "tumour_ct"):
        image = volume.read(case.inputs[name][0]) if name == "ct" else volume.read_mask(case.inputs[name][0])
        g = image.grid
        last = g.matrix @ [g.size[0] - 1, 0, 0, 1]
        turned = Grid(g.size, g.spacing_mm, tuple(float(v) for v in last[:3]), (-1.0, 0.0, 0.0, *g.direction[3:]))
        files[name] = tmp_path / f"{name}.nrrd"
        volume.write(Volume(np.ascontiguousarray(image.array[:, :, ::-1]), turned), files[name])
    again = prepared(Case.from_files("turned", files), ("ct",))
    torch.testing.assert_close(again.ct, prepared(case).ct, atol=1e-3, rtol=0)


def test_values_that_are_no_hounsfield_units_are_doubted(case, tmp_path):
    image = volume.read(case.inputs["ct"][0])
    volume.write(Volume(image.array + np.float32(1024), image.grid), tmp_path / "raw.nrrd")
    raw = dataclasses.replace(case, inputs={**case.inputs, "ct": (tmp_path / "raw.nrrd",)})
    assert "not_hounsfield" in dict(prepared(raw).warnings)
    assert "not_hounsfield" not in dict(prepared(case).warnings)


def test_a_tumour_larger_than_the_field_is_told(case):
    small = dataclasses.replace(SETTINGS, spacing_mm=(3.0, 1.0, 1.0))
    assert "tumour_cropped" in dict(prepare(case, small, wanted=BOTH, schema=GIST).warnings)


def test_the_row_comes_from_values_or_from_a_file(case, tmp_path):
    path = tmp_path / "row.json"
    path.write_text(json.dumps(dict(case.clinical)))
    inline = prepared(case)
    filed = dataclasses.replace(case, clinical={}, inputs={**case.inputs, "clinical": (path,)})
    assert torch.equal(prepared(filed).clinical, inline.clinical)
    assert prepared(filed).sha256 == inline.sha256
    with pytest.raises(BadClinical, match="Give one of both"):
        prepared(dataclasses.replace(filed, clinical=case.clinical))


def test_impossible_and_unused_values_are_told(case):
    with pytest.raises(BadClinical, match="age is 430"):
        prepared(dataclasses.replace(case, clinical={**case.clinical, "age": "430"}))
    found = prepared(dataclasses.replace(case, clinical={**case.clinical, "sexx": "male"}))
    assert "'sex' meant" in dict(found.warnings)["clinical_unused"]


def test_cases_lacking_an_input_stand_in_one_batch(case):
    rows = [prepared(case), prepared(case.without(["ct"])), prepared(dataclasses.replace(case, clinical={}))]
    batch = collate(rows)
    assert batch.ct[1].isnan().all()
    assert not batch.clinical_mask[2].any()
    net = model().eval()
    together = net(batch).logit
    for row, one in enumerate(rows):
        torch.testing.assert_close(net(collate([one])).logit[0], together[row], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(together).all()
    with pytest.raises(MissingInput, match="no ct and no clinical"):
        prepared(dataclasses.replace(case.without(["ct"]), clinical={}))


def test_a_strange_ct_is_noticed(cohort, case):
    references = learn(prepared(each) for each in read_cohort(cohort))
    assert not unfamiliar(prepared(case), references)
    noise = dataclasses.replace(prepared(case), ct=torch.rand(SETTINGS.shape) * 2 - 1)
    assert set(unfamiliar(noise, references)) == {"ct"}


def test_predict_from_the_command_line(case, tiny, tmp_path, capsys):
    row = tmp_path / "row.json"
    row.write_text(json.dumps({**case.clinical, "braf": None}))
    point = ",".join(f"{v:.1f}" for v in (-abs(middle_mm(case)[0]), *middle_mm(case)[1:]))
    files = ["--ct", str(case.inputs["ct"][0]), "--clinical", str(row), "--checkpoint", str(tiny), "--device", "cpu"]
    out = tmp_path / "out"
    assert main(["predict", *files, "--tumour-point", point, "--out", str(out)]) == 0
    assert "probability of response" in capsys.readouterr().out
    values = json.loads((out / "prediction.json").read_text(encoding="utf-8"))
    assert [v["name"] for v in values["clinical"]] == list(GIST.names)
    assert sum(v["attention"] for v in values["clinical"]) == pytest.approx(1, abs=1e-5)
    braf = values["clinical"][GIST.names.index("braf")]
    assert (braf["value"], braf["change"]) == (None, None)
    assert any(v["change"] for v in values["clinical"])
    assert set(values["contributions"]) == set(values["inputs"]) == {"ct", "clinical"}
    assert values["heat"]["ct"]["max"] == pytest.approx(1)
    heat, image = volume.read(out / "heatmap_ct.nrrd"), volume.read(case.inputs["ct"][0])
    assert heat.array.shape == image.array.shape
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "The clinical values" in html
    assert "Mitotic index" in html and "KIT" in html
    assert "it does not say what mattered" in html
    assert main(["predict", *files, "--tumour-point", "1,2", "--out", str(out)]) == 2


def test_heat_is_measured_against_the_tumour(case, tiny):
    values = Predictor(tiny, "cpu")(case).values
    assert 0 <= values["heat"]["ct"]["share_in_tumour"] <= 1
    assert values["model"]["name"] == "ct_clinical"


def test_a_checkpoint_keeps_its_schema(tiny):
    loaded = checkpoint.load(tiny)
    assert loaded.card.clinical == GIST
    assert loaded.model.config.scaling.mean[0] == 61
    plain = json.loads(json.dumps(asdict(loaded.card)))["clinical"]
    assert set(plain) == {"variables"}


def test_what_a_checkpoint_needs_is_asked_for(case, tiny, tmp_path):
    loaded = checkpoint.load(tiny)
    config = {**loaded.card.config, "needs": ["clinical"]}
    path = tmp_path / "needs.safetensors"
    checkpoint.save(path, loaded.model, dataclasses.replace(loaded.card, config=config))
    with pytest.raises(MissingInput, match="no clinical"):
        Predictor(path, "cpu")(dataclasses.replace(case, clinical={}))
    assert Predictor(path, "cpu")(case).values["inputs"]["clinical"]["used"]


def test_a_cohort_is_predicted_and_a_changed_ct_again(cohort, tiny, tmp_path):
    cases, predictor = read_cohort(cohort), Predictor(tiny, "cpu")
    assert predict_cohort(cases, tmp_path, tiny, device="cpu", predictor=predictor) == []
    done = (tmp_path / "cases" / cases[0].case_id / "prediction.json").stat().st_mtime_ns
    other = dataclasses.replace(
        cases[0], inputs={**cases[0].inputs, "ct": cases[1].inputs["ct"], "tumour_ct": cases[1].inputs["tumour_ct"]}
    )
    assert predict_cohort([other, cases[1]], tmp_path, tiny, device="cpu", predictor=predictor) == []
    assert (tmp_path / "cases" / cases[0].case_id / "prediction.json").stat().st_mtime_ns != done


def test_a_real_ct_is_cropped_round_its_tumour(data):
    folder = data / "data/ct_sarcoma/STS_001"
    found = prepare(
        Case.from_files("real", {"ct": folder / "ct.nii.gz", "tumour_ct": folder / "tumour.nii.gz"}),
        dataclasses.replace(SETTINGS, shape=(24, 48, 48)),
        wanted=("ct",),
    )
    inside = found.ct[found.tumour_ct > 0]
    assert -0.5 < float(inside.median()) < 0.5  # soft tissue, in the middle of the window
    assert "not_hounsfield" not in dict(found.warnings)
