"""Splits: a patient never on two sides, classes in even shares, the cohort's own folds kept."""

from dataclasses import replace

import numpy as np
import pytest

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCohort, BadOption
from Training.folds import Split, fewer, folds, whole


def cohort(patients: int = 60, each: int = 2, share: float = 0.3, **fields) -> list[Case]:
    """Patients with several cases of one label, shuffled."""
    rng = np.random.default_rng(0)
    labels = (np.arange(patients) < share * patients).astype(int)
    cases = [Case(f"{p}-{k}", {}, patient_id=f"P{p}", label=int(labels[p]), **fields) for p in range(patients) for k in range(each)]
    return [cases[k] for k in rng.permutation(len(cases))]


def patients(cases: list[Case], rows: tuple[int, ...]) -> set[str]:
    return {cases[k].patient_id for k in rows}


def check(cases: list[Case], split: Split) -> None:
    parts = [split.train, split.choose, split.judge]
    assert sorted(sum(parts, ())) == list(range(len(cases)))  # everyone has one role
    train, choose, judge = (patients(cases, rows) for rows in parts)
    assert not train & choose
    assert not train & judge
    assert not choose & judge


def test_a_patient_has_one_role() -> None:
    cases = cohort()
    found = folds(cases, 5, seed=0)
    assert len(found) == 5
    for split in found:
        check(cases, split)
    assert sorted(k for split in found for k in split.judge) == list(range(len(cases)))  # everyone is judged once


def test_a_small_cohort_still_has_both_labels_in_every_part() -> None:
    cases = cohort(12, each=1, share=0.5)
    for split in folds(cases, 5, seed=0):
        check(cases, split)
        assert all({cases[k].label for k in rows} == {0, 1} for rows in (split.train, split.choose, split.judge))


def test_folds_that_leave_too_few_to_train_and_choose_are_refused() -> None:
    cases = [Case(str(k), {}, label=int(k < 3), fold=0 if k < 2 else 1) for k in range(8)]
    with pytest.raises(BadCohort, match="a class has 1 patient beside those who judge; one must train and one choose"):
        folds(cases, 2, seed=0)


def test_every_part_has_its_share_of_responders() -> None:
    cases = cohort(100)
    for split in folds(cases, 5, seed=0):
        for rows, size in ((split.judge, 40), (split.choose, 23), (split.train, 137)):
            assert len(rows) == pytest.approx(size, abs=6)
            assert np.mean([cases[k].label for k in rows]) == pytest.approx(0.3, abs=0.07)


def test_the_seed_decides() -> None:
    cases = cohort()
    assert folds(cases, 5, seed=1) == folds(cases, 5, seed=1) != folds(cases, 5, seed=2)


def test_a_case_without_patient_is_its_own() -> None:
    cases = [Case(f"c{k}", {}, label=k % 2) for k in range(40)]
    split = folds(cases, 4, seed=0)[0]
    assert len(split.judge) == 10


def test_the_folds_of_the_cohort_are_kept() -> None:
    cases = [Case(c.case_id, {}, patient_id=c.patient_id, label=c.label, fold=1 + int(c.patient_id[1:]) % 3) for c in cohort(90)]
    found = folds(cases, 5, seed=0)
    assert len(found) == 3
    for number, split in enumerate(found, start=1):
        check(cases, split)
        assert {cases[k].fold for k in split.judge} == {number}


def test_a_patient_in_two_given_folds_is_refused() -> None:
    cases = cohort(fold=0)
    cases[3] = Case(cases[3].case_id, {}, patient_id=cases[3].patient_id, label=cases[3].label, fold=1)
    with pytest.raises(BadCohort, match=cases[3].patient_id):
        folds(cases, 5, seed=0)


def test_folds_given_for_some_only_are_refused() -> None:
    cases = cohort(fold=0)
    cases[5] = Case(cases[5].case_id, {}, patient_id=cases[5].patient_id, label=cases[5].label)
    with pytest.raises(BadCohort, match=cases[5].case_id):
        folds(cases, 5, seed=0)


def test_a_missing_label_is_named() -> None:
    cases = cohort()
    cases[7] = Case("HN-7", {}, patient_id="P99")
    for split in (lambda: folds(cases, 5, seed=0), lambda: whole(cases, seed=0)):
        with pytest.raises(BadCohort, match="HN-7"):
            split()


def test_too_few_patients_of_a_class_are_counted() -> None:
    with pytest.raises(BadCohort, match="4 patients; 5 folds"):
        folds(cohort(40, share=0.1), 5, seed=0)  # 8 cases, but of 4 patients


def test_whole_judges_nobody() -> None:
    cases = cohort()
    split = whole(cases, seed=0)
    check(cases, split)
    assert split.judge == ()
    assert len(split.choose) == pytest.approx(0.15 * len(cases), abs=4)


def with_centres(**fields) -> list[Case]:
    """Three centres; each patient in one."""
    return [replace(c, centre="ABC"[int(c.patient_id[1:]) % 3], **fields) for c in cohort(90)]


def test_a_split_carries_the_number_of_its_fold() -> None:
    assert [split.number for split in folds(cohort(), 5, seed=0)] == [0, 1, 2, 3, 4]
    given = [replace(c, fold=(3, 7)[int(c.patient_id[1:]) % 2]) for c in cohort(90)]
    assert [split.number for split in folds(given, 5, seed=0)] == [3, 7]
    assert whole(cohort(), seed=0).number is None


def test_every_torn_patient_is_named() -> None:
    cases = cohort(fold=0)
    for k, case in enumerate(cases):
        if case.case_id in ("4-0", "9-1"):
            cases[k] = replace(case, fold=1)
    with pytest.raises(BadCohort, match="patients 'P4', 'P9' have cases in more than one fold"):
        folds(cases, 5, seed=0)


def test_each_centre_is_judged_by_a_model_that_saw_none_of_it() -> None:
    cases = with_centres()
    found = folds(cases, 5, seed=0, by_centre=True)
    assert [split.number for split in found] == [0, 1, 2]
    for split, centre in zip(found, "ABC", strict=True):
        check(cases, split)
        assert {cases[k].centre for k in split.judge} == {centre}
        assert centre not in {cases[k].centre for k in (*split.train, *split.choose)}


@pytest.mark.parametrize("by_centre", [False, True])
def test_locked_centres_are_in_no_part(by_centre: bool) -> None:
    cases = with_centres()
    for k, case in enumerate(cases):
        if case.centre == "B":
            cases[k] = replace(case, label=None)  # what is locked needs no label yet
    found = folds(cases, 5, seed=0, by_centre=by_centre, external=("B",))
    for split in (*found, whole(cases, seed=0, external=("B",))):
        used = {*split.train, *split.choose, *split.judge}
        assert {cases[k].centre for k in used} == {"A", "C"}
    judged = sorted(k for split in found for k in split.judge)
    assert judged == [k for k, case in enumerate(cases) if case.centre != "B"]  # indices of the whole cohort


def test_what_is_locked_must_exist() -> None:
    with pytest.raises(BadCohort, match="'D' is not in the cohort; it has 'A', 'B', 'C'"):
        folds(with_centres(), 5, seed=0, external=("A", "D"))


def test_a_patient_on_both_sides_of_the_lock_is_named() -> None:
    cases = with_centres()
    k = next(k for k, case in enumerate(cases) if case.case_id == "7-1")
    cases[k] = replace(cases[k], centre="C")
    with pytest.raises(BadCohort, match="patient 'P7' has"):
        folds(cases, 5, seed=0, external=("C",))
    with pytest.raises(BadCohort, match="patient 'P7' has cases in more than one centre"):
        folds(cases, 5, seed=0, by_centre=True)


def test_folds_by_centre_need_centres() -> None:
    with pytest.raises(BadCohort, match="no centre"):
        folds(cohort(), 5, seed=0, by_centre=True)
    with pytest.raises(BadCohort, match="only the centre 'A'"):
        folds(cohort(centre="A"), 5, seed=0, by_centre=True)
    with pytest.raises(BadCohort, match="a fold of its own"):
        folds(with_centres(fold=1), 5, seed=0, by_centre=True)


def test_training_takes_the_number_of_a_fold_and_not_its_place(tmp_path, monkeypatch) -> None:
    from Training import plan, train
    from Training.experiment import Experiment

    given = [replace(c, fold=(3, 7)[int(c.patient_id[1:]) % 2]) for c in cohort(90)]
    done: list[tuple[str, int | None]] = []
    monkeypatch.setattr(plan, "read_cohort", lambda path: given)
    monkeypatch.setattr(plan.caching, "build", lambda *a, **k: None)
    monkeypatch.setattr(plan.start, "inputs", lambda experiment: ("slide",))
    monkeypatch.setattr(train, "finish", lambda e, n, tensors, split, out, *rest: done.append((out.name, split.number)))
    for fold in (7, None):
        train.run(Experiment("m", None), "x", tmp_path / "c.csv", tmp_path / "run", "cpu", fold=fold)
    assert done == [("fold-7", 7), ("fold-3", 3), ("fold-7", 7)]
    with pytest.raises(BadOption, match="fold 0 does not exist; there are 3, 7"):
        train.run(Experiment("m", None), "x", tmp_path / "c.csv", tmp_path / "run", "cpu", fold=0)


def test_fewer_labels_leave_the_judges_as_they_were() -> None:
    cases = cohort(200)
    split = folds(cases, 2, seed=0)[1]
    small = fewer(split, cases, 40, seed=3)
    own = patients(cases, small.train) | patients(cases, small.choose)
    assert small.judge == split.judge and small.number == split.number
    assert len(own) == 40 and own <= patients(cases, split.train) | patients(cases, split.choose)
    assert not patients(cases, small.train) & patients(cases, small.choose)
    assert sum(cases[k].label for k in {*small.train, *small.choose}) == 2 * 12  # 30 % of 40 patients with two cases each
    assert fewer(split, cases, 40, seed=3) == small != fewer(split, cases, 40, seed=4)
    with pytest.raises(BadCohort, match="101 patients were asked for to learn from; a fold has 100"):
        fewer(split, cases, 101, seed=0)
