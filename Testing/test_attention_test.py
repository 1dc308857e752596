"""What attention tells of two groups: tests against their definitions, what was planted is found, each fold's own model is asked."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import false_discovery_control, mannwhitneyu, norm
from sklearn.metrics import roc_auc_score
from test_loop import FABRIC
from test_start import SCHEMA, small, write_cache

from HARM3Logic import checkpoint
from HARM3Logic.errors import BadOption
from Training import attended, attention_test, feed, metrics
from Training.attended import attend
from Training.attention_stats import LEVEL, auc_drop, contrasts, recovery, relative, shares, stratified
from Training.attention_test import judge, planted_report
from Training.cache import Cache
from Training.folds import Split
from Training.metrics import Estimate
from Training.runs import read_run
from Training.train import finish

NAMES = tuple("abcdefghij")
PLANTED = ("b", "e", "h")
ONE = ["fold-0"] * 1000


def cohort(seed: int, effect: float, cases: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Attention (rows sum to 1) that responders turn to the planted variables, by so many spreads of a score."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, cases)
    scores = rng.normal(size=(cases, len(NAMES)))
    scores[:, [NAMES.index(name) for name in PLANTED]] += effect * (label[:, None] * 2 - 1) * np.array([1, -1, 1])
    weights = np.exp(scores)
    return weights / weights.sum(axis=1, keepdims=True), label


def test_each_variable_is_tested_as_scipy_does_and_corrected_over_all():
    attention, label = cohort(3, 0.2)
    attention[::3, 4] = attention[0, 4]  # ties
    rows = contrasts(attention, label, NAMES, ONE[:200])
    groups = [(attention[label == 1, v], attention[label == 0, v]) for v in range(len(NAMES))]
    wanted = [mannwhitneyu(*pair, method="asymptotic", use_continuity=False) for pair in groups]
    np.testing.assert_allclose([row.p for row in rows], [w.pvalue for w in wanted])
    np.testing.assert_allclose([row.q for row in rows], false_discovery_control([w.pvalue for w in wanted]))
    np.testing.assert_allclose([row.larger for row in rows], [roc_auc_score(label, attention[:, v]) for v in range(len(NAMES))])
    assert rows[0].responders == pytest.approx(attention[label == 1, 0].mean()) != rows[0].others


def test_groups_are_compared_within_folds_since_each_model_attends_in_its_own_way():
    """Most responders are in a fold whose model gives more to all: no difference of groups, and none is found."""
    rng = np.random.default_rng(1)
    label = np.repeat([1, 1, 1, 0, 1, 0, 0, 0], 50)
    fold = np.repeat(["fold-0", "fold-1"], 200)
    values = rng.normal(size=(400, 3)) + 2.0 * (fold == "fold-0")[:, None]
    values[:, 2] += 0.6 * label
    larger, z = stratified(values, label, fold)
    assert np.abs(z[:2]).max() < 2 and np.abs(larger[:2] - 0.5).max() < 0.06
    assert z[2] > 3 and larger[2] == pytest.approx(
        np.mean([roc_auc_score(label[fold == name], values[fold == name, 2]) for name in ("fold-0", "fold-1")])
    )
    assert mannwhitneyu(values[label == 1, 0], values[label == 0, 0]).pvalue < 1e-6  # all at once, the models' difference passes for one
    alone = np.where(fold == "fold-0", 1, label)  # a fold without the other group says nothing
    np.testing.assert_allclose(stratified(values, alone, fold)[1], stratified(values[200:], alone[200:], fold[200:])[1])


def test_what_all_get_alike_is_not_found_and_an_empty_group_is_refused():
    attention, label = cohort(0, 1.0)
    attention[:, 0] = 0.1
    first = contrasts(attention, label, NAMES, ONE[:200])[0]
    assert (first.p, first.larger, first.found) == (1.0, 0.5, False)
    with pytest.raises(ValueError, match="0 responders"):
        contrasts(attention, np.zeros_like(label), NAMES, ONE[:200])
    attention[3, 3] = np.nan
    with pytest.raises(ValueError, match="cannot be compared"):
        contrasts(attention, label, NAMES, ONE[:200])


def found_of(seed: int, effect: float) -> list[str]:
    attention, label = cohort(seed, effect)
    return [name for name, q in zip(NAMES, relative(attention, label, ONE[:200]), strict=True) if q <= LEVEL]


def test_what_was_planted_is_found_and_little_else():
    told = recovery([found_of(seed, 0.5) for seed in range(10)], PLANTED, NAMES)
    assert told.sensitivity.value >= 0.95 and told.sensitivity.low > 0.8
    assert told.false_share <= 0.1
    assert sum(len(found_of(seed, 0.0)) for seed in range(10)) <= 2


def test_shares_pull_at_each_other_and_their_ratios_do_not():
    """Two variables that gain strongly take from all others; the raw shares then tell of variables nobody planted."""
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    scores = rng.normal(size=(400, len(NAMES)))
    scores[:, :2] += 2 * label[:, None]
    attention = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert {row.name for row in contrasts(attention, label, NAMES, ONE[:400]) if row.found} == set(NAMES)
    q = relative(attention, label, ONE[:400])
    assert q[:2].max() < 1e-6 and q[2:].min() > LEVEL
    ratio = np.log(attention[:, :1] / attention[:, 1:2])  # of two variables alone, the ratio is all there is
    p = mannwhitneyu(ratio[label == 1], ratio[label == 0], method="asymptotic", use_continuity=False).pvalue[0]
    np.testing.assert_allclose(relative(attention[:, :2], label, ONE[:400]), min(1, 1.5 * p))


def test_recovery_counts_what_it_says():
    told = recovery([["b", "e"], ["b", "a", "c"], []], PLANTED, NAMES)
    assert told.sensitivity.value == pytest.approx(3 / 9)
    assert told.false_discoveries == (0, 2, 0)
    assert told.false_share == pytest.approx((0 + 2 / 3 + 0) / 3)
    assert told.found == {**dict.fromkeys(NAMES, 0), "a": 1, "b": 2, "c": 1, "e": 1}
    with pytest.raises(ValueError, match="'z'"):
        recovery([["b"]], ["z"], NAMES)


def test_the_loss_of_auc_is_the_difference_of_areas_of_the_same_cases():
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    score = label + rng.normal(size=60)
    changed = np.stack([rng.permutation(score) for _ in range(7)])
    drop, p = auc_drop(label, score, changed)
    assert drop.value == pytest.approx(roc_auc_score(label, score) - np.mean([roc_auc_score(label, row) for row in changed]))
    assert 0 < drop.low < drop.value < drop.high and p < 0.025
    weights = metrics.resample(label, None, 50, 0)
    drawn = [
        roc_auc_score(label, score, sample_weight=w) - np.mean([roc_auc_score(label, row, sample_weight=w) for row in changed])
        for w in weights
    ]
    few, p = auc_drop(label, score, changed, draws=50)
    assert p == pytest.approx(norm.sf(few.value / np.std(drawn, ddof=1)))
    np.testing.assert_allclose((few.low, few.high), np.quantile(drawn, metrics.LEVEL))
    same, p = auc_drop(label, score, score[None])
    assert (same.value, same.low, same.high, p) == (0, 0, 0, 1)


def test_shares_are_of_what_falls():
    drops = {"ct": Estimate(0.3, 0, 1), "clinical": Estimate(0.1, 0, 1), "slide": Estimate(-0.2, -1, 0)}
    assert shares(drops) == pytest.approx({"ct": 0.75, "clinical": 0.25, "slide": 0})
    assert all(math.isnan(share) for share in shares({"ct": Estimate(-0.1, -1, 0)}).values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two folds, their models of different seeds; the label is the second variable."""
    folder = tmp_path_factory.mktemp("trained")
    made = write_cache(folder / "made", [50.0 + k for k in range(24)])
    (folder / "run" / "cache").mkdir(parents=True)
    paths = [path.rename(folder / "run" / "cache" / f"GI-{k}.{k:016x}.safetensors") for k, path in enumerate(made.paths)]
    cache = Cache(paths, made.cases)
    for number, judged in enumerate((range(12), range(12, 24))):
        rest = [k for k in range(24) if k not in judged]
        split = Split(tuple(rest[:8]), tuple(rest[8:]), tuple(judged), number)
        recipe = small(epochs=12, seed=number)
        if number:  # one that also reads numbers off its tokens
            trunk = dataclasses.replace(recipe.config.trunk, readings=2)
            recipe = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, trunk=trunk, wide=1.0))
        finish(recipe, "x", cache, split, folder / "run" / f"fold-{number}", FABRIC)
    return folder / "run"


def test_each_case_is_seen_by_the_model_that_judged_it(trained: Path):
    run = read_run(trained)
    seen = attend(run, trained / "cache", repeats=3)
    assert seen.names == ("age", "sex", "stage") and seen.shuffled.shape == (3, 3, 24)
    np.testing.assert_allclose(seen.probability, run.probability, atol=1e-5)
    np.testing.assert_allclose(seen.attention.sum(axis=1), 1, atol=1e-5)
    assert seen.known.sum(axis=0).tolist() == [23, 24, 23]
    row = run.case_id.index("GI-14")
    loaded = checkpoint.load(trained / run.fold[row] / "checkpoint.safetensors")
    tensors = attended.prepared_cases(run, np.array([row]), trained / "cache")
    alone = loaded.model(feed._batch(tensors, feed.groups([0], 1)[0], lambda b, _: b)[0])
    np.testing.assert_allclose(alone.attention["clinical"].detach().mean(dim=1)[0], seen.attention[row], atol=1e-5)


def test_the_variable_that_decides_costs_most_and_one_that_is_shuffled_moves_nothing_else(trained: Path):
    run = read_run(trained)
    results = judge(run, attend(run, trained / "cache", repeats=6), draws=200)
    drops = {row["name"]: row["drop"].value for row in results["variables"]}
    assert results["auc"].value > 0.9 and max(drops, key=lambda name: drops[name]) == "sex" and drops["sex"] > 0.2
    assert {row["input"] for row in results["inputs"]} == {"ct", "clinical"}
    lost = {row["input"]: row["drop"].value for row in results["inputs"]}
    assert lost["clinical"] == pytest.approx(roc_auc_score(run.label, run.probability) - roc_auc_score(run.label, run.without["clinical"]))


def test_an_image_goes_through_the_trunk_once(trained: Path, monkeypatch: pytest.MonkeyPatch):
    from HARM3Logic.models.vit3d import ViTTrunk

    seen, forward = [0], ViTTrunk.forward

    def counting(self: ViTTrunk, ct: torch.Tensor) -> torch.Tensor:
        seen[0] += len(ct)
        return forward(self, ct)

    monkeypatch.setattr(ViTTrunk, "forward", counting)
    attend(read_run(trained), trained / "cache", repeats=2)
    assert seen[0] == 24


def test_tensors_of_other_settings_are_refused(trained: Path, tmp_path: Path):
    run = read_run(trained)
    with pytest.raises(BadOption, match="holds case 'GI-0' 0 times"):
        attend(run, tmp_path, repeats=1)
    paths = sorted((trained / "cache").iterdir())
    for path, other in zip(paths, paths[1:] + paths[:1], strict=True):  # everyone has the next one's values
        (tmp_path / path.name).write_bytes(other.read_bytes())
    with pytest.raises(BadOption, match="its model gives what the cache holds"):
        attend(run, tmp_path, repeats=1)


def test_the_command_writes_page_table_and_what_was_planted(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert attention_test.main([str(trained), "--out", str(tmp_path), "--repeats", "2", "--device", "cpu", "--planted", "sex"]) == 0
    page = (tmp_path / "attention.html").read_text()
    assert "Attention is not importance" in page and "AUC lost" in page
    assert ">Sex</td>" in page and ">sex" not in page and ">Clinical values</td>" in page  # as a reader knows them
    rows = list(csv.DictReader((tmp_path / "attention.csv").open()))
    assert [row["name"] for row in rows] == ["age", "sex", "stage"] and {"p", "q", "drop_low"} <= set(rows[0])
    assert json.loads((tmp_path / "attention.json").read_text())["variables"][1]["q"] == pytest.approx(float(rows[1]["q"]))
    told = json.loads((tmp_path / "planted.json").read_text())
    assert told["planted"] == ["sex"] and told["shuffling"]["cohorts"] == 1
    assert "sensitivity" in capsys.readouterr().out
    assert attention_test.main([str(trained), "--out", str(tmp_path), "--repeats", "1", "--planted", "height"]) == 2
    assert "'height' is no variable" in capsys.readouterr().err


def test_runs_of_several_tables_keep_apart(tmp_path: Path):
    runs = [tmp_path / f"seed-{k}" / "runs" / "cross" for k in (1, 2)]
    assert attention_test.names_of(runs) == ["seed-1-runs-cross", "seed-2-runs-cross"]
    assert attention_test.names_of([runs[0], tmp_path / "clinical"]) == ["cross", "clinical"]
    with pytest.raises(BadOption, match="named twice"):
        attention_test.names_of([runs[0], runs[0]])
    (tmp_path / "seed-1" / "cache").mkdir(parents=True)
    assert attention_test.cache_of(runs[0]) == tmp_path / "seed-1" / "cache"
    assert attention_test.cache_of(runs[1]) == runs[1] / "cache"
    (runs[0] / "cache").mkdir(parents=True)
    assert attention_test.cache_of(runs[0]) == runs[0] / "cache"


def test_a_planted_report_takes_both_ways_apart():
    rows = [{"name": name, "found": name in "ab", "found_relative": name in "b", "found_drop": name in "bc"} for name in NAMES]
    told = planted_report([{"run": "x", "variables": rows}], PLANTED)
    assert told["attention"]["false_discoveries"] == (1,) and told["attention"]["found"]["b"] == 1
    assert told["relative"]["false_discoveries"] == (0,)
    assert told["shuffling"]["found"]["c"] == 1 and told["shuffling"]["found"]["a"] == 0


def test_the_schema_of_these_tests_is_that_of_the_models(trained: Path):
    assert checkpoint.load(trained / "fold-0" / "checkpoint.safetensors").card.clinical == SCHEMA
