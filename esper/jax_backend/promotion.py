"""Torch's type promotion, and torch's dtypes under JAX's 64-bit switch. The only place for either.

Torch ranks operands by category (bool < integer < float < complex) and, within the highest category,
lets tensors with dimensions decide before 0-d tensors, and those before Python numbers
(c10/core/ScalarType.h, aten/src/ATen/native/TypeProperties.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from esper.errors import RefusedError

DEFAULT_FLOAT = "float32"
_ALIASES = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int32"}
_HALF = (jnp.dtype("float16"), jnp.dtype("bfloat16"))
_CATEGORY = {"b": 0, "u": 1, "i": 1, "f": 2, "c": 3}


def dtype_of(name: str) -> np.dtype:
    """The JAX dtype that carries torch's dtype `name`; 64-bit ones narrow when x64 is off.

    Raises:
        RefusedError: JAX has no such dtype.
    """
    try:
        dtype = jnp.dtype(_ALIASES.get(name, name))
    except TypeError:
        dtype = None
    if dtype is None or not (jnp.issubdtype(dtype, jnp.number) or dtype == jnp.bool_):
        raise RefusedError(f"JAX has no dtype like torch.{name}: use another one")
    return jax.dtypes.canonicalize_dtype(dtype)


def default_float() -> np.dtype:
    """Torch's default dtype for floats made from integers."""
    return dtype_of(DEFAULT_FLOAT)


def default_int() -> np.dtype:
    """The dtype that carries torch's int64."""
    return dtype_of("int64")


def is_floating(x: Any) -> bool:
    """Whether `x` (array, dtype or Python number) is a real floating type."""
    return jnp.issubdtype(_dtype(x), jnp.floating)


def is_complex(x: Any) -> bool:
    """Whether `x` (array, dtype or Python number) is a complex type."""
    return jnp.issubdtype(_dtype(x), jnp.complexfloating)


def is_inexact(x: Any) -> bool:
    """Whether `x` is a floating or complex type."""
    return jnp.issubdtype(_dtype(x), jnp.inexact)


def result_type(*operands: Any) -> np.dtype:
    """The dtype torch computes an elementwise operator in.

    Args:
        operands: Arrays, Python numbers and None (which is passed over).
    """
    with_dims, without, numbers = [], [], []
    for operand in operands:
        if operand is None:
            continue
        if not hasattr(operand, "dtype"):
            numbers.append(_dtype(operand))
        else:
            (with_dims if jnp.ndim(operand) else without).append(jnp.dtype(operand.dtype))
    best = _join(with_dims)
    for group in (_join(without), _join(numbers)):
        if group is not None and (best is None or _category(group) > _category(best)):
            best = _combine(best, group)
    if best is None:
        raise TypeError("no operand to take a dtype from")
    return jax.dtypes.canonicalize_dtype(best)


def promote(*operands: Any) -> list[jax.Array]:
    """The operands as arrays of the dtype torch computes them in."""
    dtype = result_type(*operands)
    return [jnp.asarray(operand, dtype) for operand in operands]


def promote_to_float(*operands: Any) -> list[jax.Array]:
    """The operands as arrays of `float_type`: what `atan2`, `true_divide` and the like do."""
    dtype = float_type(*operands)
    return [jnp.asarray(operand, dtype) for operand in operands]


def to_float(x: jax.Array) -> jax.Array:
    """`x`, integers and booleans turned to the default float: what sqrt, mean, sin and the like do."""
    return x if is_inexact(x) else x.astype(default_float())


def float_type(*operands: Any) -> np.dtype:
    """`result_type`, with integers and booleans turned to the default float (true division)."""
    dtype = result_type(*operands)
    return dtype if is_inexact(dtype) else default_float()


def sum_type(x: jax.Array, dtype: np.dtype | None) -> np.dtype:
    """What `sum`, `prod` and `cumsum` accumulate in: int64 for booleans and every integer."""
    if dtype is not None:
        return dtype
    return x.dtype if is_inexact(x) else default_int()


def in_float32(rule: Callable[..., Any]) -> Callable[..., Any]:
    """`rule`, with a first operand of bfloat16 or float16 computed in float32 and rounded once at the end.

    Torch's kernels do the same (`opmath_t` and `acc_type` in aten/src/ATen/OpMathType.h, AccumulateType.h).
    Further array operands are promoted by what they meet inside.
    """

    @wraps(rule)
    def widened(x: jax.Array, *args: Any, **kwargs: Any) -> Any:
        if x.dtype not in _HALF:
            return rule(x, *args, **kwargs)
        return jax.tree.map(lambda out: out.astype(x.dtype), rule(x.astype(jnp.float32), *args, **kwargs))

    return widened


def _dtype(x: Any) -> np.dtype:
    if isinstance(x, bool):
        return jnp.dtype(bool)
    if isinstance(x, int):
        return default_int()
    if isinstance(x, float):
        return default_float()
    if isinstance(x, complex):
        return dtype_of("complex64")
    if jax.export.is_symbolic_dim(x):
        return default_int()
    return jnp.dtype(x.dtype if hasattr(x, "dtype") else x)


def _category(dtype: np.dtype) -> int:
    if jnp.issubdtype(dtype, jnp.floating):  # bfloat16 and float8 are of numpy's kind "V"
        return 2
    return _CATEGORY[dtype.kind]


def _join(dtypes: list[np.dtype]) -> np.dtype | None:
    if not dtypes:
        return None
    joined = dtypes[0]
    for dtype in dtypes[1:]:
        joined = jnp.promote_types(joined, dtype)
    return joined


def _combine(lower: np.dtype | None, higher: np.dtype) -> np.dtype:
    """A higher category takes over, except that complex keeps the precision of the floats it meets."""
    if lower is not None and _category(higher) == 3 and _category(lower) == 2:
        return jnp.promote_types(lower, jnp.complex64)
    return higher
