"""An operator from outside the package, as `docs/adding_an_operator.md` shows it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from torch import nn

import esper
from esper.errors import UnsupportedOpError


@torch.library.custom_op("mylib::softsign", mutates_args=())
def softsign(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    return x / (1 + x.abs() * scale)


@softsign.register_fake
def _(x, scale=1.0):
    return torch.empty_like(x)


def setup(ctx, inputs, output):
    ctx.save_for_backward(inputs[0])
    ctx.scale = inputs[1]


softsign.register_autograd(
    lambda ctx, grad: (grad / (1 + ctx.saved_tensors[0].abs() * ctx.scale) ** 2, None), setup_context=setup
)


class Squash(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return softsign(self.linear(x), 0.5)


def test_an_operator_registered_from_outside_runs_with_its_gradient():
    with pytest.raises(UnsupportedOpError, match=r"mylib\.softsign\.default"):
        esper.wrap(Squash())(jnp.ones((2, 3)))

    @esper.lowers("mylib.softsign.default")
    def lowered(x, scale=1.0):
        """mylib::softsign(Tensor x, float scale=1.0) -> Tensor"""
        return x / (1 + jnp.abs(x) * scale)

    check(Squash(), torch.randn(2, 3))
    module = Squash()
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    found = jax.jit(lambda model, x: model(x))(esper.wrap(module), x)
    np.testing.assert_allclose(found, module(torch.from_numpy(x)).detach(), rtol=1e-6)
