"""An exported graph as a Program: names, literals, types, places. No semantics are changed here."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.export.graph_signature import InputSpec as TorchInput
from torch.fx import GraphModule
from torch.fx import Node as FxNode

from esper.errors import RefusedError, TraceError
from esper.program import GRAFT, DType, InputSpec, Node, OutputSpec, Program, Ref, TensorType, Tree, flatten, verify
from esper.program.sizes import check
from esper.program.slicing import between
from esper.torch_frontend.capture import PREFIX
from esper.torch_frontend.derivatives import GRAD
from esper.torch_frontend.functions import FUNCTION, Joint
from esper.torch_frontend.places import user_line
from esper.torch_frontend.regions import REGION
from esper.torch_frontend.strides import check_memory

Named = Callable[[torch.Tensor], tuple[str, str]]
_PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "generator")
_KINDS = {
    InputKind.PARAMETER: "param",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
    InputKind.USER_INPUT: "user",
}
_MUTATIONS = {OutputKind.BUFFER_MUTATION: "buffer", OutputKind.PARAMETER_MUTATION: "param"}
_PRODUCTS = frozenset(
    f"aten.{name}"
    for name in (
        *("linear.default", "mm.default", "bmm.default", "addmm.default", "baddbmm.default", "matmul.default"),
        *(f"conv{n}d.{overload}" for n in (1, 2, 3) for overload in ("default", "padding")),
        *(f"conv_transpose{n}d.{'default' if n == 1 else 'input'}" for n in (1, 2, 3)),
    )
)
# Operators that drop or broadcast dimensions of size one: a symbolic size must not be 1 there unseen.
_SQUEEZES = ("aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims")


def translate(
    exported: ExportedProgram,
    *,
    out_tree: Tree,
    assigned: Sequence[str],
    leaf_names: Sequence[str],
    aliases: Mapping[str, str],
    train: bool,
    named: Named,
    functions: Mapping[str, Joint],
) -> Program:
    """The Program of a functionalised export.

    Args:
        exported: What `functionalise` returned.
        out_tree: Structure of the module's outputs.
        assigned: Buffers whose new values follow the module's outputs.
        leaf_names: A readable place for each tensor input.
        aliases: Tied names, {alias: canonical}.
        train: Mode of the capture.
        named: The kind and name of a tensor the graph closes over.
        functions: The functions with a backward of their own, by the name of their stand-in.
    """
    nodes = list(exported.graph.nodes)
    specs = dict(zip([n for n in nodes if n.op == "placeholder"], exported.graph_signature.input_specs, strict=True))
    builder = _Builder(aliases, iter(leaf_names), named, functions, exported.constants)
    for fx_node in nodes:
        if fx_node.op == "placeholder":
            builder.add_input(fx_node, specs[fx_node])
        elif fx_node.op == "call_function":
            builder.add_node(fx_node)
        elif fx_node.op == "output":
            builder.add_outputs(fx_node, exported, assigned)
        else:
            builder.add_body(fx_node)
    guards = [*_guards(exported), *builder.squeezed()]
    program = Program(
        inputs=tuple(builder.inputs),
        nodes=_live(builder.nodes, builder.outputs),
        outputs=tuple(builder.outputs),
        out_tree=out_tree,
        types=builder.types,
        ranges=_ranges(exported, builder.symbols),
        guards=tuple(dict.fromkeys(guards)),
        aliases=dict(aliases),
        train=train,
    )
    _check_dtypes(program)
    return verify(program)


def _body(graph_module: GraphModule, functions: Mapping[str, Joint]) -> Program:
    """The Program of a graph that another one runs: a branch, a loop's body, a backward."""
    builder = _Builder({}, iter(()), _nothing_named, functions, {})
    for fx_node in graph_module.graph.nodes:
        if fx_node.op == "placeholder":
            builder.add_operand(fx_node)
        elif fx_node.op == "call_function":
            builder.add_node(fx_node)
        elif fx_node.op == "output":
            builder.add_results(fx_node)
        else:
            builder.add_body(fx_node)
    return Program(
        inputs=tuple(builder.inputs),
        nodes=_live(builder.nodes, builder.outputs),
        outputs=tuple(builder.outputs),
        out_tree=flatten([0] * len(builder.outputs))[1],
        types=builder.types,
    )


def _nothing_named(tensor: torch.Tensor) -> tuple[str, str]:
    raise TraceError(
        f"a branch, a loop or the backward of a function closes over a tensor of shape {tuple(tensor.shape)}: "
        "give it as an argument"
    )


def _check_dtypes(program: Program) -> None:
    """Eager torch refuses a product of unlike dtypes; a capture lets it pass."""
    for node in program.nodes:
        if node.op in _PRODUCTS:
            found = {program.types[ref.name].dtype for ref in node.refs() if ref.name in program.types}
            if len(found) > 1:
                raise RefusedError(
                    f"{node.op} at {node.scope or '(root)'} ({node.source}) meets tensors of "
                    f"{' and '.join(sorted(found))}: torch wants one dtype; cast the input"
                )


class _Builder:
    """Collects the parts of a Program while the graph is walked."""

    def __init__(
        self,
        aliases: Mapping[str, str],
        leaf_names: Iterator[str],
        named: Named,
        functions: Mapping[str, Joint],
        constants: Mapping[str, Any],
    ) -> None:
        self.inputs: list[InputSpec] = []
        self.nodes: list[Node] = []
        self.outputs: list[OutputSpec] = []
        self.types: dict[str, TensorType] = {}
        self._aliases, self._leaf_names, self._named = aliases, leaf_names, named
        self._functions, self._constants = functions, constants
        self._values: dict[FxNode, Any] = {}
        self._holders: dict[tuple[str, str], str] = {}
        self.symbols: dict[str, str] = {}
        self._user_tensors = 0
        self._region = ""

    def add_input(self, fx_node: FxNode, spec: TorchInput) -> None:
        kind = _KINDS.get(spec.kind)
        if kind is None:
            raise TraceError(
                f"the forward uses an object of kind {spec.kind.name} ({_strip(spec.target or '')}), which cannot be "
                "carried; a torch.Generator, for one: draws come from the call's `key`"
            )
        found = _tensor_type(fx_node.meta["val"])
        target = next(self._leaf_names) if kind == "user" else _strip(spec.target or "")
        if kind == "user":
            self._note_symbols(found)
        elif kind == "constant" and not fx_node.users:
            return
        elif kind == "constant":
            kind, target = self._named(_constant(self._constants, spec.target or ""))
        target = self._aliases.get(target, target) if kind in ("param", "buffer") else target
        holder = self._holders.setdefault((kind, target), fx_node.name)
        self._values[fx_node] = Ref(holder)
        if holder == fx_node.name:  # tied names become one input
            self.types[fx_node.name] = found
            self.inputs.append(InputSpec(fx_node.name, kind, target, found))

    def add_operand(self, fx_node: FxNode) -> None:
        """An input of a body: a tensor or a size."""
        value = fx_node.meta["val"]
        found = _tensor_type(value) if isinstance(value, torch.Tensor) else TensorType((), "int64")
        self._values[fx_node] = Ref(fx_node.name)
        self.types[fx_node.name] = found
        self.inputs.append(InputSpec(fx_node.name, "user", fx_node.name, found))

    def add_body(self, fx_node: FxNode) -> None:
        """A graph that an operator will run."""
        owner = fx_node.graph.owning_module
        found = owner.get_submodule(str(fx_node.target)) if owner is not None and fx_node.op == "get_attr" else None
        if not isinstance(found, GraphModule):
            raise TraceError(f"unexpected {fx_node.op} node {fx_node.name} in the exported graph")
        self._values[fx_node] = _body(found, self._functions)

    def add_results(self, fx_node: FxNode) -> None:
        """What a body ends with."""
        value = fx_node.args[0]
        for result in value if isinstance(value, list | tuple) else [value]:
            self.outputs.append(OutputSpec("user", self._literal(result)))

    def add_node(self, fx_node: FxNode) -> None:
        if fx_node.target is operator.getitem:
            source, index = fx_node.args
            self._values[fx_node] = self._values[source][index]  # type: ignore[index]
            return
        if fx_node.target is torch.ops.aten.clone.default and self._is_input(fx_node.args[0]):
            self._values[fx_node] = self._values[fx_node.args[0]]  # type: ignore[index]
            return
        if op_name(fx_node.target) == REGION:
            self._region = str(fx_node.args[0])
            return
        check_memory(fx_node)
        value = fx_node.meta.get("val")
        multiple = isinstance(value, list | tuple)
        members = list(value) if multiple else [value]
        names = [f"{fx_node.name}_{i}" if multiple else fx_node.name for i in range(len(members))]
        self._values[fx_node] = tuple(Ref(n) for n in names) if multiple else Ref(names[0])
        self.types.update(
            {n: _tensor_type(v) for n, v in zip(names, members, strict=True) if isinstance(v, torch.Tensor)}
        )
        self.nodes.append(
            Node(
                op=op_name(fx_node.target),
                args=self._arguments(fx_node),
                kwargs=tuple((k, self._literal(v)) for k, v in fx_node.kwargs.items() if k not in _PLACEMENT),
                outputs=tuple(names),
                multiple=multiple,
                scope=_scope(fx_node),
                source=user_line(fx_node.meta["stack_trace"]) if fx_node.meta.get("stack_trace") else "",
                region=self._region,
            )
        )

    def _is_input(self, source: Any) -> bool:
        """Whether `source` is one of the caller's tensors, which the capture copied first."""
        value = self._values.get(source)
        return isinstance(value, Ref) and any(held.name == value.name and held.kind == "user" for held in self.inputs)

    def _arguments(self, fx_node: FxNode) -> tuple[Any, ...]:
        if op_name(fx_node.target) == GRAD:
            outputs, inputs, cotangents, batched = self._literal(tuple(fx_node.args))
            body, free = between(self.nodes, self.types, inputs, outputs)
            return body, inputs, free, cotangents, batched
        if op_name(fx_node.target) != FUNCTION:
            return self._literal(tuple(fx_node.args))
        tensors, name = fx_node.args
        found = self._functions[str(name)]
        bodies = (_body(found.forward, self._functions), _body(found.backward, self._functions))
        if any(node.op == GRAFT for body in bodies for node in body.walk()):
            raise RefusedError(f"a layer with seeds runs inside {name}: leave it out of target_layers")
        constants = tuple(self._constant(tensor) for tensor in found.constants)
        return ((*self._literal(tensors), *constants), *bodies, found.outputs, found.graded)

    def _constant(self, tensor: torch.Tensor) -> Ref:
        """A tensor that a function closes over, as an input of the Program."""
        kind, target = self._named(tensor)
        name = self._holders.setdefault((kind, target), f"{kind}_{len(self.inputs)}")
        if name not in self.types:
            self.types[name] = _tensor_type(tensor)
            self.inputs.append(InputSpec(name, kind, target, self.types[name]))
        return Ref(name)

    def add_outputs(self, fx_node: FxNode, exported: ExportedProgram, assigned: Sequence[str]) -> None:
        for value, spec in zip(fx_node.args[0], exported.graph_signature.output_specs, strict=True):  # type: ignore[arg-type]
            if spec.kind is OutputKind.USER_OUTPUT:
                self.outputs.append(OutputSpec("user", self._literal(value)))
            elif spec.kind in _MUTATIONS:
                target = _strip(spec.target or "")
                target = self._aliases.get(target, target)
                self.outputs.append(OutputSpec(_MUTATIONS[spec.kind], self._literal(value), target))
            else:
                raise RefusedError(
                    f"the forward writes into {_strip(spec.target or '')!r} in place ({spec.kind.name}), "
                    "which belongs to the caller: write into a buffer, or compute the new value instead"
                )
        for place, name in zip(range(-len(assigned), 0), assigned, strict=True):
            self.outputs[place] = self._as_buffer(self.outputs[place], self._aliases.get(name, name))

    def _as_buffer(self, spec: OutputSpec, name: str) -> OutputSpec:
        if not any(held.kind == "buffer" and held.target == name for held in self.inputs):
            found = self.types[spec.value.name]
            self.inputs.append(InputSpec(f"buffer_{len(self.inputs)}", "buffer", name, found))
            self.types[self.inputs[-1].name] = found
        return OutputSpec("buffer", spec.value, name)

    def squeezed(self) -> list[str]:
        """Guards that keep symbolic sizes from being 1 where a squeeze would drop them."""
        guards = []
        for node in self.nodes:
            if node.op in _SQUEEZES and isinstance(node.args[0], Ref):
                shape = self.types[node.args[0].name].shape
                guards += [f"{self.symbols[d]} != 1" for d in shape if isinstance(d, str) and d in self.symbols]
        return guards

    def _note_symbols(self, found: TensorType) -> None:
        for dimension, size in enumerate(found.shape):
            if isinstance(size, str):
                self.symbols.setdefault(size, f"size({self._user_tensors}, {dimension})")
        self._user_tensors += 1

    def _literal(self, value: Any) -> Any:
        if isinstance(value, FxNode):
            return self._values[value]
        if isinstance(value, list | tuple):
            return tuple(self._literal(item) for item in value)
        if isinstance(value, torch.dtype):
            return DType(dtype_name(value))
        if isinstance(value, torch.device | torch.layout | torch.memory_format):
            return None
        if value is None or isinstance(value, bool | int | float | complex | str):
            return value
        raise TraceError(f"an argument of type {type(value).__name__} cannot be carried in a Program: {value!r}")


def op_name(target: Any) -> str:
    """The full overload name of a call target."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}.default"
    module = {"_operator": "operator"}.get(target.__module__, target.__module__)
    return f"python.{module}.{target.__name__}"


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _constant(constants: Mapping[str, Any], name: str) -> torch.Tensor:
    found = constants[name]
    if not isinstance(found, torch.Tensor):
        raise TraceError(f"the model closes over {name}, a {type(found).__name__}, which cannot be carried")
    return found


def _strip(name: str) -> str:
    return "" if name == PREFIX else name.removeprefix(f"{PREFIX}.")


def _scope(fx_node: FxNode) -> str:
    stack = fx_node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty_nn")]
    return re.sub(r"@\d+", "", _strip(paths[-1])) if paths else ""


def _tensor_type(value: torch.Tensor) -> TensorType:
    return TensorType(tuple(_size(s) for s in value.shape), dtype_name(value.dtype))


def _size(size: int | torch.SymInt) -> int | str:
    text = str(size)
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def _ranges(exported: ExportedProgram, symbols: Container[str]) -> dict[str, tuple[int, int | None]]:
    """What the sizes of the inputs may be; those of values that depend on data are not ours to check."""
    ranges = {}
    for symbol, limits in exported.range_constraints.items():
        if str(symbol) not in symbols:
            continue
        high = float(limits.upper) if limits.upper.is_number and limits.upper.is_finite else math.inf
        ranges[str(symbol)] = (int(limits.lower), None if high >= 2**62 else int(high))
    return ranges


def _guards(exported: ExportedProgram) -> list[str]:
    """Export's guards, `L['tensors'][0].size()[1]` written as `size(0, 1)`."""
    guards = []
    for code in getattr(exported, "_guards_code", None) or []:
        text = ast.unparse(_GuardSizes().visit(ast.parse(code, mode="eval")))
        try:
            check(text)
        except ValueError as error:
            raise TraceError(f"the capture holds only if {text}, which is more than a condition on sizes") from error
        guards.append(text)
    return guards


class _GuardSizes(ast.NodeTransformer):
    """L['tensors'][i].size()[d] -> size(i, d)."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        match node:
            case ast.Subscript(
                ast.Call(ast.Attribute(ast.Subscript(ast.Subscript(ast.Name("L")), ast.Constant(i)), "size")),
                ast.Constant(d),
            ):
                return ast.Call(ast.Name("size"), [ast.Constant(i), ast.Constant(d)], [])
        return self.generic_visit(node)


def _live(nodes: Sequence[Node], outputs: Sequence[OutputSpec]) -> tuple[Node, ...]:
    """The nodes that something reads; drawing nodes keep their order, so keys stay as they are."""
    wanted = {spec.value.name for spec in outputs if isinstance(spec.value, Ref)}
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.outputs):
            wanted.update(ref.name for ref in node.refs())
            kept.append(node)
    return tuple(reversed(kept))
