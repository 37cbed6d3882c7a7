"""The scan of a recurrent layer, with a backward of its own.

Autodiff of a scan keeps each step's intermediates one by one, and adds up the gradient of the recurrent weight step
by step. Here a step keeps its activations, the backward's scan makes the cotangents of the gates alone, and the
weight's gradient is one product over all steps and examples when it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.linear import linear
from esper.jax_backend.platform.bias import add_bias
from esper.jax_backend.platform.fence import fenced
from esper.jax_backend.platform.precision import contract

State = tuple[jax.Array, ...]
"""What goes from step to step, each (batch, size); the first is the output."""

_UNROLL = 4  # where no gradient is wanted


class Cell(NamedTuple):
    """A recurrent cell without its products.

    Attributes:
        advance: From the state, the input's share and the state's share of the gates to the new state and
            what `retreat` needs.
        retreat: From that and the new state's cotangents to those of the input's share, of the state's share (None:
            the same), and of the state, but for what reaches it through its share.
        alone: Whether a step is quicker if XLA compiles it by itself: a loop that also picks its part of the inputs
            may not be vectorised.
    """

    advance: Callable[[State, jax.Array, jax.Array], tuple[State, Any]]
    retreat: Callable[[Any, State], tuple[jax.Array, jax.Array | None, State]]
    alone: bool = False


class Given(NamedTuple):
    """What a layer's scan depends on.

    Attributes:
        inputs: The input's share of the gates, (steps, batch, gates).
        state: Before the first step.
        weight: (gates, size), as torch has it.
        bias: (gates,), if the state's share has one.
    """

    inputs: jax.Array
    state: State
    weight: jax.Array
    bias: jax.Array | None


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def scan(cell: Cell, reverse: bool, given: Given) -> tuple[jax.Array, State]:
    """The outputs (steps, batch, size), and the last state; `reverse` goes from the last step to the first."""
    return _scan(cell, reverse, given)


def _scan(cell: Cell, reverse: bool, given: Given) -> tuple[jax.Array, State]:
    unroll = _UNROLL if isinstance(given.inputs.shape[0], int) else 1
    return _steps(cell, reverse, given, _advanced, unroll)


def _advanced(cell: Cell, state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, jax.Array]:
    """The new state, and the output."""
    state = cell.advance(state, inputs, product)[0]
    return state, state[0]


def _kept(cell: Cell, state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, tuple[jax.Array, Any]]:
    """The new state; the output and what `retreat` needs."""
    state, kept = cell.advance(state, inputs, product)
    return state, (state[0], kept)


_ALONE = {function: fenced(function, static=(0,)) for function in (_advanced, _kept)}


def _steps(cell: Cell, reverse: bool, given: Given, advance: Callable[..., Any], unroll: int) -> tuple[Any, State]:
    weight = given.weight.T  # once, not in each step
    advance = _ALONE[advance] if cell.alone else advance

    def step(state: State, inputs: jax.Array) -> tuple[State, Any]:
        return advance(cell, state, inputs, share(state[0], weight, given.bias))

    final, made = lax.scan(step, given.state, given.inputs, reverse=reverse, unroll=unroll)
    return made, final


def share(hidden: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    """The state's share of the gates, with the weight (size, gates)."""
    product = contract(hidden, weight, ((hidden.ndim - 1,), (0,)))
    product = product if bias is None else add_bias(product, bias, product.ndim - 1)
    return product.astype(hidden.dtype)


@scan.defjvp
def _scan_jvp(cell: Cell, reverse: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (given,), (dot,) = primals, tangents
    (outs, kept), final = _steps(cell, reverse, given, _kept, 1)
    start = given.state[0][None]
    # Each step's hidden state before it.
    hidden = jnp.concatenate([outs, start])[1:] if reverse else jnp.concatenate([start, outs])[: outs.shape[0]]
    forward, back = partial(_tangent, cell, reverse), partial(_transposed, cell, reverse)
    return (outs, final), linear(forward, back, (given, kept, hidden), dot)


def _tangent(cell: Cell, reverse: bool, given: Any, of: Given) -> tuple[jax.Array, State]:
    return jax.jvp(partial(_scan, cell, reverse), (given[0],), (of,))[1]


def _transposed(cell: Cell, reverse: bool, given: Any, cotangents: tuple[jax.Array, State]) -> Given:
    (_, _, weight, bias), kept, hidden = given
    outs, final = cotangents

    def step(state: State, at: tuple[jax.Array, Any]) -> tuple[State, Any]:
        out, kept = at
        inputs, product, state = cell.retreat(kept, (state[0] + out, *state[1:]))
        reached = contract(inputs if product is None else product, weight, ((1,), (0,))).astype(out.dtype)
        return (state[0] + reached, *state[1:]), (inputs, product)

    start, (inputs, products) = lax.scan(step, final, (outs, kept), reverse=not reverse)
    products = inputs if products is None else products
    products, hidden = products.reshape(-1, weight.shape[0]), hidden.reshape(-1, weight.shape[1])
    of_weight = contract(products, hidden, ((0,), (0,))).astype(weight.dtype)
    of_bias = None if bias is None else _column_sum(products).astype(bias.dtype)
    return Given(inputs, start, of_weight, of_bias)


def _column_sum(x: jax.Array) -> jax.Array:
    return contract(jnp.ones(x.shape[0], x.dtype), x, ((0,), (0,)))


def _sigmoid(gates: jax.Array) -> jax.Array:
    """The sigmoid of all gates, also those that do not need it: in parts, XLA's CPU loops are not vectorised."""
    return lax.optimization_barrier(jax.nn.sigmoid(gates))


# The cells (aten/src/ATen/native/RNN.cpp).


def _lstm(state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, Any]:
    before = state[1]
    gates = inputs + product
    enter, forget, _, leave = jnp.split(_sigmoid(gates), 4, axis=-1)
    new = jnp.tanh(jnp.split(gates, 4, axis=-1)[2])
    after = forget * before + enter * new
    seen = jnp.tanh(after)
    return (leave * seen, after), (enter, forget, new, leave, before, seen)


def _lstm_back(kept: Any, cotangents: State) -> tuple[jax.Array, None, State]:
    enter, forget, new, leave, before, seen = kept
    out, after = cotangents
    after = after + out * leave * (1 - seen * seen)
    gates = jnp.concatenate(
        [
            after * new * enter * (1 - enter),
            after * before * forget * (1 - forget),
            after * enter * (1 - new * new),
            out * seen * leave * (1 - leave),
        ],
        axis=-1,
    )
    return gates, None, (jnp.zeros_like(out), after * forget)


def _gru(state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, Any]:
    (before,) = state
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (jnp.split(x, 3, axis=-1) for x in (inputs, product))
    reset, update = jax.nn.sigmoid(reset_x + reset_h), jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + reset * new_h)
    return (new + update * (before - new),), (reset, update, new, new_h, before)


def _gru_back(kept: Any, cotangents: State) -> tuple[jax.Array, jax.Array, State]:
    reset, update, new, new_h, before = kept
    (out,) = cotangents
    by_new = out * (1 - update) * (1 - new * new)
    by_update = out * (before - new) * update * (1 - update)
    by_reset = by_new * new_h * reset * (1 - reset)
    inputs = jnp.concatenate([by_reset, by_update, by_new], axis=-1)
    product = jnp.concatenate([by_reset, by_update, by_new * reset], axis=-1)
    return inputs, product, (out * update,)


def _tanh(state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, Any]:
    out = jnp.tanh(inputs + product)
    return (out,), out


def _tanh_back(kept: jax.Array, cotangents: State) -> tuple[jax.Array, None, State]:
    (out,) = cotangents
    gate = out * (1 - kept * kept)
    return gate, None, (jnp.zeros_like(out),)


def _relu(state: State, inputs: jax.Array, product: jax.Array) -> tuple[State, Any]:
    out = jax.nn.relu(inputs + product)
    return (out,), out


def _relu_back(kept: jax.Array, cotangents: State) -> tuple[jax.Array, None, State]:
    (out,) = cotangents
    gate = jnp.where(kept > 0, out, 0)
    return gate, None, (jnp.zeros_like(out),)


GRU, LSTM = Cell(_gru, _gru_back, alone=True), Cell(_lstm, _lstm_back)
RELU, TANH = Cell(_relu, _relu_back), Cell(_tanh, _tanh_back)
