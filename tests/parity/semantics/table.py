"""How a semantic case is written: a decorated module class, or a function that makes a Call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from parity.case import Call, Case

_CASES: dict[str, Case] = {}


def case(
    name: str, *inputs: Callable[[], Any], refuses: str = "", skip: str = "", **options: Any
) -> Callable[[Any], Any]:
    """Registers a case.

    Args:
        name: Says what of torch's semantics it shows.
        inputs: For a module class: functions that make its arguments, such as `floats(3, 4)`.
        refuses: Words of the refusal that is documented for it.
        skip: Why the case is not run.
        options: Further fields of `Call`.

    Example:
        >>> @case("detach in the middle", floats(3, 4))
        ... class Detached(nn.Module):
        ...     def forward(self, x):
        ...         return x.sin().detach() * x
    """

    def register(made: Any) -> Any:
        if name in _CASES:
            raise ValueError(f"two cases are called {name!r}")

        def build() -> Sequence[Call]:
            torch.manual_seed(0)
            if isinstance(made, type) and issubclass(made, nn.Module):
                return [Call(made(), tuple(give() for give in inputs), **options)]
            call = made()
            return [call] if isinstance(call, Call) else list(call)

        _CASES[name] = Case(name, build, skip=skip, refuses=refuses)
        return made

    return register


def cases() -> list[Case]:
    """Every case registered so far."""
    return list(_CASES.values())


def floats(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True) -> Callable[[], torch.Tensor]:
    """Normal draws, with a gradient to compare unless `grad` is False."""
    return lambda: torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def integers(high: int, *shape: int) -> Callable[[], torch.Tensor]:
    """Draws from 0 to `high` - 1."""
    return lambda: torch.randint(high, shape)


def given(*values: Any, grad: bool = True, dtype: torch.dtype | None = None) -> Callable[[], torch.Tensor]:
    """These very values."""

    def make() -> torch.Tensor:
        made = torch.tensor(values, dtype=dtype)
        return made.requires_grad_(grad and (made.is_floating_point() or made.is_complex()))

    return make
