"""`shard`, and what goes with it: batches and optimiser states on the devices of a sharded model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh

from esper.errors import ShardingError
from esper.jax_backend.devices import put
from esper.jax_backend.interchange import is_traced
from esper.jax_backend.model import MorphableModel
from esper.sharding.placement import Placement
from esper.sharding.rules import Rules, rules_of

State = TypeVar("State")
Batch = TypeVar("Batch")


def shard(model: MorphableModel, mesh: Mesh, rules: Any, *, batch: str | Sequence[str] | None = None) -> MorphableModel:
    """The model on several devices: each array placed on the mesh as the rules say; the outputs are the same.

    Args:
        model: A wrapped model; it is left as it is. One that is sharded already is placed anew.
        mesh: A `jax.sharding.Mesh`, with whatever axes. Explicit axes, which `jax.make_mesh` makes unless told
            otherwise, are taken as Auto ones.
        rules: A preset of `esper.sharding` (`data_parallel`, `fsdp`, `tensor_parallel`); a mapping from regular
            expressions on torch's parameter and buffer names to `PartitionSpec`s (None: not split), or pairs of these;
            or a sequence of presets and pairs. Of the expressions the first that is found in a name decides; where
            there is none, all presets together; an array that no rule is about lies on every device.
        batch: The axes that the first dimension of inputs is split over; None: those that the presets say.

    Raises:
        ShardingError: An axis that the mesh lacks, an expression that is found in no name, a spec that does not fit
            its array; all of them at once. Or processes that wrapped different values.

    Example:
        >>> import esper, jax, torch
        >>> from esper.sharding import data_parallel
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> model = esper.shard(esper.wrap(torch.nn.Linear(3, 2)), mesh, data_parallel("data"))
        >>> model.params["host"]["weight"].sharding.mesh.axis_names
        ('data',)
    """
    if not isinstance(mesh, Mesh):
        raise ShardingError(
            f"shard takes a jax.sharding.Mesh, such as jax.make_mesh gives, not a {type(mesh).__name__}"
        )
    if is_traced(model.seeds.lifecycle):
        raise ShardingError("shard places arrays, so it is called between steps, not inside jax.jit")
    found = rules_of(rules)
    axes = found.batch if batch is None else (batch,) if isinstance(batch, str) else tuple(batch)
    automatic = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    placement = Placement(automatic, found, axes)
    _check(model, placement)
    if not placement.everywhere.is_fully_addressable:
        _check_same(model)
    return placement.placed(model.replace(structure=replace(model.structure, placement=placement)))


def placement_of(model: MorphableModel) -> Placement:
    """Where the model's arrays lie.

    Raises:
        ShardingError: It is not sharded.
    """
    placement = model.structure.placement
    if not isinstance(placement, Placement):
        raise ShardingError("the model is not sharded: give it to esper.shard(model, mesh, rules) first")
    return placement


def place_batch(batch: Batch, model: MorphableModel) -> Batch:
    """A batch, arrays with the examples first, split over the devices of a sharded model.

    Needless for results: a step splits whatever it is given. Of numpy's arrays each device gets its part only, where a
    step would take them through one device. Every process gives the whole batch.

    Raises:
        ShardingError: The model is not sharded.
    """
    placement = placement_of(model)

    def placed(leaf: Any) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return put(array, placement.batches(array.shape[0] if array.ndim else 1))

    return jax.tree.map(placed, batch)


def place_local_batch(batch: Batch, model: MorphableModel) -> Batch:
    """A batch of which every process has a part of its own, as one.

    Args:
        batch: This process's examples, in arrays with the examples first; as many in every process. In the order of the
            processes along the mesh they are the batch.
        model: A sharded model.

    Raises:
        ShardingError: The model is not sharded, its inputs are not split, or not into equal parts.
    """
    placement = placement_of(model)
    if not placement.batch:
        raise ShardingError("the model's inputs are not split: shard it with a preset that splits them, or with batch=")

    def placed(leaf: Any) -> jax.Array:
        sharding, part = placement.batches(), np.asarray(leaf)
        try:
            return jax.make_array_from_process_local_data(sharding, part)
        except ValueError as error:
            raise ShardingError(
                f"a process's part of shape {list(part.shape)} cannot be split over {placement.batch}: {error}"
            ) from error

    return jax.tree.map(placed, batch)


def place_state(opt_state: State, model: MorphableModel) -> State:
    """An optimiser's state where the model's parameters are: what is shaped like one lies like it, the rest everywhere.

    `tx.init(model.params)`, called as it is, has all but step counts there already, and then this saves the second step
    a compile. A state from elsewhere, or from `jax.jit(tx.init)`, which places nothing, is moved.

    Raises:
        ShardingError: The model is not sharded.
    """
    placement = placement_of(model)
    params = placement.shardings(model).params
    shapes = jax.tree.map(jnp.shape, model.params, is_leaf=lambda node: hasattr(node, "shape"))

    def placed(path: Any, leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        steps = [_step(key) for key in path]
        table, known = _table(params, steps), _table(shapes, steps)
        name = steps[-1] if steps else None
        is_like = name in table and known[name] == jnp.shape(leaf)
        return put(leaf, table[name] if is_like else placement.everywhere)

    return jax.tree_util.tree_map_with_path(placed, opt_state)


def _table(params: Any, steps: list[Any]) -> dict[Any, Any]:
    """The part of the parameters that a place in a state is about: a kernel's, or the host's."""
    for layer, seed in pairwise(steps):
        held = params["kernels"].get(layer) if isinstance(layer, str) else None
        if held and seed in held:
            return held[seed]
    return params["host"]


def _step(key: Any) -> Any:
    return next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind))


def _check(model: MorphableModel, placement: Placement) -> None:
    known, rules = placement.mesh.axis_names, placement.rules
    strange = [axis for axis in dict.fromkeys((*rules.axes, *placement.batch)) if axis not in known]
    if strange:
        raise ShardingError(f"the mesh has no axis {', '.join(map(repr, strange))}; its axes are {', '.join(known)}")
    arrays = {**model.params["host"], **model.buffers}
    problems = [*_unmatched(rules, list(arrays)), *_misfits(arrays, placement)]
    if problems:
        rows = "\n".join(f"  {problem}" for problem in problems)
        raise ShardingError(
            f"{len(problems)} problem(s) with the rules:\n{rows}\n"
            "Give a spec that fits, a narrower expression, or None for a whole copy everywhere; the first one found in "
            "a name decides",
            problems,
        )


def _unmatched(rules: Rules, names: list[str]) -> Iterator[str]:
    for pattern in rules.patterns:
        # One about kernels waits for those to come.
        if "grown" not in pattern.regex and not any(re.search(pattern.regex, name) for name in names):
            yield f"{pattern} is found in no name; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"


def _misfits(arrays: dict[str, jax.Array], placement: Placement) -> Iterator[str]:
    for name, array in arrays.items():
        pattern = placement.rules.pattern(name)
        for problem in pattern.problems(array.shape, placement.mesh.shape) if pattern else ():
            yield f"{name} {list(array.shape)} by {pattern}: {problem}"


def _check_same(model: MorphableModel) -> None:
    """Every process must have wrapped the same values; what one holds of an array is not compared later."""
    arrays = {**model.params["host"], **model.buffers}
    local = {name: array for name, array in sorted(arrays.items()) if array.is_fully_addressable}
    sums = np.asarray([crc32(np.ascontiguousarray(array).tobytes()) for array in local.values()], np.uint32)
    everyone = multihost_utils.process_allgather(sums)
    differ = [name for name, seen in zip(local, everyone.T, strict=True) if len(set(seen.tolist())) > 1]
    if differ:
        raise ShardingError(
            f"the processes wrapped different values of {', '.join(differ[:5])}{', ...' if len(differ) > 5 else ''}: "
            "give torch the same seed in each before the module is made, or load the same file"
        )
