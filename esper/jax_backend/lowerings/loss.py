"""Losses. 16-bit inputs are computed in float32 and the result rounded once."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.axes import at_least_1d
from esper.jax_backend.lowerings.distance import pairwise_distance
from esper.jax_backend.lowerings.unary import magnitude
from esper.jax_backend.platform.precision import contract, widen
from esper.jax_backend.platform.softmax import entries, shifted
from esper.jax_backend.promotion import float_type, promote, result_type
from esper.jax_backend.registry import lowers

_NONE, _MEAN, _SUM = 0, 1, 2


@lowers("aten.binary_cross_entropy.default")
def binary_cross_entropy(x, target, weight=None, reduction=_MEAN):
    """binary_cross_entropy(Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean) -> Tensor"""
    loss = _binary_cross_entropy(widen(x), widen(target))
    return _reduce(loss if weight is None else loss * weight, reduction).astype(x.dtype)


@lowers("aten.binary_cross_entropy_with_logits.default")
def binary_cross_entropy_with_logits(x, target, weight=None, pos_weight=None, reduction=_MEAN):
    """binary_cross_entropy_with_logits(Tensor self, Tensor target, Tensor? weight=None, Tensor? pos_weight=None, int reduction=Mean) -> Tensor"""  # noqa: E501
    dtype = result_type(x, target, weight, pos_weight)
    x, target = widen(x), widen(target)
    log_weight = 1 if pos_weight is None else (pos_weight - 1) * target + 1
    loss = (1 - target) * x - log_weight * jax.nn.log_sigmoid(x)
    return _reduce(loss if weight is None else loss * weight, reduction).astype(dtype)


@lowers("aten.cosine_embedding_loss.default")
def cosine_embedding_loss(input1, input2, target, margin=0.0, reduction=_MEAN):
    """cosine_embedding_loss(Tensor input1, Tensor input2, Tensor target, float margin=0.0, int reduction=Mean) -> Tensor"""  # noqa: E501
    x, y = widen(input1), widen(input2)
    axis, tiny = target.ndim, 1e-12
    sizes = (jnp.sum(x * x, axis) + tiny) * (jnp.sum(y * y, axis) + tiny)
    cosine = jnp.sum(x * y, axis) / jnp.sqrt(sizes)
    loss = jnp.where(target == 1, 1 - cosine, 0) + jnp.where(target == -1, _clamp_min(cosine - margin), 0)
    return _reduce(loss, reduction).astype(float_type(input1, input2))


@lowers("aten.cross_entropy_loss.default")
def cross_entropy_loss(x, target, weight=None, reduction=_MEAN, ignore_index=-100, label_smoothing=0.0):
    """cross_entropy_loss(Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, SymInt ignore_index=-100, float label_smoothing=0.0) -> Tensor"""  # noqa: E501
    axis = 0 if x.ndim == 1 else 1
    weight = None if weight is None else widen(weight)
    if jnp.issubdtype(target.dtype, jnp.floating):
        logs = jax.nn.log_softmax(widen(x), axis)
        loss = _soft_targets(logs, widen(target), weight, reduction, label_smoothing, axis)
        return loss.astype(x.dtype)
    # The log-softmax as what it is the difference of, an array of which is never made.
    logits, log_total = shifted(widen(x), axis)
    loss, total = _nll(logits, target, weight, reduction, ignore_index, axis, log_total)
    if label_smoothing > 0:
        weighted = logits if weight is None else logits * _along(weight, axis, x.ndim)
        smooth = (x.shape[axis] if weight is None else jnp.sum(weight)) * log_total - jnp.sum(weighted, axis)
        smooth = _reduce_by(jnp.where(target == ignore_index, 0, smooth), total, reduction)
        loss = (1 - label_smoothing) * loss + label_smoothing / x.shape[axis] * smooth
    return loss.astype(x.dtype)


@lowers("aten.hinge_embedding_loss.default")
def hinge_embedding_loss(x, target, margin=1.0, reduction=_MEAN):
    """hinge_embedding_loss(Tensor self, Tensor target, float margin=1.0, int reduction=Mean) -> Tensor"""
    wide = widen(x)
    loss = jnp.where(target != 1, _clamp_min(margin - wide), 0) + jnp.where(target != -1, wide, 0)
    return _reduce(loss, reduction).astype(x.dtype)


@lowers("aten.huber_loss.default")
def huber_loss(x, target, reduction=_MEAN, delta=1.0):
    """huber_loss(Tensor self, Tensor target, int reduction=Mean, float delta=1.0) -> Tensor"""
    gap = magnitude(_difference(x, target))
    loss = jnp.where(gap <= delta, 0.5 * gap * gap, delta * (gap - 0.5 * delta))
    return _reduce(loss, reduction).astype(result_type(x, target))


@lowers("aten.kl_div.default")
def kl_div(x, target, reduction=_MEAN, *, log_target=False):
    """kl_div(Tensor self, Tensor target, int reduction=Mean, *, bool log_target=False) -> Tensor"""
    dtype = result_type(x, target)
    x, target = widen(x), widen(target)
    if log_target:
        return _reduce(jnp.exp(target) * (target - x), reduction).astype(dtype)
    return _reduce(jax.scipy.special.xlogy(target, target) - target * x, reduction).astype(dtype)


@lowers("aten.l1_loss.default")
def l1_loss(x, target, reduction=_MEAN):
    """l1_loss(Tensor self, Tensor target, int reduction=Mean) -> Tensor"""
    return _reduce(magnitude(_difference(x, target)), reduction).astype(result_type(x, target))


@lowers("torch_nn._linear_cross_entropy_batch_chunked.default")
def linear_cross_entropy_chunked(
    input,
    linear_weight,
    target,
    linear_bias,
    weight,
    reduction,
    ignore_index,
    label_smoothing,
    batch_chunk_size,
    acc_policy,
    acc_dtype,
    allow_retain_graph,
    compute_input_grad,
    compute_linear_weight_grad,
    compute_linear_bias_grad,
):
    """_linear_cross_entropy_batch_chunked(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, str reduction, SymInt ignore_index, float label_smoothing, SymInt batch_chunk_size, str acc_policy, ScalarType acc_dtype, bool allow_retain_graph, bool compute_input_grad, bool compute_linear_weight_grad, bool compute_linear_bias_grad) -> (Tensor, Tensor, Tensor, Tensor)"""  # noqa: E501

    def of(input, linear_weight, linear_bias):
        kind = {"mean": _MEAN, "sum": _SUM}[reduction]
        logits = _logits(input, linear_weight, linear_bias)
        return cross_entropy_loss(logits, target, weight, kind, ignore_index, label_smoothing).astype(input.dtype)

    # Torch's chunks take the gradients along with the loss; nothing but its own backward reads them.
    loss, pull = jax.vjp(of, input, linear_weight, linear_bias)
    wanted = (compute_input_grad, compute_linear_weight_grad, compute_linear_bias_grad)
    grads = [
        lax.stop_gradient(grad).astype(input.dtype) if needed and grad is not None else jnp.zeros(empty, input.dtype)
        for grad, needed, empty in zip(pull(jnp.ones_like(loss)), wanted, ((0, 0), (0, 0), (0,)), strict=True)
    ]
    return loss, *grads


@lowers("torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default")
def linear_cross_entropy_chunked_none(
    input, linear_weight, target, linear_bias, weight, ignore_index, batch_chunk_size, acc_policy, acc_dtype
):
    """_linear_cross_entropy_batch_chunked_no_reduction(Tensor input, Tensor linear_weight, Tensor target, Tensor? linear_bias, Tensor? weight, SymInt ignore_index, SymInt batch_chunk_size, str acc_policy, ScalarType acc_dtype) -> Tensor"""  # noqa: E501
    logits = _logits(input, linear_weight, linear_bias)
    return cross_entropy_loss(logits, target, weight, _NONE, ignore_index).astype(input.dtype)


@lowers("aten.margin_ranking_loss.default")
def margin_ranking_loss(input1, input2, target, margin=0.0, reduction=_MEAN):
    """margin_ranking_loss(Tensor input1, Tensor input2, Tensor target, float margin=0.0, int reduction=Mean) -> Tensor"""  # noqa: E501
    loss = _clamp_min(-widen(target) * _difference(input1, input2) + margin)
    return _reduce(loss, reduction).astype(float_type(input1, input2, target))


@lowers("aten.mse_loss.default")
def mse_loss(x, target, reduction=_MEAN):
    """mse_loss(Tensor self, Tensor target, int reduction=Mean) -> Tensor"""
    return _reduce(jnp.square(_difference(x, target)), reduction).astype(result_type(x, target))


@lowers("aten.multilabel_margin_loss.default")
def multilabel_margin_loss(x, target, reduction=_MEAN):
    """multilabel_margin_loss(Tensor self, Tensor target, int reduction=Mean) -> Tensor"""
    x, target = at_least_1d(x), at_least_1d(target)
    # The labels of a row end at its first -1.
    labels = jnp.arange(x.shape[-1])
    listed = jnp.cumsum(target < 0, axis=-1) == 0
    chosen = listed[..., :, None] & (target[..., :, None] == labels)  # (..., place in target, class)
    wide = widen(x)
    of_target = jnp.sum(jnp.where(chosen, wide[..., None, :], 0), axis=-1)
    gaps = jax.nn.relu(1 - of_target[..., :, None] + wide[..., None, :])
    counted = listed[..., :, None] & ~jnp.any(chosen, axis=-2)[..., None, :]
    loss = jnp.sum(jnp.where(counted, gaps, 0), axis=(-2, -1)) / x.shape[-1]
    return _reduce(loss, reduction).astype(x.dtype)


@lowers("aten.nll_loss.default", "aten.nll_loss2d.default", "aten.nll_loss_nd.default")
def nll_loss(x, target, weight=None, reduction=_MEAN, ignore_index=-100):
    """nll_loss(Tensor self, Tensor target, Tensor? weight=None, int reduction=Mean, SymInt ignore_index=-100) -> Tensor"""  # noqa: E501
    return nll_loss_forward(x, target, weight, reduction, ignore_index)[0]


@lowers("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss_forward(x, target, weight, reduction, ignore_index):
    """nll_loss_forward(Tensor self, Tensor target, Tensor? weight, int reduction, SymInt ignore_index) -> (Tensor output, Tensor total_weight)"""  # noqa: E501
    weight = None if weight is None else widen(weight)
    loss, total = _nll(widen(x), target, weight, reduction, ignore_index, 0 if x.ndim == 1 else 1)
    counted = jnp.zeros_like(total) if reduction == _NONE else total
    return loss.astype(x.dtype), lax.stop_gradient(counted).astype(x.dtype)


@lowers("aten.poisson_nll_loss.default")
def poisson_nll_loss(input, target, log_input, full, eps, reduction):
    """poisson_nll_loss(Tensor input, Tensor target, bool log_input, bool full, float eps, int reduction) -> Tensor"""
    dtype = float_type(input, target)
    x, t = widen(input), widen(target)
    loss = jnp.exp(x) - t * x if log_input else x - t * jnp.log(x + eps)
    if full:
        above = jnp.where(t > 1, t, 1)  # Stirling's approximation holds above 1
        loss = loss + jnp.where(t > 1, above * jnp.log(above) - above + 0.5 * jnp.log(2 * math.pi * above), 0)
    return _reduce(loss, reduction).astype(dtype)


@lowers("aten.smooth_l1_loss.default")
def smooth_l1_loss(x, target, reduction=_MEAN, beta=1.0):
    """smooth_l1_loss(Tensor self, Tensor target, int reduction=Mean, float beta=1.0) -> Tensor"""
    if beta == 0:
        return l1_loss(x, target, reduction)
    gap = magnitude(_difference(x, target))
    loss = jnp.where(gap < beta, 0.5 * gap * gap / beta, gap - 0.5 * beta)
    return _reduce(loss, reduction).astype(result_type(x, target))


@lowers("aten.soft_margin_loss.default")
def soft_margin_loss(x, target, reduction=_MEAN):
    """soft_margin_loss(Tensor self, Tensor target, int reduction=Mean) -> Tensor"""
    loss = jnp.log1p(jnp.exp(-widen(target) * widen(x)))
    return _reduce(loss, reduction).astype(result_type(x, target))


@lowers("aten.triplet_margin_loss.default")
def triplet_margin_loss(anchor, positive, negative, margin=1.0, p=2.0, eps=1e-6, swap=False, reduction=_MEAN):
    """triplet_margin_loss(Tensor anchor, Tensor positive, Tensor negative, float margin=1.0, float p=2, float eps=1e-06, bool swap=False, int reduction=Mean) -> Tensor"""  # noqa: E501
    dtype = float_type(anchor, positive, negative)
    anchor, positive, negative = widen(anchor), widen(positive), widen(negative)
    near, far = pairwise_distance(anchor, positive, p, eps), pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = jnp.minimum(far, pairwise_distance(positive, negative, p, eps))
    return _reduce(_clamp_min(margin + near - far), reduction).astype(dtype)


def _along(vector, axis, ndim):
    return vector.reshape(-1, *[1] * (ndim - axis - 1))


@jax.custom_jvp
def _binary_cross_entropy(x: jax.Array, target: jax.Array) -> jax.Array:
    # Torch holds the logarithms above -100 in the value.
    return -(target * jnp.maximum(jnp.log(x), -100) + (1 - target) * jnp.maximum(jnp.log1p(-x), -100))


@_binary_cross_entropy.defjvp
def _binary_cross_entropy_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    x, target = primals
    by_x = (x - target) / jnp.maximum(x * (1 - x), 1e-12)
    by_target = jnp.log1p(-x) - jnp.log(x)  # here it does not
    return _binary_cross_entropy(x, target), by_x * tangents[0] + by_target * tangents[1]


def _clamp_min(x):
    """max(x, 0), with derivative 1 at 0 as torch's clamp_min has."""
    return jnp.where(x < 0, 0, x)


def _difference(x, target):
    x, target = promote(x, target)
    return widen(x) - widen(target)


def _logits(input, linear_weight, linear_bias):
    logits = contract(input, linear_weight, ((1,), (1,)))
    return logits if linear_bias is None else logits + linear_bias.astype(logits.dtype)


def _nll(logits, target, weight, reduction, ignore_index, axis, log_total=0):
    """The loss of log-probabilities `logits - log_total`, and the total weight of the targets that count."""
    counts = target != ignore_index
    losses = log_total - entries(logits, target, axis)
    known = (target >= 0) & (target < logits.shape[axis])
    weights = counts.astype(logits.dtype)
    if weight is not None:
        weights = weights * jnp.where(known, weight[jnp.where(known, target, 0)], 0)
    total = jnp.sum(weights)
    return _reduce_by(jnp.where(counts & known, losses * weights, 0), total, reduction), total


def _reduce(loss, reduction):
    return {_NONE: lambda x: x, _MEAN: jnp.mean, _SUM: jnp.sum}[reduction](loss)


def _reduce_by(loss, total, reduction):
    """Like `_reduce`, the mean being over the total weight."""
    return jnp.sum(loss) / total if reduction == _MEAN else _reduce(loss, reduction)


def _soft_targets(logs, target, weight, reduction, label_smoothing, axis):
    """Cross-entropy against probabilities; its mean is over everything but the classes."""
    if label_smoothing > 0:
        target = target * (1 - label_smoothing) + label_smoothing / logs.shape[axis]
    terms = logs * target if weight is None else logs * target * _along(weight, axis, logs.ndim)
    return _reduce(-jnp.sum(terms, axis), reduction)
