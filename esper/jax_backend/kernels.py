"""Running a kernel by itself: one array in, one out."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from esper.jax_backend.evaluate import evaluate
from esper.jax_backend.interchange import constants, describe
from esper.jax_backend.source import ModuleSource
from esper.program import Signature, flatten


def kernel_output(
    source: ModuleSource, params: Mapping[str, jax.Array], fed: jax.Array, *, train: bool, key: jax.Array | None = None
) -> jax.Array:
    """What a kernel gives.

    Args:
        source: Where its Programs come from.
        params: Its parameters by torch name.
        fed: What it reads.
        train: Whether it works as in training.
        key: For kernels that draw.
    """
    _, tree = flatten(((fed,), {}))
    signature = Signature(tree, (describe(fed, fed, "the kernel's input"),), train)
    (made,), _ = evaluate(source.program(signature), params, {}, [fed], key, constants=constants(source))
    return made
