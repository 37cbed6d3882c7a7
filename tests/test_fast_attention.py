"""Attention, GELU and linear layers: their closed-form derivatives are those of the plain formulas."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity_checks import check
from torch.nn import functional as F

from esper.jax_backend.platform.attention import attend
from esper.jax_backend.registry import lowering

KEY = jax.random.key(5)
LOGITS, VALUE = jax.random.normal(KEY, (2, 3, 4)), jax.random.normal(jax.random.key(6), (2, 4, 5))
HIDDEN = jnp.where(jnp.arange(4) > jnp.arange(3)[:, None], -jnp.inf, 0)
KEEP = jax.random.bernoulli(KEY, 0.6, LOGITS.shape)


def plain(logits, value, keep, p):
    weights = jax.nn.softmax(logits, -1)
    return jnp.where(True if keep is None else keep, weights / (1 - p), 0) @ value


def derivatives(function, *at):
    """First derivatives, their derivatives and those along a direction, of a scalar made of `function`."""

    def scalar(*at):
        return jnp.sum(jnp.sin(function(*at)))

    places = tuple(range(len(at)))
    first = jax.grad(scalar, places)

    def slope(*at):
        return sum(jnp.sum(jnp.cos(found)) for found in first(*at))

    @jax.jit
    def all_of_them(*at):
        directions = tuple(map(jnp.cos, at))
        return first(*at), jax.grad(slope, places)(*at), jax.jvp(function, at, directions)

    return all_of_them(*at)


def agree(found, wanted, tolerance=1e-5):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("keep", "p"), [(None, 0.0), (KEEP, 0.4)], ids=["kept", "dropped"])
def test_attention(masked, keep, p):
    def of(function):
        return lambda logits, value: function(logits + (HIDDEN if masked else 0), value, keep, p)

    agree(derivatives(of(attend), LOGITS, VALUE), derivatives(of(plain), LOGITS, VALUE))


def test_rows_of_nothing_have_zero_gradients():
    logits = LOGITS.at[0, 1].set(-jnp.inf)
    out, pull = jax.vjp(lambda *at: attend(*at, None, 0.0), logits, VALUE)
    by_logits, by_value = pull(jnp.ones_like(out))
    assert not out[0, 1].any() and not by_logits[0, 1].any()
    assert np.isfinite(by_value).all()


def test_gradients_by_example():
    def loss(logits, value):
        return jnp.sum(attend(logits, value, None, 0.0) ** 2)

    found = jax.vmap(jax.grad(loss, (0, 1)))(LOGITS, VALUE)
    agree(found, jax.grad(loss, (0, 1))(LOGITS, VALUE))
    agree(jax.grad(lambda *at: jnp.sum(jax.vmap(loss)(*at)), (0, 1))(LOGITS, VALUE), found)


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4)], ids=str)
def test_attention_of_nothing(shape):
    rule = lowering("aten.scaled_dot_product_attention.default").rule
    q, k = jnp.ones(shape), jnp.ones((shape[0], 2, 3, 4))
    assert jax.grad(lambda q: rule(q, k, k).sum())(q).shape == shape


@pytest.mark.parametrize("options", [{}, {"is_causal": True}], ids=["plain", "causal"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_in_16_bits(options, dtype):
    q, k, v = (t.to(dtype) for t in torch.randn(3, 1, 2, 9, 16, generator=torch.Generator().manual_seed(0)))
    check(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options), q, k, v)


def test_the_derivative_of_a_mask_that_is_added():
    q, k, v, mask = torch.randn(4, 2, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    check(lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask[:1]), q, k, v, mask)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate):
    def wanted(x):
        if approximate == "none":
            return 0.5 * x * (1 + jax.lax.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    rule = partial(lowering("aten.gelu.default").rule, approximate=approximate)
    x = jnp.linspace(-4, 4, 31)
    agree(derivatives(rule, x), derivatives(wanted, x))


@pytest.mark.parametrize("outputs", [3, 6], ids=["narrow", "wide"])
def test_linear(outputs):
    x, weight = jax.random.normal(KEY, (5, 4)), jax.random.normal(KEY, (outputs, 4))
    agree(
        derivatives(lowering("aten.linear.default").rule, x, weight),
        derivatives(lambda x, weight: x @ weight.T, x, weight),
    )


def test_a_convolution_of_hugging_face_is_a_linear_layer():
    bias, x, weight = torch.randn(6), torch.randn(2, 3, 4), torch.randn(4, 6)

    def conv1d(bias, x, weight):
        return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], -1)

    check(conv1d, bias, x, weight)
    check(conv1d, *(t.to(torch.bfloat16) for t in (bias, x, weight)))
