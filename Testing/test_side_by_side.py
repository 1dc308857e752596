"""Work side by side: a process and a place for each piece, and a reason for each that fails."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

from HARM3Logic.errors import BadOption
from Training import side_by_side
from Training.side_by_side import Job


def note(device: str, folder: Path, name: str, pause: float) -> None:
    began = time.time()
    time.sleep(pause)
    (folder / name).write_text(json.dumps([device, torch.get_num_threads(), os.getpid(), began, time.time()]))
    if name == "bad":
        raise BadOption("it is bad.", "Mend it.")
    if name == "killed":
        os._exit(7)


def test_jobs_run_side_by_side_in_processes_of_their_own(tmp_path: Path) -> None:
    names = ("good", "bad", "killed")
    jobs = [Job(name, note, (tmp_path, name, 0.5), tmp_path / "logs" / f"{name}.log") for name in names]
    failed = side_by_side.run(jobs, [("cpu", 1), ("other", 2)])
    assert failed["bad"] == "it is bad. Mend it." and "code 7" in failed["killed"] and "good" not in failed
    seen = [json.loads((tmp_path / name).read_text()) for name in names]
    assert {(device, threads) for device, threads, *_ in seen} == {("cpu", 1), ("other", 2)}
    assert len({os.getpid(), *(process for _, _, process, *_ in seen)}) == 4
    assert "it is bad" in (tmp_path / "logs" / "bad.log").read_text()


def test_places_share_out_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(side_by_side.torch, "get_num_threads", lambda: 8)
    assert side_by_side.slots(3) == [("cuda:0", 2), ("cuda:1", 2), ("cuda:0", 2)]
    assert side_by_side.slots(1, "cpu") == [("cpu", 8)]
    monkeypatch.setattr(side_by_side.torch, "get_num_threads", lambda: 1)  # as OMP_NUM_THREADS=1 has it
    assert side_by_side.slots(2, "cpu") == [("cpu", 1)] * 2
