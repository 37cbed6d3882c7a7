"""What the contenders that are JAX share: compiled ahead of time, state donated from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks.speed.contenders.contender import DECAY, Contender, timed
from benchmarks.speed.workloads import Problem


def adamw(problem: Problem) -> optax.GradientTransformation:
    """The optimiser that all contenders use."""
    return optax.adamw(problem.workload.rate, weight_decay=DECAY)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A copy; JAX has no use for 64-bit integers."""
    array = tensor.detach().numpy()
    return jnp.array(array.astype(np.int32) if array.dtype == np.int64 else array)


def batch(problem: Problem) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """Inputs and labels."""
    return tuple(map(to_jax, problem.inputs)), to_jax(problem.labels)


def cross_entropy(logits: jax.Array, labels: jax.Array, axis: int = -1) -> jax.Array:
    """As most people write it."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis).mean()


def compiled(
    train: Callable[..., Any],
    infer: Callable[..., Any],
    net: Any,
    opt_state: Any,
    inputs: tuple[jax.Array, ...],
    labels: jax.Array,
    first_call: dict[str, float] | None = None,
) -> Contender:
    """Compiles both functions.

    Args:
        train: (net, opt_state, inputs, labels) to (net, opt_state, loss).
        infer: (net, inputs) to logits.
        net: Everything that the network is made of.
        opt_state: The optimiser's state.
        inputs: Of the batch.
        labels: Of the batch.
        first_call: Seconds spent already.
    """
    served = jax.tree.map(jnp.copy, net)
    traced, tracing = timed(lambda: jax.jit(train, donate_argnums=(0, 1)).trace(net, opt_state, inputs, labels))
    lowered, lowering = timed(traced.lower)
    program, compiling = timed(lowered.compile)
    server = jax.jit(infer).lower(served, inputs).compile()
    state = (net, opt_state)

    def step() -> tuple[float, float]:
        nonlocal state
        (*held, loss), seconds = timed(lambda: jax.block_until_ready(program(*state, inputs, labels)))
        state = tuple(held)
        return float(loss), seconds

    def serve() -> tuple[np.ndarray, float]:
        logits, seconds = timed(lambda: jax.block_until_ready(server(served, inputs)))
        return np.asarray(logits), seconds

    parts = {**(first_call or {}), "trace": tracing, "lower": lowering, "compile": compiling}
    return Contender(step=step, infer=serve, first_call=parts, memory=needed(program), program=program)


def needed(program: Any) -> float:
    """MiB of arguments, results, and temporaries of a compiled program; what is donated counts once."""
    sizes = program.memory_analysis()
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return (total - sizes.alias_size_in_bytes) / 2**20
