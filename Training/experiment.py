"""What one training run is: a model, what it sees and how it is trained, as plain values."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from pkgutil import iter_modules
from typing import Any, Literal

from HARM3Logic.clinical import Schema
from HARM3Logic.errors import BadOption
from HARM3Logic.models.lora import LoraSettings
from HARM3Logic.prepare import NO_SCHEMA, Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training batch.

    Args:
        flip: probability of a left-right flip.
        shift: largest shift in voxels, D H W.
        scale, offset: spread of a factor on, and an addition to, each volume's intensities.
        drop_volume, drop_slide, drop_ct, drop_row: probability that an input is withheld, so that the model learns to do without; the row
            of clinical values only where there is a CT, and the CT only where there is a row.
        drop_value: probability that a clinical value is told as unknown.
        drop_tiles: probability that a tile is withheld (never all): few labels teach attention over whole bags little but their noise.
    """

    flip: float = 0.5
    shift: tuple[int, int, int] = (2, 6, 6)
    scale: float = 0.1
    offset: float = 0.1
    drop_volume: float = 0.1
    drop_slide: float = 0.1
    drop_tiles: float = 0.0
    drop_ct: float = 0.1
    drop_row: float = 0.1
    drop_value: float = 0.1


@dataclass(frozen=True)
class Experiment:
    """One recipe. The paper's values are Adam, 1e-4, 1e-6, 200 epochs and batches of 8.

    Args:
        model: name in `MODELS`.
        config: its config.
        schema: of the clinical values the model reads.
        ignore_masks: train on the body-centred crop although masks exist.
        warm_up: share of all steps in which the learning rate rises.
        kl_warm_up: share of all steps in which the KL term rises from 0.
        average: decay of the running mean of the weights that is evaluated and kept; 0 keeps the last weights.
        mask_epochs: first epochs, in which the trunk learns from tumour masks alone.
        mask_steps: steps that those take at least: few cases are gone through more often (measured: RESULTS.md).
        fusion_epochs: epochs after those, in which all that follows the trunk learns without response labels, on tokens that stay as they
            are: the LD-VAE eqs. 4 and 5, the whole fusion from masks what therapy changed (measured: RESULTS.md).
        mask_learning_rate: rate in both.
        frozen_epochs: epochs after those in which the trunk stays as it is; fusion learns from few labels only on features that
            do not move (measured: RESULTS.md). The remaining epochs train everything.
        optimiser: adam adds the weight decay to the gradient (L2, the paper's), adamw takes it off the weights; sgd has momentum 0.9.
        decay_at: epochs from which the learning rate is a tenth of what it was.
        plateau: epochs without a better inner-validation loss after which the learning rate is halved; 0 never.
        tenfold: starts of the names of parameters with ten times the learning rate.
        micro_batch: cases that go through the model at once, their gradients added up to a batch; 0 takes the whole batch.
        positive_weight: factor on a responder's loss; 0 takes the training cases' non-responders per responder.
        balanced_sampler: draw cases with replacement so that both labels come equally often.
        patience: epochs without a better inner-validation loss before stopping; 0 never stops.
        least_epochs: epochs before which patience ends nothing; the epoch that is kept may still be one of them.
        pretrained: file of a pretrained trunk (Training.pretrain) to start from; empty starts from nothing.
        lora: low-rank updates learn in place of the trunk's weights, which stay as they were pretrained.
    """

    model: str
    config: Any
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    tile_encoder: str = "default"
    schema: Schema = NO_SCHEMA
    ignore_masks: bool = False
    epochs: int = 200
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    warm_up: float = 0.0
    kl_warm_up: float = 0.1
    clip: float = 1.0
    average: float = 0.0
    mask_epochs: int = 0
    mask_steps: int = 0
    mask_learning_rate: float = 1e-3
    fusion_epochs: int = 0
    frozen_epochs: int = 0
    patience: int = 0
    least_epochs: int = 0
    optimiser: Literal["adam", "adamw", "sgd", "lookahead_radam"] = "adamw"
    decay_at: tuple[int, ...] = ()
    plateau: int = 0
    tenfold: tuple[str, ...] = ()
    micro_batch: int = 0
    positive_weight: float = 1.0
    balanced_sampler: bool = False
    folds: int = 5
    seed: int = 0
    pretrained: str = ""
    lora: LoraSettings | None = None

    @property
    def untaught_epochs(self) -> int:
        """Epochs in which no response label is looked at."""
        return self.mask_epochs + self.fusion_epochs


def find(name: str) -> Experiment:
    """The experiment called NAME or NAME:VARIANT; without a variant the module's first.

    Raises:
        BadOption: there is none of that name; the message lists them.
    """
    import Training.experiments as package

    module_name, _, variant = name.partition(":")
    known = [m.name for m in iter_modules(package.__path__)]
    if module_name not in known:
        raise BadOption(f"experiment {module_name!r} does not exist; there are {', '.join(known)}.", "Choose one.")
    experiments: dict[str, Experiment] = importlib.import_module(f"Training.experiments.{module_name}").EXPERIMENTS
    variant = variant or next(iter(experiments))
    if variant not in experiments:
        raise BadOption(f"{module_name} has no variant {variant!r}; it has {', '.join(experiments)}.", "Choose one.")
    return experiments[variant]


def lengthened(experiment: Experiment, cases: int) -> Experiment:
    """The recipe with as many epochs on masks as its `mask_steps` take when so many cases train."""
    steps_of_epoch = -(-cases // experiment.batch_size)
    more = max(0, -(-experiment.mask_steps // steps_of_epoch) - experiment.mask_epochs)
    later = tuple(epoch + more for epoch in experiment.decay_at)
    return replace(experiment, epochs=experiment.epochs + more, mask_epochs=experiment.mask_epochs + more, mask_steps=0, decay_at=later)


def shortened(experiment: Experiment, epochs: int | None) -> Experiment:
    """The same recipe in so many epochs, however many cases train: stages and waits take the same share of them, and one epoch at least
    learns from labels."""
    if epochs is None:
        return experiment

    def share(value: int) -> int:
        return -(-value * epochs // experiment.epochs)  # rounded up: a trunk that is held stays held to the end

    parts = ("mask_epochs", "fusion_epochs", "frozen_epochs", "patience", "least_epochs", "plateau")
    stages = {name: share(getattr(experiment, name)) for name in parts}
    stages["mask_epochs"] = min(stages["mask_epochs"], max(0, epochs - 1))
    stages["fusion_epochs"] = min(stages["fusion_epochs"], max(0, epochs - 1 - stages["mask_epochs"]))
    return replace(experiment, epochs=epochs, mask_steps=0, decay_at=tuple(share(epoch) for epoch in experiment.decay_at), **stages)
