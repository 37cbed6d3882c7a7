"""Derivatives that a forward takes of itself (torch/csrc/autograd/autograd.cpp)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.errors import RefusedError
from esper.jax_backend.registry import draws, lowers


@lowers("esper.grad.default", bodies=True)
def grad(body, inputs, free, cotangents, batched, *, run, key=None):
    """grad(Program body, Tensor[] inputs, Tensor[] free, Tensor[] cotangents, bool batched) -> Tensor[]"""
    drawing = [node for node in body.walk() if draws(node)]
    if drawing:
        raise RefusedError(
            f"a derivative inside the forward passes {drawing[0].op} ({drawing[0].source}), which would draw anew: "
            "draw before it, or put that part in evaluation mode"
        )
    outputs, pull = jax.vjp(lambda *given: run(body, [*given, *free]), *inputs)
    # Torch's convention for complex gradients is the conjugate of JAX's.
    given = [jnp.conj(ct).astype(out.dtype) for ct, out in zip(cotangents, outputs, strict=True)]
    found = jax.vmap(pull)(given) if batched else pull(given)
    return tuple(jnp.conj(gradient) for gradient in found)


@lowers("esper.fresh.default")
def fresh(tensor):
    """fresh(Tensor tensor) -> Tensor"""
    return tensor
