"""The same experiments with several seeds: what of a difference is the method, and what the luck of folds, weights and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from HARM3Logic.errors import BadOption
from Training.calibration import log_odds
from Training.comparison import auc_delong, holm, paired, paired_means
from Training.runs import Run

TESTS = ("of_trainings", "of_means")


def over_seeds(rows: Mapping[str, Sequence[Run]], reference: str) -> list[dict[str, Any]]:
    """Each row's AUC with each seed, and that of the mean of its logits over the seeds, against the reference's on the same cases.

    Two answers to whether a row is worse: `of_trainings` compares the mean AUC of single trainings, what a user of one gets; `of_means` the
    AUC of the mean logits, in which the luck of single trainings cancels. Interval and p of both (paired DeLong, Holm over the rows) are
    for other cases and these trainings.

    Args:
        rows: label to its runs, a seed each, in the same order of seeds everywhere.

    Raises:
        BadOption: the runs do not judge the same cases, or rows have different numbers of seeds.
    """
    own = rows[reference]
    for label, runs in rows.items():
        if len(runs) != len(own) or any(run.case_id != own[0].case_id for run in runs):
            raise BadOption(
                f"the {len(runs)} runs of {label!r} do not judge the cases of the {len(own)} runs of {reference!r}.",
                "Let all of them finish.",
            )
    truth, patients, means = own[0].label, own[0].patients, {label: _mean_logit(runs) for label, runs in rows.items()}
    found: list[dict[str, Any]] = []
    for label, runs in rows.items():
        single = np.array([auc_delong(truth, run.probability).value for run in runs])
        row = {
            "run": label,
            "seeds": [int(run.experiment["seed"]) for run in runs],
            "aucs": single.tolist(),
            "auc_mean": float(single.mean()),
            "auc_spread": float(single.std(ddof=1)),
            "auc_of_mean": auc_delong(truth, means[label], patients),
        }
        if label != reference:
            scores = [[run.probability for run in each] for each in (own, runs)]
            tests = paired_means(truth, *scores, patients), paired(truth, means[reference], means[label], patients)
            row |= {
                name: {"difference": test.difference, "p": test.p, "detectable": test.detectable}
                for name, test in zip(TESTS, tests, strict=True)
            }
        found.append(row)
    for name in TESTS:
        tested = [row[name] for row in found if row["run"] != reference]
        for test, p in zip(tested, holm([test["p"] for test in tested]), strict=True):
            test["p_holm"] = float(p)
    return found


def _mean_logit(runs: Sequence[Run]) -> Float[np.ndarray, " N"]:
    mean: Float[np.ndarray, " N"] = np.mean([log_odds(run.probability) for run in runs], axis=0)
    return mean
