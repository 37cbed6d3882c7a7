"""Normalisation by statistics. Those of 16-bit inputs are taken in float32; outputs have the input's dtype."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax import lax

from esper.jax_backend.lowerings.reduction import norm_except_dim
from esper.jax_backend.platform.bias import add_bias, scale
from esper.jax_backend.platform.precision import accumulator, widen
from esper.jax_backend.registry import lowers


@lowers("aten.batch_norm.default")
def batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=False):
    """batch_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if training or running_mean is None:
        return native_batch_norm_no_stats(input, weight, bias, True, momentum, eps)[0]
    return native_batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps)[0]


@lowers("aten.group_norm.default")
def group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    """group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enabled=True) -> Tensor"""  # noqa: E501
    n, c, *space = input.shape
    return native_group_norm(input, weight, bias, n, c, math.prod(space), num_groups, eps)[0]


@lowers("aten.instance_norm.default")
def instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled=False):
    """instance_norm(Tensor input, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool use_input_stats, float momentum, float eps, bool cudnn_enabled) -> Tensor"""  # noqa: E501
    if not use_input_stats:
        return native_batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps)[0]
    out, _, _ = _standardise(widen(input), range(2, input.ndim), eps)
    return _affine(out, weight, bias, 1).astype(input.dtype)


@lowers("aten.layer_norm.default")
def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, bool cudnn_enable=True) -> Tensor"""  # noqa: E501
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@lowers("aten._native_batch_norm_legit_functional.default")
def native_batch_norm_functional(input, weight, bias, running_mean, running_var, training, momentum, eps):
    """_native_batch_norm_legit_functional(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor, Tensor running_mean_out, Tensor running_var_out)"""  # noqa: E501
    if not training:
        outs = native_batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps)
        return *outs, running_mean, running_var
    axes = (0, *range(2, input.ndim))
    centred, mean, variance = _centre(widen(input), axes)
    rstd = lax.rsqrt(variance + eps)
    out = _affine(centred * rstd, weight, bias, 1)
    count = math.prod(input.shape[a] for a in axes)
    if count == 0:  # nothing seen, nothing moved
        return *_outputs(input, weight, out, mean.reshape(-1), rstd.reshape(-1)), running_mean, running_var
    # The running variance is unbiased, the one that normalises is not.
    latest = lax.stop_gradient((mean.reshape(-1), variance.reshape(-1) * (count / (count - 1))))
    moved = [
        (momentum * new + (1 - momentum) * old).astype(old.dtype)
        for new, old in zip(latest, (running_mean, running_var), strict=True)
    ]
    return *_outputs(input, weight, out, mean.reshape(-1), rstd.reshape(-1)), *moved


@lowers("aten._native_batch_norm_legit.no_stats")
def native_batch_norm_no_stats(input, weight, bias, training, momentum, eps):
    """_native_batch_norm_legit.no_stats(Tensor input, Tensor? weight, Tensor? bias, bool training, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    normed, mean, rstd = _standardise(widen(input), (0, *range(2, input.ndim)), eps)
    out = _affine(normed, weight, bias, 1)
    return _outputs(input, weight, out, mean.reshape(-1), rstd.reshape(-1))


@lowers("aten._native_batch_norm_legit_no_training.default")
def native_batch_norm_no_training(input, weight, bias, running_mean, running_var, momentum, eps):
    """_native_batch_norm_legit_no_training(Tensor input, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, float momentum, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    wide = accumulator(input.dtype)
    scale = lax.rsqrt(running_var.astype(wide) + eps)
    normed = (input.astype(wide) - _channels(running_mean.astype(wide), input.ndim)) * _channels(scale, input.ndim)
    empty = jnp.zeros((0,), input.dtype)
    return _affine(normed, weight, bias, 1).astype(input.dtype), empty, empty


@lowers("aten.native_group_norm.default")
def native_group_norm(input, weight, bias, N, C, HxW, group, eps):
    """native_group_norm(Tensor input, Tensor? weight, Tensor? bias, SymInt N, SymInt C, SymInt HxW, int group, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    grouped = widen(input).reshape(N, group, math.prod(input.shape[1:]) // group)
    normed, mean, rstd = _standardise(grouped, (2,), eps)
    out = _affine(normed.reshape(input.shape), weight, bias, 1)
    return _outputs(input, weight, out, mean[..., 0], rstd[..., 0])


@lowers("aten.native_layer_norm.default")
def native_layer_norm(input, normalized_shape, weight, bias, eps):
    """native_layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    first = input.ndim - len(normalized_shape)
    normed, mean, rstd = _standardise(widen(input), range(first, input.ndim), eps)
    out = _affine(normed, weight, bias, first)
    return _outputs(input, weight, out, mean, rstd)


@lowers("aten.rms_norm.default")
def rms_norm(input, normalized_shape, weight=None, eps=None):
    """rms_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor"""
    x = widen(input)
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    out = x * lax.rsqrt(jnp.mean(x * x, axes, keepdims=True) + eps)
    return (out if weight is None else out * weight.astype(out.dtype)).astype(input.dtype)


@lowers("aten._weight_norm.default")
def weight_norm(v, g, dim=0):
    """_weight_norm(Tensor v, Tensor g, int dim=0) -> Tensor"""
    return weight_norm_interface(v, g, dim)[0]


@lowers("aten._weight_norm_interface.default")
def weight_norm_interface(v, g, dim=0):
    """_weight_norm_interface(Tensor v, Tensor g, int dim=0) -> (Tensor, Tensor)"""
    norm = norm_except_dim(widen(v), 2, dim)
    return (widen(v) * (widen(g) / norm)).astype(v.dtype), norm


def _affine(x, weight, bias, axis):
    """x * weight + bias, both starting at dimension `axis` of x."""
    x = x if weight is None else scale(x, weight, axis)
    return x if bias is None else add_bias(x, bias, axis)


def _channels(vector, ndim, axis=1):
    """A parameter shaped to meet dimension `axis` of an array of `ndim` dimensions."""
    return vector.reshape(*vector.shape, *[1] * (ndim - axis - vector.ndim))


def _centre(x, axes):
    """x - mean, with mean and (biased) variance, their dimensions kept."""
    # Fused with what makes x, the sums would be added up in an order that depends on it. Read when it is finished, they
    # are the same, bit for bit, whatever grows beside the layer that x comes from.
    x = lax.optimization_barrier(x)
    mean = jnp.mean(x, tuple(axes), keepdims=True)
    centred = x - mean
    return centred, mean, jnp.mean(centred * centred, tuple(axes), keepdims=True)


def _outputs(input, weight, out, mean, rstd):
    """The result and its statistics, which torch's CPU keeps in the dtype of the weight."""
    kept = input.dtype if weight is None else weight.dtype
    return out.astype(input.dtype), mean.astype(kept), rstd.astype(kept)


def _standardise(x, axes, eps):
    """(x - mean) * rstd, with mean and rstd, their dimensions kept."""
    centred, mean, variance = _centre(x, axes)
    rstd = lax.rsqrt(variance + eps)
    return centred * rstd, mean, rstd
