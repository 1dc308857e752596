"""What a training starts from: the model, its clinical scaling, pretrained weights and their low-rank updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from HARM3Logic.case import Case
from HARM3Logic.checkpoint import file_sha256
from HARM3Logic.clinical import Schema, fit_scaling
from HARM3Logic.errors import BadCohort, BadOption
from HARM3Logic.models import MODELS, lora
from HARM3Logic.models.vit3d import ViTTrunk
from Training.cache import Cache
from Training.experiment import Experiment
from Training.pretrain import PATIENTS, about, load_pretrained, pseudonym


def inputs(experiment: Experiment) -> tuple[str, ...]:
    """What the experiment's model reads."""
    return tuple(_weightless(experiment).inputs())  # type: ignore[operator]


def with_schema(experiment: Experiment, schema: Schema) -> Experiment:
    """The same recipe for other clinical variables.

    Raises:
        BadOption: its model reads none.
    """
    if not _has(experiment.config, "levels"):
        raise BadOption(f"{experiment.model} reads no clinical values, and a schema was given.", "Leave it out.")
    return dataclasses.replace(experiment, schema=schema, config=dataclasses.replace(experiment.config, levels=schema.levels))


def check(experiment: Experiment) -> None:
    """Refuse settings that contradict each other, before anything is prepared.

    Raises:
        BadOption: two do.
    """
    if experiment.lora is not None and not experiment.pretrained:
        raise BadOption(f"{experiment.model} is to adapt a pretrained trunk, and none is given.", "Name its file with --pretrained.")
    if experiment.lora is not None and experiment.frozen_epochs:
        raise BadOption(
            f"lora keeps the trunk as it is, and frozen_epochs={experiment.frozen_epochs} would let it learn afterwards.", "Leave out one."
        )
    if experiment.fusion_epochs and _has(experiment.config, "vae") and experiment.config.vae.cos == "label_aware":
        raise BadOption(
            f"the cosine term 'label_aware' looks at the response, and fusion_epochs={experiment.fusion_epochs} learn without it.",
            "Set fusion_epochs=0 or choose another form.",
        )
    if experiment.pretrained and not Path(experiment.pretrained).is_file():
        raise BadOption(f"there is no pretrained trunk {experiment.pretrained!r}.", "Make one with Training.pretrain.")
    if _has(experiment.config, "levels") and experiment.config.levels != experiment.schema.levels:
        raise BadOption(
            f"{experiment.model} expects {len(experiment.config.levels)} clinical variables of other kinds than the schema's "
            f"{len(experiment.schema.levels)}.",
            "Give the schema with --schema.",
        )


def refuse_pretrained_patients(experiment: Experiment, cases: Sequence[Case]) -> None:
    """Keep those who taught the trunk out of training and judging.

    Raises:
        BadCohort: a patient did.
    """
    taught = set(about(Path(experiment.pretrained))["training"].get(PATIENTS, ())) if experiment.pretrained else set()
    both = next((case for case in cases if pseudonym(case.patient_id or case.case_id) in taught), None)
    if both is not None:
        raise BadCohort(
            f"patient {both.patient_id or both.case_id!r} was among those who pretrained the trunk {experiment.pretrained!r}; none may be.",
            "Pretrain with --never and this cohort, or leave the patient out.",
        )


def new_model(experiment: Experiment, cache: Cache, rows: Sequence[int]) -> nn.Module:
    """The fresh model of the experiment's seed.

    Args:
        rows: the cases that train; of all in the cache only they are looked at.

    Raises:
        BadOption, BadCheckpoint: the pretrained trunk does not belong to this model.
    """
    torch.manual_seed(experiment.seed)
    model = MODELS[experiment.model](_scaled(experiment, cache, rows))
    if experiment.pretrained:
        load_pretrained(_trunk(model, experiment.model), Path(experiment.pretrained))
    if experiment.lora is not None:
        lora.adapt(_trunk(model, experiment.model), experiment.lora)
    return model


def finished(experiment: Experiment, model: nn.Module) -> nn.Module:
    """The trained model as it is kept: low-rank updates added to the weights, in place."""
    return model if experiment.lora is None else lora.merge(model)


def provenance(experiment: Experiment) -> dict[str, Any]:
    """Where the weights come from and how many of them learn; empty for a model that starts from nothing."""
    told: dict[str, Any] = {}
    if experiment.pretrained:
        path = Path(experiment.pretrained)
        origin = {key: value for key, value in about(path)["training"].items() if key != PATIENTS}
        told["pretrained"] = {"sha256": file_sha256(path), **origin}
    if experiment.lora is not None:
        told["learning"] = dataclasses.asdict(learning(experiment))
    return told


def learning(experiment: Experiment) -> lora.Share:
    """How many of the model's parameters learn."""
    model = _weightless(experiment)
    if experiment.lora is not None:
        lora.adapt(_trunk(model, experiment.model), experiment.lora)
    return lora.share(model)


def _scaled(experiment: Experiment, cache: Cache, rows: Sequence[int]) -> Any:
    """The model's config, with the mean and spread of the clinical values of the cases that train."""
    config = experiment.config
    if not _has(config, "scaling") or "clinical" not in inputs(experiment):
        return config
    found = [(case.clinical, case.clinical_mask) for case in map(cache.__getitem__, rows)]
    told = [(values.double().numpy(), known.numpy()) for values, known in found if values is not None and known is not None]
    scaling = fit_scaling(experiment.schema, *(np.stack(column) for column in zip(*told, strict=True)))
    return dataclasses.replace(config, scaling=scaling)


def _trunk(model: nn.Module, name: str) -> ViTTrunk:
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, ViTTrunk):
        raise BadOption(f"{name} has no trunk here that can be pretrained.", "Leave out --pretrained and lora, or take another variant.")
    return trunk


def _weightless(experiment: Experiment) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return MODELS[experiment.model](experiment.config)


def _has(config: Any, name: str) -> bool:
    return dataclasses.is_dataclass(config) and name in {field.name for field in dataclasses.fields(config)}
