"""What came out for one case, and its files."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from HARM3Logic import volume
from HARM3Logic.case import INPUTS, write_text
from HARM3Logic.errors import BadOption
from HARM3Logic.report import SlideView
from HARM3Logic.volume import Grid, Volume

SLIDE_FILES = ("slide_thumbnail.png", "slide_attention.png", "slide_attention.nrrd")


@dataclass(frozen=True)
class Prediction:
    """What came out for one case; `values` is the content of `prediction.json`.

    Args:
        heatmaps: input to its Grad-CAM on the input's own grid, 0 to 1 on one scale for all inputs.
        raw: input to its Grad-CAM on the model grid (logit units).
    """

    values: Mapping[str, Any]
    heatmaps: Mapping[str, Volume]
    raw: Mapping[str, Float[np.ndarray, "D H W"]]
    slide: SlideView | None
    html: str

    @property
    def case_id(self) -> str:
        return str(self.values["case_id"])

    @property
    def probability(self) -> float:
        return float(self.values["probability"])

    @property
    def decision(self) -> str:
        return str(self.values["decision"])

    def write(self, out: str | os.PathLike[str]) -> Path:
        """Write every file into `out`; `prediction.json`, whose presence says the rest is whole, comes last.

        Raises:
            BadOption: the folder cannot be written.
        """
        out = writable(out)
        work = out / f".writing.{os.getpid()}"
        try:
            for left in out.glob(".writing.*"):  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
            work.mkdir()
            self._write_files(work)
            for old in ("prediction.json", *SLIDE_FILES, *(f"heatmap_{name}.nrrd" for name in INPUTS)):
                (out / old).unlink(missing_ok=True)  # nothing of an earlier prediction may stay beside this one
            for file in sorted(work.iterdir()):
                file.replace(out / file.name)
            write_text(out / "prediction.json", json.dumps(self.values, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise BadOption(
                f"results cannot be written to {str(out)!r} ({error.strerror}).", "Free room or choose another folder."
            ) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return out

    def _write_files(self, folder: Path) -> None:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            work: list[Future[Any]] = [pool.submit(volume.write, v, folder / f"heatmap_{name}.nrrd") for name, v in self.heatmaps.items()]
            raw: dict[str, Any] = dict(self.raw)
            work.append(pool.submit(np.savez_compressed, folder / "heatmap_raw.npz", **raw))
            if self.slide is not None:
                work.append(pool.submit(_write_picture, self.slide.thumbnail, folder / "slide_thumbnail.png"))
                work.append(pool.submit(_write_picture, self.slide.picture, folder / "slide_attention.png"))
                work.append(pool.submit(volume.write, _flat(self.slide), folder / "slide_attention.nrrd"))
            (folder / "report.html").write_text(self.html, encoding="utf-8")
            for written in work:
                written.result()


def _write_picture(pixels: UInt8[np.ndarray, "h w 3"], path: Path) -> None:
    # run lengths alone: as small as the default on such pictures, in a quarter of the time
    Image.fromarray(pixels).save(path, compress_level=1, compress_type=zlib.Z_RLE)


def _flat(slide: SlideView) -> Volume:
    """The attention as a volume of one slice."""
    mm = slide.mm_per_px
    height, width = slide.attention.shape
    grid = Grid((width, height, 1), (mm, mm, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    return Volume(slide.attention[None], grid)


def writable(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if need be.

    Raises:
        BadOption: it cannot be made or written; told before any work is done.
    """
    folder = Path(folder)
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadOption(f"the output folder {str(folder)!r} cannot be written ({error.strerror}).", "Choose another with --out.") from error
    return folder
