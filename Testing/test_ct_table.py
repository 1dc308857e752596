"""The second paper's table: every row on the same folds, locked centres judged once by all, planned comparisons, the gap."""

import base64
import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_ct_clinical import VIT
from test_start import SCHEMA, small, write_cache
from test_table1 import at_once

from HARM3Logic.case import Case
from HARM3Logic.models.lora import LoraSettings
from HARM3Logic.models.vit3d import ViTTrunk
from Training import cache as caching
from Training import ct_table, ct_table_page, external, pretrain, side_by_side
from Training.comparison import delong, unpaired
from Training.experiment import Augmentation, find
from Training.metrics import Estimate

CASES = 64
CENTRES = ("inside", "inside", "east", "west")  # in turn


def tiny(name: str) -> Any:
    """The named recipe's fusion and start at the size of a test."""
    config = find(name).config
    never = Augmentation(shift=(1, 1, 1), drop_ct=0.0, drop_row=0.0)
    lora = LoraSettings(rank=2) if name.endswith("_lora") else None
    experiment = small(config.fusion, epochs=1, folds=2, augmentation=never, lora=lora)
    return dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, needs=config.needs))


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    donors = write_cache(tmp_path / "donors", [40.0 + k for k in range(CASES)])

    def prepared(missing: Sequence[tuple[Case, Path]], *_: Any) -> list[str]:
        for case, path in missing:
            assert case.centre == "inside"  # what is locked is not even prepared
            path.write_bytes(donors.paths[int(case.case_id[1:])].read_bytes())
        return []

    def trunk(recipe: Any, folder: Path, cohort: Any, out: Path, never: Sequence[Path], device: str) -> Path:
        assert [path.name for path in never] == ["cohort.csv"]
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(5)
        pretrain.write_trunk(out / "trunk.safetensors", ViTTrunk(VIT), {"crops": 3})
        return out / "trunk.safetensors"

    monkeypatch.setattr(caching, "_prepare_all", prepared)
    monkeypatch.setattr(side_by_side, "run", at_once)
    monkeypatch.setattr(pretrain, "run", trunk)
    monkeypatch.setattr(ct_table, "find", tiny)
    (tmp_path / "scan.nrrd").write_bytes(b"x")
    with open(tmp_path / "cohort.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "centre", "ct", "clinical.age", "label"])
        writer.writerows([f"C{k}", f"P{k}", CENTRES[k % 4], "scan.nrrd", 40 + k, k // 4 % 2] for k in range(CASES))
    return tmp_path / "cohort.csv"


def test_the_table_from_crops_to_page(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked: list[str] = []

    def oracle(cases: Sequence[Case], path: Path, out: Path, *, ignore_masks: bool) -> tuple[dict[str, dict[str, Any]], list[str]]:
        assert len(list((tmp_path / "out" / "runs").glob("*/whole/checkpoint.safetensors"))) == 3  # all are finished by then
        book = json.loads(external.ledger_of(cohort).read_text())
        assert len(book["models"]) == 3  # and named
        asked.append(path.parent.parent.name)
        noise = np.random.default_rng(len(asked)).normal(0, 0.3, len(cases))
        shares = np.clip(0.5 + 0.1 * (np.array([case.label for case in cases]) - 0.5) + noise, 0, 1)
        return {case.case_id: {"probability": float(p), "decision": "responder"} for case, p in zip(cases, shares, strict=True)}, []

    monkeypatch.setattr(external, "_predict", oracle)
    monkeypatch.setattr(ct_table, "FUSIONS", ("clinical", "cross"))
    command = ["--cohort", str(cohort), "--crops", str(tmp_path), "--external", "east", "west", "--out", str(tmp_path / "out")]
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA.to_dict()))
    command += ["--schema", str(tmp_path / "schema.json"), "--device", "cpu"]
    assert ct_table.main(command) == 0
    rows = ["clinical", "cross", "cross_lora"]
    assert asked == rows
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["run"] for row in results["methods"]] == rows and results["reference"] == "cross_lora"
    for row in results["methods"]:
        assert row["external"]["cases"] == CASES // 2 and list(row["external"]["by_centre"]) == ["east", "west"]
        assert row["gap"]["value"] == pytest.approx(row["external"]["auc"]["value"] - row["auc"]["value"])
        assert (row["learning"] < 1) == row["run"].endswith("_lora")
    places = [row["where"] for row in results["planned"]]
    assert places == ["internal"] * 3 + ["external"] * 3
    auc = {row["run"]: row["external"]["auc"]["value"] for row in results["methods"]}
    for row in results["planned"][3:]:
        assert row["difference"]["value"] == pytest.approx(auc[row["run"]] - auc[row["reference"]])
        assert row["p_holm"] >= row["p"]
    html = (tmp_path / "out" / "ct_table.html").read_text(encoding="utf-8")
    assert "Planned comparisons" in html and "data:image/svg+xml" in html and "http" not in html
    with open(tmp_path / "out" / "tables.csv", newline="") as file:
        lines = {(row["table"], row["row"], row["metric"]) for row in csv.DictReader(file)}
    assert ("methods", "cross_lora", "external.by_centre.east") in lines
    assert ("planned", "cross_lora - clinical external", "difference") in lines

    # again: nothing is trained, and nothing judged
    monkeypatch.setattr(ct_table.train_all.__globals__["train"], "train", None)
    assert ct_table.main(command) == 0 and asked == rows
    assert "cross_lora: AUC" in capsys.readouterr().out


def test_a_row_that_fails_keeps_the_locked_centres_closed(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(ct_table, "train_all", lambda *a, **k: {"cross": "too large"})
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA.to_dict()))
    command = ["--cohort", str(cohort), "--out", str(tmp_path / "out"), "--schema", str(tmp_path / "schema.json")]
    assert ct_table.main([*command, "--external", "east"]) == 2
    assert "cross failed (too large), so the locked centres stay closed" in capsys.readouterr().err
    assert not external.ledger_of(cohort).exists()


def test_every_comparison_is_with_what_is_to_be_beaten() -> None:
    pairs = ct_table.planned(list(ct_table.names("compact")))
    assert len(pairs) == len(set(pairs)) == 9
    assert ("cross_lora", "clinical") in pairs and ("cross", "concat") in pairs and ("image_lora", "image") in pairs
    assert ct_table.planned(["clinical", "cross"]) == [("cross", "clinical")]
    for size in ct_table.SIZES:
        found = {label: find(name) for label, name in ct_table.names(size).items()}
        assert len({(e.seed, e.folds, e.preprocessing, e.epochs, e.learning_rate) for e in found.values()}) == 1
        assert {label for label, e in found.items() if e.lora} == {label for label in found if label.endswith("_lora")}


def test_the_gap_is_between_different_patients() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 2, 80), rng.integers(0, 2, 60)
    first, second = one + rng.normal(0, 1, 80), two + rng.normal(0, 2, 60)
    found = unpaired(one, first, two, second)
    (a, va), (b, vb) = ((x[0], v[0, 0]) for x, v in (delong(one, first), delong(two, second)))
    assert found.difference.value == pytest.approx(b - a) and found.variance == pytest.approx(va + vb)


def drawn(rows: Sequence[Any]) -> str:
    return base64.b64decode(ct_table_page.gap(rows).split(",")[1]).decode()


def test_the_gap_is_drawn_where_it_is_known() -> None:
    row = {"run": "cross", "auc": Estimate(0.9, 0.8, 0.95), "external": {"auc": Estimate(0.6, 0.5, 0.7)}}
    whole, inside = drawn([row]), drawn([{**row, "external": {}}])
    assert "external" in whole and "internal" in whole and "external" not in inside
    assert "Cross-attention of both" in whole and "Published" in inside
    centres = {"east": Estimate(0.5, 0.3, 0.7), "west": Estimate(0.7, 0.5, 0.9)}
    assert "single centre" in drawn([{**row, "external": {**row["external"], "by_centre": centres}}])


def test_a_reader_is_told_each_comparison_once_and_in_words() -> None:
    def row(run: str, reference: str, where: str, difference: float, p: float) -> dict[str, Any]:
        return {"run": run, "reference": reference, "where": where, "difference": Estimate(difference, -1, 1), "p_holm": p}

    method = {"run": "cross_lora", "gap": Estimate(-0.1, -0.2, 0.05), "external": {"auc": Estimate(0.7, 0.6, 0.8), "cases": 30}}
    own = {"run": "cross_lora", "auc": Estimate(0.8, 0.7, 0.9), "calibration": {"calibration_slope": Estimate(1, 0.5, 2)}}
    planned = [
        row("cross_lora", "clinical", "internal", 0.2, 0.01), row("cross_lora", "image_lora", "internal", 0.1, 0.2),
        row("cross_lora", "cross", "internal", -0.1, 0.01), row("cross_lora", "clinical", "external", -0.2, 0.01),
    ]  # fmt: skip
    cohort = {"cases": 90, "responders": 40, "shuffled": None}
    results = {"reference": "cross_lora", "methods": [method], "runs": [own], "planned": planned, "cohort": cohort}
    first, step, *rest = ct_table_page.headline(results)
    assert first.startswith("Cross-attention of both (pretrained) tells responders")
    assert "−0.100 (−0.200 to 0.050), which so few cases do not tell from none" in step
    assert rest == [
        "Inside, cross-attention of both (pretrained) beats clinical values; it shows no difference to CT (pretrained).",
        "Inside, pretraining harms with cross-attention of both.",
        "On the locked centres, cross-attention of both (pretrained) is beaten by clinical values.",
    ]
    pairs = ct_table_page._pairs(planned)
    assert len(pairs) == 3 and pairs[0]["internal"]["p_holm"] == pairs[0]["external"]["p_holm"] == 0.01 and "external" not in pairs[1]
