"""Modules of `flax.linen` and `flax.nnx` as functions of {dotted name: array} and one input."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import CellType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.core import meta
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict, unflatten_dict

from esper.errors import MissingKeyError, SeedError

Path = tuple[Any, ...]
Arrays = Mapping[str, jax.Array]

_NO_KEY = MissingKeyError("this kernel draws random numbers")


@dataclass(frozen=True, eq=False)
class LinenModule:
    """A module of `flax.linen` that has nothing but parameters.

    Attributes:
        module: The module.
        places: Where each parameter is in the collection "params".
    """

    module: linen.Module
    places: Mapping[str, Path] = field(repr=False)

    @classmethod
    def begun(cls, module: linen.Module, key: jax.Array, example: jax.Array) -> tuple[LinenModule, Arrays]:
        """The module with its initial parameters.

        Raises:
            SeedError: It keeps other collections, or parameters that are no arrays.
        """
        modes = _modes(module, train=False)
        variables = meta.unbox(jax.jit(lambda key, x: module.init(key, x, **modes))(key, example))
        others = sorted(variables.keys() - {"params"})
        if others:
            raise SeedError(f"it keeps the collections {others}, and a kernel has parameters only")
        flat: dict[Path, Any] = flatten_dict(dict(variables.get("params", {})))
        return cls(module, _named(flat)), {".".join(path): array for path, array in flat.items()}

    def run(self, params: Arrays, x: jax.Array, train: bool, key: jax.Array | None) -> Any:
        """What the module gives; every stream of random numbers comes from the key."""
        tree = unflatten_dict({path: params[name] for name, path in self.places.items()})
        modes = _modes(self.module, train)
        rngs = {} if key is None else {"params": key, "dropout": jax.random.fold_in(key, 1)}
        try:
            return self.module.apply({"params": tree}, x, rngs=rngs, **modes)
        except InvalidRngError:
            raise _NO_KEY from None


@dataclass(frozen=True, eq=False)
class NnxModule:
    """A module of `flax.nnx` that has nothing but parameters, and streams of random numbers.

    Attributes:
        graph: Its static half.
        params: Its `nnx.Param` by dotted name, with their paths.
        streams: The variables of its streams.
    """

    graph: Any = field(repr=False)
    params: Mapping[str, tuple[Path, Any]] = field(repr=False)
    streams: Mapping[Path, Any] = field(repr=False)

    @classmethod
    def begun(cls, module: nnx.Module) -> tuple[NnxModule, Arrays]:
        """The module with its initial parameters.

        Raises:
            SeedError: It keeps other variables.
        """
        graph, params, streams, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        others = sorted({f"{'.'.join(map(str, path))} ({_kind(held)})" for path, held in _flat(rest).items()})
        if others:
            raise SeedError(f"it keeps {', '.join(others)}, and a kernel has variables of nnx.Param only")
        held, places = _flat(params), _named(_flat(params))
        made = cls(graph, {name: (path, held[path]) for name, path in places.items()}, _flat(streams))
        return made, {name: held[path].get_value() for name, path in places.items()}

    def run(self, params: Arrays, x: jax.Array, train: bool, key: jax.Array | None) -> Any:
        """What the module gives; every stream of random numbers comes from the key."""
        variables = {path: held.replace(params[name]) for name, (path, held) in self.params.items()}
        streams = self._streams(jax.random.key(0) if key is None else key)
        counts = {path: held.get_value() for path, held in streams.items() if isinstance(held, nnx.RngCount)}
        module: Any = nnx.merge(self.graph, nnx.from_flat_state(variables | streams))
        module.train() if train else module.eval()
        made = module(x, **_modes(module, train))
        after = _flat(nnx.state(module, nnx.Any(nnx.Param, nnx.RngCount)))
        if key is None and any(after[path].get_value() is not count for path, count in counts.items()):
            raise _NO_KEY
        written = [name for name, (path, _) in self.params.items() if after[path].get_value() is not params[name]]
        if written:
            raise SeedError(
                f"it writes into its parameters {written}, or a transformation of nnx's, such as nnx.jit or nnx.remat, "
                "does: a kernel's forward changes nothing; use jax.jit and jax.checkpoint on functions of arrays"
            )
        return made

    def _streams(self, key: jax.Array) -> dict[Path, Any]:
        found = {}
        for place, (path, held) in enumerate(self.streams.items()):
            if isinstance(held, nnx.RngKey):
                own, shape = jax.random.fold_in(key, place), jnp.shape(held.get_value())
                found[path] = held.replace(jax.random.split(own, shape) if shape else own)
            else:
                found[path] = held.replace(jnp.zeros_like(held.get_value()))
        return found


def described(value: Any) -> str:
    """A module's parts and their settings, defaults left out, as text: equal for modules built alike, in any process.

    Functions are told by their names and by the arrays that they close over, arrays by their values.
    """
    if isinstance(value, jax.Array | np.ndarray):
        held = np.asarray(jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value)
        digest = hashlib.sha256(np.ascontiguousarray(held).tobytes()).hexdigest()
        return f"{value.dtype}{list(value.shape)}:{digest[:16]}"
    if isinstance(value, linen.Module):
        fields = [f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name")]
        return _call(type(value), {name: getattr(value, name) for name in fields})
    if isinstance(value, nnx.Variable):
        return f"{type(value).__name__}{list(jnp.shape(value.get_value()))}"
    if isinstance(value, nnx.Rngs | nnx.RngStream):
        return type(value).__name__
    if isinstance(value, nnx.Module):
        return _call(type(value), {name: of for name, of in vars(value).items() if not name.startswith("_")})
    if isinstance(value, functools.partial):
        return _call(value.func, {str(place): of for place, of in enumerate(value.args)} | value.keywords)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {described(of)}" for name, of in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(described, value)) + ")"
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    closed = [described(held) for held in _closed_over(value) if isinstance(held, jax.Array | np.ndarray)]
    return f"{name}[{', '.join(closed)}]" if closed else name


def _closed_over(function: Any) -> list[Any]:
    """What a function of Python's brings along: its closure and its defaults."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if cell != CellType()]
    named = getattr(function, "__kwdefaults__", None) or {}
    return [*cells, *(getattr(function, "__defaults__", None) or ()), *named.values()]


def _call(of: Any, settings: Mapping[str, Any]) -> str:
    made_by = of.__init__ if isinstance(of, type) else of
    defaults = {name: parameter.default for name, parameter in inspect.signature(made_by).parameters.items()}
    told = [f"{name}={described(value)}" for name, value in settings.items() if defaults.get(name, of) is not value]
    return f"{getattr(of, '__qualname__', type(of).__qualname__)}({', '.join(told)})"


def _modes(module: Any, train: bool) -> dict[str, Any]:
    """The arguments by which a module's forward is told its mode."""
    known = inspect.signature(type(module).__call__).parameters
    modes = {"train": train, "deterministic": not train}
    return {name: mode for name, mode in modes.items() if name in known}


def _flat(state: Any) -> dict[Path, Any]:
    return dict(nnx.to_flat_state(state))


def _named(flat: Mapping[Path, Any]) -> dict[str, Path]:
    """Paths by dotted name.

    Raises:
        SeedError: A parameter is no array, or two have one name.
    """
    found: dict[str, Path] = {}
    for path, held in flat.items():
        name = ".".join(map(str, path))
        value = held.get_value() if isinstance(held, nnx.Variable) else held
        if not isinstance(value, jax.Array):
            raise SeedError(f"its parameter {name} is a {type(value).__name__}, not an array")
        if name in found:
            raise SeedError(f"it has two parameters {name}: {found[name]} and {path}; let no name hold a dot")
        found[name] = path
    return found


def _kind(held: Any) -> str:
    return type(held).__name__
