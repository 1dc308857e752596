"""Judge runs by their stored predictions: python -m Training.evaluate RUN... --out DIR [--reference NAME] [--subgroup COLUMN]
[--cohort COHORT.csv] [--external COHORT.csv].

A RUN is a folder a training wrote. Every figure comes from the cases that each fold's model judged and did not see; thresholds come from
the cases that chose, never from those judged. Writes into DIR: `report.html`, `tables.csv` and `results.json`. With --external the
reference's model (trained with --whole) judges the locked cases, once: a ledger beside their table refuses every other model.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from HARM3Logic import __version__
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadCohort, BadOption
from HARM3Logic.writing import write_text
from Training import checklist, command, external, metrics, page, tables
from Training.runs import WITHOUT, Run, read_runs

SEED = 0


def evaluate(
    runs: Sequence[Run],
    reference: Run,
    subgroups: Sequence[str] = (),
    cohort: Path | None = None,
    outside: dict[str, Any] | None = None,
    draws: int = metrics.DRAWS,
) -> dict[str, Any]:
    """All figures of runs over the same cases.

    Args:
        reference: the run the others are compared with.
        subgroups: columns of the predictions or of the cohort table; `centre` is taken anyway where there are several.
        outside: figures on locked cases.

    Raises:
        BadOption: there is no column of a name.
        HARM3Error: an accuracy does not lie between sensitivity and specificity.
    """
    rows = _table(cohort) if cohort else None
    columns = [*(["centre"] if len(set(reference.centre)) > 1 else []), *subgroups]
    grouped = {column: tables.groups(reference, column, rows) for column in dict.fromkeys(columns)}
    results: dict[str, Any] = {
        **_about(draws),
        "reference": reference.name,
        "cohort": tables.cohort_figures(reference),
        "runs": [tables.figures(run, draws, SEED) for run in runs],
        "comparisons": tables.compare(runs, reference),
        "subgroups": [row for column, group in grouped.items() for run in runs for row in tables.by_group(run, column, group, draws)],
        "missing_inputs": [row for run in runs for row in tables.without_inputs(run)],
        "missing_inputs_note": _note(runs),
        "failures": tables.failures(runs, reference),
        "external": outside,
    }
    return {**results, "checklist": checklist.fill(reference, results)}


def only_external(outside: dict[str, Any]) -> dict[str, Any]:
    """The same keys where no run has folds."""
    empty = ("runs", "comparisons", "subgroups", "missing_inputs", "failures", "checklist")
    none = {"cohort": None, "reference": outside["run"], "missing_inputs_note": ""}
    return {**_about(metrics.DRAWS), **none, **{key: [] for key in empty}, "external": outside}


def _about(draws: int) -> dict[str, Any]:
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "version": __version__,
        "bootstrap_draws": draws,
        "seed": SEED,
    }


def _note(runs: Sequence[Run]) -> str:
    """What is absent from the table of missing inputs."""
    partly = [f"{run.name} lacks {WITHOUT}{name}.csv in {', '.join(folds)}" for run in runs for name, folds in run.partly.items()]
    if partly:
        return "; ".join(partly) + "; these inputs are left out."
    if not any(run.without for run in runs):
        return (
            f"No run has predictions made without an input (fold-K/{WITHOUT}<input>.csv), so what a missing input costs was not measured."
        )
    return ""


def _table(path: Path) -> dict[str, dict[str, str]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [{k: v or "" for k, v in row.items() if k} for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadCohort(f"cohort {str(path)!r} cannot be read ({error}).", "Check the path.") from error
    if not rows or "case_id" not in rows[0]:
        raise BadCohort(f"cohort {str(path)!r} has no rows with a case_id.", "Give the table the runs were trained on.")
    return {row["case_id"]: row for row in rows}


def write(results: dict[str, Any], runs: Sequence[Run], reference: Run | None, out: Path) -> None:
    """The three files, each whole or not at all; `results.json` comes last and so says that the others are there.

    Raises:
        BadOption: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").unlink(missing_ok=True)
        write_text(out / "report.html", page.render(results, runs, reference))
        write_cohort(out / "tables.csv", long_table(results))
        write_text(out / "results.json", json.dumps(tables.plain(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as error:
        raise BadOption(f"results cannot be written to {str(out)!r} ({error.strerror}).", "Choose another folder.") from error


def long_table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every figure in one table: where it stands, what it is, its value and its interval."""
    found = []
    for row in results["runs"]:
        found += tables.rows_of("runs", row["run"], {k: v for k, v in row.items() if k not in ("parts", "folds")})
        for fold in row["folds"]:
            found += tables.rows_of("folds", f"{row['run']} {fold['fold']}", fold)
    for row in results["comparisons"]:
        found += tables.rows_of("comparisons", f"{row['run']} - {row['reference']}", row)
    for row in results["subgroups"]:
        found += tables.rows_of("subgroups", f"{row['run']} {row['column']}={row['value']}", row)
    for row in results["missing_inputs"]:
        found += tables.rows_of("missing_inputs", f"{row['run']} without {row['input']}", row)
    for row in results["failures"]:
        found += tables.rows_of("failures", row["case_id"], {k: v for k, v in row.items() if k != "others"})
    for row in results.get("methods", ()):
        found += tables.rows_of("methods", row["run"], row)
    for row in results.get("planned", ()):
        found += tables.rows_of("planned", f"{row['run']} - {row['reference']} {row['where']}", row)
    for row in results.get("seeds", ()):
        found += tables.rows_of("seeds", row["run"], {k: v for k, v in row.items() if k not in ("seeds", "aucs")})
    if results["external"]:
        found += tables.rows_of("external", results["external"]["run"], results["external"])
    return found


def run(
    paths: Sequence[Path], out: Path, reference: str | None, subgroups: Sequence[str], cohort: Path | None, locked: Path | None
) -> dict[str, Any]:
    """Read, judge and write."""
    alone = locked is not None and len(paths) == 1 and not any(paths[0].glob("fold-*/predictions.csv"))
    runs = [] if alone else read_runs(paths)
    names = [r.name for r in runs]
    if reference is not None and runs and reference not in names:
        raise BadOption(f"there is no run {reference!r}; there are {', '.join(names)}.", "Correct --reference.")
    chosen = runs[names.index(reference)] if reference and runs else next(iter(runs), None)
    outside = external.evaluate(locked, chosen.path if chosen else paths[0], out) if locked else None
    if chosen is None:
        assert outside is not None
        results = only_external(outside)
    else:
        results = evaluate(runs, chosen, subgroups, cohort, outside)
    write(results, runs, chosen, out)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("evaluate", __doc__, 0, 1)
    parser.description = "Judge runs by their stored predictions."
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="folder of a run, with fold-K/predictions.csv")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--reference", metavar="NAME", help="run the others are compared with, by the name of its folder (default: the first)"
    )
    parser.add_argument(
        "--subgroup", metavar="COLUMN", action="append", default=[], help="also judge the groups of this column; may be repeated"
    )
    parser.add_argument("--cohort", type=Path, help="table that has the column of --subgroup")
    parser.add_argument("--external", metavar="COHORT.csv", type=Path, help="locked cases, judged once by the model of the reference")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> int:
    results = run(asked.runs, asked.out, asked.reference, asked.subgroup, asked.cohort, asked.external)
    for row in results["runs"]:
        print(f"{row['run']}: AUC {row['auc']}")
    cohort = results["cohort"] or {}
    if (cohort.get("folds_wanted") or 0) > cohort.get("folds", 0):
        print(f"not finished: {cohort['folds']} of {cohort['folds_wanted']} folds have judged.", file=sys.stderr)
    for row in results["comparisons"]:
        print(f"{row['run']} - {row['reference']}: {row['difference']}, p {row['p']:.3g}, after Holm {row['p_holm']:.3g}")
    if results["external"]:
        print(f"external: AUC {results['external'].get('auc', '-')}")
        for reason in results["external"]["failures"]:
            print(f"not predicted: {reason}", file=sys.stderr)
    print(f"Report: {asked.out / 'report.html'}")
    return 2 if results["external"] and results["external"]["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
