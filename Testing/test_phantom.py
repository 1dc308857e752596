"""Phantoms: the same for one seed, their truth drawn into the images, and nothing but the truth."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from HARM3Logic import phantom as phantoms
from HARM3Logic import phantom_mri, phantom_slide, volume
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.phantom import Factors
from HARM3Logic.slide import Slide


def truth(cohort: Path) -> list[dict[str, str]]:
    with open(cohort.parent / "truth.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_phantom_depends_on_its_seed_and_number_alone(phantom: Path, tmp_path: Path) -> None:
    told: list[int] = []
    found = phantoms.write_phantoms(tmp_path, 1, seed=11, on_progress=told.append)
    assert told == [1]
    assert found["cases"] == 1
    assert truth(tmp_path / "cohort.csv") == truth(phantom)[:1]
    for file in sorted((phantom.parent / "PH-11-0000").iterdir()):
        twin = tmp_path / "PH-11-0000" / file.name
        if file.suffix == ".gz":
            a, b = volume.read(file), volume.read(twin)
            assert a.grid == b.grid
            assert np.array_equal(a.array, b.array)
        else:
            assert file.read_bytes() == twin.read_bytes(), file.name


def test_cases_are_not_alike(phantom: Path) -> None:
    first, second = (volume.read(case.inputs["t1_pre"][0]) for case in read_cohort(phantom))
    assert first.grid != second.grid
    assert truth(phantom)[0]["shrinkage"] != truth(phantom)[1]["shrinkage"]


def test_cohort_and_case_file_say_the_same(phantom: Path) -> None:
    for case, row in zip(read_cohort(phantom), truth(phantom), strict=True):
        own = Case.read(phantom.parent / case.case_id / "case.json")
        assert own.label == case.label == int(row["label"])
        assert own.inputs == dict(case.inputs)
        assert all(path.is_file() for paths in case.inputs.values() for path in paths)


def test_every_folder_says_that_it_is_synthetic(phantom: Path) -> None:
    assert phantoms.NOTICE in (phantom.parent / "README.txt").read_text()
    assert phantoms.NOTICE in (phantom.parent / "PH-11-0000/phantom.json").read_text()


def test_masks_shrink_as_the_truth_says(phantom: Path) -> None:
    for case, row in zip(read_cohort(phantom), truth(phantom), strict=True):
        size = {}
        for time in ("pre", "post"):
            mask = volume.read_mask(case.inputs[f"tumour_{time}"][0])
            assert mask.grid == volume.read(case.inputs[f"t1_{time}"][0]).grid  # a mask lies on its day's T1
            size[time] = mask.array.sum() * np.prod(mask.grid.spacing_mm)
        ratio = Factors(float(row["shrinkage"]), True, True, 0.0).diameter_ratio
        assert (size["post"] / size["pre"]) ** (1 / 3) == pytest.approx(ratio, rel=0.1)


def test_the_residual_mass_looks_as_the_truth_says() -> None:
    """Enhancement shows on T1 alone, water on T2 alone, and nothing else of the scene follows either."""
    scenes = {(e, b): phantom_mri.draw_scene(np.random.default_rng(5), 0.8, e, b) for e in (False, True) for b in (False, True)}
    assert len({(scene.organs, scene.tumour, scene.residual) for scene in scenes.values()}) == 1
    for (enhancing, bright), scene in scenes.items():
        t1, t2 = scene.residual_signal
        assert (t1 > (phantom_mri.ENHANCING + phantom_mri.PLAIN) / 2) == enhancing
        assert (t2 > (phantom_mri.BRIGHT + phantom_mri.DARK) / 2) == bright
    images = phantom_mri.render(scenes[True, False], np.random.default_rng(6), "small")
    inside = images["tumour_post"].array > 0.5
    body = volume.body_mask(images["t1_post"])
    t1 = images["t1_post"].array
    assert np.median(t1[inside]) > 1.5 * np.median(t1[body])  # muscle is most of the neck
    t2 = volume.resample(images["t2_post"], images["t1_post"].grid)
    assert np.median(t2[inside]) < np.median(t2[body])


def test_lymphocytes_darken_the_slide() -> None:
    def dark(lymphocytes: float) -> float:
        pixels = phantom_slide.draw_slide(np.random.default_rng(3), lymphocytes, 0.5, (300, 200))
        return float((pixels[..., 0] < 110).mean())  # haematoxylin takes the red

    assert dark(1.0) > 3 * dark(-1.0)


def test_the_slide_says_its_scale(phantom: Path) -> None:
    with Slide.open(read_cohort(phantom)[0].inputs["slide"][0]) as slide:
        assert 0.46 <= slide.mpp <= 0.5
        assert slide.width_px * slide.mpp == pytest.approx(640, abs=1)
        assert len(slide.level_downsamples) > 1


def test_the_effect_of_shrinkage_depends_on_the_slide() -> None:
    def effect(lymphocytes: float) -> float:
        return Factors(1, True, False, lymphocytes).evidence - Factors(-1, True, False, lymphocytes).evidence

    assert effect(-1) == pytest.approx(12.4)
    assert effect(1) == pytest.approx(0.4)  # dense lymphocytes: shrinkage hardly matters, so MRI alone cannot know
    viable = Factors(0, True, True, 0).evidence
    assert [Factors(0, e, b, 0).evidence - viable for e, b in ((True, False), (False, True), (False, False))] == [5.6] * 3  # both, or scar


def test_effect_sizes_are_frozen() -> None:
    """Another value needs another PHANTOM_VERSION."""
    assert phantoms.PHANTOM_VERSION == 1
    assert phantoms.offset_for(0.3) == -3.124


def test_the_share_of_responders_is_met() -> None:
    rng = np.random.default_rng(99)
    evidence = np.array([phantoms.draw_factors(rng).evidence for _ in range(20_000)])
    for share in (0.3, 0.6):
        assert phantoms.sigmoid(evidence + phantoms.offset_for(share)).mean() == pytest.approx(share, abs=0.015)


def test_auc_counts_ties_half() -> None:
    rng = np.random.default_rng(0)
    label, score = rng.integers(0, 2, 80), rng.integers(0, 6, 80) / 5
    assert phantoms.auc(score, label) == pytest.approx(roc_auc_score(label, score))
    assert np.isnan(phantoms.auc(score, np.ones(80, dtype=int)))


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"size": "huge"}, {"responders": 1.0}])
def test_impossible_options_are_named(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(BadOption) as caught:
        phantoms.write_phantoms(tmp_path / "o", **{"cases": 1, "seed": 1, **wrong})
    assert str(next(iter(wrong.values()))) in caught.value.message
    assert not (tmp_path / "o").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadOption, match="file"):
        phantoms.write_phantoms(tmp_path / "file", 1, seed=1)
