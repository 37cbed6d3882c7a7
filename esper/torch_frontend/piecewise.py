"""Functionalisation of a capture one operator at a time.

Torch's own pass runs the whole graph twice more. Most operators come out of it as they went in, so here they are
copied, and only those that write into a tensor, or are to be taken apart, are traced anew, those that are alike once.
What cannot be told from the operators alone (`Unfit`) is left to torch's pass.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._decomp import _should_decompose_because_unsafe_op
from torch._export.utils import _check_valid_to_preserve, _is_cia_op
from torch.export import ExportedProgram
from torch.export.exported_program import _convert_guards_to_code
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node

from esper.torch_frontend.retrace import Piece, Retracer, Unfit

_WRITTEN = {InputKind.BUFFER: OutputKind.BUFFER_MUTATION, InputKind.PARAMETER: OutputKind.PARAMETER_MUTATION}
_GRAD_REGION = "wrap_with_set_grad_enabled"
_KEY = torch._C.DispatchKey
_CHANGED = (torch.ops.aten.lift_fresh_copy.default,)  # functionalisation says it differently


def functional(captured: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """What `captured.run_decompositions(table)` gives, but for names; `captured` stays as it is.

    Raises:
        Unfit: This capture needs the whole pass.
    """
    with Retracer(captured, table) as retracer:
        builder = _Builder(retracer)
        output = builder.add(captured.graph_module, {})
        graph_module, signature = builder.finished(output, captured.graph_signature)
    made = copy.copy(captured)
    made._graph_module, made._graph_signature = graph_module, signature
    made._guards_code = _convert_guards_to_code(graph_module)
    return made


class _Builder:
    """Makes the new graph while the old one is walked. Old nodes are tensors, new nodes are their values."""

    def __init__(self, retracer: Retracer) -> None:
        self._retracer = retracer
        self._graph = Graph()
        self._values: dict[Node, Any] = {}
        self._tensors: dict[Node, Node] = {}  # further nodes of a tensor: its first one
        self._regions: dict[Node, Sequence[Any]] = {}  # what regions hand out
        self._storages: dict[int, set[Node]] = {}  # tensors by the memory that they had while they were captured
        self._inputs: dict[Node, Node] = {}
        self._stays: dict[Any, bool] = {}
        self._sizes: dict[str, Node] = {}  # one node for each symbolic size

    def add(self, part: GraphModule, operands: Mapping[Node, Any]) -> Any:
        """Adds a graph, or a region of one, whose inputs are `operands`; returns the old output."""
        for node in part.graph.nodes:
            if node in operands:
                self._same(node, operands[node])
            elif node.op == "placeholder":
                self._note(node, self._input(node))
            elif node.op == "get_attr":
                self._values[node] = getattr(part, str(node.target), None)
            elif node.op == "output":
                return node.args[0]
            else:
                self._call(node)
        raise Unfit("a graph without an output")

    def finished(self, output: Sequence[Any], before: ExportGraphSignature) -> tuple[GraphModule, ExportGraphSignature]:
        """The graph module and its signature: inputs that were written into come first among the outputs."""
        results, specs = [], []
        for (old, new), spec in zip(self._inputs.items(), before.input_specs, strict=True):
            value = self._values[old]
            if value is not new:
                if spec.kind not in _WRITTEN:
                    raise Unfit(f"{spec.kind.name} is written into")
                value = _written_value(value)
                results.append(value)
                specs.append(OutputSpec(_WRITTEN[spec.kind], TensorArgument(value.name), spec.target))
        if len(output) != len(before.output_specs):
            raise Unfit("outputs that are not the caller's")
        for old, spec in zip(output, before.output_specs, strict=True):
            if spec.kind is not OutputKind.USER_OUTPUT:
                raise Unfit(f"an output is a {spec.kind.name}")
            results.append(self._value(old) if isinstance(old, Node) else old)
            specs.append(spec)
        self._graph.output(tuple(results))
        self._graph.eliminate_dead_code()
        return GraphModule({}, self._graph), ExportGraphSignature(list(before.input_specs), specs)

    def _input(self, node: Node) -> Node:
        new = self._copied(node)
        self._inputs[node] = new
        return new

    def _copied(self, node: Node) -> Node:
        new = self._graph.node_copy(node, self._value)
        new.meta = dict(node.meta)
        return new

    def _value(self, node: Node) -> Any:
        return self._values[self._tensors.get(node, node)]

    def _same(self, node: Node, other: Any) -> None:
        """Notes a further node of a tensor, or a number."""
        if isinstance(other, Node):
            self._tensors[node] = self._tensors.get(other, other)
        else:
            self._values[node] = other

    def _note(self, node: Node, value: Any) -> None:
        self._values[node] = value
        self._size(value)
        memory = _memory(node)
        if memory is not None:
            self._storages.setdefault(memory, set()).add(node)

    def _size(self, node: Any) -> Node | None:
        """The node that first had the symbolic size that `node` has; None if it is no size."""
        size = node.meta.get("val") if isinstance(node, Node) else None
        return self._sizes.setdefault(str(size), node) if isinstance(size, torch.SymInt) else None

    def _call(self, node: Node) -> None:
        target: Any = node.target
        if target is operator.getitem:
            self._item(node)
        elif _GRAD_REGION in str(target):
            self._region(node)
        elif isinstance(target, torch._ops.HigherOrderOperator):
            raise Unfit(f"{target} runs a graph")
        elif not isinstance(target, torch._ops.OpOverload) or self._is_final(target):
            self._note(node, self._copied(node))
        elif torch.Tag.inplace_view in target.tags:
            raise Unfit(f"{target} gives a tensor another shape or another memory")
        elif target._schema.returns or target._schema.is_mutable:
            self._retrace(node, target)
        # What returns nothing is an assertion: compiled programs cannot raise.

    def _item(self, node: Node) -> None:
        source: Any
        place: Any
        source, place = node.args
        if source in self._regions:
            self._same(node, self._regions[source][place])
            return
        held = self._value(source)
        self._note(node, held[place] if isinstance(held, tuple | list) else self._copied(node))

    def _region(self, node: Node) -> None:
        """A region's operators stand in the open: what its mode means, `keep_gradients` has written into it."""
        _, name, *operands = node.args
        body = self._values[name]  # pyright: ignore[reportArgumentType]
        if not isinstance(body, GraphModule):
            raise Unfit("a region without a graph")
        inputs = body.graph.find_nodes(op="placeholder")
        output = self.add(body, dict(zip(inputs, operands, strict=True)))
        self._regions[node] = output if isinstance(output, tuple | list) else (output,)

    def _is_final(self, op: torch._ops.OpOverload) -> bool:
        if op not in self._stays:
            self._stays[op] = op not in self._retracer.table and _is_kept(op)
        return self._stays[op]

    def _retrace(self, node: Node, op: torch._ops.OpOverload) -> None:
        piece, operands = self._retracer.piece(node, op, self._value)
        values = self._inlined(piece, operands, node)
        for place, value in piece.written(values):
            self._write(operands.old[place], value)
        if op._schema.is_mutable and len(piece.places) == 1 and _returns_written(op):
            self._same(node, operands.old[piece.places[0]])
        else:
            self._note(node, piece.result(values))

    def _write(self, old: Node, value: Node) -> None:
        tensor = self._tensors.get(old, old)
        memory = _memory(tensor)
        if memory is None or self._storages[memory] != {tensor}:
            raise Unfit("a tensor that has views is written into")
        self._values[tensor] = value

    def _inlined(self, piece: Piece, operands: Any, node: Node) -> list[Any]:
        """Adds a piece's nodes; returns the values of its results."""
        held: dict[Node, Any] = dict(zip(piece.inputs, operands.new, strict=True))
        for inner in piece.nodes:
            made = self._graph.node_copy(inner, held.__getitem__)
            made.meta = {**node.meta, "val": inner.meta.get("val")}
            held[inner] = self._size(made) or made
        return [held[result] if isinstance(result, Node) else result for result in piece.results]


def _written_value(value: Node) -> Node:
    """A copy into a tensor's own place is what is copied, if it is like it."""
    if value.target is not torch.ops.aten.copy.default:
        return value
    source: Any = value.args[1]
    if not isinstance(source, Node) or len(value.args) != 2:
        return value
    was, now = value.meta["val"], source.meta["val"]
    alike = isinstance(now, torch.Tensor) and (was.dtype, was.shape, was.device) == (now.dtype, now.shape, now.device)
    if alike:
        value.replace_all_uses_with(source)
    return source if alike else value


def _is_kept(op: torch._ops.OpOverload) -> bool:
    """Whether torch's pass leaves an operator as it is, if the table does not name it."""
    if op._schema.is_mutable or op in _CHANGED or _should_decompose_because_unsafe_op(op):
        return False
    if _is_cia_op(op):
        return _check_valid_to_preserve(op)
    return _KEY.Autograd not in op.py_kernels and _KEY.CompositeImplicitAutograd not in op.py_kernels


def _returns_written(op: torch._ops.OpOverload) -> bool:
    returns = op._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None and returns[0].alias_info.is_write


def _memory(node: Node) -> int | None:
    """The storage of the tensor that a node was in the capture."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError) as error:  # a sparse tensor, or one of a transform
        raise Unfit(str(error)) from error
