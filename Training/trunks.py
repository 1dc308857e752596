"""Trunks that masks have taught, kept beside the prepared cases: runs that teach theirs alike, as ablations do, do it once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from HARM3Logic.writing import whole
from Training.cache import Cache, hash_of_code
from Training.experiment import Experiment

# what an experiment does when masks have taught the trunk, or with what comes after the trunk
LATER = (
    "epochs", "fusion_epochs", "frozen_epochs", "learning_rate", "kl_warm_up", "patience", "least_epochs", "plateau", "positive_weight",
    "folds",
)  # fmt: skip
AFTER_TRUNK = ("ldvae", "attn1", "attn2", "change_weight")


def shareable(experiment: Experiment) -> bool:
    """Whether masks teach the trunk and nothing else ever does, so that the trunk is all that is left of those epochs."""
    return experiment.mask_epochs > 0 and experiment.untaught_epochs + experiment.frozen_epochs >= experiment.epochs


def recipe(experiment: Experiment) -> str:
    """What two experiments have in common whose trunks come out alike on the same cases."""
    known = dataclasses.asdict(experiment)
    config = {name: value for name, value in known.pop("config").items() if name not in AFTER_TRUNK}
    return json.dumps([config, {name: value for name, value in known.items() if name not in LATER}], sort_keys=True)


def place(folder: Path, experiment: Experiment, cache: Cache, rows: Sequence[int], device: torch.device, processes: int) -> Path:
    """The file of the trunk of these training cases; another one when a case, the recipe or the code changes."""
    code = hash_of_code(f"HARM3Logic.models.{experiment.model}", "Training.loop")
    cases = [cache.paths[k].name for k in rows]
    made_of = json.dumps([code, recipe(experiment), cases, device.type, processes])
    return folder / f"{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.safetensors"


def keep(path: Path, model: nn.Module, log: Sequence[dict[str, Any]]) -> None:
    """Write the trunk, with the lines of the log of the epochs that taught it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as temporary:
        save_file({name: value.contiguous() for name, value in _state(model).items()}, temporary, {"log": json.dumps(list(log))})


def take(path: Path, model: nn.Module) -> list[dict[str, Any]]:
    """Give the model the trunk; the lines of the log of the epochs that taught it."""
    state = load_file(path)
    wrong = state.keys() ^ _state(model).keys()
    assert not wrong, f"{path} holds another trunk: {sorted(wrong)[:3]}"
    model.load_state_dict(state, strict=False)
    with safe_open(path, "pt") as file:
        log: list[dict[str, Any]] = json.loads(file.metadata()["log"])
    return log


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    parts: dict[str, nn.Module] = model.trunk_parts()  # type: ignore[operator]
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
