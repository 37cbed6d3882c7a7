"""The losses by name: the numbers of torch, in all derivatives, and what is no loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from test_fast_attention import agree, derivatives
from torch.nn import functional as F

from esper.errors import ArgumentError
from esper.train.objective import cross_entropy

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 11), (1, 1), (0, 4)])
@pytest.mark.parametrize("labels_dtype", ["int32", "uint8"])
def test_cross_entropy_is_torchs(shape, labels_dtype):
    logits = 3 * jax.random.normal(KEY, shape)
    labels = jax.random.randint(KEY, shape[:-1], 0, shape[-1]).astype(labels_dtype)
    eager = torch.tensor(np.asarray(logits), requires_grad=True)
    flat = torch.tensor(np.asarray(labels)).long().reshape(-1)
    wanted = F.cross_entropy(eager.reshape(-1, shape[-1]), flat, reduction="none").reshape(shape[:-1])
    wanted.sum().backward()
    found, slope = cross_entropy(logits, labels), jax.grad(lambda x: cross_entropy(x, labels).sum())(logits)
    np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(slope, eager.grad.numpy(), rtol=1e-6, atol=1e-6)


def test_cross_entropy_is_optaxs_in_all_derivatives():
    logits, labels = jax.random.normal(KEY, (4, 6)), jnp.array([0, 5, 2, 2])
    written = optax.softmax_cross_entropy_with_integer_labels
    agree(derivatives(lambda x: cross_entropy(x, labels), logits), derivatives(lambda x: written(x, labels), logits))


def test_half_precision_is_widened():
    logits, labels = (jax.random.normal(KEY, (64, 50)) * 4).astype(jnp.bfloat16), jnp.arange(64) % 50
    loss = cross_entropy(logits, labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(logits.astype(jnp.float32), labels), rtol=1e-6)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_common_offset_costs_no_digits(offset):
    logits, labels = jax.random.normal(KEY, (4, 6)) + offset, jnp.array([0, 5, 2, 2])
    wanted = torch.tensor(np.asarray(logits), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(wanted, torch.tensor(np.asarray(labels)).long()).backward()
    slope = jax.grad(lambda x: cross_entropy(x, labels).mean())(logits)
    loss = F.cross_entropy(wanted, torch.tensor(np.asarray(labels)).long(), reduction="none")
    np.testing.assert_allclose(cross_entropy(logits, labels), loss.detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(slope, wanted.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_a_label_that_is_no_class_is_no_loss():
    logits, labels = jax.random.normal(KEY, (4, 3)), jnp.array([-1, 3, 0, -100])
    assert jnp.isnan(cross_entropy(logits, labels)).tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "labels", [np.ones((4,), np.float32), np.ones((4, 1), np.int32), np.ones((4, 3), np.int32), np.ones((), np.int32)]
)
def test_labels_of_another_form_are_refused(labels):
    with pytest.raises(ArgumentError, match="the number of a class for each example"):
        cross_entropy(jnp.ones((4, 3)), labels)
