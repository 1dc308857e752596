"""Published tables of real patients as cases and features: what is the label, what is used and what is left out.

`write_as_cohort` makes of such a table the cohort and the schema of clinical values that networks are trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from HARM3Logic.case import Case
from HARM3Logic.clinical import Schema, Variable
from HARM3Logic.cohort import CLINICAL, read_cohort, write_cohort
from HARM3Logic.errors import BadOption
from HARM3Logic.writing import write_text

UNKNOWN = "unknown"  # a gap among words


@dataclass(frozen=True)
class Dataset:
    """Which columns of a published table are what.

    Args:
        file: its name.
        label, positive: column, and the value that counts as 1; rows without a label are left out.
        case, centre: columns; no `centre` where there is one or none is told.
        features: name of a set to its columns; the last one is the default.
        words: numeric columns that are categories; unknown is one of them.
        beside: a file in the same folder that is joined by `case`.
        bags: the file has no header; column 0 is the label, 1 the bag, and a bag's features are the mean and the maximum of its rows.
        left_out: what is not used and why.
    """

    file: str
    label: str
    positive: object
    case: str
    features: Mapping[str, tuple[str, ...]]
    centre: str = ""
    words: tuple[str, ...] = ()
    beside: str = ""
    bags: bool = False
    left_out: str = ""


ISPY_CLINICAL = ("age", "White", "ER+", "PR+", "HR+", "Bilateral")
TRANSNEO_CLINICAL = ("Age", "T.stage", "LN.status.at.diagnosis", "Histology", "ER.Allred", "ER.status", "HER2.status", "Grade.pre.NAT")
TRANSNEO_DIGITAL = (
    "fraction_cancer", "fraction_lymph", "fraction_stromal",
    "median_cancer_KDE_knn_50", "median_lymph_KDE_knn_50", "median_stromal_KDE_knn_50",
)  # fmt: skip
DANAHER = (
    "B.cells", "CD45", "CD8.T.cells", "Cytotoxic.cells", "DC", "Exhausted.CD8", "Macrophages", "Mast.cells", "Neutrophils",
    "NK.CD56dim.cells", "NK.cells", "T.cells", "Th1.cells", "Treg",
)  # fmt: skip
TRANSNEO_RNA = (
    "PAM50", "STAT1.gsva", "GGI.gsva", "ESC.gsva", "CytScore.log2", "Taxane.MitosisScore", "Taxane.CeramideScore", "Taxane.FinalScore",
    *(f"Danaher.{name}" for name in DANAHER),
    *(f"TIDE.{name}" for name in ("Dysfunction", "Exclusion", "MDSC", "CAF", "TAM.M2", "IFNG", "CD274", "CD8")),
)  # fmt: skip
SARCOMA_CT = (
    "CT_vol_ml", "CT_mean", "CT_std", "CT_skew", "CT_kurt", "CT_entropy", *(f"CT_p{k}" for k in (5, 10, 25, 50, 75, 90, 95)),
    "feret", "elong", "flat", "round",
)  # fmt: skip


def _head_neck(label: str) -> Dataset:
    return Dataset(
        "hn_petct_300_clinical_outcomes.csv", label, 1, "patient",
        {"clinical": ("site", "age", "t_stage", "n_stage", "tnm_stage", "hpv")}, centre="cohort", words=("hpv",),
        left_out="The other outcomes and all times to an event. Follow-up is not equal: an event after its end counts as none.",
    )  # fmt: skip


DATASETS: dict[str, Dataset] = {
    "ispy1": Dataset(
        "ispy1_168_longitudinal_mri_pcr.csv", "PCR", "Yes", "SUBJECTID",
        {
            "clinical": ISPY_CLINICAL,
            "pre": (*ISPY_CLINICAL, "MRI_LD_Baseline"),
            "early": (*ISPY_CLINICAL, "MRI_LD_Baseline", "MRI_LD_1_3dAC"),
            "pre_post": (*ISPY_CLINICAL, "MRI_LD_Baseline", "MRI_LD_PreSurg"),
        },
        left_out="RCB, recurrence and survival: outcomes. The side of the breast. The table holds the 168 of 222 patients without gaps.",
    ),
    "transneo": Dataset(
        "transneo_168_clinical_digpath_rna_pcr.csv", "pCR.RD", "pCR", "Donor.ID",
        {
            "clinical": TRANSNEO_CLINICAL,
            "digital": TRANSNEO_DIGITAL,
            "rna": TRANSNEO_RNA,
            "clinical_rna": (*TRANSNEO_CLINICAL, *TRANSNEO_RNA),
            "all": (*TRANSNEO_CLINICAL, *TRANSNEO_DIGITAL, *TRANSNEO_RNA),
        },
        left_out="Six patients without an outcome. All that surgery told (size, nodes, cellularity, LVI, RCB) and the therapy as given "
        "(regimen, cycles). iC10, which is partly of DNA; the number of cells, which is the size of the section.",
    ),
    "hn_locoregional": _head_neck("locoregional"),
    "hn_distant": _head_neck("distant"),
    "hn_death": _head_neck("death"),
    "sarcoma": Dataset(
        "sts_51_simple_radiomics.csv", "lung_metastasis", 1, "patient", {"volume": ("CT_vol_ml",), "ct": SARCOMA_CT},
        beside="sts_51_lung_metastasis.csv", left_out="The MRI features, whose grey values have no unit.",
    ),
    "ucsb": Dataset("ucsb_breast_cancer.csv.gz", "0", 1, "1", {"mean_max": ()}, bags=True),
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Features with one row per case, and the cases.

    Args:
        published: it is one of `DATASETS`, not a cohort.
    """

    name: str
    frame: pd.DataFrame
    cases: tuple[Case, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)
    published: bool = False


def read_table(path: Path, dataset: str = "") -> Table:
    """The cases and features of a published table, or of a cohort's clinical columns.

    Args:
        dataset: NAME[:FEATURES] of `DATASETS`; empty where the file's name tells which.

    Raises:
        BadOption: the file or data set is not known, or a column is missing.
        BadCohort: a file of another name is no cohort table.
    """
    name, _, features = dataset.partition(":")
    fitting = [key for key, known in DATASETS.items() if known.file == path.name]
    if not path.is_file():
        raise BadOption(f"there is no table {str(path)!r}.", "Check the path.")
    if name and name not in DATASETS:
        raise BadOption(f"data set {name!r} is not known; there are {', '.join(DATASETS)}.", "Choose one.")
    if not name and len(fitting) > 1:
        raise BadOption(f"{path.name!r} serves {', '.join(fitting)}.", "Choose one with --dataset.")
    if not name and not fitting:
        return _cohort_table(path)
    name = name or fitting[0]
    known = DATASETS[name]
    features = features or list(known.features)[-1]
    if features not in known.features:
        raise BadOption(f"{name} has no features {features!r}; it has {', '.join(known.features)}.", "Choose one.")
    rows = _bags(path) if known.bags else pd.read_csv(path)
    if known.beside:
        rows = rows.merge(pd.read_csv(path.with_name(known.beside)), on=known.case, validate="one_to_one")
    columns = list(known.features[features]) or [c for c in rows if c not in (known.case, known.label)]
    absent = [c for c in (known.label, known.case, *columns) if c not in rows]
    if absent:
        raise BadOption(f"{path.name!r} has no column {absent[0]!r}, which {name} needs.", "Give the table as it was published.")
    rows = rows[rows[known.label].notna()].reset_index(drop=True)
    frame = _tidy(rows[columns], known.words)
    cases = tuple(
        Case(str(name), {}, patient_id=str(name), centre=str(centre), label=int(label == known.positive))
        for name, centre, label in zip(
            rows[known.case], rows[known.centre] if known.centre else [""] * len(rows), rows[known.label], strict=True
        )
    )
    notes = {"label": f"{known.label} = {known.positive}", "columns": columns, "left_out": known.left_out}
    return Table(f"{name}:{features}", frame, cases, notes, published=True)


def _cohort_table(path: Path) -> Table:
    cases = read_cohort(path)
    columns = sorted({name for case in cases for name in case.clinical})
    if not columns:
        raise BadOption(
            f"{path.name!r} is none of {', '.join(d.file for d in DATASETS.values())} and has no columns {CLINICAL}*.", "Add some."
        )
    frame = pd.DataFrame([[case.clinical.get(name) or None for name in columns] for case in cases], columns=columns)
    for name in columns:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if (numbers.isna() == frame[name].isna()).all():  # every value is a number
            frame[name] = numbers
    return Table(path.stem, _tidy(frame, ()), cases, {"columns": columns})


def write_as_cohort(table: Table, out: Path, ct: Path | None = None) -> tuple[Path, Path]:
    """Write `cohort.csv` and `schema.json`, which say the same as the table: numbers as they are, words as categories without an order,
    gaps as unknown. A column of one word tells nothing and is left out.

    Args:
        ct: folder with CASE_ID/ct.* and the tumour's mask CASE_ID/tumour.* of every case.

    Raises:
        BadOption: a case has no CT or no mask there, or several.
    """
    texts = {str(name): _texts(column) for name, column in table.frame.items()}
    variables = []
    for name, column in texts.items():
        words = sorted({text for text in column if text})
        if pd.api.types.is_numeric_dtype(table.frame[name]):
            variables.append(Variable(name, "numeric"))
        elif len(words) > 1:
            variables.append(Variable(name, "binary" if len(words) == 2 else "categorical", allowed=tuple(words)))
    schema = Schema(tuple(variables))
    rows = []
    for k, case in enumerate(table.cases):
        row: dict[str, Any] = {"case_id": case.case_id, "patient_id": case.patient_id, "centre": case.centre}
        if ct is not None:
            row |= {"ct": _only(ct / case.case_id, "ct.*"), "tumour_ct": _only(ct / case.case_id, "tumour.*")}
        row |= {CLINICAL + name: texts[name][k] for name in schema.names}
        rows.append({**row, "label": "" if case.label is None else case.label})
    write_cohort(out / "cohort.csv", rows)
    write_text(out / "schema.json", json.dumps(schema.to_dict(), indent=2) + "\n")
    return out / "cohort.csv", out / "schema.json"


def _texts(column: pd.Series) -> list[str]:
    """The values as a cohort's table has them, empty where unknown."""
    number = pd.api.types.is_numeric_dtype(column)
    return ["" if pd.isna(value) or value == UNKNOWN else f"{value:.12g}" if number else str(value) for value in column]


def _only(folder: Path, pattern: str) -> str:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BadOption(f"{str(folder)!r} holds {len(found)} files {pattern}; one is wanted.", "Correct the folder of the CTs.")
    return str(found[0].resolve())


def _tidy(frame: pd.DataFrame, words: Sequence[str]) -> pd.DataFrame:
    """Numbers as numbers with gaps, everything else as text, in which a gap is the word unknown."""
    tidy = {}
    for name in frame:
        column = frame[name]
        number = name not in words and pd.api.types.is_numeric_dtype(column)
        tidy[str(name)] = column.astype(float) if number else column.map(lambda v: UNKNOWN if pd.isna(v) else str(v)).astype(object)
    return pd.DataFrame(tidy)


def _bags(path: Path) -> pd.DataFrame:
    rows = pd.read_csv(path, header=None)
    bags = rows.groupby(1)
    values = bags[list(rows.columns[2:])]
    named = pd.DataFrame({"0": bags[0].max(), "1": [f"bag-{key}" for key in bags.groups]})
    return pd.concat([named, values.mean().add_prefix("mean_"), values.max().add_prefix("max_")], axis=1)
