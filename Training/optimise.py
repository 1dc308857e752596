"""Makes a cost small with SMAC3: Hyperband over epochs, a random forest as model, trials on Dask's workers, kept after every one.

SMAC's forest is scikit-learn's; pyrfr is not needed.

Source: SMAC3, Lindauer et al. 2022; Hyperband, Li et al. 2018; as many trials for the forest as BOHB wants, Falkner et al. 2018.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ConfigSpace import (
    CategoricalHyperparameter,
    Configuration,
    ConfigurationSpace,
    UniformFloatHyperparameter,
    UniformIntegerHyperparameter,
)
from dask.distributed import Client, LocalCluster
from smac import Callback, MultiFidelityFacade, Scenario
from smac.main.config_selector import ConfigSelector
from smac.main.exceptions import ConfigurationSpaceExhaustedException
from smac.main.smbo import SMBO
from smac.runhistory import StatusType, TrialInfo, TrialValue
from tqdm import tqdm

from HARM3Logic.errors import BadOption, HARM3Error
from HARM3Logic.progress import progress
from HARM3Logic.writing import write_text
from Training.experiment import Experiment
from Training.history import KEPT, Trial, best_of, decoded, encoded, epochs_of, read_history
from Training.space import Choice, Int, Space, own
from Training.trial import CRASHED, Objective

SMAC_FILES = ("runhistory", "intensifier", "optimization")


@dataclass(frozen=True)
class Plan:
    """How long a search is and on what it runs.

    Args:
        epochs: of the shortest and the longest trial.
        inner: folds within the training part of an outer fold.
        workers: processes on this machine.
        scheduler: address of a Dask scheduler whose workers are used instead.
    """

    trials: int
    epochs: tuple[int, int]
    inner: int = 3
    seed: int = 0
    workers: int = 1
    scheduler: str | None = None


def optimise(
    cost: Objective, space: Space, experiment: Experiment, folder: Path, plan: Plan, client: Client | None = None
) -> tuple[Trial, ...]:
    """Try values until there are as many trials as planned; goes on where an earlier call was stopped.

    Args:
        experiment: its own values are tried too, where the space holds them.

    Raises:
        HARM3Error: a trial was refused before any had ended with a result.
    """
    done = read_history(folder, space)
    if len(done) >= plan.trials:
        return done

    def target(config: Configuration, seed: int = 0, budget: float = 1.0) -> tuple[float | None, dict[str, Any]]:
        try:
            return cost(decoded(space, dict(config)), epochs_of(budget))
        except HARM3Error as error:
            return None, {"reason": str(error), "refused": [error.message, error.advice]}

    low, high = plan.epochs
    configurations = _configuration_space(space, plan.seed)
    scenario = Scenario(
        configurations, name="smac", output_directory=folder, deterministic=True, crash_cost=CRASHED, n_trials=plan.trials,
        min_budget=low, max_budget=high, seed=plan.seed, n_workers=1,
    )  # fmt: skip
    first = MultiFidelityFacade.get_initial_design(scenario, additional_configs=_own_values(experiment, space, configurations))
    # the forest looks at the most epochs that so many trials have; SMAC's own choice is 1, as many as BOHB's are wanted
    selector = ConfigSelector(scenario, min_trials=len(space) + 1)
    with progress(total=plan.trials, desc=folder.name, initial=len(done), unit="trial") as bar:
        keeper = _Keeper(folder, space, bar)
        smac = MultiFidelityFacade(
            scenario, target, initial_design=first, config_selector=selector, callbacks=[keeper], overwrite=True, dask_client=client,
            logging_level=False,
        )  # fmt: skip
        # SMAC draws from it where the forest has too few trials, and would draw the initial design again
        configurations.seed(plan.seed + 1 + len(done))
        if done:
            _restore(smac, folder)
        try:
            smac.optimize()
        except ConfigurationSpaceExhaustedException:
            tqdm.write(f"{folder.name}: all of the space has been tried", sys.stderr)
    return read_history(folder, space)


class _Keeper(Callback):
    """After each trial, keeps what a stopped search needs to go on, whole or not at all, and shows the best so far."""

    def __init__(self, folder: Path, space: Space, bar: Any) -> None:
        super().__init__()
        self.folder, self.space, self.bar = folder, space, bar

    def on_tell_end(self, smbo: SMBO, info: TrialInfo, value: TrialValue) -> None:
        about = value.additional_info or {}
        if value.status == StatusType.CRASHED:
            if not any(found.status == StatusType.SUCCESS for found in smbo.runhistory.values()):
                if "refused" in about:
                    raise HARM3Error(*about["refused"])
                if "traceback" in about:  # a bug, not bad luck with the values
                    raise RuntimeError(f"the first trial failed:\n{about['traceback']}")
            tqdm.write(f"{self.folder.name}: a trial crashed: {about.get('reason') or about.get('error')}", sys.stderr)
        smbo.save()
        live = Path(smbo._scenario.output_directory)
        kept = {name: (live / f"{name}.json").read_text(encoding="utf-8") for name in SMAC_FILES}
        write_text(self.folder / KEPT, json.dumps(kept))
        trials = read_history(self.folder, self.space)
        self.bar.update(len(trials) - self.bar.n)
        if any(trial.auc is not None for trial in trials):
            self.bar.set_postfix({"inner auc": best_of(trials, self.folder.name).auc})


def _restore(smac: MultiFidelityFacade, folder: Path) -> None:
    """Put back what was kept. SMAC's own way asks at the terminal when so much as the number of trials differs.

    Trials that had not ended are forgotten, and asked for again: their configurations keep their numbers.
    """
    kept = json.loads((folder / KEPT).read_text(encoding="utf-8"))
    history = json.loads(kept["runhistory"])
    history["data"] = [row for row in history["data"] if row["status"] != StatusType.RUNNING]
    history["stats"] = {"submitted": len(history["data"]), "finished": len(history["data"]), "running": 0}
    optimization = {**json.loads(kept["optimization"]), "finished": False}
    live = Path(smac.scenario.output_directory)
    for name, text in {**kept, "runhistory": json.dumps(history), "optimization": json.dumps(optimization)}.items():
        write_text(live / f"{name}.json", text)
    smac.optimizer.reset()
    smac.optimizer.load()


def _configuration_space(space: Space, seed: int) -> ConfigurationSpace:
    found = ConfigurationSpace(seed=seed)
    for path, kind in space.items():
        if isinstance(kind, Choice):
            found.add(CategoricalHyperparameter(path, [repr(value) for value in kind.values]))
        elif isinstance(kind, Int):
            found.add(UniformIntegerHyperparameter(path, kind.low, kind.high, log=kind.log))
        else:
            found.add(UniformFloatHyperparameter(path, kind.low, kind.high, log=kind.log))
    return found


def _own_values(experiment: Experiment, space: Space, configurations: ConfigurationSpace) -> list[Configuration]:
    """The experiment as it is written, where the space holds it."""
    values = {path: own(experiment, path) for path in space}
    for path, kind in space.items():
        if not (values[path] in kind.values if isinstance(kind, Choice) else kind.low <= values[path] <= kind.high):
            return []
    return [Configuration(configurations, values=encoded(space, values), origin="the experiment's own")]


@contextmanager
def workers(plan: Plan, out: Path) -> Iterator[Client | None]:
    """Dask's workers; none where one process is enough."""
    if plan.scheduler is not None:
        try:
            client = Client(plan.scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise BadOption(f"no Dask scheduler answers at {plan.scheduler!r} ({error}).", "Start one or correct --scheduler.") from error
        with client:
            yield client
    elif plan.workers > 1:
        spare = out / ".dask"
        with LocalCluster(
            n_workers=plan.workers, threads_per_worker=1, processes=True, local_directory=spare, dashboard_address=None
        ) as cluster, Client(cluster) as client:  # fmt: skip
            yield client
        shutil.rmtree(spare, ignore_errors=True)
    else:
        yield None
