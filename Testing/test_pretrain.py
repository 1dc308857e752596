"""The masked autoencoder and its training: what it sees, what it is judged on, that a stopped run goes on, and whom it refuses."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_ct_clinical import net

from HARM3Logic import phantom_gist
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadCheckpoint, BadCohort, BadOption
from HARM3Logic.models.mae3d import MAE3D, MAEConfig, fit_reading, normalised
from HARM3Logic.models.vit3d import ViTConfig, ViTTrunk
from HARM3Logic.prepare import Preprocessing
from Training import pretrain
from Training.crops import Crops, cases_of_folder, read_crops, refuse_shared

VIT = ViTConfig(volume_shape=(8, 16, 16), patch=(4, 8, 8), width=16, heads=2, layers=1, hidden=32)
RECIPE = pretrain.Recipe(
    MAEConfig(VIT, width=16, heads=2, layers=1, hidden=32), Preprocessing(shape=VIT.volume_shape, spacing_mm=(10.0, 8.0, 8.0)),
    epochs=3, batch_size=4, learning_rate=3e-3, picture_every=2,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One case and three crops."""
    path = tmp_path_factory.mktemp("pretraining")
    phantom_gist.write_phantoms(path, 1, seed=5, crops=3, workers=0)
    return path


def model(target="normalised") -> MAE3D:
    torch.manual_seed(0)
    return MAE3D(dataclasses.replace(RECIPE.mae, target=target))


def some(count=12) -> Crops:
    waves = np.linspace(0, 6, 16)[None, :] + np.random.default_rng(0).uniform(0, 6, count)[:, None]
    array = np.repeat(np.repeat(np.sin(waves)[:, None, None], 8, 1), 16, 2)
    return Crops(array.astype(np.float16), tuple(f"p{k}" for k in range(count)))


def test_patches_and_volume_are_one():
    ct = torch.randn(2, *VIT.volume_shape)
    patches = model().patches(ct)
    assert patches.shape == (2, 8, 256)
    assert torch.equal(model().assemble(patches), ct)
    assert torch.equal(patches[0, 5], ct[0, 4:, :8, 8:].reshape(-1))  # order D, H, W as the trunk's tokens


def test_targets_have_no_level_and_no_contrast():
    scaled = normalised(torch.randn(2, 3, 256) * 7 + 3)[0]
    torch.testing.assert_close(scaled.mean(dim=2), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std(dim=2), torch.ones(2, 3), atol=1e-3, rtol=0)
    assert torch.isfinite(normalised(torch.full((1, 1, 256), -1.0))[0]).all()


def test_three_quarters_are_hidden_and_not_seen():
    net, ct = model().eval(), torch.randn(1, *VIT.volume_shape)
    found, hidden = net.fill_in(ct, torch.Generator().manual_seed(3))
    assert hidden.sum() == 6
    other = net.assemble(torch.where(hidden[..., None], torch.randn(1, 8, 256), net.patches(ct)))
    again, _ = net.fill_in(other, torch.Generator().manual_seed(3))
    assert torch.equal(again, found)  # what is hidden cannot reach the answer
    shown = net.assemble(torch.where(hidden[..., None], net.patches(ct), torch.randn(1, 8, 256)))
    assert not torch.allclose(net.fill_in(shown, torch.Generator().manual_seed(3))[0], found)


def test_only_hidden_patches_are_judged():
    net, ct = model(), torch.randn(2, *VIT.volume_shape)
    found, hidden = net.fill_in(ct, torch.Generator().manual_seed(3))
    wanted = ((found - normalised(net.patches(ct))[0]) ** 2)[hidden].mean()
    torch.testing.assert_close(net(ct, torch.Generator().manual_seed(3)), wanted)


@pytest.mark.parametrize("target", ["normalised", "plain", "moments"])
def test_every_parameter_learns(target):
    net = model(target)
    net(torch.randn(2, *VIT.volume_shape)).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("target", "level", "contrast"), [("normalised", False, False), ("plain", True, True), ("moments", True, True)])
def test_what_the_target_keeps_of_density(target, level, contrast):
    """An answer that fits one volume fits it no more once its density, or the spread of it, has changed: unless the target hides that."""
    net, ct = model(target), torch.randn(1, *VIT.volume_shape) * 0.1
    own = net.patches(ct)
    mean, spread = own.mean(dim=2, keepdim=True), (own.var(dim=2, keepdim=True) + 1e-6).sqrt()
    right = {"plain": own, "normalised": (own - mean) / spread}
    right["moments"] = torch.cat([right["normalised"], mean, (spread + 0.02).log()], dim=2)
    net.fill_in = lambda *_: (right[target], torch.ones(own.shape[:2], dtype=torch.bool))
    assert net(ct) < 1e-6
    assert (net(ct + 0.5) > 0.01) == level
    assert (net(3 * (ct - ct.mean()) + ct.mean()) > 0.01) == contrast
    assert torch.allclose(net.pictures(ct)[1], ct, atol=1e-5)


def test_density_is_asked_of_the_patches_that_were_seen_too():
    net, ct = model("moments"), torch.randn(1, *VIT.volume_shape)
    own = net.patches(ct)
    answer = torch.cat([normalised(own)[0], own.mean(2, keepdim=True), (own.std(2, keepdim=True) + 0.02).log()], dim=2)
    wrong = answer.clone()
    wrong[:, 0, -2] += 1.0  # the mean of a patch that was seen
    hidden = torch.arange(own.shape[1])[None] > 0
    losses = []
    for given in (answer, wrong):
        net.fill_in = lambda *_, given=given: (given, hidden)
        losses.append(float(net(ct)))
    assert losses[1] - losses[0] == pytest.approx(net.config.moments_weight / own.shape[1], rel=1e-4)


READING = MAEConfig(dataclasses.replace(VIT, readings=2), target="moments", width=16, heads=2, layers=1, hidden=32)


@torch.no_grad()
def test_readings_tell_density_and_its_spread_against_what_is_usual_at_the_place():
    torch.manual_seed(0)
    net = MAE3D(READING)
    net.trunk.norm = torch.nn.Identity()  # so that a line through the token can tell the density
    light = torch.randn(200, 1, 1, 1)
    crops = light + torch.linspace(0, 3, 16)[:, None] + 0.1 * torch.randn(200, *VIT.volume_shape)
    fit_reading(net, lambda: crops.split(50))
    found = net.trunk.reading(net.trunk(crops))
    assert found.shape == (200, 8, 2)
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(8, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(found[..., 0].std(dim=0), torch.ones(8), atol=0.01, rtol=0)
    assert found[..., 1].std(dim=0).max() < 1.01
    for place in range(8):
        assert np.corrcoef(found[:, place, 0], light.flatten())[0, 1] > 0.95  # not minus it


def test_a_reading_is_kept_with_the_trunk(tmp_path):
    recipe = dataclasses.replace(RECIPE, mae=READING)
    made = pretrain.pretrain(recipe, some(), tmp_path, CPU)
    into = net(trunk=READING.trunk, wide=1.0)
    pretrain.load_pretrained(into.trunk, made)
    assert into.trunk.reading.usual.abs().max() > 0
    crops = torch.from_numpy(some().array[pretrain._split(some().patients, recipe.seed)[0]].astype(np.float32))
    found = into.trunk.reading(into.trunk(crops))
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(8, 2), atol=1e-3, rtol=0)
    with pytest.raises(BadCheckpoint, match="readings 2; the model's has 0"):
        pretrain.load_pretrained(net().trunk, made)


@pytest.mark.parametrize("wrong", [{"target": "normalised"}, {"trunk": dataclasses.replace(VIT, readings=3)}])
def test_readings_need_a_target_that_teaches_them(wrong):
    with pytest.raises(BadOption, match="readings"):
        MAE3D(dataclasses.replace(READING, **wrong))


def test_plain_targets_are_judged_as_they_are():
    net, ct = model("plain"), torch.randn(2, *VIT.volume_shape)
    found, hidden = net.fill_in(ct, torch.Generator().manual_seed(3))
    torch.testing.assert_close(net(ct, torch.Generator().manual_seed(3)), ((found - net.patches(ct)) ** 2)[hidden].mean())


def test_it_learns_to_fill_in(tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=24, picture_every=100)
    pretrain.pretrain(recipe, some(60), tmp_path, CPU)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert rows[-1]["held_out"] < 0.85  # knowing nothing but the mean costs 1


def test_a_stopped_run_ends_as_one_that_was_not(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = pretrain.pretrain(RECIPE, some(), tmp_path / "a", CPU)
    epoch, calls = pretrain._epoch, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(pretrain, "_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        pretrain.pretrain(RECIPE, some(), tmp_path / "b", CPU)
    monkeypatch.setattr(pretrain, "_epoch", epoch)
    again = pretrain.pretrain(RECIPE, some(), tmp_path / "b", CPU)
    first, second = ViTTrunk(VIT), ViTTrunk(VIT)
    assert pretrain.load_pretrained(first, whole) == pretrain.load_pretrained(second, again)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert len((tmp_path / "b/metrics.jsonl").read_text().splitlines()) == RECIPE.epochs


def test_a_folder_holds_one_recipe(tmp_path):
    pretrain.pretrain(dataclasses.replace(RECIPE, epochs=1), some(), tmp_path, CPU)
    with pytest.raises(BadOption, match="another recipe"):
        pretrain.pretrain(RECIPE, some(), tmp_path, CPU)


def test_patients_stay_on_one_side():
    train, held = pretrain._split([f"p{k // 2}" for k in range(60)], seed=0)
    assert len(held) == 6
    assert not {k // 2 for k in train} & {k // 2 for k in held}


def test_a_pretrained_trunk_goes_into_a_model(tmp_path):
    torch.manual_seed(7)
    trunk = ViTTrunk(VIT)
    pretrain.write_trunk(tmp_path / "t.safetensors", trunk, {"crops": 3})
    into = net()
    assert pretrain.load_pretrained(into.trunk, tmp_path / "t.safetensors") == {"crops": 3}
    assert all(torch.equal(a, b) for a, b in zip(into.trunk.state_dict().values(), trunk.state_dict().values(), strict=True))
    with pytest.raises(BadCheckpoint, match="width 16; the model's has 32"):
        pretrain.load_pretrained(ViTTrunk(dataclasses.replace(VIT, width=32)), tmp_path / "t.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(BadCheckpoint, match="no pretrained trunk"):
        pretrain.load_pretrained(into.trunk, tmp_path / "x.safetensors")


def test_the_command_pretrains_on_crops_of_others(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(pretrain.RECIPES, "compact", RECIPE)
    asked = ["--crops", str(folder / "crops"), "--out", str(tmp_path / "run"), "--never", str(folder / "cohort.csv"), "--device", "cpu"]
    assert pretrain.main(asked) == 0
    assert "3 crops of 3 patients" in capsys.readouterr().out
    pictures = sorted((tmp_path / "run/pictures").iterdir())
    assert [path.name for path in pictures] == ["epoch-0000.png", "epoch-0002.png"]
    with Image.open(pictures[-1]) as image:
        assert image.size == (3 * 3 * 18, 3 * 3 * 18)  # three crops in three versions, with a frame, three times as large
    assert pretrain.main([*asked, "--epochs", "0"]) == 2


def test_a_patient_of_the_prediction_cohort_is_refused(folder, tmp_path):
    crops = cases_of_folder(folder / "crops")
    refuse_shared(crops, [folder / "cohort.csv"])
    with open(folder / "cohort.csv", encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    cases = read_cohort(folder / "cohort.csv")
    with pytest.raises(BadCohort, match=row["patient_id"]):
        refuse_shared([dataclasses.replace(crops[0], patient_id=row["patient_id"])], [folder / "cohort.csv"])
    renamed = dataclasses.replace(cases[0], case_id="other", patient_id="other")
    with pytest.raises(BadCohort, match="is that of the pretraining case 'other'"):
        refuse_shared([renamed], [folder / "cohort.csv"])
    asked = ["--cohort", str(folder / "cohort.csv"), "--never", str(folder / "cohort.csv"), "--out", str(tmp_path)]
    assert pretrain.main(asked) == 2


def test_crops_are_prepared_once_and_again_when_something_changed(folder, tmp_path):
    cases = cases_of_folder(folder / "crops")
    first = read_crops(cases, RECIPE.preprocessing, tmp_path, middle=True)
    made = (tmp_path / "crops.npy").stat().st_mtime_ns
    assert first.array.shape == (3, *VIT.volume_shape)
    assert first.array.min() >= -1
    read_crops(cases, RECIPE.preprocessing, tmp_path, middle=True)
    assert (tmp_path / "crops.npy").stat().st_mtime_ns == made
    other = dataclasses.replace(RECIPE.preprocessing, window_hu=(-100.0, 100.0))
    assert not np.array_equal(read_crops(cases, other, tmp_path, middle=True).array, first.array)
    with pytest.raises(BadCohort, match="tumour_point_mm"):
        read_crops(cases, RECIPE.preprocessing, tmp_path, middle=False)


def test_a_folder_without_images_or_with_nameless_ones_is_refused(folder, tmp_path):
    with pytest.raises(BadCohort, match="no image"):
        cases_of_folder(tmp_path)
    (tmp_path / "a.nrrd").write_bytes(b"")
    assert cases_of_folder(tmp_path)[0].patient_id == "a"
    (tmp_path / "crops.csv").write_text("file,patient_id\nb.nrrd,p\n")
    with pytest.raises(BadCohort, match=r"a\.nrrd"):
        cases_of_folder(tmp_path)
