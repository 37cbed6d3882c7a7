"""Modules of TorchScript there and back: names, values, and the script itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import pytest
import torch
from torch import nn

import esper

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(3, 3), torch.jit.script(_net())),
        lambda: torch.jit.script(_net()),
        lambda: torch.jit.trace(_net().eval(), torch.randn(2, 3)),
    ],
    ids=["a part", "the root", "a trace"],
)
def test_unwrap_gives_the_script_back_with_the_trained_values(make: Callable[[], nn.Module]) -> None:
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = esper.wrap(net, target_layers=[])
    model(torch.randn(4, 3))
    model = model.replace(params=jax.tree.map(lambda value: value * 1.5, model.params))
    found = esper.unwrap(model)  # certified on a random call
    assert list(found.state_dict()) == list(before)
    assert all(torch.equal(value, before[name] * 1.5) for name, value in found.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    scripts = [isinstance(part, torch.jit.ScriptModule) for part in found.modules()]
    assert scripts == [isinstance(part, torch.jit.ScriptModule) for part in net.modules()]
    found(torch.randn(4, 3)).sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())
