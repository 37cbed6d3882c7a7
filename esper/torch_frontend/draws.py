"""`Tensor.random_`, whose operator's name a graph cannot spell (`from` is a word of Python), by way of `randint`."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch

from esper.errors import RefusedError
from esper.torch_frontend.places import user_line

_END = 2**63  # of int64
_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def random_(tensor: torch.Tensor, *bounds: int, generator: Any = None, **named: Any) -> torch.Tensor:
    """`tensor.random_()`, `random_(to)` and `random_(from, to)`: whole numbers from `from` to below `to`."""
    given = {**dict(zip(("from", "to") if len(bounds) == 2 else ("to",), bounds, strict=False)), **named}
    low, high = given.get("from", 0), given.get("to")
    placed = {} if generator is None else {"generator": generator}  # with None it is another operator
    if high is None:
        return tensor.copy_(_to_the_end(tensor, low, placed))
    low, high = _low(tensor.dtype, low), _high(tensor.dtype, high)
    return tensor.copy_(torch.randint(low, high, tensor.shape, **placed))


def _to_the_end(tensor: torch.Tensor, low: int, placed: Mapping[str, Any]) -> torch.Tensor:
    """Draws to the last number of the dtype; of a float, to the last below which it has every whole number."""
    shape = tensor.shape
    if tensor.dtype in _DIGITS:
        return torch.randint(_low(tensor.dtype, low), 2 ** _DIGITS[tensor.dtype] + 1, shape, **placed)
    if tensor.dtype is torch.bool:
        return torch.randint(low, 2, shape, **placed)
    end = torch.iinfo(tensor.dtype).max + 1
    if end < _END:
        return torch.randint(low, end, shape, **placed)
    if low < 0:
        raise RefusedError(f"random_ at {user_line()} draws more than 2**63 numbers: give it `to`")
    if low > 0:
        return torch.randint(0, end - low, shape, **placed) + low
    return torch.randint(0, end // 2, shape, **placed) * 2 + torch.randint(0, 2, shape, **placed)


def _low(dtype: torch.dtype, low: int) -> int:
    """The first bound, such that no draw is rounded to below it."""
    rounded, unit = _rounded(low + 1, dtype)
    return rounded + unit if rounded < low else low


def _high(dtype: torch.dtype, high: int) -> int:
    """The second bound, such that no draw is rounded to it."""
    rounded, unit = _rounded(high - 1, dtype)
    return rounded - unit if rounded >= high else high


def _rounded(number: int, dtype: torch.dtype) -> tuple[int, int]:
    """A whole number as the dtype has it, and the step from it to the next one."""
    unit = 1 << max(number.bit_length() - _DIGITS.get(dtype, 64), 0)
    return round(Fraction(number, unit)) * unit, unit
