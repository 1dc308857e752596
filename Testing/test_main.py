"""The command line: one clear line for everything a user can get wrong, and results for everything right."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from safetensors.numpy import save_file

from HARM3Logic import checkpoint
from HARM3Logic.__main__ import main
from HARM3Logic.prediction import NO_TISSUE
from HARM3Logic.tile_encoder import TileEncoder

Make = Callable[[Path, Path, Path], list[str]]  # empty folder, folder of a phantom, checkpoint -> arguments


@pytest.fixture(autouse=True, scope="module")
def one_encoder():
    """Load the tile encoder once for the whole file; loading is tested elsewhere."""
    kept, load = {}, TileEncoder.load

    def remembered(*arguments: str) -> TileEncoder:
        if arguments not in kept:
            kept[arguments] = load(*arguments)
        return kept[arguments]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileEncoder, "load", remembered)
        yield


def predict(folder: Path, model: Path, *arguments: str | Path, **files: Path) -> list[str]:
    given = [str(a) for name, path in files.items() for a in (f"--{name.replace('_', '-')}", path)]
    return ["predict", *given, "--checkpoint", str(model), "--device", "cpu", "--out", str(folder / "out"), *map(str, arguments)]


def image(folder: Path, array: np.ndarray, name: str = "x.nrrd") -> Path:
    """A volume of 4 x 3 x 3 mm voxels."""
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((3.0, 3.0, 4.0)[: made.GetDimension()] + (1.0,) * (made.GetDimension() - 3))
    sitk.WriteImage(made, str(folder / name))
    return folder / name


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 500, shape).astype(np.int16)


def no_json(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "case.json").write_text("t1_pre: x.nrrd")
    return predict(folder, model, folder / "case.json")


def text_volume(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "x.nii.gz").write_text("patient, age\nA, 61\n")
    return predict(folder, model, t1_pre=folder / "x.nii.gz")


def cut_volume(folder: Path, case: Path, model: Path) -> list[str]:
    content = (case / "t1_pre.nii.gz").read_bytes()
    (folder / "x.nii.gz").write_bytes(content[: len(content) // 2])
    return predict(folder, model, t1_pre=folder / "x.nii.gz")


def frames(folder: Path, case: Path, model: Path) -> list[str]:
    made = sitk.JoinSeries([sitk.GetImageFromArray(some(8, 16, 16))] * 3)
    sitk.WriteImage(made, str(folder / "x.nrrd"))
    return predict(folder, model, t1_pre=folder / "x.nrrd")


def nan_voxels(folder: Path, case: Path, model: Path) -> list[str]:
    array = some(8, 16, 16).astype(np.float32)
    array[3, 4, 5:8] = np.nan
    return predict(folder, model, t1_pre=image(folder, array))


def far_apart(folder: Path, case: Path, model: Path) -> list[str]:
    moved = sitk.ReadImage(str(case / "t2_pre.nii.gz"))
    moved.SetOrigin(np.add(moved.GetOrigin(), (0, 1000, 0)).tolist())
    sitk.WriteImage(moved, str(folder / "x.nrrd"))
    return predict(folder, model, t1_pre=case / "t1_pre.nii.gz", t2_pre=folder / "x.nrrd")


def empty_mask(folder: Path, case: Path, model: Path) -> list[str]:
    mask = sitk.ReadImage(str(case / "tumour_pre.nii.gz")) * 0
    sitk.WriteImage(mask, str(folder / "m.nrrd"))
    return predict(folder, model, t1_pre=case / "t1_pre.nii.gz", tumour_pre=folder / "m.nrrd")


def with_slide(folder: Path, case: Path, model: Path, slide: Path) -> list[str]:
    return predict(folder, model, t1_pre=case / "t1_pre.nii.gz", slide=slide)


def white_slide(folder: Path, case: Path, model: Path) -> list[str]:
    white = np.full((600, 800, 3), 244, np.uint8)
    tifffile.imwrite(
        folder / "s.tif", white, tile=(256, 256), photometric="rgb", compression="zlib", resolution=(2e4, 2e4), resolutionunit=3
    )
    return with_slide(folder, case, model, folder / "s.tif")


def slide_without_scale(folder: Path, case: Path, model: Path) -> list[str]:
    tifffile.imwrite(folder / "s.tif", some(600, 800, 3).astype(np.uint8), tile=(256, 256), photometric="rgb")
    return with_slide(folder, case, model, folder / "s.tif")


def cut_slide(folder: Path, case: Path, model: Path) -> list[str]:
    content = (case / "slide.tif").read_bytes()
    (folder / "s.tif").write_bytes(content[: len(content) // 3])
    return with_slide(folder, case, model, folder / "s.tif")


def text_slide(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "s.svs").write_text("no slide")
    return with_slide(folder, case, model, folder / "s.svs")


def no_card(folder: Path, case: Path, model: Path) -> list[str]:
    save_file({"w": np.zeros(3, np.float32)}, folder / "m.safetensors")
    return predict(folder, folder / "m.safetensors", case / "case.json")


def no_safetensors(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "m.pt").write_bytes(b"PK\x03\x04" + bytes(100))
    return predict(folder, folder / "m.pt", case / "case.json")


def unknown_model(folder: Path, case: Path, model: Path) -> list[str]:
    loaded = checkpoint.load(model)
    checkpoint.save(folder / "m.safetensors", loaded.model, dataclasses.replace(loaded.card, model="hypernet"))
    return predict(folder, folder / "m.safetensors", case / "case.json")


def other_encoder(folder: Path, case: Path, model: Path) -> list[str]:
    loaded = checkpoint.load(model)
    named = {**loaded.card.tile_encoder, "weights_sha256": "beef" * 16}
    checkpoint.save(folder / "m.safetensors", loaded.model, dataclasses.replace(loaded.card, tile_encoder=named))
    return predict(folder, folder / "m.safetensors", case / "case.json")


def tampered(folder: Path, case: Path, model: Path) -> list[str]:
    content = bytearray(model.read_bytes())
    content[-100] ^= 1  # within the last tensor
    (folder / "m.safetensors").write_bytes(content)
    return predict(folder, folder / "m.safetensors", case / "case.json")


def file_for_a_folder(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "out").write_text("")
    return predict(folder, model, case / "case.json")


def batch(folder: Path, case: Path, model: Path, text: str, *arguments: str) -> list[str]:
    (folder / "cohort.csv").write_text(text)
    out = str(folder / "out")
    return ["batch", str(folder / "cohort.csv"), "--checkpoint", str(model), "--device", "cpu", "--workers", "1", "--out", out, *arguments]


def info_of_text(folder: Path, case: Path, model: Path) -> list[str]:
    (folder / "m.safetensors").write_text("not one")
    return ["info", str(folder / "m.safetensors")]


BAD: dict[str, tuple[Make, tuple[str, ...]]] = {
    "no case": (lambda f, c, m: predict(f, m, f / "none.json"), ("none.json", "No such file")),
    "no json": (no_json, ("case.json", "not JSON")),
    "no file": (lambda f, c, m: predict(f, m, t1_pre=f / "none.nrrd"), ("none.nrrd", "no volume")),
    "nothing given": (lambda f, c, m: predict(f, m), ("neither",)),
    "case and files": (lambda f, c, m: predict(f, m, c / "case.json", t1_pre=c / "t1_pre.nii.gz"), ("both",)),
    "only a slide": (lambda f, c, m: predict(f, m, slide=c / "slide.tif"), ("no MRI volume", "t1_pre")),
    "text volume": (text_volume, ("x.nii.gz", "cannot be read as an image")),
    "cut volume": (cut_volume, ("x.nii.gz", "cannot be read as an image")),
    "flat image": (lambda f, c, m: predict(f, m, t1_pre=image(f, some(32, 32))), ("x.nrrd", "2D (32 x 32 voxels)")),
    "frames": (frames, ("x.nrrd", "4D (16 x 16 x 8 x 3 voxels)")),
    "nan voxels": (nan_voxels, ("x.nrrd", "3 of 2048 voxels", "NaN")),
    "constant": (lambda f, c, m: predict(f, m, t1_pre=image(f, np.full((8, 16, 16), 7, np.int16))), ("x.nrrd", "every voxel", "is 7")),
    "noise": (lambda f, c, m: predict(f, m, t1_pre=image(f, some(16, 32, 32))), ("t1_pre", "only noise")),
    "far apart": (far_apart, ("t2_pre", "mm apart")),
    "empty mask": (empty_mask, ("m.nrrd", "no voxel set")),
    "white slide": (white_slide, ("s.tif", "tissue")),
    "slide without scale": (slide_without_scale, ("s.tif", "µm per pixel", "--mpp")),
    "cut slide": (cut_slide, ("s.tif", "cut short")),
    "text slide": (text_slide, ("s.svs", "not a slide")),
    "no checkpoint": (lambda f, c, m: predict(f, f / "none.safetensors", c / "case.json"), ("none.safetensors", "not there")),
    "no card": (no_card, ("m.safetensors", "without a HARM3 card")),
    "no safetensors": (no_safetensors, ("m.pt", "not a readable .safetensors")),
    "unknown model": (unknown_model, ("m.safetensors", "'hypernet'", "harm3_fusion")),
    "other encoder": (other_encoder, ("beefbeef", "tile encoder")),
    "tampered": (tampered, ("m.safetensors", "was changed")),
    "unknown device": (lambda f, c, m: [*predict(f, m, c / "case.json"), "--device", "gpu0"], ("'gpu0'", "cuda:<number>")),
    "absent device": (lambda f, c, m: [*predict(f, m, c / "case.json"), "--device", "cuda:99"], ("'cuda:99'", "not on this machine")),
    "file for a folder": (file_for_a_folder, ("out", "cannot be written")),
    "unknown column": (lambda f, c, m: batch(f, c, m, "case_id,t1_before\nA,x.nrrd\n"), ("cohort.csv", "'t1_before'", "t1_pre")),
    "batch of nothing": (lambda f, c, m: batch(f, c, f / "none.safetensors", "case_id,t1_pre\nA,x.nrrd\n"), ("none.safetensors",)),
    "batch device": (lambda f, c, m: batch(f, c, m, "case_id,t1_pre\nA,x.nrrd\n", "--device", "tpu"), ("'tpu'",)),
    "info of text": (info_of_text, ("m.safetensors", "not a readable .safetensors")),
    "phantom of none": (lambda f, c, m: ["phantom", "--cases", "0", "--seed", "1", "--out", str(f / "out")], ("0 cases",)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_one_line(
    phantom: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    make, words = BAD[name]
    arguments = make(tmp_path, phantom.parent / "PH-11-0000", tiny_checkpoint)
    capfd.readouterr()
    code = main(arguments)
    printed, told = capfd.readouterr()
    assert code == 2, told
    lines = told.splitlines()
    assert len(lines) == 1, told
    assert lines[0].startswith("harm3: ")
    assert all(word in lines[0] for word in words), lines[0]
    assert lines[0].count(". ") >= 1  # what is wrong, then what to do
    assert lines[0].endswith(".")
    assert not printed
    left = [path for path in tmp_path.glob("out/**/*") if path.is_file() and path.name != NO_TISSUE]
    assert not left  # nothing that looks like a result


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_told(phantom: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o500)
    assert main(predict(tmp_path, tiny_checkpoint, phantom.parent / "PH-11-0000/case.json")) == 2
    assert "cannot be written" in capfd.readouterr().err


def test_a_prediction_from_files(phantom: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = phantom.parent / "PH-11-0000"
    assert main(predict(tmp_path, tiny_checkpoint, "--case-id", "HN-1", t1_pre=case / "t1_pre.nii.gz", slide=case / "slide.tif")) == 0
    printed, _ = capfd.readouterr()
    values = json.loads((tmp_path / "out/prediction.json").read_text(encoding="utf-8"))
    assert values["case_id"] == "HN-1"
    assert 0 < values["probability"] < 1
    assert [name for name, found in values["inputs"].items() if found["used"]] == ["t1_pre", "slide"]
    assert f"HN-1: probability of pCR {values['probability']:.0%}" in printed
    assert "synthetic phantoms" in printed
    assert (tmp_path / "out/report.html").stat().st_size > 10_000


def test_mpp_is_taken_from_the_command_line(
    phantom: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = slide_without_scale(tmp_path, phantom.parent / "PH-11-0000", tiny_checkpoint)
    assert main([*arguments, "--mpp", "40"]) == 2
    assert "is 40;" in capfd.readouterr().err


def test_batch_tells_failures_and_keeps_the_rest(
    phantom: Path, tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    case = phantom.parent / "PH-11-0000"
    shutil.copy(case / "t1_pre.nii.gz", tmp_path / "a.nii.gz")
    assert main(batch(tmp_path, case, tiny_checkpoint, "case_id,t1_pre\nA,none.nrrd\nB,a.nii.gz\n")) == 2
    printed, told = capfd.readouterr()
    assert printed.startswith("1 of 2 cases predicted")
    assert len(told.splitlines()) == 1
    assert told.startswith("harm3: A: ")
    assert "none.nrrd" in told


def test_info_shows_the_card(tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_checkpoint)]) == 0
    printed, _ = capfd.readouterr()
    card, _ = json.JSONDecoder().raw_decode(printed)
    assert card["model"] == "harm3_fusion"
    assert checkpoint.file_sha256(tiny_checkpoint) in printed


def test_phantom_writes_a_cohort(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--cases", "1", "--seed", "4", "--out", str(tmp_path / "p"), "--responders", "0.99"]) == 0
    assert "1 synthetic cases" in capfd.readouterr().out
    assert (tmp_path / "p/cohort.csv").is_file()


def test_our_own_bugs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(checkpoint, "read_card", broken)
    assert main(["info", str(tmp_path)]) == 1
    told = capfd.readouterr().err
    assert "Traceback" in told
    assert "bug of ours" in told
