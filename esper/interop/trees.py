"""A model's arrays by the kinds that Flax tells apart, and a model with such arrays in the place of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp

from esper.errors import StateError, WrapError
from esper.jax_backend.model import MorphableModel

Tree = dict[str, Any]
"""{"host": ..., "kernels": ..., "buffers": ..., "seeds": ...}, each a tree of dicts with names for keys."""


def arrays_of(model: MorphableModel) -> Tree:
    """The model's arrays; seeds are numbered by text."""
    kernels = {
        layer: {str(seed): dict(held) for seed, held in seeds.items()}
        for layer, seeds in model.params["kernels"].items()
    }
    seeds = {field.name: getattr(model.seeds, field.name) for field in fields(model.seeds)}
    return {
        "host": dict(model.params["host"]),
        "kernels": kernels,
        "buffers": dict(model.buffers),
        "seeds": seeds if model.structure.sites else {},
    }


def copies_of(tree: Any) -> Any:
    """The arrays with memory of their own: a step that is given them to reuse leaves the model whole."""
    return jax.tree.map(jnp.copy, tree)


def with_arrays(model: MorphableModel, tree: Mapping[str, Any]) -> MorphableModel:
    """The model with these arrays; a kind that is absent stays as it is.

    Raises:
        StateError: Names, shapes or dtypes are not the model's.
    """
    own = arrays_of(model)
    for kind in tree.keys() & own.keys():
        _check(kind, own[kind], tree[kind])
    found = {**own, **tree}
    kernels = {
        layer: {int(seed): dict(held) for seed, held in seeds.items()} for layer, seeds in found["kernels"].items()
    }
    return model.replace(
        params={"host": dict(found["host"]), "kernels": kernels},
        buffers=dict(found["buffers"]),
        seeds=model.seeds.replace(**found["seeds"]),
    )


def changed(before: MorphableModel, after: MorphableModel) -> Tree:
    """The arrays that a call has moved, by kind; kinds that stay as they were are absent."""
    was, now = arrays_of(before), arrays_of(after)
    moved = {kind: {name: a for name, a in now[kind].items() if a is not was[kind][name]} for kind in _MOVING}
    return {kind: arrays for kind, arrays in moved.items() if arrays}


_MOVING = ("host", "buffers", "seeds")


def check_model(model: Any) -> None:
    """Checks that there is a model to put into Flax.

    Raises:
        WrapError: It is none.
    """
    if not isinstance(model, MorphableModel):
        raise WrapError(f"a wrapped model is expected, not a {type(model).__name__}: wrap the module with esper.wrap")


def _check(kind: str, own: Any, given: Any) -> None:
    wanted, found = (_described(tree) for tree in (own, given))
    wrong = [
        f"  {'/'.join(path)}: {found.get(path, 'none')}, where the model has {wanted.get(path, 'none')}"
        for path in sorted(wanted.keys() | found.keys())
        if wanted.get(path) != found.get(path)
    ]
    if wrong:
        raise StateError(
            f"the variables given for {kind!r} are not the model's:\n" + "\n".join(wrong) + "\n"
            "What has grown needs a module of its own, with its variables: to_linen(grown), or replace_model(grown) "
            "in nnx. For another dtype convert the torch module before it is wrapped."
        )


def _described(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Dtype and shape of every array, by path."""
    if not isinstance(tree, Mapping):
        return {path: f"{tree.dtype}{list(tree.shape)}"}
    return {at: told for name, of in tree.items() for at, told in _described(of, (*path, str(name))).items()}


def is_inexact(leaf: Any) -> bool:
    """Whether it is an array of numbers that have derivatives."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact)
