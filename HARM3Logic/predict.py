"""A case and a checkpoint to a probability, heatmaps and a report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from HARM3Logic import bag, checkpoint
from HARM3Logic.assemble import assemble, decide
from HARM3Logic.batch import Prepared, collate
from HARM3Logic.case import MRI, Case
from HARM3Logic.device import Precision, best_precision, choose
from HARM3Logic.errors import BadSlide, MissingInput, OutOfMemory
from HARM3Logic.explain import Explanation, explain
from HARM3Logic.feature_slide import EncoderName
from HARM3Logic.features import save_mask
from HARM3Logic.prediction import NO_TISSUE, Prediction, writable
from HARM3Logic.prepare import OnEvent, prepare, silent
from HARM3Logic.slide import NoTissue, Slide
from HARM3Logic.tile_encoder import TileEncoder
from HARM3Logic.volume import Volume

__all__ = ["Prediction", "Predictor", "decide", "keeping_mask", "predict", "writable"]

SAMPLES = 200  # draws of latents and calibration behind the interval


class Predictor:
    """A checkpoint and its tile encoder kept ready on a device.

    Args:
        checkpoint: a file; None takes the demo checkpoint.
        device: auto, cpu, cuda, cuda:<i> or mps.
        precision: auto takes what is faster on the device.
        encoding: load the tile encoder; without it slides are read from files of features alone.

    Raises:
        BadCheckpoint, BadOption: the checkpoint, its encoder, its stain normalisation or the device cannot be used.
    """

    def __init__(
        self,
        checkpoint_path: str | os.PathLike[str] | None = None,
        device: str = "auto",
        precision: Precision | None = None,
        encoding: bool = True,
    ) -> None:
        self.device = choose(device)
        self.precision: Precision = precision or best_precision(self.device)
        if self.device.type == "cpu":
            torch.set_flush_denormal(True)  # denormals slow a CPU down many times
        self.checkpoint = checkpoint.load(checkpoint_path or checkpoint.default(), self.device)
        self.encoder: TileEncoder | EncoderName | None = None
        card = self.checkpoint.card
        if card.tile_encoder and encoding:
            self.encoder = TileEncoder.load(card.tile_encoder["name"], str(self.device), self.precision)
            checkpoint.check_encoder(card, self.encoder.entry.name, self.encoder.weights_sha256)
            if card.preprocessing.stain is not None:
                card.preprocessing.stain.ready()
        elif card.tile_encoder:
            self.encoder = EncoderName(card.tile_encoder["name"], card.tile_encoder["weights_sha256"], card.config.get("tile_features"))

    def __call__(self, case: Case, *, ignore_masks: bool = False, cache: Path | None = None, on_event: OnEvent = silent) -> Prediction:
        """The prediction for one case.

        Raises:
            MissingInput, BadVolume, BadSlide: the case cannot be used.
            OutOfMemory: the device is too small.
            Cancelled: raised by `on_event`.
        """
        card = self.checkpoint.card
        absent = [name for name in card.inputs if name not in case.inputs and not (name == "clinical" and case.clinical)]
        needed = [name for name in card.config.get("needs", ()) if name in absent]
        if needed:
            raise MissingInput(
                f"case {case.case_id!r} has no {needed[0]}; {card.model} needs {', '.join(card.config['needs'])}.",
                f"Load {needed[0]} or choose a checkpoint trained without it.",
            )
        volumes = [name for name in card.inputs if name in MRI]
        if volumes and set(volumes) <= set(absent):
            raise MissingInput(
                f"case {case.case_id!r} has no MRI volume that {card.model} reads; at least one of {', '.join(volumes)} is wanted.",
                "Load one or choose another checkpoint.",
            )
        images: dict[str, Volume] = {}
        prepared = prepare(
            case, card.preprocessing, self.encoder, wanted=card.inputs, schema=card.clinical, images=images, cache=cache,
            ignore_masks=ignore_masks, on_event=on_event,
        )  # fmt: skip
        on_event("stage", {"name": "predicting"})
        try:
            explanation, draws = self._run(prepared)
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the GPU {self.device} has too little memory for this model.", "Use --device cpu or close other programs."
            ) from error
        on_event("stage", {"name": "writing the report"})
        how = {"device": str(self.device), "precision": self.precision}
        return assemble(case, prepared, explanation, draws, self.checkpoint, images, ignore_masks, how)

    def _run(self, prepared: Prepared) -> tuple[Explanation, Float[np.ndarray, " n"]]:
        model = self.checkpoint.model
        batch = collate([prepared]).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            explanation = explain(model, batch)
            logits = np.full(SAMPLES, explanation.logit)
            sample = getattr(model, "sample", None)
            if sample is not None:
                with torch.inference_mode():
                    logits = sample(batch, SAMPLES, torch.Generator().manual_seed(0))[:, 0].double().cpu().numpy()
        return explanation, logits


def predict(
    case: Case,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    ignore_masks: bool = False,
    on_event: OnEvent = silent,
) -> Prediction:
    """Predict one case, and write its files when `out` is given. For many cases keep a `Predictor`."""
    if out is not None:
        writable(out)
    with keeping_mask(None if out is None else Path(out)):
        prediction = Predictor(checkpoint, device, encoding=bag.encodes(case))(case, ignore_masks=ignore_masks, on_event=on_event)
    if out is not None:
        prediction.write(out)
    return prediction


@contextmanager
def keeping_mask(out: Path | None) -> Iterator[None]:
    """Where a slide shows no tissue, leave a picture of what was taken for it as `slide_tissue.png` and say so.

    Args:
        out: folder of the results; None leaves no picture.

    Raises:
        BadSlide: as raised within, with the advice to look at the picture.
    """
    try:
        yield
    except NoTissue as error:
        if out is None:
            raise
        picture = out / NO_TISSUE
        with Slide.open(error.path, error.mpp) as slide:
            save_mask(slide, error.tissue, picture)
        raise BadSlide(error.message, f"{error.advice} What was taken for tissue is shown in {str(picture)!r}.") from error
