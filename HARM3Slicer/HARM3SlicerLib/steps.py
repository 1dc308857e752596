"""Work cut into steps, between which the event loop has its turn: generators whose return value is the result."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any


def finish(steps: Generator[Any, None, Any]) -> Any:
    """Go through all steps at once and give the result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def named(name: str, steps: Generator[Any, None, Any]) -> Generator[str, None, Any]:
    """The same steps under one name, with their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        yield name
