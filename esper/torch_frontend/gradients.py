"""What autograd means but an FX graph does not say, written into the raw graph of a capture.

- Under `no_grad` an operator's result is a constant: it is detached.
- A write under `no_grad`, or through a detached alias, changes a tensor's value and leaves its gradient alone.
- A tensor hook changes the gradient of every use of its tensor, those before it included.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import GraphModule, Node

from esper.errors import RefusedError
from esper.torch_frontend.functions import HOOK, Function, differentiable, of_hook
from esper.torch_frontend.places import user_line

Hooks = Mapping[str, Sequence[Callable[[Any], Any]]]  # by parameter name
_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")
_ALIASES = ("aten.detach.default", "aten.alias.default")


@torch.library.custom_op("esper::keep_gradient", mutates_args=())
def keep_gradient(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The value of `after`, with the gradient of `before`."""
    return after.clone()


@keep_gradient.register_fake
def _(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(after)


def keep_gradients(exported: ExportedProgram, calls: dict[str, Function], hooks: Hooks) -> None:
    """Rewrites the capture in place.

    Args:
        exported: A capture before functionalisation.
        calls: The stand-ins' calls, to which those of hooks on parameters are added.
        hooks: Hooks on parameters, by the parameter's name in the capture.
    """
    _hook_parameters(exported, calls, hooks)
    _hook_tensors(exported.graph_module, calls)
    buffers = {
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    }
    _keep(exported.graph_module, True, buffers)


def _keep(graph_module: GraphModule, enabled: bool, constant: set[str]) -> None:
    """One region, whose mode is `enabled`; `constant` names the placeholders that carry no gradient."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        body = _region(graph_module, node)
        if body is not None:
            inner, placeholders = (
                bool(node.args[0]) if _sets_mode(node) else enabled,
                body.graph.find_nodes(op="placeholder"),
            )
            operands = node.args[len(node.args) - len(placeholders) :]
            fixed = {p.name for p, o in zip(placeholders, operands, strict=True) if _name(o) in constant}
            _keep(body, inner, fixed)
        elif str(node.target) == "aten.detach_.default":
            _detach_from_here(graph_module.graph, node)
        elif _written(node):
            for target in _written(node):
                _keep_write(node, target, enabled, constant)
        elif not enabled and _made(node):
            _detach(graph_module.graph, node)
    graph_module.recompile()


def _name(operand: Any) -> str | None:
    return operand.name if isinstance(operand, Node) else None


def _region(graph_module: GraphModule, node: Node) -> GraphModule | None:
    """The body of a region that capture will inline again."""
    if not any(name in str(node.target) for name in _REGIONS):
        return None
    held = [arg for arg in node.args if isinstance(arg, Node) and arg.op == "get_attr"]
    return getattr(graph_module, str(held[0].target))


def _sets_mode(node: Node) -> bool:
    return _REGIONS[0] in str(node.target)


def _made(node: Node) -> bool:
    """Whether `node` is a value of its own (and not one a nested region hands out)."""
    if not differentiable(node.meta.get("val")):
        return False
    source = node.args[0] if node.args else None
    handed = isinstance(source, Node) and any(name in str(source.target) for name in _REGIONS)
    return str(node.target) != "aten.detach.default" and not handed


def _detach(graph: torch.fx.Graph, node: Node) -> None:
    with graph.inserting_after(node):
        new = graph.call_function(torch.ops.aten.detach.default, (node,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _detach_from_here(graph: torch.fx.Graph, node: Node) -> None:
    """`tensor.detach_()`: what reads the tensor later reads a constant."""
    tensor: Any = node.args[0]
    with graph.inserting_before(node):
        new = graph.call_function(torch.ops.aten.detach.default, (tensor,))
    new.meta = dict(tensor.meta)
    node.replace_all_uses_with(new)
    later = _after(graph, node)
    graph.erase_node(node)
    tensor.replace_all_uses_with(new, delete_user_cb=lambda user: user in later)


def _written(node: Node) -> list[Node]:
    """The tensors an operator writes into."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or str(node.target) == HOOK:
        return []
    found = []
    for place, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
            found += [value] if isinstance(value, Node) else []
    return found


def _keep_write(node: Node, target: Node, enabled: bool, constant: set[str]) -> None:
    """After a write that autograd does not see, gives the tensor its new value with its old gradient."""
    if len(_written(node)) == 1 and isinstance(node.meta.get("val"), torch.Tensor):
        node.replace_all_uses_with(target)  # an in-place operator returns the tensor it wrote into
    owner = _owner(target, enabled)
    if owner is None or owner.name in constant or not differentiable(owner.meta.get("val")):
        return
    if enabled and not _read_later(owner, node, target):
        return
    graph = node.graph
    with graph.inserting_before(node):
        before = graph.call_function(torch.ops.aten.clone.default, (owner,))
    with graph.inserting_after(node):
        kept = graph.call_function(torch.ops.esper.keep_gradient.default, (before, owner))
    with graph.inserting_after(kept):
        written = graph.call_function(torch.ops.aten.copy_.default, (owner, kept))
    for new in (before, kept, written):
        new.meta = dict(owner.meta, **{k: node.meta[k] for k in ("stack_trace", "nn_module_stack") if k in node.meta})


def _owner(target: Node, enabled: bool) -> Node | None:
    """The tensor with a gradient that a write into `target` changes unseen; None if autograd sees the write."""
    owner = None if enabled else target
    node: Any = target
    while isinstance(node, Node) and node.op == "call_function" and _is_view(node):
        source = node.args[0]
        if str(node.target) == "aten.detach.default" and isinstance(source, Node):
            owner = source
        node = source
    if owner is target and not (isinstance(node, Node) and node.op == "placeholder"):
        return None  # made in this very region: a constant already
    return owner


def _after(graph: torch.fx.Graph, node: Node) -> set[Node]:
    """The nodes after `node`."""
    nodes = list(graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments:
        return False
    alias = schema.arguments[0].alias_info
    return alias is not None and not alias.is_write


def _read_later(owner: Node, node: Node, target: Node) -> bool:
    """Whether something after `node` reads what aliases `owner`, other than through the detached alias."""
    order = {other: place for place, other in enumerate(owner.graph.nodes)}
    seen, waiting = set(), [owner]
    while waiting:
        held = waiting.pop()
        for user in held.users:
            if str(user.target) in _ALIASES or user in seen:
                continue
            seen.add(user)
            if order[user] > order[node]:
                return True
            if user.op == "call_function" and _is_view(user):
                waiting.append(user)
    return False


def _hook_parameters(exported: ExportedProgram, calls: dict[str, Function], hooks: Hooks) -> None:
    """Notes the hooks that were put on parameters before the capture."""
    graph = exported.graph_module.graph
    placeholders = {node.name: node for node in graph.find_nodes(op="placeholder")}
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for spec in exported.graph_signature.input_specs:
        for hook in hooks.get(spec.target or "", ()) if spec.kind is InputKind.PARAMETER else ():
            name = f"hook_{len(calls)}"
            calls[name] = of_hook(hook, f"parameter {spec.target}")
            with graph.inserting_before(first):
                graph.call_function(torch.ops.esper.hook.default, (placeholders[spec.arg.name], name))


def _hook_tensors(graph_module: GraphModule, calls: Mapping[str, Function]) -> None:
    """Replaces every hook mark by an identity with the hook's backward."""
    graph = graph_module.graph
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)  # where capture cut regions out, it forgot some
    marks = []
    for node in list(graph.nodes):
        body = _region(graph_module, node) if node.op == "call_function" else None
        if body is not None:
            _hook_tensors(body, calls)
        if node.op == "call_function" and str(node.target) == HOOK:
            tensor, name = node.args
            marks.append((tensor, name, _last_write(tensor, node)))
    for mark in graph.find_nodes(op="call_function", target=torch.ops.esper.hook.default):
        graph.erase_node(mark)
    for tensor, name, written in marks:
        if not calls[name].removed:
            _hook_tensor(graph, tensor, name, written)
    graph_module.recompile()


def _last_write(tensor: Node, mark: Node) -> Node | None:
    """The last write into `tensor` before `mark`: a hook is on the value that it left."""
    last = None
    family = _family(tensor)
    for node in tensor.graph.nodes:
        if node is mark:
            return last
        if node.op == "call_function" and family.intersection(_written(node)):
            last = node
    return last


def _family(tensor: Node) -> set[Node]:
    """The tensor, what it is a view of, and the views of these."""
    root = tensor
    while root.op == "call_function" and _is_view(root) and isinstance(root.args[0], Node):
        root = root.args[0]
    found, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        found.add(node)
        waiting += [
            user for user in node.users if user.op == "call_function" and _is_view(user) and user.args[0] is node
        ]
    return found


def _hook_tensor(graph: torch.fx.Graph, tensor: Node, name: str, written: Node | None) -> None:
    last = tensor if written is None else written
    if last.op == "placeholder":
        last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        call = graph.call_function(torch.ops.esper.function.default, ([tensor], name))
    with graph.inserting_after(call):
        hooked = graph.call_function(operator.getitem, (call, 0))
    call.meta = {**tensor.meta, "val": [tensor.meta["val"]]}
    hooked.meta = dict(tensor.meta)
    later = _after(graph, hooked)
    # A later write goes to the tensor and not to the hooked value: the hook stays with the value before it.
    writes = [node for node in later if _family(tensor).intersection(_written(node))]
    if writes and tensor.op == "call_function" and _is_view(tensor):
        raise RefusedError(
            "a hooked view is written into in place "
            f"({user_line(tensor.meta.get('stack_trace'))}): clone the view first"
        )
    tensor.replace_all_uses_with(hooked, delete_user_cb=lambda user: user in later)
