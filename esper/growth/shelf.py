"""Plans from a library: trained kernels that could be loaded beside each layer."""

from __future__ import annotations

from collections.abc import Mapping

from esper.growth.policy import Plan
from esper.jax_backend.model import MorphableModel
from esper.library import Entry, Library


def with_drawn(
    model: MorphableModel, library: Library, planned: Mapping[str, tuple[Plan, ...]], most: int
) -> dict[str, tuple[Plan, ...]]:
    """The plans with those of validated kernels that fit before them, the best gain first.

    Args:
        model: The model.
        library: Where the kernels are.
        planned: What each layer could grow by anyway (`esper.growth.plans`); other layers do not grow.
        most: How many kernels are tried beside one layer at most.

    Raises:
        LibraryError: The library cannot be read.
    """
    return {
        layer: (*map(_plan, library.find_for(model, layer, lifecycle="validated", limit=most)), *own)
        for layer, own in planned.items()
    }


def _plan(entry: Entry) -> Plan:
    return Plan(
        blueprint=entry.blueprint,
        options=entry.options,
        parameters=entry.parameters,
        flops=entry.flops or 0,
        bytes=entry.bytes,
        blend=entry.blend,
        artifact=entry.digest,
    )
