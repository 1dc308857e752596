"""What the name of a file, a folder or a DICOM series says about an image. Standard library only."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

T1 = {"t1", "t1w", "t1wi", "t1c", "t1ce", "t1gd", "t1gad", "mprage", "spgr", "fspgr", "vibe", "flash", "thrive", "lava", "bravo"}
T2 = {"t2", "t2w", "t2wi", "stir", "tirm"}
WITH_CONTRAST = {"t1c", "t1ce", "t1gd", "t1gad", "ce", "cemri", "cet1", "enhanced"}
CONTRAST = {"contrast", "gd", "gad", "gado", "gadolinium", "gadovist", "dotarem", "km", "kontrast", "kontrastmittel", "inj", "injection"}
THERAPY = {
    *("therapy", "treatment", "treat", "tx", "rx", "chemo", "chemotherapy", "nac", "nact", "nat", "nct", "crt", "rt"),
    *("neoadjuvant", "neoadj", "induction", "therapie"),
}
PRE = {"pre", "before", "vor", "prior"}
POST = {"post", "after", "nach"}
BASELINE = {"baseline", "bl", "initial", "diagnosis", "diagnostic", "staging"}  # these speak of therapy, never of contrast
LATER = {"followup", "fu", "restaging", "response"}
VISIT = {"visit", "v", "timepoint", "tp", "ses", "session", "scan", "study", "exam", "mri", "mr", "week", "wk", "day", "month", "time"}
MASK = {"mask", "seg", "segmentation", "label", "labels", "labelmap", "roi", "tumour", "tumor", "gtv", "lesion", "contour"}
CT = {"ct", "cect", "ncct"}
OTHER = {"adc", "dwi", "dti", "trace", "flair", "pd", "pdw", "mra", "tof", "swi", "dce", "dsc", "perf", "perfusion", "asl", "phase"}
OTHER |= {"localizer", "localiser", "scout", "survey", "loc", "locator", "sub", "subtraction", "mip", "report", "screenshot", "dose"}
OTHER |= {"heatmap", "attention", "prediction", "transform"}
AXIAL = {"ax", "axial", "tra", "transverse", "transversal"}
OTHER_PLANE = {"cor", "coronal", "sag", "sagittal"}
NEUTRAL = {"fs", "fatsat", "tse", "fse", "se", "w", "up", "follow", "op", "c"}

# Words that may stand together without a separator ("preT1wGd"); short ones that hide in English words are left out.
JOINED = T1 | T2 | CONTRAST | THERAPY | PRE | POST | BASELINE | LATER | VISIT | MASK | AXIAL | {"ce", "adc", "dwi", "tse", "fs", "op", "ct"}
JOINED -= {"fu", "bl", "v", "c", "rx", "km", "ax", "time", "inj", "response", "rt", "roi", "vor", "prior"}
_LONG_FIRST = sorted(JOINED, key=len, reverse=True)
_NUMBERED = re.compile(r"([a-z]+)(\d{1,3})")
_ISO_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_DAY_FIRST = re.compile(r"(?<!\d)(\d\d?)([-_.])(\d\d?)\2((?:19|20)\d\d)(?!\d)")
_PATIENT = re.compile(r"(?<![a-z0-9])(?:sub|patient|pat|pt|subject)[-_ ]?([a-z]*\d+)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class Evidence:
    """What one name says; empty and None mean that it does not say.

    Args:
        contrast: True with contrast agent, False expressly without.
        time: "pre" or "post".
        strong: the time speaks of therapy, so that it cannot mean contrast agent.
        ordinal: number of a visit.
        date: YYYY-MM-DD.
        other: the word that tells an image no input is made of.
    """

    sequence: str = ""
    contrast: bool | None = None
    time: str = ""
    strong: bool = False
    ordinal: int | None = None
    date: str = ""
    mask: bool = False
    ct: bool = False
    other: str = ""
    axial: bool | None = None
    stir: bool = False
    patient: str = ""


def read(text: str) -> Evidence:
    """What a name says; whole words only, so that "posterior" and "press" say nothing of time."""
    patient = _PATIENT.search(text)
    date, text = _takeDate(_PATIENT.sub(" ", text))
    said = words(text)
    found: dict = {"date": date, "patient": patient.group(1) if patient else ""}
    for before, word, after in zip(["", *said], said, [*said[1:], ""], strict=False):
        meaning = _meaning(word, before, after)
        if "time" in meaning and found.get("strong") and not meaning["strong"]:
            del meaning["time"], meaning["strong"]
        found.update(meaning)
    return Evidence(**found)


def _meaning(word: str, before: str, after: str) -> dict:
    """What one word says between its neighbours."""
    said: dict = {}
    if word in T1 | T2:
        said["sequence"] = "t1" if word in T1 else "t2"
        if word in ("stir", "tirm"):
            said["stir"] = True
    if word in WITH_CONTRAST or (word == "+" and (before in T1 | CONTRAST | {"c"} or after in CONTRAST | {"c", "ce"})):
        said["contrast"] = True
    elif word in CONTRAST:
        said["contrast"] = before not in PRE | {"no", "non", "without", "wo", "ohne", "minus"}
    elif word in ("native", "nativ", "unenhanced", "noncontrast", "plain"):
        said["contrast"] = False
    elif word in PRE | POST and after not in CONTRAST | {"op", "operative", "surgery"}:
        said.update(time="pre" if word in PRE else "post", strong=after in THERAPY)
    elif word in POST and after in ("op", "operative", "surgery"):
        said.update(time="post", strong=True)
    elif word in BASELINE | LATER or (word == "up" and before == "follow"):
        said.update(time="pre" if word in BASELINE else "post", strong=True)
    if word.isdigit() and len(word) <= 3 and before in VISIT:
        said["ordinal"] = int(word)
    for key, group in (("mask", MASK), ("ct", CT)):
        if word in group:
            said[key] = True
    if word in OTHER:
        said["other"] = word
    if word in AXIAL | OTHER_PLANE:
        said["axial"] = word in AXIAL
    return said


def words(text: str) -> list[str]:
    """The words of a name in lower case; those written together are parted where every piece is a known word."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)  # preT1, T2FS
    words: list[str] = []
    for token in re.findall(r"[^\W_]+|\+", text.lower()):
        numbered = _NUMBERED.fullmatch(token)
        if token in T1 | T2 | MASK | OTHER | NEUTRAL:
            words.append(token)
        elif numbered and numbered.group(1) in VISIT | LATER:
            words.extend(numbered.groups())
        else:
            words.extend(_parted(token) or [token])
    return words


def _parted(token: str) -> list[str] | None:
    """The known words a token is made of, a number at its end allowed; None when a piece of it is unknown."""
    if not token or (token.isdigit() and len(token) <= 3):
        return [token] if token else []
    for word in _LONG_FIRST:
        if token.startswith(word) and (rest := _parted(token[len(word) :])) is not None:
            return [word, *rest]
    return None


def _takeDate(text: str) -> tuple[str, str]:
    """The first date of a name as YYYY-MM-DD or "", and the name without its dates."""
    date = ""
    for year, month, day in [(m[1], m[3], m[4]) for m in _ISO_DATE.finditer(text)] + [
        (m[4], *order) for m in _DAY_FIRST.finditer(text) if (order := _monthAndDay(m[1], m[3], m[2]))
    ]:
        try:
            date = date or datetime.date(int(year), int(month), int(day)).isoformat()
        except ValueError:  # 31 February: digits that are no date
            continue
    return date, _DAY_FIRST.sub(" ", _ISO_DATE.sub(" ", text))


def _monthAndDay(first: str, second: str, separator: str) -> tuple[str, str] | None:
    """Month and day of a date that ends with the year; None where day and month cannot be told apart."""
    if separator == "." or int(first) > 12:
        return second, first
    return (first, second) if int(second) > 12 else None
