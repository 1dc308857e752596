"""The benchmarks measure what users run, so they must run as the program changes."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_features import draw, save_tiny


@pytest.fixture(scope="module")
def slides() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_slides", Path(__file__).parent / "benchmarks/slides.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
