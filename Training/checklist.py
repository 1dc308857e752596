"""Reporting checklists, filled from what a run wrote down; what it did not is for the authors, and is called "not recorded".

Items are numbered as in TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) and CLAIM (Mongan, Moy and Kahn, Radiology: Artificial
Intelligence 2020;2:e200029; the numbers of its update of 2024 differ); the words are ours and short, the guidelines' own are binding.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from HARM3Logic import __version__
from HARM3Logic.case import MRI
from Training.runs import Run

NOT_RECORDED = "not recorded"
LIBRARIES = ("torch", "monai", "numpy", "scipy", "scikit-learn", "SimpleITK", "openslide-python")

# number, what the reader wants to know, name of the fact that answers it
TRIPOD_AI = (
    ("1", "Title names the kind of model, who it is for and what it predicts", ""),
    ("2", "Abstract by its own checklist", ""),
    ("3a", "Clinical context, why a model, which exist", ""),
    ("3b", "For whom and by whom it is to be used", "intended_use"),
    ("3c", "Known inequalities of health between groups", ""),
    ("4", "Aim: development, evaluation or both", "aim"),
    ("5a", "Where the data come from", "data_source"),
    ("5b", "Dates of the data", ""),
    ("6a", "Setting and centres", "centres"),
    ("6b", "Who was eligible", ""),
    ("6c", "Treatments given", ""),
    ("7", "Preparation of the data", "preprocessing"),
    ("8a", "What is predicted, when and how it was assessed", ""),
    ("8b", "Who assessed the outcome", ""),
    ("8c", "Whether they were blind to the predictors", ""),
    ("9a", "How predictors were chosen", "inputs"),
    ("9b", "What each predictor is and when it was measured", "inputs"),
    ("9c", "Who read the predictors where that takes judgement", ""),
    ("10", "Why this many cases", "sample_size"),
    ("11", "Missing data", "missing"),
    ("12a", "Which data made and which judged the model", "partitions"),
    ("12b", "How predictors entered the model", "preprocessing"),
    ("12c", "Kind of model, how it was built, tuned and validated", "training"),
    ("12d", "Differences between centres or clusters", "heterogeneity"),
    ("12e", "Measures of performance and how models are compared", "measures"),
    ("12f", "Updating of the model", "calibration"),
    ("12g", "How predictions were computed for the evaluation", "predictions"),
    ("13", "Class imbalance and what was done about it", "imbalance"),
    ("14", "Fairness between groups", "subgroups"),
    ("15", "What the model gives and how a class follows from it", "output"),
    ("16", "How the data of development and evaluation differ", "external"),
    ("17", "Ethics committee and consent", ""),
    ("18a", "Funding", ""),
    ("18b", "Conflicts of interest", ""),
    ("18c", "Protocol", ""),
    ("18d", "Registration", ""),
    ("18e", "Access to the data", ""),
    ("18f", "Access to the code", "code"),
    ("19", "Part that patients and public had", ""),
    ("20a", "Flow of participants", "flow"),
    ("20b", "Who the participants are, per centre", "centres"),
    ("20c", "Comparison with the data of development", "external"),
    ("21", "Cases and events of each analysis", "flow"),
    ("22", "The whole model, so that others can use it", "availability"),
    ("23a", "Performance with intervals, also of groups", "performance"),
    ("23b", "Differences of performance between centres", "heterogeneity"),
    ("24", "Results of updating", "calibration"),
    ("25", "Interpretation, fairness included", ""),
    ("26", "Limits of the study", "limits"),
    ("27a", "What happens with poor or absent inputs in use", "missing"),
    ("27b", "What the user must do and know", ""),
    ("27c", "What is to be studied next", ""),
)
CLAIM = (
    ("1", "Title says that it is about AI and of what kind", ""),
    ("2", "Structured summary", ""),
    ("3", "Background and clinical role", ""),
    ("4", "Aims and hypotheses", "aim"),
    ("5", "Prospective or retrospective", ""),
    ("6", "Goal of the study", "aim"),
    ("7", "Sources of the data", "data_source"),
    ("8", "Eligibility: how, where and when cases were found", ""),
    ("9", "Preprocessing", "preprocessing"),
    ("10", "Parts of the images that were selected", "selection"),
    ("11", "Definitions of the data elements", "inputs"),
    ("12", "De-identification", ""),
    ("13", "Missing data", "missing"),
    ("14", "Definition of the reference standard", ""),
    ("15", "Why this reference standard", ""),
    ("16", "Who annotated", ""),
    ("17", "Tools of annotation", ""),
    ("18", "Agreement between annotators", ""),
    ("19", "Intended sample size", "sample_size"),
    ("20", "How cases came to partitions", "partitions"),
    ("21", "On what level partitions are disjoint", "disjoint"),
    ("22", "The model: inputs, layers, outputs", "model"),
    ("23", "Software", "software"),
    ("24", "Start values of the weights", "start"),
    ("25", "Training: augmentation, hyperparameters, number of models", "training"),
    ("26", "How the final model was chosen", "selection_of_model"),
    ("27", "Ensembles", "ensemble"),
    ("28", "Metrics of performance", "measures"),
    ("29", "Measures of uncertainty and significance", "measures"),
    ("30", "Robustness and sensitivity", "missing"),
    ("31", "Explanation", "explanation"),
    ("32", "Evaluation on external data", "external"),
    ("33", "Flow of participants", "flow"),
    ("34", "Who the participants are, per partition", "centres"),
    ("35", "Performance on every partition", "performance"),
    ("36", "Accuracy with its precision", "performance"),
    ("37", "Analysis of failures", "failures"),
    ("38", "Limits", "limits"),
    ("39", "What it means for practice", "intended_use"),
    ("40", "Registration", ""),
    ("41", "Access to the protocol", ""),
    ("42", "Funding", ""),
)


MEASURES = (
    "AUC (DeLong, with Obuchowski's variance where a patient has several cases; bootstrap over patients), AUPRC, "
    "accuracy, sensitivity, specificity, PPV, NPV (Wilson), balanced accuracy, MCC, F1, "
    "calibration intercept and slope, ECE, ICI, Brier score, decision curve; paired DeLong with Holm's correction; corrected t interval "
    "over folds."
)


def fill(run: Run, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Both checklists for one run.

    Args:
        results: of the evaluation: `cohort`, `runs`, `subgroups`, `missing_inputs`, `external`.
    """
    facts = {name: text for name, text in {**_of_results(run, results), **_of_experiment(run), **_of_cards(run)}.items() if text}
    return [
        {"guideline": name, "item": number, "topic": topic, "answer": facts.get(key, NOT_RECORDED), "recorded": key in facts}
        for name, items in (("TRIPOD+AI", TRIPOD_AI), ("CLAIM", CLAIM))
        for number, topic, key in items
    ]


def _of_results(run: Run, results: Mapping[str, Any]) -> dict[str, str]:
    cohort, external = results["cohort"], results.get("external")
    own = next(row for row in results["runs"] if row["run"] == run.name)
    choose = own["at_inner_youden"] is not None
    known = {name: n for name, n in cohort["centres"].items() if name}
    names = sorted({row["column"] for row in results["subgroups"]})
    lost = ", ".join(row["input"] for row in results["missing_inputs"] if row["run"] == run.name)
    rate = f"{cohort['responders'] / cohort['cases']:.1%}"
    inner = "; threshold and calibration come from inner cases that neither trained nor judge" if choose else ""
    return {
        "aim": f"Development with {cohort['folds']}-fold cross-validation{' and evaluation on locked cases' if external else ''}.",
        "centres": "; ".join(f"{c}: {n['cases']} cases, {n['responders']} responders" for c, n in known.items()),
        "sample_size": f"{cohort['cases']} cases, {cohort['responders']} responders; why this many: {NOT_RECORDED}.",
        "missing": f"Performance without {lost} is in the table of missing inputs." if lost else "",
        "partitions": f"{cohort['folds']} folds; each case is judged once, by a model that did not see it{inner}.",
        "disjoint": "Patient: no patient stands in two folds, or chooses and is judged in one (checked)."
        if any(run.patient_id)
        else "Case; no patient names are recorded.",
        "heterogeneity": f"Table of subgroups: {', '.join(names)}." if names else "",
        "subgroups": f"Table of subgroups: {', '.join(names)}; whether they are the groups at risk is for the authors." if names else "",
        "measures": MEASURES,
        "predictions": "Each case by the model of its own fold; stored, and read back for every figure.",
        "imbalance": f"{rate} responders; {_weighing(run.experiment)}.",
        "output": f"A probability; a class at 0.5{' and at the threshold of the inner cases' if choose else ''}; "
        f"{own['uncertain']} cases are called uncertain.",
        "external": f"{external['cases']} locked cases, model {external['model_sha256'][:12]}." if external else "",
        "flow": f"{cohort['cases']} judged cases of {cohort['patients']} patients, {cohort['responders']} responders; those of each fold "
        f"are in the table of folds. Excluded cases: {NOT_RECORDED}.",
        "performance": f"AUC {own['auc']}; all figures are in the tables. No figures on training cases.",
        "failures": "The cases with the largest errors are listed by name.",
        "limits": "Synthetic cases; no conclusion on patients is possible." if cohort["synthetic"] else "",
    }


def _weighing(experiment: Mapping[str, Any]) -> str:
    told = []
    if experiment.get("balanced_sampler"):
        told.append("both labels drawn equally often in training")
    if (weight := experiment.get("positive_weight", 1.0)) != 1.0:
        told.append(f"loss of a responder times {weight or 'the non-responders per responder'}")
    return "; ".join(told) or f"resampling or weighting: {'none' if 'positive_weight' in experiment else NOT_RECORDED}"


def _of_experiment(run: Run) -> dict[str, str]:
    e = run.experiment
    if "epochs" not in e:
        return {"training": f"Experiment {e['name']}; its settings are in experiment.json."} if e.get("name") else {}
    patience, least = e.get("patience"), e.get("least_epochs")
    crop = (e.get("preprocessing") or {}).get("crop", NOT_RECORDED)
    return {
        "training": f"Experiment {e.get('name')}: {_epochs(run)} epochs, batches of {e.get('batch_size')}, "
        f"learning rate {e.get('learning_rate')}, weight decay {e.get('weight_decay')}, seed {e.get('seed')}; "
        f"augmentation: {_values(e.get('augmentation'))}. All of it is in experiment.json.",
        "preprocessing": _values(e.get("preprocessing")),
        "selection": f"Crop by {crop}; masks {'ignored' if e.get('ignore_masks') else 'used where given'}.",
        "selection_of_model": f"Smallest loss on the inner cases, patience {patience}{f', from epoch {least} on' if least else ''}."
        if patience
        else "The weights of the last epoch; no choice.",
        "ensemble": f"Running mean of the weights, decay {e['average']}; no ensemble of models." if e.get("average") else "None.",
    }


def _epochs(run: Run) -> str:
    """Of each fold as its card says, which a recipe lengthens for few cases; else the recipe's."""
    ran = {(card.get("training") or {}).get("epochs") or run.experiment["epochs"] for card in run.cards.values()}
    return " to ".join(str(n) for n in sorted({min(ran), max(ran)})) if ran else str(run.experiment["epochs"])


def _of_cards(run: Run) -> dict[str, str]:
    installed = ", ".join(_installed())
    common = {"software": f"Of this evaluation: harm3slicer {__version__}, Python {platform.python_version()}, {installed}."}
    if not run.cards:
        return common
    card = next(iter(run.cards.values()))
    training = card.get("training") or {}
    code = training.get("code") or {}
    encoder = card.get("tile_encoder") or {}
    tiles = f" Tile encoder {encoder['name']}." if encoder.get("name") else ""
    slopes = ", ".join(f"{c['calibration']['slope']:.2f}" for c in run.cards.values() if c.get("calibration"))
    return common | {
        "intended_use": card.get("intended_use", ""),
        "data_source": training.get("data", ""),
        "inputs": f"{', '.join(card.get('inputs', ()))}; when they were taken: {NOT_RECORDED}.",
        "model": f"{card.get('model')}; its config is in the checkpoint.{tiles}",
        "calibration": f"Logistic recalibration of each fold's model on its inner cases before judging; slopes {slopes}." if slopes else "",
        "code": f"Version {code.get('version')}, commit {code.get('commit')}." if code else "",
        "availability": f"{len(run.cards)} checkpoints with weights, preprocessing, calibration and threshold.",
        "explanation": _explained(card.get("inputs", ())),
    }  # fmt: skip


def _explained(inputs: Collection[str]) -> str:
    ways = ["Grad-CAM on each volume"] * any(name in inputs for name in (*MRI, "ct")) + ["attention over the slide"] * ("slide" in inputs)
    return f"{' and '.join(ways)}, with each prediction." if ways else ""


def _installed() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _values(values: Any) -> str:
    """Settings in one line; what is nested is left to the file."""
    if not isinstance(values, Mapping):
        return ""
    return ", ".join(f"{name} {value}" for name, value in values.items() if not isinstance(value, Mapping))
