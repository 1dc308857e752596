"""What is wrong with a cohort, found before hours are spent on it: harm3 check.

cohort.csv --scan_cohort--> faults of the table
           --table_problems--> problems between its rows and columns
           --look, in worker processes--> problems of each case's files; every volume is read once
"""

from __future__ import annotations

import hashlib
import os
import shutil
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from HARM3Logic import volume
from HARM3Logic.case import MASKS, MRI, SEQUENCES, Case, holds_features
from HARM3Logic.cohort import scan_cohort
from HARM3Logic.cohort_rules import Problem, error, summary, table_problems, warning
from HARM3Logic.errors import BadCohort, BadVolume, HARM3Error
from HARM3Logic.feature_file import load
from HARM3Logic.grid import Grid
from HARM3Logic.registration import one_thread
from HARM3Logic.slide import Slide, tile_grid
from HARM3Logic.tiles import TileSettings
from HARM3Logic.tissue import TissueSettings
from HARM3Logic.volume_quality import quality

MOST_WORKERS = 8


@dataclass(frozen=True)
class Report:
    """All problems in the order of the table, and a sentence about the cohort."""

    problems: tuple[Problem, ...]
    summary: str

    @property
    def errors(self) -> int:
        """How many of the problems are errors."""
        return sum(p.severity == "error" for p in self.problems)

    def to_list(self) -> list[dict[str, str]]:
        """The problems as JSON takes them."""
        return [asdict(p) for p in self.problems]


@dataclass(frozen=True)
class Seen:
    """What the files of one case showed: problems, and a fingerprint of each volume's voxels."""

    problems: tuple[Problem, ...]
    prints: Mapping[str, str] = field(default_factory=dict)


def check_cohort(
    path: str | os.PathLike[str], workers: int | None = None, on_progress: Callable[[int, int], None] = lambda done, cases: None
) -> Report:
    """Everything wrong with a cohort table and its files.

    Args:
        workers: processes that read the files; None takes one per core (at most 8), 0 works in this process.
        on_progress: told how many cases' files were read, and of how many.
    """
    try:
        table = scan_cohort(path)
    except BadCohort as fault:
        return Report((error("", "", "table", fault.message, fault.advice),), summary(()))
    problems = list(table_problems(table))
    seen: list[Seen] = []
    for found in _each(table.cases, workers):
        seen.append(found)
        problems += found.problems
        on_progress(len(seen), len(table.cases))
    problems += _same_volumes(table.cases, seen)
    problems += _same_slides(table.cases)
    order = {case.case_id: k for k, case in enumerate(table.cases)}
    problems.sort(key=lambda p: (order.get(p.case_id, -1), p.severity))  # "error" before "warning", else as found
    return Report(tuple(problems), summary(table.cases))


def as_table(report: Report, width: int | None = None) -> str:
    """The problems as text in four columns, wrapped; then how many they are and what the cohort is.

    Args:
        width: characters of a line; None takes those of the terminal, or 140 where there is none.
    """
    width = width or shutil.get_terminal_size((140, 24)).columns
    rows = [(p.severity, p.case_id or "(all)", p.message, p.advice) for p in report.problems]
    name = min(24, max([4, *(len(row[1]) for row in rows)]))
    rest = max(40, width - 7 - name - 6)
    widths = (7, name, rest * 3 // 5, rest - rest * 3 // 5)
    lines = []
    for row in [("", "case", "problem", "what to do"), *rows] if rows else []:
        cells = [textwrap.wrap(text, w) or [""] for text, w in zip(row, widths, strict=True)]
        for k in range(max(map(len, cells))):
            lines.append("  ".join((c[k] if k < len(c) else "").ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip())
    if not rows:
        return f"No problems. {report.summary}"
    return "\n".join([*lines, "", f"Errors: {report.errors}, warnings: {len(rows) - report.errors}. {report.summary}"])


def _each(cases: Sequence[Case], workers: int | None) -> Iterator[Seen]:
    """What each case's files show, in order."""
    count = min(os.cpu_count() or 1, MOST_WORKERS) if workers is None else workers
    count = min(count, len(cases))
    if count < 1:
        yield from map(look, cases)
        return
    # spawn: a forked copy of ITK's threads can hang
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        futures: list[Future[Seen]] = []
        with suppress(BrokenProcessPool):  # the cases not handed in are looked at alone, below
            for case in cases:
                futures.append(pool.submit(look, case))
        try:
            for k, case in enumerate(cases):
                yield _result(futures[k], case) if k < len(futures) else _alone(case)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C: start no other case
            raise


def _result(future: Future[Seen], case: Case) -> Seen:
    try:
        return future.result()
    except BrokenProcessPool:  # one case took the pool with it: all that were not finished are looked at again, each by itself
        return _alone(case)


def _alone(case: Case) -> Seen:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(look, case).result()
        except BrokenProcessPool:
            message = "Reading the case's files ended the reading process: a file is damaged or larger than the memory."
            return Seen((error(case.case_id, "", "crash", message, "Open the files one by one in Slicer and replace the bad one."),))


def look(case: Case) -> Seen:
    """Read every file of a case, one after the other, and say what is wrong with each and between them."""
    problems: list[Problem] = []
    grids: dict[str, Grid] = {}
    prints: dict[str, str] = {}
    for name in (*MRI, "ct", *MASKS):
        for path in case.inputs.get(name, ()):
            if path.exists():  # told before where it does not
                problems += _look_at_volume(case, name, path, grids, prints)
    problems += _apart(case, grids)
    for path in case.inputs.get("slide", ()):
        if path.exists():
            problems += _look_at_slide(case, path)
    return Seen(tuple(problems), prints)


def _look_at_volume(case: Case, name: str, path: Path, grids: dict[str, Grid], prints: dict[str, str]) -> Iterator[Problem]:
    """Notes grid and fingerprint of a volume that can be read."""
    try:
        read = volume.read_mask(path) if name in MASKS else volume.read(path)
        grids[name] = read.grid
        # of the voxels, not the file: one scan saved twice differs in its header's dates, or in its format
        prints[name] = hashlib.blake2b(str(read.array.shape).encode() + read.array.tobytes(), digest_size=16).hexdigest()
        if name in MASKS:
            return
        with one_thread:  # the processes fill the cores
            for code, sentence in quality(volume.canonical(read)):
                yield warning(case.case_id, name, code, f"{name}: {sentence}", "Look at it in Slicer.")
    except HARM3Error as fault:
        yield error(case.case_id, name, fault.code, f"{name}: {fault.message}", fault.advice)
    except MemoryError:
        yield error(case.case_id, name, "memory", f"{name}: {str(path)!r} does not fit into memory.", "Check its size.")


def _apart(case: Case, grids: Mapping[str, Grid]) -> Iterator[Problem]:
    """Volumes that share no point: registration starts from patient coordinates and needs one."""
    volumes = [name for name in MRI if name in grids]
    anchors: dict[str, str] = {}  # timepoint to the volume its other sequence and its mask follow
    for name in volumes:
        fixed = anchors.setdefault(name.split("_")[1], name)
        yield from _pair(case, name, fixed if fixed != name else volumes[0], grids)
    for name in MASKS:
        timepoint = name.split("_")[1]
        shown = "ct" if timepoint == "ct" else next((f"{s}_{timepoint}" for s in SEQUENCES if f"{s}_{timepoint}" in grids), "")
        if name in grids and shown in grids:
            yield from _pair(case, name, shown, grids)


def _pair(case: Case, name: str, other: str, grids: Mapping[str, Grid]) -> Iterator[Problem]:
    if not overlap(grids[name], grids[other]):
        gap = np.linalg.norm(np.subtract(grids[name].centre_mm, grids[other].centre_mm))
        message = f"{name} and {other} share no point of the patient; their centres are {gap:.0f} mm apart."
        yield error(case.case_id, name, "no_overlap", message, "Check that they belong to one patient; align them in Slicer.")


def overlap(one: Grid, other: Grid) -> bool:
    """Whether the boxes of two grids share space (separating axes, so oblique boxes are told exactly)."""
    axes = [*one.axes.T, *other.axes.T, *(np.cross(a, b) for a in one.axes.T for b in other.axes.T)]
    for axis in axes:
        length = np.linalg.norm(axis)
        if length > 1e-6:  # parallel edges have no common normal
            a, b = one.corners_mm @ axis / length, other.corners_mm @ axis / length
            if a.max() <= b.min() or b.max() <= a.min():
                return False
    return True


def _look_at_slide(case: Case, path: Path) -> Iterator[Problem]:
    try:
        if holds_features(path):
            load(path)
            return
        with Slide.open(path, case.slide_mpp) as slide:
            for sentence in slide.warnings:
                yield warning(case.case_id, "slide", "slide_file", sentence, "Look at its colours.")
            tile_grid(slide, TissueSettings(blur_samples=0), TileSettings())
    except HARM3Error as fault:
        yield error(case.case_id, "slide", fault.code, f"slide: {fault.message}", fault.advice)


def _same_volumes(cases: Sequence[Case], seen: Sequence[Seen]) -> Iterator[Problem]:
    """One image in two places: under two patients, or as two inputs of one case."""
    places: dict[str, list[tuple[Case, str]]] = defaultdict(list)
    for case, found in zip(cases, seen, strict=True):
        for name, digest in found.prints.items():
            places[digest].append((case, name))
    for found_at in places.values():
        yield from _repeated(found_at, "same_image", "image")


def _same_slides(cases: Sequence[Case]) -> Iterator[Problem]:
    """Slides are large: only those of one length are compared."""
    by_length: dict[int, list[tuple[Case, Path]]] = defaultdict(list)
    for case in cases:
        for path in case.inputs.get("slide", ()):
            if path.exists():
                files = [f for f in path.iterdir() if f.is_file()] if path.is_dir() else [path]
                by_length[sum(f.stat().st_size for f in files)].append((case, path))
    for alike in by_length.values():
        places: dict[str, list[tuple[Case, str]]] = defaultdict(list)
        for case, path in alike if len(alike) > 1 else ():
            try:
                places[volume.sha256(path)].append((case, "slide"))
            except BadVolume as fault:
                yield error(case.case_id, "slide", "unreadable", f"slide: {fault.message}", fault.advice)
        for found_at in places.values():
            yield from _repeated(found_at, "same_slide", "slide")


def _repeated(places: Sequence[tuple[Case, str]], code: str, what: str) -> Iterator[Problem]:
    first, its_name = places[0]
    for case, name in places[1:]:
        if case.case_id == first.case_id:
            message = f"{name} and {its_name} hold the same {what}." if name != its_name else f"{name} names the same {what} twice."
            yield error(case.case_id, name, code, message, "Name the file that is meant.")
        elif (case.patient_id or case.case_id) != (first.patient_id or first.case_id):
            message = f"{name} holds the same {what} as {its_name} of {first.case_id!r}, who is another patient."
            yield error(case.case_id, name, code, message, "Find out whose it is, or give both cases one patient_id.")
