"""A fenced function is compiled by itself, and otherwise what it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from esper.jax_backend.platform.fence import fenced


def scaled(x, by):
    return jnp.sin(x) * by


FENCED = fenced(scaled)
X = jnp.linspace(-1, 1, 12).reshape(3, 4)


def test_it_is_called_and_not_inlined():
    text = jax.jit(lambda x: FENCED(x * 2, 3.0) + 1).lower(X).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert " call(" in entry and "sine" not in entry
    assert "inlineable" not in text[: text.index("\nENTRY")]  # the mark is on the call alone


def test_equal_calls_are_traced_once():
    traced = []

    @fenced
    def noted(x):
        traced.append(x.shape)
        return x + 1

    jax.jit(lambda x: noted(noted(x)).sum() + noted(x[0]).sum())(X)
    assert traced == [(3, 4), (4,)]


def test_static_arguments():
    power = fenced(lambda x, n: x**n, static=(1,))
    np.testing.assert_allclose(jax.jit(lambda x: power(x, 3))(X), X**3, rtol=1e-6)


@pytest.mark.parametrize(
    "transformed",
    [
        lambda f: jax.grad(lambda x: f(x, 2.0).sum()),
        lambda f: jax.grad(lambda x: jax.grad(lambda y: f(y, 2.0).sum())(x).sum()),
        lambda f: lambda x: jax.jvp(lambda y: f(y, 2.0), (x,), (x,))[1],
        lambda f: lambda x: jax.vmap(f, in_axes=(0, None))(x, 2.0),
        lambda f: jax.checkpoint(lambda x: f(x, 2.0)),
    ],
    ids=["gradient", "second order", "forward mode", "vmap", "checkpoint"],
)
def test_it_is_transformed_as_the_function_is(transformed):
    found, wanted = (jax.jit(transformed(f))(X) for f in (FENCED, scaled))
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
