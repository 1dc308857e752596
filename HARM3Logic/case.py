"""A case: one patient at one decision, and where its inputs lie. Standard library only."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from HARM3Logic.errors import BadCase
from HARM3Logic.writing import write_text

TIMEPOINTS = ("pre", "post")
SEQUENCES = ("t1", "t2")
MRI = tuple(f"{s}_{t}" for t in TIMEPOINTS for s in SEQUENCES)  # in the order of Batch.mri's axes T, S
MASKS = ("tumour_pre", "tumour_post", "tumour_ct")
INPUTS = (*MRI, "slide", "ct", "clinical")
FEATURES = (".h5", ".hdf5")  # endings of a file of tile features in a slide's place
LABELS = "1 (responder), 0 or nothing"


@dataclass(frozen=True)
class Case:
    """One patient at one decision.

    Args:
        case_id: name of the case, unique in its cohort; also the name of its output folder.
        inputs: input name (one of `INPUTS` or `MASKS`) to its files; only `slide` may have more than one.
        patient_id: cases of one patient never go to two folds.
        label: 1 responder (pCR), 0 not, None unknown.
        fold: index of the evaluation fold when the cohort fixes it.
        slide_mpp: µm per pixel of level 0 for slides whose file does not say.
        slide_encoder: name of the tile encoder for files of features that do not say it.
        tumour_point_mm: a point inside the tumour (LPS) where no mask exists.
        clinical: clinical variable to its text as it stands in the table.
    """

    case_id: str
    inputs: Mapping[str, tuple[Path, ...]]
    patient_id: str = ""
    centre: str = ""
    label: int | None = None
    fold: int | None = None
    slide_mpp: float | None = None
    slide_encoder: str = ""
    tumour_point_mm: tuple[float, float, float] | None = None
    clinical: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.case_id or self.case_id in (".", "..") or any(c in self.case_id for c in '/\\:*?"<>|\0'):
            raise BadCase(
                f'case_id is {self.case_id!r}; it names a folder and so must not be empty or hold / \\ : * ? " < > |.',
                "Rename the case.",
            )
        unknown = sorted(set(self.inputs) - {*INPUTS, *MASKS})
        if unknown:
            raise BadCase(
                f"case {self.case_id!r} has the unknown input {unknown[0]!r}; known are {', '.join((*INPUTS, *MASKS))}.",
                "Rename it.",
            )
        for name, paths in self.inputs.items():
            if len(paths) != 1 and name != "slide":
                raise BadCase(f"case {self.case_id!r} gives {len(paths)} files for {name}; one is wanted.", "Name one file.")

    @classmethod
    def from_files(cls, case_id: str, files: Mapping[str, str | os.PathLike[str]], **fields: Any) -> Case:
        """A case from one path per input."""
        return cls(case_id=case_id, inputs={name: (Path(path),) for name, path in files.items()}, **fields)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Case:
        """The case described by a `case.json`; its paths are relative to the file.

        Raises:
            BadCase: the file is missing, is not JSON, or says something a case cannot be.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise BadCase(f"case file {str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
        except ValueError as error:
            raise BadCase(f"case file {str(path)!r} is not JSON ({error}).", "Write it as the README shows.") from error
        if not isinstance(data, dict) or not isinstance(data.get("inputs"), dict):
            raise BadCase(f"case file {str(path)!r} has no object 'inputs' of name to path.", "Write it as the README shows.")
        inputs = dict(data["inputs"])
        for name in MASKS:  # the cohort's columns are allowed beside `inputs` too
            if data.get(name):
                inputs[name] = data[name]
        return case_from_fields({**data, "inputs": inputs}, path.parent, f"case file {str(path)!r}")

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `case.json`, paths relative to it where they lie beside or below it."""
        path = Path(path)

        def portable(p: Path) -> str:
            full, folder = p.resolve(), path.parent.resolve()
            return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else str(full)

        data: dict[str, Any] = {
            "case_id": self.case_id,
            "patient_id": self.patient_id,
            "centre": self.centre,
            "inputs": {
                name: portable(paths[0]) if len(paths) == 1 else [portable(p) for p in paths] for name, paths in self.inputs.items()
            },
        }
        for key in ("label", "fold", "slide_mpp"):
            if getattr(self, key) is not None:
                data[key] = getattr(self, key)
        if self.tumour_point_mm is not None:
            data["tumour_point_mm"] = list(self.tumour_point_mm)
        if self.slide_encoder:
            data["slide_encoder"] = self.slide_encoder
        if self.clinical:
            data["clinical"] = dict(self.clinical)
        write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")

    def without(self, names: Iterable[str]) -> Case:
        """The same case lacking the named inputs."""
        gone = set(names)
        return replace(self, inputs={name: paths for name, paths in self.inputs.items() if name not in gone})


def case_from_fields(data: Mapping[str, Any], folder: Path, where: str) -> Case:
    """A case from loosely typed values, as JSON and CSV give them; paths are relative to `folder`.

    Raises:
        BadCase: a value has the wrong type or range; the message starts with `where`.
    """
    inputs: dict[str, tuple[Path, ...]] = {}
    for name, value in data.get("inputs", {}).items():
        paths = [value] if isinstance(value, str) else value
        if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
            raise BadCase(f"{where}: input {name!r} is {value!r}; a path or a list of paths is wanted.", "Correct it.")
        found = tuple(folder / p for p in paths if p)  # an absolute p stays as it is
        if found:
            inputs[name] = found
    point = data.get("tumour_point_mm")
    if point:
        parts = point.split(";") if isinstance(point, str) else point
        values = [_number(v, "tumour_point_mm", where) for v in parts] if isinstance(parts, list) else []
        if len(values) != 3:
            raise BadCase(f"{where}: tumour_point_mm is {point!r}; three numbers x, y, z in mm (LPS) are wanted.", "Correct it.")
        point = (values[0], values[1], values[2])
    mpp = data.get("slide_mpp")
    label = _whole(data.get("label"), "label", where, LABELS)
    if label not in (None, 0, 1):
        raise BadCase(f"{where}: label is {label}; {LABELS} is wanted.", "Correct it.")
    clinical = data.get("clinical") or {}
    if not isinstance(clinical, Mapping):
        raise BadCase(f"{where}: clinical is {clinical!r}; an object of variable to value is wanted.", "Correct it.")
    return Case(
        case_id=str(data.get("case_id") or ""),
        inputs=inputs,
        patient_id=str(data.get("patient_id") or ""),
        centre=str(data.get("centre") or ""),
        label=label,
        fold=_whole(data.get("fold"), "fold", where),
        slide_mpp=None if mpp in (None, "") else _number(mpp, "slide_mpp", where),
        slide_encoder=str(data.get("slide_encoder") or ""),
        tumour_point_mm=point or None,
        clinical={str(k): "" if v is None else str(v) for k, v in clinical.items()},
    )


def holds_features(path: Path) -> bool:
    """Whether a case's slide is a file of features, by its name."""
    return path.suffix.lower() in FEATURES


def file_sha256(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _number(value: Any, name: str, where: str, wanted: str = "a number") -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadCase(f"{where}: {name} is {value!r}; {wanted} is wanted.", "Correct it.")
    return number


def _whole(value: Any, name: str, where: str, wanted: str = "a whole number") -> int | None:
    if value is None or value == "":
        return None
    number = _number(value, name, where, wanted)
    if number != int(number):
        raise BadCase(f"{where}: {name} is {value!r}; {wanted} is wanted.", "Correct it.")
    return int(number)
