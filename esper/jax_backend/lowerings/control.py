"""Control flow: operators that run Programs of their own."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from esper.jax_backend.registry import lowers


@lowers("higher_order.cond.default", bodies=True)
def cond(pred, true_fn, false_fn, operands=(), *, run, key=None):
    """cond(pred, true_fn, false_fn, operands)"""
    if isinstance(pred, bool):
        return run(true_fn if pred else false_fn, operands, key)
    branches = [lambda given, body=body: tuple(run(body, given, key)) for body in (true_fn, false_fn)]
    return lax.cond(jnp.reshape(pred, ()), *branches, tuple(operands))


@lowers("higher_order.map_impl.default", bodies=True)
def map_impl(f, xs, pos_args, *, run, key=None):
    """map_impl(f, xs, pos_args): `f` on each slice of `xs`"""
    return lax.map(lambda slices: tuple(run(f, [*slices, *pos_args], key)), tuple(xs))


@lowers("higher_order.scan.default", bodies=True)
def scan(combine_fn, init, xs, additional_inputs, *, run, key=None):
    """scan(combine_fn, init, xs, additional_inputs): the last carry, then every output stacked"""
    count = len(init)

    def step(carry, slices):
        made = run(combine_fn, [*carry, *slices, *additional_inputs], key)
        return tuple(made[:count]), tuple(made[count:])

    carry, stacked = lax.scan(step, tuple(init), tuple(xs))
    return (*carry, *stacked)


@lowers("higher_order.associative_scan.default", bodies=True)
def associative_scan(combine_fn, xs, additional_inputs=(), *, run, key=None):
    """associative_scan(combine_fn, xs, additional_inputs): along the first axis"""

    def combine(left, right):
        return jax.vmap(lambda one, other: tuple(run(combine_fn, [*one, *other, *additional_inputs], key)))(left, right)

    return lax.associative_scan(combine, tuple(xs))


@lowers("higher_order.while_loop.default", bodies=True)
def while_loop(cond_fn, body_fn, carried_inputs, additional_inputs, *, run, key=None):
    """while_loop(cond_fn, body_fn, carried_inputs, additional_inputs)"""

    def proceed(key, state, extra):
        (result,) = run(cond_fn, [*state, *extra], key)
        return jnp.reshape(result, ())

    def step(key, state, extra):
        made = run(body_fn, [*state, *extra], key)
        return [jnp.asarray(new, old.dtype) for new, old in zip(made, state, strict=True)]

    state = [jnp.asarray(value) for value in carried_inputs]
    return tuple(_while(proceed, step, key, state, [jnp.asarray(value) for value in additional_inputs]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _while(proceed, step, key, state, extra):
    return _counted(proceed, step, key, state, extra)[1]


def _counted(proceed, step, key, state, extra):
    """How many steps there were, and the last state."""
    return lax.while_loop(
        lambda now: proceed(key, now[1], extra),
        lambda now: (now[0] + 1, step(key, now[1], extra)),
        (jnp.int32(0), state),
    )


def _while_forward(proceed, step, key, state, extra):
    count, last = _counted(proceed, step, key, state, extra)
    return last, (count, key, state, extra)


def _while_backward(proceed, step, kept, cotangents):
    # The number of steps is not known, so the states are not kept: each is computed again from the first.
    count, key, start, extra = kept
    floating = [jnp.issubdtype(value.dtype, jnp.inexact) for value in (*start, *extra)]

    def back(now):
        place, by_state, by_extra = now
        state = lax.fori_loop(0, place, lambda _, held: step(key, held, extra), start)
        leaves = [*state, *extra]

        def floats_only(*given):
            values = iter(given)
            filled = [next(values) if real else leaf for real, leaf in zip(floating, leaves, strict=True)]
            return _floats(step(key, filled[: len(start)], filled[len(start) :]))

        _, pull = jax.vjp(floats_only, *_floats(leaves))
        found = pull(by_state)
        return (
            place - 1,
            list(found[: len(by_state)]),
            [a + b for a, b in zip(by_extra, found[len(by_state) :], strict=True)],
        )

    by_state = [ct for ct in cotangents if ct.dtype != jax.dtypes.float0]
    zeros = [jnp.zeros_like(value) for value in _floats(extra)]
    _, by_state, by_extra = lax.while_loop(lambda now: now[0] >= 0, back, (count - 1, by_state, zeros))
    found = iter([*by_state, *by_extra])
    grads = [
        next(found) if real else np.zeros(value.shape, jax.dtypes.float0)
        for real, value in zip(floating, (*start, *extra), strict=True)
    ]
    return None, grads[: len(start)], grads[len(start) :]


def _floats(values):
    return [value for value in values if jnp.issubdtype(value.dtype, jnp.inexact)]


_while.defvjp(_while_forward, _while_backward)
