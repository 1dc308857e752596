"""What the training loop costs: python Testing/benchmarks/train.py [NAME[:VARIANT]] [--cases N] [--tiles N] [--no-memory] [--cache].

Prints cases per second of the loop (reading, changing, moving, learning) against the same forward and backward pass on batches that
lie on the device already, epoch by epoch in turn in the same run. Then the peak memory of a training on 50 and on 200 cases, each in a
process of its own and over the same number of cases seen: the peak of a process rises for some twenty steps, until every batch that can
be on its way at once has met every other, and only then says something about the cohort. With --cache, too, cases per second of
preparing against one process that prepares them one after the other, and the peak memory of preparing 50 and 200 cases: of the process
that asks, and of the largest worker. The cases are noise, or copies of two phantoms: only their sizes matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from HARM3Logic.batch import collate
from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.device import choose
from HARM3Logic.phantom import write_phantoms
from HARM3Logic.prepare import prepare
from HARM3Logic.tile_encoder import TileEncoder
from Training import cache as caching
from Training import loop
from Training.cache import Cache
from Training.cost import peak_mib
from Training.devices import open_fabric
from Training.experiment import Experiment, find
from Training.step import Trainee, gradients

KEPT = tuple(dict.fromkeys(field for name in caching.USUAL for field in caching.FIELDS[name]))
SEEN = 400  # cases that go through the model before a peak is read


def write_cases(folder: Path, experiment: Experiment, count: int, tiles: int) -> Cache:
    shape, features = experiment.config.volume_shape, experiment.config.tile_features
    generator = torch.Generator().manual_seed(0)
    paths = []
    for k in range(count):
        tensors = {
            "mri": torch.randn(2, 2, *shape, generator=generator),
            "mri_mask": torch.ones(2, 2, dtype=torch.bool),
            "body": torch.ones(shape, dtype=torch.bool),
            "tumour": (torch.rand(2, *shape, generator=generator) > 0.95).float(),
            "tiles": torch.randn(tiles, features, generator=generator),
            "tile_xy_um": torch.rand(tiles, 2, generator=generator),
        }
        paths.append(folder / f"c{k}.safetensors")
        save_file(tensors, paths[-1])
    return Cache(paths, [Case(f"C{k}", {}, label=k % 2) for k in range(count)])


def resident_epoch(trainee: Trainee, cache: Cache) -> Callable[[], None]:
    """The same steps on tensors that are there already."""
    size = trainee.experiment.batch_size
    device = trainee.fabric.device
    batches = [collate([cache[k] for k in range(start, min(start + size, len(cache)))]).to(device) for start in range(0, len(cache), size)]

    def run() -> None:
        trainee.model.train()
        for batch in batches:
            gradients(trainee, batch, [], 1.0, 1.0)
            torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), trainee.experiment.clip)
            trainee.optimiser.step()
            if trainee.average is not None:
                trainee.average.update_parameters(trainee.model)

    return run


def seconds(work: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def speed(experiment: Experiment, cache: Cache, device: str, repeats: int) -> None:
    fabric = open_fabric(device)
    trainee, _ = loop.new_trainee(experiment, cache, range(len(cache)), fabric)
    resident = resident_epoch(trainee, cache)
    resident()  # warm
    times: dict[str, list[float]] = {"loop": [], "resident": []}
    for epoch in range(repeats):
        times["loop"].append(seconds(lambda e=epoch: loop._epoch(trainee, cache, range(len(cache)), e), fabric.device))  # type: ignore[misc]
        times["resident"].append(seconds(resident, fabric.device))
    rate = {name: len(cache) / statistics.median(found) for name, found in times.items()}
    share = statistics.median(r / t for r, t in zip(times["resident"], times["loop"], strict=True))
    print(f"loop                 {rate['loop']:8.1f} cases/s   on {fabric.device}, {len(cache)} cases, batches of {experiment.batch_size}")
    print(f"resident tensors     {rate['resident']:8.1f} cases/s")
    print(f"loop over resident   {share:8.2f}")


def copies(folder: Path, count: int) -> list[Case]:
    """Of two phantoms."""
    write_phantoms(folder / "phantoms", 2, seed=11, workers=0)
    two = read_cohort(folder / "phantoms" / "cohort.csv")
    return [dataclasses.replace(two[k % 2], case_id=f"C{k}") for k in range(count)]


def preparing(experiment: Experiment, folder: Path, count: int, workers: int, device: str) -> None:
    """Print how fast cases are prepared, the start of the processes included, and how fast by a loop in this one."""
    cases, settings, on = copies(folder, count), experiment.preprocessing, choose(device).type

    def naive() -> None:
        encoder = TileEncoder.load(experiment.tile_encoder, on)
        for case in cases:
            prepared = prepare(case, settings, encoder)
            save_file({name: getattr(prepared, name) for name in KEPT}, folder / f"{case.case_id}.safetensors")

    def ours() -> None:
        caching.build(cases, settings, experiment.tile_encoder, folder / "cache", device=on, workers=workers)

    rate = {name: count / seconds(work, torch.device("cpu")) for name, work in (("naive", naive), ("ours", ours))}
    print(f"cache, {workers} processes    {rate['ours']:8.2f} cases/s   {count} cases, the start of the processes included")
    print(f"one process, a loop   {rate['naive']:8.2f} cases/s   with {torch.get_num_threads()} threads of torch's")
    print(f"cache over loop       {rate['ours'] / rate['naive']:8.2f}")


def build_cache(experiment: Experiment, folder: Path, count: int, workers: int) -> tuple[float, float]:
    """Peak memory (MiB) of this process and of its largest worker while `count` cases are prepared."""
    cases = copies(folder, count)
    largest, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            largest[0] = max([largest[0], *(peak_mib(worker.pid) for worker in multiprocessing.active_children())])

    watcher = threading.Thread(target=watch)
    watcher.start()
    caching.build(cases, experiment.preprocessing, experiment.tile_encoder, folder / "cache", workers=workers)
    done.set()
    watcher.join()
    return peak_mib(), largest[0]


def compare(what: str, command: list[str], sizes: tuple[int, ...] = (50, 200)) -> None:
    """Run this file once for each cohort size and print the last line of each, and how much the last has grown over the first."""
    found = []
    for count in sizes:
        asked = subprocess.run([*command, "--cases", str(count)], check=True, capture_output=True, text=True)
        found.append([float(value) for value in asked.stdout.splitlines()[-1].split()])
    for name, values in zip((f"peak memory, {what}", f"peak memory, {what}, largest worker"), zip(*found, strict=True), strict=False):
        print(f"{name:<44}" + ", ".join(f"{v:.0f} MiB ({n} cases)" for v, n in zip(values, sizes, strict=True)), end="")
        print(f", ratio {values[-1] / values[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", nargs="?", default="harm3_fusion:compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--cache", action="store_true", help="also the speed and memory of preparing cases; takes minutes")
    parser.add_argument("--prepared", type=int, default=40, help="cases that are prepared for their speed (default: 40)")
    parser.add_argument("--workers", type=int, default=2, help="processes that prepare (default: 2)")
    parser.add_argument("--only", choices=("train", "cache"), help="print the peak memory of this one thing and end")
    asked = parser.parse_args()
    # every part of the model learns, in every epoch
    experiment = dataclasses.replace(find(asked.experiment), mask_epochs=0, frozen_epochs=0, epochs=asked.repeats)
    with tempfile.TemporaryDirectory() as folder:
        if asked.only == "cache":
            print(*build_cache(experiment, Path(folder), asked.cases, asked.workers))
            return
        cache = write_cases(Path(folder), experiment, asked.cases, asked.tiles)
        if asked.only == "train":
            trainee, _ = loop.new_trainee(experiment, cache, range(len(cache)), open_fabric(asked.device))
            for epoch in range(max(1, SEEN // asked.cases)):
                loop._epoch(trainee, cache, range(len(cache)), epoch)
            print(peak_mib())
            return
        speed(experiment, cache, asked.device, asked.repeats)
        if asked.cache:
            preparing(experiment, Path(folder), asked.prepared, asked.workers, asked.device)
    command = [sys.executable, __file__, asked.experiment, "--tiles", str(asked.tiles), "--device", asked.device]
    if not asked.no_memory:
        compare(f"training, {SEEN} cases seen", [*command, "--only", "train"])
    if asked.cache:
        compare("preparing", [*command, "--only", "cache", "--workers", str(asked.workers)])


if __name__ == "__main__":
    main()
