"""Facts about feature files between programs: what CLAM's and TRIDENT's code finds in ours, what we read of theirs, and the check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_features import TINY, draw, save_tiny

from HARM3Logic import feature_file
from HARM3Logic.__main__ import main
from HARM3Logic.errors import BadSlide
from HARM3Logic.tile_encoder import TileEncoder

FEATURES = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
COORDS = np.arange(10).reshape(5, 2) * 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide's features as `harm3 features --clam` writes them; the slide has 0.4 µm per pixel."""
    folder = tmp_path_factory.mktemp("clam")
    save_tiny(folder / "tiny.safetensors")
    command = ["features", draw(folder / "s.tif"), "--out", folder / "out", "--encoder", folder / "tiny.safetensors"]
    assert main([*map(str, command), "--device", "cpu", "--mpp", "0.4", "--clam"]) == 0
    return folder


def test_clams_training_finds_its_files(folder: Path) -> None:
    """As dataset_generic.Generic_MIL_Dataset reads them: pt_files/<slide>.pt, or h5_files/<slide>.h5 after load_from_h5(True)."""
    features = torch.load(folder / "out" / "pt_files" / "s.pt", weights_only=True)
    with h5py.File(folder / "out" / "h5_files" / "s.h5", "r") as file:
        own, coords = torch.from_numpy(file["features"][:]), file["coords"][:]
    assert features.dtype == torch.float32 and features.shape == (len(coords), TINY.features) and torch.equal(features, own)
    assert coords.shape == (len(features), 2) and np.issubdtype(coords.dtype, np.integer)


def test_a_second_run_writes_the_tensor_only_where_it_is_missing(folder: Path) -> None:
    tensor = folder / "out" / "pt_files" / "s.pt"
    written = tensor.stat().st_mtime_ns
    command = ["features", folder / "s.tif", "--out", folder / "out", "--encoder", folder / "tiny.safetensors", "--device", "cpu", "--clam"]
    assert main([*map(str, command), "--mpp", "0.4"]) == 0 and tensor.stat().st_mtime_ns == written
    tensor.unlink()
    assert main([*map(str, command), "--mpp", "0.4"]) == 0 and tensor.is_file()


def test_tridents_slide_encoders_find_what_they_ask_for(folder: Path) -> None:
    """As WSI.extract_slide_features reads a file: arrays, and dict(file["coords"].attrs)."""
    with h5py.File(folder / "out" / "h5_files" / "s.h5", "r") as file:
        coords, features, about = file["coords"][:], file["features"][:], dict(file["coords"].attrs)
        named = dict(file["features"].attrs)
    assert features.ndim == 2 and coords.shape == (len(features), 2) and coords.dtype == np.int64
    assert int(about["patch_size_level0"]) == about["patch_size_level0"] == 40  # 32 px of 0.5 µm on pixels of 0.4 µm
    assert (about["patch_size"], about["overlap"], about["level0_width"], about["level0_height"]) == (32, 0, 640, 480)
    assert (about["level0_magnification"], about["target_magnification"]) == (25.0, 20.0)
    assert (named["encoder"], named["name"], about["name"]) == (TINY.name, "s", "s")


def clam(path: Path) -> Path:
    """As save_hdf5 of CLAM's extract_features_fp.py: two appends, int32 coordinates, no attributes."""
    with h5py.File(path, "w") as file:
        for name, value in (("features", FEATURES), ("coords", COORDS.astype(np.int32))):
            data = file.create_dataset(name, value[:3].shape, value.dtype, maxshape=(None, value.shape[1]), chunks=(32, value.shape[1]))
            data[:] = value[:3]
            data.resize(5, axis=0)
            data[3:] = value[3:]
    return path


def trident(path: Path, kind: type = np.float16) -> Path:
    """As save_h5 of TRIDENT: one row a chunk, attributes on the arrays, None as text."""
    with h5py.File(path, "w") as file:
        for name, value in (("features", FEATURES.astype(kind)), ("coords", COORDS)):
            file.create_dataset(name, data=value, maxshape=(None, value.shape[1]), chunks=(1, value.shape[1]))
        file["features"].attrs.update({"name": "TCGA-1", "savetodir": "x", "encoder": "uni_v1"})
        file["coords"].attrs.update({"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "name": "TCGA-1"})
    return path


@pytest.mark.parametrize(("make", "tolerance"), [(clam, 0), (trident, 2e-3)])
def test_files_of_others_are_read(tmp_path: Path, make: Callable[[Path], Path], tolerance: float) -> None:
    found = feature_file.load(make(tmp_path / "x.h5"))
    assert (found.features.dtype, found.coords.dtype, found.sealed) == (np.float32, np.int64, False)
    np.testing.assert_allclose(found.features, FEATURES, atol=tolerance)
    assert np.array_equal(found.coords, COORDS)
    if make is trident:
        assert (found.about["encoder"], found.about["patch_size_level0"]) == ("uni_v1", 512)


def test_a_batch_of_one_is_a_bag(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["features"], file["coords"] = FEATURES[None], COORDS[None]
    found = feature_file.load(tmp_path / "x.h5")
    assert np.array_equal(found.features, FEATURES) and np.array_equal(found.coords, COORDS)


def test_our_own_are_read_as_they_were_written(folder: Path) -> None:
    found = feature_file.load(folder / "out" / "h5_files" / "s.h5")
    assert found.sealed and found.about["slide"] == "s.tif" and found.about["slide_mpp"] == 0.4
    assert found.about["weights_sha256"] == TileEncoder.load(folder / "tiny.safetensors").weights_sha256


def nan(file: h5py.File) -> None:
    file["features"][2, 1] = np.nan


def shorter(file: h5py.File) -> None:
    file["coords"].resize(4, axis=0)


def without(file: h5py.File) -> None:
    del file["coords"]


def none(file: h5py.File) -> None:
    file["coords"].resize(0, axis=0)
    file["features"].resize(0, axis=0)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (nan, "1 tiles whose features are not finite"),
        (shorter, r"\(5, 8\).*\(4, 2\)"),
        (without, "has no 'features' and 'coords'"),
        (none, "no tile"),
    ],
)
def test_what_is_wrong_with_a_file_of_others_is_told(tmp_path: Path, spoil: Callable[[h5py.File], None], match: str) -> None:
    path = clam(tmp_path / "x.h5")
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(BadSlide, match=match):
        feature_file.load(path)


def test_the_check_names_each_file_and_fails_for_one(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = folder / "out" / "h5_files" / "s.h5"
    assert main(["features", "--check", str(good), str(trident(tmp_path / "t.h5"))]) == 0
    one, two = capsys.readouterr().out.splitlines()
    assert all(word in one for word in (f"{good}: whole", "12 features", "encoder tiny (", "slide s.tif", "checksum holds"))
    assert all(word in two for word in ("5 tiles of 8 features", "encoder uni_v1", "slide TCGA-1", "no checksum"))
    changed, cut = tmp_path / "changed.h5", tmp_path / "cut.h5"
    changed.write_bytes(good.read_bytes())
    with h5py.File(changed, "r+") as file:
        file["features"][0, 0] += 1
    cut.write_bytes(good.read_bytes()[:3000])
    (tmp_path / ".going.h5.part").write_bytes(b"")
    names = [good, changed, cut, tmp_path / "going.h5", tmp_path / "none.h5"]
    assert main(["features", "--check", *map(str, names)]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "whole" in lines[0] and "not whole" not in lines[0] and all("not whole" in line for line in lines[1:])
    said = [
        word in line for word, line in zip(("checksum does not hold", "damaged", "not finished", "does not exist"), lines[1:], strict=True)
    ]
    assert all(said), lines


def test_a_path_alone_is_no_attribute(folder: Path) -> None:
    with h5py.File(folder / "out" / "h5_files" / "s.h5") as file:
        said = [*file.attrs.values(), *file["coords"].attrs.values(), *file["features"].attrs.values()]
    assert not any(str(folder) in str(value) for value in said)


@pytest.mark.parametrize("arguments", [[], ["--check"], ["x.svs"], ["x.svs", "--out", "o", "--stain-target", "p.png"]])
def test_what_is_missing_on_the_command_line_is_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", *arguments]) == 2
    assert capsys.readouterr().err.startswith("harm3: ")
