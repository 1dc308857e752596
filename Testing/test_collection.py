"""Facts about slides taken in turn by several encoders: each once, one slide's failure is its own, and stopping stops all."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_features import draw, encoder_file, tiny  # noqa: F401  fixtures

from HARM3Logic import features_command
from HARM3Logic.__main__ import main
from HARM3Logic.collection import in_turn, write_collection
from HARM3Logic.errors import BadOption, BadSlide, Cancelled
from HARM3Logic.tile_encoder import TileEncoder


def test_each_item_is_done_once_and_workers_share_them() -> None:
    done: list[tuple[str, int]] = []
    together = threading.Barrier(2, timeout=10)

    def do(worker: str, item: int) -> None:
        if item < 2:
            together.wait()  # passes only where two workers are at work at once
        done.append((worker, item))

    assert in_turn(range(20), ["a", "b"], do, threading.Event()) == []
    assert sorted(item for _, item in done) == list(range(20)) and {worker for worker, _ in done} == {"a", "b"}


@pytest.mark.parametrize("workers", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_the_slides_that_fail_are_told_in_their_order(workers: list[str]) -> None:
    done: list[int] = []

    def do(worker: str, item: int) -> None:
        time.sleep(0.001 * (10 - item))
        if item in (2, 5, 6):
            raise BadSlide(f"slide {item}")
        done.append(item)

    assert [error.message for error in in_turn(range(10), workers, do, threading.Event())] == ["slide 2", "slide 5", "slide 6"]
    assert sorted(done) == [0, 1, 3, 4, 7, 8, 9]


def test_any_other_error_stops_all_and_is_the_one_told() -> None:
    stopped, begun = threading.Event(), threading.Barrier(2, timeout=10)
    done: list[int] = []

    def do(worker: str, item: int) -> None:
        done.append(item)
        begun.wait()
        if item == 1:
            raise BadOption("the disk is full")
        if not stopped.wait(10):
            raise TimeoutError
        raise Cancelled("stopped")

    with pytest.raises(BadOption, match="disk"):
        in_turn(range(8), ["a", "b"], do, stopped)
    assert sorted(done) == [0, 1]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [draw(tmp_path / f"s{k}.tif") for k in range(3)]


def test_two_encoders_write_what_one_writes(
    paths: list[Path],
    tiny: TileEncoder,  # noqa: F811
    encoder_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    other = TileEncoder.load(encoder_file, precision="float32")
    broken = tmp_path / "broken.svs"
    broken.write_bytes(b"no slide")
    calls: list[tuple[str, int, int]] = []
    one = write_collection([paths[0], broken, *paths[1:]], tiny, tmp_path / "one")
    two = write_collection([paths[0], broken, *paths[1:]], [tiny, other], tmp_path / "two", on_progress=lambda *each: calls.append(each))
    assert [str(error) for error in one] == [str(error) for error in two] and len(two) == 1 and "broken.svs" in str(two[0])
    for path in paths:
        with h5py.File(tmp_path / "one" / f"{path.stem}.h5") as a, h5py.File(tmp_path / "two" / f"{path.stem}.h5") as b:
            assert np.array_equal(a["features"], b["features"]) and dict(a.attrs) == dict(b.attrs)
        done = [done for name, _, done in calls if name == path.stem]
        assert done == sorted(done) and done[-1] == next(count for name, count, _ in calls if name == path.stem)


def test_who_stops_one_stops_all_and_what_was_done_is_kept(
    paths: list[Path],
    tiny: TileEncoder,  # noqa: F811
    encoder_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    def stop(name: str, count: int, done: int) -> None:
        if done >= 64:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        write_collection(paths, [tiny, TileEncoder.load(encoder_file, precision="float32")], tmp_path / "out", on_progress=stop)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names and set(names) <= {".s0.h5.part", ".s1.h5.part"}  # the third was never begun
    assert write_collection(paths, tiny, tmp_path / "out") == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s0.h5", "s1.h5", "s2.h5"]


def test_the_command_takes_several_devices(
    paths: list[Path],
    encoder_file: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    command = ["features", *map(str, paths), "--out", str(tmp_path / "out"), "--encoder", str(encoder_file)]
    assert main([*command, "--device", "cpu,cpu"]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["s0.h5", "s1.h5", "s2.h5"]


def test_every_gpu_is_taken_but_no_more_than_slides(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert features_command.devices("cuda", 9) == ["cuda:0", "cuda:1", "cuda:2"] == features_command.devices("auto", 9)
    assert features_command.devices("cuda", 2) == ["cuda:0", "cuda:1"] and features_command.devices("cuda:2, cuda:0", 9) == [
        "cuda:2",
        "cuda:0",
    ]
    assert features_command.devices("cpu", 9) == ["cpu"]
    with pytest.raises(BadOption, match="'cuda:3'"):
        features_command.devices("cuda:0,cuda:3", 9)
