"""Running a Program: walk the nodes, apply each one's lowering. Pure, and traceable by every JAX transformation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, repeat
from typing import Any

import jax

import esper.jax_backend.lowerings  # noqa: F401  fills the registry
from esper.errors import MissingKeyError, RefusedError
from esper.jax_backend.promotion import dtype_of
from esper.jax_backend.registry import check_lowered, draws, lowering
from esper.program import DType, Node, Program, Ref

Grafts = Mapping[str, Callable[..., jax.Array]]


def evaluate(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[jax.Array],
    key: jax.Array | None = None,
    *,
    constants: Mapping[str, jax.Array] | None = None,
    grafts: Grafts | None = None,
) -> tuple[list[Any], dict[str, jax.Array]]:
    """Runs `program`.

    Args:
        program: What to run.
        params: Arrays by torch name, at least those the Program reads.
        buffers: Likewise; frozen parameters may stand here too.
        inputs: The user's tensors in leaf order.
        key: Needed if the Program draws random numbers; each drawing node folds its own place into it.
        constants: Lifted constants by name.
        grafts: For each layer with kernels, a function of the layer's (output, input, key).

    Returns:
        The outputs in leaf order (`program.out_tree` is their structure), and all buffers, updated.

    Raises:
        UnsupportedOpError: Listing every operator without a lowering.
        MissingKeyError: The Program draws and there is no key.
    """
    check_lowered(program)
    check_key(program, key)
    return _evaluate(program, params, buffers, inputs, key, constants or {}, grafts or {})


def _evaluate(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[jax.Array],
    key: jax.Array | None,
    constants: Mapping[str, jax.Array],
    grafts: Grafts,
) -> tuple[list[Any], dict[str, jax.Array]]:
    values = _start(program, params, buffers, inputs, constants)
    last_use = _last_uses(program)
    keys = _keys(key)
    for place, node in enumerate(program.nodes):
        _run(node, values, keys, grafts)
        for name in last_use.get(place, ()):
            del values[name]  # long chains of dead intermediates would otherwise live until the end
    outputs, updated = [], dict(buffers)
    for spec in program.outputs:
        value = resolve(spec.value, values)
        if spec.kind == "buffer":
            updated[spec.target] = value
        else:
            outputs.append(value)
    return outputs, updated


def check_key(program: Program, key: jax.Array | None) -> None:
    """Raises MissingKeyError, naming every site, if `program` draws and there is no key."""
    if key is not None:
        return
    sites = [f"  {node.op}  {node.scope or '(root)'}  ({node.source})" for node in program.walk() if draws(node)]
    if sites:
        raise MissingKeyError(
            "this forward draws random numbers, so it needs `key=jax.random.key(...)`; it draws here:\n"
            + "\n".join(sites)
        )


def _start(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[jax.Array],
    constants: Mapping[str, jax.Array],
) -> dict[str, Any]:
    given = iter(inputs)
    values: dict[str, Any] = {}
    for spec in program.inputs:
        if spec.kind == "user":
            values[spec.name] = next(given)
        elif spec.kind == "constant":
            values[spec.name] = constants[spec.target]
        else:
            values[spec.name] = params[spec.target] if spec.target in params else buffers[spec.target]
    return values


def _keys(key: jax.Array | None) -> tuple[Iterator[jax.Array | None], Iterator[jax.Array | None]]:
    """Keys for the drawing nodes and for the grafts, in order: adding seeds leaves the host's masks as they are."""
    if key is None:
        return repeat(None), repeat(None)
    kernels = jax.random.fold_in(key, 2**31)
    return (jax.random.fold_in(key, i) for i in count()), (jax.random.fold_in(kernels, i) for i in count())


def _run(node: Node, values: dict[str, Any], keys: tuple[Iterator[Any], Iterator[Any]], grafts: Grafts) -> None:
    found = lowering(node.op)
    extra: dict[str, Any] = {}
    if found.draws_at(node):
        extra["key"] = next(keys[0])
    if found.grafts:
        extra |= {"grafts": grafts, "key": next(keys[1])}
    if found.bodies:
        extra["run"] = partial(_run_body, grafts=grafts)
    with jax.named_scope(node.scope or "root"):
        try:
            kwargs = {name: resolve(value, values) for name, value in node.kwargs}
            made = found.rule(*resolve(node.args, values), **kwargs, **extra)
        except RefusedError as error:  # the rule knows why, the node knows where
            raise RefusedError(f"{node.op} at {node.scope or '(root)'} ({node.source}): {error}") from None
    if node.multiple:
        values.update(zip(node.outputs, made, strict=True))
    elif node.outputs:
        values[node.outputs[0]] = made


def _run_body(program: Program, inputs: Sequence[Any], key: jax.Array | None = None, *, grafts: Grafts) -> list[Any]:
    return _evaluate(program, {}, {}, inputs, key, {}, grafts)[0]


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """A node's argument with its Refs and dtypes replaced by what they stand for."""
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, tuple):
        return tuple(resolve(item, values) for item in value)
    return dtype_of(value.name) if isinstance(value, DType) else value


def _last_uses(program: Program) -> dict[int, list[str]]:
    """For each node's place, the values nobody reads after it."""
    kept = {spec.value.name for spec in program.outputs if isinstance(spec.value, Ref)}
    last: dict[str, int] = {}
    for place, node in enumerate(program.nodes):
        for name in node.outputs:
            last[name] = place
        for ref in node.refs():
            last[ref.name] = place
    freed: dict[int, list[str]] = {}
    for name, place in last.items():
        if name not in kept:
            freed.setdefault(place, []).append(name)
    return freed
