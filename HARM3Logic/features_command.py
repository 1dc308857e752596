"""harm3 features: slides to feature files, what encoders there are, and whether feature files are whole."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HARM3Logic.errors import BadOption, HARM3Error

if TYPE_CHECKING:
    from HARM3Logic.slide import Slide, TileGrid

FOREIGN = (
    "--encoder is a TorchScript (.ts, .torchscript) or ONNX (.onnx) program with a .json beside it. Loading it executes what its author "
    "wrote, with all your rights: your files, your network. Only for files whose author you trust"
)


def add(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "features",
        help="turn slides into files of tile features; a stopped run goes on",
        description="One HDF5 file for each slide, which CLAM's and TRIDENT's training code reads too.",
    )
    parser.add_argument("slides", nargs="*", type=Path, metavar="SLIDE", help="a slide file, a folder of one DICOM slide, or a picture")
    parser.add_argument("--out", type=Path, help="folder of <slide>.h5")
    parser.add_argument(
        "--encoder", default="default", help="a name of --list-encoders or a tile encoder's file (default: the one that ships)"
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights of an encoder given by its name, as its makers gave them to you"
    )
    parser.add_argument("--run-foreign-code", action="store_true", help=FOREIGN)
    parser.add_argument("--mpp", type=float, help="true µm per pixel of all the slides, where their files do not say it or say it wrong")
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, mps, cuda (all GPUs, which take slides in turn), or some such as cuda:0,cuda:1 (default: auto)",
    )
    parser.add_argument("--stain", choices=["macenko", "reinhard"], help="bring each slide's colours to a reference first (default: no)")
    parser.add_argument("--stain-target", type=Path, metavar="PICTURE", help="the reference; reinhard needs one, macenko has its own")
    parser.add_argument("--geojson", action="store_true", help="write the tissue's outlines as <slide>.geojson for QuPath")
    parser.add_argument("--clam", action="store_true", help="write h5_files/ and pt_files/, where CLAM's training looks for them")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--list-encoders", action="store_true", help="show the encoders known by name, and end")
    asked.add_argument(
        "--check", action="store_true", help="the SLIDEs are feature files: say whether each is whole; exit code 2 if one is not"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.list_encoders:
        return _list()
    if not options.slides:
        raise BadOption("no file is given.", "Name slides, or feature files with --check.")
    if options.check:
        return _check(options.slides)
    if options.out is None:
        raise BadOption("--out is missing.", "Name the folder of the feature files.")
    if options.stain_target is not None and options.stain is None:
        raise BadOption("--stain-target is given without --stain.", "Add --stain macenko or --stain reinhard.")
    return _write(options)


def _list() -> int:
    from HARM3Logic.encoders import as_table
    from HARM3Logic.tile_encoder import shipped

    print(as_table([shipped()]))
    return 0


def _check(paths: list[Path]) -> int:
    from HARM3Logic.feature_file import described

    bad = 0
    for path in paths:
        try:
            print(described(path))
        except HARM3Error as error:
            print(f"{path}: not whole. {error}")
            bad += 1
    return 2 if bad else 0


def devices(text: str, slides: int) -> list[str]:
    """The devices of a --device: one, some named one by one, or every GPU; never more than there are slides.

    Raises:
        BadOption: a name is unknown or the machine has no such device.
    """
    import torch

    from HARM3Logic.device import choose

    names = [name.strip() for name in text.split(",")]
    if names in (["auto"], ["cuda"]) and torch.cuda.device_count() > 1:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(choose(name)) for name in names][:slides]


def _write(options: argparse.Namespace) -> int:
    from HARM3Logic.collection import write_collection
    from HARM3Logic.progress import progress
    from HARM3Logic.stain import Stain
    from HARM3Logic.tile_encoder import TileEncoder

    stain = Stain.of(options.stain, options.stain_target) if options.stain else None
    encoders = [
        TileEncoder.load(options.encoder, device, weights=options.weights, run_foreign_code=options.run_foreign_code)
        for device in devices(options.device, len(options.slides))
    ]
    with progress(unit="tile", leave=False) as bar:
        failures = write_collection(
            options.slides,
            encoders,
            options.out,
            mpp=options.mpp,
            stain=stain,
            outlines=options.geojson,
            clam=options.clam,
            on_slide=_warn,
            on_progress=_Progress(bar, one_by_one=len(encoders) == 1),
        )
    for sentence in (sentence for encoder in encoders for sentence in encoder.warnings):
        print(f"warning: {sentence}", file=sys.stderr)
    print(f"{len(options.slides) - len(failures)} of {len(options.slides)} slides: {options.out}")
    for failure in failures:
        print(f"harm3: {failure}", file=sys.stderr)
    return 2 if failures else 0


def _warn(slide: Slide, grid: TileGrid) -> None:
    from tqdm import tqdm

    from HARM3Logic import bag

    for _, sentence in bag.quality([(slide, grid)], [grid]):
        tqdm.write(f"warning: {slide.path.name}: {sentence.removeprefix('slide: ')}", file=sys.stderr)


class _Progress:
    """A bar of the tiles of one slide after the other, or of all the slides that are begun."""

    def __init__(self, bar: Any, one_by_one: bool) -> None:
        self._bar, self._one_by_one, self._done = bar, one_by_one, dict[str, int]()

    def __call__(self, name: str, tiles: int, done: int) -> None:
        bar, begun = self._bar, name in self._done
        if not begun:
            bar.set_description(name, refresh=False)
        if not begun and (self._one_by_one or not self._done):
            self._done.clear()
            bar.reset(tiles)
            bar.initial = bar.n = done  # what was there already says nothing about the speed
        else:
            bar.total += 0 if begun else tiles
            bar.update(done - self._done.get(name, 0))
        self._done[name] = done
