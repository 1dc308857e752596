"""What is written is there whole or not at all, for everybody who may read other new files."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from HARM3Logic.writing import whole, write_text


def test_a_writer_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    kept = tmp_path / "table.csv"
    write_text(kept, "old")

    with pytest.raises(OSError, match="disk is full"), whole(kept) as temporary:
        temporary.write_text("half of it")
        raise OSError("disk is full")

    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    assert kept.read_text() == "old"


def test_nothing_stands_there_before_all_of_it_is_written(tmp_path: Path) -> None:
    made = tmp_path / "scan.nii.gz"
    with whole(made, ".nii.gz") as temporary:
        temporary.write_bytes(b"1")
        assert not made.exists()
        assert temporary.parent == tmp_path  # a rename within one file system
        assert temporary.name.startswith(".") and temporary.name.endswith(".nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no rights of group and others")
def test_colleagues_may_read_what_safetensors_writes_for_its_owner_alone(tmp_path: Path) -> None:
    made = tmp_path / "model.safetensors"
    before = os.umask(0o027)
    try:
        with whole(made) as temporary:
            save_file({"x": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o640


def test_text_is_utf8_whatever_the_machine_says(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "µm, Müller")
    assert (tmp_path / "a.txt").read_bytes() == "µm, Müller".encode()


def test_a_shared_model_can_be_read_by_colleagues(tiny_checkpoint: Path) -> None:
    ordinary = tiny_checkpoint.parent / "ordinary.txt"
    ordinary.touch()
    assert tiny_checkpoint.stat().st_mode == ordinary.stat().st_mode
