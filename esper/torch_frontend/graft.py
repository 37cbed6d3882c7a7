"""The marker that shows, in a capture, where a KasminaLayer's kernels join: an identity operator.

Forward hooks put it after the target modules while a capture runs, so any kind of module works, reused
ones too, and the marker is an ordinary node with an ordinary lowering.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from esper.errors import RefusedError


@torch.library.custom_op("esper::graft", mutates_args=())
def graft(output: torch.Tensor, input: torch.Tensor, name: str) -> torch.Tensor:
    """The identity in `output`."""
    return output.clone()


@graft.register_fake
def _(output: torch.Tensor, input: torch.Tensor, name: str) -> torch.Tensor:
    return torch.empty_like(output)


# For models that differentiate inside their forward.
graft.register_autograd(lambda _, gradient: (gradient, None, None))


@contextmanager
def markers(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """While open, every call of one of `layers` leaves a marker with the layer's name."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(_hook(name), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def _hook(name: str) -> Any:
    def mark(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        if len(tensors) != 1 or not isinstance(output, torch.Tensor):
            raise RefusedError(
                f"layer {name!r} ({type(module).__name__}) cannot hold seeds: it takes {len(tensors)} tensors and "
                f"returns {type(output).__name__}; one tensor in and one out is needed. Leave it out of target_layers."
            )
        return torch.ops.esper.graft(output, tensors[0], name)

    return mark
