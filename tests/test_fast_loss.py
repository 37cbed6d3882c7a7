"""Cross-entropy with class indices: read by a gather, its gradient without a scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_fast_attention import agree, derivatives
from torch.nn import functional as F

from esper.jax_backend.platform.softmax import entries
from esper.jax_backend.registry import lowering

cross_entropy = lowering("aten.cross_entropy_loss.default").rule
X = jax.random.normal(jax.random.key(0), (4, 5, 3))
INDEX = jnp.array([[0, 4, 2], [1, 1, 3], [-100, 0, 4], [2, -100, 2]])
WEIGHT = jnp.array([0.5, 1.0, 2.0, 0.1, 3.0])


def plain(x, weight, smoothing):
    """The mean of cross-entropy by the definition of each of its terms."""
    logs = jax.nn.log_softmax(x, 1)
    target = jax.nn.one_hot(INDEX, 5, axis=1)
    counts = INDEX != -100
    share = (weight[:, None] * (target * (1 - smoothing) + smoothing / 5)) * counts[:, None]
    return -jnp.sum(logs * share) / jnp.sum(weight[:, None] * target)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_derivatives(weight, smoothing):
    def found(x):
        return cross_entropy(x, INDEX, weight, label_smoothing=smoothing)

    def wanted(x):
        return plain(x, jnp.ones(5) if weight is None else weight, smoothing)

    agree(derivatives(found, X), derivatives(wanted, X))


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_costs_no_digits(offset):
    x = np.asarray(X) + np.float32(offset)
    wanted = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(wanted, torch.tensor(np.asarray(INDEX)).long())
    loss.backward()
    value, slope = jax.value_and_grad(cross_entropy)(jnp.asarray(x), INDEX)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-6)
    np.testing.assert_allclose(slope, wanted.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_no_scatter():
    def separate(x):
        logs = lowering("aten._log_softmax.default").rule(x, 1, False)
        return lowering("aten.nll_loss_forward.default").rule(logs, INDEX, None, 1, -100)[0]

    for loss in (lambda x: cross_entropy(x, INDEX), separate):
        assert "scatter" not in str(jax.make_jaxpr(jax.grad(loss))(X))
    agree(jax.grad(separate)(X), jax.grad(lambda x: cross_entropy(x, INDEX))(X))


def test_entries():
    def wanted(x):
        return jnp.where(INDEX < 0, 0, jnp.take_along_axis(x, jnp.where(INDEX < 0, 0, INDEX)[:, None], 1)[:, 0])

    def found(x):
        return entries(x, INDEX, 1)

    agree(derivatives(found, X), derivatives(wanted, X))
    by_example = jax.vmap(jax.grad(lambda x, i: jnp.sum(entries(x, i, 0) ** 2)))(X, INDEX)
    agree(by_example, jax.grad(lambda x: jnp.sum(found(x) ** 2))(X))


def test_no_rows():
    assert jax.grad(lambda x: cross_entropy(x, jnp.zeros(0, int), reduction=2))(jnp.zeros((0, 5))).shape == (0, 5)
