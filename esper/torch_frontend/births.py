"""How a kernel's parameters come to be, as a Program: it draws them where there is no torch.

A blueprint is built while every operator that runs is noted. Tensors that are written into are values one after the
other; a tensor that was there before is a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from esper.errors import TraceError
from esper.program import DType, InputSpec, Node, OutputSpec, Program, Ref, TensorType, flatten, verify
from esper.torch_frontend.decompositions import Supported
from esper.torch_frontend.translate import dtype_name, op_name

_PLACEMENT = ("device", "layout", "pin_memory", "memory_format", "generator", "non_blocking")

# In-place operators whose counterpart that leaves its argument alone is not named after them.
_NAMED_OTHERWISE = {
    "aten.normal_.default": "aten.normal_functional.default",
    "aten.zero_.default": "aten.zeros_like.default",
}


@dataclass(frozen=True)
class Birth:
    """A kernel's first values.

    Attributes:
        program: Draws those that are wanted, in order.
        constants: What it starts from that was there before, by name.
    """

    program: Program
    constants: Mapping[str, torch.Tensor]


def birth(build: Callable[[], nn.Module], names: Sequence[str], supported: Supported) -> Birth:
    """How parameters come to be.

    Args:
        build: Builds the kernel, drawing from torch's generator.
        names: The parameters that are wanted.
        supported: Whether an operator, by its full overload name, has a lowering.

    Raises:
        TraceError: The kernel is built in a way that cannot be repeated without torch: by an operator that has no
            lowering, by writing into a part of a tensor, or by values that come out differently every time.
    """
    one, other = (_recorded(build, names, supported, entropy) for entropy in range(2))
    if one.program != other.program or not all(torch.equal(t, other.constants[n]) for n, t in one.constants.items()):
        raise TraceError("how it is built depends on values that are drawn, or not by torch, and differ every time")
    return one


def _recorded(build: Callable[[], nn.Module], names: Sequence[str], supported: Supported, entropy: int) -> Birth:
    recorder = _Recorder(supported)
    with torch.random.fork_rng(devices=[]), recorder:
        torch.manual_seed(entropy)
        kernel = build()
    held = dict(kernel.named_parameters())
    return recorder.finished([held[name] for name in names])


@dataclass
class _Memory:
    """What is known of one piece of memory: its tensors, its present value, and whether others look into it."""

    tensor: torch.Tensor
    value: Ref
    viewed: bool = False


@dataclass
class _Recorder(TorchDispatchMode):
    """Notes what runs as nodes of a Program."""

    supported: Supported
    nodes: list[Node] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    _memory: dict[int, _Memory] = field(default_factory=dict)
    _views: dict[int, tuple[torch.Tensor, Ref]] = field(default_factory=dict)  # what others look into shows them this

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        arguments = zip(args, func._schema.arguments, strict=False)
        written = [value for value, spec in arguments if spec.alias_info is not None and spec.alias_info.is_write]
        written += [value for name, value in (kwargs or {}).items() if name == "out"]
        if written:
            self._wrote(func, args, kwargs or {}, written)
        elif isinstance(made, torch.Tensor) and self._looks_into(made):
            self._view(func, args, kwargs or {}, made)
        else:
            self._made(func, args, kwargs or {}, made)
        return made

    def finished(self, wanted: Sequence[torch.Tensor]) -> Birth:
        """The Program of these tensors, without what they do not need."""
        outputs = [self._value(tensor) for tensor in wanted]
        needed, kept = {ref.name for ref in outputs}, []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                kept.append(node)
                needed.update(ref.name for ref in node.refs())
        for node in kept:
            if not self.supported(node.op):
                raise TraceError(f"it is built by {node.op}, which has no lowering")
        constants = {name: tensor for name, tensor in self.constants.items() if name in needed}
        program = Program(
            inputs=tuple(InputSpec(name, "constant", name, self.types[name]) for name in constants),
            nodes=tuple(reversed(kept)),
            outputs=tuple(OutputSpec("user", ref) for ref in outputs),
            out_tree=flatten([0] * len(outputs))[1],
            types={name: kind for name, kind in self.types.items() if name in needed},
            train=True,
        )
        return Birth(verify(program), constants)

    def _wrote(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[Any]) -> None:
        """An operator that writes into its first argument, as one that returns the new value."""
        name, target = op_name(func), args[0]
        if len(written) != 1 or written[0] is not target or not func._schema.name.endswith("_"):
            raise TraceError(f"it is built by {name}, which writes into other tensors than its first")
        held = self._held(target)
        if held.viewed or not _is_whole(target, held.tensor):
            raise TraceError("it is built by writing into a part of a tensor, or into one that others look into")
        base, overload = name.removeprefix("aten.").rsplit(".", 1)
        functional = _NAMED_OTHERWISE.get(name, f"aten.{base.removesuffix('_')}.{overload}")
        held.value = self._node(functional, args, kwargs, [target])[0]

    def _view(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: torch.Tensor) -> None:
        """Another tensor on memory that is known: the same value, or from now on a value of its own."""
        held = self._held(made)
        if _is_whole(made, held.tensor):
            return
        held.viewed = True
        self._views[id(made)] = (made, self._node(op_name(func), args, kwargs, [made])[0])

    def _made(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        results = [made] if isinstance(made, torch.Tensor) else list(made) if isinstance(made, tuple | list) else []
        if not results or not all(isinstance(result, torch.Tensor) for result in results):
            return  # a value that is read; whether it is always the same, a second recording shows
        refs = self._node(op_name(func), args, kwargs, results, multiple=not isinstance(made, torch.Tensor))
        for result, ref in zip(results, refs, strict=True):
            self._memory[_place(result)] = _Memory(result, ref)

    def _node(
        self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Any], multiple: bool = False
    ) -> list[Ref]:
        refs = [Ref(f"v{len(self.types) + place}") for place in range(len(made))]
        self.nodes.append(
            Node(
                op=op,
                args=tuple(self._literal(value) for value in args),
                kwargs=tuple((key, self._literal(value)) for key, value in kwargs.items() if key not in _PLACEMENT),
                outputs=tuple(ref.name for ref in refs),
                multiple=multiple,
            )
        )
        for ref, tensor in zip(refs, made, strict=True):
            self.types[ref.name] = TensorType(tuple(tensor.shape), dtype_name(tensor.dtype))
        return refs

    def _literal(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._value(value)
        if isinstance(value, list | tuple):
            return tuple(self._literal(item) for item in value)
        if isinstance(value, torch.dtype):
            return DType(dtype_name(value))
        if value is None or isinstance(value, bool | int | float | complex | str):
            return value
        return None  # where a tensor is to lie

    def _value(self, tensor: torch.Tensor) -> Ref:
        if id(tensor) in self._views:
            return self._views[id(tensor)][1]
        held = self._held(tensor)
        if not _is_whole(tensor, held.tensor):
            raise TraceError("a parameter is a part of another tensor")
        return held.value

    def _held(self, tensor: torch.Tensor) -> _Memory:
        if not self._looks_into(tensor):
            name = f"birth_{len(self.constants)}"
            self.constants[name] = tensor.detach().clone()
            self.types[name] = TensorType(tuple(tensor.shape), dtype_name(tensor.dtype))
            self._memory[_place(tensor)] = _Memory(tensor, Ref(name))
        return self._memory[_place(tensor)]

    def _looks_into(self, tensor: torch.Tensor) -> bool:
        return _place(tensor) in self._memory


def _place(tensor: torch.Tensor) -> int:
    """The memory that a tensor lies in; whoever is held keeps its own from being given to another."""
    return tensor.untyped_storage()._cdata


def _is_whole(tensor: torch.Tensor, first: torch.Tensor) -> bool:
    return (tensor.shape, tensor.stride(), tensor.dtype) == (first.shape, first.stride(), first.dtype)
