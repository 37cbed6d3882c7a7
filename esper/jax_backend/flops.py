"""Floating-point operations of a JAX function, counted on its jaxpr: nothing is compiled or run.

A product of matrices or a convolution counts two for each multiply-add, whatever else computes counts one for
each element it makes (a reduction: takes; a window: for each place; a scatter that adds: for each update). Moving
data counts nothing. A scan counts its body as often as it runs, a branch its dearest side, a `while` loop, whose
length is data, its body once. A branch on a mapped predicate is two sides and a select, and counts as both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core

# fmt: off
_FREE = frozenset({
    "broadcast_in_dim", "concatenate", "convert_element_type", "bitcast_convert_type", "copy", "copy_p", "device_put",
    "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota", "name", "optimization_barrier", "pad",
    "random_seed", "random_unwrap", "random_wrap", "reduce_precision", "reshape", "rev", "scatter", "select_n",
    "sharding_constraint", "slice", "split", "squeeze", "stop_gradient", "transpose",
})
# fmt: on
_REDUCES = ("reduce", "argmax", "argmin", "cum", "sort", "top_k")


def flops(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """How many floating-point operations a call takes.

    Args:
        function: What to count; it is traced, not run.
        args: Arrays, or anything with a shape and a dtype.
        kwargs: Likewise.

    Example:
        >>> import jax.numpy as jnp
        >>> flops(jnp.dot, jnp.ones((2, 3)), jnp.ones((3, 4)))
        48
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def flops_by_scope(function: Callable[..., Any], *args: Any) -> list[tuple[str, int]]:
    """The same in order of the trace, with the `jax.named_scope` that each came from."""
    equations = jax.make_jaxpr(function)(*args).jaxpr.eqns
    return [(str(equation.source_info.name_stack), _of(equation)) for equation in equations]


def _count(jaxpr: Any) -> int:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    match name:
        case "dot_general":
            return _dot(equation)
        case "conv_general_dilated":
            return _conv(equation)
        case "convolve" | "convolve_input_gradient" | "convolve_weight_gradient":
            return _convolve(name, equation)
        case "scan":
            return params["length"] * _count(params["jaxpr"].jaxpr)
        case "cond":
            return max(_count(branch.jaxpr) for branch in params["branches"])
    if name.startswith(("reduce_window", "select_and_")):
        return math.prod(params["window_dimensions"]) * min(_sizes(equation.invars[:1] + equation.outvars))
    if name.startswith("scatter") and name not in _FREE:
        return _sizes(equation.invars[2:])[0]
    # The body of a reduction is that of one element.
    bodies = () if name == "reduce" else list(_bodies(params))
    if bodies:
        return sum(map(_count, bodies))
    if name in _FREE:
        return 0
    counted = equation.invars if name.startswith(_REDUCES) else equation.outvars
    return sum(_sizes(counted))


def _sizes(values: Sequence[Any]) -> list[int]:
    return [math.prod(value.aval.shape) for value in values if hasattr(value.aval, "shape")]


def _dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[axis] for axis in contracted)


def _conv(equation: Any) -> int:
    weight, spec = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(weight[axis] for axis in spec[1:])  # input features of a group, and the window
    # Of a dilated input, as in the gradient of a strided convolution, most taps meet a zero.
    met = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps // met


def _convolve(name: str, equation: Any) -> int:
    """One of the three primitives of `platform/convolution`, as if it were XLA's own convolution."""
    (_, second), (made,), spec = equation.invars, equation.outvars, equation.params["spec"]
    weight = made if name == "convolve_weight_gradient" else second
    outputs, inputs, *kernel = weight.aval.shape
    if name == "convolve_input_gradient":
        taps = outputs // spec.groups * math.prod(kernel)
        return 2 * math.prod(made.aval.shape) * taps // math.prod(spec.stride)
    output = made if name == "convolve" else second
    return 2 * math.prod(output.aval.shape) * inputs * math.prod(kernel)


def _bodies(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs an equation holds; of a function with rules for its derivative only the function itself."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
