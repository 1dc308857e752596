"""What each fold's model looks at in the cases it judged: attention to clinical variables, and its answer with each of them shuffled."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from HARM3Logic import checkpoint
from HARM3Logic.batch import Batch
from HARM3Logic.case import Case
from HARM3Logic.clinical import Variable
from HARM3Logic.errors import BadOption
from HARM3Logic.progress import progress
from Training import feed
from Training.cache import Cache
from Training.runs import Run

REPEATS = 20
AT_ONCE = 16  # cases
SAME = 0.01  # difference of probabilities that devices and precisions may make
SEED = 0


@dataclass(frozen=True)
class Attended:
    """Of a run's judged cases, in the run's order.

    Args:
        attention: share each variable gets, mean of the queries.
        known: whether the case has a value.
        shuffled: probability when a variable's values (and whether they are known) are dealt out anew within the fold.
    """

    variables: tuple[Variable, ...]
    attention: Float[np.ndarray, "N V"]
    known: Float[np.ndarray, "N V"]
    probability: Float[np.ndarray, " N"]
    shuffled: Float[np.ndarray, "V R N"]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.variables)


def attend(run: Run, cache: Path, repeats: int = REPEATS, on: torch.device | None = None) -> Attended:
    """Let each fold's model look at the cases it judged, as they are and with each variable shuffled.

    Raises:
        BadOption: a model pays no attention to clinical variables, or a case's tensors are not in the cache.
    """
    on = on or torch.device("cpu")
    variables: tuple[Variable, ...] = ()
    kept: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(SEED)
    for fold in progress(run.folds, run.name, unit="fold"):
        loaded = checkpoint.load(run.path / fold / "checkpoint.safetensors", on)
        variables = loaded.card.clinical.variables
        if not variables:
            raise BadOption(f"{loaded.card.model} of run {run.name!r} reads no clinical variables.", "Name a run of a model that does.")
        rows = run.of(fold)
        tensors = prepared_cases(run, rows, cache)
        orders = [[rng.permutation(len(rows)) for _ in range(repeats)] for _ in variables]
        values, known = _row(tensors)
        with _remembering(loaded.model):
            logit, attention = _look(loaded.model, tensors, on, values, known)
            if attention is None:
                raise BadOption(
                    f"{loaded.card.model} of run {run.name!r} pays no attention to clinical variables.", "Name a run of a model that does."
                )
            moved = np.empty((len(variables), repeats, len(rows)))
            for v, r in np.ndindex(len(variables), repeats):
                x, m, order = values.clone(), known.clone(), torch.from_numpy(orders[v][r])
                x[:, v], m[:, v] = values[order, v], known[order, v]
                moved[v, r] = _look(loaded.model, tensors, on, x, m)[0]
        found = {
            "attention": attention, "known": known.double().numpy(),
            "probability": loaded.card.calibration(logit), "shuffled": loaded.card.calibration(moved).transpose(2, 0, 1),
        }  # fmt: skip
        for key, value in found.items():
            kept.setdefault(key, np.full((len(run.label), *value.shape[1:]), np.nan))[rows] = value
    _same_answers(run, kept["probability"])
    return Attended(variables, **{**kept, "shuffled": kept["shuffled"].transpose(1, 2, 0)})


def _same_answers(run: Run, probability: Float[np.ndarray, " N"]) -> None:
    """Refuse tensors of other settings than the run was judged on."""
    apart = np.abs(probability - run.probability)
    if apart.max() > SAME:
        k = int(apart.argmax())
        raise BadOption(
            f"run {run.name!r} gives case {run.case_id[k]!r} {run.probability[k]:.3f}, and its model gives what the cache holds "
            f"{probability[k]:.3f}.",
            "Name the training's own folder with --cache.",
        )


def prepared_cases(run: Run, rows: Int[np.ndarray, " n"], cache: Path) -> Cache:
    """The judged cases as the training kept them.

    Raises:
        BadOption: a case's tensors are not there, or there are several.
    """
    paths = []
    files = [path for path in cache.glob("*.safetensors")]
    for row in rows:
        pattern = re.compile(re.escape(run.case_id[row]) + r"\.[0-9a-f]{16}\.safetensors")
        found = [path for path in files if pattern.fullmatch(path.name)]
        if len(found) != 1:
            raise BadOption(
                f"the cache {str(cache)!r} holds case {run.case_id[row]!r} {len(found)} times; once is wanted.",
                "Name the training's own folder with --cache, or remove what other settings left in it.",
            )
        paths += found
    return Cache(paths, [Case(run.case_id[row], {}, label=int(run.label[row])) for row in rows])


def _row(tensors: Cache) -> tuple[Float[Tensor, "N V"], Tensor]:
    """The clinical values of all cases and whether they are known; all unknown of a case without a row."""
    rows = [(case.clinical, case.clinical_mask) for case in tensors]
    count = max((len(value) for value, _ in rows if value is not None), default=0)
    nothing = torch.zeros(count), torch.zeros(count, dtype=torch.bool)
    pairs = [nothing if value is None or mask is None else (value, mask) for value, mask in rows]
    return torch.stack([value for value, _ in pairs]), torch.stack([mask for _, mask in pairs])


@torch.inference_mode()
def _look(
    model: nn.Module, tensors: Cache, on: torch.device, values: Float[Tensor, "N V"], known: Tensor
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits and attention to the variables, with these values in place of the cases' own."""
    logits, seen = [], []
    groups = feed.groups(range(len(tensors)), AT_ONCE)

    def change(batch: Batch, group: feed.Group) -> Batch:
        rows = list(group.rows)
        return dataclasses.replace(batch, clinical=values[rows], clinical_mask=known[rows])

    for batch, _, _ in feed.batches(tensors, groups, change):
        output = model(batch.to(on))
        logits.append(output.logit.double().cpu())
        if "clinical" in output.attention:
            seen.append(output.attention["clinical"].double().mean(dim=1).cpu())
    return torch.cat(logits).numpy(), torch.cat(seen).numpy() if seen else None


class _Remembering(nn.Module):
    """A trunk that answers what it was asked before from memory."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.answers = trunk, dict[bytes, Tensor]()
        self.reading = getattr(trunk, "reading", None)  # what a model reads off the tokens is the trunk's own

    def forward(self, image: Tensor) -> Tensor:
        key = hashlib.sha256(image.cpu().numpy().tobytes()).digest()
        if key not in self.answers:
            self.answers[key] = self.trunk(image)
        return self.answers[key]


@contextmanager
def _remembering(model: nn.Module) -> Iterator[None]:
    """Where a model has a trunk, an image goes through it once however often its case is asked about."""
    trunk = getattr(model, "trunk", None)
    if trunk is not None:
        model.trunk = _Remembering(trunk)
    try:
        yield
    finally:
        if trunk is not None:
            model.trunk = trunk
