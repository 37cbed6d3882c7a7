"""Derivatives taken inside a forward: `torch.autograd.grad` and the transforms of `torch.func`.

A capture records no backward. Each derivative leaves one operator in the graph, which names what is differentiated
and with respect to what; the nodes between the two become a Program of its own (`esper.program.slicing`) that
JAX differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch._functorch import eager_transforms, vmap
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.utils import _pytree as pytree

from esper.errors import RefusedError
from esper.torch_frontend.functions import differentiable
from esper.torch_frontend.places import user_line

GRAD = "esper.grad.default"
Tensors = Sequence[torch.Tensor]


@torch.library.custom_op("esper::grad", mutates_args=())
def grad(outputs: Tensors, inputs: Tensors, cotangents: Tensors, batched: bool) -> list[torch.Tensor]:
    """The gradients of `outputs` with respect to `inputs`; with `batched`, one for each row of the cotangents."""
    raise RefusedError("esper::grad stands for a derivative inside a capture and cannot run by itself")


@grad.register_fake
def _(outputs: Tensors, inputs: Tensors, cotangents: Tensors, batched: bool) -> list[torch.Tensor]:
    rows = cotangents[0].shape[:1] if batched else ()
    return [tensor.new_empty((*rows, *tensor.shape)) for tensor in inputs]


@torch.library.custom_op("esper::fresh", mutates_args=())
def fresh(tensor: torch.Tensor) -> torch.Tensor:
    """The same value as a variable of its own, for a derivative to be taken to."""
    return tensor.clone()


fresh.register_fake(torch.empty_like)


@fresh.register_vmap
def _(_: Any, in_dims: tuple[Any, ...], tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
    return torch.ops.esper.fresh(tensor), in_dims[0]


@grad.register_vmap
def _(info: Any, in_dims: Any, outputs: Tensors, inputs: Tensors, cotangents: Tensors, batched: bool) -> Any:
    """The samples of a batch do not meet: the gradient of all is that of each, where the input has the batch too."""
    size, (of_outputs, of_inputs, of_cotangents, _) = info.batch_size, in_dims
    rows = [_first(tensor, at, size) for tensor, at in zip(cotangents, of_cotangents, strict=True)]
    if all(at is None for at in (*of_outputs, *of_inputs)):
        if batched:
            raise RefusedError(f"a derivative at {user_line()} is batched twice: nest jacrev instead of vmap")
        return torch.ops.esper.grad(outputs, inputs, rows, True), [0] * len(inputs)
    if batched:  # the rows of each sample come first
        rows = [row.transpose(0, 1) for row in rows]
    whole = [_first(tensor, at, size) for tensor, at in zip(outputs, of_outputs, strict=True)]
    if all(at is not None for at in of_inputs):
        found = torch.ops.esper.grad(whole, inputs, rows, batched)
        return found, [at + batched for at in of_inputs]
    if batched or any(at is not None for at in of_inputs):
        raise RefusedError(f"a derivative at {user_line()} is taken to batched and other tensors: take them apart")
    apart = [torch.diag_embed(row.movedim(0, -1)).movedim((-2, -1), (0, 1)) for row in rows]
    return torch.ops.esper.grad(whole, inputs, apart, True), [0] * len(inputs)


def _first(tensor: torch.Tensor, at: int | None, size: int) -> torch.Tensor:
    """The tensor with its batch first."""
    return tensor.expand(size, *tensor.shape) if at is None else tensor.movedim(at, 0)


def autograd_grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    """`torch.autograd.grad` in a capture: constants, unless a graph is asked for."""
    made, wanted = _several(outputs), _several(inputs)
    if not all(isinstance(tensor, torch.Tensor) and differentiable(tensor) for tensor in (*made, *wanted)):
        raise RefusedError(f"torch.autograd.grad at {user_line()} takes a derivative of or to what is no float tensor")
    given = [None] * len(made) if grad_outputs is None else _several(grad_outputs)
    cotangents = [_cotangent(tensor, row) for tensor, row in zip(made, given, strict=True)]
    used = [True] * len(wanted)
    if not materialize_grads:
        reached = _reached(made, wanted)
        used = reached or used
        if not allow_unused and not all(used):
            raise RefusedError(
                f"torch.autograd.grad at {user_line()}: an input was not used in the graph of the outputs. Set "
                "allow_unused=True if this is wanted."
            )
    found = iter(_emit(made, [t for t, use in zip(wanted, used, strict=True) if use], cotangents, is_grads_batched))
    gradients = [next(found) if use else None for use in used]
    return tuple(g if g is None or create_graph else g.detach() for g in gradients)


def _emit(outputs: Tensors, inputs: Tensors, cotangents: Tensors, batched: bool = False) -> list[torch.Tensor]:
    return list(torch.ops.esper.grad(list(outputs), list(inputs), list(cotangents), batched)) if inputs else []


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _cotangent(output: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
    if given is not None:
        return given
    if output.numel() != 1:
        raise RefusedError(f"torch.autograd.grad at {user_line()}: grad can be created only for scalar outputs")
    return torch.ones_like(output)


def _reached(outputs: Tensors, inputs: Tensors) -> list[bool] | None:
    """Whether each input leads to an output by the graph so far; None where that is not known."""
    mode = get_proxy_mode()
    if mode is None:
        return None
    places = [_node(mode.tracer, tensor) for tensor in (*outputs, *inputs)]
    if any(place is None for place in places):
        return None
    ends = set(places[: len(outputs)])
    return [bool(ends & _led_to(place)) for place in places[len(outputs) :]]


def _node(tracer: Any, tensor: torch.Tensor) -> Any:
    held = tracer.tensor_tracker.get(tensor)
    return None if held is None else held.proxy.node


def _led_to(start: Any) -> set[Node]:
    """The nodes that read `start`, directly or not; a tensor that is written into reads what is written."""
    found = {start}
    for node in start.graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
            schema = getattr(node.target, "_schema", None)
            if schema is not None and schema.is_mutable:
                found.update(_viewed(node.args[0]))
    return found


def _viewed(node: Any) -> Iterator[Node]:
    while isinstance(node, Node):
        yield node
        node = node.args[0] if node.op == "call_function" and node.args else None


@contextmanager
def func_transforms() -> Iterator[None]:
    """While open, `grad`, `vjp`, `jvp`, `jacrev`, `jacfwd` and `hessian` of `torch.func` leave such operators."""
    replaced: dict[str, Callable[..., Any]] = {
        "grad_increment_nesting": lambda: nullcontext(0),
        "_wrap_all_tensors": lambda tree, _: pytree.tree_map(_variable, tree),
        "_create_differentiable": lambda tree, level=None: tree,
        "_undo_create_differentiable": lambda tree, level=None: tree,
        "_autograd_grad": _transform_grad,
        "_jvp_with_argnums": _jvp,
    }
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(patch.object(eager_transforms, name, function))
        stack.enter_context(patch.object(vmap, "_flat_vmap", _batch_first))
        yield


_FLAT_VMAP: Callable[..., Any] = vmap._flat_vmap


def _batch_first(
    func: Callable[..., Any],
    batch_size: int,
    flat_in_dims: list[int | None],
    flat_args: list[Any],
    args_spec: pytree.TreeSpec,
    out_dims: Any,
    randomness: str,
    **kwargs: Any,
) -> Any:
    """`torch.vmap` over first dimensions: elsewhere torch moves them where no capture sees it."""
    first = [None if at is None else 0 for at in flat_in_dims]
    args = [arg if at is None else arg.movedim(at, 0) for arg, at in zip(flat_args, flat_in_dims, strict=True)]
    zeros = pytree.tree_map(lambda at: None if at is None else 0, out_dims)
    out = _FLAT_VMAP(func, batch_size, first, args, args_spec, zeros, randomness, **kwargs)
    leaves, spec = pytree.tree_flatten(out)
    places = pytree._broadcast_to_and_flatten(out_dims, spec)
    moved = [leaf if not at else leaf.movedim(0, at) for leaf, at in zip(leaves, places or [], strict=True)]
    return pytree.tree_unflatten(moved, spec)


def _variable(leaf: Any) -> Any:
    return torch.ops.esper.fresh(leaf) if differentiable(leaf) else leaf


def _transform_grad(
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Any = None,
    retain_graph: bool = False,
    create_graph: bool = True,
) -> tuple[torch.Tensor, ...]:
    given = [None] * len(outputs) if grad_outputs is None else list(grad_outputs)
    pairs = [(o, _cotangent(o, ct)) for o, ct in zip(outputs, given, strict=True) if differentiable(o)]
    found = _emit([o for o, _ in pairs], inputs, [ct for _, ct in pairs])
    return tuple(g if create_graph else g.detach() for g in found)


def _jvp(
    func: Callable[..., Any],
    primals: tuple[Any, ...],
    tangents: Any,
    argnums: Any,
    *,
    strict: bool = False,
    has_aux: bool = False,
) -> tuple[Any, ...]:
    """Forward mode by twice reverse: the pullback is linear in its cotangent, and its transpose is the derivative."""
    args = pytree.tree_map(_variable, primals)
    wanted = args if argnums is None else eager_transforms._slice_argnums(args, argnums)
    out = func(*args)
    out, *aux = out if has_aux else (out,)
    flat, spec = pytree.tree_flatten(out)
    cotangents = [torch.ops.esper.fresh(torch.zeros_like(leaf)) for leaf in flat]
    pulled = _emit(flat, pytree.tree_leaves(wanted), cotangents)
    pushed = _emit(pulled, cotangents, pytree.tree_leaves(tangents))
    return out, pytree.tree_unflatten(pushed, spec), *aux
