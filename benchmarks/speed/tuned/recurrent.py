"""LSTM and GRU layers: the input's product before the scan, the weights' gradients as single products after it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.tuned.products import column_sums, dense

UNROLL = 4
"""Of LSTMs; for GRUs it does not pay."""


@jax.custom_vjp
def recur(from_input: jax.Array, weight: jax.Array) -> jax.Array:
    """(time, batch, 4 * width), with biases, to (time, batch, width); the weight is (width, 4 * width)."""
    return _forward(from_input, weight)[0]


def _forward(from_input, weight):
    def cell(carry, given):
        h, c = carry
        i, f, g, o = jnp.split(given + h @ weight, 4, -1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        moved = f * c + i * g
        out = o * jnp.tanh(moved)
        return (out, moved), (out, h, c, moved, i, f, g, o)

    zeros = jnp.zeros((from_input.shape[1], weight.shape[0]), from_input.dtype)
    _, (out, *kept) = lax.scan(cell, (zeros, zeros), from_input, unroll=UNROLL)
    return out, (weight, *kept)


def _backward(kept, by_out):
    weight, before, *steps = kept
    turned = weight.T

    def cell(carry, given):
        by_h, by_c = carry
        above, c, moved, i, f, g, o = given
        by_h += above
        curved = jnp.tanh(moved)
        by_c += by_h * o * (1 - curved * curved)
        gates = (by_c * g * i * (1 - i), by_c * c * f * (1 - f), by_c * i * (1 - g * g), by_h * curved * o * (1 - o))
        by_gates = jnp.concatenate(gates, -1)
        return (by_gates @ turned, by_c * f), by_gates

    zeros = jnp.zeros_like(before[0])
    _, by_input = lax.scan(cell, (zeros, zeros), (by_out, *steps), reverse=True, unroll=UNROLL)
    by_weight = before.reshape(-1, before.shape[-1]).T @ by_input.reshape(-1, by_input.shape[-1])
    return by_input, by_weight


recur.defvjp(_forward, _backward)


def lstm(x: jax.Array, by_input: jax.Array, by_state: jax.Array, bias1: jax.Array, bias2: jax.Array) -> jax.Array:
    """(time, batch, features) to (time, batch, width); `by_input` is (4 * width, features), `by_state` turned."""
    return recur(dense(x, by_input, bias1 + bias2), by_state)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def gated(from_input: jax.Array, weight: jax.Array, bias: jax.Array, reverse: bool) -> jax.Array:
    """A GRU: (time, batch, 3 * width) to (time, batch, width); the weight is (width, 3 * width)."""
    return _gated_forward(from_input, weight, bias, reverse)[0]


def _gated_forward(from_input, weight, bias, reverse):
    def cell(h, given):
        from_state = h @ weight + bias
        (r, z, n), (state_r, state_z, state_n) = jnp.split(given, 3, -1), jnp.split(from_state, 3, -1)
        r, z = jax.nn.sigmoid(r + state_r), jax.nn.sigmoid(z + state_z)
        n = jnp.tanh(n + r * state_n)
        out = n + z * (h - n)
        return out, (out, h, r, z, n, state_n)

    zeros = jnp.zeros((from_input.shape[1], weight.shape[0]), from_input.dtype)
    _, (out, *kept) = lax.scan(cell, zeros, from_input, reverse=reverse)
    return out, (weight, *kept)


def _gated_backward(reverse, kept, by_out):
    weight, before, *steps = kept
    turned = weight.T

    def cell(by_h, given):
        above, h, r, z, n, state_n = given
        by_h += above
        by_n = by_h * (1 - z) * (1 - n * n)
        by_z = by_h * (h - n) * z * (1 - z)
        by_r = by_n * state_n * r * (1 - r)
        by_state = jnp.concatenate([by_r, by_z, by_n * r], -1)
        return by_h * z + by_state @ turned, (jnp.concatenate([by_r, by_z, by_n], -1), by_state)

    zeros = jnp.zeros_like(before[0])
    given = (by_out, before, *steps)
    _, (by_input, by_state) = lax.scan(cell, zeros, given, reverse=not reverse)
    rows = by_state.reshape(-1, by_state.shape[-1])
    return by_input, before.reshape(-1, before.shape[-1]).T @ rows, column_sums(rows)


gated.defvjp(_gated_forward, _gated_backward)


def gru(
    x: jax.Array, by_input: jax.Array, by_state: jax.Array, bias1: jax.Array, bias2: jax.Array, reverse: bool
) -> jax.Array:
    """As `lstm`; the third gate's second bias is inside of its product."""
    return gated(dense(x, by_input, bias1), by_state, bias2, reverse)
