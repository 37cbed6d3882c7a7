"""Frozen data as JSON and arrays, and back: only classes that are named beforehand, so reading executes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from esper.errors import StateError
from esper.program import Program, Tree
from esper.program.codec import from_body, to_body

Classes = Mapping[str, type]
"""What may be in a file, by name."""

_LEFT_OUT: dict[type, tuple[str, ...]] = {Tree: ("cls",)}  # a class is found again by its path

_CONTAINERS: dict[type, str] = {tuple: "", list: "list", frozenset: "set", dict: "dict"}


def table(*classes: type) -> dict[str, type]:
    """The classes by name, that of their module before it: there are several kinds of memory."""
    return {_name(cls): cls for cls in classes}


def held_classes(value: Any) -> dict[str, type]:
    """The classes of the frozen data that a value is, and of those in its fields."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    found = table(type(value))
    for own in dataclasses.fields(value):
        found |= held_classes(getattr(value, own.name))
    return found


def _name(cls: type) -> str:
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


class Writer:
    """Takes data apart into JSON and arrays.

    Attributes:
        arrays: The arrays met so far, by the names that the JSON has for them.
    """

    def __init__(self, classes: Classes, prefix: str = "") -> None:
        self.arrays: dict[str, Any] = {}
        self._classes, self._prefix = classes, prefix

    def plain(self, value: Any, place: str) -> Any:
        """What JSON can hold of a value; `place` says where it is, for messages.

        Raises:
            StateError: A value that is no plain data.
        """
        if value is None or type(value) in (bool, str, int):
            return value
        if type(value) in _CONTAINERS:
            return self._container(value, place)
        match value:
            case Enum() if self._is_known(type(value)):
                return {"enum": [_name(type(value)), value.value]}
            case float() if type(value) is float:
                return value if math.isfinite(value) else {"float": repr(value)}
            case complex():
                return {"complex": [self.plain(value.real, place), self.plain(value.imag, place)]}
            case Program():
                return {"program": to_body(value)}
        if isinstance(value, jax.Array | np.ndarray | np.generic):
            return self._array(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type) and self._is_known(type(value)):
            skipped = _LEFT_OUT.get(type(value), ())
            names = [own.name for own in dataclasses.fields(value) if own.name not in skipped]
            if not all(own.init for own in dataclasses.fields(value) if own.name in names):
                raise StateError(f"{place} is a {type(value).__name__} with fields that its constructor does not take")
            held = {name: self.plain(getattr(value, name), f"{place}.{name}") for name in names}
            return {"data": [_name(type(value)), held]}
        raise StateError(
            f"{place} is a {type(value).__name__}, which cannot be written to a file: numbers, strings, arrays, and "
            "tuples, lists, dicts of them can"
        )

    def _container(self, value: Any, place: str) -> Any:
        if isinstance(value, dict):
            return {"dict": [[self.plain(k, place), self.plain(v, f"{place}[{k!r}]")] for k, v in value.items()]}
        members = sorted(value, key=repr) if isinstance(value, frozenset) else value
        held = [self.plain(item, f"{place}[{n}]") for n, item in enumerate(members)]
        return held if isinstance(value, tuple) else {_CONTAINERS[type(value)]: held}

    def _is_known(self, cls: type) -> bool:
        return self._classes.get(_name(cls)) is cls

    def _array(self, value: Any) -> Any:
        name = f"{self._prefix}{len(self.arrays)}"
        if isinstance(value, jax.Array):
            if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                self.arrays[name] = jax.random.key_data(value)
                return {"key": [name, str(jax.random.key_impl(value))]}
            self.arrays[name] = value
            return {"array": name}
        self.arrays[name] = np.asarray(value)
        return {"scalar" if isinstance(value, np.generic) else "numpy": name}


class Reader:
    """Puts together what a `Writer` took apart; of some kinds only, if they are named."""

    def __init__(
        self, classes: Classes, arrays: Mapping[str, np.ndarray], kinds: Collection[str] | None = None
    ) -> None:
        self._classes, self._arrays = classes, arrays
        self._readers: dict[str, Callable[[Any], Any]] = {
            "enum": lambda held: self._cls(held[0], Enum)(held[1]),
            "float": float,
            "complex": lambda held: complex(*map(self.value, held)),
            "program": from_body,
            "list": lambda held: [self.value(item) for item in held],
            "set": lambda held: frozenset(self.value(item) for item in held),
            "dict": lambda held: {self.value(k): self.value(v) for k, v in held},
            "key": lambda held: jax.random.wrap_key_data(jnp.array(self._arrays[held[0]]), impl=held[1]),
            "array": lambda name: jnp.array(self._arrays[name]),
            "numpy": lambda name: np.array(self._arrays[name]),
            "scalar": lambda name: self._arrays[name][()],
            "data": self._data,
        }
        if kinds is not None:
            self._readers = {kind: self._readers[kind] for kind in kinds}

    def value(self, held: Any) -> Any:
        """The value that a piece of JSON stands for.

        Raises:
            KeyError, TypeError, ValueError: It is no such piece.
        """
        if isinstance(held, list):
            return tuple(self.value(item) for item in held)
        if isinstance(held, dict):
            ((kind, inner),) = held.items()
            return self._readers[kind](inner)
        return held

    def _data(self, held: Sequence[Any]) -> Any:
        name, fields = held
        cls = self._cls(name, object)
        made = {own.name: self.value(fields[own.name]) for own in dataclasses.fields(cls) if own.name in fields}
        if made.keys() != fields.keys():
            raise ValueError(f"{name} has no {sorted(fields.keys() - made.keys())}")
        return cls(**made)

    def _cls(self, name: str, base: type) -> Any:
        cls = self._classes[name]
        if not issubclass(cls, base):
            raise TypeError(f"{name} is no {base.__name__}")
        return cls


def write_json(file: Path, value: Any) -> None:
    """Writes what a `Writer` gave; equal data are equal bytes."""
    file.write_text(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False), encoding="ascii")


def read_json(data: memoryview) -> Any:
    """What `write_json` wrote; what is no JSON raises what Python raises."""
    return json.loads(bytes(data))
