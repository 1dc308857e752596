"""A run from start to finish: killed and started again, calibrated, told apart from a run of other settings."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort, BadOption, HARM3Error
from Training import plan, side_by_side, train
from Training.experiment import Augmentation, Experiment
from Training.side_by_side import Job

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 14
SCRIPT = f"""
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from test_loop import Cache, Case, FABRIC, Split, small, write_case
from Training.train import finish

cases, out = Path(sys.argv[1]), Path(sys.argv[2])
cache = Cache([cases / f"c{{k}}.safetensors" for k in range(12)], [Case(f"HN-{{k}}", {{}}, label=k % 2) for k in range(12)])
finish(small(epochs={EPOCHS}), "x", cache, Split((0, 1, 2, 3, 4, 5), (6, 7, 8), (9, 10, 11), 0), out, FABRIC)
"""


def start(cases: Path, out: Path) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'Testing'}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(cases), str(out)], env=environment, stdout=subprocess.DEVNULL)


def epochs(out: Path) -> int:
    log = out / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    from test_loop import write_case

    for k in range(12):
        write_case(tmp_path, k)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = start(tmp_path, unbroken)
    for wanted in (1, 5):
        process = start(tmp_path, broken)
        while epochs(broken) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.01 * wanted)  # wherever it is by then
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert wanted <= epochs(broken) < EPOCHS and not (broken / "checkpoint.safetensors").exists()
    assert start(tmp_path, broken).wait(300) == 0
    assert whole.wait(300) == 0
    assert (broken / "predictions.csv").read_bytes() == (unbroken / "predictions.csv").read_bytes()
    assert (unbroken / "predictions.csv").read_text().count("judge") == 3
    plain = [
        [{**json.loads(line), "seconds": 0} for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (broken, unbroken)
    ]
    assert plain[0] == plain[1] and len(plain[0]) == EPOCHS


def cohort(**changes: Any) -> list[Case]:
    return [replace(Case(f"C{k}", {}, patient_id=f"P{k}", centre="ABC"[k % 3], label=k // 3 % 2), **changes) for k in range(90)]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Runs without preparing and training; what would have been."""
    found: list[Any] = []
    monkeypatch.setattr(plan, "read_cohort", lambda path: cohort())
    monkeypatch.setattr(plan.caching, "build", lambda cases, *a, **k: cases)
    monkeypatch.setattr(plan.start, "inputs", lambda experiment: ("slide",))

    def finish(experiment: Any, name: str, cases: Any, split: Any, out: Path, fabric: Any, on_epoch: Any, taught: Path | None) -> None:
        found.append((cases, split, out, on_epoch, taught))
        out.mkdir(exist_ok=True)

    monkeypatch.setattr(train, "finish", finish)
    return found


def run(out: Path, experiment: Experiment | None = None, every: bool = False, **options: Any) -> None:
    train.run(experiment or Experiment("m", None), "x", out / "c.csv", out, "cpu", every=every, **options)


@pytest.mark.parametrize("every", [False, True])
def test_external_centres_are_not_even_prepared(done: list[Any], tmp_path: Path, every: bool) -> None:
    run(tmp_path, every=every, external=("B",))
    for cases, split, *_ in done:
        assert {case.centre for case in cases} == {"A", "C"}
        parts = (*split.train, *split.choose, *split.judge)
        assert sorted(parts) == list(range(60))
    assert len(done) == (1 if every else 5)
    assert json.loads((tmp_path / "experiment.json").read_text())["external"] == ["B"]
    with pytest.raises(BadOption, match=r"other settings \(external\)"):
        run(tmp_path)
    with pytest.raises(BadCohort, match="'Z' is not in the cohort"):
        run(tmp_path / "other", external=("Z",))


def test_runs_share_taught_trunks_where_they_share_a_cache(done: list[Any], tmp_path: Path) -> None:
    run(tmp_path / "alone")
    assert {found[4] for found in done} == {None}
    done.clear()
    run(tmp_path / "shared", cache=tmp_path / "cache")
    assert {found[4] for found in done} == {tmp_path / "cache" / "trunks"}


def test_folds_side_by_side_are_the_same_folds(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def in_processes(jobs: Sequence[Job], places: Sequence[tuple[str, int]]) -> dict[str, str]:
        asked.append(len(places))
        sent = [pickle.loads(pickle.dumps(job)) for job in jobs]  # as a new process gets them
        return {job.name: reason for job in sent if (reason := side_by_side._reason(job, "cpu"))}

    monkeypatch.setattr(side_by_side, "run", in_processes)
    run(tmp_path / "alone")
    alone = [(split, out.name) for _, split, out, *_ in done]
    done.clear()
    run(tmp_path / "together", at_once=2)
    assert asked == [2] and [(split, out.name) for _, split, out, *_ in done] == alone and len(alone) == 5
    run(tmp_path / "whole", every=True, at_once=8)
    assert asked == [2, 1]  # no more processes than there is work


def test_a_fold_that_fails_side_by_side_is_named(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side, "run", lambda jobs, places: {jobs[1].name: "too large."})
    with pytest.raises(HARM3Error, match=r"1 of 5 folds cannot be trained: fold-1: too large\."):
        run(tmp_path, at_once=2)


def test_processes_of_a_group_do_not_start_processes_too(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "open_fabric", lambda device: SimpleNamespace(world_size=2))
    with pytest.raises(BadOption, match="--jobs is 3 in a group of 2 processes"):
        run(tmp_path, at_once=3)


def test_a_leak_check_shuffles_and_says_so(done: list[Any], tmp_path: Path) -> None:
    run(tmp_path, shuffle=4)
    cases = done[0][0]
    assert [case.label for case in cases] != [case.label for case in cohort()]
    assert json.loads((tmp_path / "experiment.json").read_text())["shuffle_labels"] == 4
    with pytest.raises(BadOption, match=r"other settings \(shuffle_labels\)"):
        run(tmp_path)


def test_a_centre_can_be_a_fold(done: list[Any], tmp_path: Path) -> None:
    run(tmp_path, by_centre=True)
    assert [{cases[k].centre for k in split.judge} for cases, split, *_ in done] == [{"A"}, {"B"}, {"C"}]


def test_a_folder_of_other_settings_is_refused_but_a_new_setting_has_its_default(done: list[Any], tmp_path: Path) -> None:
    run(tmp_path)
    path = tmp_path / "experiment.json"
    written = json.loads(path.read_text())
    older = {key: value for key, value in written.items() if key not in ("micro_batch", "by_centre", "schema", "lora", "pretrained")}
    older["augmentation"] = {key: value for key, value in older["augmentation"].items() if key != "drop_slide"}
    path.write_text(json.dumps(older))
    run(tmp_path)  # written before these existed
    assert json.loads(path.read_text()) == written
    with pytest.raises(BadOption, match=r"other settings \(epochs\)"):
        run(tmp_path, Experiment("m", None, epochs=3))
    with pytest.raises(BadOption, match=r"other settings \(augmentation\)"):
        run(tmp_path, Experiment("m", None, augmentation=Augmentation(flip=0.0)))


def test_a_run_goes_on_with_its_own_cases_only(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, external=("B",))
    written = (tmp_path / "cases.csv").read_text()
    assert written.count("\n") == 61 and "C1," not in written  # what is locked is not named among who was learned from
    run(tmp_path, external=("B",))
    monkeypatch.setattr(
        plan, "read_cohort", lambda path: [replace(case, label=1 - case.label) if k == 3 else case for k, case in enumerate(cohort())]
    )
    with pytest.raises(BadOption, match=r"holds a run of other cases, patients, centres or labels \('C3' differs\)"):
        run(tmp_path, external=("B",))
    assert (tmp_path / "cases.csv").read_text() == written


def test_a_start_that_failed_does_not_hold_the_folder(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise BadCohort("a file is missing.", "Mend it.")

    with monkeypatch.context() as within, pytest.raises(BadCohort, match="missing"):
        within.setattr(plan.caching, "build", broken)
        run(tmp_path)
    run(tmp_path, Experiment("m", None, epochs=3))  # other settings, and nothing was trained with the first
    assert json.loads((tmp_path / "experiment.json").read_text())["epochs"] == 3
    with pytest.raises(BadOption, match=r"other settings \(epochs\)"):
        run(tmp_path)


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_no_process_at_all_is_refused(tmp_path: Path, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["harm3_fusion", "--cohort", str(tmp_path / "c.csv"), "--out", str(tmp_path), "--workers", workers]
    assert train.main(asked) == 2
    assert f"--workers is {workers}; 1 or more" in capsys.readouterr().err


def test_tensorboard_is_asked_for_and_never_required(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "without")
    for _, _, _, told, _ in done:
        told({"epoch": 4})  # goes nowhere
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BadOption, match="not installed"):
        run(tmp_path / "missing", tensorboard=True)
    written: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = Path(folder).name

        def add_scalar(self, *scalar: Any) -> None:
            written.append((self.folder, *scalar))

        def flush(self) -> None:
            written.append(("flushed",))

    stub = ModuleType("torch.utils.tensorboard")
    stub.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stub)
    done.clear()
    run(tmp_path / "with", every=True, tensorboard=True)
    done[0][3]({"epoch": 4, "bce": 0.5})
    assert written == [("whole", "bce", 0.5, 4), ("flushed",)]


def test_calibration_and_threshold_come_from_what_it_is_given() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 4000)
    logit = 4 * (label - 0.5) + rng.normal(0, 2, 4000) + 3  # shifted and, at that spread, too sure by nothing: the slope stays 1
    calibration, rule = train.calibrate(label, logit)
    assert calibration.slope == pytest.approx(1.0, abs=0.1)
    assert calibration.intercept == pytest.approx(-3.0, abs=0.3)
    assert rule.threshold == pytest.approx(0.5, abs=0.1)


def test_the_zone_is_where_the_threshold_may_lie() -> None:
    rng = np.random.default_rng(1)
    zones = {}
    for count in (40, 4000):
        label = np.arange(count) % 2
        _, rule = train.calibrate(label, 4 * (label - 0.5) + rng.normal(0, 2, count))
        zones[count] = rule.zone
        assert rule.zone[0] <= rule.threshold <= rule.zone[1]
        assert (rule(rule.zone[0] - 0.01), rule(rule.threshold), rule(rule.zone[1] + 0.01)) == ("non-responder", "uncertain", "responder")
    assert np.diff(zones[4000]) < 0.5 * np.diff(zones[40])
    label = np.arange(60) % 2
    _, clear = train.calibrate(label, np.where(label == 1, 4.0, -6.0) + rng.normal(0, 0.3, 60))
    assert clear.zone[0] > 0.02, "a case far below every responder is no doubtful one"


def test_fewer_labels_seed_folds_and_epochs_can_be_asked_for(done: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "find", lambda name: Experiment("m", None, epochs=10, mask_epochs=4))
    asked = ["x", "--cohort", str(tmp_path / "c.csv"), "--out", str(tmp_path), "--device", "cpu"]
    assert train.main([*asked, "--labels", "20", "--seed", "5", "--folds", "2", "--epochs", "5"]) == 0
    assert len(done) == 2
    for cases, split, *_ in done:
        assert len({cases[k].patient_id or cases[k].case_id for k in (*split.train, *split.choose)}) == 20
        assert len(split.judge) == len(cases) / 2
    written = json.loads((tmp_path / "experiment.json").read_text())
    assert [written[name] for name in ("labels", "seed", "folds", "epochs", "mask_epochs")] == [20, 5, 2, 5, 2]
    assert train.main([*asked, "--labels", "3"]) == 2
