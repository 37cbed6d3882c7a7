"""Normalisation by statistics. Those of 16-bit inputs are taken in float32; outputs have the input's dtype.

With `channel_axis=-1` the input and what is made of it are (batch, *space, channels).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from esper.jax_backend.lowerings.reduction import norm_except_dim
from esper.jax_backend.platform.bias import add_bias, scale
from esper.jax_backend.platform.normalization import Form, normalize
from esper.jax_backend.platform.precision import accumulator, widen
from esper.jax_backend.registry import lowers


@lowers("aten.batch_norm.default")
def batch_norm(
    input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False, *, channel_axis=1
):
    """batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if training or running_mean is None:
        return _batch_norm(input, weight, bias, eps, channel_axis)[0]
    return _fixed_norm(input, weight, bias, running_mean, running_var, eps, channel_axis)


@lowers("aten.group_norm.default")
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True, *, channel_axis=1):
    """group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enabled=True) -> Tensor"""  # noqa: E501
    return _group_norm(input, weight, bias, num_groups, eps, channel_axis)[0]


@lowers("aten.instance_norm.default")
def instance_norm(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    use_input_stats,
    momentum,
    eps,
    cudnn_enabled=False,
    *,
    channel_axis=1,
):
    """instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if use_input_stats:
        return _group_norm(input, weight, bias, input.shape[channel_axis], eps, channel_axis)[0]
    return _fixed_norm(input, weight, bias, running_mean, running_var, eps, channel_axis)


@lowers("aten.layer_norm.default")
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enable=True) -> Tensor"""  # noqa: E501
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@lowers("aten._native_batch_norm_legit_functional.default")
def native_batch_norm_functional(
    input, weight, bias, running_mean, running_var, training, momentum, eps, *, channel_axis=1
):
    """_native_batch_norm_legit_functional(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor, Tensor running_mean_out, Tensor running_var_out)"""  # noqa: E501
    if not training:
        out = _fixed_norm(input, weight, bias, running_mean, running_var, eps, channel_axis)
        empty = jnp.zeros((0,), input.dtype)
        return out, empty, empty, running_mean, running_var
    out, mean, variance = _batch_norm(input, weight, bias, eps, channel_axis)
    outputs = _outputs(input, weight, out, mean, lax.rsqrt(variance + eps))
    count = input.size // input.shape[channel_axis]
    if count == 0:  # nothing seen, nothing moved
        return *outputs, running_mean, running_var
    # The running variance is unbiased, the one that normalises is not.
    latest = lax.stop_gradient((mean, variance * (count / (count - 1))))
    moved = [
        (momentum * new + (1 - momentum) * old).astype(old.dtype)
        for new, old in zip(latest, (running_mean, running_var), strict=True)
    ]
    return *outputs, *moved


@lowers("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_no_stats(input, weight, bias, training, momentum, eps, *, channel_axis=1):
    """_native_batch_norm_legit.no_stats(Tensor input, Tensor? weight, Tensor? bias, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    out, mean, variance = _batch_norm(input, weight, bias, eps, channel_axis)
    return _outputs(input, weight, out, mean, lax.rsqrt(variance + eps))


@lowers("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps, *, channel_axis=1):
    """_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    empty = jnp.zeros((0,), input.dtype)
    return _fixed_norm(input, weight, bias, running_mean, running_var, eps, channel_axis), empty, empty


@lowers("aten.native_group_norm.default")
def native_group_norm(input, weight, bias, N, C, HxW, group, eps, *, channel_axis=1):
    """native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW, int group, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    out, mean, variance = _group_norm(input, weight, bias, group, eps, channel_axis)
    rstd = lax.rsqrt(variance + eps)
    return _outputs(input, weight, out, mean.reshape(N, group), rstd.reshape(N, group))


@lowers("aten.native_layer_norm.default")
def native_layer_norm(input, normalized_shape, weight, bias, eps):
    """native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    out, mean, variance = _row_norm(input, normalized_shape, weight, bias, eps)
    kept = (*input.shape[: input.ndim - len(normalized_shape)], *[1] * len(normalized_shape))
    return _outputs(input, weight, out, mean.reshape(kept), lax.rsqrt(variance + eps).reshape(kept))


@lowers("aten.rms_norm.default")
def rms_norm(input, normalized_shape, weight=None, eps=None):
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    eps = float(jnp.finfo(accumulator(input.dtype)).eps) if eps is None else eps
    return _row_norm(input, normalized_shape, weight, None, eps, centred=False)[0]


@lowers("aten._weight_norm.default")
def weight_norm(v, g, dim=0):
    """_weight_norm(Tensor v, Tensor g, int dim=0) -> Tensor"""
    return weight_norm_interface(v, g, dim)[0]


@lowers("aten._weight_norm_interface.default")
def weight_norm_interface(v, g, dim=0):
    """_weight_norm_interface(Tensor v, Tensor g, int dim=0) -> (Tensor, Tensor)"""
    norm = norm_except_dim(widen(v), 2, dim)
    return (widen(v) * (widen(g) / norm)).astype(v.dtype), norm


def _batch_norm(input, weight, bias, eps, channel_axis):
    """With mean and variance of each channel."""
    n, space, c = _sizes(input, channel_axis)
    shape, over, at = ((n, c, space), (0, 2), 1) if channel_axis == 1 else ((n * space, c), (0,), 1)
    out, mean, variance = normalize(input.reshape(shape), weight, bias, Form(over, (at,), eps))
    return out.reshape(input.shape), mean.ravel(), variance.ravel()


def _fixed_norm(input, weight, bias, mean, variance, eps, channel_axis):
    """By statistics that are given."""
    wide, axis = accumulator(input.dtype), channel_axis % input.ndim
    mean, rstd = mean.astype(wide), lax.rsqrt(variance.astype(wide) + eps)
    out = (input.astype(wide) - _channels(mean, input.ndim, axis)) * _channels(rstd, input.ndim, axis)
    out = out if weight is None else scale(out, weight, axis)
    return (out if bias is None else add_bias(out, bias, axis)).astype(input.dtype)


def _group_norm(input, weight, bias, groups, eps, channel_axis):
    """With mean and variance of each group, in the order (batch, groups)."""
    n, space, c = _sizes(input, channel_axis)
    split = (groups, c // groups)
    if channel_axis == 1:
        shape, form = (n, *split, space), Form((2, 3), (1, 2), eps)
    else:
        shape, form = (n, space, *split), Form((1, 3), (2, 3), eps)
    weight, bias = (None if each is None else each.reshape(split) for each in (weight, bias))
    out, mean, variance = normalize(input.reshape(shape), weight, bias, form)
    return out.reshape(input.shape), mean, variance


def _row_norm(input, normalized_shape, weight, bias, eps, *, centred=True):
    """With mean and variance of each row; the last dimensions are one."""
    size = math.prod(normalized_shape)
    rows = math.prod(input.shape[: input.ndim - len(normalized_shape)])
    weight, bias = (None if each is None else each.ravel() for each in (weight, bias))
    form = Form((1,), (1,), eps, centred, alone=True)
    out, mean, variance = normalize(input.reshape(rows, size), weight, bias, form)
    return out.reshape(input.shape), mean, variance


def _channels(vector, ndim, axis):
    """A parameter shaped to meet dimension `axis` of an array of `ndim` dimensions."""
    return vector.reshape(-1, *[1] * (ndim - axis - 1))


def _outputs(input, weight, out, mean, rstd):
    """The result and its statistics, which torch's CPU keeps in the dtype of the weight."""
    kept = input.dtype if weight is None else weight.dtype
    return out, mean.astype(kept), rstd.astype(kept)


def _sizes(input, channel_axis):
    """Of the batch, of space, and how many channels."""
    n, c = input.shape[0], input.shape[channel_axis]
    space = input.shape[2:] if channel_axis == 1 else input.shape[1:-1]
    return n, math.prod(space), c
