"""The images in a folder: files by their ending, DICOM files gathered into series. DICOM headers need pydicom."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from HARM3Logic.errors import BadCase

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".gipl.gz")
SLIDE_ENDINGS = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".tif", ".tiff", ".zvi")
MOST_FILES = 50_000
_TAGS = [
    *("PatientID", "StudyDate", "SeriesDate", "AcquisitionDate", "Modality", "SeriesInstanceUID", "SeriesDescription", "ProtocolName"),
    *("StudyDescription", "RepetitionTime", "EchoTime", "ContrastBolusAgent", "ImageType"),
    *("ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber"),
]


@dataclass(frozen=True)
class Candidate:
    """One image that may become an input.

    Args:
        path: the file; for a DICOM series its folder where that holds nothing else, otherwise its first file.
        name: what the user reads: the path within the folder, and the description of a series.
        files: the files of a DICOM series, in the order of their slices.
        text: the words of its own name (file name, or series description).
        folderText: the words of the folders above it (and of the DICOM study).
        modality: MR, CT, SM ... as DICOM has it; "slide" or "volume" for other files.
        tr, te: repetition and echo time (ms), None where not known.
        contrast: the contrast agent's name in the DICOM header.
        unread: why it cannot serve as an input whatever its name; empty if it can.
    """

    path: Path
    name: str
    text: str
    folderText: str = ""
    files: tuple[Path, ...] = ()
    modality: str = "volume"
    date: str = ""
    patient: str = ""
    tr: float | None = None
    te: float | None = None
    contrast: str = ""
    shared: bool = False
    unread: str = ""


@dataclass
class _Series:
    header: Any
    folder: Path
    files: list[tuple[tuple[float, float, str], Path]] = field(default_factory=list)  # place and file


def hasPydicom() -> bool:
    """Whether DICOM headers can be read (Slicer brings pydicom)."""
    return importlib.util.find_spec("pydicom") is not None


def candidates(folder: Path) -> Generator[str, None, list[Candidate]]:
    """The images below a folder; yields the name of each file it has looked at.

    Raises:
        BadCase: the folder is none, or holds far more files than one patient has.
    """
    if not folder.is_dir():
        raise BadCase(f"{str(folder)!r} is not a folder; one with the images of one patient is wanted.", "Choose another folder.")
    found: list[Candidate] = []
    series: dict[tuple[Path, str], _Series] = {}
    readable = hasPydicom()
    for count, path in enumerate(_files(folder)):
        if count == MOST_FILES:
            raise BadCase(
                f"{str(folder)!r} holds more than {MOST_FILES} files; the images of one patient are wanted.", "Choose a folder below it."
            )
        yield path.name
        lower = path.name.lower()
        if ending := _ending(lower, VOLUME_ENDINGS + SLIDE_ENDINGS):
            kind = "slide" if ending in SLIDE_ENDINGS else "volume"
            relative = path.relative_to(folder)
            found.append(
                Candidate(path, relative.as_posix(), path.name[: -len(ending)], folderText=" / ".join(relative.parts[:-1]), modality=kind)
            )
        elif _isDicom(path, lower):
            header = _header(path) if readable else None
            uid = str(getattr(header, "SeriesInstanceUID", ""))
            series.setdefault((path.parent, uid), _Series(header, path.parent)).files.append((_place(header, path), path))
    folders = [parent for parent, _ in series]
    for one in series.values():
        made = _ofSeries(one, folder, folders.count(one.folder) > 1)
        same = sum(made.name == other.name or other.name.startswith(f"{made.name} #") for other in found)
        found.append(replace(made, name=f"{made.name} #{same + 1}") if same else made)  # names tell the images apart
    return found


def _files(folder: Path) -> Generator[Path, None, None]:
    """All files below a folder in a stable order, hidden ones and the data beside an .mrxs slide left out."""
    for root, folders, names in os.walk(folder):
        slides = {Path(name).stem for name in names if name.lower().endswith(".mrxs")}
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in slides)
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def _ending(name: str, endings: tuple[str, ...]) -> str:
    return next((ending for ending in endings if name.endswith(ending)), "")


def _isDicom(path: Path, lower: str) -> bool:
    """Whether a file says it is DICOM; only files that could be are opened."""
    if lower == "dicomdir" or ("." in lower and not lower.endswith((".dcm", ".ima", ".dicom")) and not lower.rpartition(".")[2].isdigit()):
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _header(path: Path) -> Any:
    """The few tags of a DICOM file that tell its role; None when it is broken."""
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
    except (OSError, ValueError, KeyError, AttributeError, EOFError, pydicom.errors.InvalidDicomError):
        return None


def inOrder(files: Iterable[Path]) -> tuple[Path, ...]:
    """The files of one DICOM series by the place of their slices, which their names need not tell; by name without pydicom."""
    placed = [(_place(_header(path) if hasPydicom() else None, path), path) for path in files]
    return tuple(path for _, path in sorted(placed))


def _place(header: Any, path: Path) -> tuple[float, float, str]:
    """Where a slice lies along the normal of its plane (mm), its number, its name: the first that differs decides."""

    def numbers(name: str, count: int) -> list[float]:
        try:
            values = [float(value) for value in getattr(header, name, None) or ()]
        except (TypeError, ValueError):
            values = []
        return values if len(values) == count else [0.0] * count

    (rx, ry, rz, cx, cy, cz), (x, y, z) = numbers("ImageOrientationPatient", 6), numbers("ImagePositionPatient", 3)
    along = (ry * cz - rz * cy) * x + (rz * cx - rx * cz) * y + (rx * cy - ry * cx) * z
    try:
        number = float(getattr(header, "InstanceNumber", None) or 0)
    except (TypeError, ValueError):
        number = 0.0
    return along, number, path.name


def _ofSeries(series: _Series, root: Path, shared: bool) -> Candidate:
    """The candidate a DICOM series makes."""
    header, files = series.header, tuple(path for _, path in sorted(series.files))
    relative = series.folder.relative_to(root)
    where = relative.as_posix() if relative.parts else root.name

    def tag(name: str) -> str:
        return str(getattr(header, name, None) or "").strip()

    def number(name: str) -> float | None:
        try:
            return float(tag(name))
        except ValueError:
            return None

    description = tag("SeriesDescription") or tag("ProtocolName")
    date = next((d for d in (tag("StudyDate"), tag("SeriesDate"), tag("AcquisitionDate")) if len(d) == 8 and d.isdigit()), "")
    modality = tag("Modality") or "DICOM"
    whole = not shared and modality != "SM"  # a slide is read from any one of its files
    return Candidate(
        path=series.folder if whole else files[0],
        name=f"{where}: {description}" if description else where,
        text=description or (relative.parts[-1] if relative.parts else ""),
        folderText=" / ".join((*(relative.parts if description else relative.parts[:-1]), tag("StudyDescription"))),
        files=files if modality != "SM" else (),
        modality=modality,
        date=f"{date[:4]}-{date[4:6]}-{date[6:]}" if date else "",
        patient=tag("PatientID"),
        tr=number("RepetitionTime"),
        te=number("EchoTime"),
        contrast=tag("ContrastBolusAgent"),
        shared=shared and modality != "SM",
        unread="" if modality in ("MR", "CT", "SM", "DICOM") else f"a DICOM {modality} is no image this module reads",
    )
