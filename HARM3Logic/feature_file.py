"""Tile features on disk: one HDF5 file for each slide, and the journal it grows from.

    journal: head, then (rows, sha256) again and again --finish--> HDF5: features N F, coords N 2, attributes, checksum

HDF5 keeps its index in memory while it writes, so a killed process leaves a file nobody can read. The journal is only ever added to:
what a kill, a full disk or a flipped bit spoils is its end, which its hashes show. The only home of h5py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float32, Int64

from HARM3Logic.errors import BadOption

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    digest, done = hashlib.sha256(), 0
    try:
        with h5py.File(temporary, "w") as file:
            features = file.create_dataset("features", (len(coords), length), np.float32)
            for part in parts:
                features[done : done + len(part)] = part
                digest.update(part.tobytes())
                done += len(part)
            file["coords"] = coords
            file.attrs.update({**about, "checksum": _sealed(digest, coords, about)})
        if done != len(coords):
            raise BadOption(f"{done} of {len(coords)} rows came for {str(path)!r}.", "Start it again.")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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
