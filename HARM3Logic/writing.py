"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, suffix: str = "") -> Iterator[Path]:
    """Where to write what is to stand at `path`: a hidden file beside it that takes its place at the end, and is removed when that fails.

    Args:
        suffix: of the hidden file, for a library that chooses the format by it.

    Raises:
        OSError: the folder takes no file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{suffix}")
    try:
        temporary.touch()
        rights = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != rights:  # safetensors makes a file that its owner alone may read
            temporary.chmod(rights)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8.

    Raises:
        OSError: the folder takes no file.
    """
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
