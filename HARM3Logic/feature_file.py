"""Tile features on disk: one HDF5 file for each slide, and the journal it grows from.

    journal: head, then (rows, sha256) again and again --finish--> HDF5: features N F, coords N 2, attributes, checksum

HDF5 keeps its index in memory while it writes, so a killed process leaves a file nobody can read. The journal is only ever added to:
what a kill, a full disk or a flipped bit spoils is its end, which its hashes show. CLAM and TRIDENT use the same two arrays: their
code reads our files, and `load` theirs. The only home of h5py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, Int64

from HARM3Logic.errors import BadOption, BadSlide
from HARM3Logic.writing import whole

ROWS = 1024  # rows read or written at a time
DAMAGE = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)  # h5py's answers to missing and damaged files

Features = Float32[np.ndarray, "N F"]
Part = Float32[np.ndarray, "_ F"]  # some rows of them
Coords = Int64[np.ndarray, "N 2"]
About = Mapping[str, str | float | int]


def make_folder(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        BadOption: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadOption(f"folder {str(folder)!r} cannot be made ({error.strerror}).", "Choose another folder.") from error
    return folder


def write(path: Path, about: About, coords: Coords, parts: Iterable[Part], length: int) -> None:
    """Write a feature file, whole or not at all.

    Args:
        parts: the features, some rows at a time.
        length: of a feature vector.

    Raises:
        BadOption: it cannot be written.
    """
    digest, done = hashlib.sha256(), 0
    try:
        with whole(path) as temporary, h5py.File(temporary, "w") as file:
            features = file.create_dataset("features", (len(coords), length), np.float32)
            for part in parts:
                features[done : done + len(part)] = part
                digest.update(part.tobytes())
                done += len(part)
            file["coords"] = coords
            file.attrs.update({**about, "checksum": _sealed(digest, coords, about)})
            _describe(file, about, path.stem)
            if done != len(coords):
                raise BadOption(f"{done} of {len(coords)} rows came for {str(path)!r}.", "Start it again.")
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from error


def _describe(file: Any, about: About, name: str) -> None:
    """Say on the arrays what TRIDENT's code looks for there, as far as it is known; read by nobody here.

    Source of the names: github.com/mahmoodlab/TRIDENT, trident/IO.py and trident/wsi_objects/WSI.py.
    """
    if {"encoder", "slide"} <= set(about):  # a file of a collection; those of a cache have no name of their own
        file["features"].attrs.update({"encoder": about["encoder"], "name": name})
    if {"size_px", "size0_px", "slide_mpp", "mpp", "width_px"} <= set(about):
        file["coords"].attrs.update(
            {
                "patch_size": about["size_px"],
                "patch_size_level0": round(float(about["size0_px"])),
                "level0_magnification": 10 / float(about["slide_mpp"]),  # true, where TRIDENT rounds
                "target_magnification": 10 / float(about["mpp"]),
                "level0_width": about["width_px"],
                "level0_height": about["height_px"],
                "overlap": json.loads(str(about["settings"]))["tiles"]["overlap_px"] if "settings" in about else 0,
                "name": name,
            }
        )


def cannot_write(path: Path, error: Exception) -> BadOption:
    """The error of a disk that is full or read only."""
    return BadOption(
        f"features cannot be written to {str(path.parent)!r} ({error}).", "Choose a folder with room, or make some; what is done is kept."
    )


def about_of(path: Path) -> dict[str, Any] | None:
    """What a feature file says of itself; None unless its checksum holds, whatever was done to it."""
    try:
        with h5py.File(path, "r") as file:
            about = {key: value.item() if isinstance(value, np.generic) else value for key, value in file.attrs.items()}
            checksum, features, coords = about.pop("checksum"), file["features"], file["coords"][()]
            digest = hashlib.sha256()
            for row in range(0, len(features), ROWS):
                digest.update(features[row : row + ROWS].tobytes())
            whole = len(features) == len(coords) and features.dtype == np.float32 and coords.dtype == np.int64
            return about if whole and checksum == _sealed(digest, coords, about) else None
    except DAMAGE:
        return None


def is_good(path: Path, about: About, coords: Coords, length: int) -> bool:
    """Whether a feature file is whole and holds just this."""
    try:
        if about_of(path) != dict(about):
            return False
        with h5py.File(path, "r") as file:
            return file["features"].shape == (len(coords), length) and np.array_equal(file["coords"][()], coords)
    except DAMAGE:
        return False


def read(path: Path, about: About, coords: Coords, length: int) -> Features | None:
    """The features in a file; None unless `is_good`."""
    if not is_good(path, about, coords, length):
        return None
    with h5py.File(path, "r") as file:
        features: np.ndarray = file["features"][()]
        return features


@dataclass(frozen=True, eq=False)
class Loaded:
    """What a feature file of ours, CLAM's or TRIDENT's holds.

    Args:
        coords: upper left corners of the tiles in level-0 pixels.
        about: attributes of the file and of its arrays.
        sealed: it has a checksum of ours, which holds.
    """

    features: Features
    coords: Coords
    about: Mapping[str, Any]
    sealed: bool


def load(path: Path) -> Loaded:
    """The features in a file of ours, CLAM's or TRIDENT's.

    Raises:
        BadSlide: the file is missing, unfinished, damaged, or holds no features and coordinates of the same tiles.
    """

    def bad(what: str) -> BadSlide:
        return BadSlide(f"feature file {str(path)!r} {what}.", "Make it again.")

    if not path.is_file():
        unfinished = path.with_name(f".{path.name}.part").is_file()
        raise bad("is not finished" if unfinished else "does not exist")
    try:
        with h5py.File(path, "r") as file:
            arrays = [file[name] for name in ("features", "coords") if name in file]
            if len(arrays) < 2:
                raise bad("has no 'features' and 'coords'")
            about = {key: _plain(value) for part in (*arrays, file) for key, value in part.attrs.items()}
            features, coords = np.asarray(arrays[0][()], np.float32), np.asarray(arrays[1][()]).astype(np.int64)
    except DAMAGE as error:
        if isinstance(error, BadSlide):
            raise
        raise bad(f"is damaged ({str(error)[:120]})") from error
    if features.ndim == 3 and len(features) == 1:  # a batch of one
        features, coords = features[0], coords[0] if coords.ndim == 3 else coords
    if features.ndim != 2 or coords.ndim != 2 or coords.shape[1] != 2 or len(features) != len(coords):
        raise bad(f"has features of the shape {features.shape} and coordinates of {coords.shape}, which do not belong together")
    if not len(features):
        raise bad("holds no tile")
    if not np.isfinite(features).all():
        raise bad(f"has {int((~np.isfinite(features)).any(1).sum())} tiles whose features are not finite")
    sealed = "checksum" in about
    if sealed and about_of(path) is None:
        raise bad("was changed or damaged since it was written; its checksum does not hold")
    return Loaded(features, coords, about, sealed)


def _plain(value: Any) -> Any:
    """An attribute as a value of Python."""
    found = value.item() if isinstance(value, np.generic) else value
    return found.decode(errors="replace") if isinstance(found, bytes) else found


def described(path: Path) -> str:
    """What a whole feature file holds, in one line.

    Raises:
        BadSlide: as `load`.
    """
    found = load(path)
    encoder, slide = found.about.get("encoder"), found.about.get("slide", found.about.get("name"))
    digest = str(found.about.get("weights_sha256", ""))[:12]
    return ", ".join(
        [
            f"{path}: whole",
            f"{found.features.shape[0]} tiles of {found.features.shape[1]} features",
            (f"encoder {encoder}" + (f" ({digest})" if digest else "")) if encoder else "encoder not named",
            f"slide {slide}" if slide else "slide not named",
            "checksum holds" if found.sealed else "no checksum of ours",
        ]
    )


def _sealed(features: Any, coords: Coords, about: About) -> str:
    """Hash of all a file holds; `features` is the running hash of their bytes."""
    digest = features.copy()
    digest.update(coords.tobytes())
    digest.update(json.dumps(dict(about), sort_keys=True).encode())
    return str(digest.hexdigest())


class Journal:
    """Features as they come, on disk; opened again, it stands where its last whole record ends.

    Args:
        rows: of each record but the last.
        done: rows that are there.

    Raises:
        BadOption: the file cannot be written.
    """

    def __init__(self, path: Path, about: About, coords: Coords, length: int, rows: int) -> None:
        self.path, self._count, self._length, self._rows, self.done = path, len(coords), length, rows, 0
        place = hashlib.sha256(coords.tobytes()).hexdigest()
        self._head = json.dumps({**about, "coords": place, "rows": rows, "length": length}, sort_keys=True).encode() + b"\n"
        try:
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115  closed by `close`
            self._file.seek(0)
            if self._file.read(len(self._head)) != self._head:  # of other tiles or settings, or cut short
                self._file.truncate(0)
                self._append(self._head)
            else:
                self.done = sum(len(part) for part in self._records())
                self._file.truncate(self._end(self.done))
        except OSError as error:
            raise cannot_write(path, error) from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, part: Part) -> None:
        """Keep the next rows; a record's worth but for the last.

        Raises:
            BadOption: the disk is full.
        """
        data = part.tobytes()
        try:
            self._append(data + hashlib.sha256(self._name(self.done) + data).digest())
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.done += len(part)

    def finish(self, path: Path, about: About, coords: Coords) -> None:
        """Make the feature file of the whole journal and remove the journal.

        Raises:
            BadOption: the file cannot be written, or the journal was changed by another process.
        """
        write(path, about, coords, self._records(), self._length)
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:  # a disk that fills up takes a part first
            view = view[self._file.write(view) or 0 :]

    def _name(self, row: int) -> bytes:
        return hashlib.sha256(self._head).digest() + row.to_bytes(8, "little")

    def _size(self, row: int) -> int:
        """Bytes of the features of the record at a row."""
        return 4 * self._length * min(self._rows, self._count - row)

    def _end(self, done: int) -> int:
        records = -(-done // self._rows)
        return len(self._head) + 4 * self._length * done + 32 * records

    def _records(self) -> Iterator[Part]:
        """The records from the first to the last that is whole."""
        self._file.seek(len(self._head))
        row = 0
        while row < self._count:
            data, seal = self._file.read(self._size(row)), self._file.read(32)
            if hashlib.sha256(self._name(row) + data).digest() != seal:
                return
            part = np.frombuffer(data, np.float32).reshape(-1, self._length)
            yield part
            row += len(part)
