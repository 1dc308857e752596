"""What attention to clinical variables tells of responders: python -m Training.attention_test RUN... --out DIR [--planted NAME...].

A RUN is a folder Training.train wrote with a model that pays attention to clinical variables. Every figure comes from the cases that
each fold's model judged and did not see. Per variable: mean attention of responders and of the others, the Mann-Whitney test within
folds, Benjamini-Hochberg over the variables, for the share and for its ratios to the other variables' shares; beside it what the
out-of-fold AUC loses when the variable is shuffled among the judged cases of a fold, tested and corrected alike, and what it loses
without all clinical values or without the image. Attention is not importance: the page says how they differ.

Writes into DIR: `attention.html`, `attention.csv`, `attention.json`; of several runs each into a folder of its name. With --planted,
for cohorts whose truth is known: `planted.json`, how often those variables were found and how many others (sensitivity, false
discoveries over the runs, which are best of cohorts of different seeds):

    python -m Training.attention_test runs/seed-*/runs/cross_lora --planted tumour_size mitotic_index kit pdgfra --out runs/planted
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from HARM3Logic import __version__, checkpoint, device
from HARM3Logic.batch import Batch
from HARM3Logic.case import Case, write_text
from HARM3Logic.clinical import Variable
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from Training import attention_page, command, feed, metrics
from Training.attention_stats import LEVEL, Contrast, auc_drop, contrasts, plain, recovery, relative, shares
from Training.cache import Cache
from Training.comparison import benjamini_hochberg
from Training.runs import Run, read_run

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
    for fold in tqdm(run.folds, run.name, unit="fold", disable=None):
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


def judge(run: Run, seen: Attended, draws: int = metrics.DRAWS) -> dict[str, Any]:
    """All figures of a run."""
    table: list[Contrast] = contrasts(seen.attention, run.label, seen.names, run.fold)
    freed = relative(seen.attention, run.label, run.fold).tolist()
    patients = run.patients
    losses = [auc_drop(run.label, seen.probability, row, patients, draws, SEED) for row in seen.shuffled]
    lost = benjamini_hochberg([p for _, p in losses]).tolist()
    inputs = {name: auc_drop(run.label, run.probability, p[None], patients, draws, SEED)[0] for name, p in run.without.items()}
    shared = shares(inputs)
    told = [
        {"known": known, "drop": drop, "q_drop": q, "found_drop": q <= LEVEL}
        for known, (drop, _), q in zip(seen.known.mean(axis=0).tolist(), losses, lost, strict=True)
    ]
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "run": run.name,
        "synthetic": run.synthetic,
        "cases": len(run.label),
        "responders": int(run.label.sum()),
        "folds": len(run.folds),
        "repeats": seen.shuffled.shape[1],
        "auc": metrics.auc(run.label, seen.probability, draws, SEED, patients),
        "variables": [
            {**dataclasses.asdict(row), "label": v.label, "found": row.found, "q_relative": q, "found_relative": q <= LEVEL} | more
            for v, row, q, more in zip(seen.variables, table, freed, told, strict=True)
        ],
        "inputs": [{"input": name, "drop": drop, "share": shared[name]} for name, drop in inputs.items()],
    }


def write(out: Path, results: dict[str, Any], run: Run, seen: Attended) -> None:
    """The page, the table and the figures."""
    flat = [{**row, "drop": row["drop"].value, "drop_low": row["drop"].low, "drop_high": row["drop"].high} for row in results["variables"]]
    write_cohort(out / "attention.csv", flat)
    write_text(out / "attention.json", json.dumps(plain(results), indent=2))
    write_text(out / "attention.html", attention_page.render(results, seen.attention, run.label))


def planted_report(results: Sequence[dict[str, Any]], planted: Sequence[str]) -> dict[str, Any]:
    """How well each test found what decides, over the runs: attention, its ratios, and what the AUC loses.

    Raises:
        BadOption: a planted name is no variable, or the runs have different variables.
    """
    tables = [{row["name"]: row for row in result["variables"]} for result in results]
    names = list(tables[0])
    strange = sorted(set(planted) - set(names)) or sorted({name for table in tables for name in table} ^ set(names))
    if strange:
        raise BadOption(f"{strange[0]!r} is no variable of every run; there are {', '.join(names)}.", "Correct --planted.")
    by = {
        "attention": [[name for name, row in table.items() if row["found"]] for table in tables],
        "relative": [[name for name, row in table.items() if row["found_relative"]] for table in tables],
        "shuffling": [[name for name, row in table.items() if row["found_drop"]] for table in tables],
    }
    found = {way: dataclasses.asdict(recovery(findings, planted, names)) for way, findings in by.items()}
    return {"planted": list(planted), "runs": [result["run"] for result in results], **found}


def names_of(runs: Sequence[Path]) -> list[str]:
    """The end of each folder's path, as short as tells all of them apart.

    Raises:
        BadOption: a folder is named twice.
    """
    parts = [path.resolve().parts for path in runs]
    if len(set(parts)) < len(parts):
        raise BadOption("a run is named twice.", "Name each once.")
    for count in range(1, max(map(len, parts)) + 1):
        names = ["-".join(own[-count:]).lstrip("/-") for own in parts]
        if len(set(names)) == len(names):
            break
    return names


def cache_of(run: Path) -> Path:
    """Where the run's cases lie prepared: in its own folder, or in that of the table it is a row of."""
    places = (run / "cache", run.resolve().parents[1] / "cache")
    return next((place for place in places if place.is_dir()), places[0])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("attention_test", __doc__, 0, 1)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders Training.train wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page and tables")
    parser.add_argument("--planted", nargs="+", default=[], metavar="NAME", help="variables that decide, where the truth is known")
    parser.add_argument("--repeats", type=int, default=REPEATS, help=f"shuffles of each variable (default: {REPEATS})")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="folder of prepared cases (default: each RUN's, or its table's)")
    command.add_device(parser)
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> None:
    command.at_least(asked, repeats=1)
    on, every = device.choose(asked.device), []
    for path, name in zip(asked.runs, names_of(asked.runs), strict=True):
        run = read_run(path, name)
        out = writable(asked.out / run.name if len(asked.runs) > 1 else asked.out)
        seen = attend(run, asked.cache or cache_of(path), asked.repeats, on)
        every.append(judge(run, seen))
        write(out, every[-1], run, seen)
        print(f"{run.name}: {', '.join(row['name'] for row in every[-1]['variables'] if row['found']) or 'no variable'} found")
    if asked.planted:
        report = planted_report(every, asked.planted)
        write_text(asked.out / "planted.json", json.dumps(plain(report), indent=2))
        for way in ("attention", "relative", "shuffling"):
            found = report[way]
            print(
                f"by {way}: sensitivity {metrics.Estimate(**found['sensitivity'])}, "
                f"false discoveries {' '.join(map(str, found['false_discoveries']))} (mean share {found['false_share']:.3f})"
            )


if __name__ == "__main__":
    sys.exit(main())
