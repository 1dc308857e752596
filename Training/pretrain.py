"""Pretrain a CT trunk without labels: python -m Training.pretrain --crops DIR | --cohort C.csv --out DIR [--never COHORT.csv].

A masked autoencoder (HARM3Logic.models.mae3d) learns to fill in three quarters of each crop. Writes into the folder: `recipe.json`,
`crops.npy` (the prepared crops), `metrics.jsonl`, `pictures/` (crops as they are, as they were shown, as they were filled in),
`state.pt`, from which a stopped run goes on, and at the end `trunk.safetensors`, which `load_pretrained` puts into a model. No patient
of a cohort named by --never may be among the crops.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim.lr_scheduler import OneCycleLR

from HARM3Logic.cohort import read_cohort
from HARM3Logic.device import choose
from HARM3Logic.errors import BadCheckpoint, BadOption
from HARM3Logic.models import ct_clinical
from HARM3Logic.models.mae3d import MAE3D, MAEConfig, fit_reading
from HARM3Logic.models.vit3d import ViTTrunk, load_trunk
from HARM3Logic.prediction import writable
from HARM3Logic.prepare import Preprocessing
from HARM3Logic.progress import progress
from HARM3Logic.writing import whole, write_text
from Training import command
from Training.crops import Crops, cases_of_folder, read_crops, refuse_shared

TARGET = "trunk.safetensors"
PATIENTS = "patients_sha256"  # in the file of a trunk: whom it has seen, without their names
SHOWN = 4  # crops in a picture
HELD_OUT = 0.1  # share of the crops that only measure


@dataclass(frozen=True)
class Recipe:
    """How a trunk is pretrained.

    Args:
        preprocessing: shape, spacing and window of the crops; those of the model that will use the trunk.
        warm_up: share of all steps in which the learning rate rises.
        picture_every: epochs between two pictures.
    """

    mae: MAEConfig = field(default_factory=MAEConfig)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(shape=(48, 96, 96), spacing_mm=(3.0, 2.0, 2.0)))
    epochs: int = 400
    batch_size: int = 32
    learning_rate: float = 1.5e-4
    weight_decay: float = 0.05
    warm_up: float = 0.1
    picture_every: int = 20
    seed: int = 0


RECIPES = {
    "paper": Recipe(),  # learning rate and decay of He et al. 2022; the GIST abstract gives none
    "compact": Recipe(
        MAEConfig(ct_clinical.compact().trunk, target="moments", width=64, heads=4, layers=2, hidden=128),
        Preprocessing(shape=(16, 48, 48), spacing_mm=(8.0, 3.0, 3.0)),
        epochs=100,
        batch_size=16,
        learning_rate=1e-3,
        picture_every=25,
    ),
}


def pretrain(recipe: Recipe, crops: Crops, out: Path, device: torch.device) -> Path:
    """Train and write `trunk.safetensors`; a run that was stopped goes on after its last epoch and ends as it would have.

    Raises:
        BadOption: the loss is no number any more, or the folder holds a run of another recipe or of other crops.
    """
    _same(out / "recipe.json", recipe, crops)
    torch.manual_seed(recipe.seed)
    model = MAE3D(recipe.mae).to(device)
    train, held = _split(crops.patients, recipe.seed)
    steps = math.ceil(len(train) / recipe.batch_size)
    optimiser = torch.optim.AdamW(model.parameters(), recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
    rate = OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=max(2, steps * recipe.epochs), pct_start=recipe.warm_up, cycle_momentum=False
    )
    parts = {"model": model, "optimiser": optimiser, "rate": rate}
    rows = _resumed(out / "state.pt", parts, device)
    for epoch in progress(range(len(rows), recipe.epochs), "pretraining", recipe.epochs, initial=len(rows), unit="epoch"):
        began = time.monotonic()
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)  # of this epoch alone: resuming changes nothing
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        loss = _epoch(model.train(), optimiser, rate, crops.array, train, recipe.batch_size, generator, device)
        if not math.isfinite(loss):
            raise BadOption(f"the loss is {loss} in epoch {epoch}.", "Lower the learning rate.")
        rows.append({"epoch": epoch, "loss": loss, "held_out": _measure(model, crops.array, held, recipe.batch_size, device)})
        _save(out / "state.pt", {"rows": rows, **{name: part.state_dict() for name, part in parts.items()}})
        lines = [json.dumps({**row, "seconds": time.monotonic() - began} if row is rows[-1] else row) for row in rows]
        write_text(out / "metrics.jsonl", "\n".join(lines) + "\n")
        if epoch % recipe.picture_every == 0 or epoch == recipe.epochs - 1:
            show = held[:SHOWN] if len(held) else train[:SHOWN]
            draw(model, _take(crops.array, show, device), writable(out / "pictures") / f"epoch-{epoch:04d}.png")
    if model.trunk.reading is not None:
        shares = np.split(train, range(recipe.batch_size, len(train), recipe.batch_size))
        fit_reading(model, lambda: (_take(crops.array, share, device) for share in shares))
    seen = sorted(set(crops.patients))
    told = {"crops": len(crops.array), "patients": len(seen), **rows[-1], PATIENTS: [pseudonym(name) for name in seen]}
    write_trunk(out / TARGET, model.trunk, told)
    return out / TARGET


def pseudonym(patient: str) -> str:
    """By which a patient is known again without the name."""
    return hashlib.sha256(patient.encode()).hexdigest()[:16]


def _epoch(
    model: MAE3D,
    optimiser: torch.optim.Optimizer,
    rate: OneCycleLR,
    array: np.ndarray,
    rows: np.ndarray,
    size: int,
    generator: torch.Generator,
    device: torch.device,
) -> float:
    order = rows[torch.randperm(len(rows), generator=generator).numpy()]
    total = 0.0
    for start in range(0, len(order), size):
        batch = _take(array, order[start : start + size], device)
        flipped = torch.rand(len(batch), generator=generator) < 0.5
        batch[flipped] = batch[flipped].flip(-1)
        loss = model(batch, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        total += float(loss.detach()) * len(batch) / len(order)
    return total


@torch.inference_mode()
def _measure(model: MAE3D, array: np.ndarray, rows: np.ndarray, size: int, device: torch.device) -> float | None:
    """The loss on crops that do not train, always under the same masks; None without any."""
    if not len(rows):
        return None
    generator = torch.Generator().manual_seed(0)
    model.eval()
    losses = [(float(model(_take(array, part, device), generator)), len(part)) for part in np.split(rows, range(size, len(rows), size))]
    return sum(loss * n for loss, n in losses) / len(rows)


def _split(patients: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The crops that train and those that only measure; those of one patient stay together."""
    names = np.array(sorted(set(patients)))
    aside = np.random.default_rng(seed).permutation(names)[: int(HELD_OUT * len(names))]
    held = np.isin(np.array(patients), aside)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _take(array: np.ndarray, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array[np.sort(rows)], dtype=np.float32)).to(device)


def draw(model: MAE3D, crops: torch.Tensor, path: Path) -> None:
    """A row for each crop: its middle slice as it is, as it was shown and as it was filled in."""
    shown, filled = model.eval().pictures(crops, torch.Generator().manual_seed(0))
    middle = crops.shape[1] // 2
    cells = torch.stack([crops, shown, filled], dim=1)[:, :, middle].clamp(-1, 1).cpu().numpy()
    grey = ((np.pad(cells, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0) + 1) * 127.5).round().astype(np.uint8)
    rows, columns, height, width = grey.shape
    sheet = Image.fromarray(grey.transpose(0, 2, 1, 3).reshape(rows * height, columns * width))
    with whole(path) as temporary:
        sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.NEAREST).save(temporary, "png")


def write_trunk(path: Path, trunk: ViTTrunk, told: dict[str, Any]) -> None:
    """The trunk alone, whole or not at all; `told` says where it comes from."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in trunk.state_dict().items()}
    with whole(path) as temporary:
        save_file(weights, temporary, metadata={"harm3_trunk": json.dumps({"config": asdict(trunk.config), "training": told})})


def load_pretrained(trunk: ViTTrunk, path: Path) -> dict[str, Any]:
    """Put pretrained weights into a trunk; what their file says of its training.

    Raises:
        BadCheckpoint: the file is none of ours, or of a trunk of another shape.
    """
    told = about(path)
    with safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    plain = json.loads(json.dumps(asdict(trunk.config)))
    own = {"readings": 0} | told["config"]  # files from before there were any
    differ = [key for key, value in plain.items() if own.get(key) != value and key != "dropout"]
    if differ:
        raise BadCheckpoint(
            f"{path.name!r} is of a trunk with {differ[0]} {own.get(differ[0])}; the model's has {plain[differ[0]]}.",
            "Pretrain a trunk of the same shape.",
        )
    load_trunk(trunk, weights, path.name)
    return dict(told["training"])


def about(path: Path) -> dict[str, Any]:
    """The `config` of a pretrained trunk, and its `training`.

    Raises:
        BadCheckpoint: the file is none of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})["harm3_trunk"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise BadCheckpoint(f"{str(path)!r} is no pretrained trunk ({error!r}).", "Give the trunk.safetensors of a pretraining.") from error
    return found


def _same(path: Path, recipe: Recipe, crops: Crops) -> None:
    plain = json.dumps({"recipe": asdict(recipe), "patients": crops.patients}, indent=2)
    if path.is_file() and path.read_text(encoding="utf-8") != plain:
        raise BadOption(f"{str(path.parent)!r} holds a run of another recipe or of other crops.", "Choose another --out or remove it.")
    write_text(path, plain)


def _resumed(path: Path, parts: dict[str, Any], device: torch.device) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    saved = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved[name])
    rows: list[dict[str, Any]] = saved["rows"]
    return rows


def _save(path: Path, value: Any) -> None:
    with whole(path) as temporary:
        torch.save(value, temporary)


def run(recipe: Recipe, folder: Path | None, cohort: Path | None, out: Path, never: Sequence[Path], device: str) -> Path:
    """Pretrain on a folder of crops or on the tumours of a cohort; the trunk's file.

    Args:
        never: cohorts whose patients are refused.
    """
    if folder is None and cohort is None:
        raise BadOption("there is nothing to pretrain on.", "Give a folder of crops or a cohort.")
    cases = cases_of_folder(folder) if folder else read_cohort(cohort or "")
    refuse_shared(cases, never)
    chosen = choose(device)
    if chosen.type == "cpu":
        torch.set_flush_denormal(True)  # denormals slow a CPU down many times
    crops = read_crops(cases, recipe.preprocessing, writable(out), middle=folder is not None)
    print(f"{len(crops.array)} crops of {len(set(crops.patients))} patients")
    made = pretrain(recipe, crops, out, chosen)
    print(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("pretrain", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--crops", type=Path, metavar="DIR", help="folder of CT images with the tumour in their middle")
    source.add_argument("--cohort", type=Path, metavar="C.csv", help="table of cases with ct and tumour_ct or tumour_point_mm")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--never", type=Path, action="append", default=[], metavar="COHORT.csv", help="cohort whose patients are refused")
    parser.add_argument("--recipe", choices=RECIPES, default="compact")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    command.add_device(parser)
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, epochs=1)
    recipe = RECIPES[asked.recipe]
    recipe = recipe if asked.epochs is None else replace(recipe, epochs=asked.epochs)
    run(recipe, asked.crops, asked.cohort, asked.out, asked.never, asked.device)


if __name__ == "__main__":
    sys.exit(main())
