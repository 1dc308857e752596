"""What all tests share: checked array shapes, one phantom cohort and one small checkpoint."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

# Before anything imports the library: every annotated type and shape is then checked at every call; an int may stand for a float.
install_import_hook("HARM3Logic", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)  # tests run in one process per core


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with data/ and parity/."""
    folder = Path(os.environ.get("HARM3_TEST_DATA", ""))
    if not (folder / "parity").is_dir():
        pytest.skip("HARM3_TEST_DATA names no folder with data/ and parity/")
    return folder


@pytest.fixture(scope="session")
def parity(data: Path) -> Path:
    """The folder of golden numbers."""
    return data / "parity"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `cohort.csv` of two small phantoms."""
    from HARM3Logic.phantom import write_phantoms

    folder = tmp_path_factory.getbasetemp() / "phantom"
    write_phantoms(folder, 2, seed=11, workers=0)
    return folder / "cohort.csv"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that loads and predicts like the shipped one, with random weights."""
    from HARM3Logic import checkpoint
    from HARM3Logic.models.harm3_fusion import HARM3Fusion, compact
    from HARM3Logic.prepare import Preprocessing
    from HARM3Logic.tile_encoder import default_path, read_entry

    torch.manual_seed(0)
    model = checkpoint.half(HARM3Fusion(compact()))
    encoder = default_path()
    card = checkpoint.Card(
        model="harm3_fusion",
        config=asdict(model.config),
        preprocessing=Preprocessing(shape=(16, 64, 64), spacing_mm=(5.0, 2.0, 2.0), bias_correction=False),
        inputs=model.inputs(),
        intended_use="Tests.",
        tile_encoder={"name": read_entry(encoder).name, "weights_sha256": hashlib.sha256(encoder.read_bytes()).hexdigest()},
        training={"synthetic": True},
    )
    path = tmp_path_factory.getbasetemp() / "tiny.safetensors"
    checkpoint.save(path, model, card)
    return path


@pytest.fixture
def host() -> Iterator[Any]:
    """The stand-in for Slicer's window."""
    pytest.importorskip("PySide6")
    import slicer_host

    made = slicer_host.install()
    yield made
    made.close()


@pytest.fixture
def qt(host: Any) -> Any:
    """PythonQt's `qt`, as the stand-in has it."""
    import qt

    return qt
