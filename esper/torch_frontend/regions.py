"""Where a forward runs under `torch.utils.checkpoint`: what stands between two marks is computed again in backward.

The checkpointed function runs in the open, as part of the capture. A mark before it names the region that begins, one
after it ends the region; `translate` turns them into the region of each node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.utils import checkpoint

REGION = "esper.region.default"


@torch.library.custom_op("esper::region", mutates_args=())
def region(name: str) -> None:
    """What follows belongs to the region `name`, or to none where it is empty."""


@region.register_fake
def _(name: str) -> None:
    return None


torch.fx.has_side_effect(torch.ops.esper.region.default)  # nothing reads a mark: it would be removed as dead


class _Regions:
    """The regions of one capture, numbered in order; of nested ones the outermost counts."""

    def __init__(self) -> None:
        self._count = self._depth = 0

    @contextmanager
    def new(self) -> Iterator[None]:
        """One checkpointed call, marked where a gradient could be taken of it and the graph can hold the marks."""
        transformed = torch._C._are_functorch_transforms_active()
        marked = self._depth == 0 and torch.is_grad_enabled() and not transformed
        if marked:
            torch.ops.esper.region(f"checkpoint_{self._count}")
            self._count += 1
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if marked:
                torch.ops.esper.region("")


@contextmanager
def checkpoints() -> Iterator[None]:
    """While open, checkpoints mark their function's operators instead of hiding them."""
    regions = _Regions()

    def reentrant(_cls: type, function: Callable[..., Any], _preserve_rng_state: bool, *args: Any) -> Any:
        with regions.new():
            return function(*args)

    def plain(
        _function: Callable[..., Any],
        _preserve_rng_state: bool = True,
        context_fn: Callable[[], Any] = checkpoint.noop_context_fn,
        *_args: Any,
        **_kwargs: Any,
    ) -> Iterator[None]:
        with _forward_context(context_fn), regions.new():
            yield

    with (
        patch.object(checkpoint.CheckpointFunction, "apply", classmethod(reentrant)),
        patch.object(checkpoint, "_checkpoint_without_reentrant_generator", plain),
    ):
        yield


def _forward_context(context_fn: Callable[[], Any]) -> Any:
    """What the user wants around the function; a choice of what to save changes no values and is left out."""
    forward, _ = context_fn()
    saves = isinstance(forward, checkpoint._CachingTorchDispatchMode)
    return forward if torch.is_grad_enabled() and not saves else nullcontext()
