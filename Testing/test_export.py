"""One checkpoint of several folds: it answers as they do together, and says how good they were on unseen cases."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models import some_batch, tiny

from HARM3Logic import checkpoint
from HARM3Logic.checkpoint import Calibration, Card
from HARM3Logic.errors import BadOption
from HARM3Logic.familiarity import Reference
from HARM3Logic.models import MODELS
from HARM3Logic.models.harm3_fusion import HARM3Fusion
from HARM3Logic.prepare import Preprocessing
from Training import export
from Training.export import merged
from Training.runs import COLUMNS

FOLDS, CASES = 3, 60
CALIBRATIONS = [Calibration(0.5, -0.2), Calibration(1.0, 0.0), Calibration(0.8, 0.4)]


def write_fold(folder: Path, k: int | None, inner: float) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(k or 0)
    model = checkpoint.half(HARM3Fusion(tiny()))
    figures = {"cohort_size": CASES, "experiment": "x", "seed": 0, "inner_auc": {"value": inner, "low": 0, "high": 1}}
    if k is not None:
        figures |= {"auc": {"value": 0.1, "low": 0, "high": 1}, "cases": {"train": 30}}
    card = Card(
        "harm3_fusion", dataclasses.asdict(model.config), Preprocessing(), model.inputs(), "Tests.", {"name": "e", "weights_sha256": "0"},
        CALIBRATIONS[k or 0], 0.4, (0.3, 0.5), figures,
    )  # fmt: skip
    reference = {"t1_pre": Reference(np.full(2, float(k or 0)), np.ones(2), 1.0 + (k or 0))}
    checkpoint.save(folder / "checkpoint.safetensors", model, card, reference)


def write_predictions(folder: Path, k: int) -> None:
    rng = np.random.default_rng(k)
    judge = [(n, "judge") for n in range(CASES) if n % FOLDS == k]
    choose = [(n, "choose") for n in range(CASES) if n % FOLDS == (k + 1) % FOLDS][:8]
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for n, role in judge + choose:
            label = n // FOLDS % 2
            p = 1 / (1 + np.exp(-(2 * (label - 0.5) + rng.normal())))
            writer.writerow(dict(zip(COLUMNS, (f"C{n:02}", f"P{n:02}", "A", role, label, p, "uncertain"), strict=True)))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for k, inner in zip(range(FOLDS), (0.6, 0.9, 0.7), strict=True):
        write_fold(tmp_path / "run" / f"fold-{k}", k, inner)
        write_predictions(tmp_path / "run" / f"fold-{k}", k)
    return tmp_path / "run"


def members(run: Path) -> list[HARM3Fusion]:
    return [checkpoint.load(run / f"fold-{k}" / "checkpoint.safetensors").model for k in range(FOLDS)]  # type: ignore[misc]


def test_the_ensemble_is_the_mean_of_calibrated_folds(run: Path, tmp_path: Path) -> None:
    assert export.main([str(run)]) == 0
    found = checkpoint.load(run / "checkpoint.safetensors")
    batch = some_batch()
    parts = [c.slope * m(batch).logit + c.intercept for m, c in zip(members(run), CALIBRATIONS, strict=True)]
    torch.testing.assert_close(found.model(batch).logit, torch.stack(parts).mean(dim=0))
    attention = [m(batch).attention["slide"] for m in members(run)]
    torch.testing.assert_close(found.model(batch).attention["slide"], torch.stack(attention).mean(dim=0))


def test_draws_of_the_ensemble_go_round_its_members(run: Path) -> None:
    export.export(run, run / "m.safetensors")
    model, batch = checkpoint.load(run / "m.safetensors").model, some_batch()
    drawn = model.sample(batch, 7, torch.Generator().manual_seed(1))  # type: ignore[operator]
    assert drawn.shape == (7, 3)
    means = torch.stack([c.slope * m(batch).logit + c.intercept for m, c in zip(members(run), CALIBRATIONS, strict=True)])
    nearest = (drawn[:, None] - means[None]).abs().sum(dim=2).argmin(dim=1)
    assert nearest.tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_the_card_tells_what_the_folds_could_do(run: Path) -> None:
    card = export.export(run, run / "m.safetensors")
    said = card.training["out_of_fold"]
    assert (said["cases"], said["responders"]) == (CASES, 30)
    assert {"auc", "sensitivity", "specificity", "brier"} < set(said)
    assert 0.8 < said["auc"]["value"] < 1 and said["auc"]["low"] < said["auc"]["value"] < said["auc"]["high"]
    assert (card.training["how"], card.training["folds"], card.training["seed"]) == ("ensemble", FOLDS, 0)
    assert "auc" not in card.training  # of one fold
    assert (card.model, card.config["members"], card.inputs) == (
        "harm3_fusion_ensemble",
        FOLDS,
        tuple(MODELS["harm3_fusion"](tiny()).inputs()),
    )  # type: ignore[operator]
    assert card.uncertain_zone[0] < card.threshold < card.uncertain_zone[1] and card.tile_encoder["name"] == "e"
    assert card.calibration != CALIBRATIONS[0]


def test_best_is_chosen_by_the_choosing_cases(run: Path) -> None:
    card = export.export(run, run / "m.safetensors", "best")
    assert card.training["from"] == "fold-1" and card.calibration == CALIBRATIONS[1]
    wanted = members(run)[1](some_batch()).logit
    assert torch.equal(checkpoint.load(run / "m.safetensors").model(some_batch()).logit, wanted)


def test_a_refit_needs_its_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main([str(run), "--how", "refit"]) == 2
    assert "--whole" in capsys.readouterr().err
    write_fold(run / "whole", None, 0.5)
    assert export.main([str(run), "--how", "refit", "--out", str(run / "r.safetensors")]) == 0
    card = checkpoint.read_card(run / "r.safetensors")
    assert card.training["from"] == "whole" and card.training["out_of_fold"]["cases"] == CASES
    assert "AUC 0." in capsys.readouterr().out


def test_missing_folds_are_refused(run: Path) -> None:
    (run / "fold-2" / "predictions.csv").unlink()
    with pytest.raises(BadOption, match="judged 40 of 60"):
        export.export(run, run / "m.safetensors")
    (run / "fold-1" / "checkpoint.safetensors").unlink()
    with pytest.raises(BadOption, match="is not there"):
        export.export(run, run / "m.safetensors")


def test_what_is_familiar_to_one_fold_is_to_all() -> None:
    parts = [{"t1_pre": Reference(np.array([m]), np.array([1.0]), 2.0 + m)} for m in (0.0, 1.0)]
    found = merged([*parts, {}])["t1_pre"]
    assert found.mean == pytest.approx(0.5) and found.spread == pytest.approx(np.sqrt(1.25)) and found.limit == 3.0


def test_a_place_that_takes_no_file_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert export.main([str(tmp_path), "--out", str(tmp_path / "file" / "model.safetensors")]) == 2
    assert "Traceback" not in capsys.readouterr().err
