"""Sequence, contrast agent and timepoint of each image of a folder, from what its names and headers say and from the others beside it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field

from HARM3SlicerLib.names import Evidence
from HARM3SlicerLib.series import Candidate

SAME_VISIT = datetime.timedelta(days=14)  # therapy takes longer than a visit


@dataclass
class Reading:
    """A candidate and what was made of it."""

    image: Candidate
    own: Evidence
    above: Evidence
    time: str = ""
    why: str = ""
    contrast: bool | None = None
    sequence: str = ""
    said: list[str] = field(default_factory=list)
    assumed: bool = False  # its timepoint is a guess from the others
    between: bool = False  # neither of the first nor of the last visit
    ofCt: bool = False  # a mask drawn on CT

    @property
    def date(self) -> str:
        return self.image.date or self.own.date or self.above.date

    @property
    def ordinal(self) -> int | None:
        return self.own.ordinal if self.own.ordinal is not None else self.above.ordinal

    @property
    def isSlide(self) -> bool:
        return self.image.modality in ("slide", "SM")

    @property
    def isMask(self) -> bool:
        fromHeader = self.image.modality not in ("volume", "slide")
        return not fromHeader and (self.own.mask or (self.above.mask and not self.own.sequence))


def readSequence(reading: Reading) -> None:
    """T1 or T2 and contrast agent, from names and from TR, TE and agent of a DICOM header."""
    image, own, above = reading.image, reading.own, reading.above
    reading.sequence = own.sequence or above.sequence
    if reading.sequence:
        word = "T1" if reading.sequence == "t1" else "STIR, a kind of T2" if own.stir else "T2"
        reading.said.append(f"{word} by its {'name' if own.sequence else 'folder'}")
    elif image.tr is not None and image.te is not None and not own.other:
        reading.sequence = "t1" if image.te < 30 and image.tr < 1500 else "t2" if image.te > 60 and image.tr > 1500 else ""
        if reading.sequence:
            reading.said.append(f"{reading.sequence.upper()} by TR {image.tr:g} ms and TE {image.te:g} ms")
    reading.contrast = own.contrast if own.contrast is not None else above.contrast
    if image.contrast:
        reading.contrast = True
        reading.said.append(f"contrast agent {image.contrast}")
    elif reading.contrast is not None and reading.sequence == "t1":
        reading.said.append("with contrast agent" if reading.contrast else "without contrast agent")


def readTimes(readings: list[Reading]) -> None:
    """Before or after therapy: by words, else by the number of the visit, else by date, else by what is left."""
    for reading in readings:
        own, above = reading.own, reading.above
        reading.time = own.time or above.time
        reading.why = f"{reading.time} by its {'name' if reading.time == own.time else 'folder'}" if reading.time else ""
        if above.time and own.time and not own.strong and (above.time != own.time or _siblings(reading, readings)):
            _meansContrast(reading, above.time)
    group = [r for r in readings if r.sequence == "t1" and not r.isMask]  # "T1_post" at each of two visits speaks of contrast agent
    plain = [r for r in group if r.own.time and not r.own.strong and not r.above.time]
    visits = {r.date for r in group if r.date} or {r.ordinal for r in group}
    if len(visits) > 1 and (len({r.own.time for r in plain}) == 1 < len(plain) or any(_siblings(r, readings) for r in plain)):
        for reading in plain:
            _meansContrast(reading, "")
    _byVisit(readings)
    _byDate(readings)
    for reading in readings:  # "T1" beside "T1_post"
        if not reading.time and not reading.date and reading.ordinal is None:
            others = [r for r in readings if r is not reading and (r.sequence, r.isMask) == (reading.sequence, reading.isMask)]
            times = {r.time for r in others if not r.assumed}
            if len(times) == 1 and "" not in times:
                (other,) = times
                reading.time, reading.assumed = ("pre" if other == "post" else "post"), True
                reading.why = f"{reading.time} because the other one is {other}"


def _siblings(reading: Reading, readings: list[Reading]) -> bool:
    """Whether the same sequence lies beside it in the same folder with the other plain word."""
    here = [r for r in readings if r.image.folderText == reading.image.folderText and r.sequence == reading.sequence and not r.isMask]
    visits = {(r.date, r.ordinal) for r in here}
    return len(visits) == 1 and visits != {("", None)} and {r.own.time for r in here} >= {"pre", "post"}


def _meansContrast(reading: Reading, time: str) -> None:
    """Take the "pre" or "post" in a name as before or after contrast agent."""
    if reading.contrast is None and reading.sequence == "t1":
        reading.contrast = reading.own.time == "post"
        reading.said.append(f"{reading.own.time!r} in its name taken for contrast agent")
    reading.time, reading.why = time, f"{time} by its folder" if time else ""


def _byVisit(readings: list[Reading]) -> None:
    """The first visit is "pre" and the last "post" for what has no timepoint yet."""
    numbers = sorted({r.ordinal for r in readings if r.ordinal is not None})
    for reading in readings:
        if len(numbers) > 1 and not reading.time and reading.ordinal is not None:
            early, late = reading.ordinal == numbers[0], reading.ordinal == numbers[-1]
            _place(reading, early, late, f"visit {reading.ordinal}")


def _byDate(readings: list[Reading]) -> None:
    """The days about the first date are "pre", those about the last "post", for what has no timepoint yet."""
    days = {r.date: datetime.date.fromisoformat(r.date) for r in readings if r.date}
    if not days:
        return
    first, last = min(days.values()), max(days.values())
    if last - first < SAME_VISIT:
        return
    near = min(SAME_VISIT, (last - first) / 3)
    for reading in readings:
        if not reading.time and reading.date:
            day = days[reading.date]
            _place(reading, day - first <= near, last - day <= near, f"its date {reading.date}")


def _place(reading: Reading, early: bool, late: bool, says: str) -> None:
    """Set the timepoint of an image of the first or last visit; one in between is left open."""
    if early or late:
        reading.time = "pre" if early else "post"
        reading.why = f"{reading.time} because {says} is {'early' if early else 'late'}"
    else:
        reading.between, reading.why = True, f"{says} lies between the first and the last visit"
