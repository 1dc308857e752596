"""Both tables of the paper for a cohort: python -m Training.table1 --cohort COHORT.csv --out DIR [--methods M ...] [--folds N] [--seeds N].

Trains every comparison method and every row of the ablation on the same folds, one after the other or side by side (on a GPU of its own
each where there are several), measures what each costs and where its heat lies, and compares all with HARM3-Fusion on the same cases.

A stopped call goes on where it was; runs that lie finished in DIR/runs/METHOD are taken as they are. Writes into DIR: `table1.html`,
`report.html` (the same runs as Training.evaluate reports them), `tables.csv` and `results.json`; prepared cases go to DIR/cache. With
--seeds every row is trained anew with other folds and weights, in DIR/runs/seed-S/METHOD, and compared over all of them.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from HARM3Logic.case import INPUTS, MRI, Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from HARM3Logic.writing import write_text
from Training import cache as caching
from Training import command, cost, evaluate, loop, page, published, seeds, side_by_side, start, train, trunks
from Training.devices import open_fabric
from Training.experiment import Experiment, find, lengthened, shortened
from Training.plan import Plan, planned
from Training.runs import Run, read_run, read_runs
from Training.side_by_side import Job

OURS = "harm3_fusion"
VARIANTS = ("compact", "equal", "paper")  # equal: small networks, all trained as HARM3-Fusion is


def methods(variant: str = "compact") -> dict[str, str]:
    """Every row of both tables and the experiment that trains it, in the order of the tables."""
    compared = {name: f"baselines:{name}_{variant}" for name in published.METHODS if name != OURS}
    size = "paper" if variant == "paper" else "compact"
    tail = "" if variant == "paper" else f":{size}"
    rows = {name: f"harm3_ablations:{name}{tail}" for name in published.ABLATIONS if name != OURS}
    return {**compared, OURS: f"{OURS}:{size}", **rows}


def chosen(names: Sequence[str], variant: str) -> dict[str, str]:
    """The asked rows, or all of them; any other experiment may be named as LABEL=NAME:VARIANT.

    Raises:
        BadOption: a row does not exist, or a label is not the name of a folder.
    """
    known = methods(variant)
    asked = {}
    for name in names or known:
        label, _, experiment = name.partition("=")
        if "/" in label:  # it names a folder, and those of further seeds lie one deeper
            raise BadOption(f"the label {label!r} has a slash; it names a folder.", "Give one without.")
        if not experiment and label not in known:
            raise BadOption(f"there is no method {name!r}; there are {', '.join(known)}.", "Name one, or give LABEL=NAME:VARIANT.")
        asked[label] = experiment or known[label]
    return asked


def with_seeds(experiments: Mapping[str, tuple[str, Experiment]], count: int) -> dict[str, tuple[str, Experiment]]:
    """The rows, and after them the same with further seeds under labels of their own, as `of_seeds` finds them."""
    found = dict(experiments)
    for further in range(1, count):
        for label, (name, experiment) in experiments.items():
            seed = experiment.seed + further
            found[f"seed-{seed}/{label}"] = name, replace(experiment, seed=seed)
    return found


def of_seeds(label: str, labels: Iterable[str]) -> list[str]:
    """The labels of a row, those with further seeds after its own."""
    return [own for own in labels if own.rpartition("/")[2] == label]


def train_all(
    experiments: Mapping[str, tuple[str, Experiment]],
    cohort: Path,
    out: Path,
    places: Sequence[tuple[str, int]],
    external: Sequence[str] = (),
    *,
    whole: bool = False,
    costs: bool = True,
) -> dict[str, str]:
    """Train and measure what is not there yet; label to the reason of each that failed.

    Args:
        experiments: label to name and recipe.
        places: device and threads of each process, as `side_by_side.slots` gives them.
        whole: train a model of all cases beside the folds.
        costs: measure, too.

    Raises:
        BadOption, BadCohort: a recipe contradicts itself, or cases cannot be prepared.
    """
    wanted = shared([experiment for _, experiment in experiments.values()], read_cohort(cohort))
    for _, experiment in experiments.values():  # before hours are spent on the cases
        start.check(experiment)
    fabric, options = open_fabric(places[0][0]), {"external": external, "cache": out / "cache", "wanted": wanted}

    def plan(label: str, every: bool) -> Plan:
        name, experiment = experiments[label]
        return planned(experiment, name, cohort, out / "runs" / label, fabric, every=every, **options)

    plans = {label: plan(label, False) for label in experiments}
    wholes = {label: plan(label, True) for label in experiments} if whole else {}
    logs = out / "logs" if len(places) > 1 else None
    failed = side_by_side.run(_teachings(plans, logs), places)
    work = [job for label in plans for each in (plans, wholes) if label in each for job in train.jobs(each[label], label, logs)]
    for name, reason in side_by_side.run(work, places).items():
        failed.setdefault(name.rpartition("/")[0], reason)
    # one at a time: what is timed must not share its cores; another seed costs the same
    timed = [label for label in plans if costs and label not in failed and "/" not in label]
    return failed | side_by_side.run([Job(label, _measure, (plans[label],), logs and logs / f"{label}.log") for label in timed], places[:1])


def _teachings(plans: Mapping[str, Plan], logs: Path | None) -> list[Job]:
    """The work that several rows have in common: each fold's trunk, where masks teach it alike."""
    alike: dict[str, list[Plan]] = {}
    for plan in plans.values():
        if trunks.shareable(plan.experiment) and not any(plan.out.glob("fold-*")):
            alike.setdefault(trunks.recipe(plan.experiment), []).append(plan)
    firsts = [(plans[0], label) for plans in alike.values() if len(plans) > 1 for label in plans[0].splits]
    names = [f"trunk of {label}, seed {plan.experiment.seed}" for plan, label in firsts]
    return [Job(name, _teach, place, logs and logs / f"{name}.log") for name, place in zip(names, firsts, strict=True)]


def _teach(device: str, plan: Plan, label: str) -> None:
    split, fabric = plan.splits[label], open_fabric(device)
    recipe = lengthened(plan.experiment, len(split.train))
    assert plan.taught is not None
    trunk = trunks.place(plan.taught, recipe, plan.tensors, split.train, fabric.device, fabric.world_size)
    scratch = trunk.with_suffix("")
    loop.train(replace(recipe, epochs=recipe.mask_epochs, patience=0), plan.tensors, split, scratch, fabric, taught=plan.taught)
    shutil.rmtree(scratch)


def _measure(device: str, plan: Plan) -> None:
    if not cost.measured(plan.out):
        cost.measure(plan.experiment, plan.tensors, list(plan.splits.values()), plan.out, device)


def shared(experiments: Sequence[Experiment], cases: Sequence[Case]) -> tuple[str, ...]:
    """What is prepared for all of them at once; where there is MRI, all volumes and the slide, for rows that are trained later."""
    read = {name for experiment in experiments for name in start.inputs(experiment)}
    if read & set(caching.USUAL) and any(name in case.inputs for case in cases for name in MRI):
        read |= set(caching.USUAL)
    return tuple(name for name in INPUTS if name in read)


def tabulate(out: Path, labels: Sequence[str]) -> dict[str, Any]:
    """The figures of all finished runs: those of `Training.evaluate`, what each method costs, and what other seeds make of it.

    Args:
        labels: of rows, and where there are further seeds of each row's, as `with_seeds` names them.

    Raises:
        BadOption: runs cannot be compared.
    """
    firsts = [label for label in labels if "/" not in label]
    runs = read_runs([out / "runs" / label for label in firsts])
    reference = next((run for run in runs if run.name == OURS), runs[0])
    results = evaluate.evaluate(runs, reference)
    results["methods"] = [_method(run) for run in runs]
    repeated = {label: of_seeds(label, labels) for label in firsts}
    if len(labels) > len(firsts):
        read = {label: [read_run(out / "runs" / own) for own in every] for label, every in repeated.items()}
        results["seeds"] = seeds.over_seeds(read, reference.name)
    write_text(writable(out) / "table1.html", page.render_tables(results, runs, reference))
    evaluate.write(results, runs, reference, out)
    return results


def _method(run: Run) -> dict[str, Any]:
    found = cost.measured(run.path)
    return {
        "run": run.name,
        "experiment": run.experiment.get("name"),
        "train_seconds": cost.trained_seconds(run.path),
        **{key: found.get(key) for key in ("device", "threads", "parameters", "inference_ms", "peak_mib", "masks", "localisation")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser("table1", __doc__, 1, 2)
    parser.add_argument("--cohort", type=Path, required=True, help="table of cases with labels")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and the tables")
    parser.add_argument("--methods", nargs="+", default=[], metavar="M", help=f"{', '.join(methods())}, or LABEL=NAME:VARIANT")
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0], help="sizes and training; equal: all as ours")
    command.add_external(parser)
    command.add_table(parser, "methods", "instead of each method's own; its stages shrink alike")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of every row, each with folds and weights of its own (default: 1)")
    return command.run(parser, _run, arguments)


def _run(asked: argparse.Namespace) -> int:
    command.at_least(asked, jobs=1, epochs=1, folds=2, seeds=1)
    names = chosen(asked.methods, asked.variant)
    found = {label: shortened(find(name), asked.epochs) for label, name in names.items()}
    first = {label: (names[label], replace(each, folds=asked.folds or each.folds)) for label, each in found.items()}
    experiments = with_seeds(first, asked.seeds)
    failed = train_all(experiments, asked.cohort, writable(asked.out), side_by_side.slots(asked.jobs, asked.device), asked.external)
    for label, reason in failed.items():
        print(f"{label} failed: {reason}", file=sys.stderr)
    whole = {label for label in first if not failed.keys() & set(of_seeds(label, experiments))}  # with all its seeds
    if not whole:
        return 2
    results = tabulate(asked.out, [label for label in experiments if label.rpartition("/")[2] in whole])
    _say(results)
    print(f"Tables: {asked.out / 'table1.html'}")
    return 2 if failed else 0


def _say(results: Mapping[str, Any]) -> None:
    for row in results["runs"]:
        print(f"{row['run']}: AUC {row['auc']}")
    for row in results.get("seeds", ()):
        line = f"{row['run']}, {len(row['aucs'])} seeds: AUC {row['auc_mean']:.3f} (spread {row['auc_spread']:.3f})"
        if row["run"] != results["reference"]:
            for name in seeds.TESTS:
                test = row[name]
                line += f"; {name.replace('_', ' ')} against {results['reference']}: {test['difference']}, p {test['p']:.3g}"
                line += f", after Holm {test['p_holm']:.3g}"
        print(line)


if __name__ == "__main__":
    sys.exit(main())
