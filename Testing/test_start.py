"""What a training of CT and clinical values starts from and ends with: scaling of its own cases, pretrained weights, low-rank updates."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_ct_clinical import SHAPE, VIT, net
from test_loop import FABRIC

from HARM3Logic import checkpoint
from HARM3Logic.case import Case
from HARM3Logic.clinical import Schema, Variable
from HARM3Logic.errors import BadCohort, BadOption
from HARM3Logic.models import clam
from HARM3Logic.models.lora import LoraSettings
from HARM3Logic.models.vit3d import ViTTrunk
from HARM3Logic.preprocessing import Preprocessing
from Training import start, train
from Training.cache import Cache
from Training.experiment import Augmentation, Experiment, find
from Training.folds import Split
from Training.loop import train as learn
from Training.pretrain import pseudonym, write_trunk

SCHEMA = Schema(
    (
        Variable("age", "numeric", "years"),
        Variable("sex", "binary", allowed=("female", "male")),
        Variable("stage", "categorical", allowed=("one", "two", "three")),
    )
)
COUNT = 12
SPLIT = Split(train=(0, 1, 2, 3, 4, 5), choose=(6, 7, 8), judge=(9, 10, 11), number=0)


def small(fusion: str = "cross", **changes: Any) -> Experiment:
    settings = {"schema": SCHEMA, "preprocessing": Preprocessing(shape=SHAPE), "epochs": 2, "batch_size": 3, "learning_rate": 1e-2}
    return Experiment("ct_clinical", net(fusion).config, **{**settings, **changes})


def write_cache(folder: Path, ages: list[float]) -> Cache:
    folder.mkdir(parents=True)
    paths, cases = [], []
    for k, age in enumerate(ages):
        generator = torch.Generator().manual_seed(k)
        tensors = {
            "ct": torch.rand(SHAPE, generator=generator) * 2 - 1,
            "clinical": torch.tensor([age, k % 2, k % 3]),
            "clinical_mask": torch.tensor([k != 2, True, k != 4]),
        }
        save_file(tensors, folder / f"c{k}.safetensors")
        paths.append(folder / f"c{k}.safetensors")
        cases.append(Case(f"GI-{k}", {}, patient_id=f"P{k}", label=k % 2))
    return Cache(paths, cases)


AGES = [40.0, 50.0, 0.0, 60.0, 70.0, 80.0, 900.0, -900.0, 900.0, 900.0, 900.0, -900.0]  # the third is unknown; from the seventh none trains


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return write_cache(tmp_path / "cache", AGES)


@pytest.fixture
def trunk(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    write_trunk(tmp_path / "trunk.safetensors", ViTTrunk(VIT), {"crops": 3, "loss": 0.5, "patients_sha256": [pseudonym("Q")]})
    return tmp_path / "trunk.safetensors"


def test_scaling_is_fitted_on_the_known_values_of_the_cases_that_train_and_kept_in_the_card(cache: Cache, tmp_path: Path) -> None:
    train.finish(small(), "x", cache, SPLIT, tmp_path / "fold-0", FABRIC)
    done = checkpoint.load(tmp_path / "fold-0" / "checkpoint.safetensors")
    known = [age for k, age in enumerate(AGES[:6]) if k != 2]
    assert done.card.config["scaling"]["mean"] == [np.mean(known), 0.0, 0.0]
    assert done.card.config["scaling"]["spread"] == pytest.approx([np.std(known), 1.0, 1.0])
    assert done.model.config.scaling.mean[0] == done.model.variables.mean[0]
    assert done.card.clinical == SCHEMA and done.card.inputs == ("ct", "clinical") and done.card.tile_encoder == {}
    without = {path.stem.removeprefix("predictions_without_") for path in (tmp_path / "fold-0").glob("predictions_without_*.csv")}
    assert without == {"ct", "clinical"}


def test_a_judged_case_leaves_no_trace_in_the_model(tmp_path: Path) -> None:
    states = []
    for name, ages in (("one", AGES), ("two", [*AGES[:9], 1.0, 2.0, 3.0])):
        model = learn(small(), write_cache(tmp_path / name / "cache", ages), SPLIT, tmp_path / name / "run", FABRIC)
        states.append({**model.state_dict(), "mean": model.variables.mean, "spread": model.variables.spread})
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_frozen_weights_stay_and_the_checkpoint_is_an_ordinary_model(
    cache: Cache, trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = small(pretrained=str(trunk), lora=LoraSettings(rank=2), average=0.5)
    before = start.new_model(experiment, cache, SPLIT.train).state_dict()
    train.finish(experiment, "x", cache, SPLIT, tmp_path / "fold-0", FABRIC)
    kept = torch.load(tmp_path / "fold-0" / "state.pt", weights_only=True)
    for name, value in kept["model"].items():
        frozen = name.startswith("trunk.") and "lora_" not in name
        assert not frozen or torch.equal(value, before[name]), name
        assert "lora_" not in name or not torch.equal(value, before[name]), name
        assert not frozen or torch.equal(kept["average"][f"module.{name}"], value), name  # nor does the running mean drift
    assert any("lora_A" in name for name in kept["model"])
    done = checkpoint.load(tmp_path / "fold-0" / "checkpoint.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in done.model.state_dict())
    torch.manual_seed(5)
    for name, value in ViTTrunk(VIT).state_dict().items():  # what is not adapted is what was pretrained, in 16 bits
        adapted = name.endswith("weight") and any(part in name for part in ("qkv", "proj", "fc1", "fc2"))
        assert torch.equal(done.model.trunk.state_dict()[name], value.half().float()) != adapted, name
    told = done.card.training
    assert told["pretrained"] == {"sha256": checkpoint.file_sha256(trunk), "crops": 3, "loss": 0.5}  # of its patients nothing
    assert told["learning"]["trainable"] < told["learning"]["total"]
    assert f"{told['learning']['trainable']:,} of" in capsys.readouterr().out


def test_the_merged_model_answers_as_the_unmerged_did(cache: Cache, trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from HARM3Logic.models import lora
    from Training.loop import logits

    experiment = small(pretrained=str(trunk), lora=LoraSettings(rank=2))
    monkeypatch.setattr(start, "finished", lambda experiment, model: model)
    model = learn(experiment, cache, SPLIT, tmp_path / "run", FABRIC)
    unmerged, _ = logits(model, cache, range(COUNT), 3, torch.device("cpu"))
    merged, _ = logits(lora.merge(model), cache, range(COUNT), 3, torch.device("cpu"))
    assert np.abs(merged - unmerged).max() <= 1e-6


def test_a_resumed_adaptation_equals_an_unbroken_one(cache: Cache, trunk: Path, tmp_path: Path) -> None:
    experiment = small(pretrained=str(trunk), lora=LoraSettings(rank=2), epochs=3)
    unbroken = learn(experiment, cache, SPLIT, tmp_path / "unbroken", FABRIC).state_dict()

    class Stopped(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        learn(experiment, cache, SPLIT, tmp_path / "broken", FABRIC, stop)
    again = learn(experiment, cache, SPLIT, tmp_path / "broken", FABRIC).state_dict()
    assert all(torch.equal(value, unbroken[name]) for name, value in again.items())


def test_contradictions_are_refused_before_anything_is_prepared(cache: Cache, trunk: Path, tmp_path: Path) -> None:
    settings = LoraSettings()
    for experiment, told in (
        (small(lora=settings), "none is given"),
        (small(lora=settings, pretrained=str(trunk), frozen_epochs=1), "frozen_epochs=1"),
        (small(pretrained=str(tmp_path / "nowhere")), "no pretrained trunk"),
        (small(schema=Schema(SCHEMA.variables[:2])), "expects 3 clinical variables of other kinds than the schema's 2"),
    ):
        with pytest.raises(BadOption, match=told):
            start.check(experiment)
    start.check(small(lora=settings, pretrained=str(trunk)))
    with pytest.raises(BadOption, match="no trunk here that can be pretrained"):
        start.new_model(small("clinical", pretrained=str(trunk)), cache, SPLIT.train)
    with pytest.raises(BadOption, match="reads no clinical values"):
        start.with_schema(find("harm3_fusion:compact"), SCHEMA)
    other = start.with_schema(find("ct_clinical:compact"), SCHEMA)
    assert other.config.levels == SCHEMA.levels and other.schema is SCHEMA
    start.check(other)


def test_a_patient_who_pretrained_the_trunk_is_in_no_cohort(trunk: Path) -> None:
    cases = [Case("GI-1", {}, patient_id="P"), Case("GI-2", {}, patient_id="Q")]
    start.refuse_pretrained_patients(small(pretrained=str(trunk)), cases[:1])
    start.refuse_pretrained_patients(small(), cases)
    with pytest.raises(BadCohort, match="'Q' was among those who pretrained"):
        start.refuse_pretrained_patients(small(pretrained=str(trunk)), cases)


def test_a_cohort_of_slides_alone_trains(tmp_path: Path) -> None:
    paths = []
    for k in range(COUNT):
        tiles = torch.randn(12 + k, 6, generator=torch.Generator().manual_seed(k)) + k % 2
        save_file({"tiles": tiles, "tile_xy_um": torch.zeros(len(tiles), 2)}, tmp_path / f"c{k}.safetensors")
        paths.append(tmp_path / f"c{k}.safetensors")
    cache = Cache(paths, [Case(f"S{k}", {}, label=k % 2) for k in range(COUNT)])
    config = dataclasses.replace(clam.compact(), tile_features=6)
    experiment = Experiment("clam", config, epochs=2, batch_size=1, augmentation=Augmentation(drop_slide=0.0, drop_tiles=0.2))
    assert start.inputs(experiment) == ("slide",)
    train.finish(experiment, "x", cache, SPLIT, tmp_path / "fold-0", FABRIC)
    done = checkpoint.load(tmp_path / "fold-0" / "checkpoint.safetensors")
    assert done.card.inputs == ("slide",) and done.card.tile_encoder["name"] and not done.card.training["synthetic"]


def test_every_shipped_variant_is_whole() -> None:
    from Training.experiments.ct_clinical import EXPERIMENTS
    from Training.pretrain import RECIPES

    assert next(iter(EXPERIMENTS)) == "paper" and len(EXPERIMENTS) == 14
    for name, experiment in EXPERIMENTS.items():
        assert experiment.config.levels == experiment.schema.levels
        assert experiment.config.trunk == RECIPES[name.partition("_")[0]].mae.trunk  # the trunk fits
        read = set(start.inputs(experiment))
        assert read == {"image": {"ct"}, "clinical": {"clinical"}}.get(experiment.config.fusion, {"ct", "clinical"})
        how = experiment.augmentation
        assert set(experiment.config.needs) == (read if len(read) == 1 else set())
        assert (how.drop_ct == how.drop_row == 0) == (len(read) == 1)  # the only input is never withheld
    share = start.learning(find("ct_clinical:paper_image_lora"))
    assert share.trainable < 0.15 * share.total
    assert start.learning(find("ct_clinical:paper_image")).trainable < share.total


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Clinical rows without any image."""
    with open(tmp_path / "cohort.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "clinical.age", "clinical.sex", "clinical.stage", "label"])
        for k in range(32):
            writer.writerow([f"C{k}", f"P{k}", 40 + k, ("female", "male", "")[k % 3], ("one", "two", "three")[k % 3], k % 2])
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA.to_dict()))
    return tmp_path / "cohort.csv"


def test_a_table_without_images_trains_and_predicts_alike(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command to the prediction of a case, which equals what the fold wrote of it."""
    from HARM3Logic.cohort import read_cohort
    from HARM3Logic.predict import Predictor
    from Training import cache as caching
    from Training.runs import read_run

    def here(missing: Any, work: Any, encoder: str, device: str, workers: int | None) -> list[str]:
        assert encoder == ""  # no slide is wanted
        return [reason for case, path in missing if (reason := work(case, path))]

    monkeypatch.setattr(caching, "_prepare_all", here)
    compact = find("ct_clinical:compact_clinical")
    quick = dataclasses.replace(compact, epochs=1, folds=2, config=dataclasses.replace(compact.config, width=16, hidden=16, head=8))
    monkeypatch.setattr(train, "find", lambda name: quick)
    asked = ["ct_clinical:compact_clinical", "--cohort", str(table), "--schema", str(tmp_path / "schema.json"), "--device", "cpu"]
    assert train.main([*asked, "--out", str(tmp_path / "run")]) == 0
    run = read_run(tmp_path / "run")
    assert run.inputs == ("clinical",) and run.experiment["schema"]["variables"][0]["name"] == "age"
    assert run.experiment["pretrained"] == "" and not run.synthetic
    case = read_cohort(table)[0]
    predictor = Predictor(tmp_path / "run" / run.fold[0] / "checkpoint.safetensors", "cpu")
    assert predictor(case).probability == pytest.approx(run.probability[run.case_id.index(case.case_id)], abs=1e-6)
    assert train.main([*asked, "--out", str(tmp_path / "run"), "--pretrained", "nowhere"]) == 2
