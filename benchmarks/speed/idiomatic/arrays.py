"""A torch module's parameters and statistics, named as there, in the orders that JAX users keep them in."""

from __future__ import annotations

import jax
from torch import nn

from benchmarks.speed.contenders.jitted import to_jax

Arrays = dict[str, jax.Array]


def converted(module: nn.Module) -> tuple[Arrays, Arrays]:
    """Parameters and statistics: kernels as (*space, in, out), linear weights as (in, out)."""
    params = {}
    for prefix, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            place = f"{prefix}.{name}" if prefix else name
            params[place] = _turned(part, name, to_jax(parameter))
    stats = {name: to_jax(buffer) for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return params, stats


def _turned(part: nn.Module, name: str, array: jax.Array) -> jax.Array:
    if isinstance(part, nn.ConvTranspose2d) and name == "weight":
        # JAX's transposed convolution does not flip its kernel.
        return array.transpose(2, 3, 0, 1)[::-1, ::-1]
    if isinstance(part, nn.Conv1d | nn.Conv2d) and name == "weight":
        return array.transpose(*range(2, array.ndim), 1, 0)
    linear = isinstance(part, nn.Linear) and name == "weight"
    return array.T if linear or (isinstance(part, nn.RNNBase) and array.ndim == 2) else array
