"""What is shipped answers what it was made for."""

from pathlib import Path

import numpy as np
import torch

from HARM3Logic import checkpoint, image_file, phantom_gist
from HARM3Logic.case import Case
from HARM3Logic.clinical import gist
from HARM3Logic.phantom import auc
from HARM3Logic.predict import Predictor, predict

MODELS = Path(__file__).parents[1] / "HARM3Slicer/Resources/Models"
CT_CLINICAL = MODELS / "ct_clinical_demo.safetensors"


def test_the_models_and_their_encoder_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.glob("*.safetensors")) < 40e6


def test_the_model_of_ct_and_clinical_values_answers_and_says_what_it_is(tmp_path: Path) -> None:
    assert checkpoint.load(CT_CLINICAL, torch.device("cpu")).card.clinical.names == gist().names
    phantom_gist.write_phantoms(tmp_path, 1, seed=77, workers=0)
    found = predict(Case.read(next(tmp_path.glob("GI-*/case.json"))), CT_CLINICAL, device="cpu", out=tmp_path / "out")
    assert found.values["model"]["synthetic"] is True
    assert set(found.values["contributions"]) == {"ct", "clinical"}
    assert image_file.read(tmp_path / "out/heatmap_ct.nrrd").array.max() > 0


def test_it_tells_phantoms_apart_it_has_not_seen(tmp_path: Path) -> None:
    """Chance gives 24 phantoms an AUC above 0.62 in one of six tries, and always for the same phantoms: a broken model shows."""
    phantom_gist.write_phantoms(tmp_path, 24, seed=78, workers=0)
    cases = [Case.read(path) for path in sorted(tmp_path.glob("GI-*/case.json"))]
    predictor = Predictor(CT_CLINICAL, "cpu")
    assert auc(np.array([predictor(case).probability for case in cases]), np.array([case.label for case in cases])) > 0.62
