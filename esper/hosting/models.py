"""What runs a wrapped model's calls for a module of torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import ArgumentError
from esper.hosting.ready import Body, Programs, Ready
from esper.jax_backend.call import Call, assemble, prepare
from esper.jax_backend.interchange import adopt, borrow, is_foreign
from esper.jax_backend.model import MorphableModel, run_program
from esper.jax_backend.registry import check_lowered, may_draw
from esper.jax_backend.state import live_growths
from esper.program import Program, TensorType, flatten

if TYPE_CHECKING:
    from esper.torch_frontend.hosted import Tensor

Kind = tuple[Any, ...]
"""A tensor's dtype and shape."""


class ModelRunner:
    """The model: what is not torch's own (seeds, constants, kernels that rest), and its compiled programs.

    Args:
        model: The model.
        kinds: Dtype and shape of the module's tensors by name, in the order in which programs are given them.
    """

    def __init__(self, model: MorphableModel, kinds: Mapping[str, Kind]) -> None:
        # Arrays on torch's memory belong to a device. Beside others that do not, what a forward gives back would differ
        # from what the first was given, and mean a second compile.
        self._model = jax.tree.map(lambda leaf: jax.device_put(jnp.copy(leaf), jax.devices()[0]), model)
        self._kinds = dict(kinds)
        self._names = _Names.of(model)
        self._programs: dict[Program, Programs] = {}
        self._borrowed: dict[str, tuple[Tensor, Kind, jax.Array]] = {}

    def copy(self) -> ModelRunner:
        """Another, for a module with tensors of its own; compiled programs are shared."""
        other = ModelRunner(self._model, self._kinds)
        other._programs = self._programs
        return other

    def current(self, tensors: Mapping[str, Tensor]) -> MorphableModel:
        """The model with a module's values, in memory of its own."""
        self._check(tensors)
        source = self._model.structure.source
        kept = jax.tree.map(lambda leaf: jnp.array(np.asarray(leaf)), self._model)
        return self._names.filled(kept, {name: adopt(source, tensors[name], name) for name in self._kinds})

    def ready(
        self, tensors: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any], modes: Any
    ) -> Ready:
        """A call."""
        from esper.torch_frontend.hosted import entropy, is_parameter

        self._check(tensors)
        model, source = self._model, self._model.structure.source
        call = prepare(source, args, kwargs, self._mode(modes), borrow)
        check_lowered(call.program)
        written = {spec.target for spec in call.program.outputs if spec.kind != "user"}
        own = [tensors[name] for name in self._kinds]
        leaves = [leaf for leaf in flatten((args, dict(kwargs)))[0] if hasattr(leaf, "dtype")]
        given = [leaf if is_foreign(leaf) else None for leaf in leaves]
        key = jax.random.key(entropy()) if may_draw(call.program) else None
        if call.program not in self._programs:
            self._programs[call.program] = Programs(self._names.body(call.program, list(self._kinds)))
        return Ready(
            programs=self._programs[call.program],
            arrays=[*(self._array(name, tensors[name]) for name in self._kinds), *call.tensors],
            tensors=[*own, *given],
            guarded=[
                *(name not in written and is_parameter(tensors[name]) for name in self._kinds),
                *(leaf is not None for leaf in given),
            ],
            rest=(model.replace(params={**model.params, "host": {}}, buffers={}), key, model.late_constants()),
            finished=lambda arrays, more: self._finished(call, tensors, arrays, *more),
            assembled=lambda outputs: assemble(source, replace(call, foreign=False), list(outputs)),
            sound=self._sound,
        )

    def _check(self, tensors: Mapping[str, Tensor]) -> None:
        """Checks that the module has the tensors that were wrapped.

        Raises:
            ArgumentError: It has others; the message names one.
        """
        found = {name: kind_of(tensor) for name, tensor in tensors.items()}
        if found == self._kinds:
            return
        name = next(name for name in found.keys() | self._kinds.keys() if found.get(name) != self._kinds.get(name))
        raise ArgumentError(
            f"{name!r} is {_told(found.get(name))} in the module, and was {_told(self._kinds.get(name))} in the model: "
            "tie, untie, convert and reshape before you wrap"
        )

    def _mode(self, modes: Mapping[str, bool]) -> bool:
        """Whether this is a call in training mode.

        Raises:
            ArgumentError: A submodule is in another mode than the Program's would be in.
        """
        wrapped, train = self._model.structure.source.modes, modes[""]
        wanted = wrapped if train == wrapped.get("") else dict.fromkeys(wrapped, train)
        strange = next((name for name, mode in modes.items() if wanted.get(name, mode) != mode), None)
        if strange is not None:
            own, whole = ("training" if mode else "evaluation" for mode in (modes[strange], train))
            raise ArgumentError(
                f"submodule {strange!r} is in {own} mode, and {whole} mode of the module, as it was wrapped, has it in "
                "the other: put it there before you wrap"
            )
        return train

    def _finished(
        self, call: Call, tensors: Mapping[str, Tensor], arrays: list[jax.Array], state: Any, seeds: Any
    ) -> list[Tensor]:
        """The outputs in torch; what the forward wrote, in its place."""
        from esper.torch_frontend.hosted import overwrite

        source: Any = self._model.structure.source
        for name, array in state.items():
            overwrite(tensors[name], source.to_foreign(array, None))
        if seeds is not None:
            self._model = self._model.replace(seeds=seeds)
        return [source.borrow(array, dtype) for array, dtype in zip(arrays, _dtypes(call.program), strict=True)]

    def _array(self, name: str, tensor: Tensor) -> jax.Array:
        """A tensor's array, on its memory if JAX can read that: then it is the same one until the tensor is another."""
        known, kind = self._borrowed.get(name), (tensor.data_ptr(), tensor.stride(), *kind_of(tensor))
        if known is not None and known[0] is tensor and known[1] == kind:
            return known[2]
        array = borrow(self._model.structure.source, tensor, name)
        if array.size and array.unsafe_buffer_pointer() == tensor.data_ptr():
            self._borrowed[name] = (tensor, kind, array)
            return array
        return jax.device_put(array, jax.devices()[0])

    def _sound(self, slopes: dict[int, jax.Array]) -> dict[int, jax.Array]:
        """Gradients without those of kernels that are not finite, which a loop that clips by a norm would spread."""
        at = {place: self._names.kernels[name] for place, name in enumerate(self._kinds) if name in self._names.kernels}
        broken = {at[n][:2] for n in slopes.keys() & at.keys() if not bool(jnp.isfinite(slopes[n]).all())}
        for layer, seed in broken:
            warnings.warn(f"layer {layer!r}, seed {seed}: its gradient is not finite and is left out", stacklevel=2)
        return {place: slope for place, slope in slopes.items() if place not in at or at[place][:2] not in broken}


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


def kind_of(tensor: Tensor) -> Kind:
    """A tensor's dtype and shape."""
    return tensor.dtype, tuple(tensor.shape)


def _told(kind: Kind | None) -> str:
    return "absent" if kind is None else f"{kind[0]} {list(kind[1])}"


def _dtypes(program: Program) -> list[str]:
    found = [program.types.get(getattr(spec.value, "name", "")) for spec in program.outputs if spec.kind == "user"]
    return [kind.dtype for kind in found if isinstance(kind, TensorType)]
