"""The page of Training.search: how each fold's search went, what it chose, and which hyperparameters mattered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from HARM3Logic import __version__
from HARM3Logic.writing import write_text
from Training.experiment import Experiment
from Training.history import EPOCHS, FEWEST, Trial, best_of, dependence, importance, incumbents, read_history
from Training.metrics import Estimate
from Training.page import _environment
from Training.plots import COLOURS, _picture
from Training.space import Choice, Int, Space, own


@dataclass(frozen=True)
class Searched:
    """A fold's search.

    Args:
        importance: empty where too few trials ended.
    """

    name: str
    trials: tuple[Trial, ...]
    importance: Mapping[str, Estimate]

    @property
    def best(self) -> Trial:
        return best_of(self.trials, self.name)

    @property
    def crashed(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.auc is None)


def write(out: Path, name: str, experiment: Experiment, space: Space, folders: Sequence[Path]) -> None:
    """`search.html` of the folds that were searched."""
    found = []
    for folder in folders:
        trials = read_history(folder, space)
        if any(trial.auc is not None for trial in trials):
            found.append(Searched(folder.name, trials, importance(trials, space)))
    write_text(out / "search.html", render(name, experiment, space, found, len(folders)))


def render(name: str, experiment: Experiment, space: Space, found: Sequence[Searched], folds: int) -> str:
    """The page.

    Args:
        folds: that the run has, searched or not.
    """
    rich = [fold for fold in found if fold.importance]
    return (
        _environment()
        .get_template("search.html.j2")
        .render(
            name=name,
            created=datetime.now(timezone.utc).isoformat(timespec="minutes"),
            version=__version__,
            folds=folds,
            found=found,
            rich=rich,
            space={path: bounds(kind) for path, kind in space.items()},
            rows=[*space, EPOCHS],
            fewest=FEWEST,
            own={path: own(experiment, path) for path in space},
            recipe={fold.name: recipe(fold, experiment, space) for fold in found},
            path=path_picture(found),
            effects={path: effect_picture(rich, space, path) for path in space} if rich else {},
            told=told,
        )
    )


def bounds(kind: Any) -> str:
    """A part of the space in words."""
    if isinstance(kind, Choice):
        return "one of " + ", ".join(str(value) for value in kind.values)
    return f"{kind.low:g} to {kind.high:g}{', whole' if isinstance(kind, Int) else ''}{', log scale' if kind.log else ''}"


def told(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def recipe(fold: Searched, experiment: Experiment, space: Space) -> Trial | None:
    """The trial of the experiment's own values with the most epochs; None where there was none."""
    mine = {path: own(experiment, path) for path in space}
    tried = [trial for trial in fold.trials if dict(trial.values) == mine and trial.auc is not None]
    return max(tried, key=lambda trial: trial.epochs, default=None)


def path_picture(found: Sequence[Searched]) -> str:
    """Every trial's inner AUC, larger with more epochs, and the best so far of each fold."""
    most = max((trial.epochs for fold in found for trial in fold.trials), default=1)

    def draw(axes: Axes) -> None:
        for k, fold in enumerate(found):
            colour, ended = COLOURS[k % len(COLOURS)], [trial for trial in fold.trials if trial.auc is not None]
            sizes = [6 + 30 * trial.epochs / most for trial in ended]
            axes.scatter([t.number for t in ended], [t.auc for t in ended], sizes, color=colour, alpha=0.35, lw=0)
            best = incumbents(fold.trials)
            at = [trial.number for trial in best] + [len(fold.trials)]
            axes.step(at, [t.auc for t in best] + [best[-1].auc], where="post", color=colour, lw=1.6, label=fold.name)
        axes.set(xlabel="trial", ylabel="mean AUC of the inner folds")
        axes.legend(loc="lower right", fontsize=8.5)

    return _picture(draw, (7.6, 4.0))


def effect_picture(rich: Sequence[Searched], space: Space, path: str) -> str:
    """What each fold's forest expects along one hyperparameter."""
    kind = space[path]

    def draw(axes: Axes) -> None:
        for k, fold in enumerate(rich):
            at, means = dependence(fold.trials, space, path)
            places: Any = [str(value) for value in at] if isinstance(kind, Choice) else at
            axes.plot(
                places, means, color=COLOURS[k % len(COLOURS)], lw=1.4, marker="o" if isinstance(kind, Choice) else "", label=fold.name
            )
        if not isinstance(kind, Choice) and kind.log:
            axes.set_xscale("log")
        axes.set(xlabel=path, ylabel="expected inner AUC")

    drawing: Callable[[Axes], None] = draw
    return _picture(drawing, (3.4, 2.6))
