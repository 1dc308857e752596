"""Synthetic patients with a known truth: four MRI volumes, masks and a biopsy slide whose content decides the label.

What decides it (all of it is drawn into the images, nothing else is):

    shrinkage     -1 (none) .. 1 (most): diameter after therapy / before, from 1 down to 0.35        needs pre and post
    enhancing     the residual mass takes up contrast (bright on T1)     \\ viable tumour only if     needs T1 and T2
    bright        the residual mass is bright on T2                      /  both hold; else scar
    lymphocytes   -1 (sparse) .. 1 (dense) in the biopsy: dense ones make shrinkage matter less       needs slide and MRI

    logit = offset + (3.2 - 3.0 lymphocytes) shrinkage + 2.8 (scar: +1, viable: -1) + 2.0 lymphocytes

The label is drawn from the probability of this logit, so the best possible AUC is known (about 0.95). The effect sizes
are frozen: changing anything that moves an image or a label raises `PHANTOM_VERSION`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from HARM3Logic import phantom_mri, phantom_slide, volume
from HARM3Logic.case import MRI, Case
from HARM3Logic.cohort import write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.writing import write_text

PHANTOM_VERSION = 1
RESPONDERS = 0.3  # share of pCR in HNSCC-pCR: 122 of 407
SIZES = ("small", "full")
NOTICE = "Synthetic phantom, not a patient."


@dataclass(frozen=True)
class Factors:
    """What decides one phantom's label."""

    shrinkage: float
    enhancing: bool
    bright: bool
    lymphocytes: float

    @property
    def viable(self) -> bool:
        return self.enhancing and self.bright

    @property
    def diameter_ratio(self) -> float:
        """Tumour diameter after therapy over before."""
        return 0.675 - 0.325 * self.shrinkage

    @property
    def evidence(self) -> float:
        """The logit without its offset."""
        slope = 3.2 - 3.0 * self.lymphocytes
        return slope * self.shrinkage + (-2.8 if self.viable else 2.8) + 2.0 * self.lymphocytes


def draw_factors(rng: np.random.Generator) -> Factors:
    return Factors(
        shrinkage=float(rng.uniform(-1, 1)),
        enhancing=bool(rng.random() < 0.68),
        bright=bool(rng.random() < 0.68),
        lymphocytes=float(rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.0)),
    )


def offset_for(responders: float) -> float:
    """The logit's offset at which this share of all phantoms responds."""
    rng = np.random.default_rng(PHANTOM_VERSION)
    evidence = np.array([draw_factors(rng).evidence for _ in range(20_000)])
    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(sigmoid(evidence + middle)) < responders else (low, middle)
    return round(low, 3)


def sigmoid(logit: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(1 / (1 + np.exp(-logit)))


def auc(probability: Float[np.ndarray, " N"], label: Int[np.ndarray, " N"]) -> float:
    """Area under the ROC curve: the chance that a responder scores above a non-responder, ties counting half."""
    difference = probability[label == 1][:, None] - probability[label == 0][None, :]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0))) if difference.size else float("nan")


def write_phantoms(
    out: str | os.PathLike[str],
    cases: int,
    seed: int,
    size: str = "small",
    responders: float = RESPONDERS,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Write a cohort of phantoms: `cohort.csv`, `truth.csv`, `README.txt` and one folder per case.

    Args:
        size: `small` (2 mm, for tests and CPUs) or `full` (0.6 mm, clinical matrix).
        workers: processes; None takes one per core, 0 works in this process.
        on_progress: told the number of finished cases.

    Returns:
        `cases`, `responders` (share drawn) and `best_auc` (of the true probability on the drawn labels).

    Raises:
        BadOption: a value is out of range or the folder cannot be written.
    """
    if cases < 1 or size not in SIZES or not 0 < responders < 1:
        raise BadOption(
            f"phantom: {cases} cases of size {size!r} with a share of {responders} responders; wanted are at least 1 case, "
            f"a size of {' or '.join(SIZES)} and a share between 0 and 1.",
            "Correct the option.",
        )
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "README.txt", f"{NOTICE} Made by harm3 phantom, version {PHANTOM_VERSION}, seed {seed}, size {size}.\n")
    except OSError as error:
        raise BadOption(f"phantom: the folder {str(out)!r} cannot be written ({error.strerror}).", "Choose another.") from error
    work = partial(_write_case, out=out, seed=seed, size=size, offset=offset_for(responders))
    truths = []
    for done, truth in enumerate(each(work, cases, os.cpu_count() or 1 if workers is None else workers), start=1):
        truths.append(truth)
        if on_progress:
            on_progress(done)
    write_cohort(out / "truth.csv", truths)
    write_cohort(out / "cohort.csv", [_row(t) for t in truths])
    label = np.array([t["label"] for t in truths])
    best = auc(np.array([t["true_probability"] for t in truths]), label)
    return {"cases": cases, "responders": float(label.mean()), "best_auc": best}


def each(work: Callable[[int], dict[str, Any]], cases: int, workers: int) -> Iterator[dict[str, Any]]:
    """The work for each number below `cases`, in order, by so many processes; 0 does it in this one."""
    if workers == 0 or cases == 1:
        yield from map(work, range(cases))
        return
    # spawn: forking a process that holds ITK's or torch's threads can hang
    with ProcessPoolExecutor(min(workers, cases), mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, range(cases))


def _write_case(index: int, *, out: Path, seed: int, size: str, offset: float) -> dict[str, Any]:
    rng = np.random.default_rng([PHANTOM_VERSION, seed, index])
    factors = draw_factors(rng)
    probability = float(sigmoid(np.array(factors.evidence + offset)))
    label = int(rng.random() < probability)
    case_id = f"PH-{seed}-{index:04d}"
    folder = out / case_id
    folder.mkdir(exist_ok=True)
    scene = phantom_mri.draw_scene(rng, factors.diameter_ratio, factors.enhancing, factors.bright)
    images = phantom_mri.render(scene, rng, size)
    for name, image in images.items():
        volume.write(image, folder / f"{name}.nii.gz")
    phantom_slide.write_slide(folder / "slide.tif", rng, factors.lymphocytes, size)
    files = {name: folder / f"{name}.nii.gz" for name in images} | {"slide": folder / "slide.tif"}
    Case.from_files(case_id, files, patient_id=case_id, centre=f"phantom-{index % 3}", label=label).write(folder / "case.json")
    write_text(folder / "phantom.json", json.dumps({"notice": NOTICE, "version": PHANTOM_VERSION, "seed": seed, "index": index}) + "\n")
    radius = scene.tumour.radius_mm
    return {"case_id": case_id, "true_probability": probability, "label": label, **asdict(factors), "radius_pre_mm": radius}


def _row(truth: dict[str, Any]) -> dict[str, Any]:
    case_id = truth["case_id"]
    names = (*MRI, "tumour_pre", "tumour_post")
    return {
        "case_id": case_id,
        "patient_id": case_id,
        "centre": f"phantom-{int(case_id.rsplit('-', 1)[1]) % 3}",
        **{name: f"{case_id}/{name}.nii.gz" for name in names},
        "slide": f"{case_id}/slide.tif",
        "label": truth["label"],
    }
