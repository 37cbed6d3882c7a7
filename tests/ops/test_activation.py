"""Activations: values and gradients, at the kinks and far out too."""

import math

import jax
import jax.numpy as jnp
import pytest
import torch
import torch.nn.functional as F
from parity_checks import check
from torch import nn

from esper.jax_backend.registry import lowering

KINKS = torch.tensor([-100.0, -6.0, -3.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 3.0, 6.0, 21.0, 100.0])
ACTIVATIONS = {
    "celu": lambda x: F.celu(x, 1.5),
    "elu": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "glu": F.glu,
    "glu_dim": lambda x: F.glu(x[None], 1),
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": lambda x: F.hardtanh(x, -1.5, 1.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "log_softmax": lambda x: F.log_softmax(x, 0),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3]).to(x.dtype)),
    "relu": F.relu,
    "relu6": F.relu6,
    "rrelu": F.rrelu,
    "selu": F.selu,
    "silu": F.silu,
    "softmax": lambda x: F.softmax(x, 0),
    "softmin": lambda x: F.softmin(x, -1),
    "softplus": F.softplus,
    "softplus_beta": lambda x: F.softplus(x, 2.0, 5.0),
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.5, -7.0),
}


def test_rrelu_draws_slopes():
    check(lambda x: F.rrelu(x, 0.25, 0.25, training=True), KINKS, key=jax.random.key(0))
    drawn = lowering("aten.rrelu.default").rule(-jnp.ones(1000), 0.1, 0.3, True, key=jax.random.key(0))
    assert -0.3 <= float(drawn.min()) < -0.28
    assert -0.12 < float(drawn.max()) <= -0.1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    function = ACTIVATIONS[name]
    check(lambda *xs: tuple(function(x) for x in xs), KINKS, KINKS.bfloat16(), KINKS.half(), torch.zeros(0, 2))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - {"glu", "glu_dim", "prelu"}))
def test_without_dimensions(name):
    check(ACTIVATIONS[name], torch.tensor(0.75))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - {"glu", "glu_dim", "softmax", "softmin", "log_softmax"}))
def test_nan_and_infinity(name):
    # Torch's own gelu of infinity is infinite or NaN, by the CPU's vector width and the tensor's length.
    largest = 1e30 if name == "gelu" else math.inf
    check(ACTIVATIONS[name], torch.tensor([math.nan, largest, -math.inf, 1.0]), gradients=False)


@pytest.mark.parametrize("function", [F.relu, F.relu6, lambda x: F.hardtanh(x, -1, 2), lambda x: F.threshold(x, 1, 5)])
def test_integers(function):
    check(function, torch.tensor([-3, 0, 1, 2, 9]))


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3), (3,)])
def test_prelu_has_a_slope_for_each_channel(shape):
    channels = shape[1] if len(shape) > 1 else 1
    check(nn.PReLU(channels), torch.linspace(-2, 2, math.prod(shape)).reshape(shape))


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_in_another_dtype(function):
    x = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 1000.0]])
    check(lambda a, b, c: tuple(function(t, -1, dtype=torch.float32) for t in (a, b, c)), x, x.half() / 8, x.long())


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_softmax_of_masked_rows(function):
    x = torch.tensor([[1.0, -math.inf, 2.0], [-math.inf, 0.0, -math.inf]])
    check(lambda x: function(x, 1), x)
    check(lambda x: function(x, 1), torch.full((2, 3), -math.inf), gradients=False)


def test_safe_softmax_gives_zeros_for_fully_masked_rows():
    x = torch.tensor([[1.0, -math.inf, 2.0], [-math.inf] * 3])
    check(lambda x: torch.ops.aten._safe_softmax(x, 1), x)


def test_second_derivatives():
    import jax
    import jax.numpy as jnp

    from esper.jax_backend.registry import lowering

    x = torch.tensor([-1.5, -0.2, 0.3, 2.0])
    for op, reference in {"gelu": F.gelu, "silu": F.silu, "softplus": F.softplus, "elu": F.elu}.items():
        rule = lowering(f"aten.{op}.default").rule
        found = jax.hessian(lambda v, rule=rule: rule(v).sum())(jnp.asarray(x.numpy()))
        wanted = torch.autograd.functional.hessian(lambda v, reference=reference: reference(v).sum(), x)
        assert jnp.allclose(found, wanted.numpy(), atol=1e-5), op
