"""The card of a checkpoint, read without the libraries that made it."""

import dataclasses
import json
from pathlib import Path

import pytest

from HARM3Logic import card, checkpoint
from HARM3Logic.errors import BadCheckpoint


def head(values: object, body: bytes = b"") -> bytes:
    """A file that begins as `.safetensors` does."""
    text = json.dumps(values).encode()
    return len(text).to_bytes(8, "little") + text + body


def with_card(**changes: object) -> bytes:
    values = {"model": "m", "config": {}, "preprocessing": {}, "inputs": ["t1_pre"], "intended_use": "Tests.", **changes}
    return head({"__metadata__": {"harm3": json.dumps({"format": card.FORMAT, "card": values, "familiarity": {}})}})


def test_the_header_says_what_the_loaded_card_says(tiny_checkpoint: Path) -> None:
    found = card.read_header(tiny_checkpoint)
    assert found == json.loads(json.dumps(dataclasses.asdict(checkpoint.read_card(tiny_checkpoint))))
    assert "slide" in found["inputs"]


def test_the_shipped_checkpoint_has_a_card() -> None:
    found = card.read_header(card.default())
    assert found["inputs"]
    assert isinstance(found["config"].get("needs", []), list)


def test_only_the_head_is_read(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(with_card(inputs=["ct", "clinical"]) + b"\xff" * 1000)  # no tensors at all
    assert card.read_header(tmp_path / "m.safetensors")["inputs"] == ["ct", "clinical"]


BROKEN = {
    "empty": (b"", "not a readable"),
    "text": (b"case_id,t1_pre\nA,x.nrrd\n", "not a readable"),
    "longer than the file": ((1 << 40).to_bytes(8, "little") + b"{}", "not a readable"),
    "no JSON": ((5).to_bytes(8, "little") + b"{'a':", "not a readable"),
    "no UTF-8": ((4).to_bytes(8, "little") + b'"\xff\xfe"', "not a readable"),
    "a list": (head([]), "not a readable"),
    "metadata of another kind": (head({"__metadata__": [1]}), "not a readable"),
    "no card": (head({"__metadata__": {"format": "pt"}}), "without a HARM3 card"),
    "a card that is no JSON": (head({"__metadata__": {"harm3": "{"}}), "cannot be read"),
    "a card that is no text": (head({"__metadata__": {"harm3": 3}}), "not a readable"),
    "no format": (head({"__metadata__": {"harm3": "{}"}}), "cannot be read"),
    "a later format": (head({"__metadata__": {"harm3": '{"format": 2, "card": {}}'}}), "has format 2; this version reads 1"),
    "inputs of another kind": (with_card(inputs="t1_pre"), "no usable 'inputs'"),
    "no config": (with_card(config=None), "no usable 'config'"),
    "a card that is a list": (head({"__metadata__": {"harm3": '{"format": 1, "card": []}'}}), "no usable 'model'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    content, words = BROKEN[name]
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        card.read_header(tmp_path / "m.safetensors")
    assert "m.safetensors" in caught.value.message
    assert caught.value.advice


def test_a_file_or_folder_in_its_place_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(BadCheckpoint, match="is not there"):
            card.read_header(path)


def test_the_demo_checkpoint_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "__file__", str(tmp_path / "HARM3Logic/card.py"))
    with pytest.raises(BadCheckpoint, match="demo checkpoint"):
        checkpoint.default()
    (tmp_path / "Resources/Models").mkdir(parents=True)  # as installed in Slicer
    (tmp_path / "Resources/Models/harm3_fusion_demo.safetensors").touch()
    assert checkpoint.default() == card.default() == (tmp_path / "Resources/Models/harm3_fusion_demo.safetensors").resolve()
