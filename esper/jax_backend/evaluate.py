"""Running a Program: walk the nodes, apply each one's lowering. Pure, and traceable by every JAX transformation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import count
from typing import Any

import jax

import esper.jax_backend.lowerings  # noqa: F401  fills the registry
from esper.errors import MissingKeyError, RefusedError
from esper.jax_backend import layout
from esper.jax_backend.layout import ChannelsLast, Value, in_torch_order
from esper.jax_backend.promotion import dtype_of
from esper.jax_backend.registry import check_lowered, draws, lowering, may_draw
from esper.jax_backend.remat import Remat, rematerialised
from esper.jax_backend.steps import last_uses, steps
from esper.program import Block, DType, Node, Occurrence, Program, Ref, Static

Grafts = Mapping[str, Callable[..., Value]]
_ARRAYS = (jax.Array, ChannelsLast)


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
    share_blocks: bool = True,
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
        share_blocks: Whether equal blocks are traced, differentiated and lowered once.

    Returns:
        The outputs in leaf order (`program.out_tree` is their structure), and all buffers, updated, with those
        parameters that the Program writes into.

    Raises:
        UnsupportedOpError: Listing every operator without a lowering.
        MissingKeyError: The Program draws and there is no key.
    """
    check_lowered(program)
    check_key(program, key)
    return _evaluate(program, params, buffers, inputs, key, constants or {}, grafts or {}, remat, share_blocks)


def _evaluate(
    program: Program,
    params: Mapping[str, jax.Array],
    buffers: Mapping[str, jax.Array],
    inputs: Sequence[Value],
    key: jax.Array | None,
    constants: Mapping[str, jax.Array],
    grafts: Grafts,
    remat: Remat | None = None,
    share_blocks: bool = True,
) -> tuple[list[Any], dict[str, jax.Array]]:
    values = _start(program, params, buffers, inputs, constants)
    found = steps(program, remat, grafts.keys(), share_blocks)
    keys = _Keys(key)
    for step, dead in zip(found, last_uses(program, found), strict=True):
        extras = [_extra(node, keys.draw, keys.join, grafts) for node in step.nodes]
        if step.repeats:
            _run_repeated(step.repeats, extras, values)
        elif step.policy:
            values |= _run_region(step.nodes, extras, values, dead, step.policy)
        else:
            _run(step.nodes[0], extras[0], values)
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


def needs_key(program: Program) -> bool:
    """Whether a run of `program` draws random numbers."""
    return may_draw(program) and any(draws(node) for node in program.walk())


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


class _Keys:
    """Keys for the drawing nodes and for the grafts, in order: adding seeds leaves the host's masks as they are."""

    def __init__(self, key: jax.Array | None) -> None:
        self._key, self._drawn, self._joined = key, count(), count()

    def draw(self) -> jax.Array | None:
        """Of the next node that draws."""
        place = next(self._drawn)
        return None if self._key is None else jax.random.fold_in(self._key, place)

    def join(self, is_grown: bool) -> jax.Array | None:
        """Of the next place for kernels; None where there are none."""
        place = next(self._joined)
        if self._key is None or not is_grown:
            return None
        return jax.random.fold_in(jax.random.fold_in(self._key, 2**31), place)


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
        static.update({name: value for name, value in made.items() if not isinstance(value, _ARRAYS)})
        return {name: value for name, value in made.items() if name not in static}

    return {**rematerialised(run, policy)(), **static}


def _run_repeated(occurrence: Occurrence, extras: Sequence[Mapping[str, Any]], values: dict[str, Any]) -> None:
    """A block by the trace of the first that is equal to it; what is no array is a part of which trace that is."""
    read = [values[name] for name in occurrence.reads]
    arrays = [value for value in read if isinstance(value, _ARRAYS)]
    static = tuple(None if isinstance(value, _ARRAYS) else Static(value) for value in read)
    drawing = [lowering(node.op).draws_at(node) for node in occurrence.block.nodes]
    keys = [extra["key"] for extra, draws in zip(extras, drawing, strict=True) if draws]
    with jax.named_scope(occurrence.scope):
        made = _repeated_block(occurrence.block, static, arrays, keys)
    values.update(zip(occurrence.makes, made, strict=True))


@partial(jax.jit, static_argnums=(0, 1))
def _repeated_block(
    block: Block, static: tuple[Static | None, ...], arrays: Sequence[Value], keys: Sequence[jax.Array | None]
) -> list[Value]:
    given, drawn = iter(arrays), iter(keys)
    values = {name: next(given) if at is None else at.value for name, at in zip(block.reads, static, strict=True)}
    for node in block.nodes:
        _run(node, _extra(node, drawn.__next__, lambda _: None, {}), values, within=block.scope)
    return [values[name] for name in block.makes]


def _extra(
    node: Node,
    draw: Callable[[], jax.Array | None],
    join: Callable[[bool], jax.Array | None],
    grafts: Grafts,
) -> dict[str, Any]:
    """What the node's rule takes besides the operator's arguments."""
    found = lowering(node.op)
    extra: dict[str, Any] = {}
    if found.draws_at(node):
        extra["key"] = draw()
    if found.grafts:
        extra |= {"grafts": grafts, "key": join(any(arg in grafts for arg in node.args if isinstance(arg, str)))}
    if found.bodies:
        extra["run"] = partial(_run_body, grafts=grafts)
    return extra


def _run(node: Node, extra: Mapping[str, Any], values: dict[str, Any], within: str = "") -> None:
    path = node.scope.removeprefix(within).removeprefix(".")
    with nullcontext() if within and not path else jax.named_scope(path or "root"):
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
