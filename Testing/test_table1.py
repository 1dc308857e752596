"""Both tables of the paper for a cohort: trained, measured, compared, written; a stopped call goes on, a failure is named."""

import csv
import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import FEATURES, SHAPE, small, write_case

from HARM3Logic.card import read_header
from HARM3Logic.case import MRI
from HARM3Logic.errors import BadOption
from HARM3Logic.models import clam
from HARM3Logic.prepare import Preprocessing
from Training import cost, published, side_by_side, table1, train
from Training.experiment import Augmentation
from Training.loop import read_log
from Training.runs import read_run
from Training.side_by_side import Job

CASES, FOLDS = 32, 2
SETTINGS = {"preprocessing": Preprocessing(shape=SHAPE), "epochs": 2, "folds": FOLDS, "batch_size": 8}
OURS = small(**SETTINGS)
SLIDE = small(**SETTINGS, augmentation=Augmentation(shift=(1, 2, 2), drop_slide=0.0))  # its only input is never withheld
TILES = dataclasses.replace(clam.compact(), tile_features=FEATURES)
UNTAUGHT = dataclasses.replace(OURS.config, ldvae=False, mask_weight=0.0, radiomics_weight=0.0, change_weight=0.0)
EXPERIMENTS = {
    "clam": (
        "baselines:clam",
        dataclasses.replace(SLIDE, model="clam", config=dataclasses.replace(clam.compact(), tile_features=FEATURES)),
    ),
    "harm3_fusion": ("harm3_fusion:small", OURS),
    "no_ldvae": ("harm3_ablations:no_ldvae", dataclasses.replace(OURS, config=UNTAUGHT)),
}
PLACES = [("cpu", 1)]


def write_tensors(missing: Sequence[tuple[Any, Path]], *_: Any) -> list[str]:
    """In place of preparing: what `Training.cache` would keep of each case, with a tumour in the middle."""
    for case, path in missing:
        written = write_case(path.parent, int(case.case_id[1:]))
        tumour = torch.zeros(2, *SHAPE)
        tumour[:, 2:6, 5:11, 5:11] = 1.0
        save_file({**load_file(written), "tumour": tumour}, path)
        written.unlink()
    return []


def at_once(jobs: Sequence[Job], places: Sequence[tuple[str, int]]) -> dict[str, str]:
    """In place of processes: the same work here."""
    return {job.name: reason for job in jobs if (reason := side_by_side._reason(job, places[0][0]))}


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(table1.caching, "_prepare_all", write_tensors)
    monkeypatch.setattr(side_by_side, "run", at_once)
    (tmp_path / "scan.nrrd").write_bytes(b"x")
    with open(tmp_path / "cohort.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", "patient_id", "t1_pre", "label"])
        writer.writerows([f"C{k}", f"P{k}", "scan.nrrd", k % 2] for k in range(CASES))
    return tmp_path / "cohort.csv"


def test_the_tables_of_three_runs(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    assert table1.train_all(EXPERIMENTS, cohort, out, PLACES) == {}
    results = table1.tabulate(out, list(EXPERIMENTS))
    found = {row["run"]: row for row in results["methods"]}
    assert results["reference"] == "harm3_fusion" and [row["run"] for row in results["comparisons"]] == ["clam", "no_ldvae"]

    # what each costs, and what masks did
    assert found["clam"]["parameters"] < found["no_ldvae"]["parameters"] < found["harm3_fusion"]["parameters"]
    assert all(row["train_seconds"] > 0 and row["inference_ms"] > 0 and row["peak_mib"] > 100 for row in found.values())
    assert {name: row["masks"] for name, row in found.items()} == {
        "clam": [],
        "harm3_fusion": ["losses", "crop"],
        "no_ldvae": ["crop"],
    }
    assert found["clam"]["localisation"] is None and found["harm3_fusion"]["localisation"]["cases"] == CASES
    assert 0 < found["no_ldvae"]["localisation"]["random"] < 1

    # every input a model can do without was withheld, from the cases that did not train it
    assert sorted(read_run(out / "runs" / "harm3_fusion").without) == sorted([*MRI, "slide"])
    assert read_run(out / "runs" / "clam").without == {}
    assert {row["input"] for row in results["missing_inputs"] if row["run"] == "no_ldvae"} == {*MRI, "slide"}

    check_page((out / "table1.html").read_text(encoding="utf-8"))
    with open(out / "tables.csv", newline="") as file:
        lines = {(row["table"], row["row"], row["metric"]): row["value"] for row in csv.DictReader(file)}
    assert int(lines["methods", "clam", "parameters"]) == found["clam"]["parameters"]
    assert json.loads((out / "results.json").read_text())["methods"][0]["run"] == "clam"
    assert (out / "report.html").is_file()

    # again: nothing is trained, nothing measured
    monkeypatch.setattr(train, "train", None)
    monkeypatch.setattr(cost, "measure", None)
    assert table1.train_all(EXPERIMENTS, cohort, out, PLACES) == {}


def check_page(html: str) -> None:
    methods, _, parts = html.partition("What each part adds")
    assert "3D-CNN" not in methods and "0.8272†" in methods and "0.7020†" in methods  # printed of what is there, impossible ones marked
    assert "0.7541" in methods and "0.7649" in parts.partition("What it costs")[0]  # its two F1, each in its table
    assert parts.count("0.6829") == 2 and "0.6829†" not in parts  # once in the table, once among all printed rows
    rows = {*published.METHODS.values(), *published.ABLATIONS.values()}
    assert len(re.findall("impossible†", html)) == sum(row.impossible for row in rows)
    assert "losses" in methods and "http" not in html.replace("http-equiv", "")


def test_every_seed_has_folds_and_weights_of_its_own(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, rows = tmp_path / "out", {name: EXPERIMENTS[name] for name in ("clam", "harm3_fusion")}
    experiments = table1.with_seeds(rows, 2)
    assert list(experiments) == ["clam", "harm3_fusion", "seed-1/clam", "seed-1/harm3_fusion"]
    assert table1.train_all(experiments, cohort, out, PLACES) == {}
    first, second = read_run(out / "runs" / "clam"), read_run(out / "runs" / "seed-1" / "clam")
    assert first.case_id == second.case_id and first.fold != second.fold
    assert not (out / "runs" / "seed-1" / "clam" / "measured.json").exists()  # it would cost the same

    results = table1.tabulate(out, list(experiments))
    assert [row["run"] for row in results["runs"]] == ["clam", "harm3_fusion"]
    assert [(row["run"], row["seeds"]) for row in results["seeds"]] == [("clam", [0, 1]), ("harm3_fusion", [0, 1])]
    html = (out / "table1.html").read_text(encoding="utf-8")
    assert "Over 2 seeds" in html and f"{results['seeds'][0]['auc_mean']:.3f} ±" in html
    assert "seeds,clam,auc_spread" in (out / "tables.csv").read_text(encoding="utf-8")


def test_a_method_that_fails_does_not_stop_the_others(cohort: Path, tmp_path: Path) -> None:
    name, experiment = EXPERIMENTS["clam"]
    broken = dataclasses.replace(experiment, mask_epochs=1)  # there are masks, and CLAM does not use them
    failed = table1.train_all({"clam": (name, broken), "no_ldvae": EXPERIMENTS["no_ldvae"]}, cohort, tmp_path / "out", PLACES)
    assert list(failed) == ["clam"] and "have none or the model does not use them" in failed["clam"]
    assert table1.tabulate(tmp_path / "out", ["no_ldvae"])["reference"] == "no_ldvae"


def test_rows_share_a_trunk_that_takes_the_steps_they_ask_for(cohort: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(OURS.config, trunk=dataclasses.replace(OURS.config.trunk, focus=True))
    full = dataclasses.replace(OURS, config=config, epochs=3, mask_epochs=1, mask_steps=5, frozen_epochs=2)
    rows = {
        name: dataclasses.replace(full, config=dataclasses.replace(config, ldvae=on)) for name, on in (("full", True), ("no_ldvae", False))
    }
    assert not table1.train_all({name: (f"of:{name}", row) for name, row in rows.items()}, cohort, tmp_path / "out", PLACES)
    assert len(list((tmp_path / "out" / "cache" / "trunks").glob("*.safetensors"))) == FOLDS
    for name in rows:
        log = read_log(tmp_path / "out" / "runs" / name / "fold-0")
        told = read_header(tmp_path / "out" / "runs" / name / "fold-0" / "checkpoint.safetensors")["training"]
        on_masks = sum("bce" not in line for line in log)
        assert on_masks == math.ceil(5 / math.ceil(told["cases"]["train"] / OURS.batch_size))
        assert len(log) == told["epochs"] == on_masks + 2


def test_every_row_of_the_paper_has_its_experiment() -> None:
    from Training.experiment import find

    for variant in table1.VARIANTS:
        found = table1.methods(variant)
        assert set(found) == {*published.METHODS, *published.ABLATIONS}
        experiments = [find(name) for name in found.values()]
        assert len({(e.seed, e.folds, e.preprocessing, e.tile_encoder) for e in experiments}) == 1  # the same folds and tensors
    assert list(table1.chosen(["clam", "mine=harm3_fusion:compact"], "compact")) == ["clam", "mine"]
    with pytest.raises(BadOption, match="no method 'resnet'"):
        table1.chosen(["resnet"], "compact")
    with pytest.raises(BadOption, match="has a slash"):
        table1.chosen(["a/b=harm3_fusion:compact"], "compact")


def test_what_the_paper_prints_is_checked() -> None:
    rows = {**published.METHODS, **published.ABLATIONS, "ours": published.METHODS["harm3_fusion"]}
    possible = {name for name, row in rows.items() if not row.impossible}
    assert possible == {"m2fusion", "no_ldvae", "row4_concat", "row4_mri_only"}
    assert published.METHODS["m2fusion"].implied_accuracy == pytest.approx(0.7130, abs=5e-5)
    assert not any(row.fits for row in rows.values())
    assert published.Printed("x", 0.7, (122 * 0.5 + 285 * 0.8) / 407, 0.6, 0.5, 0.8).fits
    assert published.METHODS["c3d"].implied_accuracy == pytest.approx(0.5862, abs=5e-5)


def test_a_retrained_run_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / "fold-0").mkdir()
    checkpoint = tmp_path / "fold-0" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"one")
    (tmp_path / "measured.json").write_text(json.dumps({"of": cost._hashes(tmp_path), "parameters": 3}))
    assert cost.measured(tmp_path)["parameters"] == 3
    checkpoint.write_bytes(b"two")
    assert cost.measured(tmp_path) == {}
