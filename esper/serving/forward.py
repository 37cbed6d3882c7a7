"""A model's forward as a function of arrays alone, and its kernels' Programs where sizes are symbolic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from esper.errors import ExportError, MissingKeyError, TraceError
from esper.jax_backend.call import Call, results
from esper.jax_backend.model import MorphableModel, run_program
from esper.jax_backend.registry import draws
from esper.jax_backend.source import Kernel, ModuleSource, NativeKernel
from esper.program import Program, Signature
from esper.program.specialised import agree
from esper.serving.calls import Chosen, containers, output, sized
from esper.serving.symbols import UnprovedError, names, prove

State = dict[str, Any]
_run = inspect.unwrap(run_program)  # what was traced for other sizes, with other Programs of kernels, is not looked up


@dataclass(frozen=True)
class Forward:
    """The function that an artifact holds.

    Attributes:
        model: The model, with those kernels only that take part in its forward.
        chosen: The call.
        inside: Whether parameters and buffers are constants; if not, they are the first argument.
        drawing: Whether it takes a key.
    """

    model: MorphableModel
    chosen: Chosen
    inside: bool
    drawing: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs; with what the forward writes, by torch name, if it writes anything."""
        model, program = self.model, self.chosen.program
        if not self.inside:
            model, args = _filled(model, args[0]), args[1:]
        key = jax.random.wrap_key_data(kwargs.pop("key")) if self.drawing else None
        count = len(program.user_inputs)
        order = jax.tree.leaves(containers(self.chosen.signature, list(range(count))))
        by_place = dict(zip(order, jax.tree.leaves((args, kwargs)), strict=True))
        tensors = [by_place[place] for place in range(count)]
        arrays, written, _ = _run(model, program, tensors, key, model.late_constants())
        made = output(program.out_tree, results(Call(program, tensors, foreign=False), arrays))
        return (made, written) if written and not model.structure.shadow else made

    def specs(self, shapes: Sequence[tuple[Any, ...]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What it takes, for tensors of these shapes."""
        kinds = [jax.dtypes.canonicalize_dtype(jnp.dtype(kind.dtype)) for kind in self.chosen.signature.tensors]
        tensors = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
        args, kwargs = containers(self.chosen.signature, tensors)
        if self.drawing and "key" in kwargs:
            raise ExportError(
                "the forward draws, so its artifact takes `key=`, and it has an input of that name: give that by place"
            )
        if self.drawing:
            raw = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
            kwargs["key"] = jax.ShapeDtypeStruct(raw.shape, raw.dtype)
        if self.inside:
            return args, kwargs
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_of(self.model))
        return (state, *args), kwargs


def state_of(model: MorphableModel) -> State:
    """Parameters and buffers by torch name; of kernels, those that take part in the forward, by layer and seed."""
    kernels: dict[str, Any] = {}
    for kernel in living(model).structure.kernels:
        held = model.params["kernels"][kernel.layer][kernel.seed]
        kernels.setdefault(kernel.layer, {})[str(kernel.seed)] = dict(held)
    return {"host": dict(model.params["host"]), "kernels": kernels, "buffers": dict(model.buffers)}


def living(model: MorphableModel) -> MorphableModel:
    """The model with those kernels only that take part in its forward."""
    live, structure = np.asarray(model.seeds.live()), model.structure
    kernels = tuple(k for k in structure.kernels if live[structure.row(k.layer), k.seed])
    return model.replace(structure=replace(structure, kernels=kernels))


def takes_key(model: MorphableModel, chosen: Chosen) -> bool:
    """Whether the forward draws, or a kernel in it, once it has been captured for the call's sizes."""
    of_kernels = [program for kernel in model.structure.kernels for program in _programs(kernel, chosen)]
    return _any_draws([chosen.program, *of_kernels]) or (has_native(model) and _misses_key(model, chosen))


def has_native(model: MorphableModel) -> bool:
    """Whether a kernel runs by itself, so that nothing can be told of what it does with sizes."""
    return any(isinstance(kernel.source, NativeKernel) for kernel in model.structure.kernels)


def _misses_key(model: MorphableModel, chosen: Chosen) -> bool:
    forward = Forward(model, chosen, inside=True, drawing=False)
    args, kwargs = forward.specs(chosen.signature.shapes)
    try:
        jax.eval_shape(forward, *args, **kwargs)
    except MissingKeyError:
        return True
    return False


def capture_kernels(model: MorphableModel, chosen: Chosen, shapes: Sequence[tuple[int, ...]]) -> None:
    """Captures the kernels for a call of these sizes, as running them does: a capture needs numbers."""
    if not model.structure.kernels:
        return
    forward = Forward(model, chosen, inside=True, drawing=True)
    args, kwargs = forward.specs(shapes)
    jax.eval_shape(forward, *args, **kwargs)


def with_known_kernels(model: MorphableModel, chosen: Chosen) -> MorphableModel:
    """The model with kernels that run on symbolic sizes by the Programs that they have."""
    structure = model.structure
    kernels = tuple(_known(kernel, chosen) for kernel in structure.kernels)
    return model.replace(structure=replace(structure, kernels=kernels))


def opened(source: ModuleSource, chosen: Chosen) -> Chosen:
    """A call of batch size 1 by the Program for all sizes, if that is known to do the same there.

    Captures for all sizes often exclude 1, where torch knows more of strides; then 1 has a capture of its own.
    """
    signature = chosen.signature
    batch = signature.batch_leaves()
    if chosen.symbols or not batch or signature.shapes[min(batch)][0] != 1 or _any_draws([chosen.program]):
        return chosen
    two = [(2, *shape[1:]) if place in batch else shape for place, shape in enumerate(signature.shapes)]
    try:
        program = source.program(sized(signature, two))
    except TraceError:
        return chosen
    found = Chosen(signature, program)
    return found if found.symbols and agree(program, chosen.program, signature.shapes) else chosen


def excluded_size(source: ModuleSource, chosen: Chosen) -> Callable[[str, int], bool]:
    """Whether the Program holds for a size that it excludes, by a capture at that size."""

    def is_like_others(_: str, size: int) -> bool:
        if size < 1 or len(set(names(chosen.program).values())) != 1 or _any_draws([chosen.program]):
            return size < 1
        of_specs = [spec.type.shape for spec in chosen.program.user_inputs]
        shapes = [tuple(size if isinstance(dim, str) else dim for dim in shape) for shape in of_specs]
        return _agrees_at(source, chosen.signature, chosen.program, shapes)

    return is_like_others


def _agrees_at(source: ModuleSource, signature: Signature, program: Program, shapes: Sequence[tuple[int, ...]]) -> bool:
    try:
        return agree(program, source.program(sized(signature, shapes)), shapes)
    except TraceError:
        return False


def _any_draws(programs: Iterable[Program]) -> bool:
    return any(draws(node) for program in programs for node in program.walk())


def _known(kernel: Kernel, chosen: Chosen) -> Kernel:
    if isinstance(kernel.source, NativeKernel):
        return kernel
    return replace(kernel, source=_Known(kernel.source, tuple(_programs(kernel, chosen))))


def _programs(kernel: Kernel, chosen: Chosen) -> list[Program]:
    if isinstance(kernel.source, NativeKernel):
        return []
    return [program for program in kernel.source.programs if program.train == chosen.signature.train]


def _filled(model: MorphableModel, state: State) -> MorphableModel:
    kernels = {layer: {int(seed): held for seed, held in seeds.items()} for layer, seeds in state["kernels"].items()}
    return model.replace(params={"host": state["host"], "kernels": kernels}, buffers=state["buffers"])


@dataclass(frozen=True)
class _Known:
    """A kernel's source where sizes are symbolic: of the Programs that there are, the one that holds for them."""

    source: ModuleSource
    programs: tuple[Program, ...]

    @property
    def carried(self) -> dict[str, Any]:
        return self.source.carried

    @property
    def constants(self) -> Mapping[str, Any]:
        return self.source.constants

    def program(self, signature: Signature) -> Program:
        """The Program for a kernel's input.

        Raises:
            UnprovedError: There is one, if its sizes are constrained.
        """
        if not any(jax_export.is_symbolic_dim(size) for shape in signature.shapes for size in shape):
            return self.source.program(signature)
        fitting = [program for program in self.programs if _fits(program, signature)]
        if not fitting:
            raise UnprovedError(())
        prove(fitting[0], signature.shapes, lambda symbol, size: self._like_others(fitting[0], signature, size))
        return fitting[0]

    def _like_others(self, program: Program, signature: Signature, size: int) -> bool:
        symbols = {str(d) for shape in signature.shapes for d in shape if not isinstance(d, int)}
        if size < 1 or len(symbols) != 1 or _any_draws([program]):
            return size < 1
        shapes = [tuple(d if isinstance(d, int) else size for d in shape) for shape in signature.shapes]
        return _agrees_at(self.source, signature, program, shapes)


def _fits(program: Program, signature: Signature) -> bool:
    """Whether fixed sizes are what the Program says, and symbolic ones where it has symbols."""
    bound: dict[str, Any] = {}
    if [spec.type.dtype for spec in program.user_inputs] != [kind.dtype for kind in signature.tensors]:
        return False
    for spec, shape in zip(program.user_inputs, signature.shapes, strict=True):
        if len(spec.type.shape) != len(shape):
            return False
        for want, size in zip(spec.type.shape, shape, strict=True):
            if (bound.setdefault(want, size) if isinstance(want, str) else want) != size:
                return False
    return True
