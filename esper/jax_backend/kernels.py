"""Running a kernel by itself: one array in, one out."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.interchange import constants, describe
from esper.jax_backend.layout import Value, lying
from esper.jax_backend.source import KernelSource, NativeKernel
from esper.program import Signature, flatten


def kernel_output(
    source: KernelSource, params: Mapping[str, jax.Array], fed: Value, *, train: bool, key: jax.Array | None = None
) -> jax.Array:
    """What a kernel gives.

    Args:
        source: What runs it.
        params: Its parameters by torch name.
        fed: What it reads.
        train: Whether it works as in training.
        key: For kernels that draw.
    """
    if isinstance(source, NativeKernel):
        return source.run(params, fed, train=train, key=key)
    (made,), _ = evaluate(source.program(one_tensor(fed, train)), params, {}, [fed], key, constants=constants(source))
    return made


def one_tensor(array: Value, train: bool) -> Signature:
    """The signature of a kernel's call."""
    _, tree = flatten(((lying(array)[0],), {}))
    return Signature(tree, (describe(array, array, "the kernel's input"),), train)
