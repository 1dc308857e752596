"""Optimisers and falling learning rates."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from Training import optimisers
from Training.experiment import Experiment

PLAIN = Experiment("harm3_fusion", None, learning_rate=1e-2, weight_decay=0.1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(2, 2), nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD), ("lookahead_radam", None)]
)
def test_each_name_is_its_optimiser(name: Any, kind: type[torch.optim.Optimizer] | None) -> None:
    torch.manual_seed(0)
    model = Two()
    built = optimisers.build(replace(PLAIN, optimiser=name, tenfold=("head",)), model)
    assert kind is None or type(built) is kind
    found = [(len(g["params"]), g["factor"], g["weight_decay"], g["lr"]) for g in built.param_groups]
    if name == "lookahead_radam":  # biases do not decay
        assert found == [(1, 1, 0.1, 0.01), (1, 1, 0, 0.01), (1, 10, 0.1, 0.01), (1, 10, 0, 0.01)]
    else:
        assert found == [(2, 1, 0.1, 0.01), (2, 10, 0.1, 0.01)]
    if name == "sgd":
        assert built.param_groups[0]["momentum"] == 0.9


def test_lookahead_steps_back_half_way_and_resumes() -> None:
    def one() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        return model.weight, optimisers.build(replace(PLAIN, optimiser="lookahead_radam", weight_decay=0.0), model)

    def go(weight: nn.Parameter, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
        seen = []
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimiser.step()
            seen.append(float(weight.detach()))
        return seen

    path = go(*one(), 14)
    inside = torch.optim.RAdam([plain := nn.Parameter(torch.ones(1, 1))], lr=1e-2)
    fast = go(plain, inside, 12)
    assert path[:11] == pytest.approx(fast[:11])  # the first time the slow weights only begin
    assert path[11] == pytest.approx((fast[5] + fast[11]) / 2)
    weight, optimiser = one()
    go(weight, optimiser, 8)
    again, resumed = one()
    again.data.copy_(weight.data)
    resumed.load_state_dict(optimiser.state_dict())
    assert go(again, resumed, 6) == pytest.approx(path[8:])


def test_the_rate_falls_at_its_epochs_and_on_a_plateau() -> None:
    steps = replace(PLAIN, decay_at=(10, 20))
    assert [optimisers.decayed(steps, k, ()) for k in (9, 10, 19, 20)] == pytest.approx([1, 0.1, 0.1, 0.01])
    flat = replace(PLAIN, plateau=2)
    found = [optimisers.decayed(flat, k, [1.0, 0.9, 0.95, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9][:k]) for k in range(10)]
    assert found == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
    assert optimisers.decayed(PLAIN, 50, [1.0] * 50) == 1
