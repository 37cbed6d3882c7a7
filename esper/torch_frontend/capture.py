"""One capture of a module by `torch.export`, with torch's gradient semantics kept or refused.

Export loses some of what autograd means (FX graphs have no `no_grad`, no custom backwards). Each such
loss is met here: rewritten so that the graph says it, or refused with its place in the user's code.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.fx.experimental._config as shape_config
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from esper.errors import RefusedError, TraceError
from esper.program import Tree, flatten, unflatten
from esper.torch_frontend.places import user_line

PREFIX = "module"  # where the user's module hangs inside `_Flat`


class Seen:
    """What a captured call showed of itself; an object of its own because export restores module attributes."""

    out_tree: Tree


class _Flat(nn.Module):
    """The user's module behind a flat list of tensors, so that its containers are ours to describe."""

    def __init__(self, module: nn.Module, tree: Tree, leaves: Sequence[Any]) -> None:
        super().__init__()
        self.module = module
        self._call = tree
        self._leaves = leaves  # tensors are None here and come as arguments
        self.seen = Seen()

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        given = iter(tensors)
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in self._leaves]
        args, kwargs = unflatten(self._call, leaves)
        with _DetachData():
            out = self.module(*args, **kwargs)
        outputs, out_tree = flatten(out, _open_object)
        self.seen.out_tree = out_tree
        return outputs


_TENSOR = object()


def flat_call(module: nn.Module, tree: Tree, leaves: Sequence[Any]) -> _Flat:
    """`module` as a function of its tensors only; `leaves` are those of `tree`, tensors included."""
    return _Flat(module, tree, [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])


def export(flat: _Flat, tensors: Sequence[torch.Tensor], dynamic: frozenset[int]) -> ExportedProgram:
    """Captures one call.

    Args:
        flat: The module, from `flat_call`.
        tensors: Example inputs; their values are not read.
        dynamic: Places of the tensors whose first dimension stays symbolic.

    Raises:
        TraceError: The module does something that capture cannot keep.
    """
    shapes = tuple({0: Dim.AUTO} if place in dynamic else None for place in range(len(tensors)))
    dynamic_shapes = (shapes,) if shapes else None
    with _quiet(), _refusals(), _export_settings():
        try:
            captured = torch.export.export(flat, tuple(tensors), dynamic_shapes=dynamic_shapes, strict=False)
        except TraceError:
            raise
        except Exception as error:  # torch.export raises every kind of exception: all become one, with the cause kept
            raise TraceError(_explain(error)) from error
    _detach_no_grad(captured.graph_module, [])
    return captured


def functionalise(captured: ExportedProgram, decompositions: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    """In-place updates turned into outputs; the operators in `decompositions` taken apart."""
    with _quiet(), _export_settings():
        try:
            return captured.run_decompositions(dict(decompositions))
        except Exception as error:  # as above
            raise TraceError(_explain(error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # Export warns of its own deprecations and of attributes that modules cache in forward.
        warnings.simplefilter("ignore")
        was = _FAKE_LOG.disabled
        _FAKE_LOG.disabled = True  # it logs every failure of a capture, which the error reports once
        try:
            yield
        finally:
            _FAKE_LOG.disabled = was


@contextmanager
def _export_settings() -> Iterator[None]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Oblivious to 0 and 1: what the model assumes of a size becomes a guard instead of a silent branch.
        with torch.enable_grad(), shape_config.patch(backed_size_oblivious=True):  # pyright: ignore[reportAttributeAccessIssue]
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


_READ_DATA = torch.Tensor.data.__get__  # pyright: ignore[reportAttributeAccessIssue]
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


class _DetachData(TorchFunctionMode):
    """`tensor.data` reads as `tensor.detach()`, which survives in the graph."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _READ_DATA:
            return args[0].detach()
        return func(*args, **(kwargs or {}))


@contextmanager
def _refusals() -> Iterator[None]:
    """What export would drop without a word is refused while it runs."""
    apply = torch.autograd.Function.__dict__["apply"]

    def custom(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.split(".")[0] == "torch":  # torch's own plumbing, of custom operators for one
            return apply.__get__(None, cls)(*args, **kwargs)
        raise RefusedError(
            f"the torch.autograd.Function {cls.__qualname__} is used at {user_line()}: its backward would be lost. "
            "Write its forward with differentiable operators."
        )

    def hook(*_args: Any, **_kwargs: Any) -> Any:
        raise RefusedError(
            f"a tensor hook is registered at {user_line()}: its effect on gradients would be lost. "
            "Remove it, or move its effect into the loss."
        )

    with (
        patch.object(torch.autograd.Function, "apply", classmethod(custom)),
        patch.object(torch.Tensor, "register_hook", hook),
        ExitStack() as stack,
    ):
        for function in _custom_functions(torch.autograd.Function):
            # A model may hold a bound `apply` from before; `forward` is looked up at every call.
            refuse = staticmethod(lambda *_args, _cls=function, **_kwargs: custom(_cls))
            stack.enter_context(patch.object(function, "forward", refuse))
        yield


def _custom_functions(base: type) -> Iterator[type]:
    """Every autograd function there is that is not torch's own."""
    for cls in base.__subclasses__():
        yield from _custom_functions(cls)
        if cls.__module__.split(".")[0] != "torch":
            yield cls


def _detach_no_grad(graph_module: torch.fx.GraphModule, within: list[bool]) -> None:
    """Puts a `detach` on everything a `no_grad` region computes, before the region is inlined."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and "wrap_with_set_grad_enabled" in str(node.target):
            enabled, body = node.args[0], getattr(graph_module, node.args[1].target)
            if enabled and False in within:
                raise RefusedError(
                    f"enable_grad inside no_grad at {user_line(node.meta.get('stack_trace')) or 'an unknown place'}: "
                    "this nesting is not supported; compute that part outside of no_grad."
                )
            _detach_no_grad(body, [*within, enabled])
            if not enabled:
                _detach_outputs(body)
    graph_module.recompile()


def _detach_outputs(body: torch.fx.GraphModule) -> None:
    output = next(node for node in body.graph.nodes if node.op == "output")
    detached: dict[torch.fx.Node, torch.fx.Node] = {}
    with body.graph.inserting_before(output):
        for node in output.all_input_nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
                new = body.graph.call_function(torch.ops.aten.detach.default, (node,))
                new.meta = dict(node.meta)
                detached[node] = new
    for node, new in detached.items():
        output.replace_input_with(node, new)
    body.recompile()


def _open_object(value: Any) -> tuple[Any] | None:
    """An output object that holds tensors (such as a Hugging Face cache), as a plain dict of its attributes."""
    if isinstance(value, torch.Tensor | type) or not _holds_tensor(value, depth=4):
        return None
    return ({name: member for name, member in vars(value).items() if _holds_tensor(member, depth=3)},)


def _holds_tensor(value: Any, depth: int) -> bool:
    if isinstance(value, torch.Tensor):
        return True
    if depth == 0:
        return False
    if isinstance(value, Mapping):
        return any(_holds_tensor(member, depth - 1) for member in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(member, depth - 1) for member in value)
    return any(_holds_tensor(member, depth - 1) for member in getattr(value, "__dict__", {}).values())


def _explain(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    place = user_line(text) or user_line("".join(traceback.format_tb(error.__traceback__)))
    return f"the module could not be captured{f' at {place}' if place else ''}: {first}"
