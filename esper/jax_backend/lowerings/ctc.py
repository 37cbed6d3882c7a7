"""Connectionist temporal classification (Graves et al. 2006; aten/src/ATen/native/LossCTC.cpp)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from esper.jax_backend.registry import lowers


@lowers("esper.ctc_loss.default")
def ctc_loss(log_probs, targets, input_lengths, target_lengths, blank):
    """ctc_loss(Tensor log_probs, Tensor targets, Tensor input_lengths, Tensor target_lengths, int blank) -> Tensor"""
    labels = targets if targets.ndim == 2 else _rows(targets, target_lengths)

    return _with_torch_gradient(log_probs, labels, input_lengths, target_lengths, blank)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _with_torch_gradient(log_probs, labels, input_lengths, target_lengths, blank):
    return _losses(log_probs, labels, input_lengths, target_lengths, blank)


def _forward(log_probs, labels, input_lengths, target_lengths, blank):
    made, pull = jax.vjp(lambda lp: _losses(lp, labels, input_lengths, target_lengths, blank), log_probs)
    return made, (log_probs, input_lengths, made, pull)


def _backward(_blank, kept, cotangent):
    log_probs, input_lengths, losses, pull = kept
    alive = jnp.arange(log_probs.shape[0])[:, None] < input_lengths
    (gradient,) = pull(cotangent)
    # Torch's backward takes log_probs for the result of a log-softmax, and adds that one's part.
    gradient = gradient + jnp.where(alive, cotangent, 0)[..., None] * jnp.exp(log_probs)
    impossible = alive & jnp.isinf(losses)  # torch's gradient is NaN where no alignment exists
    gradient = jnp.where(impossible[..., None], jnp.nan, gradient)
    return jnp.where((cotangent == 0)[:, None], 0, gradient), None, None, None


_with_torch_gradient.defvjp(_forward, _backward)


def _rows(targets, lengths):
    """Concatenated targets as rows, as wide as all of them together."""
    starts = jnp.cumsum(lengths) - lengths
    places = starts[:, None] + jnp.arange(targets.shape[0])
    return targets[jnp.clip(places, 0, max(targets.shape[0] - 1, 0))] if targets.shape[0] else places


def _losses(log_probs, labels, input_lengths, target_lengths, blank):
    steps, batch, _ = log_probs.shape
    width = 2 * labels.shape[1] + 1
    extended = jnp.full((batch, width), blank, labels.dtype).at[:, 1::2].set(labels)
    place = jnp.arange(width)
    # A label may follow the one before it without a blank, unless they are equal.
    skips = (place >= 2) & (place % 2 == 1) & (extended != jnp.roll(extended, 2, 1))
    emitted = jnp.take_along_axis(log_probs, jnp.broadcast_to(extended, (steps, batch, width)), 2)
    start = jnp.where(place < 2, emitted[0] if steps else 0, -jnp.inf)

    def step(alpha, now):
        time, emission = now
        before = jnp.stack([alpha, _shifted(alpha, 1), jnp.where(skips, _shifted(alpha, 2), -jnp.inf)])
        return jnp.where((time < input_lengths)[:, None], _log_sum(before) + emission, alpha), None

    alpha, _ = lax.scan(step, start, (jnp.arange(1, steps), emitted[1:]))
    last = 2 * target_lengths[:, None]
    ends = jnp.take_along_axis(alpha, jnp.concatenate([last, jnp.maximum(last - 1, 0)], 1), 1)
    ends = ends.at[:, 1].set(jnp.where(target_lengths > 0, ends[:, 1], -jnp.inf))
    without_input = jnp.where(target_lengths == 0, 0, jnp.inf).astype(log_probs.dtype)
    return jnp.where(input_lengths == 0, without_input, -_log_sum(ends.T))


def _shifted(alpha, by):
    return jnp.pad(alpha, ((0, 0), (by, 0)), constant_values=-jnp.inf)[:, : alpha.shape[1]]


def _log_sum(values):
    """Log of the sum of exponentials over the first axis; the gradient is 0 where all are -inf."""
    largest = lax.stop_gradient(jnp.max(values, 0))
    offset = jnp.where(jnp.isneginf(largest), 0, largest)
    total = jnp.sum(jnp.exp(values - offset), 0)
    return jnp.where(total > 0, offset + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)
