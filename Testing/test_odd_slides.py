"""Facts about files that are not quite what they should be: each is read as it is meant, or refused with what is truly wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from test_features import draw, save_tiny
from test_slide import BLUE_INK, PINK, glass, speckle, write_slide

from HARM3Logic.__main__ import main
from HARM3Logic.errors import BadSlide
from HARM3Logic.slide import NoTissue, Slide, TileSettings, TissueSettings, tile_grid


@pytest.mark.parametrize(("kind", "words"), [("jpeg2000", "34712"), ("webp", "50001"), ("float", "32-bit")])
def test_a_whole_file_of_a_kind_openslide_lacks_is_not_called_damaged(tmp_path: Path, kind: str, words: str) -> None:
    picture = speckle(glass(300, 300))
    how = {} if kind == "float" else {"compression": kind}
    pixels = picture.astype(np.float32) / 255 if kind == "float" else picture
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3, **how)
    with pytest.raises(BadSlide, match=f"OpenSlide cannot read .*{words}") as error, Slide.open(tmp_path / "a.tif") as slide:
        tile_grid(slide, TissueSettings(), TileSettings())
    assert "damaged" not in str(error.value) and "pyramidal TIFF" in error.value.advice


@pytest.mark.parametrize(("said", "given", "told"), [(0.5, 0.05, True), (0.5, 0.504, False), (352.0, 0.5, False), (None, 0.5, False)])
def test_a_scale_that_contradicts_the_files_own_is_told(tmp_path: Path, said: float | None, given: float, told: bool) -> None:
    path = write_slide(tmp_path / "a.tif", glass(300, 300), mpp=None if said is None else (said, said))
    with Slide.open(path, mpp=given) as slide:
        assert slide.mpp == given
        assert slide.warnings == (("its file says 0.5 µm per pixel; the 0.05 that was given is taken instead.",) if told else ())


def test_a_slide_smaller_than_a_tile_is_not_said_to_lack_tissue(tmp_path: Path) -> None:
    picture = np.full((1000, 1000, 3), PINK, np.uint8)
    with Slide.open(write_slide(tmp_path / "a.tif", picture), mpp=0.05) as slide:  # ten times too small
        with pytest.raises(BadSlide, match=r"1000 x 1000 px of 0\.05 µm, which is less than one tile") as error:
            tile_grid(slide, TissueSettings(), TileSettings())
        assert not isinstance(error.value, NoTissue) and "its file says 0.5" in error.value.advice


def test_where_ink_is_all_there_is_it_is_named(tmp_path: Path) -> None:
    picture = glass(1000, 1000)
    picture[200:400, 100:900] = BLUE_INK
    with Slide.open(write_slide(tmp_path / "a.tif", picture)) as slide, pytest.raises(NoTissue, match=r"0 % of its .* 16 % blue or green"):
        tile_grid(slide, TissueSettings(), TileSettings())


def test_a_plain_picture_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of the largest that is read takes more than a gigabyte."""
    Image.fromarray(glass(300, 400)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "convert", None)
    monkeypatch.setattr(Image.Image, "copy", None)
    Slide.open(tmp_path / "a.jpg", mpp=0.5).close()


def test_what_is_transparent_in_a_plain_picture_is_white(tmp_path: Path) -> None:
    picture = np.dstack([np.full((60, 50, 3), PINK, np.uint8), np.full((60, 50), 255, np.uint8)])
    picture[:30] = 0
    Image.fromarray(picture).save(tmp_path / "rgba.png")
    flat = Image.new("P", (50, 60), 1)
    flat.putpalette([0, 0, 0, *PINK])
    flat.paste(0, (0, 0, 50, 30))
    flat.save(tmp_path / "palette.png", transparency=0)
    for name in ("rgba", "palette"):
        with Slide.open(tmp_path / f"{name}.png", mpp=0.5) as slide:
            pixels = slide.read_region_rgb(0, 0, 0, 50, 60)
        assert (pixels[:30] == 255).all() and (pixels[30:] == PINK).all()


def test_the_command_tells_what_is_doubtful_of_a_slide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "tiny.safetensors")
    command = ["features", draw(tmp_path / "s.tif"), "--out", tmp_path, "--encoder", tmp_path / "tiny.safetensors", "--mpp", "0.4"]
    assert main([*map(str, command), "--device", "cpu"]) == 0
    assert "warning: s.tif: its file says 0.5 µm per pixel; the 0.4 that was given is taken instead." in capsys.readouterr().err
