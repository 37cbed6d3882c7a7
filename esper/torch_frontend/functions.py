"""Functions with a backward of their own: `torch.autograd.Function` and tensor hooks.

Capture would inline a function's forward and lose its backward. Here each call leaves one opaque operator
in the graph instead, and forward and backward become graphs of their own (`joint`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import dispatch_functionalize
from torch.autograd.function import FunctionCtx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx
from torch.utils import _pytree as pytree

from esper.errors import RefusedError
from esper.torch_frontend.places import user_line

FUNCTION = "esper.function.default"
HOOK = "esper.hook.default"


class _Context(FunctionCtx):
    """The `ctx` a forward and its backward share; what the class itself defines is reachable through it."""

    to_save: tuple[Any, ...] = ()
    dirty_tensors: tuple[Any, ...] = ()
    non_differentiable: tuple[Any, ...] = ()

    def __init__(self, cls: type | None, needs_input_grad: tuple[bool, ...]) -> None:
        self._cls = cls
        self.needs_input_grad = needs_input_grad

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        return tuple(self.to_save)

    def __getattr__(self, name: str) -> Any:
        cls = self.__dict__.get("_cls")
        if cls is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(cls, name)


@dataclass
class Function:
    """One call of a function with a backward of its own.

    Attributes:
        name: What errors call it.
        forward: Takes (ctx, *args) and returns the outputs.
        backward: Takes (ctx, *cotangents) and returns a gradient for each argument.
        cls: The class whose attributes `ctx` shows.
        statics: The arguments' leaves, `_TENSOR` where a tensor stands.
        spec: The arguments' structure.
        place: "file.py:41".
        needs_grad: For each argument, whether a gradient is wanted.
        removed: Whether a hook was taken away again.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    cls: type | None
    statics: list[Any]
    spec: pytree.TreeSpec
    place: str
    needs_grad: tuple[bool, ...] = (True,)
    removed: bool = False

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, ...]:
        """The arguments of the call, around these tensors."""
        given = iter(tensors)
        leaves = [next(given) if static is _TENSOR else static for static in self.statics]
        return tuple(pytree.tree_unflatten(leaves, self.spec))

    def run(self, tensors: Sequence[torch.Tensor]) -> tuple[_Context, tuple[Any, ...], Any]:
        """The context, arguments and outputs of a forward on these tensors."""
        args = self.arguments(tensors)
        context = _Context(self.cls, self.needs_grad)
        before = [tensor._version for tensor in tensors]
        with torch.no_grad():
            out = self.forward(context, *args)
        for tensor, version in zip(tensors, before, strict=True):
            if tensor._version != version and not any(tensor is dirty for dirty in context.dirty_tensors):
                raise RefusedError(
                    f"{self.name} (applied at {self.place}) writes into an argument that it does not declare by "
                    "ctx.mark_dirty: mark it, or write into a clone"
                )
        return context, args, out


_TENSOR = object()
_CALLS: ContextVar[dict[str, Function] | None] = ContextVar("calls", default=None)


@torch.library.custom_op("esper::function", mutates_args=())
def function(tensors: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
    """Stands in a capture for the call that is noted under `name`."""
    raise RefusedError(f"{name} stands for a call inside a capture and cannot run by itself")


@function.register_fake
def _(tensors: Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
    _, _, out = _calls()[name].run([tensor.detach().clone() for tensor in tensors])
    return [torch.empty_like(leaf) for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]


@torch.library.custom_op("esper::hook", mutates_args=("tensor",))
def hook(tensor: torch.Tensor, name: str) -> None:
    """Marks where a hook was put on a tensor; said to write into it, so that capture keeps it."""


@hook.register_fake
def _(tensor: torch.Tensor, name: str) -> None:
    return None


def _calls() -> dict[str, Function]:
    found = _CALLS.get()
    if found is None:
        raise RefusedError("a function with a backward of its own is met outside of a capture")
    return found


@contextmanager
def known(calls: dict[str, Function]) -> Iterator[None]:
    """While open, the stand-ins in a graph find their calls in `calls`."""
    token = _CALLS.set(calls)
    try:
        yield
    finally:
        _CALLS.reset(token)


@contextmanager
def opaque() -> Iterator[None]:
    """While open, custom functions and tensor hooks leave stand-ins (see `known`) instead of what they do."""
    apply = torch.autograd.Function.__dict__["apply"].__func__
    code = apply.__code__
    # The code, not the attribute: a model may hold a bound `apply` from before.
    apply.__code__ = _Applied.apply.__code__
    try:
        with patch.object(torch.Tensor, "register_hook", _register_hook):
            _ORIGINAL.append(FunctionType(code, apply.__globals__, "apply", None, apply.__closure__))
            yield
    finally:
        apply.__code__ = code
        _ORIGINAL.pop()


_ORIGINAL: list[FunctionType] = []
# Functions that save memory: their forward runs under no_grad, their backward runs it again and is autograd's own.
_RECOMPUTING = frozenset(("transformers.models.reformer.modeling_reformer._ReversibleFunction",))


class _Applied:
    """Holds the code that `torch.autograd.Function.apply` runs while `opaque` is open."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportSelfClsParameterName]
        from esper.torch_frontend.functions import applied

        _ = __class__  # the code it stands for has this one free variable
        return applied(cls, args, kwargs)


def applied(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a custom function's `apply` does inside a capture."""
    if cls.__module__.split(".")[0] == "torch":  # torch's own plumbing, of custom operators for one
        return _ORIGINAL[-1](cls, *args, **kwargs)
    if f"{cls.__module__}.{cls.__qualname__}" in _RECOMPUTING:
        stays = {"__enter__": lambda _: None, "__exit__": lambda *_: None}
        with patch.multiple(torch.no_grad, **stays):
            return cls.forward(_Context(cls, ()), *args, **kwargs)
    return _stand_in(cls, args, kwargs)


def _sets_up(cls: Any) -> bool:
    return cls.setup_context is not torch.autograd.Function.setup_context


def _stand_in(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    place = user_line()
    if kwargs:
        raise RefusedError(f"{cls.__qualname__}.apply at {place} takes keyword arguments; give them by position")
    if torch._C._are_functorch_transforms_active():
        raise RefusedError(f"{cls.__qualname__}.apply at {place} runs inside a torch.func transform: not supported")

    def run(ctx: _Context, *given: Any) -> Any:
        if not _sets_up(cls):
            return cls.forward(ctx, *given)
        out = cls.forward(*given)
        cls.setup_context(ctx, given, out)
        return out

    leaves, spec = pytree.tree_flatten(args)
    statics = [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    wanted = tuple(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)
    noted = Function(cls.__qualname__, run, cls.backward, cls, statics, spec, place, wanted)
    return _emit(noted, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])


def _emit(noted: Function, tensors: list[torch.Tensor]) -> Any:
    """Leaves the stand-in in the graph; returns the call's outputs as the user expects them."""
    name = _note(noted)
    with disable_proxy_modes_tracing():
        context, args, out = noted.run([tensor.detach().clone() for tensor in tensors])
    _check_materialised(noted, context, out)
    made = iter(torch.ops.esper.function(tensors, name))
    own = noted.arguments(tensors)

    def result(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        value = next(made)
        for mine, theirs in zip(own, args, strict=True):
            if theirs is leaf and any(leaf is dirty for dirty in context.dirty_tensors):
                value = mine.copy_(value)
        return value.detach() if any(leaf is fixed for fixed in context.non_differentiable) else value

    return pytree.tree_map(result, out)


def _check_materialised(noted: Function, context: _Context, out: Any) -> None:
    several = sum(differentiable(leaf) for leaf in pytree.tree_leaves(out)) > 1
    if several and not getattr(context, "materialize_grads", True):
        raise RefusedError(
            f"{noted.name} (applied at {noted.place}) sets materialize_grads to False and has several outputs: which "
            "of their gradients are None depends on what is differentiated. Let its backward take zeros instead."
        )


def _note(noted: Function) -> str:
    calls = _calls()
    name = f"{noted.name}_{len(calls)}"
    calls[name] = noted
    return name


class _Handle:
    """What `register_hook` returns inside a capture."""

    def __init__(self, noted: Function) -> None:
        self._noted = noted

    def remove(self) -> None:
        """Takes the hook away again."""
        self._noted.removed = True


def _register_hook(tensor: torch.Tensor, hook: Callable[[Any], Any]) -> _Handle:
    noted = of_hook(hook, user_line())
    torch.ops.esper.hook(tensor, _note(noted))
    return _Handle(noted)


def of_hook(hook: Callable[[Any], Any], place: str) -> Function:
    """The identity, whose backward is what `hook` makes of the gradient."""

    def backward(_: Any, gradient: torch.Tensor) -> torch.Tensor:
        changed = hook(gradient)
        return gradient if changed is None else changed

    _, spec = pytree.tree_flatten((0,))
    return Function("hook", lambda _, tensor: tensor.clone(), backward, None, [_TENSOR], spec, place)


def differentiable(value: Any) -> bool:
    """Whether a gradient can reach `value`."""
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


@dataclass(frozen=True)
class Joint:
    """Forward and backward of one call as graphs.

    Attributes:
        forward: From the tensors to the outputs and what the backward needs of them.
        backward: From that and the cotangents of the differentiable outputs to gradients.
        outputs: How many of forward's results are outputs.
        graded: Places of the tensors that get a gradient, in the order of backward's results.
        constants: What both read besides: tensors that are further inputs of forward.
    """

    forward: torch.fx.GraphModule
    backward: torch.fx.GraphModule
    outputs: int
    graded: tuple[int, ...]
    constants: tuple[torch.Tensor, ...] = ()


def joint(noted: Function, examples: Sequence[torch.Tensor], decompositions: Mapping[Any, Any]) -> Joint:
    """Traces a call's forward and backward on fake tensors like `examples`.

    Raises:
        RefusedError: The backward's results do not fit the arguments.
    """
    inputs = [example.detach().clone() for example in examples]
    _, _, out = noted.run(inputs)
    outputs = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    cotangents = [torch.empty_like(leaf) for leaf in outputs if differentiable(leaf)]
    graded: list[int] = []

    def both(*given: torch.Tensor) -> list[torch.Tensor]:
        tensors = [tensor.clone() for tensor in given[: len(inputs)]]
        context, args, out = noted.run(tensors)
        gradients = _gradients(noted, context, args, out, given[len(inputs) :])
        places = [place for place, tensor in enumerate(tensors) if id(tensor) in gradients]
        graded[:] = places
        leaves = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        return [*leaves, *(gradients[id(tensors[place])] for place in places)]

    with torch.no_grad(), patch.object(torch.autograd, "backward", _refuse_backward(noted)):
        graph = make_fx(dispatch_functionalize(both), decomposition_table=dict(decompositions))(*inputs, *cotangents)
    constants = _lift(noted, graph, len(inputs))
    found = _split(graph, len(inputs) + len(constants), len(outputs), tuple(graded))
    return replace(found, constants=constants)


def _refuse_backward(noted: Function) -> Callable[..., Any]:
    def backward(*_args: Any, **_kwargs: Any) -> None:
        raise RefusedError(
            f"the backward of {noted.name} (applied at {noted.place}) calls backward(), whose gradients would be lost: "
            "call torch.autograd.grad and return them"
        )

    return backward


def _lift(noted: Function, graph: torch.fx.GraphModule, place: int) -> tuple[torch.Tensor, ...]:
    """Makes inputs, from `place` on, of the tensors that the graph holds."""
    held: dict[str, torch.fx.Node] = {}
    tensors = []
    before = graph.graph.find_nodes(op="placeholder")[place:]
    for node in graph.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        tensor = getattr(graph, name)
        if isinstance(tensor, FakeTensor):
            raise RefusedError(
                f"{noted.name} (applied at {noted.place}) reads a tensor of the forward that is none of its arguments: "
                "give it as an argument, and keep it by ctx.save_for_backward"
            )
        if name not in held:
            with graph.graph.inserting_before(before[0] if before else None):
                held[name] = graph.graph.placeholder(name)
            held[name].meta = dict(node.meta)
            tensors.append(tensor)
        node.replace_all_uses_with(held[name])
        graph.graph.erase_node(node)
    return tuple(tensors)


def _gradients(
    noted: Function, context: _Context, args: Sequence[Any], out: Any, cotangents: Sequence[torch.Tensor]
) -> dict[int, torch.Tensor]:
    """The backward's results by the id of the argument; arguments it gives None for are left out."""
    given = iter(cotangents)
    leaves = out if isinstance(out, tuple | list) else (out,)
    found = noted.backward(context, *(next(given) if differentiable(leaf) else None for leaf in leaves))
    found = tuple(found) if isinstance(found, tuple | list) else (found,)
    if len(found) < len(args) or any(extra is not None for extra in found[len(args) :]):
        raise RefusedError(
            f"the backward of {noted.name} (applied at {noted.place}) returns {len(found)} gradients "
            f"for {len(args)} arguments"
        )
    pairs = [(arg, grad) for arg, grad in zip(args, found, strict=False) if grad is not None and differentiable(arg)]
    return {id(arg): _fitted(noted, grad, arg) for arg, grad in pairs}


def _fitted(noted: Function, gradient: torch.Tensor, argument: torch.Tensor) -> torch.Tensor:
    """The gradient in the argument's shape and dtype, as torch's engine brings it there."""
    if gradient.shape != argument.shape:
        try:
            gradient = gradient.sum_to_size(argument.shape)
        except RuntimeError as error:
            raise RefusedError(
                f"the backward of {noted.name} (applied at {noted.place}) returns a gradient of shape "
                f"{tuple(gradient.shape)} for an argument of shape {tuple(argument.shape)}"
            ) from error
    return gradient.to(argument.dtype)


def _split(graph: torch.fx.GraphModule, inputs: int, outputs: int, graded: tuple[int, ...]) -> Joint:
    """Cuts the joint graph: what depends on a cotangent, and sizes, goes to the backward."""
    nodes = list(graph.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    results = list(nodes[-1].args[0])
    late = set(placeholders[inputs:])
    for node in nodes[:-1]:
        if late.intersection(node.all_input_nodes) or not isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
            late.add(node)
    late -= set(placeholders[:inputs])
    needed, kept = _ancestors(results[outputs:], late)
    early, _ = _ancestors([*results[:outputs], *kept], set(nodes) - set(placeholders))
    forward = _extract(graph, placeholders[:inputs], [*results[:outputs], *kept], early)
    backward = _extract(graph, [*kept, *placeholders[inputs:]], results[outputs:], needed)
    return Joint(forward, backward, outputs, graded)


def _ancestors(results: Sequence[Any], late: set[torch.fx.Node]) -> tuple[set[torch.fx.Node], list[torch.fx.Node]]:
    """What of `late` leads to `results`, and the other nodes these read."""
    needed: set[torch.fx.Node] = set()
    kept: dict[torch.fx.Node, None] = {}
    waiting = [result for result in results if isinstance(result, torch.fx.Node)]
    while waiting:
        node = waiting.pop()
        if node not in late:
            kept[node] = None
        elif node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed, list(kept)


def _extract(
    graph: torch.fx.GraphModule,
    inputs: Sequence[torch.fx.Node],
    results: Sequence[Any],
    nodes: set[torch.fx.Node],
) -> torch.fx.GraphModule:
    """The graph from `inputs` to `results` by way of `nodes`."""
    made = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in inputs:
        copies[node] = made.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in graph.graph.nodes:
        if node in nodes and node not in copies and node.op not in ("placeholder", "output"):
            copies[node] = made.node_copy(node, copies.__getitem__)
    made.output([copies[result] if isinstance(result, torch.fx.Node) else result for result in results])
    made.eliminate_dead_code()
    return torch.fx.GraphModule(graph, made)
