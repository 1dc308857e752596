"""When the cache prepares a case, and when it does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from HARM3Logic.case import Case
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


def test_the_code_is_all_that_makes_the_tensors_and_nothing_else():
    names = {name.removeprefix("HARM3Logic.") for name in caching.sources()}
    assert {"prepare", "mri", "volume", "registration", "tissue", "tile_encoder", "tile_reader"} <= names
    assert not names & {"report", "predict", "checkpoint", "models", "worker"}
