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
    from esper.torch_frontend.hosted import Pull, Tensor, Tensors

Places = tuple[int, ...]
Body = Callable[[list[jax.Array], Any], tuple[list[jax.Array], Any]]
"""Takes arrays, and a tree of what is never differentiated; returns outputs, and a tree of what else comes out."""


class Programs:
    """The compiled programs of one function, by which of its arrays are differentiated, and which are guarded."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pullbacks: dict[tuple[Places, Places], Pullback] = {}

    def pullback(self, moving: Places, fixed: Places) -> Pullback:
        """The function of what moves, what is fixed and a tree of all the others, differentiated to the first.

        Outputs are those that have derivatives; the others come out beside them.
        """
        if (moving, fixed) not in self._pullbacks:
            self._pullbacks[moving, fixed] = Pullback(self._split(moving, fixed))
        return self._pullbacks[moving, fixed]

    def _split(self, moving: Places, fixed: Places) -> Callable[..., Any]:
        def run(moved: Sequence[jax.Array], held: Sequence[jax.Array], others: Any) -> tuple[list[jax.Array], Any]:
            loose, rest = others
            arrays = list(loose)
            for place, array in zip((*moving, *fixed), (*moved, *held), strict=True):
                arrays[place] = array
            outputs, more = self._body(arrays, rest)
            smooth = [jnp.issubdtype(output.dtype, jnp.inexact) for output in outputs]
            exact = [None if is_smooth else y for y, is_smooth in zip(outputs, smooth, strict=True)]
            return [y for y, is_smooth in zip(outputs, smooth, strict=True) if is_smooth], (exact, more)

        return run


@dataclass(frozen=True)
class Ready:
    """A call of a hosted module.

    Attributes:
        programs: What runs it.
        arrays: What torch holds: parameters and buffers first, then the inputs.
        tensors: Of each array the tensor that it is of; None: it is of none.
        guarded: Whether torch sees to it that a tensor does not change until the backward. Of what is not guarded, the
            backward is given copies.
        rest: What torch does not hold.
        finished: From the outputs and what else came out to torch's tensors.
        assembled: From these to the outputs in their containers.
        sound: From gradients by place to those that a loop can use.
    """

    programs: Programs
    arrays: Sequence[jax.Array]
    tensors: Tensors
    guarded: Sequence[bool]
    rest: Any
    finished: Callable[[list[jax.Array], Any], list[Tensor]]
    assembled: Callable[[Sequence[Tensor]], Any]
    sound: Callable[[dict[int, jax.Array]], dict[int, jax.Array]] = lambda slopes: slopes

    def values(self) -> list[Tensor]:
        """The outputs that are tensors."""
        smooth, more = self.programs.pullback((), ()).values([], [], (list(self.arrays), self.rest))
        return self._outputs(smooth, more)

    def forward(self, moving: Sequence[int]) -> tuple[list[Tensor], Pull]:
        """The outputs, and what turns their gradients into those of the arrays at these places."""
        from esper.torch_frontend.arrays import borrow

        fixed = [n for n, guarded in enumerate(self.guarded) if guarded and n not in set(moving)]
        pullback = self.programs.pullback(tuple(moving), tuple(fixed))
        moved, held = [self.arrays[n] for n in moving], [self.arrays[n] for n in fixed]
        loose = [None if n in {*moving, *fixed} else array for n, array in enumerate(self.arrays)]
        smooth, more, residuals = pullback.forward(moved, held, (loose, self.rest))
        like = [(array.shape, array.dtype) for array in smooth]
        exact = [array is not None for array in more[0]]

        def pull(slopes: Tensors) -> Tensors:
            counted = [slope for slope, is_exact in zip(slopes, exact, strict=True) if not is_exact]
            reached = frozenset[int]().union(
                *(r for r, s in zip(residuals.reach, counted, strict=True) if s is not None)
            )
            given = [_slope(slope, *kind) for slope, kind in zip(counted, like, strict=True)]
            found = [_turned(array) for array in pullback.backward(residuals, moved, held, given)]
            of_place = {place: found[n] for n, place in enumerate(moving) if n in reached}
            usable = jax.block_until_ready(self.sound(of_place))
            return [borrow(usable[place]) if place in usable else None for place in moving]

        return self._outputs(smooth, more), pull

    def assemble(self, outputs: Sequence[Tensor]) -> Any:
        """The outputs in their containers."""
        return self.assembled(outputs)

    def _outputs(self, smooth: list[jax.Array], more: Any) -> list[Tensor]:
        exact, more = more
        given = iter(smooth)
        arrays = [next(given) if array is None else array for array in exact]
        return self.finished(*jax.block_until_ready((arrays, more)))


def _slope(slope: Tensor | None, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """An output's gradient, as JAX has it."""
    from esper.torch_frontend.arrays import lend

    if slope is None:
        return jnp.zeros(shape, dtype)
    return _turned(on_memory_of(lend(slope, "a gradient", wide()))).astype(dtype)


def _turned(slope: jax.Array) -> jax.Array:
    """Between torch's gradients of complex values and JAX's, which are each other's conjugates."""
    return slope.conj() if jnp.iscomplexobj(slope) else slope
