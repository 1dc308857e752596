"""The sample case: a synthetic patient, made on the spot and offered in Slicer's Sample Data module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from HARM3Logic.case import Case
from HARM3Logic.errors import BadCase

CATEGORY = "HARM3Slicer"
NAME = "HARM3 sample case"
SEED = 2024
ICON = Path(__file__).resolve().parents[1] / "Resources" / "Icons" / "HARM3Slicer.png"


def sampleFolder(base: Path | None = None) -> Path:
    """The folder of the sample case, below `base` or Slicer's temporary folder; nothing is made yet."""
    if base is None:
        import slicer

        base = Path(slicer.app.temporaryPath)
    return Path(base) / "HARM3Slicer" / f"sample-{SEED}"


def sampleCase(folder: Path) -> Path | None:
    """The `case.json` of a sample case that was made before and is whole, so that it need not be made again."""
    for path in sorted(Path(folder).glob("*/case.json")):  # the worker makes a folder for each of its cases
        try:
            case = Case.read(path)
        except BadCase:  # left half written by a worker that was killed
            continue
        if all(file.exists() for files in case.inputs.values() for file in files):
            return path
    return None


def sampleJob(folder: Path) -> dict:
    """The worker job that makes the sample case; its result names the `case.json`."""
    return {"kind": "phantom", "out": str(folder), "seed": SEED}


def registerSampleData(load: Callable[[], object]) -> bool:
    """Offer the sample case in the Sample Data module; False when that module is not there.

    To be called on `startupCompleted()`: the buttons are built once. `SampleData.downloadSample(NAME)` cannot work, as it passes over
    custom downloaders; from Python use the module's logic.

    Args:
        load: makes and loads the sample case; called when the user presses its button.
    """
    try:
        import SampleData
    except ImportError:  # Slicer was started without its scripted modules
        return False
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category=CATEGORY,
        sampleName=NAME,
        uris="generated:phantom",  # must be text; nothing is downloaded
        fileNames="case.json",
        nodeNames=NAME,
        customDownloader=lambda source: load(),
        thumbnailFileName=str(ICON),
    )
    return True
