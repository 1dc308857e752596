"""Synthetic patients for CT and clinical values, with a known truth: `harm3 phantom --kind gist`.

What decides the label (drawn into the image and the clinical row, nothing else does):

    texture        -1 (even) .. 1 (patchy): spread of the tumour's density, 6 to 50 HU     in the CT alone
    kit            KIT exon 11 mutated or not: turns the sign of what texture means         in the row alone
    size           -1 .. 1: diameter 48 to 118 mm                                           in both
    mitotic_index  mitoses, by their logarithm                                              in the row alone
    pdgfra         D842V, only where KIT is wild type: no response                          in the row alone

    logit = offset + 3.0 m texture + 0.9 size + 0.8 mitoses - 2.0 D842V        m = 1 with exon 11, else -1

All other variables are drawn without regard to the label. Values go missing by chance alone. Four centres differ in noise, kernel,
contrast phase, slices and how much is missing, not in their patients. Effect sizes are frozen: `PHANTOM_VERSION`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from HARM3Logic import volume
from HARM3Logic.case import Case
from HARM3Logic.cohort import CLINICAL, write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.phantom import NOTICE, auc, each, sigmoid
from HARM3Logic.phantom_ct import ACQUISITION, CENTRES, crop, render
from HARM3Logic.writing import write_text

PHANTOM_VERSION = 1
RESPONDERS = 0.545  # share in the prediction cohort of the GIST abstract
PLANTED = ("tumour_size", "mitotic_index", "kit", "pdgfra")
MISSING = {"kit": 0.15, "pdgfra": 0.15, "mitotic_index": 0.1, "tumour_size": 0.02, "braf": 0.4, "dog1": 0.35}
MISSING_ELSE = 0.05
IMAGE = ("texture", "size")  # factors the CT shows
CROP_MM = 80.0  # half the edge of a pretraining crop


@dataclass(frozen=True)
class Factors:
    """What decides one phantom's label."""

    texture: float
    size: float
    kit: str
    pdgfra: str
    mitotic_index: int

    @property
    def diameter_mm(self) -> float:
        return 75.0 * math.exp(0.45 * self.size)

    @property
    def spread_hu(self) -> float:
        return 28.0 + 22.0 * self.texture

    @property
    def evidence(self) -> float:
        """The logit without its offset."""
        return float(evidence(**{name: np.array([value]) for name, value in asdict(self).items()})[0])


def evidence(**factors: np.ndarray) -> Float[np.ndarray, " N"]:
    """The logit without its offset, of arrays of each factor of `Factors`."""
    sign = np.where(factors["kit"] == "exon 11", 1.0, -1.0)
    mitoses = (np.log1p(factors["mitotic_index"]) - 1.3) / 0.6
    resistant = factors["pdgfra"] == "D842V"
    return np.asarray(3.0 * sign * factors["texture"] + 0.9 * factors["size"] + 0.8 * mitoses - 2.0 * resistant)


def draw_factors(rng: np.random.Generator) -> Factors:
    kit = str(rng.choice(["exon 11", "exon 9", "wild type", "other mutation"], p=[0.58, 0.1, 0.25, 0.07]))
    pdgfra = str(rng.choice(["wild type", "D842V", "other mutation"], p=[0.55, 0.3, 0.15]))
    return Factors(
        texture=float(rng.uniform(-1, 1)),
        size=float(rng.uniform(-1, 1)),
        kit=kit,
        pdgfra=pdgfra if kit == "wild type" else "wild type",
        mitotic_index=int(rng.lognormal(1.3, 0.8)),
    )


def draw_row(factors: Factors, missing: float, rng: np.random.Generator) -> dict[str, str]:
    """The clinical row of `schemas/gist.json`, empty where a value is missing.

    Args:
        missing: factor on the share of missing values.
    """

    def one(values: dict[str, float]) -> str:
        return str(rng.choice(list(values), p=list(values.values())))

    row = {
        "age": str(int(np.clip(rng.normal(61, 12), 20, 90))),
        "sex": one({"female": 0.47, "male": 0.53}),
        "tumour_size": str(round(factors.diameter_mm)),
        "mitotic_index": str(factors.mitotic_index),
        "cd117": one({"negative": 0.05, "positive": 0.95}),
        "kit": factors.kit,
        "pdgfra": factors.pdgfra,
        "braf": one({"wild type": 0.97, "mutated": 0.03}),
        "disease_status": one({"localised": 0.6, "locally advanced": 0.25, "metastatic": 0.15}),
        "comorbidities": one({"none": 0.45, "one": 0.3, "two or more": 0.25}),
        "location": one({"stomach": 0.6, "small bowel": 0.25, "colorectum": 0.1, "other": 0.05}),
        "dog1": one({"negative": 0.05, "positive": 0.95}),
    }
    gone = {name: rng.random() < missing * MISSING.get(name, MISSING_ELSE) for name in row}
    return {name: "" if gone[name] else value for name, value in row.items()}


class Prior:
    """All phantoms there could be, to say how likely a response is when only some factors are known."""

    def __init__(self, responders: float, draws: int = 4000) -> None:
        rng = np.random.default_rng(PHANTOM_VERSION)
        drawn = [asdict(draw_factors(rng)) for _ in range(draws)]
        self.drawn = {name: np.array([one[name] for one in drawn]) for name in drawn[0]}
        logits = evidence(**self.drawn)
        low, high = -30.0, 30.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if np.mean(sigmoid(logits + middle)) < responders else (low, middle)
        self.offset = round(low, 3)

    def probability(self, factors: Factors, known: Collection[str]) -> float:
        """Mean probability of response over the phantoms that share the known factors."""
        own, alike = asdict(factors), np.ones(len(self.drawn["kit"]), dtype=bool)
        for gene in ("kit", "pdgfra"):  # these two hang together; the others are independent
            if gene in known:
                alike &= self.drawn[gene] == own[gene]
        drawn = {name: np.full(alike.sum(), own[name]) if name in known else column[alike] for name, column in self.drawn.items()}
        return float(sigmoid(evidence(**drawn) + self.offset).mean())


def write_phantoms(
    out: str | os.PathLike[str],
    cases: int,
    seed: int,
    size: str = "small",
    responders: float = RESPONDERS,
    crops: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Write a cohort: `cohort.csv`, `truth.csv`, `README.txt`, one folder per case; and `crops/` of other patients, without labels.

    `truth.csv` holds the probability by which the label was drawn, and the best anyone can know: from all that the files show
    (`known_probability`), from the clinical row alone, from the CT alone.

    Args:
        crops: pretraining crops round the tumour, of patients who are not in the cohort.
        workers: processes; None takes one per core, 0 works in this process.

    Returns:
        `cases`, `responders`, and the AUC of the best knowledge on the drawn labels: `best_auc`, `best_auc_clinical`,
        `best_auc_image` and `best_auc <centre>`.

    Raises:
        BadOption: a value is out of range or the folder cannot be written.
    """
    if cases < 0 or crops < 0 or cases + crops < 1 or size not in ACQUISITION or not 0 < responders < 1:
        raise BadOption(
            f"phantom: {cases} cases and {crops} crops of size {size!r} with a share of {responders} responders; wanted are at least "
            f"1 case or crop, a size of {' or '.join(ACQUISITION)} and a share between 0 and 1.",
            "Correct the option.",
        )
    out = Path(out)
    try:
        (out / "crops" if crops else out).mkdir(parents=True, exist_ok=True)
        write_text(out / "README.txt", f"{NOTICE} Made by harm3 phantom --kind gist, version {PHANTOM_VERSION}, seed {seed}.\n")
    except OSError as error:
        raise BadOption(f"phantom: the folder {str(out)!r} cannot be written ({error.strerror}).", "Choose another.") from error
    count = os.cpu_count() or 1 if workers is None else workers
    done = 0
    truths: list[dict[str, Any]] = []
    cropped: list[dict[str, Any]] = []
    for write, number, kept in ((partial(_write_case, prior=Prior(responders)), cases, truths), (_write_crop, crops, cropped)):
        for row in each(partial(write, out=out, seed=seed, size=size), number, count if number else 0):
            kept.append(row)
            done += 1
            if on_progress:
                on_progress(done)
    if crops:
        write_cohort(out / "crops/crops.csv", cropped)
    if not cases:
        return {"cases": 0.0, "crops": float(crops)}
    write_cohort(out / "cohort.csv", [truth.pop("row") for truth in truths])
    write_cohort(out / "truth.csv", truths)
    return {"cases": float(cases), "crops": float(crops), **_best(truths)}


def _best(truths: list[dict[str, Any]]) -> dict[str, float]:
    label = np.array([truth["label"] for truth in truths])
    centre = np.array([truth["centre"] for truth in truths])
    found = {"responders": float(label.mean())}
    for key, column in (("best_auc", "known"), ("best_auc_clinical", "clinical"), ("best_auc_image", "image")):
        probability = np.array([truth[f"{column}_probability"] for truth in truths])
        found[key] = auc(probability, label)
        if column == "known":
            found |= {f"best_auc {name}": auc(probability[centre == name], label[centre == name]) for name in sorted(set(centre))}
    return found


def _write_case(index: int, *, prior: Prior, out: Path, seed: int, size: str) -> dict[str, Any]:
    rng = np.random.default_rng([PHANTOM_VERSION, seed, index])
    factors = draw_factors(rng)
    probability = float(sigmoid(np.array(factors.evidence + prior.offset)))
    label = int(rng.random() < probability)
    number = index % len(CENTRES)
    row = draw_row(factors, CENTRES[number].missing, rng)
    case_id, centre = f"GI-{seed}-{index:04d}", f"centre-{number + 1}"
    folder = out / case_id
    folder.mkdir(exist_ok=True)
    images = render(factors.diameter_mm, factors.spread_hu, CENTRES[number], rng, size)
    for name, image in images.items():
        volume.write(image, folder / f"{name}.nii.gz")
    files = {name: folder / f"{name}.nii.gz" for name in images}
    Case.from_files(case_id, files, patient_id=case_id, centre=centre, label=label, clinical=row).write(folder / "case.json")
    notice = {"notice": NOTICE, "version": PHANTOM_VERSION, "seed": seed, "index": index}
    write_text(folder / "phantom.json", json.dumps(notice) + "\n")
    told = {"size" if name == "tumour_size" else name for name in PLANTED if row[name]}
    paths = {name: f"{case_id}/{name}.nii.gz" for name in images}
    columns = {"case_id": case_id, "patient_id": case_id, "centre": centre, **paths, **{CLINICAL + k: v for k, v in row.items()}}
    return {
        "case_id": case_id,
        "centre": centre,
        "true_probability": probability,
        "known_probability": prior.probability(factors, {*told, *IMAGE}),
        "clinical_probability": prior.probability(factors, told),
        "image_probability": prior.probability(factors, IMAGE),
        "label": label,
        **asdict(factors),
        "diameter_mm": factors.diameter_mm,
        "row": {**columns, "label": label},
    }


def _write_crop(index: int, *, out: Path, seed: int, size: str) -> dict[str, Any]:
    rng = np.random.default_rng([PHANTOM_VERSION, seed, 1, index])  # a longer seed than any case's: another stream
    number = index % len(CENTRES)
    factors = draw_factors(rng)
    images = render(factors.diameter_mm, factors.spread_hu, CENTRES[number], rng, size)
    name = f"CR-{seed}-{index:04d}"
    volume.write(crop(images["ct"], images["tumour_ct"], CROP_MM), out / "crops" / f"{name}.nii.gz")
    return {"file": f"{name}.nii.gz", "patient_id": name, "centre": f"centre-{number + 1}"}
