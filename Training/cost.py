"""What a trained run costs and where its heat lies: parameters, time, memory, localisation; kept in RUN/measured.json."""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from HARM3Logic import checkpoint
from HARM3Logic.batch import Batch, Prepared, collate
from HARM3Logic.case import MRI
from HARM3Logic.writing import write_text
from Training import feed, loop
from Training.cache import Cache
from Training.devices import open_fabric
from Training.experiment import Experiment
from Training.folds import Split
from Training.localise import Heat, heat_of, layers_of, mean
from Training.step import gradients

TIMED = 20  # cases whose forward pass is timed, after one that is not
STEPS = 3  # of a training, behind the peak memory


def measured(run: Path) -> dict[str, Any]:
    """What `measure` kept of these checkpoints; empty where they were not measured."""
    file = run / "measured.json"
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found if found.get("of") == _hashes(run) else {}


def measure(experiment: Experiment, cache: Cache, splits: Sequence[Split], run: Path, device: str) -> None:
    """Write `measured.json`: one process of its own wanted, since its memory is measured.

    `peak_mib` is that of the process in training steps on full batches (of the GPU's memory where there is one); `inference_ms` is the
    median forward pass of one case from tensors in memory, without reading and preparing.
    """
    fabric = open_fabric(device)
    first = splits[0]
    peak = _peak(experiment, cache, first, fabric)
    folds = [run / f"fold-{split.number}" / "checkpoint.safetensors" for split in splits]
    loaded = checkpoint.load(folds[0], fabric.device)
    found: dict[str, Any] = {
        "of": _hashes(run),
        "device": torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type,
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "inference_ms": _milliseconds(loaded.model, cache, first.judge, fabric.device),
        "peak_mib": peak,
        "masks": _masks(experiment, loaded.model, cache, first),
        "localisation": None,
    }
    heat = _localisation(cache, splits, folds, experiment, fabric.device)
    if heat is not None:
        found["localisation"] = asdict(heat)
    write_text(run / "measured.json", json.dumps(found, indent=2) + "\n")


def trained_seconds(run: Path) -> float:
    """Time of all epochs of all folds, choosing included; what a stopped epoch took before is not in it."""
    logs = [line for path in sorted(run.glob("fold-*/metrics.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return math.fsum(json.loads(line)["seconds"] for line in logs) if logs else math.nan


def peak_mib(pid: int | None = None) -> float:
    """Largest memory of a process so far; of this one where None.

    The kernel's VmHWM, where there is one: what getrusage tells begins with the peak of the process that started this one.
    """
    try:
        with open(f"/proc/{pid or 'self'}/status", encoding="utf-8") as file:
            line = next(line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    except (OSError, StopIteration):  # not Linux, or the process has ended
        if pid is not None:
            return 0.0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _peak(experiment: Experiment, cache: Cache, split: Split, fabric: Any) -> float:
    """Of a few training steps in which every part learns."""
    trainee, _ = loop.new_trainee(experiment, cache, split.train, fabric)
    trainee.model.train()
    on_gpu = fabric.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(fabric.device)
    groups = feed.groups(list(split.train) * STEPS, experiment.batch_size)[:STEPS]
    for batch, names, share in feed.batches(cache, groups):
        gradients(trainee, batch, names, share, 1.0)
        trainee.optimiser.step()
        if trainee.average is not None:
            trainee.average.update_parameters(trainee.model)
    return torch.cuda.max_memory_allocated(fabric.device) / 2**20 if on_gpu else peak_mib()


@torch.inference_mode()
def _milliseconds(model: torch.nn.Module, cache: Cache, rows: Sequence[int], device: torch.device) -> float:
    times = []
    for row in rows[: TIMED + 1]:
        batch = collate([cache[row]]).to(device)
        _wait(device)
        began = time.perf_counter()
        model(batch)
        _wait(device)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times[1:] or times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _masks(experiment: Experiment, model: torch.nn.Module, cache: Cache, split: Split) -> list[str]:
    """What tumour masks did: "losses" where they teach, "crop" where the model looks round the tumour."""
    batch = collate([cache[row] for row in split.train[: experiment.batch_size]])
    if batch.tumour is None:
        return []
    device = next(model.parameters()).device
    taught = _losses(model, batch.to(device)) - _losses(model, replace(batch, tumour=None).to(device))
    reads_volumes = any(name in MRI for name in model.inputs())  # type: ignore[operator]
    cropped = reads_volumes and experiment.preprocessing.crop == "tumour" and not experiment.ignore_masks
    return ["losses"] * bool(taught) + ["crop"] * cropped


def _losses(model: torch.nn.Module, batch: Batch) -> set[str]:
    kept = {name: value.clone() for name, value in model.state_dict().items()}  # batch statistics move
    with torch.no_grad():
        found = set(model.train()(batch).losses)
    model.load_state_dict(kept)
    model.eval()
    return found


def _localisation(
    cache: Cache, splits: Sequence[Split], folds: Sequence[Path], experiment: Experiment, device: torch.device
) -> Heat | None:
    """Of every judged case with a mask, by the model that did not see it; None without masks, or where no volume goes in."""
    found = []
    for split, path in zip(splits, folds, strict=True):
        model = checkpoint.load(path, device).model
        layers = layers_of(model, None)
        for row in split.judge if layers else ():
            prepared = cache[row]
            tumour = _tumour(prepared)
            if tumour is not None:
                found.append(heat_of(model, prepared, tumour, experiment.preprocessing.spacing_mm, layers))
    return mean(found) if found else None


def _tumour(prepared: Prepared) -> np.ndarray | None:
    """The mask before treatment; None where it is unknown or empty."""
    if prepared.tumour is None or prepared.tumour[0].isnan().any():
        return None
    mask = prepared.tumour[0].numpy() > 0.5
    return mask if mask.any() else None


def _hashes(run: Path) -> dict[str, str]:
    return {path.parent.name: checkpoint.file_sha256(path) for path in sorted(run.glob("fold-*/checkpoint.safetensors"))}
