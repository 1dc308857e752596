"""How far a long work is: a bar that moves on a terminal, a line now and then in a file."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

EVERY_S = 60.0  # between two lines; what takes less is done in silence
bars = True  # False: lines on a terminal, too
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s after {elapsed}, {remaining} left{postfix}"


class _Lines(io.StringIO):
    """Takes what tqdm would draw over itself, and writes each picture of it as a line."""

    def write(self, text: str) -> int:
        if shown := text.strip("\r\n "):
            print(shown, file=sys.stderr, flush=True)
        return len(text)


def progress(iterable: Iterable[Any] | None = None, desc: str | None = None, total: int | None = None, **options: Any) -> tqdm[Any]:
    """tqdm's bar on standard error; where that is no terminal, as in a batch system's log, a line at most every `EVERY_S` seconds.

    Args:
        options: of tqdm.
    """
    if not (bars and sys.stderr.isatty()):
        options |= {"file": _Lines(), "bar_format": LINE, "mininterval": EVERY_S, "maxinterval": EVERY_S, "miniters": 1, "delay": EVERY_S}
    return tqdm(iterable, desc, total, **options)
