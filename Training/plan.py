"""What a run is before anything learns: settings and cases checked, who trains, chooses and judges, every case prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from HARM3Logic.case import Case
from HARM3Logic.cohort import read_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.prediction import writable
from Training import cache as caching
from Training import start
from Training.cache import Cache
from Training.experiment import Experiment
from Training.folds import Split, fewer, folds, whole
from Training.record import same_cases, same_experiment

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Plan:
    """A run whose cases are prepared: what is left is to train its splits, here or in processes of their own.

    Args:
        told: name of the experiment, as checkpoints tell it.
        splits: name of the folder of each in `out`, to the split.
        taught: folder of the trunks that masks have taught, where runs share them.
        tensorboard: write the losses for TensorBoard, too.
    """

    experiment: Experiment
    told: str
    tensors: Cache
    out: Path
    splits: Mapping[str, Split]
    taught: Path | None
    tensorboard: bool = False


def planned(
    experiment: Experiment,
    name: str,
    cohort: Path,
    out: Path,
    fabric: Fabric,
    *,
    fold: int | None = None,
    every: bool = False,
    workers: int | None = None,
    external: Sequence[str] = (),
    by_centre: bool = False,
    tensorboard: bool = False,
    shuffle: int | None = None,
    labels: int | None = None,
    cache: Path | None = None,
    wanted: Sequence[str] | None = None,
) -> Plan:
    """Check the experiment and the cohort, begin the folder of the run and prepare the cases.

    Args:
        fold: of all folds this one only.
        every: one model on all cases instead of folds.
        external: centres that are locked: none of their files is opened.
        by_centre: each centre is judged by a model that saw none of it.
        shuffle: seed with which labels are dealt out anew among the cases, for a leak check.
        labels: patients of a fold who are learned from, for a learning curve; None takes all.
        cache: folder of prepared cases, which several runs may share, and with them the trunks that masks have taught; None takes
            `out`'s own.
        wanted: the inputs that are prepared, where runs of several models share the cache; None takes what this model reads.

    Raises:
        BadOption, BadCohort: the settings or the cases cannot be used, or another run lies in the folder.
    """
    start.check(experiment)
    everyone = shuffled(read_cohort(cohort), shuffle)
    start.refuse_pretrained_patients(experiment, everyone)
    cases, found = partition(everyone, experiment, every, external, by_centre)
    if labels is not None:
        found = [fewer(split, cases, labels, experiment.seed) for split in found]
    splits = {"whole" if split.number is None else f"fold-{split.number}": split for split in found if fold in (None, split.number)}
    if not splits:
        raise BadOption(f"fold {fold} does not exist; there are {', '.join(str(s.number) for s in found)}.", "Correct --fold.")
    if fabric.is_global_zero:
        settings: dict[str, Any] = {
            "name": name, "cohort": cohort.name, "external": sorted(external), "by_centre": by_centre, "shuffle_labels": shuffle,
            "labels": labels,
        }  # fmt: skip
        settings |= start.provenance(experiment)
        same_experiment(writable(out) / "experiment.json", settings, experiment)
        same_cases(out / "cases.csv", cases)
    with fabric.rank_zero_first():  # the others find everything prepared
        tensors = prepared(cases, experiment, cache or out / "cache", fabric.device.type, workers, wanted)
    told = name if shuffle is None else f"{name} on shuffled labels (seed {shuffle})"
    return Plan(experiment, told, tensors, out, splits, None if cache is None else cache / "trunks", tensorboard)


def prepared(
    cases: Sequence[Case],
    experiment: Experiment,
    folder: Path,
    device: str = "cpu",
    workers: int | None = None,
    wanted: Sequence[str] | None = None,
) -> Cache:
    """The cases as the experiment's model sees them, without what it does not read.

    Args:
        wanted: as in `planned`.

    Raises:
        BadCohort: cases cannot be prepared.
    """
    own = start.inputs(experiment)
    return caching.build(
        cases, experiment.preprocessing, experiment.tile_encoder, folder, wanted=own if wanted is None else wanted, read=own,
        schema=experiment.schema, ignore_masks=experiment.ignore_masks, device=device, workers=workers,
    )  # fmt: skip


def shuffled(cases: Sequence[Case], seed: int | None) -> tuple[Case, ...]:
    """The cases with each other's labels; as they are without a seed. Cases without a label stay without."""
    if seed is None:
        return tuple(cases)
    known = [k for k, case in enumerate(cases) if case.label is not None]
    dealt = dict(zip(known, np.random.default_rng(seed).permutation(known).tolist(), strict=True))
    return tuple(dataclasses.replace(case, label=cases[dealt[k]].label) if k in dealt else case for k, case in enumerate(cases))


def partition(
    cases: Sequence[Case], experiment: Experiment, every: bool, external: Sequence[str], by_centre: bool
) -> tuple[tuple[Case, ...], list[Split]]:
    """The cases that are not locked, and who of them trains, chooses and judges."""
    if every:
        found = [whole(cases, experiment.seed, external=external)]
    else:
        found = list(folds(cases, experiment.folds, experiment.seed, by_centre=by_centre, external=external))
    inside = sorted({*found[0].train, *found[0].choose, *found[0].judge})
    place = {k: n for n, k in enumerate(inside)}
    moved = [Split(*(tuple(place[k] for k in part) for part in (split.train, split.choose, split.judge)), split.number) for split in found]
    return tuple(cases[k] for k in inside), moved
