"""The convolutions as XLA's CPU compiler runs them best: channels last, without taps that only meet zeros."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from esper.jax_backend.platform.convolution import choice
from esper.jax_backend.platform.convolution.patches import pad
from esper.jax_backend.platform.convolution.spec import Spec


def convolve(x: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """The convolution of `x` with `weight`, formulated as `choice` says."""
    spec, order = _shortened(spec), spec
    weight = _used(weight, order)
    formulation = choice.convolve(spec, _group(x, weight, spec))
    return _stored(formulation(_last(x, order), weight, spec=spec), order)


def input_gradient(cotangent: jax.Array, weight: jax.Array, *, spec: Spec) -> jax.Array:
    """Its gradient in `x`."""
    spec, order = _shortened(spec), spec
    weight = _used(weight, order)
    formulation = choice.input_gradient(spec, _group(cotangent, weight, spec))
    return _stored(formulation(_last(cotangent, order), weight, spec=spec), order)


def weight_gradient(x: jax.Array, cotangent: jax.Array, *, spec: Spec) -> jax.Array:
    """Its gradient in the weight."""
    spec, order = _shortened(spec), spec
    inputs, outputs = (each.shape[order.channel_axis] // spec.groups for each in (x, cotangent))
    formulation = choice.weight_gradient(spec, choice.Group(x.shape[0], inputs, outputs, x.dtype))
    used = formulation(_last(x, order), _last(cotangent, order), spec=spec)
    places = [(first, k - last, 0) for (first, last), k in zip(order.live, order.kernel, strict=True)]
    return pad(used, places, axis=2)


def _group(x: jax.Array, weight: jax.Array, spec: Spec) -> choice.Group:
    return choice.Group(x.shape[0], weight.shape[1], weight.shape[0] // spec.groups, x.dtype)


def _shortened(spec: Spec) -> Spec:
    """Channels last, and the kernel cut to the taps that meet an input."""
    sizes = list(zip(spec.live, spec.kernel, spec.dilation, spec.pads, strict=True))
    return spec._replace(
        kernel=tuple(last - first for (first, last), *_ in sizes),
        pads=tuple((low - first * d, high - (k - last) * d) for (first, last), k, d, (low, high) in sizes),
        channels_last=True,
    )


def _used(weight: jax.Array, spec: Spec) -> jax.Array:
    return weight[:, :, *(slice(first, last) for first, last in spec.live)]


def _last(x: jax.Array, spec: Spec) -> jax.Array:
    return x if spec.channels_last else jnp.moveaxis(x, 1, -1)


def _stored(x: jax.Array, spec: Spec) -> jax.Array:
    return x if spec.channels_last else jnp.moveaxis(x, -1, 1)
