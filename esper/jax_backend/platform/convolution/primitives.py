"""The primitives `convolve`, `input_gradient` and `weight_gradient`.

A convolution is linear in its input and in its weight, and its two gradients are again linear in each of their two
arguments: among the three of them differentiation stays in the family, to any order and in both modes. XLA
sees what the platform runs best, and the jaxpr, which is what operations are counted on, sees one convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from esper.jax_backend.platform.convolution import batches, canonical, cpu
from esper.jax_backend.platform.convolution.spec import Spec

_convolve = Primitive("convolve")
_input_gradient = Primitive("convolve_input_gradient")
_weight_gradient = Primitive("convolve_weight_gradient")


def convolve(x: jax.Array, weight: jax.Array, spec: Spec) -> jax.Array:
    """The convolution of `x` with `weight`, (out, in / groups, *kernel); both of one dtype."""
    return _convolve.bind(x, weight, spec=spec)


def input_gradient(cotangent: jax.Array, weight: jax.Array, spec: Spec) -> jax.Array:
    """Its gradient in `x`; also what torch calls a transposed convolution, of `cotangent`."""
    return _input_gradient.bind(cotangent, weight, spec=spec)


def weight_gradient(x: jax.Array, cotangent: jax.Array, spec: Spec) -> jax.Array:
    """Its gradient in `weight`."""
    return _weight_gradient.bind(x, cotangent, spec=spec)


def _convolve_shape(x: Any, weight: Any, spec: Spec) -> tuple[Any, ...]:
    return spec.shape(x.shape[0], weight.shape[0], spec.results)


def _input_shape(cotangent: Any, weight: Any, spec: Spec) -> tuple[Any, ...]:
    return spec.shape(cotangent.shape[0], weight.shape[1] * spec.groups, spec.space)


def _weight_shape(x: Any, cotangent: Any, spec: Spec) -> tuple[Any, ...]:
    inputs, outputs = x.shape[spec.channel_axis], cotangent.shape[spec.channel_axis]
    return outputs, inputs // spec.groups, *spec.kernel


def _define(
    primitive: Primitive, shape: Callable[..., Any], module_function: str, kinds: tuple[batches.Kind, ...]
) -> None:
    def abstract(a: Any, b: Any, *, spec: Spec) -> ShapedArray:
        return ShapedArray(shape(a, b, spec), a.dtype)

    def formulated(module: Any, a: jax.Array, b: jax.Array, *, spec: Spec) -> jax.Array:
        made = shape(a, b, spec)
        if 0 in (*a.shape, *b.shape, *made):
            return jnp.zeros(made, a.dtype)
        return getattr(module, module_function)(a, b, spec=spec)

    plain, fast = partial(formulated, canonical), partial(formulated, cpu)

    @partial(jax.jit, static_argnames="spec")
    def run(a: jax.Array, b: jax.Array, *, spec: Spec) -> jax.Array:
        return (fast if jax.default_backend() == "cpu" else plain)(a, b, spec=spec)

    primitive.def_impl(run)
    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = partial(batches.batched, primitive, kinds)
    lowered, fast_lowered = (mlir.lower_fun(function, multiple_results=False) for function in (plain, fast))

    def lowered_on_cpu(context: Any, *given: Any, **params: Any) -> Any:
        # XLA's partitioner splits its own convolution by examples; for the others it would gather the whole batch.
        devices = getattr(context.module_context.axis_context, "num_devices", 1)
        return (fast_lowered if devices == 1 else lowered)(context, *given, **params)

    mlir.register_lowering(primitive, lowered)
    mlir.register_lowering(primitive, lowered_on_cpu, platform="cpu")


_define(_convolve, _convolve_shape, "convolve", ("x", "w", "y"))
_define(_input_gradient, _input_shape, "input_gradient", ("y", "w", "x"))
_define(_weight_gradient, _weight_shape, "weight_gradient", ("x", "y", "w"))

ad.defbilinear(
    _convolve,
    lambda cotangent, x, weight, *, spec: input_gradient(cotangent, weight, spec),
    lambda cotangent, x, weight, *, spec: weight_gradient(x, cotangent, spec),
)
ad.defbilinear(
    _input_gradient,
    lambda x, cotangent, weight, *, spec: convolve(x, weight, spec),
    lambda x, cotangent, weight, *, spec: weight_gradient(x, cotangent, spec),
)
ad.defbilinear(
    _weight_gradient,
    lambda weight, x, cotangent, *, spec: input_gradient(cotangent, weight, spec),
    lambda weight, x, cotangent, *, spec: convolve(x, weight, spec),
)
