"""Two processes train as one does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from HARM3Logic.errors import BadOption
from Training import devices

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import dataclasses, sys
from pathlib import Path
import torch
from torch import nn
torch.set_num_threads(1)
import test_loop
from test_loop import MODELS, Cache, Case, FABRIC, Split, small, train, write_case
from HARM3Logic.models.harm3_fusion import HARM3Fusion, HARM3FusionConfig


class AsTheyAre(nn.Module):
    def forward(self, tiles, present):
        return tiles


class Alone(HARM3Fusion):
    # no norm looks at other cases of a batch
    def __init__(self, config: HARM3FusionConfig) -> None:
        super().__init__(config)
        self.tile_norm = AsTheyAre()
        for name, module in list(self.named_modules()):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                parent, _, own = name.rpartition(".")
                wide = nn.InstanceNorm3d(module.num_features, affine=True) if isinstance(module, nn.BatchNorm3d) else nn.Identity()
                setattr(self.get_submodule(parent), own, wide)


MODELS["alone"] = Alone
out = Path(sys.argv[1])
test_loop.SHAPE = (16, 32, 32)  # an instance norm needs more than one voxel in the last map
if FABRIC.is_global_zero:
    out.mkdir()
    for k in range(9):
        write_case(out, k)
FABRIC.barrier()
cache = Cache([out / f"c{k}.safetensors" for k in range(9)], [Case(f"HN-{k}", {}, label=k % 2) for k in range(9)])
plain = small(epochs=3)
# nothing draws within the model
config = dataclasses.replace(
    plain.config, trunk=dataclasses.replace(plain.config.trunk, norm="instance"), head_norm="group", dropout=0.0, head_dropout=0.0,
    ldvae=False, radiomics_weight=0.0, mask_weight=0.0, change_weight=0.0,
)
split = Split(train=tuple(range(7)), choose=(7, 8), judge=())  # batches of 3, 3 and 1: the second process has 1, 1 and none
model = train(dataclasses.replace(plain, model="alone", config=config), cache, split, out / "run", FABRIC)
torch.save(model.state_dict(), out / f"final{FABRIC.global_rank}.pt")
print("world", FABRIC.world_size)
"""


def run(tmp_path: Path, name: str, *launcher: str) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'Testing'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(tmp_path / "script.py"), str(tmp_path / name)]
    asked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert asked.returncode == 0, asked.stderr[-3000:]
    assert f"world {2 if launcher else 1}" in asked.stdout
    return tmp_path / name


def rows(out: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    if not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = run(tmp_path, "alone")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(port))
    together = run(tmp_path, "together", *torchrun)
    assert len(rows(alone)) == 3
    for one, two in zip(rows(alone), rows(together), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    first, second = (torch.load(together / f"final{rank}.pt", weights_only=True) for rank in (0, 1))
    single = torch.load(alone / "final0.pt", weights_only=True)
    for name, value in single.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "choose", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadOption, match="2 processes were started on a machine with 1 CUDA devices"):
        devices.open_fabric()
