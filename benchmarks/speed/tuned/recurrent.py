"""An LSTM layer: the input's product before the scan, the weights' gradients as single products after it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.speed.tuned.products import dense

UNROLL = 4


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
