"""Batches, one after the other: from any iterable of numpy, torch or JAX arrays to JAX arrays of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import ArgumentError
from esper.jax_backend.interchange import is_foreign, to_array
from esper.jax_backend.source import ModuleSource

Epochs = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Batches of an epoch, iterated anew for every one; or a function from an epoch's number to them."""


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Examples held on the device, as batches in another order each epoch; a smaller last batch is left out.

    Attributes:
        examples: A pytree of arrays with leading axis [examples].
        batch_size: Examples of a batch; all of them if there are fewer.
        key: What the orders are drawn from.
    """

    examples: Any
    batch_size: int
    key: jax.Array

    def __call__(self, epoch: int) -> Iterator[Any]:
        """The batches of an epoch."""
        count = leading(self.examples)
        size = min(self.batch_size, count)
        order = _order(self.key, epoch, count)
        for batch in range(count // size):
            yield _rows(size, self.examples, order, batch)


@partial(jax.jit, static_argnums=2)
def _order(key: jax.Array, epoch: int, count: int) -> jax.Array:
    return jax.random.permutation(jax.random.fold_in(key, epoch), count)


@partial(jax.jit, static_argnums=0)
def _rows(size: int, examples: Any, order: jax.Array, batch: int) -> Any:
    rows = jax.lax.dynamic_slice_in_dim(order, batch * size, size)
    return jax.tree.map(lambda leaf: leaf[rows], examples)


HELD_OUT_BATCHES = 16
"""Batches that held-out examples are measured in; standard errors are over these."""


@dataclass(frozen=True)
class _Fetched:
    """A batch that nobody has asked for yet, and where the stream will be when somebody has; or what went wrong."""

    batch: Any
    epoch: int
    index: int
    error: Exception | None = None


class Stream:
    """An endless iterator over epochs, which knows where it is and can start there again.

    It fetches one batch ahead at most, and where it is counts those that were asked for alone.
    """

    def __init__(self, data: Epochs, source: ModuleSource, epoch: int = 0, index: int = 0) -> None:
        self._data, self._source = data, source
        self.epoch, self.index = epoch, index
        self._batches = self._begin(epoch, index)
        self._ahead: _Fetched | None = None

    def __next__(self) -> Any:
        """The next batch, as JAX arrays.

        Raises:
            ArgumentError: There is none: an empty epoch, or an iterator that is used up.
        """
        batch = self.peek()
        assert self._ahead is not None
        self.epoch, self.index, self._ahead = self._ahead.epoch, self._ahead.index, None
        return batch

    def peek(self) -> Any:
        """The batch that comes next; it stays the next one. Raises as `next` does."""
        self.fetch()
        assert self._ahead is not None
        if self._ahead.error is not None:
            failed, self._ahead = self._ahead.error, None
            raise failed
        return self._ahead.batch

    def fetch(self) -> None:
        """Makes the next batch ready, while a device is at work on the last; errors wait until it is asked for."""
        if self._ahead is None:
            try:
                self._ahead = self._next()
            except Exception as error:  # raised again by `peek`, with its own traceback
                self._ahead = _Fetched(None, self.epoch, self.index, error)

    def _next(self) -> _Fetched:
        for batch in self._batches:
            return self._owned(batch, self.epoch, self.index)
        if self.index == 0:
            raise _no_batch(self.epoch)
        self._batches = self._begin(self.epoch + 1, 0)
        for batch in self._batches:
            return self._owned(batch, self.epoch + 1, 0)
        raise _no_batch(self.epoch + 1)

    def _owned(self, batch: Any, epoch: int, index: int) -> _Fetched:
        return _Fetched(own(self._source, batch, f"batch {index} of epoch {epoch}"), epoch, index + 1)

    def _begin(self, number: int, skipped: int) -> Iterator[Any]:
        epoch = self._data(number) if callable(self._data) else self._data
        if not isinstance(epoch, Iterable):
            raise ArgumentError(
                f"data are an iterable of batches, or a function from an epoch's number to one; this is a "
                f"{type(epoch).__name__}"
            )
        return islice(iter(epoch), skipped, None)


def _no_batch(epoch: int) -> ArgumentError:
    used_up = (
        "; an iterator gives its batches once: give a list, a data loader or a function from the epoch's number to "
    )
    return ArgumentError(f"the data have no batch in epoch {epoch}" + (f"{used_up}its batches" if epoch else ""))


def own(source: ModuleSource, batch: Any, place: str) -> Any:
    """A batch as a pytree of JAX arrays in memory of their own: loaders may use theirs again.

    Raises:
        ArgumentError: It holds something that is no array.
    """
    if isinstance(batch, Mapping):
        return {name: own(source, part, f"{place}, {name!r}") for name, part in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(own(source, part, f"{place}, part {at}") for at, part in enumerate(batch))
    if isinstance(batch, jax.Array):
        return batch
    given = batch if is_foreign(batch) else np.array(batch)
    if not is_foreign(given) and given.dtype.kind in "OSUmM":
        raise ArgumentError(f"{place}: a batch is made of arrays, and this is a {type(batch).__name__}")
    return to_array(source, given, place)


def is_examples(data: Any) -> bool:
    """Whether these are arrays of examples, such as (inputs, targets), and no list of batches."""
    parts = data.values() if isinstance(data, Mapping) else data if isinstance(data, tuple) else ()
    return bool(parts) and all(hasattr(part, "shape") and hasattr(part, "dtype") for part in parts)


def leading(examples: Any) -> int:
    """How many examples there are.

    Raises:
        ArgumentError: The arrays disagree, or there is none.
    """
    shapes = [leaf.shape for leaf in jax.tree.leaves(examples)]
    counts = {shape[0] if shape else 0 for shape in shapes}
    if len(counts) != 1 or 0 in counts:
        raise ArgumentError(f"examples are arrays of one leading size; these have the shapes {shapes}")
    return counts.pop()


def in_batches(examples: Any, count: int) -> Any:
    """Examples as `count` batches of equal size, [batches, examples]; fewer than `count` are left over."""
    total = leading(examples)
    count = max(1, min(count, total))
    size = total // count
    return jax.tree.map(lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), examples)


def held_out(source: ModuleSource, data: Any, count: int = HELD_OUT_BATCHES) -> Any:
    """Held-out data, examples or batches, as a pytree with leading axes [batches, examples]."""
    if is_examples(data):
        return in_batches(own(source, data, "the held-out data"), count)
    batches = data(0) if callable(data) else data
    if not isinstance(batches, Iterable):
        raise ArgumentError(f"held-out data are arrays of examples or batches, not a {type(data).__name__}")
    return together([own(source, batch, f"held-out batch {at}") for at, batch in enumerate(batches)])


def together(batches: Sequence[Any]) -> Any:
    """Batches of equal shapes as one pytree with leading axes [batches, examples]; a smaller last one is left out.

    Raises:
        ArgumentError: There is none, or they differ.
    """
    if not batches:
        raise ArgumentError("there is no held-out batch")
    sizes = [jax.tree.map(jnp.shape, batch) for batch in batches]
    whole = batches[:-1] if len(batches) > 1 and sizes[-1] != sizes[0] else batches
    if any(size != sizes[0] for size in sizes[: len(whole)]):
        raise ArgumentError("held-out batches have one shape, but for a smaller last one; these differ")
    return jax.tree.map(lambda *parts: jnp.stack(parts), *whole)
