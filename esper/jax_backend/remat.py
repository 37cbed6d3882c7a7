"""Blocks whose insides a backward computes again, instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from esper.errors import ArgumentError

NOTHING = "nothing_saveable"

POLICIES = (NOTHING, "dots_saveable", "dots_with_no_batch_dims_saveable", "everything_saveable")
"""Names in `jax.checkpoint_policies` of what may be kept all the same."""


@dataclass(frozen=True)
class Remat:
    """What is computed again, static and hashable.

    Attributes:
        blocks: Dotted paths of modules, none within another; "" is the whole model.
        policy: What of their insides is kept all the same.
    """

    blocks: frozenset[str]
    policy: str = NOTHING

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ArgumentError(f"no remat_policy {self.policy!r}; there are: {', '.join(POLICIES)}")

    def block(self, scope: str) -> str:
        """A name for the block that a module lies in; empty: it lies in none."""
        if "" in self.blocks:
            return "(root)"
        parts = scope.split(".")
        heads = (".".join(parts[: length + 1]) for length in range(len(parts)))
        return next((head for head in heads if head in self.blocks), "")


def rematerialised(function: Callable[..., Any], policy: str) -> Callable[..., Any]:
    """The function, whose backward computes again what the policy does not keep."""
    return jax.checkpoint(function, policy=getattr(jax.checkpoint_policies, policy))
