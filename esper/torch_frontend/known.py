"""Tensors whose values are known while a forward is traced: those it makes of Python numbers, and what follows.

Capture knows no values; but `torch.tensor([3, 2])` holds these whatever the inputs are, so that reading
them back (a length, a size, a branch on a constant) depends on no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.utils import _pytree as pytree

_LARGEST = 4096  # elements
_MAKERS = (torch.tensor, torch.as_tensor, torch.arange, torch.zeros, torch.ones, torch.full)
_READERS = tuple(getattr(torch.Tensor, n) for n in ("tolist", "item", "__int__", "__float__", "__bool__", "__index__"))
_FOLLOWED = frozenset(
    (
        *(torch.sort, torch.index_select, torch.argsort, torch.max, torch.min, torch.sum, torch.cumsum, torch.flip),
        *(torch.cat, torch.stack, torch.where, torch.any, torch.all, torch.triu, torch.tril, torch.logical_not),
        *(
            getattr(torch.Tensor, name)
            for name in (
                *("sort", "index_select", "argsort", "max", "min", "sum", "cumsum", "flip", "any", "all", "clamp"),
                *("to", "cpu", "long", "int", "float", "bool", "type_as", "__getitem__", "clone", "detach"),
                *("unsqueeze", "squeeze", "expand", "view", "reshape", "flatten", "transpose", "permute", "repeat"),
                *("add", "sub", "mul", "div", "neg", "abs", "masked_fill", "logical_not", "triu", "tril"),
                *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__floordiv__"),
                *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__invert__", "__and__", "__or__"),
                *("eq", "ne", "lt", "le", "gt", "ge"),
            )
        ),
    )
)
_SIZED = (torch.zeros, torch.ones, torch.empty, torch.full)


def known_values(tensor: Any) -> torch.Tensor | None:
    """The values of a tensor of a capture, None if they depend on data."""
    values, version = getattr(tensor, "_esper_values", (None, 0))
    return values if values is not None and version == tensor._version else None


def follow(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Calls `func`, and keeps what is known of its tensors."""
    if func in _READERS and known_values(args[0]) is not None:
        return _really(func, args, kwargs)
    if func in _SIZED:  # a size may be a tensor of no dimension
        args = pytree.tree_map(_as_number, args)
    out = func(*args, **kwargs)
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    # A symbolic size is no number yet: asking it for one would fix it.
    plain = not any(isinstance(leaf, torch.SymInt) for leaf in leaves)
    made = func in _MAKERS and not tensors
    followed = func in _FOLLOWED and tensors and all(known_values(tensor) is not None for tensor in tensors)
    if plain and (made or followed) and _is_small(out):
        _remember(out, _really(func, args, kwargs))
    return out


def _as_number(leaf: Any) -> Any:
    known = isinstance(leaf, torch.Tensor) and leaf.dim() == 0 and known_values(leaf) is not None
    return _really(torch.Tensor.item, (leaf,), {}) if known else leaf


def known_numbers(tensor: torch.Tensor) -> list[int] | None:
    """The elements of a tensor of whole numbers of a capture, None if they depend on data."""
    if known_values(tensor) is None:
        return None
    return _really(torch.Tensor.tolist, (tensor,), {})


def _really(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """`func` of the values themselves, outside of the capture."""
    with disable_proxy_modes_tracing(), unset_fake_temporarily(), torch.no_grad():
        args, kwargs = pytree.tree_map(
            lambda leaf: known_values(leaf) if isinstance(leaf, torch.Tensor) else leaf, (args, dict(kwargs))
        )
        return func(*args, **kwargs)


def _remember(out: Any, values: Any) -> None:
    for made, value in zip(pytree.tree_leaves(out), pytree.tree_leaves(values), strict=True):
        if isinstance(made, torch.Tensor):
            remember(made, value)


def _is_small(out: Any) -> bool:
    tensors = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    return all(tensor.numel() <= _LARGEST for tensor in tensors)


def remember(tensor: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Notes the values of `tensor`, which hold until it is written into."""
    tensor._esper_values = (values, tensor._version)  # pyright: ignore[reportAttributeAccessIssue]
    return tensor


def constant(values: list[int]) -> torch.Tensor:
    """An int64 tensor of a capture with these known values."""
    made = torch.tensor(values, dtype=torch.int64)
    with disable_proxy_modes_tracing(), unset_fake_temporarily():
        return remember(made, torch.tensor(values, dtype=torch.int64))
