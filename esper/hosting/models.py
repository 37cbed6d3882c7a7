"""What runs a wrapped model's calls for a module of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.hosting.ready import Body, Programs, Ready
from esper.jax_backend.call import Call, assemble, prepare
from esper.jax_backend.interchange import adopt, borrow
from esper.jax_backend.model import MorphableModel, run_program
from esper.jax_backend.registry import check_lowered, may_draw
from esper.jax_backend.state import live_growths
from esper.program import Program, TensorType, flatten

if TYPE_CHECKING:
    import torch

Stamp = tuple[int, int]
"""Where a tensor's memory is, and how often torch has written there; -1 where that does not matter."""


class ModelRunner:
    """The model: what is not torch's own (seeds, constants, kernels that rest), and its compiled programs."""

    def __init__(self, model: MorphableModel) -> None:
        # Arrays on torch's memory belong to a device. Beside others that do not, what a forward gives back would differ
        # from what the first was given, and mean a second compile.
        self._device = jax.devices()[0]
        self._model = jax.device_put(model, self._device)
        self._names = _Names.of(model)
        self._programs: dict[Program, Programs] = {}
        self._known: dict[str, tuple[Stamp, jax.Array]] = {}

    def copy(self) -> ModelRunner:
        """Another, for a module with tensors of its own; compiled programs are shared."""
        other = ModelRunner(self._model)
        other._programs = self._programs
        return other

    def current(self, tensors: Mapping[str, torch.Tensor]) -> MorphableModel:
        """The model with a module's values, in memory of its own."""
        source = self._model.structure.source
        kept = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), self._model)
        return self._names.filled(kept, {name: adopt(source, tensor, name) for name, tensor in tensors.items()})

    def ready(
        self, tensors: Mapping[str, torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], train: bool
    ) -> tuple[list[torch.Tensor], Ready]:
        """A call: the tensors that it reads, and what runs it."""
        import torch

        call = prepare(self._model.structure.source, args, kwargs, train, borrow)
        check_lowered(call.program)
        written = {spec.target for spec in call.program.outputs if spec.kind != "user"}
        arrays = [self._array(name, tensor, name in written) for name, tensor in tensors.items()]
        given = [leaf for leaf in flatten((args, dict(kwargs)))[0] if isinstance(leaf, torch.Tensor)]
        key = jax.random.key(int(torch.randint(1 << 31, ()))) if may_draw(call.program) else None
        model = self._model
        rest = model.replace(params={**model.params, "host": {}}, buffers={})
        if call.program not in self._programs:
            self._programs[call.program] = Programs(self._names.body(call.program, list(tensors)))
        return [*tensors.values(), *given], Ready(
            programs=self._programs[call.program],
            arrays=[*arrays, *call.tensors],
            rest=(rest, key, model.late_constants()),
            finished=lambda arrays, more: self._finished(call, tensors, arrays, *more),
            assembled=lambda outputs: assemble(model.structure.source, replace(call, foreign=False), list(outputs)),
        )

    def _finished(
        self, call: Call, tensors: Mapping[str, torch.Tensor], arrays: list[jax.Array], state: Any, seeds: Any
    ) -> list[torch.Tensor]:
        """The outputs in torch; what the forward wrote, in its place."""
        import torch

        source: Any = self._model.structure.source
        for name, array in state.items():
            with torch.no_grad():
                tensors[name].copy_(source.to_foreign(array, None))
            self._known[name] = (_stamp(tensors[name]), array)
        if seeds is not None:
            self._model = self._model.replace(seeds=seeds)
        return [source.borrow(array, dtype) for array, dtype in zip(arrays, _dtypes(call.program), strict=True)]

    def _array(self, name: str, tensor: torch.Tensor, written: bool) -> jax.Array:
        """A parameter on torch's memory; a copy of a buffer, and of what the forward writes, until it changes."""
        copied = written or not (name in self._names.trained or name in self._names.kernels)
        stamp = _stamp(tensor) if copied else (tensor.data_ptr(), -1)
        known = self._known.get(name)
        if known is None or known[0] != stamp:
            source = self._model.structure.source
            known = (stamp, self._adopted(name, tensor) if copied else borrow(source, tensor, name))
            self._known[name] = known
        return known[1]

    def _adopted(self, name: str, tensor: torch.Tensor) -> jax.Array:
        return jax.device_put(adopt(self._model.structure.source, tensor, name), self._device)


@dataclass(frozen=True)
class _Names:
    """Where a model keeps what a module has.

    Attributes:
        trained: The names of the model's parameters; those that are neither these nor a kernel's are its buffers.
        kernels: By the name of a live kernel's parameter in the module: layer, seed, and its name in the kernel.
    """

    trained: frozenset[str]
    kernels: Mapping[str, tuple[str, int, str]]

    @classmethod
    def of(cls, model: MorphableModel) -> _Names:
        """The names of a model."""
        kernels: dict[str, tuple[str, int, str]] = {}
        count: dict[str, int] = {}
        for growth in live_growths(model):
            number = count[growth.layer] = count.get(growth.layer, -1) + 1
            prefix = f"{growth.layer}.grown.{number}.kernel.".removeprefix(".")
            kernels |= {prefix + own: (growth.layer, growth.seed, own) for own in growth.params}
        return cls(frozenset(model.params["host"]), kernels)

    def filled(self, model: MorphableModel, arrays: Mapping[str, jax.Array]) -> MorphableModel:
        """The model with a module's arrays."""
        grown = {at: {n: dict(held) for n, held in seeds.items()} for at, seeds in model.params["kernels"].items()}
        for name, (layer, seed, own) in self.kernels.items():
            grown[layer][seed][own] = arrays[name]
        host = {name: array for name, array in arrays.items() if name not in self.kernels}
        return model.replace(
            params={"host": {n: a for n, a in host.items() if n in self.trained}, "kernels": grown},
            buffers={name: array for name, array in host.items() if name not in self.trained},
        )

    def body(self, program: Program, names: Sequence[str]) -> Body:
        """A Program's run, as a function of arrays under these names and of its inputs."""

        def run(arrays: list[jax.Array], rest: Any) -> tuple[list[jax.Array], Any]:
            model, key, late = rest
            filled = self.filled(model, dict(zip(names, arrays, strict=False)))
            outputs, state, seeds = run_program(filled, program, arrays[len(names) :], key, late)
            return outputs, (state, seeds)

        return run


def _stamp(tensor: torch.Tensor) -> Stamp:
    return tensor.data_ptr(), tensor._version


def _dtypes(program: Program) -> list[str]:
    found = [program.types.get(getattr(spec.value, "name", "")) for spec in program.outputs if spec.kind == "user"]
    return [kind.dtype for kind in found if isinstance(kind, TensorType)]
