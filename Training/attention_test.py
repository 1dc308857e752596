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
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from HARM3Logic import __version__, device
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from HARM3Logic.writing import write_text
from Training import attention_page, command, metrics
from Training.attended import REPEATS, SEED, Attended, attend
from Training.attention_stats import LEVEL, Contrast, auc_drop, contrasts, plain, recovery, relative, shares
from Training.comparison import benjamini_hochberg
from Training.runs import Run, read_run


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
