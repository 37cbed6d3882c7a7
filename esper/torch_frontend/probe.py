"""Calls to compare a model with its unwrapped module on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from esper.errors import ArgumentError
from esper.program import Signature, Static, TensorType, unflatten

_DOUBLE = {"float32": "float64", "complex64": "complex128"}


def random_call(signature: Signature, *, double: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call of this signature: normal floats, integers 0 and 1 (valid for any embedding), true booleans.

    Args:
        signature: What the call looks like.
        double: Give floats in 64 bits, as a module of 64-bit parameters takes them.
    """
    generator = torch.Generator().manual_seed(0)
    leaves = [leaf.value if isinstance(leaf, Static) else _values(leaf, generator, double) for leaf in signature.leaves]
    return unflatten(signature.tree, leaves)


def _values(kind: TensorType, generator: torch.Generator, double: bool) -> torch.Tensor:
    dtype = getattr(torch, _DOUBLE.get(kind.dtype, kind.dtype) if double else kind.dtype)
    shape = [int(size) for size in kind.shape]
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=generator, dtype=wide).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def zeros(shape: Sequence[int], dtype: str) -> torch.Tensor:
    """A tensor of zeros.

    Raises:
        ArgumentError: torch has no dtype of that name.
    """
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ArgumentError(f"torch has no dtype {dtype}")
    return torch.zeros(list(shape), dtype=found)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """The module in evaluation mode, without gradients; its flags are put back afterwards."""
    flags = {sub: sub.training for sub in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield module
    finally:
        for sub, training in flags.items():
            sub.training = training
