"""Several pieces of work side by side, each in a process of its own on a device of its own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from HARM3Logic import progress
from HARM3Logic.errors import HARM3Error


@dataclass(frozen=True)
class Job:
    """Args:
    work: a function of a module, called as work(device, *arguments) in the process.
    log: file for what the process prints; None leaves it on the screen.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...]
    log: Path | None = None


def slots(count: int, device: str = "auto") -> list[tuple[str, int]]:
    """Device and torch threads of each of `count` processes: GPUs in turn where there are several, cores shared out.

    No more threads than torch itself would take here, which is what OMP_NUM_THREADS says: on cores that others keep busy, two threads
    wait for each other and are many times slower than one.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    threads = max(1, min(torch.get_num_threads(), (os.cpu_count() or 1) // count))
    return [(f"cuda:{k % gpus}" if gpus > 1 else device, threads) for k in range(count)]


def run(jobs: Sequence[Job], places: Sequence[tuple[str, int]]) -> dict[str, str]:
    """Do all jobs, as many at once as there are places; name to the reason of each that failed.

    Args:
        places: device and torch threads of each process, as `slots` gives them.
    """
    free: SimpleQueue[tuple[str, int]] = SimpleQueue()
    for place in places:
        free.put(place)

    def one(job: Job) -> str:
        place = free.get()
        try:
            return _in_process(job, *place)
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        reasons = pool.map(one, jobs)
        return {job.name: reason for job, reason in zip(jobs, reasons, strict=True) if reason}


def _in_process(job: Job, device: str, threads: int) -> str:
    context = get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, job, device, threads), name=job.name)
    process.start()
    theirs.close()
    try:
        reason: str = mine.recv()
    except EOFError:  # it was killed, or ended before it could say why
        process.join()
        return f"its process ended with code {process.exitcode}{_see(job)}"
    finally:
        process.join()
    return reason


def _child(pipe: Any, job: Job, device: str, threads: int) -> None:
    torch.set_num_threads(threads)
    progress.bars = False  # several processes would draw over each other's
    if job.log is None:
        pipe.send(_reason(job, device))
        return
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        pipe.send(_reason(job, device))


def _reason(job: Job, device: str) -> str:
    try:
        job.work(device, *job.arguments)
    except HARM3Error as error:
        if job.log:  # else who waits for it tells
            print(error, file=sys.stderr)
        return str(error)
    except Exception as error:  # a bug of ours in one method must not stop the others
        traceback.print_exc()
        return f"{type(error).__name__}: {error}{_see(job)}"
    return ""


def _see(job: Job) -> str:
    return f" (see {job.log})" if job.log else ""
