"""Where to grow: what the best linear kernel beside a layer would gain, to first order, from gradients alone.

Singular values found and summed on the same data count noise as gain, most of it in wide layers. So the map is
fitted on some batches and its gain read from others, in turn. Nothing is trained and nothing germinates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from esper.errors import ArgumentError, SeedError, UnknownLayerError
from esper.growth.credit import BatchLoss
from esper.growth.fits import best_linear, expected
from esper.growth.rows import is_served, row_sizes
from esper.growth.statistics import Statistics, layer_statistics
from esper.jax_backend.model import MorphableModel

_FOLDS = 4


@dataclass(frozen=True)
class FirstOrder:
    """What a linear kernel beside a layer would gain.

    Attributes:
        gain: Decrease of the mean loss to first order, of having the kernel at alpha 1, on batches that it was not
            fitted to; negative: it would not generalise. NaN: see `reason`.
        stderr: Standard error over the folds; None: a single batch, on which the map is then fitted too.
        rank: Of the kernel.
        parameters: How many it would have.
        reason: Why there is no gain; empty: there is one.
    """

    gain: float
    stderr: float | None
    rank: int
    parameters: int
    reason: str = ""

    def __str__(self) -> str:
        return self.reason or (f"{self.gain:+.4g}" if self.stderr is None else f"{self.gain:+.4g} ± {self.stderr:.2g}")


def first_order_gains(
    loss: BatchLoss, model: MorphableModel, batches: Any, *, layers: Sequence[str], rank: int
) -> dict[str, FirstOrder]:
    """The first-order gain of some layers, comparable between them; one compiled pass over all of them.

    With x a row of a layer's input, one beside it, and g the gradient by its output, the map is the best of this
    rank for E[x (-g)^T] in the metric of E[x x^T], as `initialisers.tiny` has it. The batches are dealt into up to
    four folds of equal size (a remainder is left out); each is scored by the map that is fitted to the others.

    Args:
        loss: A module-level function, so that the compiled pass is found again.
        model: The model as it is.
        batches: A pytree of arrays with leading axes [batches, examples].
        layers: Names of layers. Those without rows (neither linear nor a convolution), or that this loss gives no
            finite gradient, get NaN and the reason.
        rank: Of the kernel.

    Raises:
        ArgumentError: A rank below 1.
        UnknownLayerError: No such layer.

    Example:
        >>> found = first_order_gains(loss, model, batches, layers=["0", "2"], rank=8)  # doctest: +SKIP
        >>> max(found, key=lambda layer: found[layer].gain)  # doctest: +SKIP
        '2'
    """
    if rank < 1:
        raise ArgumentError(f"a kernel has a rank of at least 1, not {rank}")
    sites = {site.name: site for site in model.structure.sites}
    unknown = [name for name in layers if name not in sites]
    if unknown:
        raise UnknownLayerError(unknown[0], list(sites))
    found = {
        name: _none(f"a {sites[name].kind} has no rows to fit a linear kernel to")
        for name in layers
        if not is_served(sites[name])
    }
    served = [name for name in layers if name not in found]
    found |= _over(loss, model, list(_folds(batches)), served, rank)
    return {name: found[name] for name in layers}


def _over(
    loss: BatchLoss, model: MorphableModel, folds: list[Any], layers: list[str], rank: int
) -> dict[str, FirstOrder]:
    if not layers:
        return {}
    try:
        seen = [layer_statistics(loss, model, fold, layers=layers) for fold in folds]
    except SeedError as error:
        if len(layers) == 1:
            return {layers[0]: _none(str(error))}
        # One that cannot be looked at is no reason to know nothing of the others.
        alone = [_over(loss, model, folds, [name], rank) for name in layers]
        return {name: score for found in alone for name, score in found.items()}
    return {name: _scored([fold[name] for fold in seen], rank) for name in layers}


def _folds(batches: Any) -> Iterable[Any]:
    count = jax.tree.leaves(batches)[0].shape[0]
    folds = min(count, _FOLDS)
    size = count // max(folds, 1)
    return [jax.tree.map(lambda leaf, k=k: leaf[k * size : (k + 1) * size], batches) for k in range(folds)]


def _scored(folds: list[Statistics], rank: int) -> FirstOrder:
    if len(folds) == 1:
        found = np.asarray([_gain(folds[0], folds[0], rank)])
    else:
        found = np.asarray([_gain(_sum(folds, but=k), fold, rank) for k, fold in enumerate(folds)])
    stderr = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    inputs, outputs = row_sizes(folds[0].site)
    return FirstOrder(float(found.mean()), stderr, rank, rank * (inputs + outputs))


def _gain(fit: Statistics, check: Statistics, rank: int) -> float:
    """-E[g^T M x] for each example of `check`, M being the best map of that rank on `fit`."""
    reads, writes = best_linear(*expected(fit, ones=True)).factors(rank)
    _, cross = expected(check, ones=True)
    # What tr(M E[x g^T]) is without the map itself: reads [rank, in], cross [in, out], writes [out, rank].
    return -check.rows / check.examples * float(np.trace(reads @ cross @ writes))


def _sum(folds: list[Statistics], *, but: int) -> Statistics:
    first, *others = [fold for place, fold in enumerate(folds) if place != but]
    for other in others:
        first = replace(
            first,
            examples=first.examples + other.examples,
            rows=first.rows + other.rows,
            second=first.second + other.second,
            cross=first.cross + other.cross,
            gradient=first.gradient + other.gradient,
        )
    return first


def _none(reason: str) -> FirstOrder:
    return FirstOrder(math.nan, None, 0, 0, reason)
