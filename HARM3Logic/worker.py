"""The worker: jobs as JSON lines on stdin, events as JSON lines with the prefix `@harm3 ` on stdout, one warm model.

    in   {"job": "1", "kind": "predict", "case": "case.json", "out": "folder", "checkpoint": null, "device": "auto", "ignore_masks": false}
          ("viewer": false leaves the slide viewer out)
         {"job": "2", "kind": "batch", "cohort": "cohort.csv", "out": "folder", and as above}
         {"job": "3", "kind": "phantom", "out": "folder", "seed": 2024}
         {"job": "4", "kind": "check"}
         {"job": "5", "kind": "info", "checkpoint": null}
         {"cancel": "1"}
    out  hello, and for each job: stage, progress, warning, case, alive; at its end one result or error

A stage that cannot be interrupted carries `grace_s`: after a cancel, waiting longer for an answer makes no sense.

Main thread: one job after the other. Reader thread: takes lines also while a job runs, so that a cancel is heard. Third
thread: a sign of life. Everything else that libraries print to stdout goes to stderr. torch is imported by the first job
that needs it. When stdin closes the worker ends, so that none survives whoever started it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import queue
import sys
import threading
import time
import traceback
from functools import partial
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from HARM3Logic import __version__, card
from HARM3Logic.case import MRI, Case
from HARM3Logic.errors import BadOption, HARM3Error, OutOfMemory
from HARM3Logic.job import Job, Way

if TYPE_CHECKING:
    from HARM3Logic.predict import Predictor
    from HARM3Logic.slide_view import SlideView

PREFIX = b"@harm3 "
PROTOCOL = 1
BEAT_S = 2.0
GRACE_S = 3.0  # after stdin has closed, for a job to notice
DRAWING = "drawing the slide viewer"
# seconds of a phantom on 2 cores, by the first word of a stage
FIRST_S = {"loading": 8.0, "reading": 0.4, "registering": 1.0, "encoding": 1.5, "predicting": 0.8, "writing": 0.6, "drawing": 2.0}
NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "failed to allocate memory")


def serve() -> NoReturn:
    """Work until stdin closes, then end the process."""
    if hasattr(os, "setsid") and os.getpgrp() != os.getpid():
        os.setsid()  # one kill then reaches all that the libraries start
    faulthandler.enable()
    jobs = open(os.dup(0), "rb")  # noqa: SIM115 - for the life of the process
    events = open(os.dup(1), "wb")  # noqa: SIM115
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    worker = Worker(events)

    def read() -> None:
        for line in jobs:
            worker.take(line)
        worker.close()
        time.sleep(GRACE_S)
        os._exit(1)  # the job is in a library that does not come back

    for work in (read, worker.beat):
        threading.Thread(target=work, daemon=True).start()
    worker.run()
    sys.stderr.flush()
    os._exit(0)  # taking torch's threads down in order takes seconds


class Worker:
    """Does the jobs whose lines it takes, one after the other.

    Args:
        events: where the event lines go.
    """

    def __init__(self, events: BufferedIOBase) -> None:
        self._events, self._writing = events, threading.Lock()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._open: dict[Any, Job] = {}  # waiting or at work
        self._current: Job | None = None
        self._closed = threading.Event()
        self._predictor: Predictor | None = None
        self._made_of: tuple[Any, ...] = ()
        self._expected: dict[str, float] = {}
        self._kinds = {"predict": self._predict, "batch": self._batch, "phantom": _phantom, "check": _check, "info": _info}

    def take(self, line: bytes) -> None:
        """Queue the job of a line, or cancel one."""
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("cancel", values.get("job")), str):
            if line.strip():
                print(f"worker: neither a job nor a cancel: {line[:200]!r}", file=sys.stderr)
        elif "cancel" in values:
            job = self._open.get(values["cancel"])
            if job is not None:
                job.cancelled.set()
        else:
            self._open[values["job"]] = job = Job(values, self._send)
            self._jobs.put(job)

    def close(self) -> None:
        """Nobody is there any more: cancel everything."""
        self._closed.set()
        for job in list(self._open.values()):
            job.cancelled.set()
        self._jobs.put(None)

    def run(self) -> None:
        """Say hello, then work until closed."""
        about = {"pid": os.getpid(), "version": __version__, "protocol": PROTOCOL, "python": platform.python_version()}
        self._send({"event": "hello", **about, "device": "auto"})  # which one it is, only torch knows: in each result
        while (job := self._jobs.get()) is not None:
            self._current = job
            self._do(job)
            self._current = None
            self._open.pop(job.id, None)

    def beat(self) -> None:
        """While a job runs, say now and then that the process lives."""
        while not self._closed.wait(BEAT_S):
            job = self._current
            if job is not None:
                job.beat()

    def _do(self, job: Job) -> None:
        try:
            if job.kind not in self._kinds:
                raise BadOption(f"job {job.id!r} is of kind {job.kind!r}; {', '.join(self._kinds)} are known.", "Update HARM3Slicer.")
            result = self._kinds[job.kind](job)
            job.tell("result", {"kind": job.kind, **result})
        except HARM3Error as error:
            job.tell("error", {"code": error.code, "message": error.message, "advice": error.advice, "details": ""})
        except Exception as error:
            text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            code, message, advice = "bug", f"{text}.", "This is a bug of ours; please report it with the details."
            if isinstance(error, MemoryError) or any(words in str(error).lower() for words in NO_MEMORY):
                code, message, advice = OutOfMemory.code, f"memory ran out ({text}).", "Close other programs, or choose another device."
                self._predictor, self._made_of = None, ()
            job.tell("error", {"code": code, "message": message, "advice": advice, "details": traceback.format_exc()})

    def _send(self, event: dict[str, Any]) -> None:
        line = PREFIX + json.dumps(event).encode("ascii") + b"\n"  # ASCII: also for file names that are no UTF-8
        try:
            with self._writing:
                self._events.write(line)
                self._events.flush()
        except (OSError, ValueError):  # nobody reads; ValueError: closed
            if not self._closed.is_set():
                self.close()

    def _ready(self, job: Job) -> Predictor:
        """The warm predictor, made again when the job wants another checkpoint or device."""
        path = Path(job.values.get("checkpoint") or card.default()).resolve()
        device = job.values.get("device") or "auto"
        card.read_header(path)  # a bad file is told before torch is imported
        state = path.stat()
        wanted = (path, state.st_mtime_ns, state.st_size, device)
        if self._predictor is None or wanted != self._made_of:
            job.on_event("stage", {"name": "loading the model"})
            self._predictor, self._made_of = None, ()  # never two in memory
            from HARM3Logic.predict import Predictor

            self._predictor, self._made_of = Predictor(path, device), wanted
        return self._predictor

    def _predict(self, job: Job) -> dict[str, Any]:
        case, out = Case.read(job.text("case")), Path(job.text("out")).absolute()
        names = ["loading the model"] * (self._predictor is None)
        names += ["reading the slide", "encoding tiles"] * ("slide" in case.inputs)
        names += [f"{verb} {name}" for verb in ("reading", "registering") for name in MRI if name in case.inputs]
        names += ["predicting", "writing the report", "writing the results"]
        names += [DRAWING] * ("slide" in case.inputs)
        job.way = way = Way(self._expected or {name: FIRST_S[name.split()[0]] for name in names}, bool(self._expected))
        predictor = self._ready(job)
        from HARM3Logic import viewer
        from HARM3Logic.predict import keeping_mask, writable

        viewing = "slide" in case.inputs and job.values.get("viewer", True) is not False and viewer.installed()
        if not viewing:
            way.expected.pop(DRAWING, None)
        with keeping_mask(writable(out)):
            prediction = predictor(case, ignore_masks=bool(job.values.get("ignore_masks")), on_event=job.on_event)
        for warning in prediction.values["warnings"]:
            job.tell("warning", warning)
        job.on_event("stage", {"name": "writing the results"})
        prediction.write(out, partial(_draw, job) if viewing else None)
        way.enter("")
        self._expected = {name: seconds for name, seconds in way.taken.items() if name not in ("", "loading the model")}
        return {"prediction": str(out / "prediction.json"), "device": str(predictor.device)}

    def _batch(self, job: Job) -> dict[str, Any]:
        from HARM3Logic.cohort import read_cohort

        cases, out = read_cohort(Path(job.text("cohort"))), Path(job.text("out")).absolute()
        predictor = self._ready(job)
        from HARM3Logic.predict_cohort import predict_cohort

        failures = predict_cohort(
            cases,
            out,
            predictor.checkpoint.path,
            device=str(predictor.device),
            ignore_masks=bool(job.values.get("ignore_masks")),
            predictor=predictor,
            on_event=job.on_event,
        )
        table = out / "predictions.csv"
        return {"predictions": str(table) if table.is_file() else None, "failures": failures, "device": str(predictor.device)}


def _draw(job: Job, view: SlideView, folder: Path, case_id: str) -> bool:
    """`viewer.write_viewer`, told as a stage of its own: on a large slide it takes the longest of all files."""
    from HARM3Logic import viewer

    job.on_event("stage", {"name": DRAWING})
    drawn = viewer.write_viewer(view, folder, case_id)
    job.on_event("stage", {"name": "writing the results"})
    return drawn


def _phantom(job: Job) -> dict[str, Any]:
    out, seed = Path(job.text("out")).absolute(), job.values.get("seed", 2024)
    if not isinstance(seed, int) or seed < 0:
        raise BadOption(f"seed is {seed!r}; a whole number from 0 on is wanted.", "Correct it.")
    job.on_event("stage", {"name": "making the sample case"})
    from HARM3Logic.phantom import write_phantoms

    job.on_event("progress", {"value": 0.2, "remaining_s": None})  # the libraries are there
    write_phantoms(out, 1, seed, workers=0, on_progress=lambda _: job.on_event("progress", {"value": 1.0, "remaining_s": 0.0}))
    return {"case": str(out / f"PH-{seed}-0000" / "case.json")}


def _info(job: Job) -> dict[str, Any]:
    path = Path(job.values.get("checkpoint") or card.default())
    header = card.read_header(path)
    job.on_event("stage", {"name": "checking the checkpoint"})
    from HARM3Logic import checkpoint

    checkpoint.read_card(path)  # its seal
    return {"card": header, "sha256": checkpoint.file_sha256(path)}


def _check(job: Job) -> dict[str, Any]:
    """What this computer has; what it lacks is None, and `problems` says why."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "version": __version__, "cores": os.cpu_count()}
    problems: list[str] = []
    for module, name in (("torch", "torch"), ("SimpleITK", "SimpleITK"), ("openslide", "openslide-python")):
        job.on_event("stage", {"name": f"looking for {name}"})
        key = module.lower()
        try:
            found[key] = version(name)
            import_module(module)  # a package may be there and not load
        except PackageNotFoundError:
            found[key] = None
            problems.append(f"{name} is not installed")
        except Exception as error:  # whatever a broken library raises
            found[key] = None
            problems.append(f"{name} cannot be loaded ({type(error).__name__}: {error})")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    found.update(memory_gb=round(pages / 1e9, 1) or None, cuda=None, devices=["cpu"], problems=problems)
    if found["torch"]:
        import torch

        found["cuda"] = torch.version.cuda
        for k in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(k)
            found["devices"].append(f"cuda:{k} {about.name}, {about.total_memory / 1e9:.0f} GB")
        if torch.backends.mps.is_available():
            found["devices"].append("mps")
    return found
