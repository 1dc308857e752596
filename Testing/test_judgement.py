"""What is said of a trained fold: with every input and without each, by nothing that the judged cases could have told."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_evaluate import write_run
from test_loop import FABRIC, small, write_case

from HARM3Logic import checkpoint
from HARM3Logic.batch import Batch, collate
from HARM3Logic.case import MRI, Case
from HARM3Logic.models import MODELS
from Training import evaluate, judgement, page, plan, train
from Training.cache import Cache
from Training.folds import Split
from Training.runs import WITHOUT, read_run

COUNT = 12
SPLIT = Split(train=(0, 1, 2, 3, 4, 5), choose=(6, 7, 8), judge=(9, 10, 11), number=0)
CPU = torch.device("cpu")


def write_cache(folder: Path, strange: bool = False) -> Cache:
    """Twelve cases; the judged ones as they are or beyond recognition, with the other label."""
    folder.mkdir()
    paths = [write_case(folder, k) for k in range(COUNT)]
    for k in SPLIT.judge if strange else ():
        tensors = load_file(paths[k])
        tensors["mri"], tensors["tiles"] = 50 * tensors["mri"] + 7, 100 * tensors["tiles"] - 30
        save_file(tensors, paths[k])
    labels = [1 - k % 2 if strange and k in SPLIT.judge else k % 2 for k in range(COUNT)]
    return Cache(paths, [Case(f"HN-{k}", {}, label=label) for k, label in enumerate(labels)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Cache]:
    """The same fold twice, apart from the judged cases."""
    folder = tmp_path_factory.mktemp("fold")
    plain, strange = write_cache(folder / "plain-cache"), write_cache(folder / "strange-cache", strange=True)
    train.finish(small(), "x", plain, SPLIT, folder / "plain" / "fold-0", FABRIC)
    train.finish(small(), "x", strange, SPLIT, folder / "strange" / "fold-0", FABRIC)
    return folder / "plain" / "fold-0", folder / "strange" / "fold-0", plain


def read(path: Path, role: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if row["role"] == role]


def test_nothing_of_the_judged_cases_is_in_a_model(finished: tuple[Path, Path, Cache]) -> None:
    """A scaler, calibration, threshold or stopping rule fitted on all cases would differ."""
    one, two = (checkpoint.load(folder / "checkpoint.safetensors") for folder in finished[:2])
    weights = two.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.model.state_dict().items())  # running statistics too
    assert (one.card.calibration, one.card.threshold) == (two.card.calibration, two.card.threshold)
    for name, reference in one.familiarity.items():
        assert np.array_equal(reference.mean, two.familiarity[name].mean) and reference.limit == two.familiarity[name].limit
    assert read(finished[0] / "predictions.csv", "choose") == read(finished[1] / "predictions.csv", "choose")
    assert read(finished[0] / "predictions.csv", "judge") != read(finished[1] / "predictions.csv", "judge")


def test_each_input_is_withheld_from_each_judged_case(finished: tuple[Path, Path, Cache]) -> None:
    folder, _, cache = finished
    loaded = checkpoint.load(folder / "checkpoint.safetensors")
    assert sorted(path.stem.removeprefix(WITHOUT) for path in folder.glob(f"{WITHOUT}*.csv")) == sorted([*MRI, "slide"])
    batch = collate([cache[k] for k in SPLIT.judge])
    mask = batch.mri_mask.clone()
    mask[:, 1, 0] = False
    with torch.inference_mode():
        wanted = loaded.card.calibration(loaded.model(dataclasses.replace(batch, mri_mask=mask)).logit.double().numpy())
    found = read(folder / f"{WITHOUT}t1_post.csv", "judge")
    assert [row["case_id"] for row in found] == [f"HN-{k}" for k in SPLIT.judge]
    assert [float(row["probability"]) for row in found] == pytest.approx(wanted.tolist(), abs=1e-5)
    whole = [float(row["probability"]) for row in read(folder / "predictions.csv", "judge")]
    assert [float(row["probability"]) for row in found] != pytest.approx(whole, abs=1e-5)
    assert sorted(read_run(folder.parent).without) == sorted([*MRI, "slide"])  # Training.evaluate takes them


def test_a_fold_finished_before_there_were_such_tables_gets_them(finished: tuple[Path, Path, Cache]) -> None:
    folder, _, cache = finished
    before = {path: path.read_text() for path in folder.glob(f"{WITHOUT}*.csv")}
    for path in before:
        path.unlink()
    train.finish(small(), "x", cache, SPLIT, folder, FABRIC)
    again = {path: path.read_text() for path in folder.glob(f"{WITHOUT}*.csv")}
    assert again.keys() == before.keys()
    for path, text in before.items():
        probabilities = [[float(line.split(",")[5]) for line in each.splitlines()[1:]] for each in (text, again[path])]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-6)


def test_what_a_case_lacks_or_cannot_do_without_changes_nothing(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "cache")
    for row, shown in ((0, [True, False, False, False]), (1, [True, True, True, False])):
        tensors = load_file(cache.paths[row])
        save_file({**tensors, "mri_mask": torch.tensor(shown).view(2, 2)}, cache.paths[row])
    torch.manual_seed(0)
    model = MODELS["harm3_fusion"](small().config).eval()
    with torch.inference_mode():
        own = np.array([float(model(collate([cache[k]])).logit) for k in (0, 1)])
    found = judgement.logits_without(model, cache, (0, 1), own, CPU)
    kept = {name: (values == own).tolist() for name, values in found.items()}
    assert kept == {
        "t1_pre": [True, False],
        "t2_pre": [True, False],
        "t1_post": [True, False],
        "slide": [False, False],
    }  # no t2_post at all


def test_a_model_of_one_input_has_no_such_table(tmp_path: Path) -> None:
    class Slide(torch.nn.Module):
        config = None

        def inputs(self) -> tuple[str, ...]:
            return ("slide",)

        def forward(self, batch: Batch) -> None:
            raise AssertionError("nothing is withheld")

    assert judgement.logits_without(Slide(), write_cache(tmp_path / "cache"), (0, 1), np.zeros(2), CPU) == {}


def test_shuffled_labels_are_the_same_labels_elsewhere() -> None:
    cases = [Case(f"C{k}", {}, label=None if k == 5 else int(k < 30)) for k in range(90)]
    found = plan.shuffled(cases, 1)
    assert [case.case_id for case in found] == [case.case_id for case in cases]
    assert sum(case.label or 0 for case in found) == 29 and found[5].label is None
    moved = [case.label for case in found] != [case.label for case in cases]
    assert moved and found == plan.shuffled(cases, 1) and found != plan.shuffled(cases, 2)
    assert plan.shuffled(cases, None) == tuple(cases)


def test_a_report_says_that_labels_were_shuffled(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    run = read_run(folder)
    assert "Leak check" not in page.render(evaluate.evaluate([run], run, draws=20), [run], run)
    settings = json.loads((folder / "experiment.json").read_text())
    (folder / "experiment.json").write_text(json.dumps({**settings, "shuffle_labels": 3}))
    run = read_run(folder)
    html = page.render(evaluate.evaluate([run], run, draws=20), [run], run)
    assert "Leak check: the labels were dealt out anew (seed 3)" in html
    assert "suspect a leak" in html  # these scores do tell the labels apart
