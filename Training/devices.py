"""On which processors a training runs: one, or those of all processes that torchrun or srun started."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy

from HARM3Logic.device import best_precision, choose
from HARM3Logic.errors import BadOption

PATIENCE = timedelta(days=1)  # the first process prepares the whole cohort while the others wait


def open_fabric(device: str = "auto") -> Fabric:
    """Fabric on one device, or this process's part of a group; batches are shared out between the processes of a group.

    Args:
        device: auto, cpu, cuda, cuda:<i> or mps; in a group each process takes the one of its own number.

    Raises:
        BadOption: the device does not exist, or there are more processes than GPUs.
    """
    chosen = choose(device)
    local, nodes = group(os.environ)
    if chosen.type == "cuda" and local > torch.cuda.device_count():
        raise BadOption(
            f"{local} processes were started on a machine with {torch.cuda.device_count()} CUDA devices; each needs its own.",
            f"Use --nproc-per-node {torch.cuda.device_count()} or --device cpu.",
        )
    precision = "bf16-mixed" if best_precision(chosen) == "bfloat16" else "32-true"
    if local * nodes == 1:
        devices = 1 if chosen.index is None else [chosen.index]
        fabric = Fabric(accelerator=chosen.type, devices=devices, precision=precision)
    else:
        # the stages of a training leave parts of the model without gradients
        strategy = DDPStrategy(timeout=PATIENCE, find_unused_parameters=True)
        fabric = Fabric(accelerator=chosen.type, devices=local, num_nodes=nodes, strategy=strategy, precision=precision)
    fabric.launch()
    if fabric.device.type == "cpu":
        torch.set_flush_denormal(True)  # denormals slow a CPU down many times
    return fabric


def group(environment: os._Environ[str] | dict[str, str]) -> tuple[int, int]:
    """Processes on each machine, and machines, of the group this process was started in; 1 and 1 where it is alone."""
    if "TORCHELASTIC_RUN_ID" in environment:
        local = int(environment["LOCAL_WORLD_SIZE"])
        return local, int(environment["WORLD_SIZE"]) // local
    if "SLURM_STEP_ID" in environment and int(environment.get("SLURM_NTASKS", 1)) > 1:  # a step: a plain batch script has one process
        nodes = int(environment.get("SLURM_NNODES", 1))
        return int(environment["SLURM_NTASKS"]) // nodes, nodes
    return 1, 1
