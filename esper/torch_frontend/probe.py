"""Calls to compare a model with its unwrapped module on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from esper.errors import ArgumentError
from esper.program import Signature, Static, TensorType, Tree, flatten, unflatten
from esper.torch_frontend.grown import Branch

Place = tuple[str, int | None, str]
"""Layer, seed and name of a kernel's parameter; "", None and torch's name of any other."""

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


@dataclass(frozen=True)
class Slope:
    """A parameter and its gradient."""

    value: torch.Tensor
    slope: torch.Tensor


@dataclass(frozen=True)
class Slopes:
    """Gradients of a module's outputs.

    Attributes:
        params: By place; no entry for those that do not require gradients.
        inputs: Of floating-point inputs, by leaf.
    """

    params: Mapping[Place, Slope]
    inputs: Mapping[int, torch.Tensor]


def gradients(
    module: nn.Module, leaves: Sequence[Any], tree: Tree, cotangent: Callable[[int, Sequence[int]], np.ndarray]
) -> Slopes:
    """The gradients of a module in evaluation mode, of its floating-point outputs weighed and summed.

    Args:
        module: Any module.
        leaves: The leaves of its call.
        tree: Their containers.
        cotangent: What the output at a place among the floating-point ones, of this shape, is weighed by.
    """
    moving = {
        place: leaf.detach().clone().requires_grad_()
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
    }
    # Clones, because a forward may write into what it is given.
    args, kwargs = unflatten(tree, [moving[n].clone() if n in moving else leaf for n, leaf in enumerate(leaves)])
    params = {place: p for place, p in places(module) if p.requires_grad}
    with evaluating(module) as run, torch.enable_grad():
        outputs, _ = flatten(run(*args, **kwargs))
    floating = [y for y in outputs if isinstance(y, torch.Tensor) and y.is_floating_point()]
    weights = [torch.from_numpy(cotangent(place, y.shape)).to(y.dtype) for place, y in enumerate(floating)]
    both = [(y, weight) for y, weight in zip(floating, weights, strict=True) if y.requires_grad]
    wanted = [*params.values(), *moving.values()]
    found = (
        torch.autograd.grad(
            [y for y, _ in both], wanted, [weight for _, weight in both], allow_unused=True, materialize_grads=True
        )
        if both
        else [torch.zeros_like(value) for value in wanted]
    )
    slopes = dict(zip(params, found, strict=False))
    return Slopes(
        {place: Slope(params[place].detach(), slope) for place, slope in slopes.items()},
        dict(zip(moving, found[len(params) :], strict=True)),
    )


def places(module: nn.Module) -> Iterator[tuple[Place, nn.Parameter]]:
    """Parameters by layer, seed and name: those of branches by what the model calls them, the rest by torch's name."""
    branches = {path: branch for path, branch in module.named_modules() if isinstance(branch, Branch)}
    for name, parameter in module.named_parameters():
        path = next((path for path in branches if name.startswith(f"{path}.kernel.")), None)
        if path is None:
            yield ("", None, name), parameter
        else:
            layer = path.rpartition("grown.")[0].removesuffix(".")
            yield (layer, branches[path].seed, name.removeprefix(f"{path}.kernel.")), parameter


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
