"""What the training loop costs: python Testing/benchmarks/train.py [NAME[:VARIANT]] [--device D] [--cases N] [--tiles N] [--no-memory].

Prints cases per second of the loop (reading, changing, moving, learning) against the same forward and backward pass on batches that
lie on the device already, epoch by epoch in turn in the same run, and the peak memory of an epoch on 50 and on 200 cases, each in a
process of its own. The cases are noise: only their sizes matter.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from HARM3Logic.batch import collate
from HARM3Logic.case import Case
from Training import loop
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment, find
from Training.step import Trainee, gradients


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
    trainee, _ = loop._trainee(experiment, cache, range(len(cache)), fabric)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("experiment", nargs="?", default="harm3_fusion:compact")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", type=int, default=64)
    parser.add_argument("--tiles", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--one-epoch", action="store_true", help="print the peak memory of one epoch and end")
    asked = parser.parse_args()
    # every part of the model learns, in every epoch
    experiment = dataclasses.replace(find(asked.experiment), mask_epochs=0, frozen_epochs=0, epochs=asked.repeats)
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cases(Path(folder), experiment, asked.cases, asked.tiles)
        if asked.one_epoch:
            trainee, _ = loop._trainee(experiment, cache, range(len(cache)), open_fabric(asked.device))
            loop._epoch(trainee, cache, range(len(cache)), 0)
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)  # KiB on Linux
            return
        speed(experiment, cache, asked.device, asked.repeats)
    for count in () if asked.no_memory else (50, 200):
        command = [sys.executable, __file__, asked.experiment, "--one-epoch", "--cases", str(count), "--tiles", str(asked.tiles)]
        peak = float(subprocess.run([*command, "--device", asked.device], check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"peak memory          {peak:8.0f} MiB   of an epoch on {count} cases")


if __name__ == "__main__":
    main()
