"""NRRD files written and read in small steps, so that the event loop breathes between them; exact in type and geometry.

Slicer's own storage nodes do a file in one go, which holds the window for a second where a volume is large. Only what this project
writes is read: three axes, data attached, raw or gzip. Geometry is voxel index (i, j, k) to RAS mm, arrays are k, j, i.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import numpy as np

from HARM3Logic.errors import BadOption, BadVolume
from HARM3Logic.writing import whole

STEP_BYTES = 4 << 20  # of voxels between two steps: about 20 ms
TYPES = {
    "i1": "int8",
    "u1": "uint8",
    "i2": "int16",
    "u2": "uint16",
    "i4": "int32",
    "u4": "uint32",
    "i8": "int64",
    "u8": "uint64",
    "f4": "float",
    "f8": "double",
}
NUMPY = {
    **{name: code for code, name in TYPES.items()},
    "unsigned char": "u1",
    "uchar": "u1",
    "signed char": "i1",
    "short": "i2",
    "unsigned short": "u2",
    "ushort": "u2",
    "int": "i4",
    "unsigned int": "u4",
    "uint": "u4",
}
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and back


def writeSteps(path: Path, array: np.ndarray, ijkToRas: np.ndarray) -> Iterator[None]:
    """Write a volume whole or not at all.

    Raises:
        BadOption: the folder does not take it.
    """
    lps = FLIP @ ijkToRas
    vector = lambda values: "(" + ",".join(repr(float(v)) for v in values) + ")"  # noqa: E731  repr keeps every bit
    header = [
        "NRRD0004",
        f"type: {TYPES[array.dtype.str[1:]]}",
        "dimension: 3",
        "space: left-posterior-superior",
        "sizes: {2} {1} {0}".format(*array.shape),
        "space directions: " + " ".join(vector(lps[:3, axis]) for axis in range(3)),
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: {vector(lps[:3, 3])}",
    ]
    rows = max(1, STEP_BYTES // max(1, array[:1].nbytes))
    try:
        with whole(path) as temporary, open(temporary, "wb") as file:
            file.write(("\n".join(header) + "\n\n").encode("ascii"))
            for start in range(0, len(array), rows):
                part = array[start : start + rows]
                file.write(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).data)
                yield
    except OSError as error:
        raise BadOption(f"{str(path)!r} cannot be written ({error.strerror}).", "Free room or choose another folder.") from error


def readSteps(
    path: Path, allocate: Callable[[tuple[int, ...], str], np.ndarray] = np.empty
) -> Generator[None, None, tuple[np.ndarray, np.ndarray]]:
    """The array and geometry of a file, as the generator's return value.

    Args:
        allocate: gives an array for a shape (k, j, i) and a type, to be filled.

    Raises:
        BadVolume: there is no such file, or it is cut short or of another kind.
    """
    try:
        with open(path, "rb") as file:
            fields = _header(file, path)
            shape, kind, matrix = _described(fields, path)
            array = allocate(shape, kind)
            out = memoryview(array).cast("B")
            filled = 0
            for part in _parts(file, fields["encoding"], path):
                if filled + len(part) > len(out):
                    break
                out[filled : filled + len(part)] = part
                filled += len(part)
                yield
    except (OSError, zlib.error) as error:
        raise BadVolume(f"{str(path)!r} cannot be read ({error}).", "Run the prediction again.") from error
    if filled != len(out):
        raise BadVolume(f"{str(path)!r} holds {filled} bytes of voxels; {len(out)} are wanted.", "Run the prediction again.")
    if fields.get("endian", "little") != "little":
        array.byteswap(inplace=True)
    return array, matrix


def _header(file, path: Path) -> dict[str, str]:
    if not file.readline().startswith(b"NRRD"):
        raise BadVolume(f"{str(path)!r} is no NRRD file.", "Run the prediction again.")
    fields = {}
    while line := file.readline().decode("utf-8", "replace").strip():
        key, found, value = line.partition(": ")
        if found and not line.startswith("#"):
            fields[key.lower()] = value.strip()
    return fields


def _described(fields: dict[str, str], path: Path) -> tuple[tuple[int, ...], str, np.ndarray]:
    """Shape (k, j, i), type and geometry."""
    numbers = [float(v) for v in re.findall(r"[-+\d.eE]+", fields.get("space directions", "") + fields.get("space origin", ""))]
    kind, space = NUMPY.get(fields.get("type", "")), fields.get("space", "")
    signs = {"left-posterior-superior": FLIP, "lps": FLIP, "right-anterior-superior": np.eye(4), "ras": np.eye(4)}.get(space.lower())
    size = [int(v) for v in fields.get("sizes", "").split()]
    if kind is None or signs is None or len(numbers) != 12 or len(size) != 3 or "data file" in fields:
        raise BadVolume(f"{str(path)!r} is not one 3D image in patient space.", "Run the prediction again.")
    matrix = np.eye(4)
    matrix[:3] = np.reshape(numbers, (4, 3)).T
    return tuple(size[::-1]), kind, signs @ matrix


def _parts(file, encoding: str, path: Path) -> Iterator[bytes]:
    if encoding not in ("raw", "gzip", "gz"):
        raise BadVolume(f"{str(path)!r} is encoded as {encoding!r}; raw or gzip is wanted.", "Run the prediction again.")
    if encoding == "raw":
        while part := file.read(STEP_BYTES):
            yield part
        return
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while block := file.read(1 << 20):
        while block:
            yield stream.decompress(block, STEP_BYTES)
            block = stream.unconsumed_tail
    yield stream.flush()
