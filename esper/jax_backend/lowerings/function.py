"""Functions with a backward of their own, and values that keep another value's gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.registry import lowers


@lowers("esper.function.default", bodies=True)
def function(tensors, forward, backward, outputs, graded, *, run, key=None):
    """function(Tensor[] tensors, Program forward, Program backward, int outputs, int[] graded) -> Tensor[]"""

    @jax.custom_vjp
    def call(key, tensors):
        return run(forward, tensors, key)[:outputs]

    def call_forward(key, tensors):
        made = run(forward, tensors, key)
        return made[:outputs], (key, made[outputs:], tensors)

    def call_backward(kept, cotangents):
        key, residuals, tensors = kept
        floating = [ct for ct in cotangents if ct.dtype != jax.dtypes.float0]
        # Torch's convention for complex gradients is the conjugate of JAX's.
        given = [jnp.conj(ct) for ct in floating]
        gradients = dict(zip(graded, run(backward, [*residuals, *given], key), strict=True))
        return None, [_cotangent(gradients.get(place), tensor) for place, tensor in enumerate(tensors)]

    call.defvjp(call_forward, call_backward)
    return call(key, list(tensors))


def _cotangent(gradient, tensor):
    """`gradient` as JAX wants it; zeros where the backward gives none."""
    if not jnp.issubdtype(tensor.dtype, jnp.inexact):
        return jnp.zeros(tensor.shape, jax.dtypes.float0)
    return jnp.zeros_like(tensor) if gradient is None else jnp.conj(gradient)


@jax.custom_jvp
def _keep_gradient(before, after):
    return after


@_keep_gradient.defjvp
def _keep_gradient_jvp(primals, tangents):
    return primals[1], tangents[0]


@lowers("esper.keep_gradient.default")
def keep_gradient(before, after):
    """keep_gradient(Tensor before, Tensor after) -> Tensor"""
    return _keep_gradient(before, after)
