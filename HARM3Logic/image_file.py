"""Image files: anything SimpleITK reads, and folders of one DICOM series, checked before use; `volume` offers these functions."""

# mypy: disallow-untyped-calls=False
# (SimpleITK carries no types)

from __future__ import annotations

import gzip
import hashlib
import os
import re
import struct
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from jaxtyping import Float32

from HARM3Logic.errors import BadVolume
from HARM3Logic.grid import Grid, Volume, geometry_fault, triple
from HARM3Logic.writing import whole


class Held:
    """A context in which a setting of all of ITK has one value, until the last thread has left it.

    Args:
        get, set_to: read and write the setting.
    """

    def __init__(self, get: Callable[[], Any], set_to: Callable[[Any], None], value: Any) -> None:
        self._get, self._set_to, self._value = get, set_to, value
        self._lock, self._inside, self._before = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = self._get()
                self._set_to(self._value)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._set_to(self._before)


# Keeps ITK's warnings off the console, where the worker's events run; what matters in them is checked here.
_quiet = Held(sitk.ProcessObject.GetGlobalWarningDisplay, sitk.ProcessObject.SetGlobalWarningDisplay, False)


def read(path: str | os.PathLike[str]) -> Volume:
    """The image of a file or of a folder that holds one DICOM series.

    Raises:
        BadVolume: there is no such file, it is damaged, it is not one 3D image of single finite numbers that differ, or its
            geometry is impossible.
    """
    path = Path(path)
    volume = _load(path)
    low, high = volume.array.min(), volume.array.max()
    if low == high:
        raise BadVolume(f"every voxel of {str(path)!r} is {low:g}; an image is wanted.", "Export the volume again.")
    return volume


def read_mask(path: str | os.PathLike[str]) -> Volume:
    """The mask of a file: 1 where a voxel is not zero, else 0.

    Raises:
        BadVolume: as `read`, or no voxel is set, or all are.
    """
    path = Path(path)
    volume = _load(path)
    inside = volume.array != 0
    if inside.all() or not inside.any():
        raise BadVolume(
            f"the mask {str(path)!r} has {'every' if inside.any() else 'no'} voxel set; some of its {inside.size} are wanted.",
            "Draw the tumour, or leave the mask out.",
        )
    return Volume(inside.astype(np.float32), volume.grid)


def write(volume: Volume, path: str | os.PathLike[str]) -> None:
    """Write a volume whole or not at all, in the format of the path's suffix (compressed).

    Raises:
        BadVolume: the folder does not take it, or no format has this suffix.
    """
    path = Path(path)
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    try:
        with whole(path, suffix) as temporary, _quiet:
            sitk.WriteImage(to_itk(volume.array, volume.grid), str(temporary), useCompression=True)
    except (RuntimeError, OSError) as error:
        raise BadVolume(f"{str(path)!r} cannot be written ({reason(error)}).", "Choose another folder, or the suffix .nrrd.") from error


def sha256(path: str | os.PathLike[str]) -> str:
    """Fingerprint of a file, or of the files of a folder in the order of their names (hidden ones left out).

    Raises:
        BadVolume: it cannot be read.
    """
    path = Path(path)
    digest = hashlib.sha256()
    try:
        for name in sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != ".") if path.is_dir() else [path]:
            with open(name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise BadVolume(f"{str(path)!r} cannot be read ({error.strerror}).", "Check the path.") from error
    return digest.hexdigest()


def _load(path: Path) -> Volume:
    if not path.exists():
        raise BadVolume(f"there is no volume {str(path)!r}.", "Check the path.")
    try:
        with _quiet:
            image = _series(path) if path.is_dir() else _file(path)
    except (RuntimeError, OSError, EOFError) as error:
        raise BadVolume(
            f"{str(path)!r} cannot be read as an image ({reason(error)}).",
            "Give NRRD, NIfTI, MHA or a folder of one DICOM series, and copy the file again if it should be one.",
        ) from error
    array = sitk.GetArrayFromImage(image)
    strange = array.size - int(np.isfinite(array).sum())
    if strange:
        raise BadVolume(
            f"{str(path)!r} has {strange} of {array.size} voxels that are NaN, infinite or beyond 32 bits; finite numbers are wanted.",
            "Export the volume again, with 0 where nothing was measured.",
        )
    return Volume(array, _grid(image))


def _file(path: Path) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.ReadImageInformation()
    size = reader.GetSize()
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelIDValue())
    if reader.GetNumberOfComponents() != 1 or "complex" in kind:
        raise BadVolume(
            f"{str(path)!r} has {reader.GetNumberOfComponents()} numbers in each voxel ({kind}); one is wanted.",
            "Export it in grey values, one volume a file.",
        )
    if len(size) < 3 or (len(size) > 3 and max(size[3:]) > 1):
        raise BadVolume(
            f"{str(path)!r} is {len(size)}D ({' x '.join(map(str, size))} voxels); a 3D volume is wanted.",
            "Give the whole stack of slices." if len(size) < 3 else "Choose one of its frames.",
        )
    n = len(size)
    direction = np.reshape(reader.GetDirection(), (n, n))[:3, :3].ravel()
    _check_geometry(path, size[:3], reader.GetSpacing()[:3], reader.GetOrigin()[:3], direction)
    wanted = int(np.prod(size)) * int(kind.partition("-")[0]) // 8  # kind is like '16-bit signed integer'
    if path.name.endswith((".nii", ".nii.gz")):
        _check_nifti(path, wanted)
    if path.suffix == ".mha":
        _check_length(path, path.stat().st_size, _mha_length(path, wanted))
    image: sitk.Image = reader.Execute()
    return image if n == 3 else image[(slice(None),) * 3 + (0,) * (n - 3)]


def _check_geometry(path: Path, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], direction: Any) -> None:
    if size[2] < 2 or min(size) < 2:
        raise BadVolume(
            f"{str(path)!r} has {' x '.join(map(str, size))} voxels; at least 2 slices of 2 x 2 are wanted.",
            "Give the whole stack of slices; for DICOM, the folder.",
        )
    fault = geometry_fault(size, spacing, origin, direction)
    if fault:
        raise BadVolume(f"{str(path)!r} has {fault}.", "Correct its header, or export it again from the scanner's data.")


def _check_nifti(path: Path, voxel_bytes: int) -> None:
    # Trap: ITK turns a voxel size of zero into 1 mm and fills a file that was cut short with chance values, both without a word.
    with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
        header = file.read(348)
        length = len(header)
        while block := file.read(1 << 20):  # to the end, where gzip compares its checksum
            length += len(block)
    order = "<" if header[:4] == struct.pack("<i", 348) else ">"
    if struct.unpack(f"{order}i", header[:4])[0] != 348 or header[344:348] != b"n+1\0":
        return  # NIfTI-2, or a header beside its image
    spacing = struct.unpack(f"{order}3f", header[80:92])
    if not all(np.isfinite(spacing)) or min(spacing) <= 0:
        raise BadVolume(f"{str(path)!r} has the spacing {spacing} mm; positive numbers are wanted.", "Correct its header.")
    _check_length(path, length, 352 + voxel_bytes)


def _mha_length(path: Path, voxel_bytes: int) -> int:
    """How long the file must be; MetaIO writes about a shorter one straight onto the console."""
    with open(path, "rb") as file:
        header, end, _ = file.read(1 << 16).partition(b"ElementDataFile = LOCAL\n")
    if not end:
        return 0  # the voxels lie elsewhere
    packed = re.search(rb"CompressedDataSize = (\d+)", header)
    return len(header + end) + (int(packed[1]) if packed else 0 if b"CompressedData = True" in header else voxel_bytes)


def _check_length(path: Path, length: int, wanted: int) -> None:
    if length < wanted:
        raise BadVolume(f"{str(path)!r} ends after {length} bytes; {wanted} are wanted.", "Copy the file again.")


def _series(folder: Path) -> sitk.Image:
    """The image of the only DICOM series in a folder."""
    ids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in ids}
    if not files:
        raise BadVolume(f"the folder {str(folder)!r} holds no DICOM images; one series is wanted.", "Choose the folder of the series.")
    if len(files) > 1:
        found = "; ".join(f"{uid} ({_tag(_head(names[0]), '0008|103e') or 'no description'})" for uid, names in files.items())
        raise BadVolume(f"the folder {str(folder)!r} holds {len(files)} DICOM series: {found}; one is wanted.", "Choose one.")
    (names,) = files.values()
    if len(names) == 1:
        return _file(Path(names[0]))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(_stack(folder, names))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    image: sitk.Image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise BadVolume(f"the DICOM series in {str(folder)!r} is in colour; grey values are wanted.", "Choose another series.")
    _check_geometry(folder, image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    return image


# SOP classes whose files keep position and orientation in sequences, which SimpleITK understands but does not show as tags
ENHANCED = ("1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.130")


def _stack(folder: Path, names: Sequence[str]) -> list[str]:
    """The files in the order of their slices; refuses slices that are not one evenly spaced stack, which ITK only warns of."""
    where = f"the DICOM series in {str(folder)!r}"
    heads = [_head(name) for name in names]
    if not all((_tag(h, "0020|0032") and _tag(h, "0020|0037")) or _tag(h, "0008|0016") in ENHANCED for h in heads):
        raise BadVolume(f"{where} has slices without a position; image position and orientation are wanted.", "Export it again.")
    axes = np.array([h.GetDirection() for h in heads])
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise BadVolume(f"{where} has slices that are not parallel; one stack is wanted.", "Leave the localiser images out.")
    places, normal = np.array([h.GetOrigin() for h in heads]), axes[0].reshape(3, 3)[:, 2]
    order = np.argsort(places @ normal)
    places = places[order]
    gaps = np.diff(places @ normal)
    gap = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise BadVolume(f"{where} has several slices at one position; one image is wanted.", "Separate its echoes, phases or times.")
    if np.abs(gaps - gap).max() > 0.1 * gap:
        widest = int(np.abs(gaps - gap).argmax())
        raise BadVolume(
            f"{where} has a gap of {gaps[widest]:.2f} mm after slice {widest + 1} of {len(names)} where {gap:.2f} mm are wanted.",
            "Copy the missing slices into the folder.",
        )
    travel = places[-1] - places[0]
    if np.linalg.norm(travel - (travel @ normal) * normal) > 0.01 * np.linalg.norm(travel):
        raise BadVolume(f"{where} was taken with a tilted gantry; slices stacked at right angles are wanted.", "Resample it in Slicer.")
    return [names[k] for k in order]


def _head(name: str) -> sitk.ImageFileReader:
    """The geometry and tags of a file."""
    head = sitk.ImageFileReader()
    head.SetFileName(name)
    head.ReadImageInformation()
    return head


def _tag(head: sitk.ImageFileReader, key: str) -> str:
    return str(head.GetMetaData(key)).strip(" \0") if head.HasMetaDataKey(key) else ""


def reason(error: Exception) -> str:
    """The first sentence of the last line of an ITK error, without the name and address of the filter."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return re.sub(r"^(sitk::ERROR: |ITK ERROR: \w+\(0x\w+\): )", "", line.strip()).partition(". ")[0].rstrip(".")


def to_itk(array: Float32[np.ndarray, "D H W"], grid: Grid) -> sitk.Image:
    """A SimpleITK image of an array on its grid."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction)
    return image


def _grid(image: sitk.Image) -> Grid:
    x, y, z = image.GetSize()
    return Grid((x, y, z), triple(image.GetSpacing()), triple(image.GetOrigin()), image.GetDirection())
