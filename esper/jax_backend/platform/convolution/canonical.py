"""The convolutions as XLA's own operator, which GPUs and TPUs run best."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.platform.convolution.spec import Spec
from esper.jax_backend.platform.precision import PRECISION


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The convolution of `x` with `weight`."""
    return lax.conv_general_dilated(
        x,
        weight,
        spec.stride,
        spec.pads,
        rhs_dilation=spec.dilation,
        dimension_numbers=_numbers(spec),
        feature_group_count=spec.groups,
        precision=PRECISION,
    )


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """Its gradient in `x`: that of the output between zeros, convolved with the flipped weight."""
    return lax.conv_general_dilated(
        cotangent,
        flipped(weight, spec.groups),
        (1,) * spec.rank,
        spec.flipped().pads,
        lhs_dilation=spec.stride,
        rhs_dilation=spec.dilation,
        dimension_numbers=_numbers(spec),
        feature_group_count=spec.groups,
        precision=PRECISION,
    )


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Its gradient in the weight."""
    return jnp.moveaxis(outputs_last(x, cotangent, spec=spec), -1, 0)


def outputs_last(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """The gradient in the weight, (in / groups, *kernel, out), as XLA's CPU library makes it.

    `x` is convolved with the cotangent, batch and channels changing places.
    """
    sizes = zip(spec.pads, spec.reach, spec.spread, spec.space, strict=True)
    pads = [(low, reach + spread - n - low) for (low, _), reach, spread, n in sizes]
    activation = _swapped(_numbers(spec)[0])
    channels_first = (0, spec.rank + 1, *range(1, spec.rank + 1))
    return lax.conv_general_dilated(
        x,
        cotangent,
        spec.dilation,
        pads,
        rhs_dilation=spec.stride,
        dimension_numbers=lax.ConvDimensionNumbers(activation, activation, channels_first),
        batch_group_count=spec.groups,
        precision=PRECISION,
    )


def flipped(weight: jax.Array, groups: int = 1) -> jax.Array:
    """The weight that takes outputs back to inputs: (in, out / groups, *kernel), the taps in reverse."""
    outputs, inputs, *kernel = weight.shape
    weight = weight.reshape(groups, outputs // groups, inputs, *kernel).swapaxes(1, 2)
    return jnp.flip(weight.reshape(groups * inputs, outputs // groups, *kernel), range(2, weight.ndim - 1))


def _numbers(spec: Spec) -> lax.ConvDimensionNumbers:
    weight = tuple(range(spec.rank + 2))
    activation = (0, spec.channel_axis, *(i for i in weight[1:] if i != spec.channel_axis))
    return lax.ConvDimensionNumbers(activation, weight, activation)


def _swapped(order: Any) -> tuple[int, ...]:
    first, second, *space = order
    return second, first, *space
