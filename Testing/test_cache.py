"""When the cache prepares a case, and when it does not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from HARM3Logic import volume
from HARM3Logic.case import MRI, Case
from HARM3Logic.clinical import Schema, Variable
from HARM3Logic.errors import BadCohort, OutOfMemory
from HARM3Logic.preprocessing import Preprocessing
from Training import cache as caching

SMALL = Preprocessing(shape=(4, 8, 8))


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    found = []
    for name in ("a", "b"):
        file = tmp_path / f"{name}.nii.gz"
        file.write_bytes(name.encode())
        found.append(Case.from_files(name, {"t1_pre": file}))
    return found


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cases that were prepared, in order; what preparing writes is an empty tensor."""
    seen: list[str] = []

    def write(missing, *_):
        for case, path in missing:
            seen.append(case.case_id)
            save_file({"mri": torch.zeros(1)}, path)
        return []

    monkeypatch.setattr(caching, "_prepare_all", write)
    return seen


def built(cases, folder, settings=SMALL):
    return caching.build(cases, settings, "default", folder)


def test_a_case_is_prepared_once(cases, prepared, tmp_path):
    first, second = built(cases, tmp_path / "cache"), built(cases, tmp_path / "cache")
    assert prepared == ["a", "b"]
    assert first.paths == second.paths


def test_a_missing_file_is_told_with_its_case(cases, prepared, tmp_path):
    cases[1].inputs["t1_pre"][0].unlink()
    with pytest.raises(BadCohort, match=r"case 'b', t1_pre: .*b\.nii\.gz"):
        built(cases, tmp_path / "cache")


def test_a_process_that_the_system_ends_is_told(cases, tmp_path, monkeypatch):
    def ended(*_):
        raise BrokenProcessPool

    monkeypatch.setattr(caching, "ProcessPoolExecutor", ended)
    with pytest.raises(OutOfMemory, match="one of 2 processes that prepare cases was ended"):
        caching.build(cases, SMALL, "", tmp_path / "cache", wanted=("t1_pre",), workers=4)


def test_a_changed_file_concerns_its_case_alone(cases, prepared, tmp_path):
    built(cases, tmp_path / "cache")
    cases[1].inputs["t1_pre"][0].write_bytes(b"other")
    built(cases, tmp_path / "cache")
    assert prepared == ["a", "b", "b"]


def test_other_settings_or_code_concern_every_case(cases, prepared, tmp_path, monkeypatch):
    built(cases, tmp_path / "cache")
    built(cases, tmp_path / "cache", dataclasses.replace(SMALL, percentiles=(1.0, 99.0)))
    monkeypatch.setattr(caching, "code_of_prepare", lambda: "other")
    built(cases, tmp_path / "cache")
    assert prepared == ["a", "b"] * 3


def test_a_file_cut_short_is_prepared_again(cases, prepared, tmp_path):
    path = built(cases, tmp_path / "cache").paths[0]
    path.write_bytes(path.read_bytes()[:20])
    built(cases, tmp_path / "cache")
    assert prepared == ["a", "b", "a"]


def test_the_usual_inputs_keep_the_key_they_always_had(cases, prepared, tmp_path):
    from HARM3Logic.tile_encoder import TileEncoder

    weights = TileEncoder.load("default").weights_sha256
    salt = json.dumps([caching.code_of_prepare(), dataclasses.asdict(SMALL), weights, False], sort_keys=True)
    digest = hashlib.sha256(salt.encode())
    digest.update(f"t1_pre {volume.sha256(cases[0].inputs['t1_pre'][0])} None".encode())
    found = built(cases, tmp_path / "cache").paths[0]
    assert found.name == f"a.{digest.hexdigest()[:16]}.safetensors"


def test_what_is_wanted_decides_what_is_read_and_when_it_is_read_again(tmp_path, prepared, monkeypatch):
    def no_encoder(*_):
        raise AssertionError("no slide is wanted")

    monkeypatch.setattr(caching.TileEncoder, "load", no_encoder)
    for name in ("ct", "t1_pre", "tumour_ct"):
        (tmp_path / f"{name}.nii.gz").write_bytes(name.encode())
    inputs = {name: tmp_path / f"{name}.nii.gz" for name in ("ct", "t1_pre", "tumour_ct")}
    case = Case.from_files("a", inputs, clinical={"age": "61"})
    schema = Schema((Variable("age", "numeric"),))

    def path(case=case, wanted=("ct", "clinical"), **options):
        return caching.build([case], SMALL, "default", tmp_path / "cache", wanted=wanted, **{"schema": schema, **options}).paths[0]

    first = path()
    assert path() == path(wanted=("clinical", "ct")) == first and prepared == ["a"]
    changes = [
        path(dataclasses.replace(case, clinical={"age": "62"})),
        path(dataclasses.replace(case, tumour_point_mm=(1.0, 2.0, 3.0))),
        path(schema=Schema((Variable("age", "numeric", range=(0, 120)),))),
        path(wanted=("ct",)),
        path(wanted=("t1_pre",)),
    ]
    assert len({first, *changes}) == 6
    one = path(wanted=("ct",))
    assert path(dataclasses.replace(case, clinical={"age": "62"}), wanted=("ct",)) == one  # not read, no matter
    assert path(wanted=("t1_pre", "t2_post")) == path(wanted=MRI)  # all volumes are read with any
    inputs["ct"].write_bytes(b"other")
    assert path() != first and path(wanted=("clinical",)) == path(wanted=("clinical",))


def test_ct_and_clinical_values_are_kept_as_they_are_prepared(tmp_path_factory, tmp_path):
    from HARM3Logic.clinical import gist
    from HARM3Logic.cohort import read_cohort
    from HARM3Logic.phantom_gist import write_phantoms
    from HARM3Logic.prepare import prepare

    write_phantoms(tmp_path / "gist", 1, seed=4, workers=0)
    cases = read_cohort(tmp_path / "gist" / "cohort.csv")
    settings = Preprocessing(shape=(8, 16, 16), spacing_mm=(8.0, 6.0, 6.0))

    def built(read):
        wanted = ("ct", "clinical")
        return caching.build(cases, settings, "default", tmp_path / "cache", wanted=wanted, read=read, schema=gist(), workers=1)[0]

    cached, row = built(None), built(("clinical",))
    fresh = prepare(cases[0], settings, wanted=("ct", "clinical"), schema=gist())
    for name in ("ct", "clinical", "clinical_mask"):
        assert torch.equal(getattr(cached, name), getattr(fresh, name)), name
    assert cached.mri is None and cached.tumour_ct is None and cached.label == cases[0].label
    assert row.ct is None and torch.equal(row.clinical, fresh.clinical)  # of the same file
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_code_is_all_that_makes_the_tensors_and_nothing_else():
    names = {name.removeprefix("HARM3Logic.") for name in caching.sources("HARM3Logic.prepare")}
    assert {"prepare", "mri", "volume", "registration", "tissue", "tile_encoder", "tile_reader"} <= names
    assert not names & {"report", "predict", "checkpoint", "models", "worker"}
