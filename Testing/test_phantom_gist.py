"""CT phantoms: the same for one seed, their truth drawn into image and row, and known in part where values are missing."""

import csv
from pathlib import Path

import numpy as np
import pytest

from HARM3Logic import clinical, phantom_ct, phantom_gist, volume
from HARM3Logic.__main__ import main
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.phantom import sigmoid
from HARM3Logic.phantom_gist import Factors, Prior

SCHEMA = clinical.gist()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gist")
    phantom_gist.write_phantoms(folder, 5, seed=3, crops=1, workers=0)
    return folder


def truth(folder: Path) -> list[dict[str, str]]:
    with open(folder / "truth.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def factors(texture=0.0, size=0.0, kit="exon 11", pdgfra="wild type", mitotic_index=3) -> Factors:
    return Factors(texture, size, kit, pdgfra, mitotic_index)


def test_a_phantom_depends_on_its_seed_and_number_alone(cohort, tmp_path):
    told = []
    phantom_gist.write_phantoms(tmp_path, 1, seed=3, crops=1, workers=0, on_progress=told.append)
    assert told == [1, 2]
    assert truth(tmp_path)[0] == truth(cohort)[0]
    for name in ("GI-3-0000/ct.nii.gz", "GI-3-0000/tumour_ct.nii.gz", "crops/CR-3-0000.nii.gz"):
        assert np.array_equal(volume.read(tmp_path / name).array, volume.read(cohort / name).array)
    assert (tmp_path / "GI-3-0000/case.json").read_bytes() == (cohort / "GI-3-0000/case.json").read_bytes()


def test_case_file_cohort_and_truth_agree(cohort):
    for case, row in zip(read_cohort(cohort / "cohort.csv"), truth(cohort), strict=True):
        own = Case.read(cohort / case.case_id / "case.json")
        assert (own.label, own.centre, own.clinical, own.inputs) == (case.label, case.centre, case.clinical, dict(case.inputs))
        assert own.label == int(row["label"])
        values, known = SCHEMA.read(case.clinical)
        assert len(values) == len(case.clinical) == 12
        assert known.any()
        assert not SCHEMA.strangers(case.clinical)
        assert case.clinical["kit"] in (row["kit"], "")
    assert {case.centre for case in read_cohort(cohort / "cohort.csv")} == {"centre-1", "centre-2", "centre-3", "centre-4"}


def test_a_crop_is_of_nobody_in_the_cohort_and_has_the_tumour_in_its_middle(cohort):
    with open(cohort / "crops/crops.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["patient_id"] not in {case.patient_id for case in read_cohort(cohort / "cohort.csv")}
    assert "label" not in row
    crop = volume.read(cohort / "crops" / row["file"])
    assert max(crop.grid.extent_mm) <= 2 * phantom_gist.CROP_MM + 2 * max(crop.grid.spacing_mm)


@pytest.mark.parametrize("texture", [-1.0, 1.0])
@pytest.mark.parametrize("size", [-1.0, 1.0])
def test_the_image_shows_texture_and_size(texture, size):
    drawn = factors(texture, size)
    quiet = phantom_ct.Scanner(0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    images = phantom_ct.render(drawn.diameter_mm, drawn.spread_hu, quiet, np.random.default_rng(0), "small")
    mask, grid = images["tumour_ct"].array > 0, images["ct"].grid
    inner = images["ct"].array[mask]
    assert (6 * mask.sum() * np.prod(grid.spacing_mm) / np.pi) ** (1 / 3) == pytest.approx(drawn.diameter_mm, rel=0.06)
    spread = np.subtract(*np.percentile(inner, (75, 25))) / 1.349  # of the middle: the soft edge does not count
    assert spread == pytest.approx(drawn.spread_hu, abs=2 + 0.2 * drawn.spread_hu)


def test_scanners_shift_the_image_and_not_the_air():
    means = []
    for scanner in phantom_ct.CENTRES[:2]:
        images = phantom_ct.render(90.0, 20.0, scanner, np.random.default_rng(0), "small")
        assert images["ct"].array.min() < -950
        means.append(images["ct"].array[images["tumour_ct"].array > 0].mean())
    assert means[1] - means[0] == pytest.approx(10 + 0.05 * (means[0] - phantom_ct.MUSCLE), abs=2)


def test_the_mutation_turns_what_texture_means():
    def effect(kit: str) -> float:
        return factors(1.0, kit=kit).evidence - factors(-1.0, kit=kit).evidence

    assert effect("exon 11") == pytest.approx(6.0)
    assert effect("exon 9") == effect("wild type") == pytest.approx(-6.0)


def test_effect_sizes_are_frozen():
    """Another value needs another PHANTOM_VERSION."""
    assert phantom_gist.PHANTOM_VERSION == 1
    assert Prior(phantom_gist.RESPONDERS).offset == 0.282


def test_what_is_known_bounds_the_probability():
    prior = Prior(0.545)
    drawn = factors(texture=0.9, size=0.5)
    everything = {"texture", "size", "kit", "pdgfra", "mitotic_index"}
    assert prior.probability(drawn, everything) == pytest.approx(float(sigmoid(np.array(drawn.evidence + prior.offset))))
    assert prior.probability(drawn, ()) == pytest.approx(0.545, abs=0.05)
    kit = {name: prior.probability(factors(0.9, kit=name), everything - {"kit"}) for name in ("exon 11", "wild type")}
    assert kit["exon 11"] == kit["wild type"]  # the probability from the rest cannot see the hidden gene
    assert prior.probability(factors(0.9), everything) > 0.9 > kit["exon 11"]


def test_both_together_know_more_than_either():
    prior, rng = Prior(0.545), np.random.default_rng(1)
    drawn = [phantom_gist.draw_factors(rng) for _ in range(400)]
    chance = sigmoid(np.array([f.evidence for f in drawn]) + prior.offset)
    label = (rng.random(len(drawn)) < chance).astype(int)
    row = {"kit", "pdgfra", "mitotic_index", "size"}
    found = [
        phantom_gist.auc(np.array([prior.probability(f, known) for f in drawn]), label)
        for known in ({*row, *phantom_gist.IMAGE}, row, phantom_gist.IMAGE)
    ]
    assert found[0] > found[1] + 0.1
    assert found[0] > found[2] + 0.1
    assert min(found) > 0.55


def test_the_share_of_missing_values_is_the_centres():
    rng = np.random.default_rng(0)
    rows = [phantom_gist.draw_row(factors(), 1.5, rng) for _ in range(600)]
    assert np.mean([not row["kit"] for row in rows]) == pytest.approx(0.225, abs=0.06)
    assert np.mean([not row["age"] for row in rows]) == pytest.approx(0.075, abs=0.04)


def test_the_command_prints_the_best_auc_of_each_centre(tmp_path, capsys):
    assert main(["phantom", "--kind", "gist", "--cases", "1", "--crops", "1", "--seed", "1", "--out", str(tmp_path / "a")]) == 0
    told = capsys.readouterr().out
    assert "1 crops for pretraining" in told
    assert "best possible AUC centre-1 " in told
    assert main(["phantom", "--cases", "1", "--crops", "1", "--seed", "1", "--out", str(tmp_path / "b")]) == 2


def test_impossible_options_are_named(tmp_path):
    with pytest.raises(BadOption, match="0 cases and 0 crops"):
        phantom_gist.write_phantoms(tmp_path / "o", 0, seed=1)
    assert not (tmp_path / "o").exists()
