"""Prepare every case of a cohort once and keep the tensors on disk."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from HARM3Logic import clinical, volume
from HARM3Logic.batch import Prepared
from HARM3Logic.case import INPUTS, MASKS, MRI, Case
from HARM3Logic.clinical import Schema
from HARM3Logic.errors import BadCohort, BadVolume, HARM3Error, OutOfMemory
from HARM3Logic.prepare import NO_SCHEMA, Preprocessing, prepare
from HARM3Logic.progress import progress
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.writing import whole

USUAL = (*MRI, "slide")
OURS = ("HARM3Logic", "Training")
FIELDS = {  # input to the tensors that are kept of it
    **dict.fromkeys(MRI, ("mri", "mri_mask", "body", "tumour")),
    "slide": ("tiles", "tile_xy_um"),
    "ct": ("ct",),
    "clinical": ("clinical", "clinical_mask"),
}
_encoder: TileEncoder | None = None  # one per worker process


class Cache:
    """Prepared cases on disk, read one at a time so that memory does not grow with the cohort.

    Args:
        fields: the tensors that are read; None for all that are there.
    """

    def __init__(self, paths: Sequence[Path], cases: Sequence[Case], fields: frozenset[str] | None = None) -> None:
        self.paths, self.cases, self.fields = tuple(paths), tuple(cases), fields

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Prepared:
        with safe_open(self.paths[index], "pt") as file:
            names = [name for name in file.keys() if self.fields is None or name in self.fields]  # noqa: SIM118 - not a dictionary
            tensors = {name: file.get_tensor(name) for name in names}
        case = self.cases[index]
        return Prepared(case_id=case.case_id, label=case.label, **tensors)

    def __iter__(self) -> Iterator[Prepared]:
        return (self[index] for index in range(len(self)))


def build(
    cases: Sequence[Case],
    settings: Preprocessing,
    encoder: str,
    folder: Path,
    *,
    wanted: Sequence[str] = USUAL,
    read: Sequence[str] | None = None,
    schema: Schema = NO_SCHEMA,
    ignore_masks: bool = False,
    device: str = "cpu",
    workers: int | None = None,
) -> Cache:
    """Prepare what is not yet there; a case is prepared again when its files, the settings or the code of `prepare` change.

    Args:
        encoder: file or name of the tile encoder; it is not looked for where no slide is wanted.
        wanted: what the models read that will be trained on it.
        read: what one of them reads, where several share the folder: the rest need not be read, moved and changed for it.
        schema: of the clinical values.
        workers: processes; None takes one per core, or one in all where the encoder runs on a GPU.

    Raises:
        BadCohort: cases cannot be prepared; every one is named with its reason.
        OutOfMemory: the system ended a process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _whole_modalities(wanted)
    encoder = encoder if "slide" in wanted else ""
    weights = TileEncoder.load(encoder, device).weights_sha256 if encoder else ""
    made_of = [code_of_prepare(), dataclasses.asdict(settings), weights, ignore_masks]
    if wanted != USUAL:
        made_of += [wanted, schema.to_dict() if "clinical" in wanted else None]
    salt = json.dumps(made_of, sort_keys=True)
    paths = [folder / f"{case.case_id}.{_key(case, salt, wanted, ignore_masks)}.safetensors" for case in cases]
    missing = [(case, path) for case, path in zip(cases, paths, strict=True) if not _whole(path)]
    if missing:
        work = partial(_prepare_one, settings=settings, wanted=wanted, schema=schema, ignore_masks=ignore_masks)
        failures = _prepare_all(missing, work, encoder, device, workers)
        if failures:
            listed = "; ".join(failures[:5]) + (f"; and {len(failures) - 5} more" if len(failures) > 5 else "")
            raise BadCohort(
                f"{len(failures)} of {len(cases)} cases cannot be prepared: {listed}", "Mend or remove them; the others are kept."
            )
    return Cache(paths, cases, None if read is None else frozenset(field for name in read for field in FIELDS[name]))


def _whole_modalities(wanted: Sequence[str]) -> tuple[str, ...]:
    """In the house's order; with one volume of an MRI all of them, since grid and registration depend on all."""
    seeing = any(name in MRI for name in wanted)
    return tuple(name for name in INPUTS if name in wanted or (seeing and name in MRI))


def code_of_prepare() -> str:
    """Hash of all code that makes a case's tensors."""
    return hash_of_code("HARM3Logic.prepare")


@cache
def hash_of_code(*modules: str) -> str:
    """Hash of modules of ours and of all that they stand on."""
    return hashlib.sha256("".join(source for _, source in sorted(sources(*modules).items())).encode()).hexdigest()


def sources(*modules: str) -> dict[str, str]:
    """The source of modules of ours and of every one of ours that they import, by name."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        spec = importlib.util.find_spec(waiting.pop())
        if spec is None or spec.origin is None or spec.name in found:
            continue
        found[spec.name] = Path(spec.origin).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(found[spec.name])):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in OURS:
                package = node.module in OURS
                waiting += [f"{node.module}.{alias.name}" for alias in node.names] if package else [node.module]
    return found


def _prepare_all(
    missing: list[tuple[Case, Path]], work: Callable[[Case, Path], str], encoder: str, device: str, workers: int | None
) -> list[str]:
    count = workers or (1 if device.startswith("cuda") else os.cpu_count() or 1)
    count = min(count, len(missing))
    try:
        # spawn: a forked copy of torch's or ITK's threads can hang
        with ProcessPoolExecutor(count, get_context("spawn"), _start, (encoder, device)) as pool:
            reasons = progress(pool.map(work, *zip(*missing, strict=True)), "preparing", len(missing), unit="case")
            return [reason for reason in reasons if reason]
    except BrokenProcessPool as error:
        raise OutOfMemory(
            f"one of {count} processes that prepare cases was ended by the system, most likely for want of memory.",
            "Start again with fewer --workers; what is prepared is kept.",
        ) from error


def _start(encoder: str, device: str) -> None:
    global _encoder
    torch.set_num_threads(1)  # one process per core: more threads would only wait for each other
    _encoder = TileEncoder.load(encoder, device) if encoder else None


def _prepare_one(case: Case, path: Path, *, settings: Preprocessing, wanted: Sequence[str], schema: Schema, ignore_masks: bool) -> str:
    try:
        prepared = prepare(case, settings, _encoder, wanted=wanted, schema=schema, ignore_masks=ignore_masks)
    except HARM3Error as error:
        return f"{case.case_id}: {error.message}"
    fields = dict.fromkeys(field for name in wanted for field in FIELDS[name])  # a slide alone has volumes of nothing beside it
    tensors = {name: getattr(prepared, name) for name in fields if getattr(prepared, name) is not None}
    with whole(path) as temporary:
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
    return ""


def _key(case: Case, salt: str, wanted: Sequence[str], ignore_masks: bool) -> str:
    """Changes when a file's content or a setting does."""
    read = (*(name for name in wanted if name != "clinical"), *(() if ignore_masks else MASKS))
    digest = hashlib.sha256(salt.encode())
    for name in (name for name in read if name in case.inputs):
        for path in case.inputs[name]:
            try:
                digest.update(f"{name} {volume.sha256(path)} {case.slide_mpp}".encode())
            except BadVolume as error:
                raise BadCohort(f"case {case.case_id!r}, {name}: {error.message}", error.advice) from error
    if "ct" in wanted:
        digest.update(repr(case.tumour_point_mm).encode())
    if "clinical" in wanted:
        digest.update(json.dumps(clinical.row_of(case), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _whole(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt"):
            return True
    except (SafetensorError, OSError):  # cut short by a crash of the machine: prepare it again
        return False
