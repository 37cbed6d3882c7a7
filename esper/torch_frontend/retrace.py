"""One operator of a capture, traced anew on tensors like its own: what it is made of, with its writes as results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._export.utils import _compiling_state_context, _detect_fake_mode_from_gm
from torch._functorch._aot_autograd.functional_utils import from_fun, has_data_mutation, to_fun
from torch._guards import TracingContext, tracing
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.export import ExportedProgram
from torch.export._trace import _ignore_backend_decomps
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from esper.torch_frontend.composites import composites_kept


class Unfit(Exception):
    """A capture that has to be functionalised as a whole."""


@dataclass(frozen=True)
class Piece:
    """What an operator is made of.

    Attributes:
        inputs: Its placeholders.
        nodes: Its operators, in order.
        results: The values of its results, then the new values of the inputs that it writes into.
        spec: The structure of its results.
        places: Which of the inputs it writes into.
    """

    inputs: Sequence[Node]
    nodes: Sequence[Node]
    results: Sequence[Any]
    spec: pytree.TreeSpec
    places: tuple[int, ...]

    def result(self, values: Sequence[Any]) -> Any:
        """The results, as the operator returns them."""
        return pytree.tree_unflatten(values[: len(values) - len(self.places)], self.spec)

    def written(self, values: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The inputs that are written into, with their new values."""
        return zip(self.places, values[len(values) - len(self.places) :], strict=True)


@dataclass(frozen=True)
class Operands:
    """The nodes that one operator reads: as they are in the capture, and in the graph that is made of it."""

    old: Sequence[Node]
    new: Sequence[Any]


class Retracer:
    """Traces operators of one capture; a context, which holds what has to be in place for that.

    Attributes:
        table: The decompositions to apply.
    """

    def __init__(self, captured: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> None:
        self.table = table
        self._mode = _detect_fake_mode_from_gm(captured.graph_module)
        self._pieces: dict[Any, Piece] = {}
        self._stack = ExitStack()
        self._decompositions: Mapping[Any, Any] | None = None

    def __enter__(self) -> Retracer:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def piece(self, node: Node, op: torch._ops.OpOverload, value: Callable[[Node], Any]) -> tuple[Piece, Operands]:
        """What `node` is made of, and what it reads. `value` gives the new node of an old one."""
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        old = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Node)))
        new = [value(leaf) for leaf in old]
        examples = [made.meta["val"] if isinstance(made, Node) else made for made in new]
        places = [old.index(leaf) if isinstance(leaf, Node) else None for leaf in leaves]
        fixed = tuple(leaf if place is None else _Place(place) for leaf, place in zip(leaves, places, strict=True))
        key = (op, spec, tuple((type(leaf), leaf) for leaf in fixed), tuple(map(_kind, examples)))
        if key not in self._pieces:
            self._pieces[key] = self._traced(op, fixed, spec, examples)
        piece = self._pieces[key]
        _check_alike(piece, node)
        return piece, Operands(old, new)

    def _traced(
        self, op: torch._ops.OpOverload, fixed: Sequence[Any], spec: pytree.TreeSpec, examples: Sequence[Any]
    ) -> Piece:
        seen: dict[str, Any] = {}

        def run(*given: Any) -> list[Any]:
            exclude = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize))
            with exclude:
                held = [to_fun(value) for value in given]
                leaves = [held[leaf.at] if isinstance(leaf, _Place) else leaf for leaf in fixed]
                args, kwargs = pytree.tree_unflatten(leaves, spec)
                results, seen["spec"] = pytree.tree_flatten(op(*args, **kwargs))
                made = [from_fun(result) for result in results]
                after = [from_fun(value) for value in held]
                changed = [isinstance(v, torch.Tensor) and has_data_mutation(v) for v in held]
                seen["places"] = tuple(place for place, written in enumerate(changed) if written)
                return [*made, *(after[place] for place in seen["places"])]

        decompositions = self._ready()
        given = [value.detach() if isinstance(value, torch.Tensor) else value for value in examples]
        for inner, outer in zip(given, examples, strict=True):
            if isinstance(outer, torch.Tensor) and outer.requires_grad and outer.is_leaf:
                inner.requires_grad_(True)
        try:
            with FunctionalTensorMode(_allow_token_discovery=True):
                found = make_fx(run, decomposition_table=dict(decompositions), _disable_torch_fn_metadata_mode=True)(
                    *given
                )
        except Exception as error:  # whatever goes wrong here, torch's own pass says it better
            raise Unfit(str(error)) from error
        nodes = list(found.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        calls = [node for node in nodes if node.op == "call_function"]
        if len(inputs) + len(calls) + 1 != len(nodes):
            raise Unfit(f"{op} holds tensors of its own")
        return Piece(inputs, calls, list(nodes[-1].args[0]), seen["spec"], seen["places"])

    def _ready(self) -> Mapping[Any, Any]:
        """Enters what tracing needs, the first time; most captures have little to trace, and some nothing."""
        if self._decompositions is None:
            if self._mode is None:
                raise Unfit("no tensors")
            for context in (
                torch.no_grad(),
                self._mode,
                tracing(TracingContext(self._mode)),
                _ignore_backend_decomps(),
                _compiling_state_context(),
                enable_python_dispatcher(),
            ):
                self._stack.enter_context(context)
            self._decompositions = self._stack.enter_context(composites_kept(self.table))
        return self._decompositions


@dataclass(frozen=True)
class _Place:
    """Stands for an operand."""

    at: int


def _kind(value: Any) -> Any:
    """What tracing sees of an operand."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__, str(value)
    shape, strides = (tuple(map(str, sizes)) for sizes in (value.shape, value.stride()))
    return value.dtype, shape, strides, value.device, value.layout, value.requires_grad and value.is_leaf, type(value)


def _check_alike(piece: Piece, node: Node) -> None:
    """A result that is not like the captured one would mean that sizes were not the same."""
    results = [held.meta["val"] if isinstance(held, Node) else held for held in piece.results]
    found = [_shape(leaf) for leaf in pytree.tree_leaves(piece.result(results))]
    if found != [_shape(leaf) for leaf in pytree.tree_leaves(node.meta.get("val"))]:
        raise Unfit(f"{node.target} gives another shape")


def _shape(value: Any) -> Any:
    return (value.dtype, tuple(map(str, value.shape))) if isinstance(value, torch.Tensor) else None
