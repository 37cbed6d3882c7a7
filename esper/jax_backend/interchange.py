"""Leaves of a call as JAX arrays, and back: what is an array, what is static, what came from torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from esper.errors import PrecisionError, SignatureError
from esper.jax_backend.layout import Value
from esper.jax_backend.source import Exporter, ModuleSource
from esper.program import Static, TensorType

_WIDE = {"int32": "int64"}  # with x64 off, JAX's int32 carries what torch calls int64
Taken = Callable[[ModuleSource, Any, str], jax.Array]
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def wide() -> bool:
    """Whether JAX's 64-bit mode is on."""
    return bool(jax.config.read("jax_enable_x64"))


def is_traced(value: Any) -> bool:
    """Whether `value` is abstract, inside a JAX transformation."""
    return isinstance(value, Tracer)


def is_foreign(leaf: Any) -> bool:
    """Whether `leaf` is a torch tensor (decided without importing torch)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(leaf, torch.Tensor)


def adopt(source: Exporter, tensor: Any, place: str) -> jax.Array:
    """A JAX array with memory of its own holding the values of a torch tensor."""
    with jax.ensure_compile_time_eval():
        # `jnp.array` copies, where DLPack would alias; and leaves the array uncommitted, where DLPack's would be
        # committed to its device and cost every jitted step a second compile.
        return jnp.array(source.exportable(tensor, place))


def borrow(source: ModuleSource, tensor: Any, place: str) -> jax.Array:
    """A JAX array on the memory of a torch tensor, or on a copy where JAX cannot read that.

    It is no value: whoever borrows sees to it that nobody writes there meanwhile.
    """
    return on_memory_of(source.lend(tensor, place))


def on_memory_of(lent: Any) -> jax.Array:
    """A JAX array of a numpy array, or on the memory of what DLPack reads."""
    return jnp.asarray(lent) if isinstance(lent, np.ndarray) else jax.dlpack.from_dlpack(lent)


def constants(source: ModuleSource) -> dict[str, jax.Array]:
    """The JAX copies of what the captures close over, each made once."""
    for name in source.constants.keys() - source.carried.keys():
        source.carried[name] = adopt(source, source.constants[name], f"a tensor the model closes over ({name})")
    return source.carried


def to_array(source: ModuleSource, leaf: Any, place: str, taken: Taken = adopt) -> jax.Array | None:
    """`leaf` as a JAX array, None if it is no tensor; `taken` says how torch's are."""
    if is_foreign(leaf):
        return taken(source, leaf, place)
    if isinstance(leaf, jax.Array):
        return leaf
    if isinstance(leaf, np.ndarray | np.generic):
        _check_fits(leaf, place)
        return jnp.asarray(leaf)
    return None


def describe(leaf: Any, array: Value | None, place: str) -> TensorType | Static:
    """The leaf's part of the signature.

    Raises:
        SignatureError: A leaf that is neither an array nor a hashable plain value.
    """
    if array is None:
        return _static(leaf, place)
    if is_foreign(leaf):
        name = str(leaf.dtype).removeprefix("torch.")
        narrow = jax.dtypes.canonicalize_dtype(jnp.dtype(name))
        return TensorType(tuple(array.shape), name if name == "int64" else str(narrow))
    name = _name(array.dtype)
    return TensorType(tuple(array.shape), name if wide() else _WIDE.get(name, name))


@lru_cache(maxsize=64)  # numpy spells the name out anew every time
def _name(dtype: Any) -> str:
    return str(dtype)


def _static(leaf: Any, place: str) -> Static:
    try:
        hash(leaf)
    except TypeError:
        raise SignatureError(
            f"input {place}: a {type(leaf).__name__} is neither an array, a number nor a container of them"
        ) from None
    if hasattr(leaf, "shape") and not isinstance(leaf, _PLAIN):
        raise SignatureError(
            f"input {place}: a {type(leaf).__name__} holds no values; give a jax, numpy or torch array"
        )
    return Static(leaf)


def _check_fits(leaf: Any, place: str) -> None:
    if wide() or leaf.dtype not in (np.int64, np.uint64):
        return
    narrow = np.int32 if leaf.dtype == np.int64 else np.uint32
    if leaf.size and not (np.min(leaf) >= np.iinfo(narrow).min and np.max(leaf) <= np.iinfo(narrow).max):
        raise PrecisionError(
            f"input {place}: a value of {leaf.dtype} does not fit in {narrow.__name__} (64-bit mode is off); "
            'turn it on with jax.config.update("jax_enable_x64", True)'
        )
