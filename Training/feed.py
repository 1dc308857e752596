"""What the model is fed: the order of an epoch, and batches read ahead while the model works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import Full, Queue
from threading import Event, Thread

import torch

from HARM3Logic.batch import Batch, collate
from Training.cache import Cache

AHEAD = 2  # batches
LOOK = 0.1  # s between two looks whether anybody still wants the batch


@dataclass(frozen=True)
class Group:
    """The cases of one step, or one process's part of them.

    Args:
        rows: of the cache.
        places: where these stand in the whole group.
        size: cases of the whole group.
        share: of the step's loss that these make up; 0 for a process that only keeps step with the others.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]
    size: int
    share: float


def order(rows: Sequence[int], labels: Sequence[int | None], balanced: bool, generator: torch.Generator) -> list[int]:
    """The cases of an epoch as they come: each once; or, balanced, drawn with replacement so that both labels come equally often."""
    if not balanced:
        return [rows[k] for k in torch.randperm(len(rows), generator=generator).tolist()]
    own = [labels[row] for row in rows]
    weights = torch.tensor([1 / own.count(label) for label in own], dtype=torch.float64)
    return [rows[k] for k in torch.multinomial(weights, len(rows), replacement=True, generator=generator).tolist()]


def groups(rows: Sequence[int], size: int, rank: int = 0, world: int = 1) -> list[Group]:
    """The steps of an epoch, of which each of `world` processes takes every world-th case."""
    found = []
    for start in range(0, len(rows), size):
        whole = rows[start : start + size]
        own = tuple(range(rank, len(whole), world))
        places = own or (0,)  # with nothing to do it must still keep step with the others
        found.append(Group(tuple(whole[k] for k in places), places, len(whole), len(own) / len(whole)))
    return found


def batches(
    cache: Cache, wanted: Sequence[Group], change: Callable[[Batch, Group], Batch] = lambda batch, _: batch
) -> Iterator[tuple[Batch, list[str], float]]:
    """Batches, the names of their cases and their share of the step, read and changed ahead of the model by one thread.

    Where no GPU does the model's work, that thread calls no others to help: they would take the cores on which the model's wait for each
    other at the end of every operation.
    """
    queue: Queue[tuple[Batch, list[str], float] | BaseException | None] = Queue(maxsize=AHEAD)
    unwanted = Event()

    def put(item: tuple[Batch, list[str], float] | BaseException | None) -> None:
        while not unwanted.is_set():
            try:
                return queue.put(item, timeout=LOOK)
            except Full:
                continue

    threads = torch.get_num_threads()

    def read() -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # of this thread, and of those begun from now on
        try:
            for group in wanted:
                if unwanted.is_set():
                    return
                put(_batch(cache, group, change))  # nothing of it is held here while it waits
            put(None)
        except BaseException as error:  # handed to the training thread, which raises it
            put(error)
        finally:
            torch.set_num_threads(threads)

    reader = Thread(target=read, daemon=True)
    reader.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            del item
    finally:
        unwanted.set()
        reader.join()


def _batch(cache: Cache, group: Group, change: Callable[[Batch, Group], Batch]) -> tuple[Batch, list[str], float]:
    cases = [cache[k] for k in group.rows]
    names = [case.case_id for case in cases]
    whole = collate(cases)
    del cases
    return change(whole, group), names, group.share
