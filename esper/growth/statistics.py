"""Streaming statistics of layers: one scan over batches that keeps small moments and nothing of the data's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from esper.errors import ArgumentError, SeedError, UnknownLayerError
from esper.growth.moments import Moments, Tap
from esper.growth.rows import check_served
from esper.jax_backend.devices import fetched
from esper.jax_backend.model import MorphableModel
from esper.jax_backend.source import Structure
from esper.program import GRAFT, LayerSite, Program

StatisticsLoss = Callable[..., jax.Array]
"""A `BatchLoss`, from a model and a batch to the batch's mean loss; or, for a pass with a key, of a key too."""

# Bodies whose gradient by what they close over is that of plain JAX. A loop of unknown length and a function with
# its own backward have a rule of their own, and a derivative inside the forward runs its body a second time.
_TRANSPARENT = ("higher_order.cond.default", "higher_order.map_impl.default", "higher_order.scan.default")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Moments of a layer over some data, in float64 for the small linear algebra that follows.

    x is a row of the layer's input, g the gradient of the loss of the row's example by the layer's output, with
    kernels. A linear layer on [examples, features] has a row for each example; on more axes, or called several
    times, more; a convolution has one for each place, and its x is a patch [in_channels, *kernel_size].

    Attributes:
        site: The layer.
        examples: How many examples were seen.
        rows: How many rows.
        second: Sum of [x; 1] [x; 1]^T.
        cross: Sum of [x; 1] g^T.
        gradient: Sum of g g^T.
    """

    site: LayerSite
    examples: int
    rows: int
    second: Float[np.ndarray, "in+1 in+1"]
    cross: Float[np.ndarray, "in+1 out"]
    gradient: Float[np.ndarray, "out out"]


def layer_statistics(
    loss: StatisticsLoss, model: MorphableModel, batches: Any, *, layers: Sequence[str], key: jax.Array | None = None
) -> dict[str, Statistics]:
    """Statistics of some layers, over all batches, in one compiled pass.

    Args:
        loss: A module-level function, so that the compiled pass is found again; from a model and a batch to the
            mean of its examples' losses. It decides on training mode: `model.apply(x, train=True, key=key)`.
        model: The model as it is, its live kernels and alphas included. Nothing of it moves.
        batches: A pytree of arrays with leading axes [batches, examples].
        layers: Names of layers.
        key: Given, the loss is called as `loss(model, batch, key)`, with another key for each batch.

    Returns:
        {layer: its Statistics}.

    Raises:
        UnknownLayerError: No such layer.
        ArgumentError: Batches without the two leading axes.
        SeedError: A layer that has no rows, that this loss does not reach or that cannot be read where it is called.

    Example:
        >>> seen = layer_statistics(loss, model, batches, layers=["0", "2"])  # doctest: +SKIP
        >>> seen["0"].second.shape  # doctest: +SKIP
        (785, 785)
    """
    taps = {name: Tap.on(_site(model.structure, name), examples_of(batches)) for name in layers}
    return observe(loss, model, batches, taps, key)


def observe(
    loss: StatisticsLoss, model: MorphableModel, batches: Any, taps: Mapping[str, Tap], key: jax.Array | None = None
) -> dict[str, Statistics]:
    """`layer_statistics` of what these taps look at."""
    count, examples = _leading(batches)
    model = model.replace(taps=dict(taps))
    keys = None if key is None else jax.random.split(key, count)
    _check_reached(loss, model, batches, key)
    found = fetched(_gathered(loss, model, batches, keys))
    return {name: _statistics(taps[name].site, count * examples, moments) for name, moments in found.items()}


@partial(jax.jit, static_argnums=0)
def _gathered(loss: StatisticsLoss, model: MorphableModel, batches: Any, keys: Any) -> dict[str, Moments]:
    nothing = {name: tap.moments for name, tap in model.taps.items()}

    def step(total: dict[str, Moments], given: tuple[Any, ...]) -> tuple[dict[str, Moments], None]:
        found = jax.grad(lambda moments: _value(loss, _looking(model, moments), *given))(nothing)
        return jax.tree.map(jnp.add, total, found), None

    return jax.lax.scan(step, jax.tree.map(jnp.asarray, nothing), (batches, keys))[0]


def _looking(model: MorphableModel, moments: dict[str, Moments]) -> MorphableModel:
    return model.replace(taps={name: tap.replace(moments=moments[name]) for name, tap in model.taps.items()})


def _value(loss: StatisticsLoss, model: MorphableModel, batch: Any, key: Any) -> jax.Array:
    return loss(model, batch) if key is None else loss(model, batch, key)


def _statistics(site: LayerSite, examples: int, moments: Moments) -> Statistics:
    if not moments.rows:
        raise SeedError(
            f"layer {site.name!r}: no gradient of this loss reaches it, so there is nothing to fit a kernel to; "
            "give a loss that depends on it, or a layer that is not under no_grad or detached"
        )
    sums = [np.asarray(getattr(moments, name), np.float64) for name in ("second", "cross", "gradient")]
    if not all(np.isfinite(total).all() for total in sums):
        raise SeedError(f"layer {site.name!r}: its inputs or gradients are not finite on these batches")
    return Statistics(site, examples, int(moments.rows), *sums)


def _site(structure: Structure, layer: str) -> LayerSite:
    names = [site.name for site in structure.sites]
    if layer not in names:
        raise UnknownLayerError(layer, names)
    site = structure.sites[names.index(layer)]
    check_served(site)
    return site


def examples_of(batches: Any) -> int:
    """How many examples a batch has."""
    return _leading(batches)[1]


def _leading(batches: Any) -> tuple[int, int]:
    shapes = {leaf.shape[:2] for leaf in jax.tree.leaves(batches)}
    if len(shapes) != 1 or len(found := shapes.pop()) != 2 or 0 in found:
        raise ArgumentError(
            f"batches are arrays with the same two leading axes [batches, examples], and these have "
            f"{sorted(leaf.shape for leaf in jax.tree.leaves(batches))}"
        )
    return found


def _check_reached(loss: StatisticsLoss, model: MorphableModel, batches: Any, key: jax.Array | None) -> None:
    """The captures say where a layer is called, so they are made first; by shapes only, nothing runs."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batches)
    jax.eval_shape(partial(_value, loss), model.replace(taps={}), one, key)
    marks = [mark for program in model.structure.source.programs for mark in _marks(program, ())]
    for layer in model.taps:
        bodies = [inside for name, inside in marks if name == layer]
        if not bodies:
            raise SeedError(f"layer {layer!r} is never called as a module in this loss; choose the module that is")
        hidden = [op for inside in bodies for op in inside if op not in _TRANSPARENT]
        if hidden:
            raise SeedError(
                f"layer {layer!r} is called inside {hidden[0]}, where its gradient cannot be read; layers inside "
                f"{', '.join(_TRANSPARENT)} and inside checkpoints can"
            )


def _marks(program: Program, inside: tuple[str, ...]) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Every call of a layer, and the operators in whose bodies it stands."""
    for node in program.nodes:
        if node.op == GRAFT:
            yield node.args[2], inside
        for body in node.bodies():
            yield from _marks(body, (*inside, node.op))
