"""A call that has not run: torch's tensors as arrays, the program for them, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from esper.jax_backend.interchange import on_memory_of, wide
from esper.jax_backend.pullback import Pullback

if TYPE_CHECKING:
    import torch

Places = tuple[int, ...]
Body = Callable[[list[jax.Array], Any], tuple[list[jax.Array], Any]]
"""Takes arrays, and a tree of what is never differentiated; returns outputs, and a tree of what else comes out."""


class Programs:
    """The compiled programs of one function, by which of its arrays are differentiated."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pullbacks: dict[Places, Pullback] = {}

    def pullback(self, moving: Places) -> Pullback:
        """The function differentiated to the arrays at these places; outputs are those that have derivatives."""
        if moving not in self._pullbacks:
            self._pullbacks[moving] = Pullback(self._split(moving))
        return self._pullbacks[moving]

    def _split(self, moving: Places) -> Callable[..., Any]:
        def run(moved: Sequence[jax.Array], fixed: Any) -> tuple[list[jax.Array], Any]:
            held, rest = fixed
            arrays = list(held)
            for place, array in zip(moving, moved, strict=True):
                arrays[place] = array
            outputs, more = self._body(arrays, rest)
            smooth = [jnp.issubdtype(output.dtype, jnp.inexact) for output in outputs]
            others = [None if is_smooth else y for y, is_smooth in zip(outputs, smooth, strict=True)]
            return [y for y, is_smooth in zip(outputs, smooth, strict=True) if is_smooth], (others, more)

        return run


@dataclass(frozen=True)
class Ready:
    """A call of a hosted module.

    Attributes:
        programs: What runs it.
        arrays: What torch holds: parameters and buffers first, then the inputs.
        rest: What torch does not.
        finished: From the outputs and what else came out to torch's tensors.
        assembled: From these to the outputs in their containers.
    """

    programs: Programs
    arrays: Sequence[jax.Array]
    rest: Any
    finished: Callable[[list[jax.Array], Any], list[torch.Tensor]]
    assembled: Callable[[Sequence[torch.Tensor]], Any]

    def values(self) -> list[torch.Tensor]:
        """The outputs that are tensors."""
        smooth, more = self.programs.pullback(()).values([], (list(self.arrays), self.rest))
        return self._outputs(smooth, more)

    def forward(self, moving: Sequence[int]) -> tuple[list[torch.Tensor], Callable[..., list[torch.Tensor]]]:
        """The outputs, and what turns their gradients into those of the arrays at these places."""
        from esper.torch_frontend.arrays import borrow, lend

        pullback = self.programs.pullback(tuple(moving))
        moved = [self.arrays[place] for place in moving]
        held = [None if place in moving else array for place, array in enumerate(self.arrays)]
        smooth, more, residuals = pullback.forward(moved, (held, self.rest))
        dtypes = [array.dtype for array in smooth]

        def pull(slopes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
            taken = [on_memory_of(lend(slope, "a gradient", wide())) for slope in slopes if _is_smooth(slope)]
            given = [slope.astype(dtype) for slope, dtype in zip(taken, dtypes, strict=True)]
            found = pullback.backward(residuals, moved, (held, self.rest), given)
            return [borrow(array) for array in jax.block_until_ready(found)]

        return self._outputs(smooth, more), pull

    def assemble(self, outputs: Sequence[torch.Tensor]) -> Any:
        """The outputs in their containers."""
        return self.assembled(outputs)

    def _outputs(self, smooth: list[jax.Array], more: Any) -> list[torch.Tensor]:
        others, more = more
        given = iter(smooth)
        arrays = [next(given) if array is None else array for array in others]
        return self.finished(*jax.block_until_ready((arrays, more)))


def _is_smooth(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
