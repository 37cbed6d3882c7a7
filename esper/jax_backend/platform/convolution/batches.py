"""Convolutions under `vmap` are larger convolutions: the mapped axis joins the batch, the channels or the groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive

from esper.jax_backend.platform.convolution.spec import Spec

Kind = Literal["x", "w", "y"]
"""An input, a weight, an output."""

_LETTERS = {"x": "ni", "w": "oi", "y": "no"}


def batched(
    primitive: Primitive, kinds: tuple[Kind, ...], values: Sequence[jax.Array], axes: Sequence[Any], *, spec: Spec
) -> tuple[jax.Array, int]:
    """The batching rule of a primitive of two operands, whose kinds and whose result's kind are given."""
    mapped: list[Kind] = [kind for kind, axis in zip(kinds, axes, strict=False) if axis is not None]
    count = next(value.shape[axis] for value, axis in zip(values, axes, strict=True) if axis is not None)
    letter = _joined(mapped, kinds)
    folded = [
        value if axis is None else _fold(jnp.moveaxis(value, axis, 0), *_place(kind, letter, spec))
        for kind, value, axis in zip(kinds, values, axes, strict=False)
    ]
    wide = spec._replace(groups=spec.groups * count) if letter == "g" else spec
    return _unfold(primitive.bind(*folded, spec=wide), count, *_place(kinds[2], letter, spec)), 0


def _joined(mapped: Sequence[Kind], kinds: tuple[Kind, ...]) -> str:
    """Which of batch, inputs, outputs and groups grows: what the mapped operand does not share with the other."""
    if len(mapped) == 2:
        return "g"
    (other,) = set(kinds[:2]) - set(mapped)
    (letter,) = set(_LETTERS[mapped[0]]) - set(_LETTERS[other])
    return letter


def _place(kind: Kind, letter: str, spec: Spec) -> tuple[int, int]:
    """The axis to join, and into how many groups it is cut, in each of which the mapped axis comes first."""
    if letter == "n":
        return 0, 1
    if kind == "w":
        return (1, 1) if letter == "i" else (0, spec.groups if letter == "o" else 1)
    return spec.channel_axis, 1 if letter == "g" else spec.groups


def _fold(value: jax.Array, axis: int, groups: int) -> jax.Array:
    """The first axis joined with the one that is `axis` without it."""
    count, *shape = value.shape
    size = shape[axis]
    cut = value.reshape(count, *shape[:axis], groups, size // groups, *shape[axis + 1 :])
    return jnp.moveaxis(cut, 0, axis + 1).reshape(*shape[:axis], count * size, *shape[axis + 1 :])


def _unfold(value: jax.Array, count: int, axis: int, groups: int) -> jax.Array:
    shape = value.shape
    size = shape[axis] // count
    cut = value.reshape(*shape[:axis], groups, count, size // groups, *shape[axis + 1 :])
    return jnp.moveaxis(cut, axis + 1, 0).reshape(count, *shape[:axis], size, *shape[axis + 1 :])
