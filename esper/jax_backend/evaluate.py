"""Running a Program: walk the nodes, apply each one's lowering. Pure, and traceable by every JAX transformation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import count, groupby, repeat
from typing import Any

import jax

import esper.jax_backend.lowerings  # noqa: F401  fills the registry
from esper.errors import MissingKeyError, RefusedError
from esper.jax_backend import layout
from esper.jax_backend.layout import ChannelsLast, Value, in_torch_order
from esper.jax_backend.promotion import dtype_of
from esper.jax_backend.registry import check_lowered, draws, lowering, may_draw
from esper.jax_backend.remat import NOTHING, Remat, rematerialised
from esper.program import DType, Node, Program, Ref

Grafts = Mapping[str, Callable[..., Value]]


def evaluate(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[Value],
    key: jax.Array | None = None,
    *,
    constants: Mapping[str, jax.Array] | None = None,
    grafts: Grafts | None = None,
    remat: Remat | None = None,
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
        remat: The blocks whose insides a backward computes again.

    Returns:
        The outputs in leaf order (`program.out_tree` is their structure), and all buffers, updated, with those
        parameters that the Program writes into.

    Raises:
        UnsupportedOpError: Listing every operator without a lowering.
        MissingKeyError: The Program draws and there is no key.
    """
    check_lowered(program)
    check_key(program, key)
    return _evaluate(program, params, buffers, inputs, key, constants or {}, grafts or {}, remat)


def _evaluate(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[Value],
    key: jax.Array | None,
    constants: Mapping[str, jax.Array],
    grafts: Grafts,
    remat: Remat | None = None,
) -> tuple[list[Any], dict[str, jax.Array]]:
    values = _start(program, params, buffers, inputs, constants)
    steps = list(_steps(program, remat))
    last_use = _last_uses(program, [step for step, _ in steps])
    keys = _keys(key)
    for (step, policy), dead in zip(steps, last_use, strict=True):
        extras = [_extra(node, keys, grafts) for node in step]
        if policy:
            values |= _run_region(step, extras, values, dead, policy)
        else:
            _run(step[0], extras[0], values)
        for name in dead:
            values.pop(name, None)  # long chains of dead intermediates would otherwise live until the end
    outputs, updated = [], dict(buffers)
    for spec in program.outputs:
        value = in_torch_order(resolve(spec.value, values))
        if spec.kind != "user":
            updated[spec.target] = value
        else:
            outputs.append(value)
    return outputs, updated


def check_key(program: Program, key: jax.Array | None) -> None:
    """Raises MissingKeyError, naming every site, if `program` draws and there is no key."""
    if key is not None or not may_draw(program):
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
    inputs: Sequence[Value],
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


def _steps(program: Program, remat: Remat | None) -> Iterator[tuple[list[Node], str]]:
    """The nodes one by one, with ""; those of a block or region together, with the policy of what a backward keeps."""

    def place(node: Node) -> tuple[str, str]:  # of nested ones the outermost
        block = remat.block(node.scope) if remat else ""
        return block, "" if block else node.region

    for (block, region), nodes in groupby(program.nodes, place):
        found = list(nodes)
        if block or region:
            yield found, remat.policy if remat and block else NOTHING
        else:
            yield from (([node], "") for node in found)


def _run_region(
    nodes: Sequence[Node],
    extras: Sequence[dict[str, Any]],
    values: Mapping[str, Any],
    dead: Collection[str],
    policy: str,
) -> dict[str, Any]:
    """What a region makes for later nodes; its backward computes the rest again. Keys come from outside of it."""
    static: dict[str, Any] = {}

    def run() -> dict[str, jax.Array | ChannelsLast]:
        held = dict(values)
        for node, extra in zip(nodes, extras, strict=True):
            _run(node, extra, held)
        made = {name: held[name] for node in nodes for name in node.outputs if name not in dead}
        arrays = (jax.Array, ChannelsLast)
        static.update({name: value for name, value in made.items() if not isinstance(value, arrays)})
        return {name: value for name, value in made.items() if name not in static}

    return {**rematerialised(run, policy)(), **static}


def _extra(node: Node, keys: tuple[Iterator[Any], Iterator[Any]], grafts: Grafts) -> dict[str, Any]:
    """What the node's rule takes besides the operator's arguments."""
    found = lowering(node.op)
    extra: dict[str, Any] = {}
    if found.draws_at(node):
        extra["key"] = next(keys[0])
    if found.grafts:
        extra |= {"grafts": grafts, "key": next(keys[1])}
    if found.bodies:
        extra["run"] = partial(_run_body, grafts=grafts)
    return extra


def _run(node: Node, extra: Mapping[str, Any], values: dict[str, Any]) -> None:
    with jax.named_scope(node.scope or "root"):
        try:
            kwargs = {name: in_torch_order(resolve(value, values)) for name, value in node.kwargs}
            made = layout.run(node.op, lowering(node.op), resolve(node.args, values), {**kwargs, **extra})
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


def _last_uses(program: Program, steps: Sequence[Sequence[Node]]) -> list[list[str]]:
    """For each step, the values nobody reads after it."""
    kept = {spec.value.name for spec in program.outputs if isinstance(spec.value, Ref)}
    last: dict[str, int] = {}
    for place, step in enumerate(steps):
        for node in step:
            last |= dict.fromkeys((*node.outputs, *(ref.name for ref in node.refs())), place)
    freed: list[list[str]] = [[] for _ in steps]
    for name, place in last.items():
        if name not in kept:
            freed[place].append(name)
    return freed
