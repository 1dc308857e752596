"""CT crops without labels: read, cut to the model grid and kept on disk; and whether their patients are those of another cohort."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from HARM3Logic import __version__, volume
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadCohort
from HARM3Logic.prepare import Preprocessing, prepare
from HARM3Logic.progress import progress
from HARM3Logic.writing import whole, write_text

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class Crops:
    """Prepared crops, mapped from disk.

    Args:
        array: (N, D, H, W), 16-bit floats from -1 to 1.
    """

    array: np.ndarray
    patients: tuple[str, ...]


def cases_of_folder(folder: Path) -> tuple[Case, ...]:
    """A case for each image file, the tumour in the image's middle; patients from `crops.csv` (file, patient_id) or the file's name.

    Raises:
        BadCohort: there is no image, or `crops.csv` does not name one of them.
    """
    paths = sorted(path for path in folder.glob("*") if path.name.endswith(SUFFIXES)) if folder.is_dir() else []
    if not paths:
        raise BadCohort(f"{str(folder)!r} holds no image ({', '.join(SUFFIXES)}).", "Give a folder of CT crops.")
    table = folder / "crops.csv"
    known: dict[str, str] = {}
    if table.is_file():
        with open(table, encoding="utf-8-sig", newline="") as file:
            known = {row.get("file", ""): row.get("patient_id", "") for row in csv.DictReader(file)}
        unnamed = [path.name for path in paths if not known.get(path.name)]
        if unnamed:
            raise BadCohort(f"{str(table)!r} names no patient for {unnamed[0]!r}.", "Add a row with file and patient_id.")
    names = [path.name[: -len(next(s for s in SUFFIXES if path.name.endswith(s)))] for path in paths]
    return tuple(
        Case.from_files(name, {"ct": path}, patient_id=known.get(path.name) or name) for name, path in zip(names, paths, strict=True)
    )


def refuse_shared(cases: Sequence[Case], never: Sequence[Path]) -> None:
    """Keep pretraining and prediction apart.

    Raises:
        BadCohort: a patient or a CT of a `never` cohort is among the cases.
    """
    patients = {case.patient_id or case.case_id for case in cases}
    prints = {volume.sha256(case.inputs["ct"][0]): case.case_id for case in cases if "ct" in case.inputs} if never else {}
    for path in never:
        for case in read_cohort(path):
            if (case.patient_id or case.case_id) in patients:
                raise BadCohort(
                    f"patient {case.patient_id or case.case_id!r} of {path.name!r} is also among the pretraining cases; none may be.",
                    "Leave the patient out of one of both.",
                )
            same = prints.get(volume.sha256(case.inputs["ct"][0])) if "ct" in case.inputs else None
            if same:
                raise BadCohort(
                    f"the CT of case {case.case_id!r} of {path.name!r} is that of the pretraining case {same!r}.",
                    "Leave it out of one of both.",
                )


def read_crops(cases: Sequence[Case], settings: Preprocessing, folder: Path, middle: bool) -> Crops:
    """The crops, prepared once and kept in `folder`; made anew where a file or a setting changed.

    Args:
        middle: the tumour is in the middle of each image; else the case's mask or point says where.

    Raises:
        BadCohort: a case cannot be prepared; it is named.
    """
    settings = replace(settings, crop="body" if middle else "tumour")
    digest = hashlib.sha256(json.dumps([__version__, asdict(settings)]).encode())
    for case in cases:
        for name in ("ct", "tumour_ct"):
            if name in case.inputs:
                digest.update(volume.sha256(case.inputs[name][0]).encode())
        digest.update(repr(case.tumour_point_mm).encode())
    path, note = folder / "crops.npy", folder / "crops.json"
    plain = json.dumps({"made_of": digest.hexdigest(), "patients": [case.patient_id or case.case_id for case in cases]})
    if not path.is_file() or not note.is_file() or note.read_text(encoding="utf-8") != plain:
        with whole(path) as temporary:
            made = np.lib.format.open_memmap(temporary, "w+", np.float16, (len(cases), *settings.shape))
            for k, case in enumerate(progress(cases, "preparing", unit="crop")):
                try:
                    found = prepare(case, settings, wanted=("ct",)).ct
                except ValueError as error:
                    raise BadCohort(f"case {case.case_id!r} cannot be prepared: {error}", "Mend or remove it.") from error
                assert found is not None
                made[k] = found.numpy()
            made.flush()
            note.unlink(missing_ok=True)
        write_text(note, plain)
    return Crops(np.load(path, mmap_mode="r"), tuple(json.loads(plain)["patients"]))
