"""How far the host may run ahead of the device: enough to keep it busy, not so far that batches fill its memory."""

from __future__ import annotations

import jax

from esper.train.step import copied

STEPS = 8
"""The host is ahead by less than twice as many steps."""


class Ahead:
    """Is told of every step that was dispatched, and waits for one of long ago where that is not done yet."""

    def __init__(self, step: jax.Array) -> None:
        self._told, self._mark = 0, copied(step)

    def __call__(self, step: jax.Array) -> None:
        """A step was dispatched; `step` is what it made of the count of steps, which the next one consumes."""
        self._told += 1
        if self._told % STEPS == 0:
            earlier, self._mark = self._mark, copied(step)
            jax.block_until_ready(earlier)
