"""Which image of a folder is which input: from names, dates, DICOM headers; every choice with its reason, for the user to correct."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from HARM3Logic.case import MRI, Case
from HARM3Logic.errors import BadCase
from HARM3SlicerLib import names
from HARM3SlicerLib.readings import Reading, readSequence, readTimes
from HARM3SlicerLib.series import Candidate, candidates, hasPydicom

ROLES = (*MRI, "slide", "tumour_pre", "tumour_post", "ct", "tumour_ct")
WANTED = (*MRI, "slide")
CLOSE = 0.5  # scores nearer than this are a draw
STAINS = {"ki67", "p16", "cd3", "cd8", "pdl1", "pd", "ihc", "ck", "p53", "ebv", "her2"}
NOT_SLIDE = {"macro", "label", "thumbnail", "thumb", "overview", "mask", "attention"}


@dataclass(frozen=True)
class Choice:
    """The image chosen for a role.

    Args:
        path: what to load: a file, or the folder of one DICOM series.
        files: all files of a DICOM series (load these when `shared`), or all slides of the case.
        shared: the series lies in a folder with others, so that its folder does not name it.
        reason: one sentence for the user.
    """

    role: str
    path: Path
    name: str
    reason: str
    score: float = 0.0
    date: str = ""
    patient: str = ""
    files: tuple[Path, ...] = ()
    shared: bool = False


@dataclass(frozen=True)
class Left:
    """An image no role was found for, and why; `files` and `shared` as in `Choice`."""

    path: Path
    name: str
    reason: str
    files: tuple[Path, ...] = ()
    shared: bool = False


@dataclass(frozen=True)
class Doubt:
    """A doubt about the choice; `code` is one of missing_role, dates_swapped, same_date, more_visits, different_patients,
    ambiguous, no_contrast, shared_folder, no_pydicom."""

    code: str
    message: str


@dataclass(frozen=True)
class Assignment:
    """What a folder holds for each role; `case` is set when the folder has a case.json, which then alone decides."""

    folder: Path
    choices: dict[str, Choice] = field(default_factory=dict)
    unassigned: tuple[Left, ...] = ()
    warnings: tuple[Doubt, ...] = ()
    case: Case | None = None

    def paths(self) -> dict[str, Path]:
        """Role to what is to be loaded."""
        return {role: choice.path for role, choice in self.choices.items()}


def assign(folder: Path, wanted: Iterable[str] = WANTED) -> Assignment:
    """The role of each image in a folder.

    Args:
        wanted: roles whose absence is worth a warning.

    Raises:
        BadCase: the folder cannot be used, or its case.json cannot.
    """
    steps = assignSteps(folder, wanted)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def assignSteps(folder: Path, wanted: Iterable[str] = WANTED) -> Generator[str, None, Assignment]:
    """`assign` in small steps, each giving the name of the file looked at, for an event loop; the assignment is the generator's value."""
    folder, wanted = Path(folder), tuple(role for role in wanted if role in ROLES)  # clinical values are no image
    if (folder / "case.json").is_file():
        return _ofCase(folder, wanted)
    found = yield from candidates(folder)
    if not found:
        raise BadCase(
            f"{str(folder)!r} holds no image; volumes (NRRD, NIfTI, MHA or DICOM) and a slide of one patient are wanted.",
            "Choose another folder.",
        )
    return _decide(folder, found, wanted)


def _ofCase(folder: Path, wanted: tuple[str, ...]) -> Assignment:
    case = Case.read(folder / "case.json")
    choices = {
        role: Choice(role, paths[0], paths[0].name, "case.json says so.", patient=case.patient_id, files=paths)
        for role, paths in case.inputs.items()
    }
    gone = [f"{role} ({choice.path.name})" for role, choice in choices.items() if not choice.path.exists()]
    warnings = [Doubt("missing_role", f"case.json names a file that is not there: {name}.") for name in gone]
    warnings += [Doubt("missing_role", f"case.json names no {role}.") for role in wanted if role not in choices]
    return Assignment(folder, choices, warnings=tuple(warnings), case=case)


def _decide(folder: Path, found: list[Candidate], wanted: tuple[str, ...]) -> Assignment:
    """The best candidate for each role."""
    readings = [Reading(image, names.read(image.text), names.read(image.folderText)) for image in found]
    volumes = [r for r in readings if not r.isSlide and not r.image.unread]
    for reading in volumes:
        readSequence(reading)
    hasMri = any(r.sequence and not r.isMask for r in volumes)
    for reading in volumes:
        reading.ofCt = reading.isMask and not reading.sequence and (reading.own.ct or reading.above.ct or not hasMri)
    readTimes([r for r in volumes if (r.sequence or r.isMask) and not r.ofCt])
    ranked = {role: _rank(role, readings) for role in ROLES}
    choices = {role: _choice(role, *entries[0]) for role, entries in ranked.items() if entries}
    taken = {choice.path for choice in choices.values()} | {f for choice in choices.values() for f in choice.files}
    rest = [r for r in readings if not taken & {r.image.path, *r.image.files}]
    left = [Left(r.image.path, r.image.name, _whyLeft(r, ranked), r.image.files, r.image.shared) for r in rest]
    missed = [role for role in wanted if role not in choices]
    doubts = [Doubt("missing_role", f"No image for {role} was found; choose one if there is one.") for role in missed]
    doubts += _doubtsOfTime(choices, readings) + _doubtsOfPatient([entries[0][1] for entries in ranked.values() if entries])
    for role, entries in ranked.items():
        doubts += _doubtsOfChoice(role, entries)
    if any(r.image.modality == "DICOM" for r in readings) and not hasPydicom():
        doubts.append(Doubt("no_pydicom", "pydicom is not installed, so DICOM files were judged by their names alone."))
    return Assignment(folder, choices, tuple(left), tuple(doubts))


def _rank(role: str, readings: list[Reading]) -> list[tuple[float, Reading]]:
    """The candidates for a role with their scores, best first."""
    scored = [(_score(role, r), r) for r in readings if not r.image.unread]
    return sorted(((s, r) for s, r in scored if s > 0), key=lambda entry: (-entry[0], -len(entry[1].image.files), entry[1].image.name))


def _score(role: str, reading: Reading) -> float:
    """How well a candidate fits a role; 0: not at all."""
    image, own = reading.image, reading.own
    if role == "slide" or reading.isSlide:
        return _slideScore(reading) if role == "slide" and reading.isSlide else 0.0
    isCt = image.modality == "CT" or (image.modality == "volume" and (own.ct or reading.above.ct) and not reading.sequence)
    if role == "ct":
        return 2.0 if isCt and not reading.isMask and not own.other else 0.0
    if role == "tumour_ct":
        return 2.0 * reading.ofCt
    kind, _, time = role.rpartition("_")
    if reading.time != time or isCt or own.other:
        return 0.0
    if kind == "tumour":
        return (2.0 + 0.5 * (reading.sequence == "t1") - 1.0 * reading.assumed) if reading.isMask else 0.0
    if reading.sequence != kind or reading.isMask:
        return 0.0
    score = 4.0 + {True: 2.0, False: -2.0, None: 0.0}[reading.contrast] * (kind == "t1") - 0.5 * own.stir - 1.0 * reading.assumed
    score += {True: 0.5, False: -0.5, None: 0.0}[own.axial]
    if image.te is not None and (image.te > 60) != (kind == "t2"):
        score -= 1.0
    return score - 2.0 * (image.modality == "MR" and len(image.files) < 5)  # a scout


def _slideScore(reading: Reading) -> float:
    words = set(names.words(reading.image.text))
    if words & NOT_SLIDE:
        return 0.0
    plain = reading.image.path.suffix.lower() in (".tif", ".tiff")
    biopsy = bool(words & {"biopsy", "bx", "biopsie", "he"})
    return 3.0 + 1.0 * biopsy - 1.0 * plain - 1.5 * bool(words & {"resection", "surgery"}) - 1.5 * bool(words & STAINS)


def _choice(role: str, score: float, reading: Reading) -> Choice:
    image = reading.image
    if role == "slide":
        said = ["a whole-slide image by its ending" if image.modality == "slide" else "slide microscopy by its header"]
    elif role == "ct":
        said = ["CT by its header" if image.modality == "CT" else "CT by its name"]
    elif role == "tumour_ct":
        said = ["a mask by its name, drawn on CT"]
    else:
        said = [*(["a mask by its name"] if reading.isMask else reading.said), reading.why]
    text = ", ".join(part for part in said if part)
    reason = f"{text[0].upper()}{text[1:]}."
    return Choice(role, image.path, image.name, reason, score, reading.date, image.patient or reading.own.patient or reading.above.patient,
                  image.files, image.shared)  # fmt: skip


def _whyLeft(reading: Reading, ranked: dict[str, list[tuple[float, Reading]]]) -> str:
    """Why a candidate got no role."""
    for role, entries in ranked.items():
        if any(r is reading for _, r in entries):
            return f"Could be {role}, but {entries[0][1].image.name!r} fits better."
    if reading.image.unread:
        return reading.image.unread[0].upper() + reading.image.unread[1:] + "."
    if reading.own.other:
        return f"{reading.own.other!r} in its name: no input is made of it."
    if reading.isSlide:
        return "Its name says that it is no slide of the tissue."
    if reading.isMask or reading.sequence:
        why = reading.why if reading.between else "nothing says whether before or after therapy"
        return f"{'A mask' if reading.isMask else reading.sequence.upper()}, but {why}."
    return "Nothing in its name or header says what it is."


def _doubtsOfTime(choices: dict[str, Choice], readings: list[Reading]) -> list[Doubt]:
    """Dates that contradict the timepoints."""
    found = []
    dates = {time: sorted({c.date for role, c in choices.items() if c.date and role.endswith(time)}) for time in ("pre", "post")}
    if dates["pre"] and dates["post"]:
        if min(dates["post"]) < max(dates["pre"]):
            text = f"The images after therapy ({dates['post'][0]}) are older than those before it ({dates['pre'][-1]}); are they swapped?"
            found.append(Doubt("dates_swapped", text))
        elif set(dates["pre"]) & set(dates["post"]):
            found.append(Doubt("same_date", f"Images before and after therapy have the same date, {dates['pre'][-1]}; one may be wrong."))
    if any(reading.between for reading in readings):
        found.append(Doubt("more_visits", "The folder holds more than two visits; the first and the last were taken."))
    return found


def _doubtsOfPatient(chosen: list[Reading]) -> list[Doubt]:
    """Images of more than one patient; ids of headers and of names are not compared with each other."""
    for ids in ({r.image.patient for r in chosen}, {r.own.patient or r.above.patient for r in chosen}):
        if len(ids - {""}) > 1:
            return [Doubt("different_patients", f"The images are of different patients: {', '.join(sorted(ids - {''}))}.")]
    return []


def _doubtsOfChoice(role: str, entries: list[tuple[float, Reading]]) -> list[Doubt]:
    """What speaks against the best candidate of a role."""
    found = []
    for score, best in entries[:1]:
        name = repr(best.image.name)
        if rivals := [r.image.name for s, r in entries[1:] if score - s < CLOSE]:
            text = f"{role}: {name} was chosen, but {rivals[0]!r} fits as well; choose by hand if it is wrong."
            found.append(Doubt("ambiguous", text))
        if role.startswith("t1") and best.contrast is False:
            text = f"{role}: {name} is said to be without contrast agent; a contrast-enhanced T1 is wanted."
            found.append(Doubt("no_contrast", text))
        if best.image.shared:
            text = f"{role}: the folder of {name} holds other series too; {len(best.image.files)} of its files were taken."
            found.append(Doubt("shared_folder", text))
    return found
