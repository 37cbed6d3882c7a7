"""One capture of a module by `torch.export`, with torch's gradient semantics kept or refused.

Export loses some of what autograd means (FX graphs have no `no_grad`, no custom backwards). Each such
loss is met here: rewritten so that the graph says it, or refused with its place in the user's code.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.fx.experimental._config as shape_config
from torch import nn
from torch.export import Dim, ExportedProgram, _trace

from esper.errors import RefusedError, TraceError
from esper.program import Tree, flatten, unflatten
from esper.torch_frontend.checks import unchecked
from esper.torch_frontend.composites import quick_tables
from esper.torch_frontend.derivatives import func_transforms
from esper.torch_frontend.explain import explain
from esper.torch_frontend.flex import kernelless, trim
from esper.torch_frontend.forwards import blind_forwards, recurrent_layers
from esper.torch_frontend.functions import Function, Joint, joint, known, opaque
from esper.torch_frontend.gradients import Hooks, keep_gradients
from esper.torch_frontend.mode_regions import whole_regions
from esper.torch_frontend.overrides import Overrides, cumulative_batch_norm
from esper.torch_frontend.piecewise import functional
from esper.torch_frontend.places import user_line
from esper.torch_frontend.regions import checkpoints
from esper.torch_frontend.retrace import Unfit
from esper.torch_frontend.scripted import forget_plans, one_by_one, refuse_modes
from esper.torch_frontend.skeleton import restored
from esper.torch_frontend.tied import aliases, merge

_LOG = logging.getLogger(__name__)
PREFIX = "module"  # where the user's module hangs inside `_Flat`


class Seen:
    """What a captured call showed of itself; an object of its own because export restores module attributes."""

    out_tree: Tree
    assigned: tuple[str, ...]  # buffers that forward replaced; their values follow the outputs
    changed: Mapping[str, int | float]  # Python numbers and flags that forward changed, as they were before
    dropped: tuple[str, ...] = ()  # places of the user's checks of values, which were left out

    def __init__(self) -> None:
        self.calls: dict[str, Function] = {}


class _Flat(nn.Module):
    """The user's module behind a flat list of tensors, so that its containers are ours to describe."""

    def __init__(self, module: nn.Module, tree: Tree, leaves: Sequence[Any]) -> None:
        super().__init__()
        self.module = module
        self._call = tree
        self._leaves = leaves  # `_TENSOR` where one comes as an argument
        self.seen = Seen()

    def forward(self, *tensors: torch.Tensor) -> list[Any]:
        # A gradient may be taken to any input, as models ask; and the caller's arrays are never written into.
        given = iter([tensor.clone() for tensor in tensors])
        leaves = [next(given) if leaf is _TENSOR else leaf for leaf in self._leaves]
        args, kwargs = unflatten(self._call, leaves)
        held = dict(self.module.named_buffers())
        with restored(self.module) as changed, Overrides():
            out = self.module(*args, **kwargs)
        self.seen.changed = changed
        assigned = _assigned(self.module, held)
        outputs, out_tree = flatten(out, _open_object)
        self.seen.out_tree, self.seen.assigned = out_tree, tuple(assigned)
        return [*outputs, *assigned.values()]


def _assigned(module: nn.Module, held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The buffers that a forward replaced (`self.buffer = value`), which capture would lose; puts the old ones back."""
    found = {}
    owners = dict(module.named_modules(remove_duplicate=False))
    for name, before in held.items():
        path, _, own = name.rpartition(".")
        owner = owners[path]
        now = dict(owner._buffers.items()).get(own)
        if now is before:
            continue
        if now is None:
            raise RefusedError(f"the forward removes buffer {name!r}: buffers stay; write zeros into it instead")
        owner._buffers[own] = before
        found[name] = now.detach()
    return found


_TENSOR = object()


def flat_call(module: nn.Module, tree: Tree, leaves: Sequence[Any]) -> _Flat:
    """`module` as a function of its tensors only; `leaves` are those of `tree`, tensors included."""
    return _Flat(module, tree, [_TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])


def export(
    flat: _Flat, tensors: Sequence[torch.Tensor], dynamic: frozenset[int], hooks: Hooks | None = None
) -> ExportedProgram:
    """Captures one call.

    Args:
        flat: The module, from `flat_call`.
        tensors: Example inputs; their values are not read.
        dynamic: Places of the tensors whose first dimension stays symbolic.
        hooks: Hooks on parameters, by the parameter's name.

    Raises:
        TraceError: The module does something that capture cannot keep.
    """
    shapes = tuple({0: Dim.AUTO} if place in dynamic else None for place in range(len(tensors)))
    dynamic_shapes = (shapes,) if shapes else None
    calls = flat.seen.calls
    _refuse_backward_hooks(flat.module)
    refuse_modes(flat.module)
    forget_plans(flat.module)
    with _ALONE, _quiet(), _export_settings(), known(calls), _kept_meanings(), unchecked() as dropped:
        try:
            captured = torch.export.export(flat, tuple(tensors), dynamic_shapes=dynamic_shapes, strict=False)
        except TraceError:
            raise
        except Exception as error:  # torch.export raises every kind of exception: all become one, with the cause kept
            raise TraceError(explain(error, flat.module)) from error
    flat.seen.dropped = tuple(dropped)
    merge(captured, aliases(flat.module), PREFIX)
    keep_gradients(captured, calls, {f"{PREFIX}.{name}": found for name, found in (hooks or {}).items()})
    return captured


def functionalise(
    flat: _Flat, captured: ExportedProgram, decompositions: Mapping[Any, Callable[..., Any]]
) -> tuple[ExportedProgram, dict[str, Joint]]:
    """In-place updates turned into outputs; the operators in `decompositions` taken apart.

    Returns:
        The capture, and the graphs of the functions with a backward of their own that stand in it.
    """
    calls = flat.seen.calls
    with _ALONE, _quiet(), _export_settings(), known(calls), kernelless():
        try:
            made = _functional(captured, decompositions)
            return made, _joints(made.graph_module, calls, decompositions)
        except TraceError:
            raise
        except Exception as error:  # as above
            raise TraceError(explain(error, flat.module)) from error


def _functional(captured: ExportedProgram, decompositions: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    try:
        return functional(captured, decompositions)
    except Unfit as reason:
        _LOG.debug("the whole capture is traced again: %s", reason)
    with quick_tables():
        made = captured.run_decompositions(dict(decompositions))
    trim(made.graph_module)
    return made


def _joints(
    graph_module: torch.fx.GraphModule, calls: Mapping[str, Function], decompositions: Mapping[Any, Any]
) -> dict[str, Joint]:
    found: dict[str, Joint] = {}
    parts = [part for part in graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    for part in parts:
        for node in part.graph.find_nodes(op="call_function", target=torch.ops.esper.function.default):
            tensors, name = node.args
            examples = [tensor.meta["val"] for tensor in tensors]
            with examples[0].fake_mode:
                found[name] = joint(calls[name], examples, decompositions)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch says of a failed capture is said once, by the error."""
    was = [log.disabled for log in _LOGS]
    for log in _LOGS:
        log.disabled = True
    try:
        # Export warns of its own deprecations and of attributes that modules cache in forward; it prints graphs.
        with warnings.catch_warnings(), patch.object(_trace, "print", lambda *_, **__: None, create=True):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(_LOGS, was, strict=True):
            log.disabled = disabled


@contextmanager
def _export_settings() -> Iterator[None]:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Oblivious to 0 and 1: what the model assumes of a size becomes a guard instead of a silent branch.
        oblivious = shape_config.patch(backed_size_oblivious=True)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.enable_grad(), one_by_one(), recurrent_layers(), oblivious:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


_ALONE = threading.RLock()  # captures change what is torch's, and put it back: those of several threads take turns

_LOGS = [
    logging.getLogger(f"torch.{name}")
    for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes", "export._trace")
]


@contextmanager
def _inference_is_no_grad() -> Iterator[None]:
    """What `inference_mode` adds to `no_grad` is speed; a graph can say only `no_grad`."""
    modes: dict[int, torch.no_grad] = {}

    def enter(self: Any) -> None:
        if self.mode:
            modes[id(self)] = torch.no_grad()
            modes[id(self)].__enter__()

    def leave(self: Any, *error: Any) -> None:
        if id(self) in modes:
            modes.pop(id(self)).__exit__(*error)

    with patch.object(torch.inference_mode, "__enter__", enter), patch.object(torch.inference_mode, "__exit__", leave):
        yield


@contextmanager
def _refuse_saved_tensor_hooks() -> Iterator[None]:
    """Hooks that change what is saved for the backward change gradients; torch's own only move it about."""
    enter = torch.autograd.graph.saved_tensors_hooks.__enter__

    def refuse(self: Any) -> None:
        if (
            type(self).__module__.split(".")[0] == "torch"
            and type(self) is not torch.autograd.graph.saved_tensors_hooks
        ):
            return enter(self)
        raise RefusedError(
            f"saved_tensors_hooks at {user_line()} would be lost: a graph saves nothing. Remove them, or put what "
            "they do to gradients into a torch.autograd.Function."
        )

    with patch.object(torch.autograd.graph.saved_tensors_hooks, "__enter__", refuse):
        yield


@contextmanager
def _refuse_seeding() -> Iterator[None]:
    """A seed set inside a forward would be ignored: draws come from the call's key.

    One that was itself drawn (`torch.seed()`) says only that draws are random, which they are.
    """
    drawn: set[int] = set()

    def draw() -> int:
        drawn.add(2**62 + len(drawn))
        return max(drawn)

    def refuse(seed: int) -> None:
        if seed not in drawn:
            raise RefusedError(
                f"torch.manual_seed at {user_line()}: draws come from the call's `key`. Set that instead."
            )

    places = [(torch, "manual_seed", refuse), (torch.random, "manual_seed", refuse), (torch, "seed", draw)]
    with ExitStack() as stack:
        for owner, name, replacement in places:
            stack.enter_context(patch.object(owner, name, replacement))
        yield


@contextmanager
def _kept_meanings() -> Iterator[None]:
    """What must be in place while a user's forward is traced."""
    with (
        opaque(),
        checkpoints(),
        _inference_is_no_grad(),
        _refuse_saved_tensor_hooks(),
        _refuse_seeding(),
        cumulative_batch_norm(),
        func_transforms(),
        _modules_keep_their_dtype(),
        blind_forwards(),
        kernelless(),
        whole_regions(),
    ):
        yield


@contextmanager
def _modules_keep_their_dtype() -> Iterator[None]:
    """A module that is moved or cast in a forward (`self.part.to(x.dtype)`) stays as it is, or the move is refused."""

    def keep(self: nn.Module, function: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        if all(function(tensor) is tensor for tensor in (*self.parameters(recurse), *self.buffers(recurse))):
            return self
        raise RefusedError(
            f"the forward casts a {type(self).__name__} at {user_line()}, which would change its parameters: cast what "
            "it takes and gives instead"
        )

    with patch.object(nn.Module, "_apply", keep):
        yield


def _refuse_backward_hooks(module: nn.Module) -> None:
    """A module's backward hooks see and change gradients at a boundary that the graph does not keep."""
    for name, sub in module.named_modules():
        if sub._backward_hooks or sub._backward_pre_hooks:
            raise RefusedError(
                f"{name or '(root)'} ({type(sub).__name__}) has a backward hook: its effect on gradients would be "
                "lost. Remove it, or put a hook on the module's output tensor in forward (Tensor.register_hook)."
            )


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
