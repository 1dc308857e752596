"""The benchmarks measure what users run, so they must run as the program changes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_features import draw, save_tiny


def benchmark(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", Path(__file__).parent / f"benchmarks/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def slides() -> Any:
    return benchmark("slides")


def test_every_way_of_reading_a_slide_is_measured_and_gives_the_same_features(
    slides: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = save_tiny(tmp_path / "tiny.safetensors")
    found = {}
    for mode in slides.MODES:
        asked = argparse.Namespace(
            slide=draw(tmp_path / "s.tif"), encoder=str(encoder), mpp=None, tiles=6, device="cpu", precision="float32", repeats=1,
            mode=mode, features=tmp_path / f"{mode}.npy",
        )  # fmt: skip
        found[mode] = slides.measure(asked)
    assert {row["tiles"] for row in found.values()} == {6} and all(row["rate"] > 0 for row in found.values())
    assert np.load(tmp_path / "ours.npy").shape == (6, 12)
    slides.report(found, slides.cosine(tmp_path))
    assert "equal bit for bit" in capsys.readouterr().out


def test_a_folder_of_dicom_files_is_measured_too(slides: Any, tmp_path: Path, data: Path) -> None:
    encoder = save_tiny(tmp_path / "tiny.safetensors")
    asked = argparse.Namespace(
        slide=data / "data/slides/cmu1_small_region_dicom", encoder=str(encoder), mpp=None, tiles=4, device="cpu", precision="float32",
        repeats=1, mode="naive", features=tmp_path / "naive.npy",
    )  # fmt: skip
    assert slides.measure(asked)["tiles"] == 4 and np.load(tmp_path / "naive.npy").shape == (4, 12)


def test_the_training_loop_is_measured_against_the_same_steps_on_resident_tensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = benchmark("train")
    experiment = dataclasses.replace(train.find("harm3_fusion:compact"), mask_epochs=0, frozen_epochs=0, epochs=1, batch_size=2)
    train.speed(experiment, train.write_cases(tmp_path, experiment, 4, 5), "cpu", 1)
    loop, resident, share = (float(line.split()[n]) for line, n in zip(capsys.readouterr().out.splitlines(), (1, 2, 3), strict=True))
    assert share == pytest.approx(loop / resident, abs=0.02 + 0.02 * share) and loop > 0


@pytest.mark.slow
def test_preparing_is_measured_against_a_plain_loop_that_keeps_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = benchmark("train")
    train.preparing(train.find("harm3_fusion:compact"), tmp_path, 2, 2, "cpu")
    assert "cache over loop" in capsys.readouterr().out
    for k in range(2):
        (kept,) = (tmp_path / "cache").glob(f"C{k}.*.safetensors")
        ours, naive = load_file(kept), load_file(tmp_path / f"C{k}.safetensors")
        assert ours.keys() == naive.keys()
        assert all(torch.allclose(ours[name].float(), naive[name].float(), atol=0.05) for name in ours)
